"""Posteriors with exact evidences and moments: one line here is a test of every sampler it suits.

Reference evidences of shells, eggbox and five modes are those of quadrature over the box.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from scipy import integrate, stats
from scipy.special import erf, gammaln

from skycensus import Prior, Target

EVERY = ("nested", "dynesty", "importance", "nuts", "flow_mcmc")
FEW_DIMENSIONS = (*EVERY, "quadrature")


class Case(NamedTuple):
    """A target, its log evidence, mean and sd by name, and which samplers must do well on it."""

    make: Callable[[], Target]
    log_evidence: float
    moments: dict[str, tuple[float, float]]
    samplers: tuple[str, ...] = FEW_DIMENSIONS


def box(dim: int, low: float, high: float) -> Prior:
    return Prior({f"x{i}": dist.Uniform(low, high) for i in range(dim)})


def vector(h):
    return jnp.stack([h[f"x{i}"] for i in range(len(h))])


# ---- conjugate -----------------------------------------------------------------------------------

SIGMA = np.array([[1.0, 0.6], [0.6, 0.8]])
MEAN = np.array([0.4, -0.7])


def gaussian() -> Target:
    """Two normal priors of sd 3 and a correlated Gaussian likelihood."""
    precision = jnp.asarray(np.linalg.inv(SIGMA))

    def log_likelihood(h, data):
        d = jnp.stack([h["a"], h["b"]]) - data
        return -0.5 * d @ precision @ d

    prior = Prior({"a": dist.Normal(0.0, 3.0), "b": dist.Normal(0.0, 3.0)})
    return Target(prior, log_likelihood, data=jnp.asarray(MEAN))


def gaussian_answer() -> tuple[np.ndarray, np.ndarray, float]:
    """Mean, covariance and log evidence of `gaussian`."""
    precision = np.linalg.inv(SIGMA) + np.eye(2) / 9.0
    covariance = np.linalg.inv(precision)
    mean = covariance @ np.linalg.inv(SIGMA) @ MEAN
    total = SIGMA + 9.0 * np.eye(2)
    log_z = 0.5 * np.log(np.linalg.det(SIGMA) / np.linalg.det(total))
    return mean, covariance, log_z - 0.5 * MEAN @ np.linalg.inv(total) @ MEAN


def _gaussian_case() -> Case:
    mean, covariance, log_z = gaussian_answer()
    sd = np.sqrt(np.diag(covariance))
    return Case(gaussian, log_z, {"a": (mean[0], sd[0]), "b": (mean[1], sd[1])})


COUNTS, CONCENTRATION = np.array([7.0, 2.0, 4.0]), np.array([1.0, 2.0, 1.5])


def weights() -> Target:
    """A Dirichlet prior and a multinomial count: the posterior is a Dirichlet again."""

    def log_likelihood(h, data):
        return jnp.sum(data * jnp.log(jnp.stack([h["w_a"], h["w_b"], h["w_c"]])))

    entry = {"dist": "Dirichlet", "concentration": list(CONCENTRATION)}
    return Target(Prior({"w_a, w_b, w_c": entry}), log_likelihood, data=jnp.asarray(COUNTS))


def _weights_case() -> Case:
    a = COUNTS + CONCENTRATION
    log_z = np.sum(gammaln(a)) - gammaln(a.sum())
    log_z += gammaln(CONCENTRATION.sum()) - np.sum(gammaln(CONCENTRATION))
    mean = a / a.sum()
    sd = np.sqrt(mean * (1 - mean) / (a.sum() + 1))
    pairs = zip(("w_a", "w_b", "w_c"), mean, sd, strict=True)
    return Case(weights, float(log_z), {name: (m, s) for name, m, s in pairs})


# ---- shapes --------------------------------------------------------------------------------------


def banana() -> Target:
    prior = Prior({"a": dist.Uniform(-8.0, 8.0), "b": dist.Uniform(-5.0, 40.0)})

    def log_likelihood(h, data):
        bent = dist.Normal(0.5 * h["a"] ** 2, 0.5).log_prob(h["b"])
        return dist.Normal(0.0, 1.0).log_prob(h["a"]) + bent

    return Target(prior, log_likelihood)


def funnel() -> Target:
    """Three ordinates of scale e^{v/2}."""
    prior = Prior(
        {"v": dist.Normal(0.0, 1.5), **{f"y{i}": dist.Uniform(-30.0, 30.0) for i in range(3)}}
    )

    def log_likelihood(h, data):
        y = jnp.stack([h[f"y{i}"] for i in range(3)])
        return jnp.sum(dist.Normal(0.0, jnp.exp(0.5 * h["v"])).log_prob(y))

    return Target(prior, log_likelihood)


def _funnel_case() -> Case:
    def inside(v, power):
        # The share of the ordinates' density that lies in their box.
        return v**power * stats.norm.pdf(v, 0, 1.5) * erf(30 / np.sqrt(2) * np.exp(-v / 2)) ** 3

    total, first, second = (integrate.quad(inside, -12, 12, args=(k,))[0] for k in range(3))
    mean = first / total
    sd = math.sqrt(second / total - mean**2)
    # Chains that follow gradients do not reach the neck.
    suits = ("nested", "dynesty")
    return Case(funnel, math.log(total) - 3 * math.log(60), {"v": (mean, sd)}, suits)


def shells() -> Target:
    def shell(h, centre):
        r = jnp.hypot(h["x0"] - centre, h["x1"])
        return dist.Normal(2.0, 0.1).log_prob(r)

    return Target(box(2, -6.0, 6.0), lambda h, data: jnp.logaddexp(shell(h, -3.5), shell(h, 3.5)))


def eggbox() -> Target:
    def log_likelihood(h, data):
        return (2.0 + jnp.cos(h["x0"] / 2) * jnp.cos(h["x1"] / 2)) ** 5

    return Target(box(2, 0.0, 10 * math.pi), log_likelihood)


MODES = np.array(
    [[6, 0, 0, 0, 0], [-6, 3, 0, 0, 0], [0, -6, 5, 0, 0], [0, 5, -6, 4, 0], [-4, -5, 0, -6, 6]]
)
MODE_WEIGHT = np.array([0.4, 0.3, 0.15, 0.1, 0.05])
MODE_SD = np.array([0.5, 0.4, 0.6, 0.3, 0.5])


def modes() -> Target:
    def log_likelihood(h, data):
        x = vector(h)
        z = (x - jnp.asarray(MODES)) / jnp.asarray(MODE_SD)[:, None]
        each = -0.5 * jnp.sum(z**2, axis=1) - 5 * jnp.log(MODE_SD * math.sqrt(2 * math.pi))
        top = jnp.max(each)
        return top + jnp.log(jnp.sum(MODE_WEIGHT * jnp.exp(each - top)))

    return Target(box(5, -10.0, 10.0), log_likelihood)


def correlated(dim: int = 25) -> Target:
    """Unit variances and correlations 0.5 ** |i - j|, ten sd from every edge."""
    covariance = 0.5 ** np.abs(np.subtract.outer(np.arange(dim), np.arange(dim)))
    # Tridiagonal, so that a point costs little.
    precision = np.linalg.inv(covariance)
    on, off = jnp.asarray(np.diag(precision)), jnp.asarray(np.diag(precision, 1))
    norm = 0.5 * (np.linalg.slogdet(covariance)[1] + dim * math.log(2 * math.pi))

    def log_likelihood(h, data):
        x = vector(h)
        return -0.5 * jnp.sum(on * x * x) - jnp.sum(off * x[:-1] * x[1:]) - norm

    return Target(box(dim, -10.0, 10.0), log_likelihood)


TWO_MODES = -12 * math.log(20.0)


def two_modes() -> Target:
    """Two correlated Gaussians in 12 dimensions, of masses 0.65 and 0.35, far from the edges."""
    dim, scale = 12, 0.6
    covariance = scale**2 * 0.5 ** np.abs(np.subtract.outer(np.arange(dim), np.arange(dim)))
    whiten = jnp.asarray(np.linalg.inv(np.linalg.cholesky(covariance)))
    norm = 0.5 * (np.linalg.slogdet(covariance)[1] + dim * math.log(2 * math.pi))
    at = jnp.asarray(3.0 * np.where(np.arange(dim) % 3 == 0, -1.0, 1.0))

    def log_likelihood(h, data):
        x = vector(h)
        near, far = (-0.5 * jnp.sum((whiten @ (x - place)) ** 2) for place in (at, -at))
        return jnp.logaddexp(near + math.log(0.65), far + math.log(0.35)) - norm

    return Target(box(dim, -10.0, 10.0), log_likelihood)


def edges() -> Target:
    """Likelihoods that rise towards a bound of the prior, or two."""

    def log_likelihood(h, data):
        return -10.0 * h["x0"] + 10.0 * h["x1"] - 3.0 * h["x2"]

    return Target(box(3, 0.0, 1.0), log_likelihood)


def _edges_case() -> Case:
    log_z, moments = 0.0, {}
    for i, rate in enumerate((10.0, -10.0, 3.0)):
        log_z += math.log(-math.expm1(-rate) / rate)
        left = stats.truncexpon(abs(rate), scale=1 / abs(rate))
        mean = left.mean() if rate > 0 else 1 - left.mean()
        moments[f"x{i}"] = (mean, left.std())
    return Case(edges, log_z, moments)


CASES: dict[str, Case] = {
    "conjugate Gaussian": _gaussian_case(),
    "weights of a mixture": _weights_case(),
    # Chains go along the banana slowly: the few steps of the table do not converge.
    "banana": Case(
        banana,
        -math.log(16.0 * 45.0),
        {"a": (0.0, 1.0), "b": (0.5, math.sqrt(0.75))},
        ("nested", "dynesty", "importance", "flow_mcmc", "quadrature"),
    ),
    "funnel": _funnel_case(),
    "shells": Case(
        shells, -1.74564, {"x0": (0.0, 3.77690), "x1": (0.0, 1.41951)}, ("nested", "dynesty")
    ),
    "eggbox": Case(eggbox, 235.85594, {}, ("nested", "dynesty")),
    # Of a few hundred live points the narrow modes get none or some: the evidence alone.
    "five modes": Case(modes, -14.97866, {}, ("nested", "dynesty")),
    "25 dimensions": Case(
        correlated,
        -25 * math.log(20.0),
        {f"x{i}": (0.0, 1.0) for i in range(25)},
        ("nested", "nuts"),
    ),
    "edges": _edges_case(),
}
