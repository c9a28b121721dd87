r"""Run a sampler on a hierarchical model, and add to its draws all that follows from them."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .blocks import in_blocks
from .checkpoint import Checkpoint
from .likelihood import Leafwise
from .likelihood.latent import Latent
from .model import HierarchicalModel
from .precision import likelihood_precision, precision_findings
from .result import Result
from .samplers import NUTS, ImportanceSampler, Progress, Sampler, evaluate, keep_record
from .status import Problem
from .target import Target
from .weights import systematic

Derived = Callable[[Mapping[str, Any]], Mapping[str, Any]]
"""Scalars that follow from the hyperparameters: name -> number, both under `jax.vmap`."""

# Farr (2019, arXiv:1904.10879): with fewer effective injections than this many times the number of
# objects, the noise of the selection integral can no longer be told from the likelihood.
INJECTIONS_PER_OBJECT = 4

# Draws of the posterior at which the error of objects' integrals is looked at.
_CHECKED = 8

# Log marginals that are kept: with more objects, at fewer draws.
_MOST_MARGINALS = 10**7

# Parts of the points at which log marginals are evaluated, for as many cores.
_PARTS = 8

# A compiled program takes about eight memory maps, of which Linux gives a process 65,530
# (vm.max_map_count); some 8,000 programs in one process crash XLA.
_MOST_MAPS = 20_000

# Up to here independent draws from an adapted proposal are the quickest road.
MAX_IMPORTANCE_DIM = 10


def choose_sampler(model: HierarchicalModel) -> Sampler:
    """Importance sampling for up to ten free hyperparameters, NUTS for more and for `Latent`.

    Where the weights of the first have too heavy a tail, its status says so, and to use NUTS.
    """
    few = len(model.prior.names) <= MAX_IMPORTANCE_DIM and not isinstance(model.likelihood, Latent)
    return ImportanceSampler() if few else NUTS()


def analyse(
    model: HierarchicalModel,
    sampler: Sampler,
    key: Any,
    *,
    progress: Progress | None = None,
    num_prior_draws: int = 1000,
    num_marginal_draws: int = 200,
    min_n_eff: float = 10.0,
    truth: Mapping[str, Any] | None = None,
    derived: Derived | None = None,
    checkpoint: Checkpoint | None = None,
) -> Result:
    r"""Sample the posterior of `model` and complete the result.

    Added to what the sampler returns are

    * draws from the prior of all hyperparameters, fixed and tied ones included;
    * at thinned draws, every object's log marginal $\ln m_i(\Lambda)$, its Monte Carlo variance and
      $n_{\mathrm{eff},i} = 1/(\mathrm{var}_i + 1/N_i)$. A single weighted chain is thinned in
      proportion to its weights, so that these draws count the same and may repeat; others evenly;
    * `measures`: over the same draws, mean and largest Monte Carlo variance of $\ln L$, that of its
      differences (`precision`), mean and smallest effective number of injections;
    * `derived`: tied hyperparameters, `total_rate` $= \sum_k R_k$ where the population is a rate
      density, and whatever the argument `derived` returns;
    * notes on objects and injections with few effective draws, and on a noisy $\ln L$. That is a
      problem, not a note, where its differences are noisy too, or where the model has a
      `max_variance` and the mean exceeds it;
    * where objects are integrated with a stated tolerance (`Quadrature`): the error that ln L
      reaches under the posterior, in `measures`. The run is repeated with more nodes until it is
      small enough, or has not converged;
    * the seconds spent compiling and sampling, and the peak memory.

    Args:
        model: what to sample.
        sampler: how.
        key: where all randomness comes from.
        progress: called as `progress(done, total, what)`.
        num_prior_draws, num_marginal_draws: how many of each; the latter at most.
        min_n_eff: objects with a smaller median of $n_\mathrm{eff}$ are named in a note.
        truth: name -> true value, where the data were simulated.
        derived: hyperparameters -> other scalars by name.
        checkpoint: where the sampler keeps what it needs to go on after an interrupt.

    Raises:
        InputError: what the sampler raises, such as a likelihood that is NaN at a named point.
    """
    sample_key, prior_key = jax.random.split(key)
    began = time.perf_counter()
    with compile_clock() as compiling:
        for number in itertools.count():
            target = model.target()
            result = _sampled(target, sampler, sample_key, progress, checkpoint, number)
            result = _with_latents(target, result)
            finer = _finer(model)
            if not result.latents:
                result = _with_marginals(finer or model, result, num_marginal_draws, min_n_eff)
            if finer is None:
                break
            result, good = _with_integration_error(model, target, result)
            if good or _finer(finer) is None:
                break
            model = finer
        result = dataclasses.replace(
            result,
            prior_draws=_prior_draws(model, prior_key, num_prior_draws),
            derived=_derived(model, result, derived),
            fixed=dict(model.prior.fixed),
            truth=None if truth is None else dict(truth),
        )
    spent = time.perf_counter() - began
    compiled = min(compiling(), spent)
    return dataclasses.replace(
        result,
        seconds={"compiling": compiled, "sampling": spent - compiled},
        peak_memory_bytes=peak_memory(),
    )


def _sampled(
    target: Target,
    sampler: Sampler,
    key: Any,
    progress: Progress | None,
    checkpoint: Checkpoint | None,
    number: int,
) -> Result:
    """Run the sampler, for the `number`-th time, and keep all that was found in the checkpoint."""
    if checkpoint is None:
        return sampler.run(target, key, progress=progress)
    keep_record(target, checkpoint.part(f"evaluations {number}"))
    # Samplers that only ever evaluate have nothing else to keep.
    more: dict[str, Any] = {}
    if "checkpoint" in inspect.signature(sampler.run).parameters:
        more["checkpoint"] = checkpoint.part(f"sampler {number}")
    result = sampler.run(target, key, progress=progress, **more)
    checkpoint.write()
    return result


# ---- what follows from the draws -----------------------------------------------------------------


def _with_latents(target: Target, result: Result) -> Result:
    """The objects' parameters apart from the hyperparameters; the status has judged them all."""
    if not target.latents:
        return result
    draws = dict(result.draws)
    latents = {
        name: np.stack([draws.pop(label) for label in labels], axis=-1)
        for name, labels in target.latents.items()
    }
    names = target.object_names
    return dataclasses.replace(result, draws=draws, latents=latents, object_names=names)


def _prior_draws(model: HierarchicalModel, key: Any, num: int) -> dict[str, np.ndarray]:
    draws = model.prior.complete(jax.jit(lambda k: model.prior.sample(k, (num,)))(key))
    return {name: np.broadcast_to(np.asarray(x, float), (num,)) for name, x in draws.items()}


def _derived(
    model: HierarchicalModel, result: Result, extra: Derived | None
) -> dict[str, np.ndarray]:
    """Tied hyperparameters, the total rate and what the caller asks for, at every draw."""

    def one(free: Mapping[str, Any]) -> dict[str, Any]:
        complete = model.prior.complete(free)
        out = {name: complete[name] for name in model.prior.same_as}
        # Leaves with forms of their own need not be rates of the same thing.
        if model.rate == "poisson" and not isinstance(model.likelihood, Leafwise):
            density = model.population(complete)
            if hasattr(density, "log_total"):
                out["total_rate"] = jnp.exp(density.log_total)
        if extra is not None:
            out |= extra(complete)
        return {name: jnp.asarray(x, float) for name, x in out.items()}

    flat = {name: jnp.asarray(result.draws[name].reshape(-1)) for name in model.prior.names}
    if not flat:
        return {}
    out = jax.jit(lambda h: jax.lax.map(one, h, batch_size=256))(flat)
    return {name: np.asarray(x).reshape(result.shape) for name, x in out.items()}


def marginals_at(
    model: HierarchicalModel, free: Mapping[str, np.ndarray], num: int
) -> dict[str, np.ndarray]:
    r"""Evaluate what the model says of its objects at `num` points of the free hyperparameters.

    Returns arrays whose first axis is the points: `value` and `variance` of the log marginals
    (point, object), `log_likelihood_variance`; with a selection `detected` and
    `detected_variance`, and `detected_weight`, what a relative error of $m_\det$ counts in $\ln L$.
    """
    if not hasattr(model, "_marginals_at"):

        def one(point: Mapping[str, Any], data: Any) -> dict[str, Any]:
            h = model.prior.complete(point)
            marginal = model.log_marginals(h, data)
            out = {"value": marginal.value, "variance": marginal.variance}
            total = jnp.sum(marginal.variance)
            if model.selection is not None:
                out["detected"], out["detected_variance"] = model.detected(h, data)
                if model.rate == "poisson":
                    weight = jnp.exp(out["detected"])
                else:
                    weight = jnp.asarray(float(marginal.value.size))
                out["detected_weight"] = weight
                noise = weight**2 * out["detected_variance"]
                total = total + jnp.where(weight > 0, noise, 0.0)
            return out | {"log_likelihood_variance": total}

        def many(points: Mapping[str, Any], data: Any) -> dict[str, Any]:
            return jax.lax.map(lambda p: one(p, data), points)

        model._marginals_at = jax.jit(many)  # type: ignore[attr-defined]
    # Without free hyperparameters there is nothing to map over but the count.
    points = {"": np.zeros(num), **{name: np.asarray(x) for name, x in free.items()}}

    def part(points: dict[str, np.ndarray]) -> Any:
        return model._marginals_at(points, model.data)  # type: ignore[attr-defined]

    return in_blocks(part, points, -(-num // _PARTS))


def effective_draws(form: Any, variance: np.ndarray) -> np.ndarray | None:
    r"""Return $n_\mathrm{eff} = 1/(\mathrm{var} + 1/N)$; None for a form without such noise."""
    drawn = getattr(form, "num_drawn", None)
    if drawn is None:
        return None
    # A sum without any weight has an infinite variance, and no effective draws.
    return 1.0 / (variance + 1.0 / np.asarray(drawn, float))


def _thinned(result: Result, num: int) -> np.ndarray:
    """Indices into the draws of every chain; see `analyse`."""
    chains, draws = result.shape
    if result.log_weight is None or chains > 1:
        each = min(draws, max(1, num // chains))
        return np.unique(np.linspace(0, draws - 1, each).round().astype(int))
    return systematic(result.weights[0], num, 0.5)


def _with_marginals(model: HierarchicalModel, result: Result, num: int, min_n_eff: float) -> Result:
    index = _thinned(
        result, max(_CHECKED, min(num, _MOST_MARGINALS // len(model.likelihood.names)))
    )
    shape = (result.shape[0], len(index))
    flat = {name: result.draws[name][:, index].reshape(-1) for name in model.prior.names}
    at = marginals_at(model, flat, shape[0] * shape[1])
    names = tuple(getattr(model.likelihood, "names", range(at["value"].shape[1])))
    weight = np.ones(shape)
    if result.log_weight is not None and shape[0] > 1:
        weight = result.weights[:, index]
    precision = likelihood_precision(model, flat, weight.ravel(), at)
    measures = dict(result.measures)
    measures["log_likelihood_variance"] = precision.mean
    measures["log_likelihood_variance_max"] = precision.largest
    if precision.difference is not None:
        measures["log_likelihood_difference_variance"] = precision.difference
    problems, notes = precision_findings(precision, model.max_variance)
    n_eff = effective_draws(model.likelihood, at["variance"])
    if n_eff is not None:
        notes += _few_draws(names, n_eff, min_n_eff)
    if "detected_variance" in at:
        injections = effective_draws(model.selection, at["detected_variance"])
        if injections is not None:
            measures["n_eff_injections"] = float(np.mean(injections))
            measures["n_eff_injections_min"] = float(np.min(injections))
            notes += _few_injections(float(np.min(injections)), len(names))
    return dataclasses.replace(
        result,
        status=result.status.plus(*problems, notes=tuple(notes)),
        log_marginals=at["value"].reshape(*shape, -1),
        log_marginal_variances=at["variance"].reshape(*shape, -1),
        n_eff=None if n_eff is None else n_eff.reshape(*shape, -1),
        marginal_draws=index,
        object_names=[str(name) for name in names],
        measures=measures,
    )


def _finer(model: HierarchicalModel) -> HierarchicalModel | None:
    """The model with its objects integrated more finely; None where there is nothing finer."""
    form = model.likelihood.finer() if hasattr(model.likelihood, "finer") else None
    return None if form is None else model.with_parts(form, model.selection)


def _with_integration_error(
    model: HierarchicalModel, target: Target, result: Result
) -> tuple[Result, bool]:
    """Hold ln L as it was sampled against the log marginals, which are integrated more finely.

    Returns the result with what was found, and whether that is within the form's tolerance.
    """
    form: Any = model.likelihood
    assert result.log_marginals is not None and result.marginal_draws is not None
    chosen = np.unique(np.linspace(0, len(result.marginal_draws) - 1, _CHECKED).round().astype(int))
    index = np.asarray(result.marginal_draws)[chosen]
    points = {name: jnp.asarray(result.draws[name][:, index].ravel()) for name in model.prior.names}
    sampled, _ = evaluate(target, np.asarray(jax.vmap(target.unconstrain)(points)))
    finer = result.log_marginals[:, chosen].sum(axis=-1).ravel()
    error = float(np.max(np.abs(finer - sampled)))
    measures = {**result.measures, "integration_error": error, "num_nodes": form.num_nodes}
    result = dataclasses.replace(result, measures=measures)
    if error <= form.tolerance:
        return result, True
    found = Problem.of(
        "integration_error",
        f"with {form.num_nodes} nodes the objects' integrals change ln L by {error:.2g} under the "
        f"posterior (tolerance {form.tolerance:g})",
    )
    return dataclasses.replace(result, status=result.status.plus(found)), False


def _few_draws(names: tuple[Any, ...], n_eff: np.ndarray, minimum: float) -> Iterator[Problem]:
    middle = np.median(n_eff, axis=0)
    scarce = [int(i) for i in np.argsort(middle) if middle[i] < minimum]
    if scarce:
        listed = ", ".join(f"{middle[i]:.3g} of {names[i]}" for i in scarce[:5])
        yield Problem.of(
            "few_draws",
            f"{len(scarce)} of {len(names)} objects have fewer than {minimum:g} effective draws "
            f"({listed})",
        )


def _few_injections(smallest: float, num_objects: int) -> Iterator[Problem]:
    goal = INJECTIONS_PER_OBJECT * num_objects
    if smallest < goal:
        yield Problem.of(
            "few_injections",
            f"the effective number of injections falls to {smallest:.4g} (goal {goal}, four for "
            "every object)",
        )


# ---- time and memory -----------------------------------------------------------------------------


@contextmanager
def compile_clock() -> Iterator[Callable[[], float]]:
    """Measure the seconds in which JAX traces and compiles; yields a function that returns them."""
    spans: list[tuple[float, float]] = []

    def listen(event: str, duration_secs: float, **_: Any) -> None:
        if event.startswith("/jax/core/compile"):
            now = time.perf_counter()
            spans.append((now - duration_secs, now))

    def total() -> float:
        # Tracing a function traces those that it calls: nested spans count once.
        seconds, reached = 0.0, -float("inf")
        for start, end in sorted(spans):
            seconds += max(0.0, end - max(start, reached))
            reached = max(reached, end)
        return seconds

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield total
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def peak_memory() -> int | None:
    """The largest resident memory of this process in bytes; None where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak) if sys.platform == "darwin" else int(peak) * 1024


def forget_programs() -> None:
    """Forget all compiled programs where they have become too many for one process.

    For whoever makes models by the hundred. What is needed again is compiled again.
    """
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > _MOST_MAPS:
        jax.clear_caches()
