"""GammaBayes 0.1.9 on one catalogue of its tutorial, number by number, its defects built in.

Sums on its grid as it makes them: the width of a cell of a logarithmic axis is r x (with r the
ratio of neighbours) and not x ln r; responses are divided by their sums over coarse pixels of
reconstructed space; only nodes near an event count; and between cells with a point spread and
cells without one, a width of one degree takes part. None of this is in skycensus.
"""

from dataclasses import replace

import numpy as np
import pytest
from scipy.special import logsumexp

from skycensus.gamma.response import separation
from skycensus.gamma.tables import tables_from_arrays

ENERGY, LON, LAT = np.logspace(-1, 2, 91), np.linspace(-3, 3, 61), np.linspace(-3, 3, 60)
# The window about an event: decades of energy, degrees.
DECADES, DEGREES = 0.5, 0.5


def log_widths(nodes: np.ndarray) -> np.ndarray:
    """Of cells as GammaBayes has them."""
    steps = np.diff(nodes)
    if np.isclose(steps[1], steps[0]):
        return np.log(np.append(steps, steps[-1]))
    return np.log(nodes * nodes[1] / nodes[0])


def log_sum(log_y: np.ndarray) -> float:
    """Over energy, longitude and latitude."""
    cells = log_widths(ENERGY)[:, None, None] + log_widths(LON)[:, None] + log_widths(LAT)
    return float(logsumexp(log_y + cells))


@pytest.fixture(scope="module")
def folder(shared, require_path):
    return require_path(shared / "reference" / "gammabayes")


@pytest.fixture(scope="module")
def reference(folder):
    names = ("irf_norm", "dm_parts", "priors_unnormalised", "log_marg", "hyper_loglike_points")
    return {name: dict(np.load(folder / f"{name}.npz")) for name in names}


@pytest.fixture(scope="module")
def response(folder):
    """The tables as they are: a point spread of one degree in cells where the file has none."""
    arrays = dict(np.load(folder / "irf_tables.npz"))
    tables = tables_from_arrays(arrays)
    raw = replace(tables.psf["sigma"], values=arrays["psf_sigma_1"][..., None])
    return replace(tables, psf={**tables.psf, "sigma": raw})


@pytest.fixture(scope="module")
def priors(reference):
    """Log densities of true energy and direction, normalised on the grid."""
    flat = reference["priors_unnormalised"]
    found = {name: table - log_sum(table) for name, table in flat.items()}
    parts = reference["dm_parts"]
    dark = parts["log_diffJ"] + parts["log_aeff_cm2"]
    # Over directions first: the sum over all four axes at once takes gigabytes.
    by_energy = logsumexp(dark + log_widths(LON)[:, None] + log_widths(LAT), axis=(1, 2))
    by_energy = by_energy + log_widths(ENERGY)
    total = logsumexp(by_energy[:, None] + parts["log_spec"], axis=0)
    return {**found, "dm": (dark, parts["log_spec"] - total)}


def log_response(response, event, energy, lon, lat) -> np.ndarray:
    """ln p(event | energy, lon, lat) of the tables; nothing beyond the last migration."""
    offset = separation(0.0, 0.0, lon, lat)
    ratio = event[0] / energy
    density = response.migration_density(event[0], energy, offset)
    known = ratio <= response.migration.axes["migra"][-1]
    with np.errstate(divide="ignore"):
        migration = np.where(known, np.log(np.maximum(density, 0.0)), -np.inf)
    return migration + response.log_psf(energy, offset, separation(event[1], event[2], lon, lat))


def log_marginals(event, response, priors, reference) -> dict[str, np.ndarray]:
    near = [
        # As written there: some nodes are on the edge, where rounding decides.
        np.flatnonzero((nodes > at - width) & (nodes < at + width))
        for nodes, at, width in (
            (np.log10(ENERGY), np.log10(event[0]), DECADES),
            (LON, event[1], DEGREES),
            (LAT, event[2], DEGREES),
        )
    ]
    window = np.ix_(*near)
    energy, lon, lat = np.meshgrid(ENERGY[near[0]], LON[near[1]], LAT[near[2]], indexing="ij")
    norm = reference["irf_norm"]
    value = log_response(response, event, energy, lon, lat)
    value = value - norm["log_edisp_norm"][window] - norm["log_psf_norm"][window]
    for axis, nodes in enumerate((ENERGY, LON, LAT)):
        widths = log_widths(nodes)[near[axis]]
        value = value + np.expand_dims(widths, [a for a in range(3) if a != axis])
    found = {n: logsumexp(value + priors[n][window]) for n in ("ccr", "hess", "diffuse")}
    dark, spectrum = priors["dm"]
    by_energy = logsumexp(value + dark[window], axis=(1, 2))
    found["dm"] = logsumexp(by_energy[:, None] + spectrum[near[0]], axis=0)
    return found


def test_log_marginals(response, priors, reference):
    want = reference["log_marg"]
    for i, event in enumerate(want["coords"]):
        found = log_marginals(event, response, priors, reference)
        for name, value in found.items():
            where = f"{name}, event {i}"
            np.testing.assert_allclose(value, want[name][i], rtol=0, atol=1e-9, err_msg=where)


def test_log_likelihoods_of_hyperparameters(reference):
    """The mixture tree, and the nearest node for the mass."""
    marginal, points = reference["log_marg"], reference["hyper_loglike_points"]
    for theta, want in zip(points["theta"], points["lnL"], strict=True):
        dark, background, *leaves, mass = theta
        nearest = np.argmin(abs(mass - marginal["mass_axis"]))
        terms = [np.log(dark) + marginal["dm"][:, nearest]]
        for share, name in zip(leaves, ("ccr", "hess", "diffuse"), strict=True):
            terms.append(np.log(background * share) + marginal[name])
        found = np.sum(marginal["weights"] * logsumexp(terms, axis=0))
        assert abs(found - want) < 1e-9


def test_what_the_width_of_a_cell_does():
    """Every log likelihood is lower by ln 9.75 for each photon: its dispersion's sum is larger."""
    seen = np.logspace(-1, 2, 61)
    right = np.log(seen * np.log(seen[1] / seen[0]))
    np.testing.assert_allclose(log_widths(seen) - right, np.log(9.7457), atol=1e-5)
