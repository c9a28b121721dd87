"""The population that options describe, and the way functions of users of GWKokab see one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ..errors import InputError

# The parameters that each --add-... option brings in, in GWKokab's order, and what earlier versions
# called the option.
EXTRAS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "beta-spin-magnitude": (("a_1", "a_2"), ("beta-spin",)),
    "truncated-normal-spin-magnitude": (("a_1", "a_2"), ("truncated-normal-spin",)),
    "spin-magnitude-mixture": (("a_1", "a_2"), ()),
    "truncated-normal-spin-x": (("spin_1x", "spin_2x"), ()),
    "truncated-normal-spin-y": (("spin_1y", "spin_2y"), ()),
    "truncated-normal-spin-z": (("spin_1z", "spin_2z"), ()),
    "chi-eff-mixture": (("chi_eff",), ()),
    "skew-normal-chi-eff": (("chi_eff",), ()),
    "truncated-normal-chi-p": (("chi_p",), ()),
    "tilt": (("cos_tilt_1", "cos_tilt_2"), ()),
    "phi-1": (("phi_1",), ()),
    "phi-2": (("phi_2",), ()),
    "phi-12": (("phi_12",), ()),
    "truncated-normal-eccentricity": (("eccentricity",), ()),
    "eccentricity-mixture": (("eccentricity",), ()),
    "eccentricity-powerlaw": (("eccentricity",), ()),
    "mean-anomaly": (("mean_anomaly",), ()),
    "powerlaw-redshift": (("redshift",), ("redshift",)),
    "madau-dickinson-redshift": (("redshift",), ()),
    "right-ascension": (("ra",), ()),
    "sin-declination": (("dec",), ()),
    "detection-time": (("detection_time",), ()),
    "cos-iota": (("cos_iota",), ()),
    "polarization-angle": (("psi",), ()),
    "phi-orb": (("phi_orb",), ()),
}
MASSES = ("mass_1_source", "mass_2_source")


class Population(NamedTuple):
    """The population that options describe: parameters in GWKokab's order, and the function."""

    parameters: tuple[str, ...]
    function: Callable[[Mapping[str, Any]], Any]


def make_population(n_pl: int | None, n_g: int | None, extras: Sequence[str] = ()) -> Population:
    """Return the population of these numbers of components and --add-... options."""
    from ..gw.mass import n_power_laws_m_gaussians

    chosen = [extra for extra in EXTRAS if extra in extras]
    parameters = list(MASSES)
    for extra in chosen:
        for name in EXTRAS[extra][0]:
            if name in parameters:
                others = [f"--add-{e}" for e in chosen if name in EXTRAS[e][0]]
                raise InputError(f"{' and '.join(others)} both model '{name}'; give one of them.")
            parameters.append(name)
    if n_pl is None or n_g is None:
        raise InputError("give the numbers of components with --n-pl and --n-g.")
    families = [family for extra in chosen for family in _families(extra)]
    function: Callable[[Any], Any] = n_power_laws_m_gaussians(n_pl, n_g, extra=families)
    if "beta-spin-magnitude" in chosen:
        suffixes = [f"_pl_{i}" for i in range(n_pl)] + [f"_g_{i}" for i in range(n_g)]
        function = _without_singular_betas(function, suffixes)
    return Population(tuple(parameters), function)


def _families(extra: str) -> list[Callable[..., Any]]:
    from ..gw import eccentricity, families, redshift, spin

    parameters = EXTRAS[extra][0]
    special: dict[str, Any] = {
        "beta-spin-magnitude": spin.beta_magnitudes,
        "spin-magnitude-mixture": spin.magnitude_mixture,
        "chi-eff-mixture": families.two_truncated_normals("chi_eff", low=-1.0, high=1.0),
        "skew-normal-chi-eff": spin.skew_normal_chi_eff,
        "tilt": spin.tilt_mixture,
        "truncated-normal-eccentricity": eccentricity.truncated_normal,
        "eccentricity-mixture": eccentricity.two_truncated_normals,
        "eccentricity-powerlaw": eccentricity.power_law,
        "powerlaw-redshift": redshift.power_law,
        "madau-dickinson-redshift": redshift.madau_dickinson,
    }
    if extra in special:
        return [special[extra]]
    if extra.startswith("truncated-normal"):
        low, high = (-1.0 if parameters[0].startswith("spin_") else 0.0), 1.0
        return [families.truncated_normal(name, low=low, high=high) for name in parameters]
    return [families.uniform(name) for name in parameters]


class _With(Mapping[str, Any]):
    """Hyperparameters, some of them replaced."""

    def __init__(self, h: Mapping[str, Any], values: Mapping[str, Any]):
        self.h, self.values_ = h, values

    def __getitem__(self, name: str) -> Any:
        return self.values_[name] if name in self.values_ else self.h[name]

    def get(self, name: str, default: Any = None) -> Any:
        return self.values_[name] if name in self.values_ else self.h.get(name, default)

    def __contains__(self, name: object) -> bool:
        return name in self.values_ or name in self.h

    def __iter__(self) -> Iterator[str]:
        return iter(self.h)

    def __len__(self) -> int:
        return len(self.h)


def _without_singular_betas(
    population: Callable[[Any], Any], suffixes: Sequence[str]
) -> Callable[[Any], Any]:
    r"""The population with density zero unless all beta distributions have $\alpha, \beta > 1$.

    A mean and a variance need not belong to any beta distribution, nor to one without a pole; as in
    GWKokab, the prior is cut there.
    """

    def bounded(h: Mapping[str, Any]) -> Any:
        import jax.numpy as jnp

        from ..density import Mixture

        allowed: Any = True
        values: dict[str, Any] = {}
        for name in (f"{a}_{{}}{suffix}" for suffix in suffixes for a in ("a_1", "a_2")):
            mean, variance = h[name.format("mean")], h[name.format("variance")]
            total = mean * (1.0 - mean) / variance - 1.0
            good = (total > 0.0) & (jnp.minimum(mean, 1.0 - mean) * total > 1.0)
            # A flat distribution in the place of one that is none keeps values and slopes finite.
            values[name.format("mean")] = jnp.where(good, mean, 0.5)
            values[name.format("variance")] = jnp.where(good, variance, 1.0 / 12.0)
            allowed = allowed & good
        density = population(_With(h, values))
        weights = {n: jnp.where(allowed, w, -jnp.inf) for n, w in density.log_weights.items()}
        return Mixture(density.components, log_weights=weights)

    return bounded


def resolve(entries: Mapping[str, Any], population: Population, where: str) -> Any:
    """The `Prior` of a population's hyperparameters; null means the model's own default.

    Raises:
        InputError: as `Prior`, naming `where` they come from.
    """
    import re

    from ..model import hyperparameter_names
    from ..prior import Prior

    required, optional = hyperparameter_names(population.function)
    given = {name: value for name, value in entries.items() if value is not None}
    try:
        # A pattern may be meant for bounds that have defaults too.
        used = [n for n in optional if any(n == key or re.fullmatch(key, n) for key in given)]
        return Prior(given).resolve((*required, *used))
    except (InputError, re.error) as error:
        raise InputError(f"{where}:\n{error}") from None


class KokabModel:
    r"""A density as the functions of users of GWKokab expect a model: of stacked arrays.

    The last axis of `x` is the parameters, in the order of `parameters`.

    Attributes:
        log_scales: $\ln R_k$ of every component, in its whole volume where it has a redshift; also
            named `log_rates`.
        component_distributions: every component, normalised, as such a model.
    """

    def __init__(self, density: Any, parameters: tuple[str, ...]):
        self.density, self.parameters = density, parameters

    def log_prob(self, x: Any) -> Any:
        return self.density.log_prob({n: x[..., i] for i, n in enumerate(self.parameters)})

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Any:
        import jax.numpy as jnp

        theta = self.density.sample(key, sample_shape)
        return jnp.stack([theta[name] for name in self.parameters], axis=-1)

    @property
    def log_scales(self) -> Any:
        import jax.numpy as jnp

        weights = getattr(self.density, "log_weights", {"": 0.0})
        return jnp.stack([jnp.asarray(w, float) for w in weights.values()])

    log_rates = log_scales

    @property
    def component_distributions(self) -> list[KokabModel]:
        components = getattr(self.density, "components", {"": self.density})
        return [KokabModel(c, self.parameters) for c in components.values()]

    def component_log_probs(self, x: Any) -> Any:
        """Log densities of the components times their rates, (..., component)."""
        import jax.numpy as jnp

        each = [c.log_prob(x) for c in self.component_distributions]
        return self.log_scales + jnp.stack(each, axis=-1)

    def component_sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Any:
        """Draws of every component, (*sample_shape, component, parameter)."""
        import jax
        import jax.numpy as jnp

        components = self.component_distributions
        keys = jax.random.split(key, len(components))
        draws = [c.sample(k, sample_shape) for c, k in zip(components, keys, strict=True)]
        return jnp.stack(draws, axis=-2)
