r"""Sample a cheap version of a likelihood, and weight its draws to the exact one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any, NamedTuple

import jax
import numpy as np

from ..checkpoint import Checkpoint, Part
from ..diagnostics import GOALS, diagnose, effective_sample_size, scalars
from ..errors import InputError
from ..keys import generator
from ..model import HierarchicalModel
from ..result import Result
from ..status import Problem, Status
from ..target import Target
from ..weights import kish, normalised_weights, pareto_smooth, systematic
from . import Progress, Sampler, evaluate, unconstrained
from .until import run_until

# Draws that are weighted first, and the share of them that must be effective: else a finer version
# is cheaper than ever more draws of this one. Where half of them are, the weights hardly differ,
# and a heavy tail may be chance: k-hat of so few is known to 0.2 or so.
_PILOT, _LEAST_EFFICIENCY, _GOOD_EFFICIENCY = 200, 0.2, 0.5
# Draws of the next attempt: so many more than seem needed. The coarse run, which is cheap, has more
# than that to begin with, so that it is not needed again.
_MORE, _AT_FIRST = 1.1, 1.5
# A finer version has so many times the draws, and a coarse one has at most this share of all.
_FINER, _MOST_SHARE = 4, 0.5

# What the status of the coarse run says that does not hold for the weighted draws.
_OF_DRAWS = ("ess", "importance_ess", "target_ess", "prior_edge", "coarse")

# What of the weighted draws a finer version can better.
_OF_WEIGHTS = ("ess", "importance_ess", "target_ess", "k_hat")


@dataclass(frozen=True, kw_only=True)
class Coarse:
    """How a cheaper version of a hierarchical model is made; what is not given stays as it is.

    Args:
        draws: draws of each object (`Samples`), spread evenly over all that it has.
        injections: draws of the selection, in the same way.
        nodes: nodes per parameter of objects known by a formula (`Quadrature`).
        float32: evaluate densities of draws in 32 bits.

    Raises:
        InputError: nothing given, or a number below one.
    """

    draws: int | None = None
    injections: int | None = None
    nodes: int | None = None
    float32: bool = False

    def __post_init__(self) -> None:
        counts = {name: getattr(self, name) for name in ("draws", "injections", "nodes")}
        if all(number is None for number in counts.values()) and not self.float32:
            raise InputError(
                "coarse: nothing is coarser; give draws, injections, nodes or float32 = true."
            )
        for name, number in counts.items():
            if number is not None and number < 1:
                raise InputError(f"coarse: {name} = {number} must be at least 1.")

    def __str__(self) -> str:
        parts = {"draws of each object": self.draws, "injections": self.injections}
        parts |= {"nodes": self.nodes}
        told = [f"{number} {what}" for what, number in parts.items() if number is not None]
        return ", ".join([*told, *(["32 bits"] if self.float32 else [])])

    def of(self, model: HierarchicalModel, rng: np.random.Generator) -> HierarchicalModel:
        """This version of `model`.

        Raises:
            InputError: a model whose objects or selection cannot be made coarser in this way.
        """
        objects: Any = model.likelihood
        selection: Any = model.selection
        for name, form, method in (
            ("draws", objects, "thinned"),
            ("injections", selection, "thinned"),
            ("nodes", objects, "with_nodes"),
        ):
            if getattr(self, name) is not None and not hasattr(form, method):
                what = "a selection" if form is selection else "objects"
                raise InputError(
                    f"coarse: {name} = {getattr(self, name)} is for {what} of another form than "
                    f"{type(form).__name__}."
                )
        if self.float32 and not hasattr(objects, "thinned"):
            raise InputError(f"coarse: float32 is for draws, not for {type(objects).__name__}.")
        if self.nodes is not None:
            objects = objects.with_nodes(self.nodes)
        parts: list[Any] = [
            form.thinned(number, rng, dtype=np.float32 if self.float32 else None)
            if hasattr(form, "thinned") and (number is not None or self.float32)
            else form
            for form, number in ((objects, self.draws), (selection, self.injections))
        ]
        return model.with_parts(*parts)

    def finer(self, model: HierarchicalModel) -> Coarse | None:
        """The next finer version of `model`; None where that is the model itself."""
        counts = {
            "draws": (self.draws, _most(model.likelihood, "num_draws")),
            "injections": (self.injections, _most(model.selection, "num_draws")),
            "nodes": (self.nodes, getattr(model.likelihood, "num_nodes", 0)),
        }

        def more(name: str) -> int | None:
            number, most = counts[name]
            few = number is not None and number * _FINER <= _MOST_SHARE * most
            return number * _FINER if number is not None and few else None

        draws, injections, nodes = more("draws"), more("injections"), more("nodes")
        if draws is injections is nodes is None:
            # With all draws, 32 bits are no longer much cheaper.
            return None
        return replace(self, draws=draws, injections=injections, nodes=nodes)


def _most(form: Any, name: str) -> int:
    return int(np.max(getattr(form, name, 0)))


@dataclass(frozen=True)
class CoarseToExact:
    r"""`sampler` on a cheap version of the target, its draws weighted to the target itself.

    With likelihoods $\tilde L$ of the coarse version and $L$ of the target, in the same coordinates
    and with the same prior, a draw of the coarse posterior has the weight

    $$w_s = \tilde w_s\, \frac{L(x_s)}{\tilde L(x_s)}, \qquad
      \hat Z = \tilde Z\, \frac{\sum_s w_s}{\sum_s \tilde w_s},$$

    $\tilde w_s$ being the weight that it has already, if any. The weights are Pareto-smoothed, and
    $\hat k$ and the effective sample size (autocorrelation included) decide. Independent weighted
    draws are resampled first, so that no more likelihoods of the target are asked for than are
    needed; chains are thinned. Where the draws are not worth `target_ess`, the coarse version is
    sampled further; where its weights are poor, a finer one is (four times the draws or nodes), and
    at last the target itself. The status says what was done, and `measures` has `num_likelihoods`
    of the target, `num_coarse_likelihoods`, `k_hat` and `n_eff`.

    Draws where the coarse likelihood is zero are never made: with fewer draws of an object, a
    population that holds none of those that were kept, though some of the others. There the object
    has next to no likelihood anyway.

    (Importance sampling from an approximate posterior: Vehtari et al. 2024, JMLR 25(72).)

    Args:
        sampler: any sampler; with a goal of its own (`target_ess`), this one is used instead.
        coarse: `Coarse` settings; a `Target` in the same coordinates; or a function of the target
            that returns one, such as an emulator fitted to it.
        target_ess: goal of the effective sample size.
        max_refinements: finer versions at most, the target itself among them.
    """

    sampler: Sampler
    coarse: Coarse | Target | Callable[[Target], Target]
    _: KW_ONLY
    target_ess: float = 1000.0
    max_refinements: int = 10

    def run(
        self,
        target: Target,
        key: Any,
        *,
        progress: Progress | None = None,
        checkpoint: Part | None = None,
    ) -> Result:
        """Sample `target`; see the class and `skycensus.samplers.Sampler`.

        Raises:
            InputError: a coarse version that cannot be made or has other parameters, latent
                parameters of objects, and what the sampler raises.
        """
        if target.num_latent:
            raise InputError(
                "coarse to exact is for hyperparameters alone: the coordinates of latent "
                "parameters are made around the data of each version."
            )
        part = checkpoint or Checkpoint().part("coarse")
        made_key, run_key = jax.random.split(key)
        exact, tried, result = _Exact(target), list[str](), None
        for number, (name, version) in enumerate(self._versions(target, made_key)):
            if tried and part.time_is_up:
                break
            own = part.part(f"version {number}")
            chosen_key = jax.random.fold_in(run_key, number)
            if version is None:
                result = run_until(self.sampler, target, chosen_key, self.target_ess, progress, own)
                tried.append("then the target itself was sampled")
                break
            attempt = _Attempt(self, exact, version, chosen_key, progress, own)
            result = attempt.run()
            tried.append(f"sampled with {name}: {attempt.found}")
            if attempt.good:
                break
        if result is None:
            raise InputError(
                "coarse: none of the draws of the coarse target has a likelihood under the target "
                "itself; give one that is nearer to it."
            )
        note = Problem.of("coarse", "; ".join(tried))
        return replace(result, status=result.status.plus(notes=(note,)))

    def _versions(self, target: Target, key: Any) -> Iterator[tuple[str, Target | None]]:
        """Finer and finer versions with their names, and None for the target itself."""
        coarse, count = self.coarse, 0
        if not isinstance(coarse, Coarse):
            yield "the coarse target given", coarse_version(target, coarse, generator(key))
        else:
            how: Coarse | None = coarse
            while how is not None and count <= self.max_refinements:
                rng = generator(jax.random.fold_in(key, count))
                yield str(how), coarse_version(target, how, rng)
                assert target.model is not None
                how, count = how.finer(target.model), count + 1
        if count <= self.max_refinements and self.max_refinements:
            yield "", None


def coarse_version(
    target: Target, coarse: Coarse | Target | Callable[[Target], Target], rng: np.random.Generator
) -> Target:
    """The cheap version of `target` that is meant.

    Raises:
        InputError: it cannot be made, or has other parameters.
    """
    if isinstance(coarse, Coarse):
        if target.model is None:
            raise InputError(
                f"coarse: {coarse} is for hierarchical models; give a coarse target, or a "
                "function that makes one."
            )
        return coarse.of(target.model, rng).target()
    version = coarse if isinstance(coarse, Target) else coarse(target)
    if version.names != target.names or version.dim != target.dim:
        raise InputError(
            f"coarse: its parameters {list(version.names)} are not those of the target, "
            f"{list(target.names)}."
        )
    return version


# ---- one version ---------------------------------------------------------------------------------


class _Exact:
    """Log likelihoods of the target, each point asked for once."""

    def __init__(self, target: Target):
        self.target = target
        self._known: dict[bytes, float] = {}

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """At points (n, dim)."""
        names = [point.tobytes() for point in x]
        new = [i for i, name in enumerate(names) if name not in self._known]
        if new:
            values, _ = evaluate(self.target, x[new])
            self._known |= {names[i]: float(v) for i, v in zip(new, values, strict=True)}
        return np.array([self._known[name] for name in names])

    @property
    def count(self) -> int:
        """How many were computed."""
        return len(self._known)


class _Weighted(NamedTuple):
    """Chosen draws of the coarse run with their weights.

    `place` counts along the chains; `base` are the log weights that the draws had, `log_ratio`
    those that they get, `log_weight` the smoothed sum, all (chain, chosen). `efficiency` is the
    share of the draws that the new weights leave.
    """

    place: np.ndarray
    base: np.ndarray
    log_ratio: np.ndarray
    log_weight: np.ndarray
    log_likelihood: np.ndarray
    n_eff: float
    k_hat: float
    efficiency: float

    @property
    def poor(self) -> bool:
        """Whether a finer version is a better way than more draws."""
        least = _LEAST_EFFICIENCY if self.k_hat <= GOALS.k_hat else _GOOD_EFFICIENCY
        return self.efficiency < least


class _Attempt:
    """A coarse version, sampled, weighted, and sampled further as far as that leads to the goal."""

    def __init__(
        self,
        settings: CoarseToExact,
        exact: _Exact,
        coarse: Target,
        key: Any,
        progress: Progress | None,
        part: Part,
    ):
        self.exact, self.coarse = exact, coarse
        self.good, self.found = False, ""
        self._sampler, self._goal = settings.sampler, settings.target_ess
        self._key, self._progress, self._part = key, progress, part

    def run(self) -> Result | None:
        """The weighted draws, None where none has a weight; see `good` and `found` then."""
        drawn, size = self._sampled(_AT_FIRST * self._goal), _PILOT
        while True:
            weighted = self._weighted(drawn, *_chosen(drawn, size, generator(self._key)))
            if self._progress:
                done = int(min(weighted.n_eff, self._goal))
                self._progress(done, int(self._goal), "weighting (effective draws)")
            if weighted.n_eff >= self._goal or weighted.poor:
                break
            before = size
            size = math.ceil(_MORE * size * self._goal / weighted.n_eff)
            if size > (worth := _available(drawn)) and not self._part.time_is_up:
                ess = drawn.effective_sample_size()
                drawn = self._sampled(_MORE * ess * size / worth)
            # The most there are.
            size = min(size, _available(drawn))
            if size <= before or self._part.time_is_up:
                break
        return self._result(drawn, weighted)

    def _sampled(self, target_ess: float) -> Result:
        part, progress = self._part.part("draws"), self._progress
        return run_until(self._sampler, self.coarse, self._key, target_ess, progress, part)

    def _weighted(self, drawn: Result, index: np.ndarray, base: np.ndarray) -> _Weighted:
        draws = {name: x[:, index] for name, x in drawn.draws.items()}
        x = unconstrained(self.exact.target, draws)
        log_l = self.exact(x)
        log_ratio = (log_l - evaluate(self.coarse, x)[0]).reshape(base.shape)
        log_weight, log_l = base + log_ratio, log_l.reshape(base.shape)
        found = _Weighted(index, base, log_ratio, log_weight, log_l, 0.0, math.inf, 0.0)
        if not np.isfinite(log_weight).any():
            return found
        share = kish(log_weight) / kish(base)
        if _independent(drawn):
            smoothed, k_hat = pareto_smooth(log_weight)
            n_eff = kish(smoothed)
        else:
            sizes = [effective_sample_size(x) / x.size for _, x in scalars(draws)]
            smoothed, k_hat = pareto_smooth(log_weight, relative_efficiency=min(1.0, *sizes))
            each = [effective_sample_size(x, smoothed) for _, x in scalars(draws)]
            n_eff = min(kish(smoothed), *each)
        return found._replace(log_weight=smoothed, n_eff=n_eff, k_hat=k_hat, efficiency=share)

    def _result(self, drawn: Result, weighted: _Weighted) -> Result | None:
        index, n_eff, k_hat = weighted.place, weighted.n_eff, weighted.k_hat
        self.found = f"effective sample size {n_eff:.4g} of {index.size * len(weighted.base)} draws"
        self.found += f", k-hat {k_hat:.2f}, {self.exact.count} likelihoods of the target"
        if not np.isfinite(weighted.log_weight).any():
            return None
        draws = {name: x[:, index] for name, x in drawn.draws.items()}
        stats = {name: x[:, index] for name, x in drawn.sample_stats.items()}
        stats["log_likelihood"] = weighted.log_likelihood
        status = self._status(drawn, draws, weighted)
        self.good = not any(problem.kind in _OF_WEIGHTS for problem in status.problems)
        log_z, error = _evidence(drawn, weighted)
        measures = dict(drawn.measures)
        if "num_likelihoods" in measures:
            measures["num_coarse_likelihoods"] = measures["num_likelihoods"]
        measures |= {"num_likelihoods": self.exact.count, "k_hat": k_hat, "n_eff": n_eff}
        return Result(
            draws,
            status,
            log_weight=weighted.log_weight,
            log_evidence=log_z,
            log_evidence_error=error,
            sample_stats=stats,
            measures=measures,
        )

    def _status(
        self, drawn: Result, draws: Mapping[str, np.ndarray], weighted: _Weighted
    ) -> Status:
        """What the weights say, and what the coarse run says of its chains."""
        status = diagnose(
            draws,
            {"log_likelihood": weighted.log_likelihood},
            weighted.log_weight,
            k_hat=weighted.k_hat,
            prior_bounds=self.exact.target.prior.bounds(),
            goals=GOALS._replace(ess=min(GOALS.ess, self._goal)),
        )
        # Whether chains have mixed is seen better with all of their draws.
        problems = [p for p in status.problems if p.kind != "r_hat"]
        problems += [p for p in drawn.status.problems if p.kind not in _OF_DRAWS]
        notes = [n for n in drawn.status.notes if n.kind not in _OF_DRAWS]
        if weighted.n_eff < self._goal:
            said = f"the effective sample size is {weighted.n_eff:.4g} (goal {self._goal:g})"
            problems.append(Problem.of("target_ess", said))
        return Status(not problems, tuple(problems), (*status.notes, *notes))


def _independent(drawn: Result) -> bool:
    """Whether the draws are weighted and independent, rather than Markov chains."""
    return drawn.log_weight is not None and drawn.shape[0] == 1


def _available(drawn: Result) -> int:
    """How many draws there are to be weighted: of weighted ones no more than they are worth."""
    return int(drawn.effective_sample_size()) if _independent(drawn) else drawn.weights.size


def _chosen(drawn: Result, num: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Places along the chains of about `num` draws, and their log weights (chain, chosen)."""
    chains, length = drawn.shape
    if _independent(drawn):
        every = rng.permutation(systematic(drawn.weights, _available(drawn), rng.random()))
        # The first ones: those of a smaller number are among those of a larger one.
        index, count = np.unique(every[:num], return_counts=True)
        return index, np.log(count)[None]
    index = np.unique(np.linspace(0, length - 1, min(length, -(-num // chains))).astype(int))
    base = np.zeros(drawn.shape) if drawn.log_weight is None else drawn.log_weight
    return index, base[:, index]


def _evidence(drawn: Result, weighted: _Weighted) -> tuple[float | None, float | None]:
    """The log evidence of the target and its error, where that of the coarse version is known."""
    if drawn.log_evidence is None:
        return None, None
    share = normalised_weights(weighted.base)
    top = weighted.log_ratio.max()
    ratio = np.exp(weighted.log_ratio - top)
    mean = float(np.sum(share * ratio))
    variance = float(np.sum(share * (ratio / mean - 1.0) ** 2))
    size = min(kish(weighted.base), drawn.effective_sample_size())
    error = math.sqrt((drawn.log_evidence_error or 0.0) ** 2 + variance / size)
    return drawn.log_evidence + top + math.log(mean), error
