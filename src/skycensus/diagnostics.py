r"""Whether draws can be trusted: convergence, effective sample size, importance weights, `Status`.

Draws are arrays (chain, draw); a `log_weight` of the same shape makes them a weighted sample.
Everything is NumPy, because draws are looked at after the sampler has finished.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .errors import did_you_mean

# ---- outcomes ------------------------------------------------------------------------------------

REMEDIES: Mapping[str, str] = MappingProxyType(
    {
        "r_hat": "the chains have not mixed: raise num_warmup and num_samples, start closer to the "
        "posterior, or use a sampler made for several modes",
        "ess": "raise num_samples, or use a dense mass matrix where parameters are correlated",
        "stuck": "the sampler never moved it: start elsewhere, or give it a fixed number as prior",
        "divergences": "raise target_accept_prob towards 0.99, or look for a hard edge or a funnel "
        "in the model; the draws may miss a part of the posterior",
        "tree_depth": "raise max_tree_depth, or use a dense mass matrix",
        "k_hat": "the proposal is too narrow in the tails and a few draws dominate: let it adapt "
        "longer, give it heavier tails, or use NUTS",
        "importance_ess": "raise num_samples, or let the proposal adapt longer",
        "monte_carlo_variance": "log L is not known well enough: use more draws per object or more "
        "injections, or set max_variance",
        "few_draws": "their log marginals are rough: use more draws of them, or leave them out",
        "few_injections": "the selection integral is rough: use more injections, nearer to the "
        "population",
        "prior_edge": "the bound may set this result, not the data: widen the prior unless the "
        "bound is physical",
        "nan_likelihood": "the model is broken there: evaluate it at this point and mend it, or "
        "keep the prior away",
        "nan_draws": "a NaN is a fault of the model or the sampler, never a result: evaluate the "
        "model near the last finite draw",
        "non_finite_start": "give start values inside the support of the prior and the population",
    }
)
"""Every kind of problem and what to do about it."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a run: a `kind` of `REMEDIES` and a message for the user."""

    kind: str
    message: str

    def __post_init__(self) -> None:
        if self.kind not in REMEDIES:
            raise ValueError(
                f"unknown kind of problem {self.kind!r}{did_you_mean(self.kind, REMEDIES)}; "
                f"known are {', '.join(REMEDIES)}."
            )

    @classmethod
    def of(cls, kind: str, finding: str) -> Problem:
        """The problem `finding` with the remedy of its kind: ``finding; remedy.``"""
        return cls(kind, f"{finding}; {REMEDIES[kind]}." if kind in REMEDIES else finding)


@dataclass(frozen=True)
class Status:
    """How a run ended: converged, or the problems that it has; `notes` are worth knowing.

    Notes do not touch convergence. A status has no truth value: ask `status.converged`.

    Raises:
        ValueError: converged with problems, or not converged without one.
    """

    converged: bool
    problems: tuple[Problem, ...] = ()
    notes: tuple[Problem, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "problems", tuple(self.problems))
        object.__setattr__(self, "notes", tuple(self.notes))
        if self.converged == bool(self.problems):
            raise ValueError(
                "a status is converged exactly where it has no problems, not "
                f"converged={self.converged} with {len(self.problems)}; use notes for remarks."
            )

    @property
    def exit_code(self) -> int:
        """0 where converged; 3 where the run finished and its result needs care."""
        return 0 if self.converged else 3

    def plus(self, *problems: Problem, notes: tuple[Problem, ...] = ()) -> Status:
        """This status with more problems and notes."""
        found = self.problems + problems
        return Status(not found, found, self.notes + tuple(notes))

    def __bool__(self) -> bool:
        raise TypeError("a Status is neither true nor false: ask status.converged.")

    def __str__(self) -> str:
        lines = [f"not converged ({p.kind}): {p.message}" for p in self.problems]
        lines += [f"note ({n.kind}): {n.message}" for n in self.notes]
        return "\n".join(lines if self.problems else ["converged", *lines])


# ---- chains and weights --------------------------------------------------------------------------


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


def normalised_weights(log_weight: ArrayLike) -> np.ndarray:
    r"""Weights $w_k / \sum_j w_j$ in the shape given.

    Raises:
        ValueError: a NaN or $+\infty$, or no weight above zero.
    """
    log_weight = np.asarray(log_weight, float)
    if log_weight.size == 0 or np.isnan(log_weight).any() or not np.isfinite(log_weight.max()):
        raise ValueError("log_weight must have no NaN or +inf and at least one finite entry.")
    weight = np.exp(log_weight - log_weight.max())
    return weight / weight.sum()


def kish(log_weight: ArrayLike) -> float:
    r"""Kish's effective sample size of weighted draws, $(\sum_k w_k)^2 / \sum_k w_k^2$."""
    return float(1 / np.sum(normalised_weights(log_weight) ** 2))


def quantile(x: ArrayLike, q: Any, log_weight: ArrayLike | None = None) -> np.ndarray:
    """Quantiles of all of `x`: linear between draws, or inverting the weighted distribution."""
    x = np.ravel(x).astype(float)
    if log_weight is None:
        return np.quantile(x, q)
    weights = np.ravel(normalised_weights(log_weight))
    return np.quantile(x, q, weights=weights, method="inverted_cdf")


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
    error_squared = np.var(u) / float(_array_stats().ess(u, method="mean"))
    return float(np.mean(weight * f**2) / error_squared)


def _normal_score(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    from scipy.special import ndtri

    values, where = np.unique(x, return_inverse=True)
    mass = np.bincount(np.ravel(where), weights=np.ravel(weight), minlength=len(values))
    rank = np.cumsum(mass) - 0.5 * mass + 0.5
    return ndtri((rank - 0.375) / (x.size + 0.25))[where].reshape(x.shape)


# ---- Pareto smoothing ----------------------------------------------------------------------------


def _tail_length(n: int, relative_efficiency: float) -> int:
    return int(np.ceil(min(n / 5, 3 * np.sqrt(n / relative_efficiency))))


def fit_generalised_pareto(x: np.ndarray) -> tuple[float, float]:
    r"""Shape $k$ and scale $\sigma$ of $F(x) = 1 - (1 + k x / \sigma)^{-1/k}$ from exceedances.

    The posterior mean over the profile likelihood in $b = -k/\sigma$ (Zhang & Stephens 2009,
    Technometrics 51, 316), with $k$ drawn towards 1/2 by as much as ten points would (Vehtari et
    al. 2024, JMLR 25(72), appendix G).

    Args:
        x: positive exceedances in ascending order.
    """
    n = len(x)
    grid = 30 + int(np.sqrt(n))
    quartile = x[max(int(n / 4 + 0.5) - 1, 0)]
    b = 1 / x[-1] + (1 - np.sqrt(grid / (np.arange(1, grid + 1) - 0.5))) / (3 * quartile)
    shape = np.array([np.mean(np.log1p(-value * x)) for value in b])
    log_profile = n * (np.log(-b / shape) - shape - 1)
    b_mean = np.sum(normalised_weights(log_profile) * b)
    k = np.mean(np.log1p(-b_mean * x))
    return float((n * k + 5) / (n + 10)), float(-k / b_mean)


def pareto_smooth(
    log_weight: ArrayLike, *, relative_efficiency: float = 1.0
) -> tuple[np.ndarray, float]:
    r"""Pareto-smoothed log weights in the same shape and on the same scale, and $\hat k$.

    The $M = \min(S/5, 3\sqrt{S/r})$ largest of the $S$ weights become the expected order
    statistics of the generalised Pareto distribution fitted to them, capped at the largest.
    $\hat k > 0.7$: estimates with these weights are unreliable, at any size that one can afford.
    $\hat k$ is $-\infty$ where the tail has equal weights (nothing to smooth), and $+\infty$ where
    fewer than five weights stand above the tail's edge (too few to tell).

    Args:
        log_weight: unnormalised log weights, any shape; $-\infty$ is a weight of zero.
        relative_efficiency: $r$, the effective sample size of the draws over their number.

    Source: Vehtari, Simpson, Gelman, Yao & Gabry 2024, JMLR 25(72).
    """
    raw = np.asarray(log_weight, float)
    normalised_weights(raw)  # raises for a NaN or nothing but zeros
    top = raw.max()
    flat = np.ravel(raw) - top
    order = np.argsort(flat, kind="stable")
    count = _tail_length(flat.size, relative_efficiency)
    if flat.size <= count:
        return raw.copy(), float("inf")
    edge = max(flat[order[-count - 1]], np.log(np.finfo(float).tiny))
    tail = order[-count:][flat[order[-count:]] > edge]
    if tail.size < 5:
        # Equal weights leave no tail at all, which is as good as weights can be.
        return raw.copy(), float("-inf") if edge == 0 else float("inf")
    k, scale = fit_generalised_pareto(np.exp(flat[tail]) - np.exp(edge))
    log_survival = np.log1p(-(np.arange(tail.size) + 0.5) / tail.size)
    steps = -log_survival if k == 0 else np.expm1(-k * log_survival) / k
    flat[tail] = np.minimum(np.log(np.exp(edge) + scale * steps), 0.0)
    return flat.reshape(raw.shape) + top, k


def pareto_k(log_weight: ArrayLike, *, relative_efficiency: float = 1.0) -> float:
    r"""The tail shape $\hat k$ of `pareto_smooth`; give it weights that are not yet smoothed."""
    return pareto_smooth(log_weight, relative_efficiency=relative_efficiency)[1]


# ---- the verdict ---------------------------------------------------------------------------------


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
    draws: dict[str, np.ndarray], log_weight: np.ndarray | None, max_r_hat: float, min_ess: float
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
        poor = {name: value for name, value in mixing.items() if not value <= max_r_hat}
        if poor:
            what = _listed(poor, f"{max_r_hat:g} at most", len(draws), largest=True)
            yield Problem.of("r_hat", f"r_hat is {what}")
    n_eff = float("inf") if log_weight is None else kish(log_weight)
    if n_eff < min_ess:
        size = f"the weights leave an effective sample size of {n_eff:.4g}"
        yield Problem.of("importance_ess", f"{size} (goal {min_ess:g})")
        return
    sizes = {
        name: min(effective_sample_size(x, log_weight, kind=kind) for kind in ("bulk", "tail"))
        for name, x in good.items()
    }
    # A tail quantile shared by many equal draws has no indicator to vary; the bulk then speaks.
    poor = {name: size for name, size in sizes.items() if size < min_ess}
    if poor:
        what = _listed(poor, f"{min_ess:g} at least", len(draws), largest=False)
        yield Problem.of("ess", f"the effective sample size is {what}")


def variance_finding(
    variance: ArrayLike, log_weight: ArrayLike | None = None, *, goal: float = 1.0
) -> Problem | None:
    r"""A Monte Carlo variance of $\log L$ that is too large, as a problem; None where it is small.

    Args:
        variance: at every draw, any shape.
        log_weight: log weights of these draws.
        goal: the largest mean that passes.
    """
    values = np.asarray(variance, float)
    mass = None if log_weight is None else normalised_weights(log_weight)
    mean = float(np.average(values, weights=mass))
    if mean <= goal:
        return None
    found = f"the mean Monte Carlo variance of log L is {mean:.3g} (goal {goal:g} at most)"
    return Problem.of("monte_carlo_variance", found)


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
        place = (np.ravel(draws[name]) - low) / (high - low)
        for side, value, from_bound in (("lower", low, place), ("upper", high, 1 - place)):
            last = weight[from_bound < 0.02].sum()
            before = weight[(from_bound >= 0.02) & (from_bound < 0.04)].sum()
            if last > 0.05 and last > 0.8 * before:
                where = f"within 1/50 of the prior's {side} bound {value:g}"
                yield Problem.of("prior_edge", f"{last:.0%} of the draws of {name!r} lie {where}")


def _nuts_findings(
    stats: Mapping[str, np.ndarray], max_divergent: float, max_tree_depth: int
) -> tuple[Problem | None, Problem | None]:
    """What NUTS says of itself: (divergences, tree depth); None where all is well."""
    divergences = tree = None
    if "diverging" in stats and (count := int(np.sum(stats["diverging"]))):
        total = np.size(stats["diverging"])
        goal = f"goal at most {max_divergent:.2%}"
        divergences = Problem.of("divergences", f"{count} of {total} draws diverged ({goal})")
    depth = stats.get("tree_depth")
    steps = stats.get("num_steps", stats.get("n_steps"))
    if depth is None and steps is not None:
        # A tree of depth d takes at most 2^d - 1 steps, and more than half of it when it is cut.
        depth = np.floor(np.log2(np.maximum(steps, 1))) + 1
    if depth is not None and (share := float(np.mean(np.asarray(depth) >= max_tree_depth))) > 0.05:
        said = f"{share:.0%} of the trajectories reached max_tree_depth={max_tree_depth}"
        tree = Problem.of("tree_depth", said)
    return divergences, tree


def diagnose(
    draws: Mapping[str, ArrayLike],
    sample_stats: Mapping[str, ArrayLike] | None = None,
    log_weight: ArrayLike | None = None,
    *,
    prior_bounds: Mapping[str, tuple[float, float]] | None = None,
    k_hat: float | None = None,
    max_r_hat: float = 1.01,
    min_ess: float = 400,
    max_k_hat: float = 0.7,
    max_log_likelihood_variance: float | None = None,
    max_divergent: float = 0.01,
    max_tree_depth: int = 10,
) -> Status:
    r"""The status of a finished run.

    Args:
        draws: name -> array (chain, draw, ...).
        sample_stats: name -> array (chain, draw). Looked at: `diverging`, `tree_depth` (or
            `num_steps`), `log_likelihood` and `log_likelihood_variance`, the Monte Carlo variance
            of $\log L$, whose posterior mean should stay below one (Talbot & Golomb 2023, MNRAS
            526, 3495): a note where it does not.
        log_weight: log weights of the draws (chain, draw); a single weighted chain is taken for
            independent draws and has no $\hat R$.
        prior_bounds: name -> (low, high), for notes on posteriors that lean against a bound.
        k_hat: of the raw weights, where `log_weight` is already smoothed.
        max_log_likelihood_variance: a limit that the user has set on that mean: beyond it is a
            problem.
        max_divergent: share of divergent draws that is a problem; fewer are a note.

    Reaching the largest tree depth costs time but is no error: a note, unless the draws also mix
    badly.
    """
    flat = dict(scalars(draws))
    if not flat:
        raise ValueError("there are no draws to diagnose.")
    stats = {name: np.asarray(values) for name, values in (sample_stats or {}).items()}
    weight = None if log_weight is None else np.asarray(log_weight, float)
    problems = list(_chain_problems(flat, weight, max_r_hat, min_ess))
    notes: list[Problem] = []

    divergences, tree = _nuts_findings(stats, max_divergent, max_tree_depth)
    if divergences is not None:
        many = np.mean(stats["diverging"]) > max_divergent
        (problems if many else notes).append(divergences)
    if tree is not None:
        mixed = not any(problem.kind in ("r_hat", "ess") for problem in problems)
        (notes if mixed else problems).append(tree)

    if weight is not None:
        k = pareto_k(weight) if k_hat is None else k_hat
        if not k <= max_k_hat:
            problems.append(Problem.of("k_hat", f"Pareto k-hat is {k:.2f} (goal {max_k_hat:g})"))
    log_likelihood = stats.get("log_likelihood")
    if log_likelihood is not None and np.isnan(log_likelihood).any():
        at = tuple(np.argwhere(np.isnan(log_likelihood))[0][:2])
        point = ", ".join(f"{name}={x[at]:.6g}" for name, x in flat.items())
        problems.append(Problem.of("nan_likelihood", f"log L is NaN at {point}"))
    if (variance := stats.get("log_likelihood_variance")) is not None:
        limit = max_log_likelihood_variance
        found = variance_finding(variance, weight, goal=1.0 if limit is None else limit)
        if found is not None:
            (notes if limit is None else problems).append(found)
    if prior_bounds:
        notes += _edge_notes(flat, weight, prior_bounds)
    return Status(not problems, tuple(problems), tuple(notes))
