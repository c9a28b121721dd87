r"""Divide a density's evaluation into what depends on hyperparameters, on data, and on both.

A likelihood evaluates the same density at the same draws thousands of times, with other
hyperparameters each time. Traced once, the computation falls into three parts:

* depending on hyperparameters alone (a normalisation on a grid): done once per call;
* depending on data alone (the logarithm of a mass): done once per data set;
* depending on both: all that remains to be done for every draw in every call.

`stage` finds these parts in the traced program, so that whoever writes a density need not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.extend.core import ClosedJaxpr, Literal

# Elementwise operations so cheap that doing them again costs less than reading a stored result.
_CHEAP = frozenset(
    [
        *("neg", "add", "sub", "mul", "max", "min", "abs", "sign", "floor", "square"),
        *("integer_pow", "convert_element_type", "broadcast_in_dim", "reshape", "squeeze"),
        *("expand_dims", "select_n", "eq", "ne", "lt", "le", "gt", "ge", "and", "or", "not"),
        *("copy", "stop_gradient", "is_finite", "copy_p", "add_any"),
    ]
)


class _Equation(NamedTuple):
    primitive: Any
    params: dict[str, Any]
    inputs: list[int]
    outputs: list[int]


class _Program(NamedTuple):
    """A flat list of operations on numbered slots."""

    equations: list[_Equation]
    constants: dict[int, Any]
    avals: dict[int, Any]

    def run(self, equations: Sequence[_Equation], env: dict[int, Any]) -> dict[int, Any]:
        for eq in equations:
            values = [env[i] if i in env else self.constants[i] for i in eq.inputs]
            params = eq.primitive.get_bind_params(eq.params)
            out = eq.primitive.bind(*values, **params)
            for slot, value in zip(
                eq.outputs, out if eq.primitive.multiple_results else [out], strict=True
            ):
                env[slot] = value
        return env


def _flatten(closed: ClosedJaxpr) -> tuple[_Program, list[int], list[int]]:
    """Inline nested jitted calls; return the program and its input and output slots."""
    program = _Program([], {}, {})
    known: dict[Any, Any] = {}  # common subexpressions: the same operation on the same slots

    def new(aval: Any) -> int:
        slot = len(program.avals)
        program.avals[slot] = aval
        return slot

    def constant(value: Any, aval: Any) -> int:
        scalar = aval.shape == () and not isinstance(value, jax.core.Tracer)
        key = (str(aval), np.asarray(value).tobytes()) if scalar else None
        if key is not None and key in known:
            return known[key]
        slot = new(aval)
        program.constants[slot] = value
        if key is not None:
            known[key] = slot
        return slot

    def walk(jaxpr: Any, consts: Sequence[int], args: Sequence[int]) -> list[int]:
        env = dict(zip(jaxpr.constvars, consts, strict=True)) | dict(
            zip(jaxpr.invars, args, strict=False)
        )

        def read(v: Any) -> int:
            return constant(v.val, v.aval) if isinstance(v, Literal) else env[v]

        for eqn in jaxpr.eqns:
            inputs = [read(v) for v in eqn.invars]
            if eqn.primitive.name in ("pjit", "jit", "closed_call", "core_call"):
                inner = eqn.params.get("jaxpr") or eqn.params["call_jaxpr"]
                held = [
                    constant(c, v.aval)
                    for c, v in zip(inner.consts, inner.jaxpr.constvars, strict=True)
                ]
                outputs = walk(inner.jaxpr, held, inputs)
            else:
                key = (eqn.primitive, str(eqn.params), tuple(inputs))
                if key not in known:
                    known[key] = [new(v.aval) for v in eqn.outvars]
                    equation = _Equation(eqn.primitive, eqn.params, inputs, known[key])
                    program.equations.append(equation)
                outputs = known[key]
            env.update(zip(eqn.outvars, outputs, strict=True))
        return [read(v) for v in jaxpr.outvars]

    held = [constant(c, v.aval) for c, v in zip(closed.consts, closed.jaxpr.constvars, strict=True)]
    inputs = [new(v.aval) for v in closed.jaxpr.invars]
    return program, inputs, walk(closed.jaxpr, held, inputs)


class Staged(NamedTuple):
    """A function `f(hyperparameters, data)` in three parts.

    `columns(data)` is done once per data set and may be mapped over blocks of it;
    `parameters(hyperparameters)` once per call; `combine(parameters, columns)` gives f.
    """

    columns: Callable[[Any], tuple[Array, ...]]
    parameters: Callable[[Any], tuple[Array, ...]]
    combine: Callable[[Sequence[Array], Sequence[Array]], Any]


def stage(function: Callable[[Any, Any], Any], hyper: Any, data: Any) -> Staged:
    """Trace `function(hyper, data)` at example arguments and divide it (see the module).

    All leaves of `data` must share one shape, and `function` must be elementwise over it.
    Closed-over tracers are allowed: they count as hyperparameters.
    """
    hyper_leaves, data_leaves = jax.tree.leaves(hyper), jax.tree.leaves(data)
    closed, out_shape = jax.make_jaxpr(function, return_shape=True)(hyper, data)
    program, inputs, outputs = _flatten(closed)
    hyper_in, data_in = inputs[: len(hyper_leaves)], inputs[len(hyper_leaves) :]
    block_size = max(int(np.size(x)) for x in data_leaves)

    traced = [i for i, c in program.constants.items() if isinstance(c, jax.core.Tracer)]
    on_hyper, on_data = {*hyper_in, *traced}, set(data_in)
    producer: dict[int, _Equation] = {}
    for eq in program.equations:
        producer.update(dict.fromkeys(eq.outputs, eq))
        if on_hyper.intersection(eq.inputs):
            on_hyper.update(eq.outputs)
        if on_data.intersection(eq.inputs):
            on_data.update(eq.outputs)

    columns: dict[int, None] = {}  # insertion-ordered sets
    parameters: dict[int, None] = {}
    combined: set[int] = set()

    todo = list(reversed(outputs))
    while todo:  # decide how the combining part comes by each slot that it needs
        slot = todo.pop()
        if slot in columns or slot in parameters:
            continue
        if slot not in producer:
            if slot in on_data:
                columns[slot] = None
            elif slot in on_hyper:
                parameters[slot] = None
            continue  # a constant
        eq = producer[slot]
        if id(eq) in combined:
            continue
        both = slot in on_data and slot in on_hyper
        cheap = eq.primitive.name in _CHEAP
        # A small value broadcast to the shape of the data is not worth storing.
        large = slot not in on_data and program.avals[slot].size >= block_size > 1
        if both or (slot in on_data and cheap) or large:
            combined.add(id(eq))
            todo.extend(reversed(eq.inputs))
        else:
            (columns if slot in on_data else parameters)[slot] = None

    combining = [eq for eq in program.equations if id(eq) in combined]
    before_data = _ancestors(columns, producer, program.equations)
    before_hyper = _ancestors(parameters, producer, program.equations)
    out_tree = jax.tree.structure(out_shape)

    def run_columns(data: Any) -> tuple[Array, ...]:
        env = program.run(before_data, dict(zip(data_in, jax.tree.leaves(data), strict=True)))
        return tuple(env[i] for i in columns)

    def run_parameters(hyper: Any) -> tuple[Array, ...]:
        env = program.run(before_hyper, dict(zip(hyper_in, jax.tree.leaves(hyper), strict=True)))
        return tuple(jnp.asarray(env[i] if i in env else program.constants[i]) for i in parameters)

    def run_combine(values: Sequence[Array], cols: Sequence[Array]) -> Any:
        env = dict(zip(parameters, values, strict=True)) | dict(zip(columns, cols, strict=False))
        env = program.run(combining, env)
        out = [env[i] if i in env else program.constants[i] for i in outputs]
        return jax.tree.unflatten(out_tree, out)

    return Staged(run_columns, run_parameters, run_combine)


def _ancestors(
    slots: Mapping[int, None], producer: Mapping[int, _Equation], equations: Sequence[_Equation]
) -> list[_Equation]:
    """The equations that `slots` need, in order."""
    wanted: set[int] = set()
    todo = [producer[s] for s in slots if s in producer]
    while todo:
        eq = todo.pop()
        if id(eq) not in wanted:
            wanted.add(id(eq))
            todo.extend(producer[i] for i in eq.inputs if i in producer)
    return [eq for eq in equations if id(eq) in wanted]
