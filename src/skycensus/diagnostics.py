r"""Whether draws can be trusted: convergence and effective sample size, and the verdict on a run.

Draws are arrays (chain, draw); a `log_weight` of the same shape makes them a weighted sample.
Everything is NumPy, because draws are looked at after the sampler has finished.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from .status import Problem, Status
from .weights import kish, normalised_weights, pareto_k, quantile

# ---- chains --------------------------------------------------------------------------------------


def import_arviz() -> Any:
    """The module arviz, without the notice of version 0.23 that there is a version 1."""
    with warnings.catch_warnings():
        # A user on Python 3.11 can do nothing about it.
        warnings.simplefilter("ignore", FutureWarning)
        import arviz
    return arviz


def _array_stats() -> Any:
    """ArviZ's statistics of arrays; versions 0.2x and 1 both have `rhat` and `ess` of these."""
    try:
        # Half the import time of arviz 1, whose plots come along otherwise.
        from arviz_stats.base import array_stats  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        return import_arviz()
    return array_stats


def _chains(x: ArrayLike) -> np.ndarray:
    x = np.asarray(x, float)
    if x.ndim != 2:
        raise ValueError(f"expected draws of shape (chain, draw), got shape {x.shape}.")
    return x


def r_hat(x: ArrayLike) -> float:
    r"""Rank-normalised split $\hat R$, the larger of its bulk and its folded form.

    Args:
        x: draws (chain, draw). A single chain is cut in two, which finds drift, not missed modes.

    NaN for fewer than 8 draws a chain, draws that are not finite, or a constant.
    Source: Vehtari et al. 2021, Bayesian Analysis 16, 667, eqs. 3-5 and 14.
    """
    x = _chains(x)
    if x.shape[1] < 8 or not np.isfinite(x).all() or np.ptp(x) == 0:
        return float("nan")
    if len(x) == 1:
        half = x.shape[1] // 2
        x = np.concatenate([x[:, :half], x[:, -half:]])
    # A chain that never moved has no variance within: infinity is then the right answer.
    with np.errstate(divide="ignore", invalid="ignore"):
        value = float(_array_stats().rhat(x))
    return float("inf") if np.isnan(value) else value


def effective_sample_size(
    x: ArrayLike, log_weight: ArrayLike | None = None, *, kind: str = "bulk"
) -> float:
    r"""How many independent draws of the target would estimate `x` as well.

    Without weights this is the bulk, tail (5 and 95 %) or mean effective sample size of Vehtari et
    al. 2021 (Bayesian Analysis 16, 667). With weights $w_t$ of mean one it is, for a function $f$
    of the draws with weighted mean $\mu$ and by the delta method for the ratio estimator,
    $$ \mathrm{ESS} = \frac{\langle w (f - \mu)^2 \rangle}{\mathrm{Var}(\bar u)}, \quad
       u_t = w_t (f_t - \mu), $$
    where $\mathrm{Var}(\bar u)$ counts the autocorrelation of $u$ along the chains. It is the
    above where the weights are equal and Kish's number where they are independent of `x`.
    $f$ is the normal score of the weighted rank (bulk), $x < q$ at both quantiles (tail), or $x$.

    Args:
        x: draws (chain, draw).
        log_weight: unnormalised log weights of the same shape.
        kind: "bulk", "tail" or "mean".

    NaN for fewer than 8 draws a chain, draws that are not finite, or a constant.
    """
    if kind not in ("bulk", "tail", "mean"):
        raise ValueError(f"kind must be bulk, tail or mean, not {kind!r}.")
    x = _chains(x)
    if x.shape[1] < 8 or not np.isfinite(x).all() or np.ptp(x) == 0:
        return float("nan")
    if log_weight is None:
        prob = {"prob": (0.05, 0.95)} if kind == "tail" else {}
        return float(_array_stats().ess(x, method=kind, **prob))
    weight = normalised_weights(log_weight) * x.size
    if kind == "mean":
        return _weighted_ess(x, weight)
    if kind == "bulk":
        return _weighted_ess(_normal_score(x, weight), weight)
    tails = quantile(x, [0.05, 0.95], log_weight)
    return min(_weighted_ess((x <= q).astype(float), weight) for q in tails)


def _weighted_ess(f: np.ndarray, weight: np.ndarray) -> float:
    f = f - np.mean(weight * f)
    u = weight * f
    if np.ptp(u) == 0:
        return float("nan")
    error_squared = np.var(u) / (u.size if _independent(u) else _chain_ess(u))
    return float(np.mean(weight * f**2) / error_squared)


def _chain_ess(u: np.ndarray) -> float:
    return float(_array_stats().ess(u, method="mean"))


def _independent(u: np.ndarray) -> bool:
    """Whether a single chain shows no correlation from each draw to the next.

    That of a Markov chain is the largest of all; without it there is nothing to add up, and ArviZ,
    which takes a second to import, is not needed. A correlation of two per cent changes the
    number by four, and counts as none.
    """
    if len(u) > 1:
        return False
    v = u[0] - u.mean()
    return bool(abs(v[1:] @ v[:-1]) < max(3.0 / np.sqrt(v.size), 0.02) * (v @ v))


def _normal_score(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    from scipy.special import ndtri

    values, where = np.unique(x, return_inverse=True)
    mass = np.bincount(np.ravel(where), weights=np.ravel(weight), minlength=len(values))
    rank = np.cumsum(mass) - 0.5 * mass + 0.5
    return ndtri((rank - 0.375) / (x.size + 0.25))[where].reshape(x.shape)


# ---- the verdict ---------------------------------------------------------------------------------


class Goals(NamedTuple):
    """What a run must reach to have converged.

    Attributes:
        r_hat: the largest $\\hat R$ of a parameter.
        ess: the smallest effective sample size, of the weights and of each parameter.
        k_hat: the largest tail shape of importance weights.
        divergent: the largest share of divergent draws; fewer are a note.
    """

    r_hat: float = 1.01
    ess: float = 400.0
    k_hat: float = 0.7
    divergent: float = 0.01


GOALS = Goals()


def scalars(draws: Mapping[str, ArrayLike]) -> Iterator[tuple[str, np.ndarray]]:
    """Every scalar parameter as (name, array (chain, draw)); `x` of more is `x[0]`, `x[1]`, ..."""
    for name, values in draws.items():
        array = np.asarray(values)
        if array.ndim < 2:
            raise ValueError(f"draws of {name!r} need the shape (chain, draw), not {array.shape}.")
        for index in np.ndindex(array.shape[2:]):
            label = f"{name}[{','.join(map(str, index))}]" if index else name
            yield label, array[(..., *index)]


def _listed(found: Mapping[str, float], goal: str, total: int, *, largest: bool) -> str:
    """The five worst by name: ``1.36 for 'alpha', 1.1 for 'beta' (2 of 5 parameters, goal ...)``"""
    worst = sorted(found.items(), key=lambda item: item[1], reverse=largest)[:5]
    text = ", ".join(f"{value:.4g} for {name!r}" for name, value in worst)
    return f"{text} ({len(found)} of {total} parameters, goal {goal})"


def _chain_problems(
    draws: dict[str, np.ndarray], log_weight: np.ndarray | None, goals: Goals
) -> Iterator[Problem]:
    broken = [name for name, x in draws.items() if not np.isfinite(x).all()]
    if broken:
        names = ", ".join(map(repr, broken[:5]))
        yield Problem.of("nan_draws", f"draws of {names} are not all finite")
    stuck = [name for name, x in draws.items() if name not in broken and np.ptp(x) == 0]
    if stuck:
        names = ", ".join(f"{name!r} is {draws[name].flat[0]:.6g}" for name in stuck[:5])
        yield Problem.of("stuck", f"every draw of {names}")
    good = {name: x for name, x in draws.items() if name not in broken + stuck}
    if not good:
        return
    short = next(iter(good.values())).shape[1]
    if short < 8:
        yield Problem.of("ess", f"{short} draws a chain are too few to judge by (goal 8 and more)")
        return
    if log_weight is None or len(log_weight) > 1:
        mixing = {name: r_hat(x) for name, x in good.items()}
        poor = {name: value for name, value in mixing.items() if not value <= goals.r_hat}
        if poor:
            what = _listed(poor, f"{goals.r_hat:g} at most", len(draws), largest=True)
            yield Problem.of("r_hat", f"r_hat is {what}")
    n_eff = float("inf") if log_weight is None else kish(log_weight)
    if n_eff < goals.ess:
        size = f"the weights leave an effective sample size of {n_eff:.4g}"
        yield Problem.of("importance_ess", f"{size} (goal {goals.ess:g})")
        return
    sizes = {
        name: min(effective_sample_size(x, log_weight, kind=kind) for kind in ("bulk", "tail"))
        for name, x in good.items()
    }
    # A tail quantile shared by many equal draws has no indicator to vary; the bulk then speaks.
    poor = {name: size for name, size in sizes.items() if size < goals.ess}
    if poor:
        what = _listed(poor, f"{goals.ess:g} at least", len(draws), largest=False)
        yield Problem.of("ess", f"the effective sample size is {what}")


def _edge_notes(
    draws: dict[str, np.ndarray],
    log_weight: np.ndarray | None,
    bounds: Mapping[str, tuple[float, float]],
) -> Iterator[Problem]:
    """Notes on posteriors that do not fall towards a bound of their prior.

    A flat posterior has 2 % of its mass in the last fiftieth of the range; one that is cut off by
    the bound has more, and no less than in the fiftieth before it.
    """
    size = next(iter(draws.values())).size
    weight = np.full(size, 1 / size) if log_weight is None else normalised_weights(log_weight)
    weight = np.ravel(weight)
    for name in sorted(set(bounds) & set(draws)):
        low, high = (float(bound) for bound in bounds[name])
        if not np.isfinite(high - low) or not low < high:
            continue
        x = np.ravel(draws[name])
        if low > 0 and high > 100 * low:
            # Over decades, a fiftieth of the range is one of the logarithm.
            place = np.log(x / low) / np.log(high / low)
        else:
            place = (x - low) / (high - low)
        for side, value, from_bound in (("lower", low, place), ("upper", high, 1 - place)):
            last = weight[from_bound < 0.02].sum()
            before = weight[(from_bound >= 0.02) & (from_bound < 0.04)].sum()
            if last > 0.05 and last > 0.8 * before:
                where = f"within 1/50 of the prior's {side} bound {value:g}"
                yield Problem.of("prior_edge", f"{last:.0%} of the draws of {name!r} lie {where}")


def _divergences(stats: Mapping[str, np.ndarray], most: float) -> Problem | None:
    if "diverging" not in stats or not (count := int(np.sum(stats["diverging"]))):
        return None
    total = np.size(stats["diverging"])
    goal = f"goal at most {most:.2%}"
    return Problem.of("divergences", f"{count} of {total} draws diverged ({goal})")


def _cut_trajectories(stats: Mapping[str, np.ndarray], max_tree_depth: int) -> Problem | None:
    depth, steps = stats.get("tree_depth"), stats.get("num_steps")
    if depth is None and steps is not None:
        # A tree of depth d takes at most 2^d - 1 steps, and more than half of it when it is cut.
        depth = np.floor(np.log2(np.maximum(steps, 1))) + 1
    if depth is None or (share := float(np.mean(depth >= max_tree_depth))) <= 0.05:
        return None
    said = f"{share:.0%} of the trajectories reached max_tree_depth={max_tree_depth}"
    return Problem.of("tree_depth", said)


def diagnose(
    draws: Mapping[str, ArrayLike],
    sample_stats: Mapping[str, ArrayLike] | None = None,
    log_weight: ArrayLike | None = None,
    *,
    prior_bounds: Mapping[str, tuple[float, float]] | None = None,
    k_hat: float | None = None,
    max_tree_depth: int = 10,
    goals: Goals = GOALS,
) -> Status:
    r"""The status of a finished run.

    Args:
        draws: name -> array (chain, draw, ...).
        sample_stats: name -> array (chain, draw). Looked at: `diverging`, `tree_depth` (or
            `num_steps`) and `log_likelihood`.
        log_weight: log weights of the draws (chain, draw); a single weighted chain is taken for
            independent draws and has no $\hat R$.
        prior_bounds: name -> (low, high), for notes on posteriors that lean against a bound.
        k_hat: of the raw weights, where `log_weight` is already smoothed.
        max_tree_depth: the sampler's; reaching it costs time but is no error: a note, unless the
            draws also mix badly.
        goals: what is asked of the run.
    """
    flat = dict(scalars(draws))
    if not flat:
        raise ValueError("there are no draws to diagnose.")
    stats = {name: np.asarray(values) for name, values in (sample_stats or {}).items()}
    weight = None if log_weight is None else np.asarray(log_weight, float)
    problems = list(_chain_problems(flat, weight, goals))
    mixed = not any(problem.kind in ("r_hat", "ess") for problem in problems)
    notes: list[Problem] = []
    if (divergences := _divergences(stats, goals.divergent)) is not None:
        many = np.mean(stats["diverging"]) > goals.divergent
        (problems if many else notes).append(divergences)
    if (tree := _cut_trajectories(stats, max_tree_depth)) is not None:
        (notes if mixed else problems).append(tree)
    if weight is not None:
        k = pareto_k(weight) if k_hat is None else k_hat
        if not k <= goals.k_hat:
            problems.append(Problem.of("k_hat", f"Pareto k-hat is {k:.2f} (goal {goals.k_hat:g})"))
    log_likelihood = stats.get("log_likelihood")
    if log_likelihood is not None and np.isnan(log_likelihood).any():
        at = tuple(np.argwhere(np.isnan(log_likelihood))[0][:2])
        point = ", ".join(f"{name}={x[at]:.6g}" for name, x in flat.items())
        problems.append(Problem.of("nan_likelihood", f"log L is NaN at {point}"))
    if prior_bounds:
        notes += _edge_notes(flat, weight, prior_bounds)
    return Status(not problems, tuple(problems), tuple(notes))
