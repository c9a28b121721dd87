"""`[sampler]`: how a model is sampled, and when the run has done enough."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from functools import partial
from typing import Any

from ..analysis import choose_sampler
from ..errors import InputError, did_you_mean
from ..model import HierarchicalModel
from ..samplers import Coarse, CoarseToExact, Sampler, Until
from . import collecting
from .schema import OfAnySampler, fill

# [sampler] kind -> module and class. flowMC is imported only where it is asked for.
SAMPLERS = {
    "importance": ("importance", "ImportanceSampler"),
    "nuts": ("nuts", "NUTS"),
    "flow_mcmc": ("flow_mcmc", "FlowMCMC"),
    "quadrature": ("quadrature", "QuadratureSampler"),
    "nested": ("nested", "Nested"),
    "dynesty": ("dynesty", "Dynesty"),
    "boosted_nested": ("boosted", "BoostedNested"),
    "learned_proposal": ("learned_proposal", "LearnedProposal"),
}

# Keys of a kind that are tables of their own: samplers, and a cheap version.
_TABLES = ("first", "sampler", "cheap")

_OF_ANY = tuple(f.name for f in fields(OfAnySampler))


def make_sampler(table: Any) -> Callable[[HierarchicalModel], Sampler]:
    """What makes the sampler that `[sampler]` describes, for a model.

    Raises:
        InputError: an unknown kind, key or value; all of them at once.
    """
    if not isinstance(table, Mapping):
        return choose_sampler  # told already
    problems: list[str] = []
    given = {name: value for name, value in table.items() if name in _OF_ANY}
    own = {name: value for name, value in table.items() if name not in _OF_ANY}
    goals = fill(OfAnySampler, given, "any kind", problems)
    coarse, made = None, None
    with collecting(problems):
        if goals is not None and goals.coarse is not None:
            coarse = fill(Coarse, goals.coarse, "coarse", problems)
    with collecting(problems):
        made = _of_kind(own)
    if goals is not None and not problems:
        with collecting(problems):
            # Their values are checked where they are used; the sampler is any.
            Until(made, target_ess=goals.target_ess, time_limit=goals.time_limit)
    if problems:
        raise InputError("\n".join(problems))
    assert goals is not None
    return partial(_for_model, made, coarse, goals)


def _for_model(
    made: Any, coarse: Coarse | None, goals: OfAnySampler, model: HierarchicalModel
) -> Sampler:
    sampler: Any = made or choose_sampler(model)
    if coarse is not None:
        sampler = CoarseToExact(sampler, coarse)
    target_ess = goals.target_ess
    if target_ess is not None and hasattr(sampler, "target_ess"):
        sampler, target_ess = replace(sampler, target_ess=target_ess), None
    if target_ess is None and goals.time_limit is None:
        return sampler
    return Until(sampler, target_ess=target_ess, time_limit=goals.time_limit)


def _of_kind(table: Mapping[str, Any]) -> Any:
    """The sampler of a kind; None for `kind = "auto"`."""
    kind = table.get("kind", "auto")
    rest = {name: value for name, value in table.items() if name != "kind"}
    if kind == "auto":
        if rest:
            raise InputError(
                f"{list(rest)} belong to one kind of sampler: say which with kind = one of "
                f"{', '.join(SAMPLERS)}."
            )
        return None
    if not isinstance(kind, str) or kind not in SAMPLERS:
        raise InputError(
            f"kind = {kind!r} is not known{did_you_mean(str(kind), [*SAMPLERS, 'auto'])}; give one "
            f"of auto, {', '.join(SAMPLERS)}."
        )
    problems: list[str] = []
    module, name = SAMPLERS[kind]
    cls: Any = getattr(importlib.import_module(f"..samplers.{module}", __package__), name)
    where = f"kind = '{kind}'"
    inner = {n: _inner(n, rest.pop(n), f"{where}: {n}", problems) for n in _tables(cls, rest)}
    made: Any = fill(cls, rest, where, problems, more=_OF_ANY)
    for name, low in (("num_samples", 1), ("num_chains", 1), ("num_warmup", 0), ("thinning", 1)):
        if isinstance(rest.get(name), int) and rest[name] < low:
            problems.append(f"kind = '{kind}': {name} = {rest[name]} must be at least {low}.")
    if problems:
        raise InputError("\n".join(problems))
    return replace(made, **inner) if inner else made


def _tables(cls: Any, given: Mapping[str, Any]) -> list[str]:
    """Which of the keys given are tables that describe an object."""
    return [f.name for f in fields(cls) if f.name in _TABLES and f.name in given]


def _inner(name: str, table: Any, where: str, problems: list[str]) -> Any:
    """The object that a table within the table of a sampler describes."""
    if not isinstance(table, Mapping):
        problems.append(f"{where} = {table!r} is not a table; write {name} = {{...}}.")
    elif name == "cheap":
        with collecting(problems):
            return fill(Coarse, table, where, problems)
    else:
        with collecting(problems, f"{where}: "):
            return _of_kind(table)
    return None
