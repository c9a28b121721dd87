"""A line with outliers against direct formulas and the exact posterior."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from astropy.table import Table

from skycensus import HierarchicalModel, InputError, Prior
from skycensus.likelihood.leaves import memberships
from skycensus.model import hyperparameter_names
from skycensus.stars import lines

H = {"m": 3.1, "b": -12.0, "w0": 0.7, "ln_s_out": 2.3}


@pytest.fixture
def points():
    rng = np.random.default_rng(5)
    x = rng.uniform(0, 10, 12)
    return lines.Points(
        x, 3.0 * x - 11 + rng.normal(0, 4, 12), rng.uniform(0.5, 2, 12), ("p",) * 12
    )


def direct(points, h, scatter=0.0):
    def normal(residual, variance):
        return -0.5 * residual**2 / variance - 0.5 * np.log(2 * np.pi * variance)

    on = normal(points.y - h["m"] * points.x - h["b"], points.error**2 + scatter**2)
    out = normal(points.y, points.error**2 + np.exp(2 * h["ln_s_out"]))
    return np.log(h["w0"]) + on, np.log1p(-h["w0"]) + out


def test_log_marginals_and_memberships(points):
    objects = lines.objects(points)
    density = lines.line_with_outliers({k: jnp.asarray(v) for k, v in H.items()})
    on, out = direct(points, H)
    assert objects.log_marginal(density).value == pytest.approx(np.logaddexp(on, out), rel=1e-12)
    share = memberships(objects, density)
    assert share["line"] == pytest.approx(1 / (1 + np.exp(out - on)), rel=1e-9)
    assert share["line"] + share["outlier"] == pytest.approx(np.ones(12))


def test_gradient_is_finite_although_the_line_has_no_width(points):
    objects = lines.objects(points)
    gradient = jax.grad(lambda h: objects.log_marginal(lines.line_with_outliers(h)).value.sum())(
        {k: jnp.asarray(v) for k, v in H.items()}
    )
    step = 1e-6
    for name, slope in gradient.items():
        up, down = (
            np.logaddexp(*direct(points, H | {name: H[name] + s})).sum() for s in (step, -step)
        )
        assert float(slope) == pytest.approx((up - down) / (2 * step), rel=1e-5), name


def test_intrinsic_scatter(points):
    h = {k: jnp.asarray(v) for k, v in (H | {"ln_s": -0.5}).items()}
    density = lines.line_with_outliers(h, intrinsic_scatter=True)
    on, out = direct(points, H, scatter=np.exp(-0.5))
    value = lines.objects(points).log_marginal(density).value
    assert value == pytest.approx(np.logaddexp(on, out), rel=1e-12)


def test_hyperparameters_are_found():
    assert set(hyperparameter_names(lines.line_with_outliers)[0]) == set(H)


def test_posterior_memberships_are_the_exact_ones(shared, require_path):
    """At the exact posterior, averaged: the weights are in the memberships."""
    folder = require_path(shared / "reference" / "hierarchical")
    data = lines.read_points(folder / "line_outliers.ecsv")
    exact = json.loads((folder / "exact_line.json").read_text())
    prior = Prior(
        {
            "m": {"dist": "Uniform", "low": -20, "high": 20},
            "b": {"dist": "Normal", "loc": 0, "scale": 25},
            "w0": {"dist": "Uniform", "low": 0, "high": 1},
            "ln_s_out": {"dist": "Uniform", "low": -5, "high": 5},
        }
    )
    model = HierarchicalModel(prior, lines.line_with_outliers, lines.objects(data), rate="shape")
    mean = {k: v["mean"] for k, v in exact["params"].items() if k in H}
    value = model.log_likelihood({k: jnp.asarray(v) for k, v in mean.items()}).value
    # No point of the prior's bulk is as likely as the exact posterior's mean.
    draws = prior.sample(jax.random.key(0), (200,))
    others = jax.vmap(lambda h: model.log_likelihood(h).value)(draws)
    assert float(value) > float(others.max())
    table = Table.read(folder / "line_membership_reference.ecsv")
    at_mean = memberships(
        lines.objects(data), lines.line_with_outliers({k: jnp.asarray(v) for k, v in mean.items()})
    )["line"]
    # Averaging over the posterior moves a membership by some hundredths at most.
    assert np.abs(np.asarray(at_mean) - table["p_member"]).max() < 0.06


@pytest.mark.parametrize("bad", [0.0, -0.1, np.nan])
def test_uncertainties_must_be_positive_from_python_too(bad):
    points = lines.Points(np.ones(2), np.ones(2), np.array([bad, 1.0]), ("p", "q"))
    with pytest.raises(InputError, match=f"p: an uncertainty of {bad:g} is not a positive number"):
        lines.objects(points)
