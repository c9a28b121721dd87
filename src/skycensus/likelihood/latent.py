r"""Objects known by a formula whose parameters stay in the sampler, and where they are centred."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array
from numpyro.distributions import constraints

from ..density import Density, Joint, leaves
from ..errors import InputError
from . import LogMarginal
from .coordinates import Coordinates
from .formula import LogLikelihood, Row, check_formula, check_objects

_MOST_STEPS = 40
# Where the search for an object's maximum may begin, in widths of the population.
_STARTS = (-3.5, -2.0, -1.0, 1.0, 2.0, 3.5)


class Latent(eqx.Module):
    r"""Objects whose likelihood is a formula and whose $\theta_i$ are random variables themselves.

    Nothing is integrated: the sampler moves in the hyperparameters and all $\theta_i$ together,

    $$p(\Lambda, \theta_1 \ldots \theta_N | d) \propto p(\Lambda) \prod_i p(d_i|\theta_i)\,
      p(\theta_i|\Lambda),$$

    in coordinates $z_i$ that are nearly standard normal and independent of $\Lambda$ (see
    `Centring`). It is the road for more parameters per object than can be integrated; where an
    object's likelihood has several maxima, integrate instead (`Grid`): chains do not pass from one
    to another.

    Args:
        log_likelihood: `log_likelihood(theta, data) -> scalar`, $\ln p(d_i|\theta)$ of ONE object:
            `theta` maps each parameter to a scalar, `data` maps each name to the object's own row.
            It is written with `jax.numpy` and must be twice differentiable in theta.
        data: name -> (num_objects, ...) measurements.
        names: names of the objects.
        given: known columns of the objects, name -> (num_objects,), that the population's
            conditional factors may depend on.

    A population may be a mixture: its terms are summed at $\theta_i$, so that no object is assigned
    to a component while sampling.

    Raises:
        InputError: data whose lengths differ or that are not finite; a formula that does not
            return one JAX scalar, or is NaN for some object wherever it is tried (named); and where
            it is used, a population with a factor that is no continuous NumPyro distribution.
    """

    data: dict[str, Array]
    given: dict[str, Array]
    log_likelihood: LogLikelihood = eqx.field(static=True)
    parameters: tuple[str, ...] = eqx.field(static=True)
    names: tuple[str, ...] = eqx.field(static=True)

    def __init__(
        self,
        log_likelihood: LogLikelihood,
        data: Mapping[str, Any],
        *,
        names: Sequence[str] | None = None,
        given: Mapping[str, Any] | None = None,
    ):
        row, self.names = check_objects("Latent", data, given, names)
        self.data, self.given = row.data, row.given
        self.log_likelihood = log_likelihood
        self.parameters = check_formula("Latent", log_likelihood, self.data, self.names)

    @property
    def rows(self) -> Row:
        """What is known of the objects."""
        return Row(self.data, self.given)

    def log_marginal(self, density: Density) -> LogMarginal:
        """There is none: the parameters are not integrated over.

        Raises:
            InputError: always.
        """
        raise InputError(
            "Latent keeps the objects' parameters in the sampler and has no log marginals; sample "
            "model.target() with NUTS, or integrate them (Quadrature, Gaussian, Grid)."
        )

    def draw(self, density: Density, key: Any) -> dict[str, Array]:
        """Not from here: the sampler has drawn them (`objects.object_posteriors`).

        Raises:
            InputError: always.
        """
        raise InputError(
            "the parameters of Latent objects were drawn together with the hyperparameters; take "
            "them from the result's latents (skycensus.objects.object_posteriors does)."
        )


# ---- coordinates of one object -------------------------------------------------------------------


class Centring(NamedTuple):
    r"""A Gaussian in place of each object's likelihood, by which its coordinates are centred.

    In the unconstrained y of the population's factors the likelihood is taken for
    $\exp(-\frac12 y^T F y + b^T y)$, and the population for $\mathcal N(y_0, GG^T)$ with $y_0, G$
    functions of the hyperparameters. Then z, standard normal and independent of them, leads to

    $$u = A^{-1} G^T (b - F y_0) + A^{-1/2} z, \qquad A = 1 + G^T F G, \qquad y \approx y_0 + G u.$$

    An object with informative data ($G^TFG \gg 1$) is centred on them whatever the population; one
    without ($F=0$) is non-centred, u = z; in between the weights are those of its conditional
    mean. Any F and b give the right posterior: the Jacobian is exact. Compare the partial
    non-centring of Papaspiliopoulos, Roberts & Sköld (2007, Stat. Sci. 22, 59).

    Attributes:
        precision: F, (object, k, k).
        shift: b, (object, k).
    """

    precision: Array
    shift: Array


class Place(NamedTuple):
    """Parameters of one object and the log of the Jacobian from z to them."""

    theta: dict[str, Array]
    log_det: Array


def place(
    coordinates: Coordinates, centring: Centring, z: Array, given: Mapping[str, Any]
) -> Place:
    """Parameters of one object at z, (k,); see `Centring`."""
    origin, spread = _population(coordinates, given)
    a = jnp.eye(len(z)) + spread.T @ centring.precision @ spread
    root = jnp.sqrt(a) if len(z) == 1 else jnp.linalg.cholesky(a)
    force = spread.T @ (centring.shift - centring.precision @ origin)
    u = _triangular(root, _triangular(root, force) + z, transposed=True)
    at = coordinates.at_standard(tuple(u), given)
    return Place(at.theta, at.log_det + at.log_scale - jnp.sum(jnp.log(jnp.diagonal(root))))


def _triangular(root: Array, vector: Array, *, transposed: bool = False) -> Array:
    """Solve a lower triangular system, or its transpose; one number without a library call."""
    if len(vector) == 1:
        return vector / root[0]
    return jax.scipy.linalg.solve_triangular(root, vector, lower=True, trans=int(transposed))


def _population(coordinates: Coordinates, given: Mapping[str, Any]) -> tuple[Array, Array]:
    """The population in y: where u is zero, and dy/du there."""

    def y(u: Array) -> tuple[Array, Array]:
        at = jnp.stack(coordinates.at_standard(tuple(u), given).y)
        return at, at

    spread, origin = jax.jacfwd(y, has_aux=True)(jnp.zeros(len(coordinates.names)))
    return origin, spread


class Fit(NamedTuple):
    """Laplace's approximation of objects: ln m_i, (object,), and the `Centring` at the maxima."""

    log_marginal: Array
    centring: Centring


def fit(form: Latent, density: Density) -> Fit:
    """Find every object's most probable parameters given the population, and expand there."""
    coordinates = Coordinates(envelope(density))
    return jax.vmap(lambda row: _fit_one(form.log_likelihood, density, coordinates, row))(form.rows)


def _fit_one(
    log_likelihood: LogLikelihood, density: Density, coordinates: Coordinates, row: Row
) -> Fit:
    def total(u: Array) -> Array:
        at = coordinates.at_standard(tuple(u), row.given)
        population = density.log_prob({**row.given, **at.theta})
        value = log_likelihood(at.theta, row.data) + population + at.log_det + at.log_scale
        # Outside a support or a formula's domain there is nothing to climb.
        return jnp.where(jnp.isnan(value), -jnp.inf, value)

    u, value, curvature = climb(total, len(coordinates.names))
    size = 0.5 * len(u) * jnp.log(2 * jnp.pi) - 0.5 * jnp.linalg.slogdet(curvature)[1]

    def likelihood(y: Array) -> Array:
        return log_likelihood(coordinates.at(tuple(y), row.given).theta, row.data)

    y = jnp.stack(coordinates.at_standard(tuple(u), row.given).y)
    _, slope, curvature = _expand(likelihood, y)
    precision = _positive(curvature, least=0.0)
    return Fit(value + size, Centring(precision, slope + precision @ y))


def climb(function: Callable[[Array], Array], dim: int) -> tuple[Array, Array, Array]:
    """A maximum of `function` of (dim,) numbers of order one: the best of a few places, climbed.

    Newton's method within a trust radius, with absolute values of the eigenvalues of the curvature,
    goes uphill where the function is convex too. Returns point, value and that curvature.
    """
    starts = jnp.concatenate([jnp.zeros((1, dim)), *(s * jnp.eye(dim) for s in _STARTS)])
    best = starts[jnp.argmax(jax.lax.map(function, starts))]

    def step(_: Any, state: tuple[Array, ...]) -> tuple[Array, ...]:
        u, trial, value, slope, curvature, radius, length = state
        found = _expand(function, trial)
        # At the top, rounding must not look like going down.
        better = found[0] >= value - 1e-12 * jnp.abs(value)
        new = (trial, found[0], found[1], _positive(found[2], least=0.1))
        u, value, slope, curvature = (
            jnp.where(better, x, old)
            for x, old in zip(new, (u, value, slope, curvature), strict=True)
        )
        radius = jnp.where(better, jnp.maximum(radius, 2.0 * length), 0.25 * length)
        move = _solve(curvature, slope)
        length = jnp.sqrt(jnp.sum(move**2))
        short = jnp.minimum(1.0, radius / jnp.maximum(length, 1e-30))
        return u, u + short * move, value, slope, curvature, radius, short * length

    one, eye = jnp.ones(()), jnp.eye(dim)
    start = (best, best, -jnp.inf * one, jnp.zeros(dim), eye, one, 0.5 * one)
    u, _, value, _, curvature, _, _ = jax.lax.fori_loop(0, _MOST_STEPS, step, start)
    return u, value, curvature


def _expand(function: Callable[[Array], Array], u: Array) -> tuple[Array, Array, Array]:
    """Value, gradient and minus the Hessian; zero where they are not finite."""

    def slope(u: Array) -> tuple[Array, tuple[Array, Array]]:
        value, gradient = jax.value_and_grad(function)(u)
        return gradient, (value, gradient)

    hessian, (value, gradient) = jax.jacfwd(slope, has_aux=True)(u)
    return value, jnp.where(jnp.isfinite(gradient), gradient, 0.0), -hessian


def _solve(matrix: Array, vector: Array) -> Array:
    return vector / matrix[0] if len(vector) == 1 else jnp.linalg.solve(matrix, vector)


def _positive(matrix: Array, *, least: float) -> Array:
    """A symmetric matrix with the absolute values of its eigenvalues, or zero for the negative."""
    matrix = jnp.where(jnp.isfinite(matrix), matrix, 0.0)
    if len(matrix) == 1:  # a hundred times faster than a decomposition
        return jnp.maximum(jnp.abs(matrix) if least > 0 else matrix, least)
    value, vector = jnp.linalg.eigh(0.5 * (matrix + matrix.T))
    value = jnp.maximum(jnp.abs(value) if least > 0 else value, least)
    return (vector * value) @ vector.T


# ---- mixtures ------------------------------------------------------------------------------------


def envelope(density: Density) -> Density:
    """One `Joint` that spans a mixture: mean and spread of its leaves, and all of their supports.

    Only coordinates are made from it. A density that is no mixture is its own.

    Raises:
        InputError: leaves whose factors are over different names.
    """
    tree = list(leaves(density).values())
    if len(tree) == 1:
        return tree[0][1]
    joints = [leaf for _, leaf in tree]
    keys = [set(joint.factors) if isinstance(joint, Joint) else None for joint in joints]
    if None in keys or any(k != keys[0] for k in keys):
        raise InputError(
            "Latent: the leaves of a mixture must be Joints with factors over the same names."
        )
    share = jax.nn.softmax(jnp.stack([jnp.asarray(w, float) for w, _ in tree]))

    def spanning(key: Any) -> Any:
        factors = [joint.factors[key] for joint in joints]
        if all(isinstance(f, dist.Distribution) for f in factors):
            return _span(factors, share)
        return lambda theta: _span([_given(f, theta) for f in factors], share)

    return Joint({key: spanning(key) for key in joints[0].factors})


def _given(factor: Any, theta: Mapping[str, Array]) -> Any:
    if not isinstance(factor, dist.Distribution) and not hasattr(factor, "log_prob"):
        factor = factor(theta)
    if not isinstance(factor, dist.Distribution):
        raise InputError(
            f"Latent: a leaf of a mixture has a {type(factor).__name__} as a factor; use NumPyro "
            "distributions there."
        )
    return factor


def _span(factors: Sequence[Any], share: Array) -> Any:
    """A distribution with the mean and variance of a mixture, on all of its support."""
    mean, variance = _moments(factors, share)
    if factors[0].event_dim:
        return dist.MultivariateNormal(mean, jnp.eye(mean.shape[-1]) * variance)
    supports = [f.support for f in factors]
    if all(s is constraints.real for s in supports):
        return dist.Normal(mean, jnp.sqrt(variance))
    low = _extreme([getattr(s, "lower_bound", -jnp.inf) for s in supports], jnp.minimum)
    high = _extreme([getattr(s, "upper_bound", jnp.inf) for s in supports], jnp.maximum)
    if low is None and high is None:
        return dist.Normal(mean, jnp.sqrt(variance))
    if low is not None and high is not None:
        return dist.Uniform(low, high)
    return dist.TruncatedNormal(mean, jnp.sqrt(variance), low=low, high=high)


def _moments(factors: Sequence[Any], share: Array) -> tuple[Array, Array]:
    pairs = [
        (f.loc, f.scale**2) if hasattr(f, "loc") and hasattr(f, "scale") and not f.event_dim
        else (f.mean, f.variance)
        for f in factors
    ]  # fmt: skip
    means, variances = (jnp.stack(jnp.broadcast_arrays(*x)) for x in zip(*pairs, strict=True))
    weight = share.reshape(-1, *[1] * (means.ndim - 1))
    mean = jnp.sum(weight * means, axis=0)
    return mean, jnp.sum(weight * (variances + (means - mean) ** 2), axis=0)


def _extreme(bounds: Sequence[Any], of: Callable[..., Array]) -> Array | None:
    """The outermost bound; None where some leaf has none."""
    if any(isinstance(b, float) and not jnp.isfinite(b) for b in bounds):
        return None
    out = jnp.asarray(bounds[0], float)
    for bound in bounds[1:]:
        out = of(out, jnp.asarray(bound, float))
    return out
