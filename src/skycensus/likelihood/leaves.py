r"""Mixtures leaf by leaf: marginals, memberships and draws of objects whose leaves differ.

For a population $p(\theta) = \sum_k w_k\,p_k(\theta)$, flat or nested,

$$m_i = \sum_k w_k\, m_{ik},\qquad m_{ik} = \int p(d_i|\theta)\,p_k(\theta)\,d\theta,\qquad
  P(k \mid d_i) = w_k\, m_{ik} / m_i .$$
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from ..density import Density, leaves, logsumexp_of
from ..errors import InputError, did_you_mean
from . import Likelihood, LogMarginal


def sum_over_leaves(
    density: Density, marginal: Callable[[str, Density], LogMarginal]
) -> LogMarginal:
    r"""Add up `marginal(path, leaf)` over the leaves of `density`.

    The leaves' Monte Carlo errors count as independent, $\mathrm{var}_i = \sum_k P(k|d_i)^2\,
    \mathrm{var}_{ik}$.
    """
    terms = {path: (w, marginal(path, leaf)) for path, (w, leaf) in leaves(density).items()}
    if len(terms) == 1:
        weight, only = next(iter(terms.values()))
        return LogMarginal(only.value + weight, only.variance)
    total = logsumexp_of([m.value + w for w, m in terms.values()])
    below = jnp.where(total == -jnp.inf, 0.0, total)
    spread = jnp.zeros_like(total)
    for weight, each in terms.values():
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

    Args:
        forms: path of the leaf, or of a branch above it -> form; all over the same objects. The
            longest path that fits a leaf is taken: `{"dm": grid, "bkg": samples}` knows the leaf
            `bkg/ccr` by draws.

    Raises:
        InputError: no forms, or forms of different objects; and where it is used, a leaf without a
            form.
    """

    forms: dict[str, Any]
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

    def log_marginal(self, density: Density) -> LogMarginal:
        """Integrate every leaf of `density` by its own form."""
        return sum_over_leaves(density, self.at_leaf)

    def draw(self, density: Density, key: Any) -> dict[str, Array]:
        """One draw of every object's theta given the population."""
        return draw_over_leaves(
            density, key, self.at_leaf, lambda path, leaf, k: self._form(path).draw(leaf, k)
        )

    def at_leaf(self, path: str, leaf: Density) -> LogMarginal:
        """Log marginals of one leaf, without its weight."""
        return self._form(path).log_marginal(leaf)

    def _form(self, path: str) -> Likelihood:
        parts = path.split("/")
        for end in range(len(parts), 0, -1):
            if (branch := "/".join(parts[:end])) in self.forms:
                return self.forms[branch]
        raise InputError(
            f"Leafwise has no form for the leaf '{path}'{did_you_mean(path, self.forms)}; it has "
            f"{sorted(self.forms)}."
        )
