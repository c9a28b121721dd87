import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from skycensus import Grid, HierarchicalModel, Joint, Prior, Samples, figures
from skycensus.gw import mass, redshift
from skycensus.plots import save_figures
from skycensus.result import Result, Status

TRUTH = {
    "alpha_pl_0": 2.0,
    "beta_pl_0": 1.0,
    "mmin_pl_0": 6.0,
    "mmax_pl_0": 45.0,
    "redshift_kappa_pl_0": 2.5,
    "redshift_z_max_pl_0": 1.0,
    "log_rate_0": 3.0,
}
PRIOR = Prior(
    {name: dist.Uniform(value - 2, value + 2) for name, value in TRUTH.items()}
    | {"redshift_z_max_pl_0": 1.0}
)


@pytest.fixture(scope="module")
def model():
    population = mass.n_power_laws_m_gaussians(1, 0, extra=[redshift.power_law])
    rng = np.random.default_rng(8)
    truth = population({name: np.asarray(value) for name, value in TRUTH.items()})
    found = {n: np.asarray(x) for n, x in truth.sample(jax.random.key(1), (3000,)).items()}
    log_ref = np.asarray(truth.log_prob(jax.tree.map(jnp.asarray, found))) - 3.0
    objects = []
    for i in range(8):
        around = {n: x[i] * np.exp(0.1 * rng.normal(size=200)) for n, x in found.items()}
        objects.append(around)
    return HierarchicalModel(
        PRIOR,
        population,
        Samples(objects, [np.zeros(200)] * 8),
        selection=Samples([found], [log_ref], num_drawn=[10_000]),
    )


@pytest.fixture
def result():
    rng = np.random.default_rng(9)
    free = {name: value for name, value in TRUTH.items() if name in PRIOR.free}
    draws = {name: value + 0.1 * rng.normal(size=(1, 60)) for name, value in free.items()}
    return Result(draws, Status(True), truth=TRUTH, fixed=dict(PRIOR.fixed))


@pytest.mark.slow
def test_every_figure_of_a_gravitational_wave_model(model, result, tmp_path):
    found = figures.standard_figures(model, result, key=jax.random.key(0), num_draws=20)
    names = {"mass_1_source", "mass_2_source", "redshift"}
    expected = {f"{kind}_{n}" for n in names for kind in ("population", "objects", "observed")}
    assert set(found) == expected | {"corner", "trace", "rate"}
    new = {name: found[name] for name in ("rate", "population_mass_2_source", "observed_redshift")}
    assert all(path.stat().st_size > 5000 for path in save_figures(new, tmp_path))
    rate = found["rate"].axes[0]
    assert "Gpc" in rate.get_ylabel()
    median, truth = (np.asarray(line.get_ydata()) for line in rate.lines)
    z = np.asarray(rate.lines[1].get_xdata())
    np.testing.assert_allclose(truth, np.exp(3) * (1 + z) ** 2.5, rtol=1e-10)
    np.testing.assert_allclose(median[0], np.exp(3), rtol=0.15)


def test_a_normalised_population_of_tabulated_objects():
    def population(h):
        return Joint(x=dist.Normal(h["loc"], 1.0))

    x = np.linspace(-5, 5, 51)
    grid = Grid({"x": x}, -0.5 * (x - np.ones((3, 1))) ** 2, np.log(0.2))
    model = HierarchicalModel(Prior({"loc": dist.Normal(0, 9)}), population, grid, rate="shape")
    loc = 0.1 * np.random.default_rng(1).normal(size=(2, 40))
    result = Result({"loc": loc}, Status(True))
    found = figures.standard_figures(model, result, key=jax.random.key(0), num_draws=10)
    assert set(found) == {"corner", "trace", "population_x"}
    axes = found["population_x"].axes[0]
    assert axes.get_ylabel() == "probability density in x"
    assert abs(np.max(axes.lines[0].get_ydata()) - 0.4) < 0.02
