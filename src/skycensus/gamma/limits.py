r"""Upper limits, what limits are to be expected without a signal, and the evidence for one.

For a model with rates. The limit of a hyperparameter $x \ge 0$, such as
$\langle\sigma v\rangle$, is the quantile of its posterior, $P(x < x_{95} | \mathrm{data}) = 0.95$:
it depends on the prior of x, and is the usual Bayesian one where that is uniform from zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..errors import InputError, did_you_mean
from ..keys import generator
from ..model import HierarchicalModel, hyperparameter_names
from ..prior import Prior, components
from ..result import Result
from ..samplers import ImportanceSampler, Progress, Sampler
from ..target import Target
from ..weights import kish, quantile
from .photons import Observation, Tree, path_of, photon_model, population
from .simulate import draw_counts, simulate_all

# The power of the mean catalogue's likelihood that draws for all catalogues are made with: where
# single catalogues scatter by their own error, weights from a density three times as broad in the
# variance are the most even.
_POWER = 1.0 / 3.0


def upper_limit(result: Result, name: str, *, level: float = 0.95) -> float:
    """The posterior's upper limit on a hyperparameter, see the module.

    Raises:
        InputError: a name that the result does not have.
    """
    every = {**result.draws, **result.derived}
    if name not in every:
        raise InputError(f"no hyperparameter '{name}'{did_you_mean(name, every)}.")
    return float(quantile(every[name], [level], result.log_weight)[0])


# ---- without a signal ----------------------------------------------------------------------------


class Sensitivity(NamedTuple):
    """Upper limits of simulated catalogues.

    Attributes:
        limits: (catalogue,).
        n_eff: (catalogue,) effective draws behind each; below about 100 a limit is rough.
        counts: (catalogue,) photons.
    """

    limits: np.ndarray
    n_eff: np.ndarray
    counts: np.ndarray

    def quantiles(self, levels: Sequence[float] = (0.025, 0.16, 0.5, 0.84, 0.975)) -> np.ndarray:
        """Of the limits: by default their median and where 68 % and 95 % of them lie."""
        return np.quantile(self.limits, levels)


def expected_limits(
    observations: Sequence[Observation],
    tree: Tree,
    prior: Prior,
    null: Mapping[str, float],
    name: str,
    key: Any,
    *,
    num_catalogues: int = 200,
    level: float = 0.95,
    num_draws: int = 4000,
    progress: Progress | None = None,
) -> Sensitivity:
    """Upper limits on a hyperparameter in catalogues without a signal.

    All catalogues are simulated at once and folded at once. They share draws from the posterior
    that their mean log likelihood makes, broadened, which are then weighted for each.

    Args:
        observations: pointings, responses and cuts; their photons are not used.
        tree, prior: the model, with rates.
        null: true values of all hyperparameters, with the signal at zero.
        name: of the hyperparameter that is limited.
        key: of all randomness.
        num_catalogues, level: how many, and what is below the limit.
        num_draws: that the catalogues share.

    Raises:
        InputError: a name that is not free, and what `photon_model` raises.
    """
    simulate_key, sample_key, draw_key = jax.random.split(key, 3)
    pooled, catalogue = _pool(observations, tree, null, num_catalogues, simulate_key)
    model = photon_model(pooled, tree, prior, rate="rates")
    if name not in model.prior.names:
        raise InputError(
            f"'{name}' is no free hyperparameter{did_you_mean(name, model.prior.names)}; there "
            f"are {list(model.prior.names)}."
        )
    # The mean log likelihood, of so many photons as a catalogue has.
    target = Target(
        model.prior,
        lambda free, data: _POWER * _mean_log_likelihood(model, free, data, num_catalogues),
        data=model.data,
    )
    result = ImportanceSampler(target_ess=num_draws).run(target, sample_key, progress=progress)
    draws = result.equal_weight_draws(generator(draw_key), num_draws)
    free = {n: jnp.asarray(draws[n]) for n in model.prior.names}
    each = _log_likelihoods(model, free, catalogue, num_catalogues)
    log_weight = each - _POWER * each.mean(axis=1, keepdims=True)
    limits = [quantile(draws[name], [level], w)[0] for w in log_weight.T]
    return Sensitivity(
        np.array(limits, float),
        np.array([kish(w) for w in log_weight.T]),
        np.bincount(catalogue, minlength=num_catalogues),
    )


def _pool(
    observations: Sequence[Observation], tree: Tree, null: Mapping[str, float], num: int, key: Any
) -> tuple[list[Observation], np.ndarray]:
    """The photons of all catalogues together, and (photon,) the catalogue of each.

    Poisson numbers that are divided at random are Poisson numbers, independent of each other.
    """
    count_key, photon_key, divide_key = jax.random.split(key, 3)
    longer = [replace(o, livetime=num * o.livetime) for o in observations]
    counts = draw_counts(longer, tree, null, count_key)
    seen, _ = simulate_all(longer, tree, null, counts, photon_key)
    pooled = [replace(s, livetime=o.livetime) for s, o in zip(seen, observations, strict=True)]
    total = sum(int(o.used.sum()) for o in pooled)
    return pooled, generator(divide_key).integers(num, size=total)


def _mean_log_likelihood(model: HierarchicalModel, free: Any, data: Any, num: int) -> Any:
    h = model.prior.complete(free)
    total = jnp.sum(model.log_marginals(h, data).value) / num
    return total - jnp.exp(model.detected(h, data).value)


def _log_likelihoods(
    model: HierarchicalModel, free: Mapping[str, Any], catalogue: np.ndarray, num: int
) -> np.ndarray:
    """(draw, catalogue) log likelihoods."""

    def one(point: Any, data: Any) -> Any:
        h = model.prior.complete(point)
        each = jax.ops.segment_sum(model.log_marginals(h, data).value, catalogue, num)
        return each - jnp.exp(model.detected(h, data).value)

    many = jax.jit(lambda points, data: jax.lax.map(lambda p: one(p, data), points))
    return np.asarray(many(dict(free), model.data))


# ---- evidence ------------------------------------------------------------------------------------


class SignalEvidence(NamedTuple):
    """How much likelier the photons are with a component than without it.

    Attributes:
        log_bayes_factor: the logarithm of the ratio of the evidences, with over without.
        error: its standard deviation.
        present, absent: the results of both models; None for one that has nothing free.
    """

    log_bayes_factor: float
    error: float
    present: Result | None
    absent: Result | None


def signal_evidence(
    observations: Sequence[Observation],
    tree: Tree,
    prior: Prior,
    signal: str,
    key: Any,
    *,
    sampler: Sampler | None = None,
    progress: Progress | None = None,
) -> SignalEvidence:
    """Compare a model with rates with the same without one of its components.

    Args:
        observations, tree, prior: of the model.
        signal: the component's path or name.
        key: of all randomness.
        sampler: one that knows the evidence; by default importance sampling.

    Raises:
        InputError: no such component, a prior that ties it to others, or a sampler that does not
            know the evidence.
    """
    sampler = sampler or ImportanceSampler()
    rest = without(tree, signal)
    runs = [observation.name for observation in observations]
    every = prior.resolve(*hyperparameter_names(population(tree, rates=True, runs=runs)))
    needed, _ = hyperparameter_names(population(rest, rates=True, runs=runs))
    pairs = zip((tree, rest), (every, _some(every, needed)), jax.random.split(key), strict=True)
    present, absent = (
        _evidence(photon_model(observations, own, p, rate="rates"), sampler, k, progress)
        for own, p, k in pairs
    )
    return SignalEvidence(
        present[0] - absent[0], float(np.hypot(present[1], absent[1])), present[2], absent[2]
    )


def _evidence(
    model: HierarchicalModel, sampler: Sampler, key: Any, progress: Progress | None
) -> tuple[float, float, Result | None]:
    """The log evidence of a model, its error, and the sampler's result."""
    if not model.prior.names:
        return float(model.log_likelihood(model.prior.complete({})).value), 0.0, None
    result = sampler.run(model.target(), key, progress=progress)
    if result.log_evidence is None or result.log_evidence_error is None:
        raise InputError(
            f"{type(sampler).__name__} does not know the evidence; use Nested, importance sampling "
            "or quadrature."
        )
    return result.log_evidence, result.log_evidence_error, result


def without(tree: Tree, name: str) -> dict[str, Any]:
    """The tree without a component, by its path or name; branches that are then empty go too.

    Raises:
        InputError: no such component, or no other one.
    """
    left_out = path_of(tree, name, f"no component '{name}'")

    def pruned(branch: Tree, above: str) -> dict[str, Any]:
        kept: dict[str, Any] = {}
        for own, part in branch.items():
            path = f"{above}{own}"
            if path == left_out:
                continue
            if not isinstance(part, Mapping):
                kept[own] = part
            elif below := pruned(part, f"{path}/"):
                kept[own] = below
        return kept

    rest = pruned(tree, "")
    if not rest:
        raise InputError(f"without '{name}' nothing is left; a null model needs a component.")
    return rest


def _some(prior: Prior, names: Sequence[str]) -> Prior:
    """The prior of some of its hyperparameters."""
    kept: dict[str, Any] = {}
    for key, entry in {**prior.free, **prior.fixed, **prior.same_as}.items():
        own = [name in names for name in components(key)]
        if any(own) and not all(own):
            raise InputError(
                f"prior '{key}' ties what the signal has to what the rest has; give each its own."
            )
        target = entry if isinstance(entry, str) else None
        if target is not None and any(own) and target not in names:
            raise InputError(
                f"prior '{key}' is tied to '{target}', which the signal has; give it its own."
            )
        if any(own):
            kept[key] = entry
    return Prior(kept)
