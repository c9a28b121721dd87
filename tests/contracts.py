"""One table per protocol: one new line here tests a new implementation (see test_contracts)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from skycensus import (
    NUTS,
    BoostedNested,
    CoarseToExact,
    Dynesty,
    FlowMCMC,
    Grid,
    ImportanceSampler,
    Joint,
    LearnedProposal,
    Mixture,
    Nested,
    PowerLaw,
    QuadratureSampler,
    Samples,
    Target,
)
from skycensus.density import Density
from skycensus.estimators import LearnedDensity, fit_density
from skycensus.gamma import spectra
from skycensus.gamma.annihilation import Annihilation, ChannelSpectra
from skycensus.likelihood import Gaussian, LinearGrid, Quadrature


class DensityCase(NamedTuple):
    """A density, a box that holds practically all of it, and a point outside its support."""

    make: Callable[[dict[str, Any]], Density]
    hyperparameters: dict[str, float]
    box: dict[str, tuple[float, float]]
    outside: dict[str, float] | None
    log_total: float = 0.0


def _joint(h):
    return Joint({"x": dist.Normal(h["loc"], h["scale"]), "y": dist.Uniform(h["low"], 2.0)})


def _conditional(h):
    return Joint(
        {
            "m": PowerLaw(h["a"], h["low"], 8.0),
            "n": lambda t: PowerLaw(h["b"], h["low"], t["m"]),
        }
    )


def _tuple_factor(h):
    covariance = jnp.array([[1.0, 0.3], [0.3, 0.5]])
    pair = dist.MultivariateNormal(jnp.stack([h["x"], h["y"]]), covariance)
    return Joint({("x", "y"): pair})


def _nested_density(h):
    return Joint(
        {
            "x": dist.Normal(h["loc"], 1.0),
            ("y",): lambda t: Joint({"y": dist.Normal(0.5 * t["x"], h["scale"])}),
        }
    )


def _tree(h):
    flat = Joint({"x": dist.Uniform(-2.0, h["high"])})
    peaks = Mixture(
        {"a": Joint({"x": dist.Normal(h["loc"], 0.5)}), "b": Joint({"x": dist.Normal(3.0, 0.4)})},
        log_weights={"a": h["log_rate"], "b": 0.0},
    )
    return Mixture({"flat": flat, "peaks": peaks}, log_weights={"flat": jnp.log(2.0), "peaks": 0.0})


def _positive(h):
    return Joint({"x": dist.LogNormal(h["loc"], 0.6)})


def _truncated(h):
    return Joint({"x": dist.TruncatedNormal(h["loc"], 0.8, low=0.0)})


def toy_spectra() -> ChannelSpectra:
    """Two smooth channels, b and tau, with x = 10**-3 ... 1 and masses from 0.5 to 8 TeV."""
    mass, log10_x = np.geomspace(0.5, 8.0, 9), np.linspace(-3.0, 0.0, 61)
    x = 10.0**log10_x
    soft = np.exp(-6.0 * x) / np.sqrt(x)
    table = np.stack([9.0 * soft, 5.0 * x * (1.2 - x)], axis=-1)
    return ChannelSpectra(("b", "tau"), mass, log10_x, table * (mass**0.1)[:, None, None])


def _annihilation(h):
    shares = {"b": 1.0 - h["tau"], "tau": h["tau"]}
    return Annihilation(toy_spectra(), h["mass"], fractions=shares, low=0.1)


DENSITIES: dict[str, DensityCase] = {
    "joint": DensityCase(
        _joint,
        {"loc": 0.3, "scale": 0.7, "low": -1.0},
        {"x": (-6.0, 6.5), "y": (-1.0, 2.0)},
        {"x": 0.0, "y": 5.0},
    ),
    "conditional power laws": DensityCase(
        _conditional,
        {"a": -2.3, "b": 1.2, "low": 2.0},
        {"m": (2.0, 8.0), "n": (2.0, 8.0)},
        {"m": 4.0, "n": 5.0},
    ),
    "factor over two names": DensityCase(
        _tuple_factor, {"x": 0.2, "y": -0.4}, {"x": (-7.0, 7.0), "y": (-6.0, 5.0)}, None
    ),
    "conditional density": DensityCase(
        _nested_density, {"loc": 0.1, "scale": 0.6}, {"x": (-7.0, 7.0), "y": (-7.0, 7.0)}, None
    ),
    "mixture tree": DensityCase(
        _tree,
        {"high": 4.0, "loc": -0.5, "log_rate": 0.4},
        {"x": (-5.0, 7.0)},
        None,
        float(np.log(3.0 + np.exp(0.4))),
    ),
    "open support": DensityCase(_positive, {"loc": 0.2}, {"x": (1e-9, 40.0)}, {"x": 0.0}),
    "truncated": DensityCase(_truncated, {"loc": 0.4}, {"x": (0.0, 7.0)}, {"x": -0.1}),
    "power-law flux": DensityCase(
        lambda h: spectra.PowerLaw(
            h["index"], low=0.5, high=8.0, log_amplitude=h["log_amplitude"], reference=2.0
        ),
        {"index": 2.4, "log_amplitude": 0.3},
        {"energy": (0.5, 8.0)},
        {"energy": 9.0},
        # A closed form: 2**2.4 / 1.4 (0.5**-1.4 - 8**-1.4), times the amplitude.
        float(0.3 + np.log(2.0**2.4 / 1.4 * (0.5**-1.4 - 8.0**-1.4))),
    ),
    "log-parabola": DensityCase(
        lambda h: spectra.LogParabola(h["index"], h["curvature"], low=0.5, high=8.0),
        {"index": 2.0, "curvature": 0.3},
        {"energy": (0.5, 8.0)},
        {"energy": 0.4},
    ),
    "power law with a cut-off": DensityCase(
        lambda h: spectra.CutoffPowerLaw(h["index"], h["cutoff"], low=0.5, high=8.0),
        {"index": 1.2, "cutoff": 1.5},
        {"energy": (0.5, 8.0)},
        {"energy": 0.4},
    ),
    "tabulated spectrum": DensityCase(
        lambda h: spectra.Tabulated([0.5, 2.0, 8.0], [4.0, 1.0, 1.0], log_amplitude=h["a"]),
        {"a": 0.2},
        {"energy": (0.5, 8.0)},
        {"energy": 0.4},
        # 2 / E up to 2 TeV, then flat.
        float(0.2 + np.log(2.0 * np.log(4.0) + 6.0)),
    ),
    "annihilation": DensityCase(
        _annihilation, {"mass": 3.0, "tau": 0.3}, {"energy": (0.1, 3.0)}, {"energy": 3.1}
    ),
}


class LikelihoodCase(NamedTuple):
    """Objects with Gaussian likelihoods N(at; theta, 1/4), up to the same constant for each."""

    make: Callable[[np.ndarray], Any]
    tolerance: float  # of a log marginal, beyond its stated Monte Carlo error
    any_density: bool = True  # False where only Gaussian populations have a closed form


SIGMA = 0.5


def _samples(at: np.ndarray) -> Samples:
    rng = np.random.default_rng(3)
    draws = [{"x": rng.normal(x, SIGMA, 3000 + 500 * i)} for i, x in enumerate(at)]
    return Samples(draws, [np.zeros(len(d["x"])) for d in draws])


def _samples_in_blocks(at: np.ndarray) -> Samples:
    rng = np.random.default_rng(4)
    draws = [{"x": rng.normal(x, SIGMA, 900 + 3000 * (i % 2))} for i, x in enumerate(at)]
    return Samples(draws, [np.zeros(len(d["x"])) for d in draws], block_size=512)


def _samples_32_bit(at: np.ndarray) -> Samples:
    rng = np.random.default_rng(5)
    draws = [{"x": rng.normal(x, SIGMA, 4000)} for x in at]
    return Samples(draws, [np.zeros(4000) for _ in at], dtype=np.float32)


def _grid(at: np.ndarray) -> Grid:
    nodes = np.linspace(-8.0, 8.0, 1601)
    table = -0.5 * ((nodes - at[:, None]) / SIGMA) ** 2 - np.log(SIGMA * np.sqrt(2 * np.pi))
    return Grid({"x": nodes}, table, np.log(nodes[1] - nodes[0]))


def _quadrature(at: np.ndarray) -> Quadrature:
    def log_likelihood(theta: Any, data: Any) -> Any:
        value = dist.Normal(data["at"], SIGMA).log_prob(theta["x"])
        # Zero far away, as no formula is by itself: so that objects can be impossible.
        return jnp.where(jnp.abs(theta["x"] - data["at"]) < 16 * SIGMA, value, -jnp.inf)

    return Quadrature(log_likelihood, {"at": at})


def _gaussian(at: np.ndarray) -> Gaussian:
    return Gaussian(np.ones((4, 1)), at, SIGMA, parameters=["x"])


def _linear_grid(at: np.ndarray) -> LinearGrid:
    return LinearGrid(
        lambda theta, columns: columns["one"][:, None] * theta["sign"],
        at[:, None],
        np.full((4, 1), SIGMA),
        columns={"one": np.ones((4, 1))},
        nodes={"sign": np.ones((4, 2))},
        log_weight=np.full((4, 2), np.log(0.5)),
        parameters=["x"],
    )


LIKELIHOODS: dict[str, LikelihoodCase] = {
    "Samples": LikelihoodCase(_samples, 1e-9),
    "Samples, spanning blocks": LikelihoodCase(_samples_in_blocks, 1e-9),
    "Samples, 32-bit": LikelihoodCase(_samples_32_bit, 1e-5),
    "Grid": LikelihoodCase(_grid, 1e-9),
    "Gaussian": LikelihoodCase(_gaussian, 1e-9, any_density=False),
    "LinearGrid": LikelihoodCase(_linear_grid, 1e-9, any_density=False),
    "Quadrature": LikelihoodCase(_quadrature, 1e-9),
}


def _flatter(target: Target) -> Target:
    """A version with nine tenths of the log likelihood."""
    return Target(
        target.prior,
        lambda free, data: 0.9 * target.log_likelihood_at(free, data),
        data=target.data,
    )


# ---- samplers: settings small enough for a test, large enough for its stated errors --------------

SAMPLERS: dict[str, Any] = {
    "importance": ImportanceSampler(target_ess=2000, num_adapt=500),
    "nuts": NUTS(num_warmup=300, num_samples=500, num_start=64),
    "flow_mcmc": FlowMCMC(
        num_chains=10, num_training_loops=2, num_production_loops=4, num_start=256, num_epochs=3
    ),
    "quadrature": QuadratureSampler(),
    "nested": Nested(num_live=300),
    "dynesty": Dynesty(num_live=150),
    "boosted nested": BoostedNested(first=Nested(num_live=100)),
    "learned proposal": LearnedProposal(first=Nested(num_live=100)),
    "coarse to exact": CoarseToExact(ImportanceSampler(num_adapt=500), _flatter, target_ess=1500),
}


# ---- kinds of learned density: settings small enough for a test ----------------------------------

_TINY: dict[str, Any] = {"layers": 2, "width": 8, "max_epochs": 10, "num_members": 2}

ESTIMATORS: dict[str, dict[str, Any]] = {
    "gaussian": {},
    "mixture": {"num_components": 2, "num_starts": 1},
    "cut": {},
    "triangular": {},
    "kde": {},
    "maf": _TINY,
    "maf_spline": _TINY,
    "spline": _TINY,
    "realnvp": _TINY,
    "piecewise": {"num_pieces": 2, "piece": "gaussian"},
    "product": {"blocks": [["x"], ["y"]]},
    "auto": {"kinds": ["gaussian", "kde"]},
}


def learned(kind: str) -> LearnedDensity:
    """A density of this kind, learned from a few draws with one bounded parameter."""
    rng = np.random.default_rng(3)
    x = rng.beta(1.5, 2.5, 400)
    draws = {"x": x, "y": rng.normal(5.0, 2.0, 400)}
    support = {"x": (0.0, 1.0)}
    settings = ESTIMATORS[kind]
    return fit_density(
        jax.random.key(4), draws, kind=kind, support=support, report=False, **settings
    )
