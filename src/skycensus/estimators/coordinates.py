r"""From parameters with declared supports to unbounded, standardised coordinates and back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import ndtr, ndtri

from ..density import Theta
from ..errors import InputError, did_you_mean

# Nearer to a bound than this part of the range, a point counts as this near: the probit is -11.5
# there, and no draw of 64 bits that is not at zero itself comes as close.
_NEAREST = 1e-30
# Farther out than this many standard deviations, a point counts as this far: squares stay finite.
_FARTHEST = 1e6


class Periodic(NamedTuple):
    """The support of an angle: `low` and `high` are the same place."""

    low: float
    high: float


class Coordinates(eqx.Module):
    r"""A map between parameters x on their support and coordinates z on $\mathbb{R}^d$.

    Each parameter by itself is first freed of its bounds: with two of them
    $y = \Phi^{-1}((x - a) / (b - a))$, so that a density that is flat up to an edge becomes a
    normal one; with one of them $y = \ln(x - a)$ or $-\ln(b - x)$; with none $y = x$. A periodic
    parameter is cut open where draws are sparsest and then has two bounds. Then
    $z = L^{-1} (y - m)$, with the weighted mean m and covariance $L L^\mathsf{T}$ of the draws.
    """

    low: Array
    high: Array
    cut: Array
    """Where periodic parameters begin, as a part of the period; zero for the others."""
    mean: Array
    root: Array
    periodic: tuple[bool, ...] = eqx.field(static=True)
    two: tuple[bool, ...] = eqx.field(static=True)
    below: tuple[bool, ...] = eqx.field(static=True)
    above: tuple[bool, ...] = eqx.field(static=True)

    def __init__(
        self,
        low: Any,
        high: Any,
        *,
        periodic: Any = None,
        cut: Any = None,
        mean: Any = None,
        root: Any = None,
    ):
        low, high = np.asarray(low, float), np.asarray(high, float)
        size = len(low)
        has_low, has_high = np.isfinite(low), np.isfinite(high)
        self.two = tuple(bool(v) for v in has_low & has_high)
        self.below = tuple(bool(v) for v in has_low & ~has_high)
        self.above = tuple(bool(v) for v in ~has_low & has_high)
        self.periodic = (False,) * size if periodic is None else tuple(bool(v) for v in periodic)
        self.low, self.high = jnp.asarray(low), jnp.asarray(high)
        self.cut = jnp.zeros(size) if cut is None else jnp.asarray(cut, float)
        self.mean = jnp.zeros(size) if mean is None else jnp.asarray(mean, float)
        self.root = jnp.eye(size) if root is None else jnp.asarray(root, float)

    @property
    def dim(self) -> int:
        """How many parameters there are."""
        return len(self.periodic)

    def inside(self, x: Array) -> Array:
        """Whether points (..., d) are in the support, its finite ends included."""
        return jnp.all((x >= self.low) & (x <= self.high) & jnp.isfinite(x), axis=-1)

    def forward(self, x: Array) -> tuple[Array, Array]:
        r"""z (..., d) and $\ln |\partial z / \partial x|$ (...) at points (..., d) of the support.

        Both are finite at every point of the support, also at its ends; elsewhere they are those
        of some point inside.
        """
        # Points that are not inside take the place of one that is: their gradients stay finite.
        x = jnp.where(self.inside(x)[..., None], x, self._somewhere())
        y, log_slope = self._free(x)
        z = whitened(y - self.mean, self.root)
        log_det = log_slope.sum(-1) - jnp.log(jnp.diagonal(self.root)).sum()
        return jnp.clip(z, -_FARTHEST, _FARTHEST), log_det

    def inverse(self, z: Array) -> Array:
        """The point x of the support at z, (..., d) -> (..., d)."""
        y = self.mean + jnp.einsum("ij,...j->...i", self.root, z)
        x = [self._bound(i, y[..., i]) for i in range(self.dim)]
        return jnp.stack(x, axis=-1)

    def _somewhere(self) -> Array:
        """A point of the support."""
        low = jnp.where(jnp.isfinite(self.low), self.low, self.high - 1.0)
        high = jnp.where(jnp.isfinite(self.high), self.high, self.low + 1.0)
        middle = 0.5 * (low + high)
        return jnp.where(jnp.isfinite(middle), middle, 0.0)

    def _free(self, x: Array) -> tuple[Array, Array]:
        """Unbounded coordinates, and the logarithms of their slopes, parameter by parameter."""
        columns = [self._free_one(i, x[..., i]) for i in range(self.dim)]
        y, log_slope = zip(*columns, strict=True)
        return jnp.stack(y, axis=-1), jnp.stack(log_slope, axis=-1)

    def _free_one(self, i: int, x: Array) -> tuple[Array, Array]:
        low, high = self.low[i], self.high[i]
        if self.two[i]:
            width = high - low
            from_low, from_high = (x - low) / width, (high - x) / width
            if self.periodic[i]:
                # The part of a period that lies between the cut and the point.
                from_low = jnp.mod(from_low - self.cut[i], 1.0)
                from_high = 1.0 - from_low
            y = _probit(from_low, from_high)
            return y, 0.5 * y**2 + 0.5 * math.log(2.0 * math.pi) - jnp.log(width)
        if self.below[i]:
            y = jnp.log(jnp.maximum(x - low, _tiny(x)))
            return y, -y
        if self.above[i]:
            y = -jnp.log(jnp.maximum(high - x, _tiny(x)))
            return y, y
        return x, jnp.zeros_like(x)

    def _bound(self, i: int, y: Array) -> Array:
        low, high = self.low[i], self.high[i]
        if self.two[i]:
            width = high - low
            if self.periodic[i]:
                return low + width * jnp.mod(ndtr(y) + self.cut[i], 1.0)
            # From the nearer bound: differences keep their digits there.
            return jnp.where(y < 0, low + width * ndtr(y), high - width * ndtr(-y))
        if self.below[i]:
            return low + jnp.exp(jnp.minimum(y, _largest(y)))
        if self.above[i]:
            return high - jnp.exp(jnp.minimum(-y, _largest(y)))
        return y


def whitened(step: Array, root: Array) -> Array:
    r"""$L^{-1} s$ for steps (..., d) and a lower triangular L (d, d)."""
    # Small, and inverted once for all points: a solver would be called with all of them, and start
    # threads of its own that wait for each other.
    eye = jnp.eye(len(root), dtype=root.dtype)
    inverse = jax.scipy.linalg.solve_triangular(root, eye, lower=True)
    return jnp.einsum("ij,...j->...i", inverse, step)


def _probit(from_low: Array, from_high: Array) -> Array:
    r"""$\Phi^{-1}(t)$ from $t$ and $1 - t$, each exact where it is small."""
    near_low = from_low < from_high
    small = ndtri(jnp.maximum(jnp.minimum(from_low, from_high), _NEAREST))
    return jnp.where(near_low, small, -small)


def _tiny(x: Array) -> Any:
    # Its inverse must be a number as well: it is the slope there.
    return 1e3 * jnp.finfo(jnp.result_type(x, float)).tiny


def _largest(y: Array) -> Any:
    return math.log(float(jnp.finfo(jnp.result_type(y, float)).max)) - 1.0


# ---- made from draws -----------------------------------------------------------------------------


def declared(names: tuple[str, ...], support: Any) -> Coordinates:
    """The coordinates of parameters with these supports, not yet standardised.

    Args:
        names: the parameters, in the order of the last axis.
        support: None, or name -> (low, high) with infinities allowed, `Periodic(low, high)` or a
            NumPyro distribution; or a `Prior`, whose supports are taken. A parameter that is not
            named has no bounds.

    Raises:
        InputError: a name that is no parameter, or bounds that are not two numbers in order.
    """
    given = _supports(support)
    if isinstance(support, Mapping):
        for name in given:
            if name not in names:
                raise InputError(
                    f"support '{name}' is for an unknown parameter{did_you_mean(name, names)}; the "
                    f"draws have {list(names)}."
                )
    pairs = [_pair(name, given.get(name, (-math.inf, math.inf))) for name in names]
    periodic = [isinstance(given.get(name), Periodic) for name in names]
    for name, pair, turns in zip(names, pairs, periodic, strict=True):
        if turns and not np.isfinite(pair).all():
            raise InputError(f"support '{name}': a period needs two finite ends, not {pair}.")
    low, high = np.array(pairs).T
    return Coordinates(low, high, periodic=periodic)


def standardised(plain: Coordinates, x: np.ndarray, weight: np.ndarray) -> Coordinates:
    """The same supports, with cuts, mean and covariance from weighted draws x (n, d)."""
    cut = np.zeros(plain.dim)
    for i in np.flatnonzero(plain.periodic):
        low, high = float(plain.low[i]), float(plain.high[i])
        cut[i] = _sparsest((x[:, i] - low) / (high - low), weight)
    bounds = {"periodic": plain.periodic, "cut": cut}
    y = to_standard(Coordinates(plain.low, plain.high, **bounds), x)
    mean = weight @ y
    covariance = np.einsum("n,ni,nj->ij", weight, y - mean, y - mean)
    root = np.linalg.cholesky(covariance)
    return Coordinates(plain.low, plain.high, mean=mean, root=root, **bounds)


def _supports(support: Any) -> dict[str, Any]:
    if support is None:
        return {}
    if isinstance(support, Mapping):
        return dict(support)
    if hasattr(support, "bounds"):
        return dict(support.bounds())
    raise InputError(
        f"support={support!r} is not understood; give a mapping of parameters to (low, high), "
        "Periodic(low, high) or distributions, or a Prior."
    )


def _pair(name: str, given: Any) -> tuple[float, float]:
    inner = getattr(given, "support", None)
    if inner is not None:
        low = getattr(inner, "lower_bound", -math.inf)
        high = getattr(inner, "upper_bound", math.inf)
    else:
        try:
            low, high = given
        except (TypeError, ValueError):
            raise InputError(
                f"support '{name}': {given!r} is not a pair (low, high); use -inf and inf where "
                "there is no bound."
            ) from None
    try:
        low, high = float(low), float(high)
    except (TypeError, ValueError):
        raise InputError(f"support '{name}': ({low!r}, {high!r}) are not two numbers.") from None
    if not low < high:
        raise InputError(f"support '{name}': low={low} is not below high={high}; swap them.")
    return low, high


def _sparsest(turn: np.ndarray, weight: np.ndarray, bins: int = 64) -> float:
    """The part of a period at which a smoothed histogram of draws is lowest."""
    counts = np.histogram(np.mod(turn, 1.0), bins=bins, range=(0.0, 1.0), weights=weight)[0]
    kernel = np.exp(-0.5 * (np.minimum(np.arange(bins), bins - np.arange(bins)) / 2.0) ** 2)
    smooth = np.fft.irfft(np.fft.rfft(counts) * np.fft.rfft(kernel), bins)
    lowest = np.flatnonzero(smooth <= smooth.min() + 1e-9 * smooth.max())
    return float((lowest[len(lowest) // 2] + 0.5) / bins)


def to_standard(coordinates: Coordinates, x: Any) -> np.ndarray:
    """Points (n, d) in standardised coordinates, in 64 bits."""
    x = np.asarray(x)
    # The last row again and again, up to a power of two: many sets of draws of different numbers
    # share one compiled program.
    short = 2 ** max(8, math.ceil(math.log2(max(len(x), 1)))) - len(x)
    padded = jnp.asarray(np.concatenate([x, np.repeat(x[-1:], short, axis=0)]))
    return np.asarray(_compiled_forward(coordinates, padded)[0], float)[: len(x)]


@eqx.filter_jit
def _compiled_forward(coordinates: Coordinates, x: Array) -> tuple[Array, Array]:
    return coordinates.forward(x)


def stacked(names: tuple[str, ...], theta: Theta) -> Array:
    """Parameters by name as points (..., d)."""
    return jnp.stack(jnp.broadcast_arrays(*[jnp.asarray(theta[n], float) for n in names]), axis=-1)
