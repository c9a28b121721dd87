"""Checks of the numbers that samplers are given."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ..errors import InputError


def is_count(value: Any, least: int = 1) -> bool:
    """Whether a value is a whole number of `least` or more."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def require(
    sampler: Any,
    *,
    counts: Sequence[str] = (),
    counts_or_none: Sequence[str] = (),
    positive: Sequence[str] = (),
    shares: Sequence[str] = (),
) -> None:
    """Raise `InputError` with a line for every setting that is out of range.

    Args:
        sampler: whose attributes they are.
        counts, counts_or_none: names of whole numbers of 1, or of 0, and more.
        positive: of finite numbers above zero.
        shares: of numbers between zero and one.
    """
    value = {n: getattr(sampler, n) for n in (*counts, *counts_or_none, *positive, *shares)}
    problems = [f"{n} = {value[n]!r} must be 1 or more" for n in counts if not is_count(value[n])]
    problems += [
        f"{n} = {value[n]!r} must be 0 or more" for n in counts_or_none if not is_count(value[n], 0)
    ]
    problems += [
        f"{n} = {value[n]!r} must be positive" for n in positive if not 0 < value[n] < math.inf
    ]
    problems += [
        f"{n} = {value[n]!r} must be between 0 and 1" for n in shares if not 0 < value[n] < 1
    ]
    if problems:
        raise InputError("\n".join(f"sampler: {problem}." for problem in problems))
