from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from skycensus import Joint, Mixture, PowerLaw
from skycensus.density import log_terms
from skycensus.likelihood.staging import stage

X = jnp.linspace(1.5, 6.0, 40).reshape(4, 10)
DATA = {"x": X, "y": X / 2}
H = {"a": jnp.array(0.7), "b": jnp.array(1.3)}


def check(function, h=H, data=DATA, columns=None, parameters=None, rtol=1e-12):
    """Staged and direct values and gradients agree; the parts have the sizes expected."""
    staged = stage(function, h, data)
    held = staged.columns(data)
    if columns is not None:
        assert len(held) == columns
    if parameters is not None:
        assert len(staged.parameters(h)) == parameters

    def direct(h):
        return function(h, data)

    def parted(h):
        return staged.combine(staged.parameters(h), held)

    # Away from the example point too.
    h = jax.tree.map(lambda v: v * 1.07, h)
    want, got = jax.jit(direct)(h), jax.jit(parted)(h)
    assert type(want) is type(got)
    for w, g in zip(jax.tree.leaves(want), jax.tree.leaves(got), strict=True):
        np.testing.assert_allclose(jnp.broadcast_to(g, w.shape), w, rtol=rtol)

    def total(f):
        leaves = lambda h: jax.tree.leaves(f(h))  # noqa: E731
        return jax.jit(
            jax.grad(lambda h: sum(jnp.sum(jnp.broadcast_to(v, X.shape)) for v in leaves(h)))
        )

    want, got = total(direct)(h), total(parted)(h)
    for name in want:
        np.testing.assert_allclose(got[name], want[name], rtol=1e-10, atol=1e-12)
    return staged


def test_power_laws_keep_the_logarithms_of_their_data_only():
    def population(h):
        return Joint(
            {"x": PowerLaw(-h["a"], 1.0, 5.0), "y": lambda t: PowerLaw(h["b"], 0.5, t["x"])}
        )

    staged = check(lambda h, data: log_terms(population(h), data), columns=2)
    logs = staged.columns(DATA)
    for want in (jnp.log(X), jnp.log(X / 2)):
        assert any(np.allclose(want, got, rtol=1e-14) for got in logs)


def test_mixture_leaves_share_the_columns():
    def population(h):
        parts = {
            k: Joint({"x": PowerLaw(-h[k], 1.0, 5.0), "y": PowerLaw(h[k], 0.5, 9.0)}) for k in "ab"
        }
        return Mixture(parts, log_weights={"a": h["a"], "b": h["b"]})

    check(lambda h, data: log_terms(population(h), data), columns=2)


def test_hyperparameter_work_is_done_once():
    def function(h, data):
        grid = jnp.linspace(0.0, 5.0, 1000)
        norm = jnp.log(jnp.trapezoid(jnp.exp(-h["a"] * grid), grid))
        return -h["a"] * data["x"] - norm

    staged = check(function, columns=1, parameters=2)
    assert all(np.shape(v) == () for v in staged.parameters(H))
    # None of that work is left for the part that is done for every draw.
    left = jax.make_jaxpr(staged.combine)(staged.parameters(H), staged.columns(DATA))
    assert "exp" not in {str(e.primitive) for e in left.jaxpr.eqns}


def test_expensive_work_on_data_is_done_before():
    def function(h, data):
        curve = jnp.interp(data["x"], jnp.linspace(0, 7, 50), jnp.sin(jnp.linspace(0, 7, 50)))
        return h["a"] * curve + jnp.tanh(data["y"]) ** 2 * h["b"]

    staged = check(function)
    left = jax.make_jaxpr(staged.combine)(staged.parameters(H), staged.columns(DATA))
    names = {str(e.primitive) for e in left.jaxpr.eqns}
    assert not names & {"tanh", "gather", "sin"}


@jax.custom_jvp
def doubled(x):
    return 2.0 * x


@doubled.defjvp
def _doubled_jvp(primals, tangents):
    return doubled(*primals), 7.0 * tangents[0]  # deliberately not the derivative


@jax.custom_vjp
def tripled(x):
    return 3.0 * x


tripled.defvjp(lambda x: (3.0 * x, None), lambda _, g: (11.0 * g,))


def scanned(values):
    def run(x):
        step = lambda total, v: (total + v * x, None)  # noqa: E731
        return jax.lax.scan(step, jnp.zeros_like(x), jnp.asarray(values))[0]

    return run


def nested_jit(h, d):
    return jax.jit(lambda a, x: jax.jit(jnp.exp)(a * x) + jnp.log(x))(h["a"], d["x"])


def interpolated(h, d):
    return jnp.interp(d["x"], jnp.linspace(0, 9, 50) * h["a"], jnp.linspace(0, 1, 50) * h["b"])


def constants(h, d):
    return {"one": jnp.ones(()), "zero": jnp.zeros_like(d["x"]), "a": h["a"] * d["x"]}


def integers(h, d):
    return jnp.where(jnp.floor(d["x"]).astype(int) % 2 == 0, h["a"], h["b"] * d["y"])


def selected(h, d):
    return jnp.where((d["x"] > h["a"]) & (d["y"] < 2.0), jnp.log(d["x"]) * h["b"], -1.0)


def signed_zeros(h, d):
    return jnp.arctan2(0.0 * d["x"], -h["a"]) - jnp.arctan2(-0.0 * d["x"], -h["a"])


FUNCTIONS = {
    "nested jit": nested_jit,
    "custom_jvp": lambda h, d: doubled(h["a"] * d["x"]) + doubled(d["y"]) + doubled(h["b"]),
    "custom_vjp": lambda h, d: tripled(h["a"] * d["x"]) + tripled(d["y"]) * tripled(h["b"]),
    "checkpoint": lambda h, d: jax.checkpoint(lambda x: jnp.sin(h["a"] * x))(d["x"]),
    "scan": lambda h, d: (
        scanned([1.0, 2.0])(h["a"] * d["x"]) * scanned([3.0, 5.0])(h["a"] * d["x"])
    ),
    "cond": lambda h, d: jax.lax.cond(h["a"] > 0.72, jnp.sin, jnp.cos, h["b"] * d["x"]),
    "while": lambda h, d: jax.lax.fori_loop(0, 4, lambda i, v: v + i * d["y"], h["a"] * d["x"]),
    "interp": interpolated,
    "data alone": lambda h, d: jnp.log(d["x"]) + d["y"],
    "hyperparameters alone": lambda h, d: {"flat": h["a"] + h["b"], "x": h["a"] * d["x"]},
    "broadcast": lambda h, d: jnp.full(d["x"].shape, h["a"]) + jnp.zeros_like(d["x"]),
    "constant": constants,
    "integers": integers,
    "select": selected,
    "signed zeros": signed_zeros,
}


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=list(FUNCTIONS))
def test_programs_of_every_kind(function):
    check(function)


def test_same_operation_with_other_constants_is_not_confused():
    one, two = np.linspace(0.0, 1.0, 2000), np.linspace(0.0, 1.0, 2000)
    two[1000] = 50.0  # alike where they are printed

    def function(h, data):
        x = h["a"] * data["x"]
        return jnp.interp(x, jnp.linspace(0, 9, 2000), one) + jnp.interp(
            x, jnp.linspace(0, 9, 2000), two
        )

    check(function)


def test_closed_over_tracers_count_as_hyperparameters():
    def log_prob(h):
        staged = stage(lambda _, data: jnp.log(data["x"]) * h["a"] - jnp.exp(h["b"]), (), DATA)
        return jnp.sum(staged.combine(staged.parameters(()), staged.columns(DATA)))

    slope = jax.jit(jax.grad(log_prob))(H)
    np.testing.assert_allclose(slope["a"], jnp.sum(jnp.log(X)), rtol=1e-12)
    np.testing.assert_allclose(slope["b"], -X.size * jnp.exp(1.3), rtol=1e-12)
    batch = jax.vmap(log_prob)(jax.tree.map(lambda v: jnp.stack([v, 2 * v]), H))
    np.testing.assert_allclose(batch[0], log_prob(H), rtol=1e-12)


def test_long_programs():
    def function(h, data):
        y = h["a"] * data["x"]
        for _ in range(1200):
            y = y * 0.999 + h["b"]
        return y

    staged = stage(function, H, DATA)
    got = staged.combine(staged.parameters(H), staged.columns(DATA))
    want = jax.lax.fori_loop(0, 1200, lambda i, y: y * 0.999 + H["b"], H["a"] * X)
    np.testing.assert_allclose(got, want, rtol=1e-12)


def test_columns_may_be_mapped_over_blocks():
    def function(h, data):
        density = Joint(
            {"x": dist.TruncatedNormal(h["a"], h["b"], low=1.0), "y": PowerLaw(-h["b"], 0.5, 9.0)}
        )
        return log_terms(density, data)

    staged = stage(function, H, DATA)
    blocks = {k: jnp.stack([v, v + 0.1, v + 0.2]) for k, v in DATA.items()}
    columns = jax.vmap(staged.columns)(blocks)
    values = staged.parameters(H)
    for i in range(3):
        got = staged.combine(values, [c[i] for c in columns])[""]
        want = function(H, {k: v[i] for k, v in blocks.items()})[""]
        np.testing.assert_allclose(got, want, rtol=1e-13)


def test_32_bit_programs_stay_32_bit():
    h, data = jax.tree.map(lambda v: v.astype(jnp.float32), (H, DATA))

    def function(h, data):
        return log_terms(
            Joint({"x": PowerLaw(-h["a"], 1.0, 5.0), "y": dist.Normal(h["b"], 2.0)}), data
        )

    staged = stage(function, h, data)
    out = staged.combine(staged.parameters(h), staged.columns(data))[""]
    assert out.dtype == jnp.float32
    assert all(c.dtype == jnp.float32 for c in staged.columns(data))
