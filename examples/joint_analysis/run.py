"""Two radio spectrometers and one absorption line: a joint analysis without anybody's nuisances.

    python run.py [OUT] [--full]

--full samples all 18 parameters of both instruments at once as well, for comparison.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from skycensus import ImportanceSampler, Nested, Prior, Target
from skycensus.estimators import fit_density
from skycensus.nuisance_free import NuisanceFree, joint_analysis
from skycensus.statistics import information_gain, information_gain_of, tension

SHARED = {"depth": dist.Uniform(0.0, 1.0), "centre": dist.Uniform(60.0, 90.0)}
TRUTH = {"depth": 0.45, "centre": 76.0}
WIDTH, NOISE, NUM_COEFFICIENTS = 3.0, 0.03, 8


class Instrument(NamedTuple):
    """A spectrum in K: an absorption line of unknown depth and centre under a smooth foreground."""

    frequency: np.ndarray  # MHz
    basis: np.ndarray  # (frequency, coefficient)
    data: np.ndarray

    def line(self, depth, centre):
        """The line at points (...), shape (..., frequency)."""
        offset = (self.frequency - jnp.asarray(centre)[..., None]) / WIDTH
        return -jnp.asarray(depth)[..., None] * jnp.exp(-0.5 * offset**2)

    def log_likelihood(self, depth, centre, coefficients):
        model = self.line(depth, centre) + self.basis @ coefficients
        return dist.Normal(model, NOISE).log_prob(self.data).sum(-1)

    def exact(self, depth, centre):
        """The same with the coefficients integrated out: they are linear, with N(0, 1) priors."""
        covariance = self.basis @ self.basis.T + NOISE**2 * np.eye(len(self.data))
        return dist.MultivariateNormal(0.0, covariance).log_prob(
            self.data - self.line(depth, centre)
        )


def instrument(seed: int, low: float, high: float) -> Instrument:
    rng = np.random.default_rng(seed)
    frequency = np.linspace(low, high, 60)
    x = (2.0 * frequency - low - high) / (high - low)
    basis = np.polynomial.legendre.legvander(x, NUM_COEFFICIENTS - 1)
    made = Instrument(frequency, basis, np.zeros(60))
    clean = np.asarray(made.line(TRUTH["depth"], TRUTH["centre"])) + basis @ rng.normal(size=8)
    return made._replace(data=clean + NOISE * rng.normal(size=60))


def instruments() -> dict[str, Instrument]:
    return {"low band": instrument(1, 50.0, 85.0), "high band": instrument(2, 65.0, 100.0)}


def full_prior(labels: str) -> Prior:
    names = [f"{label}{i}" for label in labels for i in range(NUM_COEFFICIENTS)]
    return Prior(SHARED | {name: dist.Normal(0.0, 1.0) for name in names})


def full_target(ones: dict[str, Instrument]) -> Target:
    """All parameters: those shared, and the coefficients of every instrument: a0, ..., b0, ..."""

    def log_likelihood(h, data):
        total = 0.0
        for label, one in zip("ab", ones.values(), strict=False):
            coefficients = jnp.stack([h[f"{label}{i}"] for i in range(NUM_COEFFICIENTS)])
            total += one.log_likelihood(h["depth"], h["centre"], coefficients)
        return total

    return Target(full_prior("ab"[: len(ones)]), log_likelihood)


def without_nuisances(key, one: Instrument, *, kind: str = "mixture", num_live: int = 1000):
    """An instrument's own run and the likelihood of the shared parameters learned from it."""
    sampler = Nested(num_live=num_live)
    result = sampler.run(full_target({"": one}), jax.random.fold_in(key, 0))
    prior = Prior(SHARED)
    draws = {name: result.draws[name].ravel() for name in SHARED}
    density = fit_density(
        jax.random.fold_in(key, 1),
        draws,
        result.log_weight.ravel(),
        kind=kind,
        support=prior,
        num_bootstrap=8,
    )
    likelihood = NuisanceFree(
        posterior=density,
        prior=prior,
        log_evidence=result.log_evidence,
        log_evidence_error=result.log_evidence_error,
    )
    gain = information_gain(density, prior, draws, result.log_weight.ravel(), key=key)
    return result, likelihood, gain


class Exact(NamedTuple):
    """The joint posterior of the shared parameters on a grid."""

    depth: np.ndarray
    centre: np.ndarray
    log_likelihood: dict[str, np.ndarray]

    @property
    def log_evidence(self) -> float:
        total = sum(self.log_likelihood.values())
        return float(np.logaddexp.reduce(total, axis=None) - np.log(total.size))

    def moments(self) -> dict[str, tuple[float, float]]:
        p = sum(self.log_likelihood.values())
        p = np.exp(p - p.max())
        p /= p.sum()
        out = {}
        for name, x in (("depth", self.depth), ("centre", self.centre)):
            mean = float((p * x).sum())
            out[name] = mean, float(np.sqrt((p * (x - mean) ** 2).sum()))
        return out


def exact(ones: dict[str, Instrument], num: int = 301) -> Exact:
    """Midpoints of equal cells of the prior."""
    part = (np.arange(num) + 0.5) / num
    depth, centre = np.meshgrid(part, 60.0 + 30.0 * part, indexing="ij")
    return Exact(
        depth,
        centre,
        {name: np.asarray(one.exact(depth, centre)) for name, one in ones.items()},
    )


def figure(known: Exact, likelihoods: dict[str, NuisanceFree]):
    """Regions of 68 and 95 %: learned (filled) and exact (lines)."""
    from skycensus.plots.regions import regions

    theta = {"depth": known.depth, "centre": known.centre}
    learned = {name: np.asarray(one.log_likelihood(theta)) for name, one in likelihoods.items()}
    learned["together"] = sum(learned.values())
    return regions(
        known.centre,
        known.depth,
        learned,
        lines={**known.log_likelihood, "together": sum(known.log_likelihood.values())},
        labels=("centre [MHz]", "depth [K]"),
        truth=(TRUTH["centre"], TRUTH["depth"]),
    )


def main(out: str = "results", full: bool = False) -> None:
    from skycensus.plots import save_figures

    jax.config.update("jax_enable_x64", True)
    key = jax.random.key(1)
    ones = instruments()
    likelihoods, runs, gains, calls = {}, {}, {}, 0
    for i, (name, one) in enumerate(ones.items()):
        made = without_nuisances(jax.random.fold_in(key, i), one)
        runs[name], likelihoods[name], gains[name] = made
        calls += int(runs[name].measures["num_likelihoods"])
        print(f"{name}: ln Z = {runs[name].log_evidence:.3f}, {gains[name]}")
        likelihoods[name].save(Path(out) / f"{name.replace(' ', '_')}.skc", overwrite=True)
    joint = joint_analysis(
        jax.random.fold_in(key, 9), Prior(SHARED), likelihoods, sampler=ImportanceSampler()
    )
    print(joint.status)
    known = exact(ones)
    for name, (mean, sd) in known.moments().items():
        row = joint.summary()[name]
        print(f"{name:>7}: {row['mean']:.4f} ± {row['sd']:.4f}   exact {mean:.4f} ± {sd:.4f}")
    print(
        f"   ln Z: {joint.log_evidence:.3f} ± {joint.log_evidence_error:.3f}   "
        f"exact {known.log_evidence:.3f}"
    )
    shared = information_gain_of(joint)
    print(f"tension: {tension(*runs.values(), joint, gains=[*gains.values(), shared])}")
    print(f"likelihoods of instruments: {calls} to learn them, none for the joint analysis")
    if full:
        whole = Nested(num_live=1000).run(full_target(ones), jax.random.fold_in(key, 10))
        print(
            f"all 18 at once: ln Z = {whole.log_evidence:.3f} ± {whole.log_evidence_error:.3f}, "
            f"{whole.measures['num_likelihoods']:.0f} likelihoods"
        )
    save_figures({"regions": figure(known, likelihoods)}, Path(out))


if __name__ == "__main__":
    chosen = [a for a in sys.argv[1:] if a != "--full"]
    main(*chosen, full="--full" in sys.argv)
