from __future__ import annotations

import json
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
import scipy.stats

from skycensus import InputError, Prior


def test_every_kind_of_entry():
    prior = Prior(
        {
            "made": dist.Normal(1.0, 2.0),
            "named": {"dist": "Uniform", "low": -5, "high": 5},
            "number": 3,
            "array number": np.float32(0.5),
            "integer": np.int64(4),
            "alias": "named",
            "same": {"same_as": "number"},
        }
    )
    assert prior.names == ("made", "named")
    assert prior.fixed == {"number": 3.0, "array number": 0.5, "integer": 4.0}
    assert prior.same_as == {"alias": "named", "same": "number"}
    values = prior.complete({"made": 0.1, "named": 0.2, "ignored": 9.0})
    assert values == {
        "made": 0.1, "named": 0.2, "number": 3.0, "array number": 0.5, "integer": 4.0,
        "alias": 0.2, "same": 3.0,
    }  # fmt: skip


DISTRIBUTIONS: dict[str, Any] = {
    "Normal": ({"loc": 2, "scale": 3}, scipy.stats.norm(2, 3), (-math.inf, math.inf)),
    "Uniform": ({"low": -5, "high": 5}, scipy.stats.uniform(-5, 10), (-5, 5)),
    "LogUniform": ({"low": 0.1, "high": 5}, scipy.stats.loguniform(0.1, 5), (0.1, 5)),
    "LogNormal": ({"loc": 0, "scale": 0.3}, scipy.stats.lognorm(0.3), (0, math.inf)),
    "HalfNormal": ({"scale": 2}, scipy.stats.halfnorm(scale=2), (0, math.inf)),
    "Beta": ({"concentration1": 2, "concentration0": 3}, scipy.stats.beta(2, 3), (0, 1)),
    "Gamma": ({"concentration": 2, "rate": 3}, scipy.stats.gamma(2, scale=1 / 3), (0, math.inf)),
    "StudentT": ({"df": 4, "loc": 1, "scale": 2}, scipy.stats.t(4, 1, 2), (-math.inf, math.inf)),
}  # fmt: skip
TRUNCATED: dict[str, Any] = {
    "both": ({"low": 0, "high": 4}, (0, 4)),
    "low": ({"low": 0}, (0, math.inf)),
    "high": ({"high": 4}, (-math.inf, 4)),
    "neither": ({}, (-math.inf, math.inf)),
}


def agrees(prior, oracle, bounds):
    assert prior.bounds() == {"a": bounds}
    draws = np.asarray(jax.jit(lambda k: prior.sample(k, (2000,)))(jax.random.key(3))["a"])
    assert scipy.stats.kstest(draws, oracle.cdf).pvalue > 1e-3
    x = np.quantile(draws, [0.01, 0.4, 0.99])
    np.testing.assert_allclose(prior.log_prob({"a": x}), oracle.logpdf(x), rtol=1e-10)
    if np.isfinite(bounds[1]):
        assert prior.log_prob({"a": bounds[1] + 0.1}) == -jnp.inf
    if np.isfinite(bounds[0]):
        assert prior.log_prob({"a": bounds[0] - 0.1}) == -jnp.inf


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_distributions_by_name(name):
    arguments, oracle, bounds = DISTRIBUTIONS[name]
    agrees(Prior({"a": {"dist": name, **arguments}}), oracle, bounds)


@pytest.mark.parametrize(("arguments", "bounds"), TRUNCATED.values(), ids=list(TRUNCATED))
def test_truncated_normals(arguments, bounds):
    prior = Prior({"a": {"dist": "TruncatedNormal", "loc": 1, "scale": 2, **arguments}})
    low, high = (np.array(bounds) - 1) / 2
    agrees(prior, scipy.stats.truncnorm(low, high, 1, 2), bounds)


def test_log_prob_is_the_sum_over_the_free_ones():
    prior = Prior({"a": dist.Normal(0.0, 1.0), "b": dist.Uniform(0.0, 4.0), "c": 1.0})
    got = prior.log_prob({"a": jnp.array([0.0, 1.0]), "b": jnp.array([1.0, 5.0]), "c": jnp.nan})
    np.testing.assert_allclose(got, [scipy.stats.norm.logpdf(0) - np.log(4), -np.inf])
    assert Prior({"c": 1.0}).log_prob({}) == 0.0
    assert Prior({"c": 1.0}).sample(jax.random.key(0)) == {}


# --- resolving -----------------------------------------------------------------------------------


def test_patterns_match_whole_names_and_full_names_come_first():
    prior = Prior({"alpha_.*": dist.Normal(0.0, 1.0), "alpha_1": 2.0, "beta_[01]": 0.5, "m": 1.0})
    resolved = prior.resolve(["alpha_0", "alpha_1", "beta_1", "alpha_2", "m"])
    assert resolved.names == ("alpha_0", "alpha_2")
    assert resolved.fixed == {"alpha_1": 2.0, "beta_1": 0.5, "m": 1.0}
    with pytest.raises(InputError, match="'xalpha_0' is missing"):
        prior.resolve(["xalpha_0", "alpha_1", "beta_0", "m"])


def test_ties_follow_chains_and_patterns():
    prior = Prior(
        {"a_0": dist.Normal(0.0, 1.0), "a_.*": "a_0", "b": "c", "c": "hidden", "hidden": 4.0}
    )
    resolved = prior.resolve(["a_0", "a_1", "a_2", "b"])
    assert resolved.complete({"a_0": 7.0}) == {
        "a_0": 7.0, "a_1": 7.0, "a_2": 7.0, "b": 4.0, "c": 4.0, "hidden": 4.0,
    }  # fmt: skip
    # Resolving again changes nothing.
    again = resolved.resolve(["a_0", "a_1", "a_2", "b"])
    assert again.complete({"a_0": 7.0}) == resolved.complete({"a_0": 7.0})


def test_resolved_order_is_the_models():
    prior = Prior({"b": dist.Normal(0.0, 1.0), "a": dist.Normal(0.0, 1.0)})
    assert prior.resolve(["a", "b", "a"]).names == ("a", "b")


def test_optional_names_are_used_where_given():
    prior = Prior({"a": 1.0, "extra": 2.0})
    assert prior.resolve(["a"], ["extra", "other"]).fixed == {"a": 1.0, "extra": 2.0}


RESOLVE = {
    "missing": (
        {"alpha": 1.0},
        ["alpha", "bet"],
        r"prior for 'bet' is missing; give a distribution",
    ),
    "misspelt": ({"alhpa": 1.0}, ["alpha"], r"'alpha' is missing \(did you mean 'alhpa'\?\)"),
    "unknown": ({"a": 1.0, "gamma": 1.0}, ["a"], r"'gamma' is for an unknown parameter.*\['a'\]"),
    "two patterns": ({"a.*": 1.0, ".*b": 2.0}, ["ab"], r"'ab' is matched by several patterns"),
    "circle": ({"a": "b", "b": "a"}, ["a", "b"], r"'a' is tied in a circle: a -> b -> a"),
    "itself": ({"a": "a"}, ["a"], r"'a' is tied in a circle: a -> a"),
    "into a circle": ({"a": "b", "b": "c", "c": "b"}, ["a", "b", "c"], r"a -> b -> c -> b"),
    "tie to nothing": ({"a": "bb"}, ["a"], r"'a' is tied to 'bb', which has no prior"),
    "regex": ({"a": 1.0, "b(": 1.0}, ["a"], r"'b\(' is for an unknown.*not a valid regular expr"),
}


@pytest.mark.parametrize(("entries", "needed", "message"), RESOLVE.values(), ids=list(RESOLVE))
def test_resolve_errors(entries, needed, message):
    with pytest.raises(InputError, match=message):
        Prior(entries).resolve(needed)


def test_every_problem_is_reported_at_once():
    with pytest.raises(InputError) as error:
        Prior({"a": True, "b": {"dist": "Uniform", "low": 2, "high": 1}, "c": 1.0, "d": math.nan})
    assert [line.split("'")[1] for line in str(error.value).splitlines()] == ["a", "b", "d"]
    with pytest.raises(InputError) as error:
        Prior({"a": "b", "b": "a", "z": 1.0, "(": 1.0}).resolve(["a", "b", "c"])
    for part in ("'c' is missing", "'z' is for an unknown", "'(' is for", "a -> b -> a"):
        assert part in str(error.value)


# --- entries that are wrong ----------------------------------------------------------------------

BAD = {
    "misspelt": (
        {"dist": "Unifrm", "low": 0, "high": 1},
        "'Unifrm' is not.*did you mean 'Uniform'",
    ),
    "no dist": ({"low": 0, "high": 1}, "has no 'dist'"),
    "dist list": ({"dist": ["Normal"]}, "is not a NumPyro distribution"),
    "argument": (
        {"dist": "Normal", "loc": 0, "scael": 1},
        "no argument 'scael'.*did you mean 'scale'",
    ),
    "order": ({"dist": "Uniform", "low": 5, "high": -5}, "low=5 is not below high=-5; swap them"),
    "equal": ({"dist": "Uniform", "low": 5, "high": 5}, "low=5 is not below high=5"),
    "order of a made one": (dist.Uniform(5.0, 1.0), "low=5.0 is not below high=1.0"),
    "truncated": ({"dist": "TruncatedNormal", "low": 3, "high": 1}, "low=3 is not below high=1"),
    "scale": ({"dist": "Normal", "loc": 0, "scale": -1}, "is not valid.*scale"),
    "log of negative": ({"dist": "LogUniform", "low": -1, "high": 1}, "is not valid"),
    "text": ({"dist": "Normal", "loc": "0"}, "loc='0' is not a number"),
    "boolean": ({"dist": "Normal", "loc": True}, "loc=True is not a number"),
    "nan": ({"dist": "Normal", "loc": math.nan}, "loc=nan is not finite"),
    "infinite": ({"dist": "Uniform", "low": -math.inf, "high": 0}, "low=-inf is not finite"),
    "fixed nan": (math.nan, "fixed value nan is not finite"),
    "fixed inf": (math.inf, "fixed value inf is not finite"),
    "true": (True, "True is not a distribution, a number"),
    "none": (None, "None is not a distribution, a number"),
    "list": ([1, 2], r"\[1, 2\] is not a distribution"),
    "alias of a number": ({"same_as": 3}, "same_as=3 is not the name"),
    "discrete": (
        {"dist": "Poisson", "rate": 3},
        "Poisson is not a distribution over a real number",
    ),
    "made discrete": (dist.Bernoulli(0.5), "not a distribution over a real number"),
    "vector": (dist.Normal(jnp.zeros(3), 1.0), "not a distribution over a real number"),
    "without names": (
        dist.Dirichlet(jnp.ones(2)),
        "over a real number; name its components in the key, such as 'the name_0, the name_1'",
    ),
    "point": ({"dist": "Delta", "v": 1}, "Delta is not a distribution over a real number"),
    "abstract": ({"dist": "Distribution"}, "not a distribution over a real number"),
    "constructor": ({"dist": "TransformedDistribution"}, "is not valid"),
}


@pytest.mark.parametrize(("entry", "message"), BAD.values(), ids=list(BAD))
def test_wrong_entries(entry, message):
    with pytest.raises(InputError, match=message) as error:
        Prior({"the name": entry})
    assert str(error.value).startswith("prior 'the name': ")
    assert "\n" not in str(error.value)


# --- several hyperparameters together ------------------------------------------------------------

FRACTIONS = {"w_a, w_b,w_c": {"dist": "Dirichlet", "concentration": [1, 2, 3.5]}}
PLANE = {
    "dist": "MultivariateNormal",
    "loc": [1, -1],
    "covariance_matrix": [[1.0, 0.5], [0.5, 2.0]],
}


def test_a_joint_prior_is_one_of_scalars_by_name():
    prior = Prior({**FRACTIONS, "x": dist.Normal(0.0, 1.0), "y, z": PLANE, "tied": "w_b"})
    assert prior.names == ("w_a", "w_b", "w_c", "x", "y", "z")
    draws = jax.jit(lambda k: prior.sample(k, (500,)))(jax.random.key(0))
    assert {name: x.shape for name, x in draws.items()} == dict.fromkeys(prior.names, (500,))
    np.testing.assert_allclose(draws["w_a"] + draws["w_b"] + draws["w_c"], 1.0, rtol=1e-12)
    w = np.stack([draws[name] for name in ("w_a", "w_b", "w_c")])
    plane = np.stack([draws["y"], draws["z"]], axis=-1)
    exact = (
        scipy.stats.dirichlet([1, 2, 3.5]).logpdf(w / w.sum(axis=0))
        + scipy.stats.norm.logpdf(draws["x"])
        + scipy.stats.multivariate_normal([1, -1], PLANE["covariance_matrix"]).logpdf(plane)
    )
    np.testing.assert_allclose(prior.log_prob(draws), exact, rtol=1e-9)
    assert prior.complete(draws)["tied"] is draws["w_b"]
    bounds = prior.bounds()
    assert bounds["w_a"] == bounds["w_c"] == (0.0, 1.0)
    assert bounds["y"] == bounds["z"] == (-math.inf, math.inf)
    again = prior.split(prior.joined(draws))
    assert all(np.array_equal(again[name], draws[name]) for name in prior.names)


def test_off_the_simplex_there_is_no_density():
    prior = Prior(FRACTIONS)
    assert prior.log_prob({"w_a": 0.5, "w_b": 0.2, "w_c": 0.2}) == -jnp.inf
    assert np.isfinite(prior.log_prob({"w_a": 0.5, "w_b": 0.3, "w_c": 0.2}))


def test_joint_priors_resolve_by_their_names():
    prior = Prior({**FRACTIONS, "a_[0-9]{1,2}": dist.Normal(0.0, 1.0), "v": "w_c"})
    resolved = prior.resolve(["a_10", "w_b", "v", "w_a", "w_c"])
    assert resolved.names == ("a_10", "w_a", "w_b", "w_c")
    assert resolved.same_as == {"v": "w_c"}
    assert resolved.resolve(["a_10", "w_b", "v", "w_a", "w_c"]).names == resolved.names
    with pytest.raises(InputError, match="prior 'w_c' is for an unknown parameter"):
        Prior(FRACTIONS).resolve(["w_a", "w_b"])
    with pytest.raises(InputError, match="prior for 'w_d' is missing"):
        Prior(FRACTIONS).resolve(["w_a", "w_b", "w_c", "w_d"])
    # A component that only a tie uses is used.
    assert Prior({"a, b": PLANE, "c": "b"}).resolve(["a", "c"]).names == ("a", "b")


BAD_JOINT = {
    "number": ({"a, b": 1.0}, "1.0 is not a distribution over 2 hyperparameters"),
    "tie": ({"a, b": "c", "c": 1.0}, "'c' is not a distribution over 2 hyperparameters"),
    "scalar": ({"a, b": dist.Normal(0.0, 1.0)}, r"not a distribution over a vector of 2.*\(\)"),
    "too many": (
        {"a, b": {"dist": "Dirichlet", "concentration": [1, 1, 1]}},
        r"Dirichlet is not a distribution over a vector of 2 real numbers \(its shape is \(3,\)\)",
    ),
    "negative": ({"a, b": {"dist": "Dirichlet", "concentration": [1, -1]}}, "is not valid"),
    "ragged": (
        {"a, b": {**PLANE, "covariance_matrix": [[1.0], [1.0, 2.0]]}},
        "is not a list of finite numbers",
    ),
    "nan": ({"a, b": {**PLANE, "loc": [0, math.nan]}}, "is not a list of finite numbers"),
    "twice": ({"a, b": PLANE, "b": 1.0}, "prior 'b' is given by more than one key"),
    "itself": ({"a, a": PLANE}, "prior 'a' is given by more than one key"),
}


@pytest.mark.parametrize(("entries", "message"), BAD_JOINT.values(), ids=list(BAD_JOINT))
def test_wrong_joint_entries(entries, message):
    with pytest.raises(InputError, match=message) as error:
        Prior(entries)
    assert "\n" not in str(error.value)


# --- files ----------------------------------------------------------------------------------------


def test_reading_a_file(tmp_path):
    path = tmp_path / "prior.json"
    path.write_text(
        json.dumps({"a_.*": {"dist": "Normal", "loc": 0, "scale": 1}, "b": 2, "c": "b"})
    )
    prior = Prior.read(path).resolve(["a_0", "b", "c"])
    assert prior.names == ("a_0",)
    assert prior.complete({"a_0": 1.0}) == {"a_0": 1.0, "b": 2.0, "c": 2.0}


FILES = {
    "invalid": ('{"a": 1,}', "is not valid JSON"),
    "duplicate": ('{"a": 1, "a": 2}', r"repeated keys \['a'\]"),
    "nested duplicate": (
        '{"a": {"dist": "Normal", "loc": 1, "loc": 2}}',
        r"repeated keys \['loc'\]",
    ),
    "list": ("[1, 2]", "must hold one object"),
    "entry": ('{"a": {"dist": "Unifrm"}}', "\nprior 'a': dist 'Unifrm'"),
    "encoding": (b'{"a\xff": 1}', "is not valid JSON"),
}


@pytest.mark.parametrize(("text", "message"), FILES.values(), ids=list(FILES))
def test_wrong_files(tmp_path, text, message):
    path = tmp_path / "my prior.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=message) as error:
        Prior.read(path)
    assert "my prior.json" in str(error.value)


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.json' cannot be read: No such file"):
        Prior.read(tmp_path / "nowhere.json")
    with pytest.raises(InputError, match="cannot be read"):
        Prior.read(tmp_path)


def test_reference_file(require_path, shared):
    prior = Prior.read(require_path(shared / "reference" / "gwkokab" / "prior.json"))
    assert prior.bounds()["mmax_pl_0"] == (30.0, 100.0)
    assert len(prior.names) == 5
