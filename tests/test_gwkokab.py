"""GWKokab's commands: how options and files map onto objects, and one tiny run of each command."""

import json
import math
import subprocess
import sys
from pathlib import Path

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skycensus import gwkokab
from skycensus.errors import InputError
from skycensus.gw.neural import Network, write_network
from skycensus.gwkokab import files, genie, model, selection

MASSES = ("mass_1_source", "mass_2_source")
SRC = Path(__file__).resolve().parents[1] / "src"

PRIOR = {
    "log_rate_0": {"dist": "Uniform", "low": -5.0, "high": 8.0},
    "alpha_pl_0": {"dist": "Uniform", "low": -5.0, "high": 5.0},
    "beta_pl_0": 0.0,
    "mmin_pl_0": 5.0,
    "mmax_pl_0": {"dist": "Uniform", "low": 60.0, "high": 100.0},
}
NUTS_FORM = {
    "kernel": {"max_tree_depth": 6},
    "mcmc": {
        "num_warmup": 3000,
        "num_samples": 1000,
        "num_chains": 2,
        "thinning": 1,
        "chain_method": "vectorized",
        "progress_bar": True,
        "jit_model_args": True,
    },
}
# The tutorial's numbers, as printed in it.
BUNDLE = {
    "chain_batch_size": 0,
    "n_chains": 100,
    "batch_size": 10000,
    "n_epochs": 4,
    "n_max_examples": 200000,
    "history_window": 2000,
    "n_NFproposal_batch_size": 50,
    "n_global_steps": 100,
    "n_local_steps": 100,
    "n_production_loops": 10,
    "n_training_loops": 10,
    "global_thinning": 4,
    "local_thinning": 4,
    "local_sampler_name": "hmc",
    "step_size": 0.01,
    "condition_matrix": 1.0,
    "n_leapfrog": 5,
    "rq_spline_hidden_units": [64, 64],
    "rq_spline_n_bins": 10,
    "rq_spline_n_layers": 8,
    "rq_spline_range": [-10.0, 10.0],
    "learning_rate": 0.001,
    "verbose": False,
}
FLOW_FORM = {"data_dump": {"n_samples": 10000}, "bundle_config": BUNDLE}


def write(path: Path, value: object) -> Path:
    path.write_text(json.dumps(value))
    return path


@pytest.fixture
def network(tmp_path):
    """A network with ln VT = -4 + 0.05 m1, in GWKokab's layout."""
    weights = (jnp.array([[0.05, 0.0], [0.0, 0.0]]), jnp.array([[1.0, 0.0]]))
    biases = (jnp.array([0.0, 0.0]), jnp.array([-4.0]))
    path = tmp_path / "vt.hdf5"
    write_network(Network(weights, biases, MASSES, True), path)
    return path


# ---- options -------------------------------------------------------------------------------------


def parse(*words: str):
    return gwkokab.analysis_parser("n_sage_n_pls_m_gs", "NUTS").parse_args(words)


def test_the_tutorials_command_line():
    options = parse(
        *("--seed", "37", "--n-pl", "1", "--n-g", "0", "--posterior-regex", "event_*.dat"),
        *("--posterior-columns", *MASSES, "--pmean-cfg", "pmean.json"),
        *("--prior-cfg", "prior.json", "--sampler-cfg", "numpyro_config.json"),
        *("--n-buckets", "10"),
    )
    assert (options.seed, options.n_pl, options.n_g) == (37, 1, 0)
    assert options.posterior_columns == list(MASSES)
    assert options.out == "./inference" and options.extras == [] and not options.overwrite


def test_names_of_a_version_earlier_and_defaults():
    options = parse(
        *("--n-pl", "1", "--n-g", "1", "--posterior-regex", "x", "--pmean-json", "a"),
        *("--prior-json", "b", "--sampler-config", "c", "--add-beta-spin", "--add-redshift"),
    )
    assert (options.pmean_cfg, options.prior_cfg, options.sampler_cfg) == ("a", "b", "c")
    assert options.extras == ["beta-spin-magnitude", "powerlaw-redshift"]
    assert options.seed == 37
    options = parse("--posterior-regex", "x", "--sampler-cfg", "c")
    assert (options.pmean_cfg, options.prior_cfg) == ("pmean.json", "prior.json")
    # A list made by one parse must not be the default of the next.
    assert options.extras == []


@pytest.mark.parametrize("main", ["nuts_main", "flow_mcmc_main", "genie_main"])
def test_help_is_quick(main):
    code = f"import sys; from skycensus.gwkokab import {main} as m\ntry: m(['--help'])\n"
    code += "except SystemExit as e: print(e.code, 'jax' in sys.modules, 'h5py' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": str(SRC)}, capture_output=True, text=True
    )
    assert done.stdout.splitlines()[-1] == "0 False False", done.stderr
    assert "--seed" in done.stdout and "--n-pl" in done.stdout


@pytest.mark.parametrize("extra", model.EXTRAS)
def test_every_extra_makes_a_population_over_its_parameters(extra):
    population = model.make_population(1, 1, [extra])
    assert population.parameters == (*MASSES, *model.EXTRAS[extra][0])
    from skycensus.model import hyperparameter_names

    required, optional = hyperparameter_names(population.function)
    assert {"log_rate_0", "log_rate_1", "alpha_pl_0", "m1_loc_g_0"} <= set(required)
    # Any hyperparameters will do to see what the density is over.
    h = {name: jnp.asarray(0.02 if "variance" in name else 0.3) for name in required}
    assert set(population.function(h).names) == set(population.parameters)
    stems = {n.rsplit("_", 2)[0] for n in (*required, *optional)}
    named = {
        "beta-spin-magnitude": {"a_1_mean", "a_2_variance"},
        "truncated-normal-spin-z": {"spin_1z_loc", "spin_2z_high"},
        "chi-eff-mixture": {"chi_eff_zeta", "chi_eff_comp1_low"},
        "tilt": {"cos_tilt_zeta", "cos_tilt_1_loc", "cos_tilt_2_scale"},
        "truncated-normal-eccentricity": {"eccentricity_loc", "eccentricity_high"},
        "madau-dickinson-redshift": {"redshift_kappa", "redshift_gamma", "redshift_z_peak"},
        "right-ascension": {"ra_low", "ra_high"},
    }
    assert named.get(extra, set()) <= stems


def test_beta_distributions_with_a_pole_are_outside_the_prior():
    from skycensus.model import hyperparameter_names

    population = model.make_population(1, 1, ["beta-spin-magnitude"]).function
    required, optional = hyperparameter_names(population)
    assert "m1_low_g_0" in optional
    good = {name: jnp.asarray(0.02 if "variance" in name else 0.3) for name in required}
    good |= {"mmin_pl_0": jnp.asarray(5.0), "mmax_pl_0": jnp.asarray(80.0)}
    values = {"mass_1_source": 30.0, "mass_2_source": 20.0, "a_1": 0.2, "a_2": 0.1}
    theta = {name: jnp.asarray(x) for name, x in values.items()}

    @jax.jit
    def log_prob(h):
        return population(h).log_prob(theta)

    @jax.jit
    def slopes(h):
        return jax.grad(lambda h: population(h).log_prob(theta))(h)

    for bad in ({"a_1_variance_g_0": 0.5}, {"a_2_mean_pl_0": 0.05}, {"a_1_mean_pl_0": 1.5}):
        h = good | {name: jnp.asarray(x) for name, x in bad.items()}
        assert log_prob(h) == -np.inf
        assert all(np.all(np.isfinite(x)) for x in slopes(h).values())
    assert np.isfinite(log_prob(good))


def test_parameters_come_in_gwkokabs_order_and_once():
    population = model.make_population(1, 0, ["powerlaw-redshift", "tilt", "beta-spin-magnitude"])
    assert population.parameters == (
        *(*MASSES, "a_1", "a_2", "cos_tilt_1", "cos_tilt_2", "redshift"),
    )
    with pytest.raises(InputError, match="--add-beta-spin-magnitude and --add-spin-magnitude-mix"):
        model.make_population(1, 0, ["beta-spin-magnitude", "spin-magnitude-mixture"])
    with pytest.raises(InputError, match="--n-pl and --n-g"):
        model.make_population(1, None)


# ---- priors --------------------------------------------------------------------------------------


def test_priors_with_patterns_constants_aliases_and_null():
    population = model.make_population(2, 1)
    uniform = {"dist": "Uniform", "low": 1.0, "high": 5.0}
    entries = {
        "log_rate_.*": uniform,
        "alpha_pl_0": uniform,
        "alpha_pl_1": "alpha_pl_0",
        r"beta_pl_\d": 0.0,
        "mmin_pl_.*": 5,
        "mmax_pl_.*": 80,
        "m._loc_g_0": 30,
        "m._scale_g_0": 4.0,
        "m._low_g_.*": 3.0,
        "m1_high_g_0": None,
        "m2_high_g_0": None,
    }
    prior = model.resolve(entries, population, "prior file 'p'")
    assert set(prior.free) == {"log_rate_0", "log_rate_1", "log_rate_2", "alpha_pl_0"}
    assert prior.same_as == {"alpha_pl_1": "alpha_pl_0"}
    assert prior.fixed["m1_low_g_0"] == 3.0 and "m1_high_g_0" not in prior.fixed
    with pytest.raises(InputError, match=r"(?s)prior file 'p'.*did you mean"):
        model.resolve(entries | {"alpa_pl_0": 2.0}, population, "prior file 'p'")


# ---- sampler files -------------------------------------------------------------------------------


def test_nuts_file_of_the_tutorial(tmp_path):
    settings = files.read_sampler(write(tmp_path / "n.json", NUTS_FORM), "nuts")
    sampler = files.make_sampler("nuts", settings)
    assert (sampler.num_warmup, sampler.num_samples, sampler.num_chains) == (3000, 1000, 2)
    assert (sampler.max_tree_depth, sampler.chain_method) == (6, "vectorized")
    assert settings.progress and settings.notes == ()
    newer = {"sampler_name": "numpyro", **NUTS_FORM}
    assert files.read_sampler(write(tmp_path / "m.json", newer), "nuts") == settings


def test_nuts_values_that_become_something_else(tmp_path):
    form = {
        "kernel": {"max_tree_depth": [5, 8], "dense_mass": [["a", "b"]], "step_size": 0.1},
        "mcmc": {"num_chains": 10, "chain_method": "parallel", "progress_bar": False},
    }
    settings = files.read_sampler(write(tmp_path / "n.json", form), "nuts")
    assert settings.fields == {
        "max_tree_depth": 8,
        "dense_mass": True,
        "num_chains": 10,
        "chain_method": "auto",
    }
    assert len(settings.notes) == 2 and not settings.progress


def test_flow_file_in_both_forms(tmp_path):
    settings = files.read_sampler(write(tmp_path / "f.json", FLOW_FORM), "flow_mcmc")
    sampler = files.make_sampler("flow_mcmc", settings)
    assert (sampler.num_chains, sampler.num_production_loops, sampler.num_epochs) == (100, 10, 4)
    assert (sampler.num_local_steps, sampler.local_thinning, sampler.num_leapfrog) == (100, 4, 5)
    assert (sampler.num_layers, sampler.num_bins, sampler.max_examples) == (8, 10, 200000)
    assert (sampler.proposal_batch_size, sampler.num_flow_draws) == (50, 10000)
    assert sampler.hidden_units == [64, 64] and sampler.local_sampler == "hmc"
    # The step is in units that have no meaning for the scaled coordinates here.
    assert sampler.step_size is None and "step_size" in settings.notes[0]
    flat = {"sampler_name": "flowMC", **BUNDLE, "mass_matrix": 1.0}
    del flat["condition_matrix"]
    newer = files.read_sampler(write(tmp_path / "g.json", flat), "flow_mcmc")
    assert newer.fields == {k: v for k, v in settings.fields.items() if k != "num_flow_draws"}
    assert set(BUNDLE) - {"verbose"} == set(files._FLOW) | {"step_size", "condition_matrix"}


def test_reference_sampler_files(shared, require_path):
    folder = require_path(shared / "reference/gwkokab")
    nuts = files.read_sampler(folder / "numpyro_config.json", "nuts")
    assert files.make_sampler("nuts", nuts).num_chains == 4
    flow = files.read_sampler(folder / "flowMC_config.json", "flow_mcmc")
    assert files.make_sampler("flow_mcmc", flow).num_chains == 20


@pytest.mark.parametrize(
    ("kind", "form", "message"),
    [
        ("nuts", {"kernel": {"max_treedepth": 5}}, "did you mean 'max_tree_depth'"),
        ("nuts", {"mcmc": {"num_sample": 5}}, "did you mean 'num_samples'"),
        ("nuts", {"mcmc": {"num_samples": 0}}, "num_samples = 0 must be a positive whole"),
        ("nuts", {"mcmc": {"chain_method": "fast"}}, "chain_method = 'fast'"),
        ("nuts", {"kernel": {"adapt_step_size": False}}, "adapt_step_size = False is not off"),
        ("nuts", {"kernels": {}}, "did you mean 'kernel'"),
        ("nuts", FLOW_FORM, "one for f_sage_n_pls_m_gs"),
        ("flow_mcmc", NUTS_FORM, "one for n_sage_n_pls_m_gs"),
        ("nuts", {"sampler_name": "flowMC"}, "one for f_sage_n_pls_m_gs"),
        ("nuts", {"sampler_name": "stan"}, "sampler_name = 'stan'"),
        ("flow_mcmc", {"bundle_config": {"n_chain": 5}}, "did you mean 'n_chains'"),
        ("flow_mcmc", {"data_dump": {"n_sample": 5}}, "did you mean 'n_samples'"),
    ],
)
def test_wrong_sampler_files(tmp_path, kind, form, message):
    with pytest.raises(InputError, match=message):
        files.read_sampler(write(tmp_path / "s.json", form), kind)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match=r"sampler file .* cannot be read"):
        files.read_sampler(tmp_path / "none.json", "nuts")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(InputError, match="is not valid JSON"):
        files.read_json(tmp_path / "bad.json", "prior")
    (tmp_path / "twice.json").write_text('{"a": 1, "a": 2}')
    with pytest.raises(InputError, match="repeated keys"):
        files.read_json(tmp_path / "twice.json", "prior")
    with pytest.raises(InputError, match="must hold an object"):
        files.read_json(write(tmp_path / "list.json", []), "prior")


# ---- pmean files ---------------------------------------------------------------------------------


def pmean_of(path: Path, **value: object):
    return files.read_pmean(write(path / "pmean.json", value))


def test_pmean_defaults_and_paths(tmp_path, network, monkeypatch):
    out = pmean_of(tmp_path, estimator_type="neural_vt", filename="vt.hdf5")
    assert (out["num_samples"], out["time_scale"], out["batch_size"]) == (1000, 1.0, None)
    assert out["filename"] == tmp_path / "vt.hdf5"
    monkeypatch.chdir(tmp_path)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    out = pmean_of(elsewhere, estimator_type="neural_pdet", filename="vt.hdf5", time_scale=2)
    assert out["filename"] == Path("vt.hdf5") and out["time_scale"] == 2
    injection = pmean_of(tmp_path, estimator_type="injection", filename="vt.hdf5", far_cut=2.0)
    assert (injection["far_cut"], injection["snr_cut"]) == (2.0, 10.0)
    with pytest.raises(InputError, match=r"there is no file '.*/no.hdf5' nor '.*/elsewhere/no.h"):
        pmean_of(elsewhere, estimator_type="neural_vt", filename="no.hdf5")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"estimator_type": "neural"}, "did you mean 'neural_"),
        ({}, "estimator_type = None"),
        ({"estimator_type": "neural_vt"}, "filename missing"),
        ({"estimator_type": "neural_vt", "filename": "x", "timescale": 1}, "mean 'time_scale'"),
        ({"estimator_type": "injection", "filename": "x", "time_scale": 1}, "no key 'time_scale'"),
        ({"estimator_type": "neural_vt", "filename": "x", "time_scale": -1}, "must be a positive"),
        ({"estimator_type": "neural_vt", "filename": "x", "num_samples": 1.5}, "positive whole"),
        ({"estimator_type": "custom", "filename": "x"}, "python_module_path, kwargs missing"),
    ],
)
def test_wrong_pmean_files(tmp_path, value, message):
    with pytest.raises(InputError, match=message):
        pmean_of(tmp_path, **value)


# ---- selection -----------------------------------------------------------------------------------


def power_law():
    population = model.make_population(1, 0)
    return population, model.resolve(PRIOR, population, "prior")


H = {
    "log_rate_0": jnp.asarray(3.0),
    "alpha_pl_0": jnp.asarray(2.0),
    "beta_pl_0": jnp.asarray(0.0),
    "mmin_pl_0": jnp.asarray(5.0),
    "mmax_pl_0": jnp.asarray(80.0),
}


def expected_volume() -> float:
    """ln of the integral of the network's VT over the density at H, by quadrature in m1."""
    nodes, weights = np.polynomial.legendre.leggauss(200)
    m1 = 5.0 + 75.0 * (nodes + 1.0) / 2.0
    p = m1**-2.0 / (1.0 / 5.0 - 1.0 / 80.0)
    return 3.0 + math.log(np.sum(weights * 37.5 * p * np.exp(-4.0 + 0.05 * m1)))


def test_neural_vt_as_a_selection(tmp_path, network, monkeypatch):
    monkeypatch.setattr(selection, "MIN_SELECTION_DRAWS", 2048)
    population, prior = power_law()
    pmean = pmean_of(tmp_path, estimator_type="neural_vt", filename="vt.hdf5", time_scale=2.0)
    made = selection.read_selection(pmean, population, prior, jax.random.key(0))
    assert made.log_exposure == math.log(2.0) and list(made.inputs) == [str(network)]
    assert made.form.num_draws[0] == 2048
    out = made.form.log_marginal(population.function(H))
    assert abs(float(out.value[0]) - expected_volume()) < 3.0 * math.sqrt(float(out.variance[0]))
    more = pmean | {"num_samples": 3000}
    made = selection.read_selection(more, population, prior, jax.random.key(0))
    assert made.form.num_draws[0] == 3000


def test_networks_see_binaries_only_and_probabilities_end_at_one(tmp_path, network):
    population, _ = power_law()
    theta = {"mass_1_source": jnp.array([90.0, 10.0]), "mass_2_source": jnp.array([20.0, 20.0])}
    volume = pmean_of(tmp_path, estimator_type="neural_vt", filename="vt.hdf5")
    np.testing.assert_allclose(
        selection.network_function(volume, population)(theta), [0.5, -np.inf], rtol=1e-6
    )
    probability = pmean_of(tmp_path, estimator_type="neural_pdet", filename="vt.hdf5")
    np.testing.assert_allclose(
        selection.network_function(probability, population)(theta), [0.0, -np.inf]
    )
    with_redshift = model.make_population(1, 0, ["powerlaw-redshift"])
    with pytest.raises(InputError, match="integrated over already"):
        selection.network_function(volume, with_redshift)
    write_network(
        Network((jnp.ones((1, 1)),), (jnp.zeros(1),), ("redshift",), True), tmp_path / "z.hdf5"
    )
    other = pmean_of(tmp_path, estimator_type="neural_pdet", filename="z.hdf5")
    with pytest.raises(InputError, match="needs redshift"):
        selection.network_function(other, population)


def write_injections(path: Path, **attrs: float) -> Path:
    rng = np.random.default_rng(0)
    m1 = rng.uniform(5.0, 80.0, 400)
    m2 = rng.uniform(5.0, m1)
    with h5py.File(path, "w") as file:
        file["mass_1_source"], file["mass_2_source"] = m1, m2
        file["p_draw"] = 1.0 / (75.0 * (m1 - 5.0))
        file.attrs.update({"total_generated": 1000, **attrs})
    return path


def test_injections_as_a_selection(tmp_path):
    population, prior = power_law()
    write_injections(tmp_path / "found.hdf5", T_obs_yr=0.5, VTmax_Gpc3=3.0)
    pmean = pmean_of(tmp_path, estimator_type="injection", filename="found.hdf5")
    made = selection.read_selection(pmean, population, prior, jax.random.key(0))
    assert made.log_exposure == math.log(1.5)
    assert (float(made.form.num_drawn[0]), float(made.form.num_draws[0])) == (1000.0, 400.0)
    # A cut that the file cannot answer is an error, GWKokab's default ones are not.
    pmean = pmean_of(tmp_path, estimator_type="injection", filename="found.hdf5", far_cut=1.0)
    with pytest.raises(InputError, match="far_cut was given"):
        selection.read_selection(pmean, population, prior, jax.random.key(0))
    write_injections(tmp_path / "found.hdf5")
    pmean = pmean_of(tmp_path, estimator_type="injection", filename="found.hdf5")
    with pytest.raises(InputError, match="T_obs_yr"):
        selection.read_selection(pmean, population, prior, jax.random.key(0))


CUSTOM = """
import jax.numpy as jnp
import jax

def custom_poisson_mean_estimator(key, parameters, filename, **kwargs):
    assert parameters == ("mass_1_source", "mass_2_source"), parameters
    assert filename.endswith("vt.hdf5")
    x = jnp.stack([jnp.linspace(6.0, 79.0, 50), jnp.full(50, 5.5)], axis=-1)

    def log_selection(x):
        return -3.0 + 0.01 * x[..., 0]

    def mean(model, x, T_obs, mode):
        assert mode == "all"
        draws = model.sample(key, (64,))
        parts = model.component_sample(key, (64,))
        assert draws.shape == (64, 2) and parts.shape == (64, 1, 2)
        assert model.component_log_probs(x).shape == (50, 1)
        value = T_obs * jnp.exp(model.log_scales).sum() * jnp.mean(jnp.exp(log_selection(draws)))
        return value + 0.0 * jnp.sum(jnp.exp(model.log_prob(x))), 0.01 * value**2

    return log_selection, mean, {"x": x, "T_obs": kwargs["T"], "mode": "all"}
"""


@pytest.fixture
def custom(tmp_path, network):
    (tmp_path / "mine.py").write_text(CUSTOM)
    return {
        "estimator_type": "custom",
        "filename": "vt.hdf5",
        "python_module_path": "mine.py",
        "kwargs": {"T": 2.0},
    }


def test_custom_estimators_as_a_selection(tmp_path, custom):
    population, prior = power_law()
    made = selection.read_selection(
        pmean_of(tmp_path, **custom), population, prior, jax.random.key(0)
    )
    assert made.log_exposure == 0.0 and len(made.inputs) == 2
    out = jax.jit(lambda h, form: form.log_marginal(population.function(h)))(H, made.form)
    # T R times the mean of the selection, e^-3 times a little more than one.
    assert 0.0 < float(out.value[0]) - (math.log(2.0) + 3.0 - 3.0) < 0.8
    np.testing.assert_allclose(out.variance, [0.01])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", "defines no function"),
        ("def custom_poisson_mean_estimator(*a, **k): return 3", "must return"),
    ],
)
def test_wrong_custom_modules(tmp_path, custom, text, message):
    (tmp_path / "mine.py").write_text(text)
    population, prior = power_law()
    with pytest.raises(InputError, match=message):
        selection.read_selection(pmean_of(tmp_path, **custom), population, prior, jax.random.key(0))


# ---- posteriors ----------------------------------------------------------------------------------


def write_events(folder: Path, *, header: str = " ".join(MASSES), num: int = 4) -> None:
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(1)
    width = len(header.split())
    for i in range(num):
        m1 = rng.normal(30.0, 2.0, 60)
        table = np.column_stack([m1, 0.7 * m1, np.full(60, -1.5)])[:, :width]
        np.savetxt(folder / f"event_{i}.dat", table, header=header, comments="")


def read(tmp_path, *columns, **more):
    words = ["--posterior-regex", str(tmp_path / "events/event_*.dat"), "--sampler-cfg", "x"]
    words += ["--n-pl", "1", "--n-g", "0", *more.get("words", ())]
    if columns:
        words += ["--posterior-columns", *columns]
    return gwkokab.read_posteriors(parse(*words), model.make_population(1, 0))


def test_posteriors_are_flat_or_have_a_column(tmp_path):
    write_events(tmp_path / "events")
    events = read(tmp_path, *MASSES)
    assert [e.name for e in events] == [f"event_{i}" for i in range(4)]
    assert set(events[0].draws) == set(MASSES) and not events[0].log_ref.any()
    # The parameters' own names mean themselves, in any order; no names mean these.
    for columns in (MASSES[::-1], ()):
        again = read(tmp_path, *columns)[0].draws["mass_1_source"]
        np.testing.assert_array_equal(again, events[0].draws["mass_1_source"])
    assert len(read(tmp_path, words=("--max-draws", "7"))[0]) == 7
    with pytest.raises(InputError, match="fewer than min_draws = 61"):
        read(tmp_path, words=("--min-draws", "61"))
    with pytest.raises(InputError, match=r"3 columns .* for the 2 parameters"):
        read(tmp_path, *MASSES, "redshift")
    with pytest.raises(InputError, match="no file matches"):
        read(tmp_path / "none")


def test_columns_by_place_and_the_log_prior_column(tmp_path):
    write_events(tmp_path / "events", header="big small log_prior")
    events = read(tmp_path, "big", "small", "log_prior")
    assert set(events[0].log_ref) == {-1.5}
    assert np.all(events[0].draws["mass_1_source"] > events[0].draws["mass_2_source"])


# ---- the commands, small -------------------------------------------------------------------------


@pytest.fixture
def problem(tmp_path, monkeypatch):
    """A folder with everything that the commands need."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SKYCENSUS_CACHE", "off")
    write_events(tmp_path / "events")
    write_injections(tmp_path / "found.hdf5", T_obs_yr=0.5)
    write(tmp_path / "prior.json", PRIOR)
    write(tmp_path / "pmean.json", {"estimator_type": "injection", "filename": "found.hdf5"})
    mcmc: dict = {"num_warmup": 20, "num_samples": 20, "num_chains": 2, "progress_bar": False}
    mcmc["chain_method"] = "vectorized"
    write(tmp_path / "nuts.json", {"kernel": {"max_tree_depth": 3}, "mcmc": mcmc})
    small: dict = {
        "n_chains": 4,
        "n_training_loops": 1,
        "n_production_loops": 1,
        "n_local_steps": 5,
    }
    small |= {"n_global_steps": 5, "n_epochs": 1, "batch_size": 10, "n_max_examples": 100}
    small |= {"rq_spline_n_layers": 2, "rq_spline_n_bins": 4, "rq_spline_hidden_units": [4, 4]}
    small |= {"global_thinning": 1, "local_thinning": 1, "n_NFproposal_batch_size": 5}
    write(tmp_path / "flow.json", {"data_dump": {"n_samples": 50}, "bundle_config": small})
    return [
        *("--n-pl", "1", "--n-g", "0", "--posterior-regex", "events/event_*.dat"),
        *("--posterior-columns", *MASSES, "--no-figures", "--n-buckets", "10"),
    ]


FREE = ["alpha_pl_0", "log_rate_0", "mmax_pl_0"]


@pytest.mark.parametrize(
    ("main", "sampler", "chains", "draws"),
    [
        pytest.param(gwkokab.nuts_main, "nuts.json", 2, 20, marks=pytest.mark.slow),
        pytest.param(gwkokab.flow_mcmc_main, "flow.json", 4, 10, marks=pytest.mark.slow),
    ],
)
def test_a_tiny_inference(problem, tmp_path, main, sampler, chains, draws, capsys):
    code = main([*problem, "--sampler-cfg", sampler])
    # Too short to converge: everything is written, and the reason told.
    assert code == 3 and "not converged" in capsys.readouterr().out
    out = tmp_path / "inference"
    assert {"result.nc", "summary.json", "samples.dat"} <= {p.name for p in out.iterdir()}
    summary = json.loads((out / "summary.json").read_text())
    assert sorted(summary["parameters"]) == FREE and summary["seed"] == 37
    assert {"prior.json", "pmean.json", sampler} <= {Path(p).name for p in summary["inputs"]}
    assert "events/event_0.dat" in summary["inputs"]
    assert summary["command"].startswith(f"{main.__name__[0]}_sage_n_pls_m_gs --n-pl 1")
    header = (out / "samples.dat").read_text().splitlines()[0]
    assert sorted(header.lstrip("# ").split()) == FREE
    assert np.loadtxt(out / "samples.dat").shape == (chains * draws, 3)
    for chain in range(chains):
        table = np.genfromtxt(out / f"chain_{chain}.dat", names=True)
        assert set(FREE) <= set(table.dtype.names or ()) and len(table) == draws
    before = (out / "summary.json").read_text()
    assert main([*problem, "--sampler-cfg", sampler]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert (out / "summary.json").read_text() == before


def test_bad_input_leaves_nothing(problem, tmp_path, capsys):
    write(tmp_path / "prior.json", PRIOR | {"alpa": 1.0})
    assert gwkokab.nuts_main([*problem, "--sampler-cfg", "nuts.json"]) == 2
    told = capsys.readouterr().err
    assert "prior.json" in told and "alpa" in told and "Traceback" not in told
    assert not (tmp_path / "inference").exists()


@pytest.mark.slow
def test_a_tiny_mock_catalogue(tmp_path, network, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SKYCENSUS_CACHE", "off")
    hyper = {name: float(x) for name, x in H.items()} | {"log_rate_0": 4.5}
    write(tmp_path / "model.json", {"N_pl": 1, "N_g": 0, **hyper})
    write(tmp_path / "err.json", {"scale_Mc": 1.0, "scale_eta": 1.0})
    write(tmp_path / "pmean.json", {"estimator_type": "neural_vt", "filename": "vt.hdf5"})
    words = ["--seed", "37", "--error-size", "100", "--num-realizations", "2"]
    words += ["--model-json", "model.json", "--pmean-json", "pmean.json", "--err-json", "err.json"]
    assert gwkokab.genie_main(words) == 0
    counts = []
    for i in range(2):
        folder = tmp_path / f"data/realization_{i}"
        found = np.genfromtxt(folder / "injections.dat", names=True)
        counts.append(len(found))
        assert found.dtype.names == MASSES and np.all(
            found["mass_2_source"] <= found["mass_1_source"]
        )
        assert len(np.genfromtxt(folder / "raw_injections.dat", names=True)) == len(found)
        posteriors = list((folder / "posteriors").glob("event_*.dat"))
        assert len(posteriors) == len(found)
        first = np.genfromtxt(sorted(posteriors)[0], names=True)
        assert first.dtype.names == MASSES and first.size <= 100
        truth = json.loads((folder / "truth.json").read_text())
        assert truth["truth"] == hyper
    mean = math.exp(expected_volume() + 1.5)
    assert counts[0] != counts[1] and abs(sum(counts) - 2.0 * mean) < 4.0 * math.sqrt(2.0 * mean)
    assert gwkokab.genie_main(words) == 2 and "--overwrite" in capsys.readouterr().err


def test_mock_catalogues_by_a_custom_function(tmp_path, custom, monkeypatch):
    monkeypatch.chdir(tmp_path)
    population, _ = power_law()
    density = population.function(H)
    pmean = pmean_of(tmp_path, **custom)
    found = genie._detection(pmean, population, density, jax.random.key(1))
    assert found.num_events is not None and found.function.largest > 0.0
    (tmp_path / "mine.py").write_text(CUSTOM.replace("return log_selection, m", "return None, m"))
    with pytest.raises(InputError, match="no log selection function"):
        genie._detection(pmean, population, density, jax.random.key(1))
    with pytest.raises(InputError, match="which injections were found"):
        genie._detection({"estimator_type": "injection"}, population, density, jax.random.key(1))


def test_mock_errors_of_other_parameters():
    parameters = (*MASSES, "eccentricity")
    errors = {"scale_Mc": 1.0, "scale_eta": 1.0, "eccentricity_scale": 0.1, "eccentricity_low": 0.0}
    made = genie.MockErrors(errors, parameters).prepare(parameters, None)
    truth = {"mass_1_source": 30.0, "mass_2_source": 15.0, "eccentricity": 0.05}
    draws = made.observe(np.random.default_rng(0), truth, 200).draws
    assert tuple(draws) == parameters and len({len(x) for x in draws.values()}) == 1
    assert np.all(draws["eccentricity"] >= 0.0) and np.std(draws["eccentricity"]) < 0.1
    with pytest.raises(InputError, match="eccentricity_scale missing"):
        genie.MockErrors({"scale_Mc": 1.0, "scale_eta": 1.0}, parameters)
    with pytest.raises(InputError, match="did you mean 'scale_Mc'"):
        genie.MockErrors({"scale_mc": 1.0}, MASSES)
