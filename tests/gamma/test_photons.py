"""Mixtures of components that have sent photons: against sums by hand, by both ways to count."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from skycensus import ImportanceSampler, InputError, Prior
from skycensus.gamma.expected import expected_counts, expected_spectra, fluxes
from skycensus.gamma.fold import Cut
from skycensus.gamma.photons import Background, Observation, Source, photon_model, population
from skycensus.gamma.response import synthetic_tables
from skycensus.gamma.simulate import simulate
from skycensus.gamma.sky import Box, Gaussian, Isotropic, Point
from skycensus.gamma.spectra import PowerLaw

TABLES = synthetic_tables()
LOW, HIGH = 0.01, 300.0
# A flux of 3e-11 per cm2, s and TeV at 1 TeV, as of the brightest sources.
FLUX = float(np.log(3e-11))


def observation(**options) -> Observation:
    usual = {
        "tables": TABLES,
        "pointing": (0.0, 0.0),
        "livetime": 1800.0,
        "cut": Cut(Box((-1.5, 1.5), (-1.2, 1.2)), 0.5, 30.0),
    }
    return Observation(**usual | options)


def free(h):
    return PowerLaw(h["index"], low=LOW, high=HIGH, log_amplitude=FLUX)


def flat(index=2.3, log_amplitude=FLUX) -> PowerLaw:
    return PowerLaw(index, low=LOW, high=HIGH, log_amplitude=log_amplitude)


TREE = {
    "signal": Source(Gaussian(0.3, 0.1, 0.15), free),
    "rest": {
        "ccr": Background(),
        "sources": [Source(Point(-0.8, 0.4), flat()), Source(Isotropic(), flat(2.7))],
    },
}
PRIOR = Prior(
    {
        "signal, rest": dist.Dirichlet(jnp.ones(2)),
        "ccr, sources": dist.Dirichlet(jnp.ones(2)),
        "index": dist.Uniform(1.0, 4.0),
    }
)
TRUTH = {"signal": 0.4, "rest": 0.6, "ccr": 0.7, "sources": 0.3, "index": 2.1}
COUNTS = {"signal": 400, "ccr": 420, "sources": 180}


@pytest.fixture(scope="module")
def simulated():
    return simulate(observation(), TREE, TRUTH, COUNTS, jax.random.key(5))


@pytest.fixture(scope="module")
def model(simulated):
    return photon_model([simulated[0]], TREE, PRIOR)


def test_photons_are_those_that_were_asked_for(simulated):
    seen, told = simulated
    assert {n: int((told["component"] == n).sum()) for n in np.unique(told["component"])} == {
        "signal": 400,
        "rest/ccr": 420,
        "rest/sources": 180,
    }
    assert seen.used.all()
    signal = told["component"] == "signal"
    assert np.isnan(told["true_energy"][told["component"] == "rest/ccr"]).all()
    # Lognormal dispersion of width 0.12, pulled towards more by the falling spectrum.
    ratio = np.log(seen.energy[signal] / told["true_energy"][signal])
    assert ratio.std() == pytest.approx(0.12, rel=0.12)
    assert np.mean(told["true_lon"][signal]) == pytest.approx(0.3, abs=0.03)


def test_log_likelihood_is_the_sum_by_hand(simulated, model):
    seen, _ = simulated
    nodes = model.likelihood.forms["signal"].form.hats.nodes
    fold = seen.fold(nodes)
    dispersion = fold.dispersion()
    width = np.log(nodes[1] / nodes[0]) * nodes * np.where(np.isin(nodes, nodes[[0, -1]]), 0.5, 1)

    def counts(source, index):
        density, total = fold.density(source.sky)
        mass = np.exp(FLUX) * nodes**-index * width
        return (density * dispersion) @ mass, total @ mass

    signal, a = counts(TREE["signal"], 2.1)
    parts = [counts(s, i) for s, i in zip(TREE["rest"]["sources"], (2.3, 2.7), strict=True)]
    sources, b = sum(p[0] for p in parts), sum(p[1] for p in parts)
    ccr, c = fold.background()
    by_hand = 0.4 * signal / a + 0.6 * (0.7 * ccr / c + 0.3 * sources / b)
    found = model.log_likelihood(TRUTH).value
    assert float(found) == pytest.approx(np.log(by_hand).sum(), abs=0.02)


def test_rates_are_fractions_and_a_number(simulated, model):
    rates = {"signal": dist.Uniform(0, 9), "ccr": dist.Uniform(0, 9), "sources": dist.Uniform(0, 9)}
    poisson = photon_model([simulated[0]], TREE, Prior({**rates, "index": 2.1}), rate="rates")
    at = {"signal": 1.3, "ccr": 0.9, "sources": 0.2, "index": 2.1}
    number = expected_counts(observation(), TREE, TRUTH)
    each = {
        n: r * number[p]
        for (p, n), r in zip(
            {"signal": "signal", "rest/ccr": "ccr", "rest/sources": "sources"}.items(),
            (1.3, 0.9, 0.2),
            strict=True,
        )
    }
    total = sum(each.values())
    rest = each["ccr"] + each["sources"]
    fractions = {
        "signal": each["signal"] / total,
        "rest": rest / total,
        "ccr": each["ccr"] / rest,
        "sources": each["sources"] / rest,
        "index": 2.1,
    }
    shape = float(model.log_likelihood(fractions).value)
    expected = shape + 1000 * np.log(total) - total
    assert float(poisson.log_likelihood(at).value) == pytest.approx(expected, rel=1e-4)


def test_the_truth_is_recovered(model):
    result = ImportanceSampler().run(model.target(), jax.random.key(1))
    assert result.status.converged
    summary = result.summary()
    for name, truth in TRUTH.items():
        row = summary[name]
        assert abs(row["mean"] - truth) < 3.5 * row["sd"], name
    assert summary["signal"]["sd"] < 0.04 and summary["index"]["sd"] < 0.15


def test_memberships_tell_who_has_sent_what(simulated, model):
    from skycensus.likelihood.leaves import memberships

    shares = memberships(
        model.likelihood, model.population({k: jnp.asarray(v) for k, v in TRUTH.items()})
    )
    assert set(shares) == {"signal", "rest/ccr", "rest/sources"}
    np.testing.assert_allclose(sum(shares.values()), 1.0, rtol=1e-6)
    truly = simulated[1]["component"] == "signal"
    # Calibrated: their mean among all is their fraction, and they tell the two apart.
    assert float(shares["signal"].mean()) == pytest.approx(0.4, abs=0.04)
    assert float(shares["signal"][truly].mean()) > float(shares["signal"][~truly].mean()) + 0.3


@pytest.mark.slow
def test_two_pointings_are_one_likelihood(simulated):
    seen, _ = simulated
    away = observation(pointing=(0.7, 0.0), livetime=900.0, name="second")
    second, _ = simulate(
        away, TREE, TRUTH, {"signal": 30, "ccr": 40, "sources": 20}, jax.random.key(2)
    )
    both = photon_model([seen, second], TREE, PRIOR)
    assert len(both.likelihood.names) == 1090
    assert both.likelihood.names[0] == "observation photon 0"
    assert both.likelihood.names[-1] == "second photon 89"
    one = float(photon_model([seen], TREE, PRIOR).log_likelihood(TRUTH).value)
    assert np.isfinite(float(both.log_likelihood(TRUTH).value) - one)
    # The exposures add up.
    apart = [expected_counts(o, TREE, TRUTH)["signal"] for o in (seen, second)]
    form = both.likelihood.forms["signal"].selection
    total = float(jnp.exp(form.log_marginal(free(TRUTH)).value[0]))
    assert total == pytest.approx(sum(apart), rel=2e-3)


@pytest.mark.slow
def test_bins_add_up_to_the_cut():
    whole = expected_counts(observation(), TREE, TRUTH)
    edges = np.array([0.1, 0.5, 1.0, 4.0, 30.0, 90.0])
    binned = expected_spectra([observation()], TREE, {**TRUTH, "rest": 1.0}, edges)
    for path, total in whole.items():
        rate = TRUTH[path.rsplit("/", 1)[-1]]
        assert binned[path][0] == binned[path][-1] == 0.0  # beyond the cut
        assert binned[path].sum() == pytest.approx(rate * total, rel=1e-4)
    # Several points at once, and photons that are shared by fractions.
    draws = {name: np.array([x, x]) for name, x in TRUTH.items()}
    seen = observation(energy=[1.0, 2.0, 3.0], lon=[0, 0, 0], lat=[0, 0, 0])
    shared = expected_spectra([seen], TREE, draws, edges, rates=False)
    assert shared["signal"].shape == (2, 5)
    assert shared["rest/ccr"][1].sum() == pytest.approx(3 * 0.6 * 0.7)


def test_simulated_backgrounds_are_tilted():
    tree = {"ccr": Background(tilt=lambda h, run: h[f"tilt_{run}"])}
    h = {"ccr": 1.0, "tilt_observation": 0.8}
    seen, _ = simulate(observation(), tree, h, {"ccr": 4000}, jax.random.key(1))
    edges = np.geomspace(0.5, 30.0, 6)
    mean = expected_spectra([observation()], tree, h, edges)["ccr"]
    counts, _ = np.histogram(seen.energy, edges)
    mean = mean * 4000 / mean.sum()
    assert np.all(abs(counts - mean) < 4 * np.sqrt(mean) + 2)
    flat = expected_spectra([observation()], tree, {**h, "tilt_observation": 0.0}, edges)["ccr"]
    assert flat[-1] / flat[0] > 3 * mean[-1] / mean[0]


def test_fluxes_are_those_of_skies_times_spectra():
    found = fluxes(TREE, TRUTH, Box((-1.5, 1.5), (-1.2, 1.2)), np.array([1.0]))
    assert list(found) == ["signal", "rest/sources"]
    assert found["signal"][0, 0] == pytest.approx(np.exp(FLUX), rel=2e-3)
    area = np.deg2rad(3.0) * 2 * np.sin(np.deg2rad(1.2))
    assert found["rest/sources"][0, 0] == pytest.approx(np.exp(FLUX) * (1 + area), rel=2e-3)


# ---- wrong input ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"energy": [1.0, 2.0]}, "columns of different lengths"),
        ({"energy": [1.0, np.nan], "lon": [0, 0], "lat": [0, 0]}, "'energy' of photon 1 is NaN"),
        ({"energy": [1.0, -1.0], "lon": [0, 0], "lat": [0, 0]}, "photon 1 is not positive"),
        ({"energy": ["a"], "lon": [0], "lat": [0]}, "'energy' are not numbers"),
        ({"livetime": 0.0}, "livetime = 0 s must be positive"),
        ({"pointing": (30.0, 0.0)}, "the response is known to 5 deg"),
    ],
)
def test_wrong_observations_are_told(options, said):
    with pytest.raises(InputError, match=said):
        observation(**options)


def test_wrong_trees_are_told():
    with pytest.raises(InputError, match="'root' has no components"):
        population({})
    with pytest.raises(InputError, match="'bkg' has no components"):
        population({"a": Background(), "bkg": {}})
    with pytest.raises(InputError, match="component 'bkg/a' is a str"):
        population({"bkg": {"a": "power law"}})
    with pytest.raises(InputError, match=r"occur twice: \['a'\]"):
        population({"a": Background(), "bkg": {"a": Background()}})


def test_photons_that_nobody_can_have_sent(simulated):
    # Nobody sees so sharply; with a wide point spread all is possible.
    sharp = synthetic_tables(psf_at_1_tev=0.01)
    few = replace(observation(tables=sharp), energy=[1.0, 2.0], lon=[0.0, 1.4], lat=[0.0, 1.1])
    tree = {"signal": Source(Point(-1.4, -1.1), free)}
    far = {"signal": 1.0, "index": dist.Uniform(1.0, 3.0)}
    with pytest.raises(InputError, match=r"can have made photon 0 \(2 such photons"):
        photon_model([few], tree, Prior(far))
    # Telescopes that see nothing there.
    blind = replace(TABLES.area, values=np.where(TABLES.area.axes["offset"] > 1.0, 0, 1e9) + 0 *
                    TABLES.area.values)  # fmt: skip
    tables = replace(TABLES, area=blind)
    lone = replace(observation(tables=tables), energy=[1.0], lon=[1.49], lat=[1.19])
    star = {"signal": Source(Point(1.49, 1.19), free)}
    with pytest.raises(InputError, match=r"can have made photon 0 \(1 such photons"):
        photon_model([lone], star, Prior(far))
    with pytest.raises(InputError, match="no photon is in the region"):
        photon_model([observation()], tree, Prior(far))
    with pytest.raises(InputError, match="counts of 'singal', which is no component"):
        simulate(observation(), TREE, TRUTH, {"singal": 3}, jax.random.key(0))
