r"""Orbits of stars after the fit: velocities, elements, the most probable ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ..predictive_checks import Measurements
from .kepler import keplerian
from .radial_velocity import Velocities, circular

LogPrior = Callable[[Mapping[str, Any]], Any]
"""Parameters of orbits (arrays of one shape, or numbers) -> the log density of their prior."""

# The goal of a maximisation: slopes of the log density per standard deviation of the draws.
_SLOPE = 1e-4


def velocity(theta: Mapping[str, Any], t: np.ndarray) -> np.ndarray:
    """Velocities [km/s] of orbits at times `t` [days]; eccentric ones where theta has `e`.

    Args:
        theta: `P` or `lnP`, `a`, `b`, `v0`, and `e` and `M0`; broadcast against `t`.
        t: from the star's first epoch.
    """
    design = (keplerian if "e" in theta else circular)(theta, {"t": np.asarray(t, float)})
    return theta["a"] * design[..., 0] + theta["b"] * design[..., 1] + theta["v0"]


def elements(theta: Mapping[str, Any]) -> dict[str, Any]:
    r"""What orbits are told by: P [days], the semi-amplitude $K = \sqrt{a^2+b^2}$ [km/s], $\omega$.

    The argument of periastron `omega` is in $[0, 2\pi)$ and for eccentric orbits; P only where
    theta has `lnP` instead.
    """
    out = {} if "P" in theta else {"P": np.exp(theta["lnP"])}
    out["K"] = np.hypot(theta["a"], theta["b"])
    if "e" in theta:
        out["omega"] = np.mod(np.arctan2(-theta["b"], theta["a"]), 2.0 * np.pi)
    return out


def period(theta: Mapping[str, Any]) -> Any:
    """P [days], whichever of `P` and `lnP` there is."""
    return theta["P"] if "P" in theta else np.exp(theta["lnP"])


def measurements(stars: Velocities) -> Measurements:
    """The velocities for a predictive check; a `jitter` in theta widens their errors."""
    owner = np.repeat(np.arange(len(stars.names)), [len(t) for t in stars.time])
    t, error = np.concatenate(stars.time), np.concatenate(stars.error)

    def predict(theta: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        own = {name: x[..., owner] for name, x in theta.items()}
        return velocity(own, t), np.hypot(error, own.get("jitter", 0.0))

    values = np.concatenate(stars.velocity)
    return Measurements(values, owner, predict, "standard deviation of a star's velocities [km/s]")


def same_mode(theta: Mapping[str, np.ndarray], best: float, t: np.ndarray) -> np.ndarray:
    """Which draws' periods are within half a cycle over the epochs of the period `best`."""
    return np.abs(1 / period(theta) - 1 / best) * max(float(np.ptp(t)), best) < 0.5


def most_probable(
    stars: Velocities,
    draws: Mapping[str, np.ndarray],
    log_prior: LogPrior,
    *,
    max_eccentricity: float = 0.95,
) -> dict[str, np.ndarray]:
    r"""The orbit of highest posterior density of every star, by maximisation from the best draw.

    The density is one of the parameters in `draws`, $p(v|\theta)\,p(\theta)$. In other parameters,
    P for lnP, the maximum is elsewhere; what a mean and a median mean does not depend on this.

    Args:
        stars: the data.
        draws: parameter -> (draw, star) of the posterior.
        log_prior: $\ln p(\theta)$ of these parameters, up to a constant.
        max_eccentricity: bound of `e`.

    Returns:
        Parameter -> (star,).
    """
    prior = np.broadcast_to(np.asarray(log_prior(draws)), next(iter(draws.values())).shape)
    found: dict[str, list[float]] = {name: [] for name in draws}
    for i, data in enumerate(zip(stars.time, stars.velocity, stars.error, strict=True)):
        own = {name: x[:, i] for name, x in draws.items()}
        each = {name: x[:, None] for name, x in own.items()}
        start = int(np.argmax(_log_likelihood(each, *data) + prior[:, i]))
        best = _climb(own, start, data, log_prior, max_eccentricity)
        for name, x in best.items():
            found[name].append(x)
    return {name: np.array(x) for name, x in found.items()}


def _log_likelihood(
    theta: Mapping[str, Any], t: np.ndarray, v: np.ndarray, error: np.ndarray
) -> np.ndarray:
    noise = np.hypot(error, theta.get("jitter", 0.0))
    return np.sum(-0.5 * ((v - velocity(theta, t)) / noise) ** 2 - np.log(noise), axis=-1)


def _climb(
    own: Mapping[str, np.ndarray],
    start: int,
    data: tuple[np.ndarray, np.ndarray, np.ndarray],
    log_prior: LogPrior,
    max_eccentricity: float,
) -> dict[str, float]:
    """The maximum near one of a star's draws, in units of the spread of the draws around it."""
    from scipy.optimize import minimize

    names = list(own)
    begin = np.array([own[name][start] for name in names])
    near = same_mode(own, float(period(own)[start]), data[0])
    # An angle that wraps is told by the draws on this side of it.
    scale = np.array([np.std(own[name][near]) for name in names])
    scale = np.where(scale > 0, scale, 1e-6 * np.maximum(np.abs(begin), 1.0))

    def theta(x: np.ndarray) -> dict[str, float]:
        return dict(zip(names, (begin + scale * x).tolist(), strict=True))

    def value(x: np.ndarray) -> float:
        point = theta(x)
        return -float(_log_likelihood(point, *data)) - float(log_prior(point))

    limits = {"e": (0.0, max_eccentricity), "jitter": (1e-9, None)}
    pairs = [limits.get(name, (None, None)) for name in names]
    bounds = [
        tuple(None if edge is None else (edge - b) / s for edge in pair)
        for pair, b, s in zip(pairs, begin, scale, strict=True)
    ]
    found = minimize(
        value, np.zeros(len(names)), method="L-BFGS-B", jac="3-point", bounds=bounds,
        options={"gtol": _SLOPE, "ftol": 1e-15},
    )  # fmt: skip
    return theta(found.x if found.fun <= value(np.zeros(len(names))) else np.zeros(len(names)))
