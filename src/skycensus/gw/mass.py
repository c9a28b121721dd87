r"""Mass populations with closed-form normalisation, and mixtures of them.

Masses are source-frame, in solar masses. Each family states the coordinates in which it is
normalised, `mass_1_source` with `mass_ratio` or with `mass_2_source`; p(m1, m2) = p(m1, q) / m1.
The models with a smooth low-mass turn-on are in `mass_smoothed`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array
from numpyro.distributions import constraints
from numpyro.distributions.util import promote_shapes

from ..density import Density, Joint, Mixture
from ..distributions import PowerLaw, mean_exp, safe_log
from ..errors import InputError
from .families import (
    Family,
    Hyperparameters,
    TruncatedNormal,
    hyperparameter,
    log_fraction,
    product,
    truncated_normal,
)
from .redshift import log_volume

# Components of a mixture, at most: each is traced by itself.
_MOST_COMPONENTS = 100


def power_law_mass_ratio(h: Hyperparameters, suffix: str = "") -> Density:
    r"""Return a power law in m1 with a power law in q, over `mass_1_source` and `mass_ratio`:

    $$p(m_1) \propto m_1^{-\alpha},\ m_\mathrm{min} \le m_1 \le m_\mathrm{max};\qquad
      p(q \mid m_1) \propto q^{\beta},\ m_\mathrm{min}/m_1 \le q \le 1.$$

    Hyperparameters `alpha`, `beta`, `mmin`, `mmax` (model B of Abbott et al. 2019, ApJL 882 L24;
    Fishbach & Holz 2017, arXiv:1709.08584).
    """
    alpha, beta, low, high = _power_law_parameters(h, suffix)
    return Joint(
        {
            "mass_1_source": PowerLaw(-alpha, low, high),
            # ln(low/m1) as a difference: the logarithm of the data is taken once and for all.
            "mass_ratio": lambda theta: PowerLaw(
                beta, log_low=jnp.log(low) - safe_log(theta["mass_1_source"]), log_high=0.0
            ),
        }
    )


def power_law_masses(h: Hyperparameters, suffix: str = "") -> Density:
    r"""Return `power_law_mass_ratio` over `mass_1_source` and `mass_2_source`:

    $$p(m_1) \propto m_1^{-\alpha},\qquad
      p(m_2 \mid m_1) \propto m_2^{\beta},\ m_\mathrm{min} \le m_2 \le m_1.$$

    Hyperparameters `alpha`, `beta`, `mmin`, `mmax`.
    """
    alpha, beta, low, high = _power_law_parameters(h, suffix)
    return Joint(
        {
            "mass_1_source": PowerLaw(-alpha, low, high),
            "mass_2_source": lambda theta: PowerLaw(beta, low, theta["mass_1_source"]),
        }
    )


def _power_law_parameters(h: Hyperparameters, suffix: str) -> tuple[Any, Any, Any, Any]:
    return tuple(  # type: ignore[return-value]
        hyperparameter(h, name + suffix) for name in ("alpha", "beta", "mmin", "mmax")
    )


def power_law_peak(h: Hyperparameters, suffix: str = "", *, peak_high: float = 100.0) -> Density:
    r"""Return a power law and a Gaussian peak in m1, without smoothing, over `mass_1_source` and
    `mass_ratio`:

    $$p(m_1) = (1-\lambda)\,\mathrm{PL}(m_1 \mid -\alpha, m_\mathrm{min}, m_\mathrm{max}) +
      \lambda\,\mathcal N_{[m_\mathrm{min}, m_\mathrm{peak\,high}]}(m_1 \mid \mu, \sigma),\quad
      p(q \mid m_1) \propto q^\beta,\ q \ge m_\mathrm{min}/m_1.$$

    Hyperparameters `alpha`, `beta`, `mmin`, `mmax`, `lam`, `mpp`, `sigpp` (Talbot & Thrane 2018,
    arXiv:1801.02699, without their low-mass smoothing).
    """
    alpha, beta, low, high = _power_law_parameters(h, suffix)
    lam, loc, scale = (hyperparameter(h, n + suffix) for n in ("lam", "mpp", "sigpp"))
    peak = TruncatedNormal(loc, scale, low=low, high=peak_high)
    primary = Mixture(
        {
            "power_law": Joint({"mass_1_source": PowerLaw(-alpha, low, high)}),
            "peak": Joint({"mass_1_source": peak}),
        },
        log_weights={"power_law": log_fraction(1.0 - lam), "peak": log_fraction(lam)},
    )
    return Joint(
        {
            "mass_1_source": primary,
            "mass_ratio": lambda theta: PowerLaw(beta, low / theta["mass_1_source"], 1.0),
        }
    )


def wysocki_2019(h: Hyperparameters, suffix: str = "") -> Density:
    r"""Return $p(m_1, m_2) \propto m_1^{-\alpha} / (m_1 - m_\mathrm{min})$ over `mass_1_source` and
    `mass_2_source`, $m_\mathrm{min} \le m_2 \le m_1 \le m_\mathrm{max}$.

    Hyperparameters `alpha_m`, `mmin`, `mmax` (Wysocki, Lange & O'Shaughnessy 2019,
    arXiv:1805.06442, equation 7).
    """
    alpha, low, high = (hyperparameter(h, n + suffix) for n in ("alpha_m", "mmin", "mmax"))
    return Joint(
        {
            "mass_1_source": PowerLaw(-alpha, low, high),
            # Exponent zero: the uniform density, which stays finite where m1 lies below mmin.
            "mass_2_source": lambda theta: PowerLaw(0.0, low, theta["mass_1_source"]),
        }
    )


def gaussian_masses(h: Hyperparameters, suffix: str = "") -> Density:
    r"""Return independent truncated normals in `mass_1_source` and `mass_2_source`.

    Hyperparameters `m1_loc`, `m1_scale`, `m1_low`, `m1_high` and the same of `m2`; no bounds where
    `low` and `high` are not given. The density is normalised on the whole rectangle, so a part of
    it may lie at m2 > m1, where no data are: choose locations and bounds that keep it small, or
    read the weight as that of the rectangle.
    """
    return product(
        [
            truncated_normal("mass_1_source", prefix="m1")(h, suffix),
            truncated_normal("mass_2_source", prefix="m2")(h, suffix),
        ]
    )


def broken_power_law(h: Hyperparameters, suffix: str = "") -> Density:
    r"""Return `BrokenPowerLaw` over `mass_1_source` alone.

    Hyperparameters `alpha1`, `alpha2`, `mbreak`, `mmin`, `mmax`.
    """
    names = ("alpha1", "alpha2", "mbreak", "mmin", "mmax")
    return Joint({"mass_1_source": BrokenPowerLaw(*(hyperparameter(h, n + suffix) for n in names))})


def n_power_laws_m_gaussians(
    n_pl: int, n_g: int, *, extra: Sequence[Family] = ()
) -> Callable[[Hyperparameters], Mixture]:
    r"""Return a population: N power laws and M Gaussians in the masses, each with its own rate,

    $$\rho(\theta) = \sum_k R_k\, p_k(m_1, m_2) \prod_j p_{kj}(\theta_j),\qquad
      R_k = e^{\mathtt{log\_rate\_}k}.$$

    The components `pl_0`, `pl_1`, ... are `power_law_masses`, then `g_0`, ... `gaussian_masses`,
    their hyperparameters with that suffix: `alpha_pl_0`, `m1_loc_g_0`. `log_rate_k` counts through,
    power laws first.

    Args:
        n_pl, n_g: how many of each.
        extra: families of other parameters, of which each component takes its own copy with its
            own suffix, for example `(spin.beta_magnitudes, redshift.power_law)`.

    Without a redshift factor $R_k$ is in the units that the selection asks for; with one it is the
    local comoving rate in Gpc⁻³ yr⁻¹, and the weight of the component in mergers per year is
    $R_k V_k$, with $V_k$ of that factor.

    Raises:
        InputError: no components, more than a hundred, or two factors for one parameter.
    """
    if min(n_pl, n_g) < 0 or n_pl + n_g == 0:
        raise InputError(f"needs at least one component, got n_pl={n_pl} and n_g={n_g}.")
    if n_pl + n_g > _MOST_COMPONENTS:
        raise InputError(
            f"n_pl={n_pl} and n_g={n_g} are more than {_MOST_COMPONENTS} components, which no "
            "sampler explores; give fewer."
        )
    masses = {f"pl_{i}": power_law_masses for i in range(n_pl)}
    masses |= {f"g_{i}": gaussian_masses for i in range(n_g)}

    def population(h: Hyperparameters) -> Mixture:
        components: dict[str, Density] = {}
        weights: dict[str, Any] = {}
        for k, (name, family) in enumerate(masses.items()):
            component = product(f(h, f"_{name}") for f in (family, *extra))
            components[name] = component
            weights[name] = hyperparameter(h, f"log_rate_{k}") + log_volume(component)
        return Mixture(components, log_weights=weights)

    return population


class BrokenPowerLaw(dist.Distribution):
    r"""Two power laws that meet at a break, on $[\mathrm{low}, \mathrm{high}]$:

    $$p(x) \propto (x/b)^{-\alpha_1}\ (x < b),\qquad p(x) \propto (x/b)^{-\alpha_2}\ (x \ge b).$$

    Exact in value and gradient where an index is 1. `log_prob` is finite (but meaningless) outside
    the support.

    Args:
        alpha1, alpha2: minus the exponents below and above the break.
        mbreak: b, between low and high.
        low, high: positive bounds.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {
        "alpha1": constraints.real,
        "alpha2": constraints.real,
        "mbreak": constraints.positive,
        "low": constraints.positive,
        "high": constraints.positive,
    }
    finite_outside_support = True

    def __init__(
        self,
        alpha1: Any,
        alpha2: Any,
        mbreak: Any,
        low: Any,
        high: Any,
        *,
        validate_args: bool | None = None,
    ):
        given = (alpha1, alpha2, mbreak, low, high)
        self.alpha1, self.alpha2, self.mbreak, self.low, self.high = promote_shapes(*given)
        shape = jax.lax.broadcast_shapes(*(jnp.shape(x) for x in given))
        super().__init__(batch_shape=shape, validate_args=validate_args)

    @property
    def support(self) -> Any:
        return constraints.interval(self.low, self.high)

    def _masses(self) -> tuple[Array, Array]:
        """Integrals of the two pieces with the density at the break set to 1/b."""
        below = jnp.log(self.mbreak) - jnp.log(self.low)
        above = jnp.log(self.high) - jnp.log(self.mbreak)
        return (
            below * mean_exp((1.0 - self.alpha1) * below),
            above * mean_exp((self.alpha2 - 1.0) * above),
        )

    def _pieces(self) -> tuple[PowerLaw, PowerLaw]:
        return (
            PowerLaw(-self.alpha1, self.low, self.mbreak),
            PowerLaw(-self.alpha2, self.mbreak, self.high),
        )

    def log_prob(self, value: Any) -> Array:
        log_norm = jnp.log(self.mbreak) + jnp.log(sum(self._masses()))
        index = jnp.where(value < self.mbreak, self.alpha1, self.alpha2)
        return -index * (jnp.log(value) - jnp.log(self.mbreak)) - log_norm

    def cdf(self, value: Any) -> Array:
        below, above = self._masses()
        low, high = self._pieces()
        return (below * low.cdf(value) + above * high.cdf(value)) / (below + above)

    def icdf(self, q: Any) -> Array:
        below, above = self._masses()
        low, high = self._pieces()
        share = below / (below + above)
        is_low = q < share
        x = low.icdf(jnp.where(is_low, q, 0.0) / share)
        y = high.icdf(jnp.where(is_low, 0.0, q - share) / (1.0 - share))
        return jnp.where(is_low, x, y)

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Array:
        shape = sample_shape + self.batch_shape
        return self.icdf(jax.random.uniform(key, shape, jnp.result_type(float)))
