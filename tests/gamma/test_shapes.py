"""Halos whose shape hyperparameters decide, against the fold of a halo of that very shape."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from skycensus import NUTS, InputError, Prior
from skycensus.density import leaves
from skycensus.gamma import photons
from skycensus.gamma.expected import expected_spectra, fluxes, log_flux_within
from skycensus.gamma.fold import Cut
from skycensus.gamma.halo import Einasto, GeneralizedNFW, Halo, log_d_factor, log_j_within
from skycensus.gamma.photons import Background, Observation, Source, photon_model
from skycensus.gamma.response import synthetic_tables
from skycensus.gamma.shapes import TOLERANCE, prior_shapes
from skycensus.gamma.simulate import draw_counts, simulate
from skycensus.gamma.sky import Around, Box, Cone
from skycensus.gamma.spectra import PowerLaw

PRIOR = Prior(
    {
        "slope": dist.Uniform(0.3, 1.35),
        "radius": 20.0,
        "local": dist.LogNormal(-1.0, 0.3),
        "index": 2.3,
        "DM": 1.0,
        "ccr": dist.LogNormal(0.0, 0.3),
    }
)
POINT = {"slope": 1.1, "radius": 20.0, "local": 0.4, "index": 2.3, "DM": 1.0, "ccr": 1.0}


def halo(h):
    profile = GeneralizedNFW(h["slope"], scale_radius=h["radius"], local_density=h["local"])
    return Around(0.0, 0.0, Halo(profile))


def spectrum(h):
    # About as many photons as there are of the background.
    return PowerLaw(h["index"], low=0.5, high=50.0, log_amplitude=-71.0)


TREE = {"DM": Source(halo, spectrum), "ccr": Background()}


def empty(region, low=5.0, livetime=3600.0):
    return Observation(
        tables=synthetic_tables(),
        pointing=(0.3, 0.0),
        livetime=livetime,
        cut=Cut(region, low, 20.0),
    )


@pytest.fixture(scope="module")
def seen():
    return simulate(
        empty(Box((-0.6, 0.6), (-0.5, 0.5))), TREE, POINT, {"DM": 60, "ccr": 40}, jax.random.key(1)
    )[0]


@pytest.fixture(scope="module")
def model(seen):
    return photon_model([seen], TREE, PRIOR, rate="rates")


@pytest.mark.slow
@pytest.mark.parametrize("slope", [0.31, 1.34])
def test_a_sum_of_shapes_is_the_fold_of_the_shape(seen, model, slope):
    h = {**POINT, "slope": slope}
    still = photon_model([seen], {"DM": TREE["DM"].at(h)}, Prior({"DM": 1.0}), rate="rates")
    density = leaves(model.population(h))["DM"][1]
    for free, fixed in ((model.likelihood, still.likelihood), (model.selection, still.selection)):
        got, want = (form.forms["DM"].log_marginal(density).value for form in (free, fixed))
        # A hundredth of what a hundred photons together may be wrong by.
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)
    assert np.exp(want[0]) > 1.0
    assert model.likelihood.forms["DM"].error <= TOLERANCE


@pytest.mark.slow
def test_shapes_of_two_parameters_describe_all_others():
    def every(h):
        return Around(0.0, 0.0, Halo(GeneralizedNFW(h["slope"], scale_radius=h["radius"])))

    prior = {"slope": dist.Uniform(0.2, 1.4), "radius": dist.LogUniform(5.0, 60.0)}
    shapes = prior_shapes(every, Prior(prior), [((0.3, 0.0), 2.0)], "DM")
    assert len(shapes.skies) < 20
    angles = np.geomspace(0.015, 2.8, 30)
    each = np.stack([sky.profile(angles) for sky in shapes.skies])
    for slope, radius in ((0.21, 5.2), (1.39, 58.0), (0.8, 20.0), (1.39, 5.2)):
        now = every({"slope": slope, "radius": radius})
        shares, top = shapes.coefficients(now)
        np.testing.assert_allclose(np.exp(top) * (shares @ each), now.profile(angles), rtol=3e-5)


def test_tables_of_very_many_photons_have_32_bits(seen, model, monkeypatch):
    monkeypatch.setattr(photons, "_MANY", 0)
    narrow = photon_model([seen], TREE, PRIOR, rate="rates")
    form = narrow.likelihood.forms["DM"]
    assert form.table.dtype == np.float32
    density = leaves(model.population(POINT))["DM"][1]
    want = model.likelihood.forms["DM"].log_marginal(density).value
    np.testing.assert_allclose(form.log_marginal(density).value, want, rtol=0, atol=1e-5)


def test_gradients_are_those_of_differences(model):
    free = ("slope", "local")
    value = jax.jit(
        lambda x: model.log_likelihood({**POINT, **dict(zip(free, x, strict=True))}).value
    )
    x = np.array([POINT[n] for n in free])
    slopes = jax.jit(jax.grad(value))(jnp.asarray(x))
    for slope, step in zip(slopes, np.diag(1e-4 * x), strict=True):
        difference = (value(x + step) - value(x - step)) / (2.0 * step.sum())
        np.testing.assert_allclose(slope, difference, rtol=1e-4, atol=1e-4)


def test_the_local_density_is_an_amplitude(model):
    def source(local):
        density = leaves(model.population({**POINT, "local": local}))["DM"][1]
        return model.likelihood.forms["DM"].log_marginal(density).value

    # Far beyond the prior, too.
    np.testing.assert_allclose(source(40.0) - source(0.4), 2.0 * np.log(100.0), atol=1e-9)


def test_draws_are_true_energies(model):
    @jax.jit
    def draw(h):
        density = leaves(model.population(h))["DM"][1]
        return model.likelihood.forms["DM"].draw(density, jax.random.key(0))["energy"]

    energy = np.asarray(draw(POINT))
    assert energy.shape == (100,) and (energy > 0.5).all() and (energy < 50.0).all()


def test_numbers_and_fluxes_of_many_shapes(seen):
    slopes = np.linspace(0.5, 1.3, 7)
    draws = {n: np.full(7, x) for n, x in POINT.items()} | {"slope": slopes}
    last = {n: float(x[-1]) for n, x in draws.items()}
    edges, energy = np.array([5.0, 8.0, 20.0]), np.array([1.0, 3.0])
    every, one = (expected_spectra([seen], TREE, h, edges)["DM"] for h in (draws, last))
    np.testing.assert_allclose(every[-1], one, rtol=2e-3)
    assert every[0, 0] < 0.5 * every[-1, 0]
    region = seen.cut.region
    every, one = (fluxes(TREE, h, region, energy)["DM"] for h in (draws, last))
    np.testing.assert_allclose(every[-1], one[0], rtol=2e-3)


@pytest.mark.slow
def test_the_j_factor_of_a_region():
    log_flux = log_flux_within(halo, PRIOR, Cone(0.0, 0.0, 1.0), "DM")
    for slope in (0.5, 1.3):
        profile = GeneralizedNFW(slope, scale_radius=20.0, local_density=0.4)
        found = log_flux(halo({**POINT, "slope": slope}))
        np.testing.assert_allclose(found, log_j_within(profile, 1.0), atol=2e-3)


@pytest.mark.slow
def test_a_region_away_from_the_centre_needs_no_centre():
    def decaying(h):
        return Around(0.0, 0.0, Halo(Einasto(h["alpha"]), log_d_factor))

    prior = Prior({"alpha": dist.Uniform(0.1, 0.4)})
    shapes = prior_shapes(decaying, prior, [((5.0, 0.0), 1.0)], "DM")
    assert not shapes.measure.central
    assert np.min(shapes.measure.angles) > 3.5
    angles = np.linspace(3.7, 6.3, 20)
    for alpha in (0.11, 0.25, 0.39):
        now = decaying({"alpha": alpha})
        shares, top = shapes.coefficients(now)
        each = np.stack([sky.profile(angles) for sky in shapes.skies])
        np.testing.assert_allclose(np.exp(top) * (shares @ each), now.profile(angles), rtol=1e-5)


@pytest.mark.parametrize(
    ("entries", "sky", "message"),
    [
        (
            {"a": dist.Normal(0.2, 0.2)},
            lambda h: Around(0.0, 0.0, Halo(Einasto(1.0, scale_radius=h["a"]))),
            "component 'DM': its sky is not positive",
        ),
        (
            {"a": dist.Uniform(1.0, 1.6)},
            lambda h: Around(0.0, 0.0, Halo(GeneralizedNFW(h["a"]))),
            "slope below 1.5",
        ),
        (
            {"a": dist.Uniform(0.0, 1.0)},
            lambda h: Around(h["a"], 0.0, Halo(Einasto())),
            "place that is fixed",
        ),
        (
            {"a": dist.Uniform(1.0, 300.0)},
            lambda h: Around(0.0, 0.0, lambda angle: 2.0 + jnp.sin(h["a"] * angle)),
            "too many shapes",
        ),
    ],
)
def test_priors_that_cannot_be(entries, sky, message):
    with pytest.raises(InputError, match=message):
        prior_shapes(sky, Prior(entries), [((0.0, 0.0), 1.0)], "DM")


@pytest.mark.slow
def test_a_simulated_halo_is_found():
    one = empty(Cone(0.0, 0.0, 2.0), low=1.0, livetime=450.0)
    counts = draw_counts([one], TREE, POINT, jax.random.key(4))
    assert 2000 < counts["DM"] < 4000
    simulated, _ = simulate(one, TREE, POINT, counts, jax.random.key(5))
    prior = Prior(
        {
            "slope": dist.Uniform(0.3, 1.35),
            "local": dist.LogNormal(-1.0, 0.5),
            "radius": 20.0,
            "index": dist.Uniform(1.5, 3.5),
            "DM": 1.0,
            "ccr": dist.LogNormal(0.0, 0.3),
        }
    )
    model = photon_model([simulated], TREE, prior, rate="rates")
    result = NUTS(num_warmup=200, num_samples=200, num_chains=2).run(
        model.target(), jax.random.key(6)
    )
    for name in ("slope", "local", "index", "ccr"):
        draws = np.asarray(result.draws[name])
        assert abs(draws.mean() - POINT[name]) < 4.0 * draws.std(), name
    assert np.std(result.draws["slope"]) < 0.1
