"""Problems of posteriordb: draws agree with its published reference and with exact integrals.

Eight schools (Rubin 1981; Gelman et al., Bayesian Data Analysis, section 5.5), with its prior
there: mu ~ N(0, 5), tau ~ half-Cauchy(5). posteriordb: Magnusson et al. 2024, arXiv:2407.04967.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy import stats

from skycensus import (
    NUTS,
    Gaussian,
    HierarchicalModel,
    ImportanceSampler,
    Joint,
    Prior,
    QuadratureSampler,
    Target,
)
from skycensus.objects import object_posteriors

EFFECT = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
ERROR = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
PRIOR = {"mu": dist.Normal(0.0, 5.0), "tau": dist.HalfCauchy(5.0)}

# Mean and standard deviation of the 10,000 reference draws.
PUBLISHED = {"mu": (4.41, 3.30), "tau": (3.60, 3.20), "theta[0]": (6.15, 5.59)}


class Exact(NamedTuple):
    """Moments by name -> (mean, sd), and the log evidence."""

    moments: dict[str, tuple[float, float]]
    log_evidence: float


def exact() -> Exact:
    r"""Sums over a fine grid in $\ln\tau$; $\mu$ and $\theta_j$ are integrated by hand.

    Given $\tau$, $y_j \sim N(\mu, \sigma_j^2 + \tau^2)$ and everything else is Gaussian.
    """
    step = 2e-3
    tau = np.exp(np.arange(-16.0, 13.0, step))[:, None]
    weight = 1.0 / (ERROR**2 + tau**2)
    precision = weight.sum(axis=1) + 1 / 25
    mean = (weight * EFFECT).sum(axis=1) / precision
    log_sum = stats.norm.logpdf(EFFECT, 0.0, weight**-0.5).sum(axis=1)
    log_sum += 0.5 * precision * mean**2 - 0.5 * np.log(precision * 25)
    log_sum += stats.halfcauchy.logpdf(tau[:, 0], scale=5.0) + np.log(tau[:, 0] * step)
    p = np.exp(log_sum - log_sum.max())
    total = p.sum()
    p /= total

    def moments(mean: np.ndarray, variance: np.ndarray) -> tuple[float, float]:
        centre = p @ mean
        return centre, math.sqrt(p @ (variance + (mean - centre) ** 2))

    found = {"mu": moments(mean, 1 / precision), "tau": moments(tau[:, 0], np.zeros(len(tau)))}
    for j, (y, s) in enumerate(zip(EFFECT, ERROR, strict=True)):
        own = tau[:, 0] ** 2 / (tau[:, 0] ** 2 + s**2)  # the share of a school's own datum
        variance = own * s**2 + (1 - own) ** 2 / precision
        found[f"theta[{j}]"] = moments(own * y + (1 - own) * mean, variance)
    return Exact(found, float(log_sum.max() + math.log(total)))


EXACT = exact()


def agrees(name: str, mean: float, sd: float, *, n_eff: float) -> bool:
    """Whether moments of so many draws are the exact ones, to four standard errors."""
    exact_mean, exact_sd = EXACT.moments[name]
    error = exact_sd / math.sqrt(n_eff)
    # A standard deviation is known half as well as that of a Gaussian: the tails are heavy.
    return abs(mean - exact_mean) < 4 * error and abs(sd - exact_sd) < 6 * error


def integrated() -> HierarchicalModel:
    """The schools' own effects are integrated in closed form."""
    objects = Gaussian(np.ones((8, 1)), EFFECT, ERROR, parameters=["theta"])
    return HierarchicalModel(
        Prior(PRIOR),
        lambda h: Joint(theta=dist.Normal(h["mu"], h["tau"])),
        objects,
        rate="shape",
    )


def test_the_exact_answer_is_the_published_one():
    for name, (mean, sd) in PUBLISHED.items():
        assert agrees(name, mean, sd, n_eff=10_000)


@pytest.mark.parametrize(
    "sampler",
    [QuadratureSampler(), ImportanceSampler(target_ess=4000.0)],
    ids=lambda sampler: type(sampler).__name__,
)
def test_eight_schools_with_effects_integrated(sampler):
    model = integrated()
    result = sampler.run(model.target(), jax.random.key(1))
    assert result.status.converged
    rows = result.summary()
    for name in ("mu", "tau"):
        row = rows[name]
        assert agrees(name, row["mean"], row["sd"], n_eff=result.effective_sample_size()), name
    error = 4 * result.log_evidence_error
    assert result.log_evidence == pytest.approx(EXACT.log_evidence, abs=error)
    schools = object_posteriors(model, result, key=jax.random.key(2), num_draws=4000)
    rows = schools.summary()
    for j in range(8):
        mean, sd = rows["theta_mean"][j], rows["theta_sd"][j]
        assert agrees(f"theta[{j}]", mean, sd, n_eff=2000), j


def centred() -> None:
    mu, tau = (numpyro.sample(name, d) for name, d in PRIOR.items())
    with numpyro.plate("school", 8):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.sample("y", dist.Normal(theta, ERROR), obs=jnp.asarray(EFFECT))


def not_centred() -> None:
    mu, tau = (numpyro.sample(name, d) for name, d in PRIOR.items())
    with numpyro.plate("school", 8):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        theta = numpyro.deterministic("theta", mu + tau * z)
        numpyro.sample("y", dist.Normal(theta, ERROR), obs=jnp.asarray(EFFECT))


def run(model: Any, **settings: Any) -> Any:
    return NUTS(num_warmup=1000, num_samples=2500, **settings).run(
        Target.from_numpyro(model), jax.random.key(3)
    )


@pytest.mark.slow
def test_eight_schools_not_centred():
    result = run(not_centred, target_accept_prob=0.95)
    assert result.status.converged, str(result.status)
    rows = result.summary()
    for name in EXACT.moments:
        row = rows[name]
        n_eff = min(row["ess_bulk"], row["ess_tail"])
        assert agrees(name, row["mean"], row["sd"], n_eff=n_eff), name


@pytest.mark.slow
def test_eight_schools_centred():
    """The funnel keeps chains from a small tau: that is told, and what they miss is little."""
    result = run(centred, target_accept_prob=0.95)
    told = {found.kind for found in (*result.status.problems, *result.status.notes)}
    assert "divergences" in told
    rows = result.summary()
    for name in EXACT.moments:
        assert agrees(name, rows[name]["mean"], rows[name]["sd"], n_eff=200), name
