r"""Objects that are linear in their parameters, with Gaussian noise: integrals in closed form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array

from ..density import Density, Joint
from ..errors import InputError
from . import LogMarginal
from .leaves import draw_over_leaves, sum_over_leaves

# Objects at a time: what a call needs beyond the data is some arrays of this length.
_BLOCK_SIZE = 2**16

# A column whose part beyond the earlier ones is this small, relatively, is made of them.
_RANK_TOLERANCE = 1e-13


# ---- rows of data --------------------------------------------------------------------------------


class Reduced(NamedTuple):
    r"""Rows $y = A\theta + n$ of unit noise, reduced to k rows that say the same of $\theta$.

    With $A = QR$, $z = Q^\top y$ and the misfit $\chi^2 = |y - Qz|^2$,
    $\ln \mathcal N(y | A\theta, 1) = \ell - \frac12 |z - R\theta|^2$,
    $\ell = -\frac12\chi^2 - \frac m2 \ln 2\pi$. $R^\top R = A^\top A$ and $R^\top z = A^\top y$ are
    the sufficient statistics; their root loses no digits where the data are precise.

    Attributes:
        root: (k, k, ...) the upper triangular R.
        value: (k, ...) z.
        log_norm: (...) $\ell$.
    """

    root: Any
    value: Any
    log_norm: Any


def reduce_rows(design: Any, data: Any, num_rows: Any) -> Reduced:
    """Triangularise (modified Gram-Schmidt on the design with the data as its last column).

    Works on NumPy and on JAX arrays. Rows of zeros add nothing: they pad ragged objects.

    Args:
        design: (..., m, k), divided by the noise.
        data: (..., m), divided by the noise.
        num_rows: (...) the number m of true rows.
    """
    xp = np if isinstance(design, np.ndarray) else jnp
    num = design.shape[-1]
    rest = xp.concatenate([xp.moveaxis(design, -1, 0), data[None]])
    first = xp.sqrt(xp.sum(rest * rest, axis=-1))
    root, value = [], []
    for j in range(num):
        column, rest = rest[0], rest[1:]
        length = xp.sqrt(xp.sum(column * column, axis=-1))
        # What is left of a column made of the earlier ones is rounding: it measures nothing.
        length = xp.where(length > _RANK_TOLERANCE * first[j], length, 0.0)
        unit = column / xp.where(length > 0, length, 1.0)[..., None]
        unit = xp.where(length[..., None] > 0, unit, 0.0)
        along = xp.sum(rest * unit, axis=-1)
        rest = rest - along[..., None] * unit
        before = xp.zeros((j, *length.shape), length.dtype)
        root.append(xp.concatenate([before, length[None], along[:-1]]))
        value.append(along[-1])
    misfit = xp.sum(rest[0] * rest[0], axis=-1)
    log_norm = -0.5 * misfit - 0.5 * np.log(2 * np.pi) * num_rows
    return Reduced(xp.stack(root), xp.stack(value), log_norm)


# ---- a Gaussian population -----------------------------------------------------------------------


class Normals(NamedTuple):
    r"""A Gaussian density of k parameters, $\theta = \mu + L\eta$ with $\eta\sim\mathcal N(0, 1)$.

    L need be neither triangular nor regular. Trailing axes (objects, nodes) broadcast.
    """

    mean: Array  # (k, ...)
    root: Array  # (k, k, ...)


class _Known(dict[str, Any]):
    """What a conditional factor may look at; anything else is an error that names it."""

    factor: Any = None
    form: str = "Gaussian"

    def __missing__(self, name: str) -> Any:
        raise InputError(
            f"{self.form}: the factor of {self.factor!r} depends on '{name}', which is not among "
            f"the known columns {sorted(self)}; linear parameters are integrated in closed form, "
            "so their factors may depend on known columns only."
        )


def normals(
    factors: Mapping[Any, Any], parameters: Sequence[str], seen: Mapping[str, Any], form: str
) -> Normals:
    """The Gaussian that `factors` (of a `Joint`) make of `parameters`, in that order.

    Args:
        factors: `Normal`, `Delta`, `MultivariateNormal` over a tuple of names, a `Joint` of such,
            or functions of `seen` that return one.
        parameters: all the names, which the factors must cover exactly.
        seen: known columns by name, of one common shape; it becomes the trailing shape.
        form: how messages call the form that asks.

    Raises:
        InputError: a factor that is none of these, or parameters that do not match.
    """
    known = _Known(seen)
    known.form = form
    pieces = list(_pieces(factors, known, form))
    covered = [name for names, _, _ in pieces for name in names]
    if sorted(covered) != sorted(parameters):
        raise InputError(
            f"{form}: the population is over {sorted(covered)}, but the linear parameters are "
            f"{sorted(parameters)}; give each of them one Gaussian factor."
        )
    num = len(parameters)
    shapes = [np.shape(m)[:-1] for _, m, _ in pieces] + [np.shape(s)[:-2] for _, _, s in pieces]
    shape = np.broadcast_shapes(*shapes)
    # Without known columns the trailing axis has length one, to broadcast over the objects.
    shape = shape or (1,) * max([np.ndim(x) for x in seen.values()], default=1)
    mean = jnp.zeros((num, *shape))
    root = jnp.zeros((num, num, *shape))
    for names, loc, scale in pieces:
        at = np.array([list(parameters).index(name) for name in names])
        mean = mean.at[at].set(_trailing(loc, 1, shape))
        root = root.at[at[:, None], at[None]].set(_trailing(scale, 2, shape))
    return Normals(mean, root)


def _trailing(x: Any, num: int, shape: tuple[int, ...]) -> Array:
    """Move the last `num` axes to the front and broadcast the others."""
    x = jnp.broadcast_to(x, (*shape, *np.shape(x)[np.ndim(x) - num :]))
    return jnp.moveaxis(x, range(-num, 0), range(num))


def _pieces(factors: Mapping[Any, Any], known: _Known, form: str) -> Any:
    """Yield (names, loc (..., k), scale (..., k, k)) of every factor."""
    for key, factor in factors.items():
        names = key if isinstance(key, tuple) else (key,)
        if not isinstance(factor, dist.Distribution) and not hasattr(factor, "log_prob"):
            known.factor = key
            factor = factor(known)
        while isinstance(factor, dist.ExpandedDistribution | dist.Independent):
            factor = factor.base_dist
        if isinstance(factor, Joint):
            yield from _pieces(factor.factors, known, form)
        elif isinstance(factor, dist.Normal) and len(names) == 1:
            loc, scale = jnp.broadcast_arrays(factor.loc, factor.scale)
            yield names, loc[..., None], scale[..., None, None]
        elif isinstance(factor, dist.Delta) and len(names) == 1:
            yield names, factor.v[..., None], jnp.zeros((1, 1))
        elif isinstance(factor, dist.MultivariateNormal) and factor.event_shape == (len(names),):
            yield names, factor.loc, factor.scale_tril
        else:
            raise InputError(
                f"{form}: the factor of {key!r} is {type(factor).__name__}, which is not Gaussian "
                "in the linear parameters; use Normal, Delta or a MultivariateNormal over a tuple "
                "of names, mixtures of these, or another form (Quadrature, LinearGrid)."
            )


def log_evidence(reduced: Reduced, population: Normals) -> Array:
    r"""$\ln\int \mathcal N(y|A\theta, 1)\,\mathcal N(\theta|\mu, LL^\top)\,d\theta$, elementwise.

    The k reduced rows are $z\sim\mathcal N(R\mu, W)$ with $W = 1 + (RL)(RL)^\top$, whose
    eigenvalues are at least one: neither a singular population nor missing rows do harm. W is
    eliminated row by row, the objects side by side in the last axes.
    """
    num, root = len(reduced.value), reduced.root
    # Written out element by element: sums over axes this short keep a compiler from vectorising.
    gain = [
        [sum(root[i, j] * population.root[j, c] for j in range(i, num)) for c in range(num)]
        for i in range(num)
    ]
    left = [
        reduced.value[i] - sum(root[i, j] * population.mean[j] for j in range(i, num))
        for i in range(num)
    ]
    spread = [
        [sum(x * y for x, y in zip(gain[i], gain[j], strict=True)) + (i == j) for j in range(num)]
        for i in range(num)
    ]
    total = jnp.zeros(())
    for i in range(num):
        pivot = spread[i][i]
        total = total + left[i] ** 2 / pivot + jnp.log(pivot)
        for j in range(i + 1, num):
            share = spread[i][j] / pivot
            left[j] = left[j] - share * left[i]
            for c in range(j, num):
                spread[j][c] = spread[j][c] - share * spread[i][c]
    return reduced.log_norm - 0.5 * total


def conditional_draw(reduced: Reduced, population: Normals, key: Any) -> Array:
    r"""One draw of $\theta$ given data and population: (k, n) for reduced rows of n objects.

    $\eta\sim\mathcal N(M^{-1}G^\top(z - R\mu), M^{-1})$ with $G = RL$, $M = 1 + G^\top G$, and
    $\theta = \mu + L\eta$.
    """
    gain = _product(reduced.root, population.root)
    left = reduced.value - jnp.sum(reduced.root * population.mean[None], axis=1)
    right = jnp.sum(gain * left[:, None], axis=0)
    inverse = jnp.sum(gain[:, :, None] * gain[:, None], axis=0)
    inverse = jnp.moveaxis(inverse, -1, 0) + jnp.eye(len(left))
    lower = jnp.linalg.cholesky(inverse)
    solve = jax.scipy.linalg.solve_triangular
    half = solve(lower, right.T[..., None], lower=True)
    noise = jax.random.normal(key, half.shape, half.dtype)
    eta = solve(lower, half + noise, lower=True, trans=1)[..., 0].T
    return population.mean + jnp.sum(population.root * eta[None], axis=1)


def _product(left: Array, right: Array) -> Array:
    """Matrix product of (k, k, ...) arrays."""
    return jnp.sum(left[:, :, None] * right[None], axis=1)


# ---- the form ------------------------------------------------------------------------------------


class Gaussian(eqx.Module):
    r"""Objects linear in their parameters with Gaussian noise, $y_i = A_i\theta_i + n_i$,
    $n_i\sim\mathcal N(0, C_i)$, in a population that is Gaussian or a mixture of Gaussians:

    $$m_i = \int \mathcal N(y_i|A_i\theta, C_i)\,\mathcal N(\theta|\mu, V)\,d\theta
          = \mathcal N(y_i \mid A_i\mu,\ C_i + A_i V A_i^\top).$$

    The data are reduced once to their sufficient statistics; a call costs k x k algebra for each
    object, whatever its number of rows, and holds for singular V (a scale of zero) too.

    Args:
        design: (num_objects, m, k), or a list of (m_i, k) arrays where numbers of rows differ.
        data: (num_objects, m), or a list of (m_i,) arrays. Where there is one row each, `data` may
            be (num_objects,) and `design` (num_objects, k).
        noise: standard deviations, shaped like `data` (or one number for all), or covariances
            (num_objects, m, m), or a list of (m_i, m_i) arrays.
        parameters: names of the k columns of the design.
        names: of the objects.
        given: known columns, name -> (num_objects,), that the population may depend on.

    The variance is zero: the integral is exact.

    Raises:
        InputError: shapes that do not fit, values that are not finite, a standard deviation that is
            not positive or a covariance that is not positive definite (the object is named); and
            where it is used, a population that is not Gaussian in `parameters`.
    """

    rows: Reduced  # each attribute with blocks first and objects last
    given: dict[str, Array]
    parameters: tuple[str, ...] = eqx.field(static=True)
    names: tuple[str, ...] = eqx.field(static=True)

    def __init__(
        self,
        design: Any,
        data: Any,
        noise: Any,
        *,
        parameters: Sequence[str],
        names: Sequence[str] | None = None,
        given: Mapping[str, Any] | None = None,
    ):
        num = len(data)
        self.parameters = tuple(parameters)
        self.names = object_names("Gaussian", names, num)
        self.given = known_columns("Gaussian", given, self.names)
        groups = _groups(design, data, noise, self.names, len(self.parameters))
        size = len(self.parameters)
        root, value, log_norm = np.zeros((size, size, num)), np.zeros((size, num)), np.zeros(num)
        for at, a, y, s in groups:
            a, y, log_det = whiten(a, y, s, [self.names[i] for i in at])
            reduced = reduce_rows(a, y, y.shape[1])
            root[:, :, at], value[:, at] = reduced.root, reduced.value
            log_norm[at] = reduced.log_norm - log_det
        self.rows = Reduced(*(_in_blocks(x) for x in (root, value, log_norm)))

    def log_marginal(self, density: Density) -> LogMarginal:
        """Integrate `density` against every object's likelihood; see the class."""
        return sum_over_leaves(density, self._marginal)

    def draw(self, density: Density, key: Any) -> dict[str, Array]:
        """One draw of every object's parameters from its conditional Gaussian."""
        return draw_over_leaves(density, key, self._marginal, self._draw)

    def _marginal(self, path: str, leaf: Density) -> LogMarginal:
        del path
        population = self._normals(leaf)
        shared = population.mean.shape[-1] == 1
        if shared:
            one = jax.checkpoint(lambda rows: log_evidence(rows, population))
            out = _map_blocks(one, self.rows)
        else:
            blocks = Normals(*(self._blocks_like_rows(x) for x in population))
            one = jax.checkpoint(lambda both: log_evidence(*both))
            out = _map_blocks(one, (self.rows, blocks))
        value = out.reshape(-1)[: len(self.names)]
        return LogMarginal(value, jnp.zeros_like(value))

    def _draw(self, path: str, leaf: Density, key: Any) -> dict[str, Array]:
        del path
        num = len(self.names)
        rows = Reduced(*(jnp.moveaxis(x, 0, -2).reshape(*x.shape[1:-1], -1) for x in self.rows))
        rows = Reduced(*(x[..., :num] for x in rows))
        drawn = conditional_draw(rows, self._normals(leaf), key)
        return dict(zip(self.parameters, drawn, strict=True))

    def _normals(self, leaf: Density) -> Normals:
        return normals(joint_factors(leaf, "Gaussian"), self.parameters, self.given, "Gaussian")

    def _blocks_like_rows(self, x: Array) -> Array:
        blocks, size = self.rows.log_norm.shape
        x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, blocks * size - x.shape[-1])])
        return jnp.moveaxis(x.reshape(*x.shape[:-1], blocks, size), -2, 0)


def joint_factors(leaf: Density, form: str) -> dict[Any, Any]:
    """The factors of a leaf that is a `Joint`."""
    if not isinstance(leaf, Joint):
        raise InputError(
            f"{form}: the population has a leaf of type {type(leaf).__name__}; it must be a Joint "
            "of named factors."
        )
    return dict(leaf.factors)


def object_names(form: str, names: Sequence[str] | None, num: int) -> tuple[str, ...]:
    """`names`, or numbered ones; as many as there are objects."""
    if not num:
        raise InputError(f"{form} needs at least one object.")
    out = tuple(names) if names is not None else tuple(f"object {i}" for i in range(num))
    if len(out) != num:
        raise InputError(f"{form}: {num} objects but {len(out)} names.")
    return out


def known_columns(
    form: str, given: Mapping[str, Any] | None, names: tuple[str, ...]
) -> dict[str, Array]:
    """Known columns as arrays, one finite number for each object."""
    out = {}
    for key, value in (given or {}).items():
        column = np.asarray(value, float)
        if column.shape != (len(names),):
            raise InputError(
                f"{form}: given column '{key}' has shape {column.shape}; it must be "
                f"({len(names)},), one number for each object."
            )
        if bad := [names[i] for i in np.flatnonzero(~np.isfinite(column))[:5]]:
            raise InputError(f"{form}: given column '{key}' is not finite for {', '.join(bad)}.")
        out[key] = jnp.asarray(column)
    return out


# ---- checks and layout ---------------------------------------------------------------------------


def whiten(
    design: np.ndarray, data: np.ndarray, noise: np.ndarray, names: Sequence[str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    r"""Design (n, m, k) and data (n, m) in units of the noise, and $\frac12\ln|C|$ (n,)."""
    if noise.ndim == 2:
        return design / noise[..., None], data / noise, np.log(noise).sum(axis=1)
    try:
        lower = np.linalg.cholesky(noise)
    except np.linalg.LinAlgError:
        bad = next(n for n, c in zip(names, noise, strict=True) if np.linalg.eigvalsh(c)[0] <= 0)
        raise InputError(f"{bad}: the covariance is not positive definite.") from None
    both = np.linalg.solve(lower, np.concatenate([design, data[..., None]], axis=-1))
    log_det = np.log(np.diagonal(lower, axis1=1, axis2=2)).sum(axis=1)
    return both[..., :-1], both[..., -1], log_det


def _groups(design: Any, data: Any, noise: Any, names: tuple[str, ...], num: int) -> Any:
    """Yield (objects, design, data, noise) for objects with equal numbers of rows."""
    one_for_all = not isinstance(noise, Sequence) and np.ndim(noise) == 0
    if len(design) != len(data) or not (one_for_all or len(noise) == len(data)):
        raise InputError(
            f"Gaussian was given {len(design)} designs, data of {len(data)} objects and noise of "
            f"{1 if one_for_all else len(noise)}; give one of each per object."
        )
    if all(isinstance(x, np.ndarray | jax.Array) for x in (design, data)):
        a, y = np.asarray(design, float), np.asarray(data, float)
        s = np.asarray(noise, float)
        if y.ndim == 1:  # one row each
            a = a[:, None] if a.ndim == 2 else a
            y, s = y[:, None], s[:, None] if s.ndim == 1 else s
        everyone = np.arange(len(y))
        yield everyone, *_checked(a, y, s, names, num)
        return
    sigma = [noise] * len(data) if one_for_all else noise
    counts = np.array([np.size(y) for y in data])
    for count in np.unique(counts):
        at = np.flatnonzero(counts == count)
        for i in at:
            _check_shapes(names[i], np.shape(design[i]), np.shape(sigma[i]), int(count), num)
        a = np.stack([np.asarray(design[i], float) for i in at])
        y = np.stack([np.asarray(data[i], float).reshape(-1) for i in at])
        if any(np.ndim(sigma[i]) == 2 for i in at):
            s = np.stack([_covariance(np.asarray(sigma[i], float), int(count)) for i in at])
        else:
            s = np.stack([np.broadcast_to(np.asarray(sigma[i], float), (count,)) for i in at])
        yield at, *_checked(a, y, s, [names[i] for i in at], num)


def _check_shapes(
    name: str, design: tuple[int, ...], noise: tuple[int, ...], count: int, num: int
) -> None:
    if design != (count, num):
        raise InputError(
            f"{name}: the design has shape {design}, but there are {count} data and {num} "
            f"parameters: ({count}, {num})."
        )
    if noise not in ((), (count,), (count, count)):
        raise InputError(
            f"{name}: the noise has shape {noise}; give ({count},) standard deviations or a "
            f"({count}, {count}) covariance."
        )


def _covariance(noise: np.ndarray, count: int) -> np.ndarray:
    return noise if noise.ndim == 2 else np.diag(np.broadcast_to(noise, (count,)) ** 2)


def _checked(
    a: np.ndarray, y: np.ndarray, s: np.ndarray, names: Sequence[str], num: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Arrays of one shape, finite, with positive noise; a problem names the object."""
    if s.ndim < 2:
        s = np.broadcast_to(s, y.shape)
    if (
        y.ndim != 2
        or a.shape != (*y.shape, num)
        or s.shape not in (y.shape, (*y.shape, y.shape[1]))
    ):
        raise InputError(
            f"Gaussian: design {a.shape}, data {y.shape} and noise {s.shape} do not fit; for n "
            f"objects with m rows and the {num} parameters give (n, m, {num}), (n, m) and (n, m) "
            "standard deviations or (n, m, m) covariances."
        )
    for what, x in (("design", a), ("data", y), ("noise", s)):
        if not np.isfinite(x).all():
            bad = np.flatnonzero(~np.isfinite(x).reshape(len(x), -1).all(axis=1))[0]
            row = np.argwhere(~np.isfinite(x[bad]))[0][0]
            raise InputError(
                f"{names[bad]}: the {what} is not finite in row {row}; mend it or leave it out."
            )
    if s.ndim == 2 and not (s > 0).all():
        bad = np.flatnonzero(~(s > 0).all(axis=1))[0]
        raise InputError(
            f"{names[bad]}: a standard deviation of {s[bad].min():g} is not positive; give the "
            "noise of each row as a positive number."
        )
    return a, y, s


def _in_blocks(x: np.ndarray) -> Array:
    """(..., objects) -> (blocks, ..., objects of a block), the last filled up with zeros."""
    num = x.shape[-1]
    size = min(num, _BLOCK_SIZE)
    blocks = -(-num // size)
    x = np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, blocks * size - num)])
    x = np.moveaxis(x.reshape(*x.shape[:-1], blocks, size), -2, 0)
    return jnp.asarray(x, jnp.result_type(float))


def _map_blocks(function: Any, blocks: Any) -> Array:
    if len(jax.tree.leaves(blocks)[0]) == 1:
        return function(jax.tree.map(lambda x: x[0], blocks))[None]
    return jax.lax.map(function, blocks)
