"""Latent objects: exact posteriors where they are known, and what must never pass as converged."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from skycensus import NUTS, HierarchicalModel, InputError, Joint, Mixture, Prior, Result, Target
from skycensus.analysis import analyse, choose_sampler
from skycensus.likelihood.coordinates import Coordinates
from skycensus.likelihood.latent import Centring, Latent, climb, envelope, fit, place
from skycensus.objects import object_posteriors


def normal(theta, data):
    return dist.Normal(theta["x"], data["sd"]).log_prob(data["y"])


def normals(h):
    return Joint(x=dist.Normal(h["mean"], jnp.exp(h["ln_sd"])))


PRIOR = Prior({"mean": dist.Normal(0.0, 5.0), "ln_sd": dist.Normal(-1.0, 2.0)})


def exact_normal_normal(y, sd, prior):
    """Mean and sd of the hyperparameters, and means of the objects, by a dense grid."""
    mean, ln_sd = np.meshgrid(np.linspace(-4, 5, 401), np.linspace(-9, 4, 601), indexing="ij")
    width = np.hypot(np.exp(ln_sd)[..., None], sd)
    log_p = np.asarray(dist.Normal(mean[..., None], width).log_prob(y)).sum(-1)
    log_p += np.asarray(prior.free["mean"].log_prob(mean) + prior.free["ln_sd"].log_prob(ln_sd))
    p = np.exp(log_p - log_p.max())
    p /= p.sum()
    out = {}
    for name, x in (("mean", mean), ("ln_sd", ln_sd)):
        centre = (p * x).sum()
        out[name] = centre, np.sqrt((p * (x - centre) ** 2).sum())
    weight = np.exp(2 * ln_sd)[..., None] / width**2
    objects = (p[..., None] * (weight * y + (1 - weight) * mean[..., None])).sum((0, 1))
    return out, objects


def agrees(result, exact, *, sds=4.0):
    rows = result.summary()
    for name, (mean, sd) in exact.items():
        row = rows[name]
        assert abs(row["mean"] - mean) < sds * row["mcse_mean"], name
        # The error of a standard deviation is about sd / sqrt(2 ess); tails are heavier.
        assert row["sd"] == pytest.approx(sd, rel=sds * 1.5 / np.sqrt(row["ess_tail"])), name


@pytest.fixture(scope="module")
def schools():
    """Rubin's eight schools: a funnel, because the data hardly bound the spread from below."""
    y = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0]) / 10.0
    sd = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0]) / 10.0
    form = Latent(normal, {"y": y, "sd": sd}, names=list("ABCDEFGH"))
    model = HierarchicalModel(PRIOR, normals, form, rate="shape")
    return model, analyse(model, NUTS(num_warmup=500, num_samples=1500), jax.random.key(1))


@pytest.mark.slow
def test_uninformative_objects_are_exact_without_divergences(schools):
    model, result = schools
    data = model.likelihood.data
    exact, objects = exact_normal_normal(np.asarray(data["y"]), np.asarray(data["sd"]), PRIOR)
    assert result.status.converged, str(result.status)
    agrees(result, exact)
    assert result.sample_stats["diverging"].sum() == 0
    for i, mean in enumerate(objects):
        row = result.latent_summary()[f"x[{'ABCDEFGH'[i]}]"]
        assert abs(row["mean"] - mean) < 4 * row["mcse_mean"]
        assert row["r_hat"] < 1.01


@pytest.mark.slow
def test_the_centred_model_diverges_there(schools):
    model, _ = schools
    data = model.likelihood.data

    def centred():
        mean = numpyro.sample("mean", dist.Normal(0.0, 5.0))
        ln_sd = numpyro.sample("ln_sd", dist.Normal(-1.0, 2.0))
        with numpyro.plate("schools", 8):
            x = numpyro.sample("x", dist.Normal(mean, jnp.exp(ln_sd)))
            numpyro.sample("y", dist.Normal(x, data["sd"]), obs=data["y"])

    sampler = NUTS(num_warmup=300, num_samples=500, dense_mass=False)
    result = sampler.run(Target.from_numpyro(centred), jax.random.key(1))
    assert result.sample_stats["diverging"].sum() > 0
    assert not result.status.converged


@pytest.mark.slow
def test_informative_objects_are_exact():
    rng = np.random.default_rng(2)
    sd = 10 ** rng.uniform(-2, 0.3, 30)
    y = rng.normal(0.7, 0.8, 30) + sd * rng.normal(size=30)
    form = Latent(normal, {"y": y, "sd": sd})
    model = HierarchicalModel(PRIOR, normals, form, rate="shape")
    result = analyse(model, NUTS(num_warmup=300, num_samples=1000), jax.random.key(2))
    exact, _ = exact_normal_normal(y, sd, PRIOR)
    assert result.status.converged, str(result.status)
    agrees(result, exact)
    # Where the coordinates are right, trajectories are short.
    assert result.sample_stats["num_steps"].mean() < 16


@pytest.mark.slow
def test_objects_of_latents_come_from_the_draws(schools):
    model, result = schools
    objects = object_posteriors(model, result, key=jax.random.key(3), num_draws=2000)
    assert objects.names == tuple("ABCDEFGH")
    assert objects.draws["x"].shape == (2000, 8)
    every = result.latents["x"].reshape(-1, 8)
    np.testing.assert_allclose(objects.draws["x"].mean(0), every.mean(0), atol=0.05)


def test_latents_stay_out_of_tables_and_survive_files(schools, tmp_path):
    model, result = schools
    assert set(result.draws) == set(model.prior.names)
    assert set(result.summary()) == set(model.prior.names)
    told = result.summary_json()
    assert set(told["parameters"]) == set(model.prior.names)
    assert list(told["latents"])[:2] == ["x[A]", "x[B]"]
    result.save(tmp_path / "result.nc")
    back = Result.load(tmp_path / "result.nc")
    np.testing.assert_array_equal(back.latents["x"], result.latents["x"])
    assert back.object_names == result.object_names
    posterior = result.to_arviz()["posterior"]
    assert posterior["x"].dims == ("chain", "draw", "object")


@pytest.mark.slow
def test_nothing_converges_while_one_latent_has_not():
    # Two hills for one object, far apart: chains stay where they are.
    y = np.array([0.0, 0.0, 0.1, -0.1, 0.2])
    two = np.array([0.0, 0.0, 0.0, 0.0, 1.0])

    def log_likelihood(theta, data):
        hill = dist.Normal(theta["x"], 0.1).log_prob(data["y"])
        other = dist.Normal(theta["x"], 0.1).log_prob(data["y"] + 5.0)
        return jnp.where(data["two"] > 0, jnp.logaddexp(hill, other), hill)

    form = Latent(log_likelihood, {"y": y, "two": two}, names=list("abcde"))
    fixed = Prior({"mean": dist.Normal(2.5, 0.01), "ln_sd": dist.Normal(1.0, 0.01)})
    target = HierarchicalModel(fixed, normals, form, rate="shape").target()

    class Split:
        """The target with starts on both hills."""

        def __getattr__(self, name):
            return getattr(target, name)

        def start_points(self, key, num):
            x = np.array(target.start_points(key, num))
            centre = np.asarray(jax.vmap(target.constrain)(jnp.asarray(x))["x"])[:, 4]
            scale = np.asarray(target._pilot.centring.precision)[4, 0, 0] ** 0.5
            x[::2, -1] += (5.2 - centre[::2]) * scale
            x[1::2, -1] += (0.2 - centre[1::2]) * scale
            return jnp.asarray(x)

    result = NUTS(num_warmup=200, num_samples=300, num_start=4).run(Split(), jax.random.key(4))
    assert not result.status.converged
    assert "x[e]" in str(result.status)


# ---- coordinates ---------------------------------------------------------------------------------


def test_conjugate_coordinates_are_independent_of_the_hyperparameters():
    """For normal-normal, z is the standardised conditional posterior at any hyperparameters."""
    sd = np.array([0.3, 5.0])
    form = Latent(normal, {"y": np.array([1.0, -2.0]), "sd": sd})
    centring = jax.jit(lambda h: fit(form, normals(h)))({"mean": 3.0, "ln_sd": 1.0}).centring
    placed = jax.jit(lambda h, c, z: place(Coordinates(normals(h)), c, z, {}))
    np.testing.assert_allclose(centring.precision[:, 0, 0], sd**-2.0, rtol=1e-9)
    for h in ({"mean": 0.0, "ln_sd": -2.0}, {"mean": -7.0, "ln_sd": 2.0}):
        prior_precision = np.exp(-2.0 * h["ln_sd"])
        width = (sd**-2.0 + prior_precision) ** -0.5
        mean = width**2 * (np.array([1.0, -2.0]) * sd**-2.0 + h["mean"] * prior_precision)
        for i, z in ((0, 0.7), (1, -1.3)):
            own = Centring(centring.precision[i], centring.shift[i])
            at = placed(h, own, jnp.array([z]))
            assert float(at.theta["x"]) == pytest.approx(mean[i] + width[i] * z, rel=1e-9)
            assert float(at.log_det) == pytest.approx(np.log(width[i]), rel=1e-9)


def test_jacobian_is_exact_for_several_bounded_conditional_parameters():
    density = Joint(
        {
            "m": dist.TruncatedNormal(1.0, 0.5, low=0.0),
            "q": lambda t: dist.Uniform(0.0, t["m"]),
            ("u", "v"): dist.MultivariateNormal(jnp.zeros(2), jnp.array([[1.0, 0.4], [0.4, 2.0]])),
        }
    )
    rng = np.random.default_rng(0)
    root = rng.normal(size=(4, 4))
    centring = Centring(jnp.asarray(root @ root.T), jnp.asarray(rng.normal(size=4)))

    def theta(z):
        at = place(Coordinates(density), centring, z, {})
        return jnp.stack(list(at.theta.values())), at.log_det

    z = jnp.array([0.3, -0.4, 0.8, 0.1])
    jacobian, log_det = jax.jit(jax.jacfwd(theta, has_aux=True))(z)
    assert float(log_det) == pytest.approx(np.linalg.slogdet(jacobian)[1])


def test_a_maximum_is_found_far_from_the_population():
    u, value, curvature = climb(lambda u: dist.Normal(40.0, 1e-3).log_prob(u[0]), 1)
    assert float(u[0]) == pytest.approx(40.0, abs=1e-9)
    assert float(curvature[0, 0]) == pytest.approx(1e6, rel=1e-6)
    assert float(value) == pytest.approx(float(dist.Normal(0.0, 1e-3).log_prob(0.0)))


def test_a_mixture_spans_its_leaves():
    density = Mixture(
        {"a": Joint(x=dist.Normal(0.0, 1.0)), "b": Joint(x=dist.Normal(4.0, 1.0))},
        log_weights={"a": 0.0, "b": 0.0},
    )
    spanned = envelope(density).factors["x"]
    assert float(spanned.loc) == pytest.approx(2.0)
    assert float(spanned.scale) == pytest.approx(np.sqrt(5.0))


@pytest.mark.slow
def test_mixture_posterior_and_memberships_are_exact():
    y = np.array([-0.3, 0.2, 0.4, 3.1, 8.0])
    sd = np.full(5, 0.5)

    def population(h):
        return Mixture(
            {"in": Joint(x=dist.Normal(0.0, 0.5)), "out": Joint(x=dist.Normal(4.0, 3.0))},
            log_weights={"in": jnp.log(h["w"]), "out": jnp.log1p(-h["w"])},
        )

    form = Latent(normal, {"y": y, "sd": sd})
    model = HierarchicalModel(Prior({"w": dist.Uniform(0, 1)}), population, form, rate="shape")
    result = analyse(model, NUTS(num_warmup=400, num_samples=2000), jax.random.key(5))
    w = (np.arange(2000) + 0.5) / 2000
    terms = [np.exp(np.asarray(dist.Normal(m, np.hypot(s, 0.5)).log_prob(y)))
             for m, s in ((0.0, 0.5), (4.0, 3.0))]  # fmt: skip
    each = w[:, None] * terms[0] + (1 - w[:, None]) * terms[1]
    p = each.prod(1) / each.prod(1).sum()
    mean = (p * w).sum()
    agrees(result, {"w": (mean, np.sqrt((p * (w - mean) ** 2).sum()))})
    objects = object_posteriors(model, result, key=jax.random.key(6), num_draws=4000)
    exact = (p[:, None] * w[:, None] * terms[0] / each).sum(0)
    np.testing.assert_allclose(objects.membership["in"], exact, atol=0.03)


@pytest.mark.slow
def test_truncated_latents_are_exact():
    """Distances near zero from poor parallaxes, against a grid over each object."""
    rng = np.random.default_rng(7)
    true = np.abs(rng.normal(0.5, 0.7, 12))
    err = 0.4 * np.ones(12)
    seen = true + err * rng.normal(size=12)

    def population(h):
        return Joint(x=dist.TruncatedNormal(h["mean"], 0.6, low=0.0))

    prior = Prior({"mean": dist.Normal(0.0, 1.0)})
    form = Latent(normal, {"y": seen, "sd": err})
    model = HierarchicalModel(prior, population, form, rate="shape")
    result = analyse(model, NUTS(num_warmup=400, num_samples=2000), jax.random.key(8))
    x = (np.arange(4000) + 0.5) * 1e-3
    mean = np.linspace(-4, 3, 701)
    like = np.exp(np.asarray(dist.Normal(x, err[0]).log_prob(seen[:, None])))
    p_x = np.exp(np.asarray(dist.TruncatedNormal(mean[:, None], 0.6, low=0.0).log_prob(x)))
    log_p = np.log(like @ p_x.T * 1e-3).sum(0) + np.asarray(prior.free["mean"].log_prob(mean))
    p = np.exp(log_p - log_p.max())
    p /= p.sum()
    centre = (p * mean).sum()
    assert result.status.converged, str(result.status)
    agrees(result, {"mean": (centre, np.sqrt((p * (mean - centre) ** 2).sum()))})
    assert (result.latents["x"] > 0).all()


@pytest.mark.slow
def test_known_columns_enter_the_population():
    rng = np.random.default_rng(9)
    x = rng.uniform(-1, 1, 40)
    y = 2.0 * x + 0.5 + 0.3 * rng.normal(size=40)

    def log_likelihood(theta, data):
        return dist.Normal(theta["v"], 0.2).log_prob(data["y"])

    def population(h):
        return Joint(v=lambda t: dist.Normal(h["m"] * t["x"] + h["b"], 0.3))

    prior = Prior({"m": dist.Normal(0.0, 5.0), "b": dist.Normal(0.0, 5.0)})
    form = Latent(log_likelihood, {"y": y}, given={"x": x})
    model = HierarchicalModel(prior, population, form, rate="shape")
    result = analyse(model, choose_sampler(model), jax.random.key(10))
    design = np.stack([x, np.ones(40)], axis=1)
    precision = design.T @ design / (0.2**2 + 0.3**2) + np.eye(2) / 25
    mean = np.linalg.solve(precision, design.T @ y / (0.2**2 + 0.3**2))
    sd = np.sqrt(np.diag(np.linalg.inv(precision)))
    agrees(result, {"m": (mean[0], sd[0]), "b": (mean[1], sd[1])})


def test_a_selection_counts_with_latents():
    """The target is that of the integrated model times each object's conditional density."""
    from skycensus import Grid

    y, sd = np.array([0.4, 1.5]), np.array([0.3, 0.6])
    form = Latent(normal, {"y": y, "sd": sd})
    nodes = np.linspace(-6, 6, 601)
    seen = Grid({"x": nodes}, -np.log1p(np.exp(-nodes))[None], np.log(nodes[1] - nodes[0]))
    model = HierarchicalModel(PRIOR, normals, form, selection=seen, rate="shape")
    target = model.target()
    z = jnp.concatenate(
        [target.unconstrain({"mean": 0.8, "ln_sd": -0.2})[:2], jnp.array([0.5, -1])]
    )
    h, log_l = jax.jit(lambda z, data: (target.constrain(z), target.log_likelihood(z, data)))(
        z, target.data
    )
    assert float(h["mean"]) == pytest.approx(0.8)
    width = np.exp(h["ln_sd"])
    detected = np.exp(np.asarray(dist.Normal(h["mean"], width).log_prob(nodes)))
    detected = np.log((detected / (1 + np.exp(-nodes))).sum() * (nodes[1] - nodes[0]))
    expected = np.asarray(dist.Normal(h["x"], sd).log_prob(y)).sum() - 2 * detected
    assert float(log_l) == pytest.approx(expected, rel=1e-6)


# ---- star cluster --------------------------------------------------------------------------------


def cluster_data(shared, require_path):
    from astropy.table import Table

    folder = require_path(shared / "reference" / "hierarchical")
    table = Table.read(folder / "cluster_parallax.ecsv")
    exact = json.loads((folder / "exact_cluster.json").read_text())["params"]
    exact = {name: (exact[name]["mean"], exact[name]["sd"]) for name in ("mu_r", "ln_std_r")}
    return np.asarray(table["parallax"]), np.asarray(table["parallax_error"]), exact


@pytest.mark.slow
def test_star_cluster_agrees_with_quadrature(shared, require_path):
    parallax, error, exact = cluster_data(shared, require_path)

    def log_likelihood(theta, data):
        return dist.Normal(1.0 / theta["r"], data["error"]).log_prob(data["parallax"])

    def population(h):
        return Joint(r=dist.TruncatedNormal(h["mu_r"], jnp.exp(h["ln_std_r"]), low=0.0))

    prior = Prior(
        {"mu_r": dist.TruncatedNormal(1.0, 2.0, low=0.0), "ln_std_r": dist.Uniform(-8.0, 0.0)}
    )
    form = Latent(log_likelihood, {"parallax": parallax, "error": error})
    model = HierarchicalModel(prior, population, form, rate="shape")
    result = analyse(model, NUTS(num_warmup=300, num_samples=1000), jax.random.key(11))
    assert result.status.converged, str(result.status)
    assert result.sample_stats["diverging"].sum() == 0
    agrees(result, exact)


@pytest.mark.slow
def test_the_tutorials_numpyro_model_agrees(shared, require_path):
    parallax, error, exact = cluster_data(shared, require_path)

    def model(parallax, error):
        mu_r = numpyro.sample("mu_r", dist.TruncatedNormal(1.0, 2.0, low=0.0))
        ln_std_r = numpyro.sample("ln_std_r", dist.Uniform(-8.0, 0.0))
        with numpyro.plate("stars", len(parallax)):
            r = numpyro.sample("r", dist.TruncatedNormal(mu_r, jnp.exp(ln_std_r), low=0.0))
            numpyro.sample("parallax", dist.Normal(1.0 / r, error), obs=parallax)

    start = {"mu_r": 0.5, "ln_std_r": -3.0, "r": jnp.full(len(parallax), 0.5)}
    sampler = NUTS(num_warmup=1000, num_samples=1000, dense_mass=False, start=start)
    target = Target.from_numpyro(model, jnp.asarray(parallax), jnp.asarray(error))
    agrees(sampler.run(target, jax.random.key(12)), exact)


# ---- bad input -----------------------------------------------------------------------------------


def test_messages_name_the_object_and_the_remedy():
    good = {"y": np.array([1.0, 2.0]), "sd": np.array([1.0, 1.0])}
    with pytest.raises(InputError, match="star 1"):
        Latent(normal, {**good, "y": np.array([1.0, np.nan])}, names=["star 0", "star 1"])
    with pytest.raises(InputError, match="Python float"):
        Latent(lambda theta, data: 1.0, good)
    form = Latent(normal, good)
    with pytest.raises(InputError, match="no log marginals"):
        form.log_marginal(normals({"mean": 0.0, "ln_sd": 0.0}))
    with pytest.raises(InputError, match="latents"):
        form.draw(normals({"mean": 0.0, "ln_sd": 0.0}), jax.random.key(0))
    prior = Prior({"w": dist.Normal()})
    other = HierarchicalModel(prior, lambda h: Joint(w=dist.Normal(h["w"], 1)), form, rate="shape")
    with pytest.raises(InputError, match=r"theta\['x'\]"):
        other.target()


def test_an_object_without_any_likelihood_is_named():
    def log_likelihood(theta, data):
        return jnp.where(data["y"] > 0, -0.5 * theta["x"] ** 2, -jnp.inf)

    form = Latent(log_likelihood, {"y": np.array([1.0, -1.0])}, names=["good", "bad"])
    model = HierarchicalModel(PRIOR, normals, form, rate="shape")
    with pytest.raises(InputError, match="bad has no parameters with a likelihood"):
        model.target()


def test_samplers_that_start_from_the_prior_say_so():
    from skycensus import ImportanceSampler

    form = Latent(normal, {"y": np.zeros(3), "sd": np.ones(3)})
    model = HierarchicalModel(PRIOR, normals, form, rate="shape")
    with pytest.raises(InputError, match="use NUTS"):
        ImportanceSampler().run(model.target(), jax.random.key(0))
