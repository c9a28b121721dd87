r"""A user's formula for $\ln p(d|\theta)$ of one object, and the data it is applied to, checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ..errors import InputError, did_you_mean

LogLikelihood = Callable[[Mapping[str, Any], Mapping[str, Any]], Any]
"""`log_likelihood(theta, data) -> scalar` of one object: names -> scalars, names -> its rows."""

# A formula need not be defined everywhere, but somewhere among these values of its parameters.
_PROBES = [0.5, 0.0] + [sign * 10.0**k for k in range(-3, 8) for sign in (1.0, -1.0)]


class Row(NamedTuple):
    """What is known of objects: the data of the formula, and columns that the population sees."""

    data: dict[str, Array]
    given: dict[str, Array]


class ObjectNames(tuple[str, ...]):
    """Names of objects as a tuple that is hashed once: a million are hashed at every call else."""

    def __hash__(self) -> int:
        if "_hash" not in self.__dict__:
            self._hash = super().__hash__()
        return self._hash

    def __eq__(self, other: object) -> bool:
        return self is other or super().__eq__(other)

    def __ne__(self, other: object) -> bool:
        return not self == other


class _Asked(dict[str, Any]):
    """A theta that notes which parameters are looked up."""

    def __missing__(self, name: str) -> Array:
        self[name] = value = jnp.full((), 0.5)
        return value


def check_objects(
    form: str,
    data: Mapping[str, Any],
    given: Mapping[str, Any] | None,
    names: Sequence[str] | None,
) -> tuple[Row, ObjectNames]:
    """Arrays and names of a form's objects.

    Raises:
        InputError: no data or no objects, lengths that differ, or values that are not finite (the
            object and the column are named).
    """
    columns = {name: _numbers(form, name, x) for name, x in data.items()}
    known = {name: _numbers(form, name, x) for name, x in (given or {}).items()}
    if not columns:
        raise InputError(
            f"{form} has no data; give at least one array, name -> (num_objects, ...)."
        )
    size = len(next(iter(columns.values())))
    if size == 0:
        raise InputError(f"{form} needs at least one object; the data are empty.")
    listed = ObjectNames(names if names is not None else [f"object {i}" for i in range(size)])
    if len(listed) != size:
        raise InputError(f"{form}: {size} objects but {len(listed)} names; give one name each.")
    for name, column in (columns | known).items():
        if len(column) != size:
            raise InputError(
                f"{form}: '{name}' has {len(column)} rows but there are {size} objects; give one "
                "row per object."
            )
        finite = np.isfinite(column).reshape(size, -1).all(1)
        if not finite.all():
            first = int(np.argmin(finite))
            raise InputError(
                f"{form}: '{name}' of {listed[first]} (row {first}) is not finite, and of "
                f"{int(np.sum(~finite))} objects in all; leave these out or give their values."
            )
    for name, column in known.items():
        if column.ndim != 1:
            raise InputError(
                f"{form}: given '{name}' has shape {column.shape}; it must be one number each."
            )
    return Row(*({n: jnp.asarray(x) for n, x in part.items()} for part in (columns, known))), listed


def check_formula(form: str, log_likelihood: LogLikelihood, data: Mapping[str, Array],
                  names: Sequence[str]) -> tuple[str, ...]:  # fmt: skip
    """Names of the parameters that the formula looks up, in that order.

    Raises:
        InputError: it does not return one JAX scalar, looks nothing up, or is NaN for some object
            wherever it is tried (the object is named).
    """
    asked = _Asked()
    row = {name: x[0] for name, x in data.items()}
    remedy = "return one jax.numpy scalar, made of theta[...] and data[...] by jax.numpy"
    whose = f"{form}: log_likelihood of {names[0]}"

    def call(row: Mapping[str, Array]) -> Any:
        out = log_likelihood(asked, row)
        if not isinstance(out, jax.Array) or not jnp.issubdtype(out.dtype, jnp.floating):
            raise InputError(f"{whose} returned {_kind(out)}; {remedy}.")
        return out

    try:
        shape = jax.eval_shape(call, row).shape
    except (jax.errors.JAXTypeError, jax.errors.JAXIndexError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{whose} cannot be traced by JAX ({reason}); {remedy}.") from error
    except KeyError as error:
        raise InputError(
            f"{whose} asks for {error}, but the data are {sorted(data)}; give that array."
        ) from error
    if shape != ():
        raise InputError(f"{whose} has shape {shape}; {remedy}, such as its sum.")
    if not asked:
        raise InputError(f"{whose} looks up no parameter; it must depend on some theta['name'].")
    _check_somewhere(form, log_likelihood, tuple(asked), data, names)
    return tuple(asked)


def _check_somewhere(
    form: str,
    log_likelihood: LogLikelihood,
    parameters: tuple[str, ...],
    data: Mapping[str, Array],
    names: Sequence[str],
) -> None:
    def is_nan(value: Array, row: Mapping[str, Array]) -> Array:
        return jnp.isnan(log_likelihood(dict.fromkeys(parameters, value), row))

    @jax.jit
    def never(data: Mapping[str, Array]) -> Array:
        each = jax.vmap(is_nan, (None, 0))
        return jax.lax.map(lambda x: each(x, data), jnp.asarray(_PROBES)).all(0)

    bad = np.asarray(never(data))
    if bad.any():
        first = int(np.argmax(bad))
        values = ", ".join(f"{n}={np.asarray(x[first])}" for n, x in data.items())
        raise InputError(
            f"{form}: log_likelihood of {names[first]} is NaN wherever it is tried ({values}; "
            f"{int(bad.sum())} such objects); is an uncertainty zero or negative? Correct or leave "
            "out these objects."
        )


def _numbers(form: str, name: str, value: Any) -> np.ndarray:
    try:
        array = np.asarray(value)
        if array.dtype == object or array.dtype.kind not in "fiub":
            raise ValueError
    except ValueError:
        raise InputError(
            f"{form}: '{name}' is not an array of numbers (num_objects, ...); give one."
        ) from None
    if array.ndim == 0:
        raise InputError(f"{form}: '{name}' is a single number; give one row per object.")
    return array.astype(jnp.result_type(float)) if array.dtype.kind == "f" else array


def _kind(value: Any) -> str:
    if isinstance(value, jax.Array):
        return f"an array of {value.dtype}"
    return f"a Python {type(value).__name__}"


def check_parameters(form: str, parameters: Sequence[str], names: Sequence[str]) -> None:
    """Raise `InputError` where the formula looks up what the population is not over."""
    for name in parameters:
        if name not in names:
            raise InputError(
                f"{form}: log_likelihood needs theta['{name}'], but the population is over "
                f"{list(names)}{did_you_mean(name, names)}; give it a factor of that name."
            )
