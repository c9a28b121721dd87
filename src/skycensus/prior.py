r"""Priors on hyperparameters: one language for files, configs and Python."""

from __future__ import annotations

import inspect
import json
import math
import numbers
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array

from .density import Joint
from .errors import InputError, did_you_mean
from .unit_cube import from_unit_cube, num_coordinates


class Prior:
    r"""Independent priors on named hyperparameters, some of them constant or tied.

    Every entry of `entries` is one of

    * a NumPyro distribution over a scalar (or `{"dist": "Normal", "loc": 2, "scale": 3}`): free;
    * one over a vector, whose key is the names of its components joined by commas, `"w_a, w_b":
      {"dist": "Dirichlet", "concentration": [1, 1]}`: free together. A density on the simplex is
      one in all components but the last, which follows from them;
    * a density over exactly the names of the key, such as one learned from draws: free together;
    * a number: fixed;
    * the name of another hyperparameter (or `{"same_as": name}`): equal to it.

    `resolve(names)` expands keys that are regular expressions over the names that the model asks
    for and checks that nothing is missing or left over. All problems are reported in one error.

    Hyperparameters are scalars by name everywhere; only the distributions in `free` have the keys
    of `entries`, and `joined` and `split` lead from scalars to their arguments and back.

    Raises:
        InputError: misspelt distribution or argument, low >= high, a scale that is not positive, an
            alias of something unknown or of itself, a name in two keys, an entry that is none of
            the above.
    """

    def __init__(self, entries: Mapping[str, Any]):
        problems: list[str] = []
        self.free: dict[str, dist.Distribution] = {}
        self.fixed: dict[str, float] = {}
        self.same_as: dict[str, str] = {}
        for name, entry in entries.items():
            try:
                self._add(name, entry)
            except InputError as error:
                problems.append(str(error))
        names = [name for key in entries for name in components(key)]
        for name in dict.fromkeys(n for n in names if names.count(n) > 1):
            problems.append(f"prior '{name}' is given by more than one key; keep one.")
        if problems:
            raise InputError("\n".join(problems))

    @classmethod
    def read(cls, path: str | Path) -> Prior:
        """Read a JSON file of entries.

        Raises:
            InputError: as the class, naming the file; or a file that is missing or not JSON.
        """
        try:
            entries = json.loads(Path(path).read_text(), object_pairs_hook=_unique)
        except OSError as error:
            raise InputError(f"prior file '{path}' cannot be read: {error.strerror}.") from None
        except (ValueError, RecursionError) as error:
            raise InputError(f"prior file '{path}' is not valid JSON: {error}") from None
        if not isinstance(entries, dict):
            raise InputError(f"prior file '{path}' must hold one object of name: prior.")
        try:
            return cls(entries)
        except InputError as error:
            raise InputError(f"prior file '{path}':\n{error}") from None

    def _add(self, name: str, entry: Any) -> None:
        if isinstance(entry, Mapping) and set(entry) == {"same_as"}:
            entry = entry["same_as"]
            if not isinstance(entry, str):
                raise InputError(
                    f"prior '{name}': same_as={entry!r} is not the name of a parameter."
                )
        if hasattr(entry, "as_distribution"):
            entry = _named(name, entry)
        if isinstance(entry, dist.Distribution):
            self.free[name] = _check(name, type(entry).__name__, entry)
        elif isinstance(entry, Mapping):
            self.free[name] = _distribution(name, entry)
        elif len(components(name)) > 1:
            raise InputError(
                f"prior '{name}': {entry!r} is not a distribution over {len(components(name))} "
                "hyperparameters; give one, or every name its own prior."
            )
        elif isinstance(entry, str):
            self.same_as[name] = entry
        elif isinstance(entry, bool) or not isinstance(entry, numbers.Real):
            raise InputError(
                f"prior '{name}': {entry!r} is not a distribution, a number or another parameter's "
                'name; write for example {"dist": "Uniform", "low": 0, "high": 1}.'
            )
        elif not _is_finite(entry):
            raise InputError(f"prior '{name}': the fixed value {entry} is not finite.")
        else:
            self.fixed[name] = float(entry)

    def entries(self) -> dict[str, Any]:
        """What `Prior(entries)` makes the same prior of, in the types of JSON.

        Raises:
            InputError: a distribution that is not described by its arguments (a truncated or a
                learned one).
        """
        out: dict[str, Any] = {key: _described(key, d) for key, d in self.free.items()}
        return out | self.fixed | self.same_as

    @property
    def names(self) -> tuple[str, ...]:
        """The free hyperparameters, in a fixed order."""
        return tuple(name for key in self.free for name in components(key))

    def joined(self, free: Mapping[str, Any]) -> dict[str, Array]:
        """Free hyperparameters by name -> arguments of the distributions, by key of `free`."""
        return {
            key: jnp.stack([jnp.asarray(free[n], float) for n in components(key)], axis=-1)
            if d.event_shape
            else jnp.asarray(free[key], float)
            for key, d in self.free.items()
        }

    def split(self, values: Mapping[str, Array]) -> dict[str, Array]:
        """The inverse of `joined`."""
        out: dict[str, Array] = {}
        for key, d in self.free.items():
            parts = components(key) if d.event_shape else ()
            out |= {name: values[key][..., i] for i, name in enumerate(parts)}
            if not parts:
                out[key] = values[key]
        return out

    def resolve(self, needed: Iterable[str], optional: Iterable[str] = ()) -> Prior:
        """Return the prior of the hyperparameters `needed`, in that order.

        Names of `optional` are those that the model has a default for: they are added where a key
        is exactly such a name.

        A key that is not itself a needed name is a regular expression that must match a whole name;
        names in full take precedence over patterns. Keys of several names are no patterns.

        Raises:
            InputError: a needed name without a prior, a key that matches nothing, two patterns for
                one name, or tied names that lead in a circle.
        """
        needed = list(dict.fromkeys(needed))
        entries: dict[str, Any] = {**self.free, **self.fixed, **self.same_as}
        # A name of a joint key stands for the key, whose entry it shares.
        key_of = {name: key for key in entries for name in components(key)}
        given = {name: entries[key] for name, key in key_of.items()}
        needed += [name for name in optional if name in given and name not in needed]
        problems, found, used = [], {}, set()
        for name in needed:
            keys = [name] if name in given else [k for k in entries if _matches(k, name)]
            used.update(keys)
            if not keys:
                unmatched = [k for k in given if k not in needed]
                problems.append(
                    f"prior for '{name}' is missing{did_you_mean(name, unmatched)}; give a "
                    "distribution, a number, or the name of another parameter."
                )
            elif len(keys) > 1:
                problems.append(f"prior '{name}' is matched by several patterns: {keys}; keep one.")
            else:
                found[name] = given[keys[0]]
        # The target of a tie may be a name that only ties use.
        for target in [t for t in found.values() if isinstance(t, str)]:
            while isinstance(target, str) and target not in found and target in given:
                used.add(target)
                found[target] = target = given[target]
        for key in [k for k in given if k not in used]:
            problems.append(
                f"prior '{key}' is for an unknown parameter{did_you_mean(key, needed)}; the model "
                f"has {needed}{_why_no_pattern(key)}."
            )
        problems += _broken_ties(found)
        if problems:
            raise InputError("\n".join(problems))
        return Prior({key_of.get(name, name): entry for name, entry in found.items()})

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> dict[str, Array]:
        """Draw the free hyperparameters."""
        keys = jax.random.split(key, max(1, len(self.free)))
        return self.split(
            {
                name: d.sample(k, sample_shape)
                for (name, d), k in zip(self.free.items(), keys, strict=False)
            }
        )

    def log_prob(self, free: Mapping[str, Any]) -> Array:
        """Log density of the free hyperparameters."""
        if not self.free:
            return jnp.zeros(())
        vectors = {key: x for key, x in self.joined(free).items() if self.free[key].event_shape}
        scalars = {key: d for key, d in self.free.items() if key not in vectors}
        total = Joint(scalars).log_prob(self.joined(free)) if scalars else jnp.zeros(())
        for key, x in vectors.items():
            d = self.free[key]
            inside = d.support(x)
            within = jnp.where(inside[..., None], x, d.support.feasible_like(x))
            total = total + jnp.where(inside, d.log_prob(within), -jnp.inf)
        return total

    def from_unit_cube(self, u: Array) -> dict[str, Array]:
        r"""The free hyperparameters at points of the unit cube: $F^{-1}(u)$, each from its own.

        Where `u` is uniform they have the prior's distribution; see `unit_cube.from_unit_cube`.

        Args:
            u: in (0, 1), shape (..., d); a density on a simplex takes one coordinate less than it
                has components.

        Raises:
            InputError: a distribution without a known transform, or a `u` of another size.
        """
        ends = np.cumsum([num_coordinates(d) for d in self.free.values()])
        if u.shape[-1] != (ends[-1] if len(ends) else 0):
            raise InputError(
                f"points of the unit cube have {u.shape[-1]} coordinates; the free hyperparameters "
                f"{list(self.names)} take {ends[-1] if len(ends) else 0}."
            )
        parts = jnp.split(u, ends[:-1], axis=-1)
        pairs = zip(self.free.items(), parts, strict=True)
        return self.split({key: from_unit_cube(key, d, part) for (key, d), part in pairs})

    def marginal(self, names: Iterable[str]) -> Prior:
        """The prior of some of the free hyperparameters alone.

        Raises:
            InputError: a name that is not free, or one of several that are free together.
        """
        names = list(names)
        for name in names:
            if name not in self.names:
                raise InputError(
                    f"the prior has no free parameter '{name}'{did_you_mean(name, self.names)}; it "
                    f"has {list(self.names)}."
                )
        for key in self.free:
            missing = [name for name in components(key) if name not in names]
            if 0 < len(missing) < len(components(key)):
                raise InputError(
                    f"prior '{key}' is joint: {missing} cannot be left out by a formula; learn the "
                    "marginal prior from draws (fit_density of prior.sample)."
                )
        return Prior({key: d for key, d in self.free.items() if components(key)[0] in names})

    def complete(self, free: Mapping[str, Any]) -> dict[str, Any]:
        """Add the fixed and the tied hyperparameters to the free ones."""
        values = {name: free[name] for name in self.names} | dict(self.fixed)
        for name in self.same_as:
            target = name
            while target in self.same_as:
                target = self.same_as[target]
            values[name] = values[target]
        return values

    def bounds(self) -> dict[str, tuple[float, float]]:
        """The support of each free hyperparameter, infinite where it has no bound."""
        out: dict[str, tuple[float, float]] = {}
        for key, d in self.free.items():
            support = dist.constraints.unit_interval if _is_simplex(d) else d.support
            # A box over a vector keeps its bounds one level down.
            support = getattr(support, "base_constraint", support)
            low = getattr(support, "lower_bound", -math.inf)
            high = getattr(support, "upper_bound", math.inf)
            names = components(key)
            ends = np.broadcast_to(low, len(names)), np.broadcast_to(high, len(names))
            out |= {n: (float(a), float(b)) for n, a, b in zip(names, *ends, strict=True)}
        return out


def components(key: str) -> tuple[str, ...]:
    """The hyperparameters that a key names: several identifiers with commas, else the key alone."""
    names = tuple(part.strip() for part in key.split(","))
    # A pattern such as "a_[0-9]{1,2}" is no list of names.
    return names if all(name.isidentifier() for name in names) else (key,)


def _is_simplex(d: dist.Distribution) -> bool:
    return isinstance(d.support, type(dist.constraints.simplex))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [k for k, _ in pairs]
    if repeated := sorted({k for k in keys if keys.count(k) > 1}):
        raise ValueError(f"repeated keys {repeated}")
    return dict(pairs)


def _named(name: str, density: Any) -> dist.Distribution:
    """A density as a distribution over the names of its key."""
    try:
        return density.as_distribution(components(name))
    except InputError as error:
        raise InputError(f"prior '{name}': {error}") from None


def _matches(pattern: str, name: str) -> bool:
    try:
        return re.fullmatch(pattern, name) is not None
    except re.error:
        return False  # reported as a key that matches nothing


def _why_no_pattern(key: str) -> str:
    try:
        re.compile(key)
    except re.error as error:
        return f" (and the key is not a valid regular expression: {error})"
    return ""


def _broken_ties(found: Mapping[str, Any]) -> list[str]:
    problems = []
    for name in found:
        seen, target = [name], found[name]
        while isinstance(target, str):
            if target in seen:
                problems.append(
                    f"prior '{name}' is tied in a circle: {' -> '.join([*seen, target])}."
                )
                break
            if target not in found:
                problems.append(
                    f"prior '{seen[-1]}' is tied to '{target}', which has no prior"
                    f"{did_you_mean(target, found)}."
                )
                break
            seen.append(target)
            target = found[target]
    return problems


def _distribution(name: str, entry: Mapping[str, Any]) -> dist.Distribution:
    """Build the NumPyro distribution that a mapping describes, checking all of it."""
    arguments = dict(entry)
    kind = arguments.pop("dist", None)
    known = [
        k for k, v in vars(dist).items() if inspect.isclass(v) and issubclass(v, dist.Distribution)
    ]
    functions = ["TruncatedNormal", "TruncatedCauchy", "TruncatedDistribution"]
    if kind not in [*known, *functions]:
        what = "has no 'dist'" if kind is None else f"dist '{kind}' is not a NumPyro distribution"
        raise InputError(f"prior '{name}': {what}{did_you_mean(str(kind), [*known, *functions])}.")
    constructor = getattr(dist, kind)
    accepted = set(inspect.signature(constructor).parameters) - {"validate_args"}
    if accepted == {"args", "kwargs"} or "kwargs" in accepted:
        accepted = {"loc", "scale", "low", "high"}
    for argument, value in arguments.items():
        if argument not in accepted:
            raise InputError(
                f"prior '{name}': {kind} has no argument '{argument}'"
                f"{did_you_mean(argument, accepted)}; it takes {sorted(accepted)}."
            )
        arguments[argument] = _argument(name, argument, value)
    _check_order(name, arguments.get("low"), arguments.get("high"))
    try:
        made = constructor(**arguments, validate_args=True)
    except (TypeError, ValueError) as error:
        # NumPyro prints whole arrays, on lines of their own.
        said = " ".join(str(error).split())
        raise InputError(f"prior '{name}': {kind}({dict(entry)}) is not valid: {said}") from None
    return _check(name, kind, made)


def _described(name: str, d: dist.Distribution) -> dict[str, Any]:
    """The inverse of `_distribution`."""
    kind = type(d).__name__
    arguments = {n: getattr(d, n, None) for n in d.arg_constraints}
    described: dict[str, Any] = {"dist": kind} | {
        n: np.asarray(x, float).tolist() for n, x in arguments.items() if x is not None
    }
    try:
        _distribution(name, described)
    except InputError:
        raise InputError(
            f"prior '{name}': {kind} cannot be written as JSON; give a distribution that is known "
            "by its arguments, or a density learned from its draws."
        ) from None
    return described


def _argument(name: str, argument: str, value: Any) -> Any:
    """A number as it came, nested lists of numbers (for a distribution over a vector) as an array.

    Raises:
        InputError: anything else, or a number that is not finite.
    """
    if isinstance(value, list) and len(components(name)) > 1:
        try:
            array = np.array(value, float)
        except (TypeError, ValueError):
            array = np.array(math.nan)
        if not np.isfinite(array).all():
            raise InputError(
                f"prior '{name}': {argument}={value} is not a list of finite numbers (or of such "
                "lists of one length)."
            )
        return jnp.asarray(array)
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise InputError(f"prior '{name}': {argument}={value!r} is not a number.")
    if not _is_finite(value):
        raise InputError(
            f"prior '{name}': {argument}={value} is not finite; leave out a bound that is not "
            "there."
        )
    return value


def _is_finite(value: Any) -> bool:
    """Whether a number is one of 64 bits."""
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _check(name: str, kind: str, made: dist.Distribution) -> dist.Distribution:
    support = made.support
    names = components(name)
    expected = (len(names),) if len(names) > 1 else ()
    if (
        support is None
        or support.is_discrete
        or made.event_shape != expected
        or made.batch_shape
        or isinstance(made, dist.Delta)
    ):
        if expected:
            raise InputError(
                f"prior '{name}': {kind} is not a distribution over a vector of {len(names)} real "
                f"numbers (its shape is {made.batch_shape + made.event_shape})."
            )
        hint = ""
        if len(made.event_shape) == 1:
            some = ", ".join(f"{name}_{i}" for i in range(made.event_shape[0]))
            hint = f"; name its components in the key, such as '{some}'"
        raise InputError(f"prior '{name}': {kind} is not a distribution over a real number{hint}.")
    _check_order(name, getattr(support, "lower_bound", None), getattr(support, "upper_bound", None))
    return made


def _check_order(name: str, low: Any, high: Any) -> None:
    if low is not None and high is not None and not np.all(np.asarray(low) < np.asarray(high)):
        raise InputError(
            f"prior '{name}': low={low} is not below high={high}; swap them or give a single "
            "number."
        )
