r"""Whether posteriors mean what they say: simulation-based calibration of a whole analysis.

Draw a truth $\tilde\Lambda$ from the prior, data from the truth, and the posterior given the data.
Where simulation and analysis are of one mind, the posterior probability below the truth,
$P(\Lambda < \tilde\Lambda \mid d)$, is uniform on [0, 1] for each parameter (Cook, Gelman & Rubin
2006, J. Comput. Graph. Stat. 15, 675; Talts et al. 2018, arXiv:1804.06788). A wrong likelihood,
selection or sampler shows up as ranks that are not: at one end where the posterior is biased, at
both ends where it is too narrow, in the middle where it is too wide.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
from scipy import stats

from .analysis import forget_programs
from .diagnostics import effective_sample_size, scalars
from .errors import InputError, did_you_mean
from .model import HierarchicalModel
from .prior import Prior
from .result import Result, plain
from .samplers import Progress, Sampler
from .target import Target

Simulate = Callable[[Any], tuple[Mapping[str, Any], HierarchicalModel | Target]]
"""key -> (truth by parameter, the analysis of data simulated from that truth)."""

_NAMED = 10


class PValues(NamedTuple):
    r"""Probabilities of ranks as unequal as these, or more so, where the analysis is right.

    Attributes:
        kolmogorov_smirnov: of the largest distance between distribution functions: sees a bias.
        chi_square: two-sided, of $\sum_c \Phi^{-1}(u_c)^2 \sim \chi^2_C$ over C catalogues (Cook,
            Gelman & Rubin 2006): sees wrong widths, which the other hardly does.
    """

    kolmogorov_smirnov: float
    chi_square: float


@dataclass(frozen=True, eq=False)
class Calibration:
    """The ranks of true parameters in their posteriors.

    Attributes:
        parameters: their names.
        ranks: (catalogue, parameter) in (0, 1); NaN where draws were not finite.
        truths: (catalogue, parameter).
        problems: the kinds of problems of each catalogue's run; empty where it converged.
    """

    parameters: tuple[str, ...]
    ranks: np.ndarray
    truths: np.ndarray
    problems: tuple[tuple[str, ...], ...]

    def p_values(self) -> dict[str, PValues]:
        """Parameter -> two tests of its ranks being uniform; NaN where a rank is NaN."""
        return {name: _tests(u) for name, u in zip(self.parameters, self.ranks.T, strict=True)}

    @property
    def p_value(self) -> float:
        """The smallest of all p-values times their number, at most one (Bonferroni).

        It holds however the parameters depend on each other.
        """
        every = np.array(list(self.p_values().values()))
        return float(np.minimum(every.min() * every.size, 1.0))

    @property
    def not_converged(self) -> dict[int, tuple[str, ...]]:
        """Catalogue -> kinds of problems of its run; their ranks count like all others."""
        return {i: kinds for i, kinds in enumerate(self.problems) if kinds}

    def to_json(self) -> dict[str, Any]:
        """All of it in the types of strict JSON (null for what is not finite)."""
        tests = self.p_values()
        told = {
            "num_catalogues": len(self.ranks),
            "p_value": self.p_value,
            "parameters": {name: tests[name]._asdict() for name in self.parameters},
            "ranks": dict(zip(self.parameters, self.ranks.T, strict=True)),
            "truths": dict(zip(self.parameters, self.truths.T, strict=True)),
            "not_converged": self.not_converged,
        }
        return plain(told)

    def __str__(self) -> str:
        width = max(map(len, ("parameter", *self.parameters)))
        lines = [f"{len(self.ranks)} catalogues{self._told_of_status()}"]
        lines.append(f"{'parameter':{width}}  mean rank  p (KS)  p (chi-square)")
        means = self.ranks.mean(axis=0)
        for (name, test), mean in zip(self.p_values().items(), means, strict=True):
            ks, chi = (f"{p:.2g}" for p in test)
            lines.append(f"{name:{width}}  {mean:9.3f}  {ks:>6}  {chi:>14}")
        lines.append(f"all together: p = {self.p_value:.2g}")
        return "\n".join(lines)

    def _told_of_status(self) -> str:
        bad = self.not_converged
        if not bad:
            return ", all converged"
        kinds = Counter(kind for found in bad.values() for kind in found)
        counts = ", ".join(f"{kind} {number}" for kind, number in kinds.most_common())
        listed = ", ".join(map(str, list(bad)[:_NAMED])) + (", …" if len(bad) > _NAMED else "")
        return f", {len(bad)} did not converge ({counts}): {listed}"


def calibrate(
    simulate: Simulate,
    sampler: Sampler,
    key: Any,
    *,
    num_catalogues: int = 200,
    progress: Progress | None = None,
) -> Calibration:
    r"""Analyse simulated catalogues and rank their truths in the posteriors; see the module.

    The rank of a truth is $u = (n\,p + \frac12) / (n + 1)$, with p the weight of the draws below it
    and n their effective number: of n independent draws, n + 1 ranks are equally probable.

    Catalogues whose models differ in the numbers of their arrays alone (one population, one prior,
    shapes and names the same; forms that prepare the population for their data, `Samples` and
    `LinearGrid`, must be the same object) share compiled programs, which is most of the time.

    Args:
        simulate: key -> truth and model. The truth must be drawn from the prior that the model
            has, as `draw_truth` does; values by name of parameters that are sampled (others that
            are fixed or tied by the prior may be there and are left out). A choice among catalogues
            may look at the data, never at the truth.
        sampler: how every posterior is sampled.
        key: of all randomness; catalogue i is simulated from a key that depends on it and i alone.
        num_catalogues: how many, C. A bias of the posterior is mostly seen once it is some
            $4/\sqrt C$ standard deviations, a wrong width once it is a factor of $1 + 4/\sqrt C$.
        progress: called as `progress(done, total, what)`.

    Raises:
        InputError: truths that are not of sampled parameters, or not finite, and what `simulate`
            and the sampler raise; the catalogue is named.
    """
    if num_catalogues < 1:
        raise InputError(f"num_catalogues={num_catalogues} is not positive; 200 is usual.")
    names: tuple[str, ...] = ()
    truths, ranks, problems = [], [], []
    before: tuple[HierarchicalModel, Target] | None = None
    for i in range(num_catalogues):
        simulate_key, sample_key = jax.random.split(jax.random.fold_in(key, i))
        try:
            truth, model = simulate(simulate_key)
            target, before = _target(model, before)
            result = sampler.run(target, sample_key)
            known = _sampled_truths(truth, result, target.prior)
            if i and tuple(known) != names:
                raise InputError(f"the truth is of {list(known)}, and was of {list(names)} before.")
        except InputError as error:
            raise InputError(f"catalogue {i}: {error}") from error
        names = tuple(known)
        truths.append(list(known.values()))
        ranks.append([_rank(result, name, value) for name, value in known.items()])
        problems.append(tuple(problem.kind for problem in result.status.problems))
        forget_programs()
        if progress:
            progress(i + 1, num_catalogues, "calibrating")
    return Calibration(names, np.array(ranks), np.array(truths), tuple(problems))


def draw_truth(prior: Prior, key: Any) -> dict[str, float]:
    """A draw from the prior as true values of all hyperparameters, fixed and tied ones included.

    The prior's keys must be names, not patterns, as they are in `HierarchicalModel.prior`.
    """
    drawn = prior.complete(prior.sample(key))
    return {name: float(value) for name, value in drawn.items()}


def _target(
    model: HierarchicalModel | Target, before: tuple[HierarchicalModel, Target] | None
) -> tuple[Target, tuple[HierarchicalModel, Target] | None]:
    """The model's target, with the programs of the one before where they serve."""
    if isinstance(model, Target):
        return model, None
    same = before is not None and before[0].same_but_for_data(model)
    target = model.target(like=before[1] if before is not None and same else None)
    return target, (model, target)


def _sampled_truths(truth: Mapping[str, Any], result: Result, prior: Prior) -> dict[str, float]:
    """The true values of sampled scalars, `x[0]`, `x[1]`, ... for arrays.

    Raises:
        InputError: a value of nothing that was sampled, or that is not finite; or no value at all.
    """
    settled = {**prior.fixed, **prior.same_as}
    given = {name: np.asarray(x, float) for name, x in truth.items() if name not in settled}
    flat = {
        name: float(x[0, 0]) for name, x in scalars({n: v[None, None] for n, v in given.items()})
    }
    drawn = dict(scalars(result.draws))
    for name, value in flat.items():
        if name not in drawn:
            raise InputError(
                f"the truth has '{name}', which is not sampled{did_you_mean(name, drawn)}; sampled "
                f"are {', '.join(drawn)}."
            )
        if not np.isfinite(value):
            raise InputError(f"the true value of '{name}' is {value}; simulate must draw a number.")
    if not flat:
        raise InputError(f"the truth has none of the sampled parameters {', '.join(drawn)}.")
    return flat


def _rank(result: Result, name: str, truth: float) -> float:
    x = dict(scalars(result.draws))[name]
    if not np.isfinite(x).all():
        return float("nan")
    below = float(np.sum(result.weights * ((x < truth) + 0.5 * (x == truth))))
    num = effective_sample_size(x, result.log_weight)
    # Draws that never moved, or too few to judge by, are worth one.
    num = num if np.isfinite(num) else 1.0
    return (num * below + 0.5) / (num + 1.0)


def _tests(rank: np.ndarray) -> PValues:
    if np.isnan(rank).any():
        return PValues(float("nan"), float("nan"))
    spread = np.sum(stats.norm.ppf(rank) ** 2)
    both = stats.chi2.cdf(spread, rank.size), stats.chi2.sf(spread, rank.size)
    return PValues(float(stats.kstest(rank, "uniform").pvalue), float(min(1.0, 2.0 * min(both))))
