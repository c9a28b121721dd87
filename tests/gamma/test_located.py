"""Sources that move: against a fold of the same source at rest, and against differences."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from skycensus import Prior
from skycensus.errors import InputError
from skycensus.gamma.fold import Cut, Fold
from skycensus.gamma.located import (
    TRUNCATION,
    Located,
    LocatedNumber,
    LocatedPhotons,
    Window,
    window_of,
)
from skycensus.gamma.photons import Background, Observation, Source, photon_model
from skycensus.gamma.response import Response, energy_nodes, synthetic_tables
from skycensus.gamma.sky import Box, Cone, Gaussian, Isotropic, Point
from skycensus.gamma.spectra import PowerLaw
from skycensus.likelihood import Folded

TABLES = synthetic_tables(psf_at_1_tev=0.1)
CUT = Cut(Cone(83.6, 22.0, 1.0), 0.5, 20.0)
NODES = energy_nodes([(TABLES, CUT.low, CUT.high)], per_decade=20)
SPECTRUM = PowerLaw(2.5, low=0.1, high=100.0, log_amplitude=np.log(3e-11))
PLACES = [(83.6, 22.0), (83.72, 21.87), (83.4, 22.15)]


def photons(num: int = 60) -> dict[str, np.ndarray]:
    """Photons all over the cut, most of them near the middle."""
    rng = np.random.default_rng(5)
    energy = 0.5 * (1.0 - rng.uniform(size=num) * 0.99) ** -0.7
    r, phi = 0.9 * rng.uniform(size=num), 2 * np.pi * rng.uniform(size=num)
    lon, lat = 83.6 + r * np.cos(phi) / np.cos(np.deg2rad(22.0)), 22.0 + r * np.sin(phi)
    return {"energy": np.minimum(energy, 19.0), "lon": lon, "lat": lat}


def fold(pointing=(83.2, 22.3), livetime=3600.0, cut=CUT) -> Fold:
    return Fold(Response(TABLES, NODES), pointing, livetime, cut, **photons())


def at_rest(one: Fold, sky) -> tuple[np.ndarray, float]:
    """Log marginals and the log of the number, by the fold of a sky that does not move."""
    seen, expected = one.density(sky)
    both = Folded("energy", NODES, np.concatenate([one.dispersion() * seen, expected[None]]))
    value = np.asarray(both.log_marginal(SPECTRUM).value)
    return value[:-1], value[-1]


@pytest.fixture(scope="module")
def forms():
    """Two runs, and where the source may be."""
    folds = [fold(), fold((84.1, 21.8), 1800.0)]
    window = Window(83.6, 22.0, 0.3, 0.2)
    names = [f"photon {i}" for i in range(120)]
    moving = LocatedPhotons(folds, [f.dispersion() for f in folds], window, names=names)
    return folds, moving, LocatedNumber(folds, window)


@pytest.mark.slow
def test_a_point_is_what_it_is_at_rest(forms):
    folds, moving, number = forms
    marginals = jax.jit(lambda x: moving.log_marginal(Located(Point(x[0], x[1]), SPECTRUM)).value)
    for place in PLACES:
        got = np.asarray(marginals(jnp.array(place)))
        rest = [at_rest(f, Point(*place)) for f in folds]
        want = np.concatenate([r[0] for r in rest])
        # Farther out in its wings are fewer than the truncation of the photons.
        bright = want > want.max() + np.log(TRUNCATION)
        assert bright.sum() > 30
        assert np.allclose(got[bright], want[bright], atol=1e-4)
        expected = np.logaddexp(rest[0][1], rest[1][1])
        found = number.log_marginal(Located(Point(*place), SPECTRUM)).value[0]
        # The rings at rest are a sum over 1152 places.
        assert abs(found - expected) < 1e-3


def test_an_extent_is_a_map(forms):
    folds, moving, number = forms
    sky = Gaussian(83.7, 22.05, 0.15)
    rest = [at_rest(f, sky) for f in folds]
    want = np.concatenate([r[0] for r in rest])
    got = np.asarray(moving.log_marginal(Located(sky, SPECTRUM)).value)
    # Three extents away from the centre, whose response the form takes, a map has another one.
    place = np.tile(np.array([photons()["lon"], photons()["lat"]]), 2)
    near = np.hypot((place[0] - sky.lon) * np.cos(np.deg2rad(sky.lat)), place[1] - sky.lat) < 0.3
    assert near.sum() > 25
    assert np.allclose(got[near], want[near], atol=0.05)
    assert abs(np.mean(got[near] - want[near])) < 0.01
    found = number.log_marginal(Located(sky, SPECTRUM)).value[0]
    assert abs(found - np.logaddexp(rest[0][1], rest[1][1])) < 5e-3


def test_the_number_at_the_region_s_edge_is_smooth_and_right():
    one = fold()
    number = LocatedNumber([one], Window(84.5, 22.0, 0.3, 0.0))
    counts = jax.jit(lambda lon: number.counts(Point(lon, jnp.array(22.0))) @ NODES**-2.5)
    lon = np.linspace(84.3, 84.8, 101)
    seen = np.array([counts(x) for x in lon])
    # It falls without a step: no second difference is more than a part of the largest fall.
    assert (np.diff(seen) < 0).all()
    assert abs(np.diff(seen, 2)).max() < 0.15 * abs(np.diff(seen)).max()
    for i in (10, 60):
        want = one.density(Point(lon[i], 22.0))[1] @ NODES**-2.5
        assert abs(seen[i] / want - 1.0) < 0.01


@pytest.mark.slow
def test_gradients_are_those_of_differences(forms):
    _, moving, number = forms

    def log_likelihood(x):
        sky = Gaussian(x[0], x[1], x[2])
        spectrum = PowerLaw(x[3], low=0.1, high=100.0, log_amplitude=x[4])
        source = moving.log_marginal(Located(sky, spectrum)).value
        expected = number.log_marginal(Located(sky, spectrum)).value[0]
        return jnp.sum(jnp.logaddexp(source, jnp.log(1e4))) - jnp.exp(expected)

    value = jax.jit(log_likelihood)
    x = jnp.array([83.68, 21.93, 0.07, 2.4, np.log(3e-11)])
    slope = np.asarray(jax.jit(jax.grad(log_likelihood))(x))
    for i, step in enumerate(np.array([1e-4, 1e-4, 1e-4, 1e-4, 1e-4])):
        d = np.zeros(5)
        d[i] = step
        difference = (value(x + d) - value(x - d)) / (2 * step)
        assert abs(slope[i] - difference) < 1e-4 * (1.0 + abs(difference)), i


def test_draws_are_from_the_photons_posteriors(forms):
    folds, moving, _ = forms
    density = Located(Point(83.6, 22.0), SPECTRUM)
    draws = np.asarray(moving.draw(density, jax.random.key(2))["energy"])
    near = np.asarray(moving.near)
    assert np.isnan(draws[~near]).all()
    # Exactly, from the weights of the nodes.
    mass = np.asarray(moving.hats.masses(SPECTRUM)[0])
    weight = np.concatenate([f.dispersion() * f.density(density.sky)[0] for f in folds]) * mass
    weight = weight[near] / weight[near].sum(1, keepdims=True)
    mean = weight @ np.log(NODES)
    spread = np.sqrt(weight @ np.log(NODES) ** 2 - mean**2)
    pull = (np.log(draws[near]) - mean).sum() / np.sqrt(np.sum(spread**2))
    assert abs(pull) < 4.0
    assert abs(np.std((np.log(draws[near]) - mean) / spread) - 1.0) < 0.3


def test_the_window_holds_the_prior():
    prior = Prior({"lon": dist.Uniform(359.5, 360.5), "lat": dist.Normal(1.0, 0.1), "s": 0.1})
    window = window_of(lambda h: Gaussian(h["lon"], h["lat"], h["s"]), prior, "source")
    assert abs((window.lon + 180) % 360 - 180) < 0.01
    assert abs(window.lat - 1.0) < 0.01
    assert 0.55 < window.radius < 0.8
    assert abs(window.extent - 0.12) < 1e-6


@pytest.mark.parametrize(
    ("prior", "sky", "message"),
    [
        ({"lon": 0.0, "x": 1.0}, lambda h: Cone(h["lon"], 0.0, h["x"]), "must be a Point"),
        ({"lon": dist.Uniform(0.0, 90.0)}, lambda h: Point(h["lon"], 0.0), "field of view"),
        ({"s": dist.Normal(0.0, 1.0)}, lambda h: Gaussian(0.0, 0.0, h["s"]), "negative"),
    ],
)
def test_a_prior_that_cannot_be(prior, sky, message):
    with pytest.raises(InputError, match=message):
        window_of(sky, Prior(prior), "source")


def crab(h):
    return Point(h["lon"], h["lat"])


def observation(**columns) -> Observation:
    return Observation(
        tables=TABLES, pointing=(83.2, 22.3), livetime=3600.0, cut=CUT, name="a", **columns
    )


@pytest.mark.slow
def test_a_model_with_a_moving_source_and_a_scaled_background():
    source = Source(sky=crab, spectrum=SPECTRUM)
    assert source.moves and not source.is_fixed
    assert not Source(sky=Isotropic(), spectrum=SPECTRUM).moves
    assert not Source(sky=lambda lon, lat: 0.0 * lon, spectrum=SPECTRUM).moves
    tree = {"crab": source, "ccr": Background(norm=lambda h, run: h[f"norm_{run}"])}
    prior = {"lon": dist.Uniform(83.5, 83.7), "lat": dist.Uniform(21.9, 22.1)}
    prior |= {"crab": 1.0, "ccr": 1.0, "norm_a": dist.LogNormal(0.0, 0.3)}
    one = observation(**photons())
    model = photon_model([one], tree, Prior(prior), rate="rates")
    h = {"lon": 83.62, "lat": 21.98, "crab": 1.0, "ccr": 1.0, "norm_a": 1.3}
    still = {"crab": source.at(h), "ccr": Background()}
    fixed = photon_model(
        [one], still, Prior({"crab": dist.Uniform(0.0, 2.0), "ccr": 1.3}), rate="rates"
    )
    got, want = model.log_likelihood(h).value, fixed.log_likelihood({"crab": 1.0, "ccr": 1.3}).value
    assert abs(got - want) < 0.02


def test_a_photon_that_nothing_can_have_made_is_named():
    far = {"energy": [5.0, 5.0], "lon": [83.6, 84.6], "lat": [22.0, 22.0]}
    prior = Prior({"lon": dist.Uniform(83.55, 83.65), "lat": 22.0, "crab": 1.0})
    with pytest.raises(InputError, match="photon 1"):
        photon_model([observation(**far)], {"crab": Source(crab, SPECTRUM)}, prior, rate="rates")


@pytest.mark.slow
def test_a_simulated_position_is_found():
    from skycensus import NUTS
    from skycensus.gamma.expected import expected_counts
    from skycensus.gamma.simulate import simulate

    truth = {"lon": 83.63, "lat": 22.01, "index": 2.6, "log_amplitude": np.log(3.5e-11)}

    def spectrum(h):
        return PowerLaw(h["index"], low=0.05, high=200.0, log_amplitude=h["log_amplitude"])

    source = Source(sky=crab, spectrum=spectrum)
    still = {"crab": source.at(truth), "ccr": Background()}
    box = Cut(Box((83.0, 84.2), (21.5, 22.5)), 0.5, 20.0)
    empty = Observation(tables=TABLES, pointing=(83.2, 22.3), livetime=1200.0, cut=box)
    rng = np.random.default_rng(1)
    counts = {n: int(rng.poisson(x)) for n, x in expected_counts(empty, still, {}).items()}
    seen, _ = simulate(empty, still, {}, counts, jax.random.key(1))
    prior = {"lon": dist.Uniform(83.4, 83.8), "lat": dist.Uniform(21.8, 22.2)}
    prior |= {"index": dist.Uniform(1.5, 4.0), "log_amplitude": dist.Uniform(-28.0, -20.0)}
    prior |= {"crab": 1.0, "ccr": dist.LogNormal(0.0, 1.0)}
    tree = {"crab": source, "ccr": Background()}
    model = photon_model([seen], tree, Prior(prior), rate="rates")
    result = NUTS(num_warmup=200, num_samples=300, num_chains=2).run(
        model.target(), jax.random.key(3)
    )
    for name, value in truth.items():
        draws = np.asarray(result.draws[name])
        assert abs(draws.mean() - value) < 4.0 * draws.std(), name
    assert np.std(result.draws["lon"]) < 0.02
