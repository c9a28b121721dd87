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
import numpyro.distributions as dist
from jax import Array

from .density import Joint
from .errors import InputError, did_you_mean


class Prior:
    r"""Independent priors on named hyperparameters, some of them constant or tied.

    Every entry of `entries` is one of

    * a NumPyro distribution over a scalar (or `{"dist": "Normal", "loc": 2, "scale": 3}`): free;
    * a number: fixed;
    * the name of another hyperparameter (or `{"same_as": name}`): equal to it.

    `resolve(names)` expands keys that are regular expressions over the names that the model asks
    for and checks that nothing is missing or left over. All problems are reported in one error.

    Raises:
        InputError: misspelt distribution or argument, low >= high, a scale that is not positive, an
            alias of something unknown or of itself, an entry that is none of the above.
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
        except ValueError as error:
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
        if isinstance(entry, str):
            self.same_as[name] = entry
        elif isinstance(entry, dist.Distribution):
            self.free[name] = _check(name, type(entry).__name__, entry)
        elif isinstance(entry, Mapping):
            self.free[name] = _distribution(name, entry)
        elif isinstance(entry, bool) or not isinstance(entry, numbers.Real):
            raise InputError(
                f"prior '{name}': {entry!r} is not a distribution, a number or another parameter's "
                'name; write for example {"dist": "Uniform", "low": 0, "high": 1}.'
            )
        elif not math.isfinite(entry):
            raise InputError(f"prior '{name}': the fixed value {entry} is not finite.")
        else:
            self.fixed[name] = float(entry)

    @property
    def names(self) -> tuple[str, ...]:
        """The free hyperparameters, in a fixed order."""
        return tuple(self.free)

    def resolve(self, needed: Iterable[str], optional: Iterable[str] = ()) -> Prior:
        """Return the prior of the hyperparameters `needed`, in that order.

        Names of `optional` are those that the model has a default for: they are added where a key
        is exactly such a name.

        A key that is not itself a needed name is a regular expression that must match a whole name;
        names in full take precedence over patterns.

        Raises:
            InputError: a needed name without a prior, a key that matches nothing, two patterns for
                one name, or tied names that lead in a circle.
        """
        needed = list(dict.fromkeys(needed))
        given: dict[str, Any] = {**self.free, **self.fixed, **self.same_as}
        needed += [name for name in optional if name in given and name not in needed]
        problems, found, used = [], {}, set()
        for name in needed:
            keys = [name] if name in given else [k for k in given if _matches(k, name)]
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
        return Prior(found)

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> dict[str, Array]:
        """Draw the free hyperparameters."""
        keys = jax.random.split(key, max(1, len(self.free)))
        return {
            name: d.sample(k, sample_shape)
            for (name, d), k in zip(self.free.items(), keys, strict=False)
        }

    def log_prob(self, free: Mapping[str, Array]) -> Array:
        """Log density of the free hyperparameters."""
        if not self.free:
            return jnp.zeros(())
        return Joint(self.free).log_prob({name: jnp.asarray(free[name]) for name in self.free})

    def complete(self, free: Mapping[str, Any]) -> dict[str, Any]:
        """Add the fixed and the tied hyperparameters to the free ones."""
        values = {name: free[name] for name in self.free} | dict(self.fixed)
        for name in self.same_as:
            target = name
            while target in self.same_as:
                target = self.same_as[target]
            values[name] = values[target]
        return values

    def bounds(self) -> dict[str, tuple[float, float]]:
        """The support of each free hyperparameter, infinite where it has no bound."""
        out = {}
        for name, d in self.free.items():
            low = getattr(d.support, "lower_bound", -math.inf)
            high = getattr(d.support, "upper_bound", math.inf)
            out[name] = (float(low), float(high))
        return out


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [k for k, _ in pairs]
    if repeated := sorted({k for k in keys if keys.count(k) > 1}):
        raise ValueError(f"repeated keys {repeated}")
    return dict(pairs)


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
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise InputError(f"prior '{name}': {argument}={value!r} is not a number.")
        if not math.isfinite(value):
            raise InputError(
                f"prior '{name}': {argument}={value} is not finite; leave out a bound that is "
                "not there."
            )
    _check_order(name, arguments.get("low"), arguments.get("high"))
    try:
        made = constructor(**arguments, validate_args=True)
    except (TypeError, ValueError) as error:
        raise InputError(f"prior '{name}': {kind}({arguments}) is not valid: {error}") from None
    return _check(name, kind, made)


def _check(name: str, kind: str, made: dist.Distribution) -> dist.Distribution:
    support = made.support
    if (
        support is None
        or support.is_discrete
        or made.event_shape
        or made.batch_shape
        or isinstance(made, dist.Delta)
    ):
        raise InputError(f"prior '{name}': {kind} is not a distribution over a real number.")
    _check_order(name, getattr(support, "lower_bound", None), getattr(support, "upper_bound", None))
    return made


def _check_order(name: str, low: Any, high: Any) -> None:
    if low is not None and high is not None and not low < high:
        raise InputError(
            f"prior '{name}': low={low} is not below high={high}; swap them or give a single "
            "number."
        )
