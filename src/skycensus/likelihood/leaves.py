r"""Mixtures leaf by leaf: marginals, memberships and draws of objects whose leaves differ.

For a population $p(\theta) = \sum_k w_k\,p_k(\theta)$, flat or nested,

$$m_i = \sum_k w_k\, m_{ik},\qquad m_{ik} = \int p(d_i|\theta)\,p_k(\theta)\,d\theta,\qquad
  P(k \mid d_i) = w_k\, m_{ik} / m_i .$$
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ..density import Density, leaves, logsumexp_of
from ..errors import InputError, did_you_mean
from . import Likelihood, LogMarginal
from .folded import has_sums, log_or_nothing


def sum_over_leaves(
    density: Density, marginal: Callable[[str, Density], LogMarginal]
) -> LogMarginal:
    r"""Add up `marginal(path, leaf)` over the leaves of `density`.

    The leaves' Monte Carlo errors count as independent, $\mathrm{var}_i = \sum_k P(k|d_i)^2\,
    \mathrm{var}_{ik}$.
    """
    return _added([(w, marginal(path, leaf)) for path, (w, leaf) in leaves(density).items()])


def _added(terms: Sequence[tuple[Array, LogMarginal]]) -> LogMarginal:
    """The sum of marginals with their log weights."""
    if len(terms) == 1:
        weight, only = terms[0]
        return LogMarginal(only.value + weight, only.variance)
    total = logsumexp_of([m.value + w for w, m in terms])
    below = jnp.where(total == -jnp.inf, 0.0, total)
    spread = jnp.zeros_like(total)
    for weight, each in terms:
        share = jnp.exp(each.value + weight - below)
        # A leaf without any share may have an infinite variance, which then says nothing.
        variance = jnp.where(share > 0, each.variance, 0.0)
        spread = spread + share**2 * variance
    return LogMarginal(total, spread)


def memberships(likelihood: Likelihood, density: Density) -> dict[str, Array]:
    """Return `path -> (num_objects,)` probabilities that an object belongs to each leaf."""

    def at_leaf(path: str, leaf: Density) -> LogMarginal:
        if isinstance(likelihood, Leafwise):
            return likelihood.at_leaf(path, leaf)
        return likelihood.log_marginal(leaf)

    values = {
        path: at_leaf(path, leaf).value + weight for path, (weight, leaf) in leaves(density).items()
    }
    total = logsumexp_of(list(values.values()))
    return {path: jnp.exp(value - total) for path, value in values.items()}


def draw_over_leaves(
    density: Density,
    key: Any,
    marginal: Callable[[str, Density], LogMarginal],
    draw: Callable[[str, Density, Any], Mapping[str, Array]],
) -> dict[str, Array]:
    """One draw of every object's theta: a leaf by its membership, then `draw(path, leaf, key)`."""
    tree = leaves(density)
    pick_key, *keys = jax.random.split(key, len(tree) + 1)
    draws = [draw(path, leaf, k) for (path, (_, leaf)), k in zip(tree.items(), keys, strict=True)]
    if len(draws) == 1:
        return dict(draws[0])
    values = [marginal(path, leaf).value + weight for path, (weight, leaf) in tree.items()]
    pick = jax.random.categorical(pick_key, jnp.stack(values), axis=0)
    return {name: jnp.choose(pick, [d[name] for d in draws], mode="clip") for name in draws[0]}


class Leafwise(eqx.Module):
    r"""Objects whose likelihood is known in a form of its own for every leaf of a mixture tree.

    Leaves that are tables (`Folded`), numbers (`Constant`) or these as far as they are detected are
    added up as numbers, with one logarithm for an object. A leaf below $10^{-300}$ of an object's
    largest then counts as zero.

    Args:
        forms: path of the leaf, or of a branch above it -> form; all over the same objects. The
            longest path that fits a leaf is taken: `{"dm": grid, "bkg": samples}` knows the leaf
            `bkg/ccr` by draws.

    Raises:
        InputError: no forms, or forms of different objects; and where it is used, a leaf without a
            form.
    """

    forms: dict[str, Any]
    scales: _Scales
    names: tuple[str, ...] = eqx.field(static=True)

    def __init__(self, forms: Mapping[str, Likelihood]):
        if not forms:
            raise InputError("Leafwise needs at least one form.")
        self.forms = dict(forms)
        (first, form), *rest = self.forms.items()
        self.names = tuple(form.names)
        for path, other in rest:
            if tuple(other.names) != self.names:
                raise InputError(
                    f"Leafwise: '{path}' and '{first}' are forms of different objects; give every "
                    "leaf the same objects in the same order."
                )
        self.scales = _Scales({p: f.log_scale for p, f in self.forms.items() if has_sums(f)})

    def log_marginal(self, density: Density) -> LogMarginal:
        """Integrate every leaf of `density` by its own form."""
        sums, others = [], []
        for path, (weight, leaf) in leaves(density).items():
            if (branch := self._branch(path)) in self.scales.leaf:
                total, factor = self.forms[branch].sums(leaf)
                sums.append((branch, total, factor + weight))
            else:
                others.append((weight, self.forms[branch].log_marginal(leaf)))
        if sums:
            value = self.scales.added(sums)
            others.append((jnp.zeros(()), LogMarginal(value, jnp.zeros_like(value))))
        return _added(others)

    def draw(self, density: Density, key: Any) -> dict[str, Array]:
        """One draw of every object's theta given the population."""
        return draw_over_leaves(
            density,
            key,
            self.at_leaf,
            lambda path, leaf, k: self.forms[self._branch(path)].draw(leaf, k),
        )

    def at_leaf(self, path: str, leaf: Density) -> LogMarginal:
        """Log marginals of one leaf, without its weight."""
        return self.forms[self._branch(path)].log_marginal(leaf)

    def _branch(self, path: str) -> str:
        """Whose form a leaf has."""
        parts = path.split("/")
        for end in range(len(parts), 0, -1):
            if (branch := "/".join(parts[:end])) in self.forms:
                return branch
        raise InputError(
            f"Leafwise has no form for the leaf '{path}'{did_you_mean(path, self.forms)}; it has "
            f"{sorted(self.forms)}."
        )


class _Scales(eqx.Module):
    r"""Scales $e^{a_k + b_i} r_{ik}$ of tables, by which their marginals are added as numbers.

    Args:
        log_scale: path -> (num_objects,) logs of the scales.

    Attributes:
        leaf: path -> $a_k$, the largest of the leaf's.
        own: path -> (num_objects,) $r_{ik} \le 1$.
        shared: (num_objects,) $b_i$.
    """

    leaf: dict[str, Array]
    own: dict[str, Array]
    shared: Array

    def __init__(self, log_scale: Mapping[str, Any]):
        logs = {path: np.asarray(x) for path, x in log_scale.items()}
        tops = {path: _top(x) for path, x in logs.items()}
        shared = np.zeros(())
        if logs:
            shared = _top(np.array([logs[path] - tops[path] for path in logs]), axis=0)
        self.leaf = {path: jnp.asarray(x) for path, x in tops.items()}
        self.own = {path: jnp.exp(jnp.asarray(x - tops[path] - shared)) for path, x in logs.items()}
        self.shared = jnp.asarray(shared)

    def added(self, sums: Sequence[tuple[str, Array, Array]]) -> Array:
        """(num_objects,) logs of the sum over leaves, given as path, sums and log of a factor."""
        factors = jnp.stack([factor + self.leaf[path] for path, _, factor in sums])
        top = jax.lax.stop_gradient(jnp.max(factors))
        top = jnp.where(jnp.isfinite(top), top, 0.0)
        parts = jnp.exp(factors - top)
        total = jnp.zeros_like(self.shared)
        for (path, each, _), part in zip(sums, parts, strict=True):
            total = total + part * self.own[path] * each
        return log_or_nothing(total) + self.shared + top


def _top(log_scale: np.ndarray, axis: int | None = None) -> np.ndarray:
    """The largest; zero where there is nothing."""
    top = log_scale.max(axis=axis)
    return np.where(np.isfinite(top), top, 0.0)
