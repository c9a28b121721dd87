r"""Nested sampling by dynesty: the second opinion, without a compiler."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any, Literal

import jax
import numpy as np

from ..errors import InputError
from ..keys import generator
from ..result import Result
from ..status import Problem
from ..target import Target
from . import Progress, evaluate
from .nested import nested_result
from .nested_volumes import Integral


@dataclass(frozen=True, kw_only=True)
class Dynesty:
    r"""Nested sampling by dynesty (Speagle 2020, MNRAS 493, 3132), static or dynamic.

    Slower than `Nested` by far for likelihoods that take microseconds, and independent of it: use
    it to check. The dynamic kind (Higson et al. 2019, Statistics and Computing 29, 891) adds live
    points where the posterior is, until the weighted draws are many.

    Args:
        num_live: live points (at first, where dynamic).
        dynamic: add points where they count for the posterior.
        dlogz: stop (the first pass) when the live points can add no more than this to ln Z.
        bound: dynesty's bounds: "none", "single", "multi", "balls" or "cubes".
        sample: dynesty's way to draw within them: "auto", "unif", "rwalk", "slice" or "rslice".
        max_likelihoods: evaluations at most; a run that needs more has not converged.

    Raises:
        InputError: numbers out of range.
    """

    num_live: int = 500
    dynamic: bool = False
    dlogz: float = 0.01
    bound: Literal["none", "single", "multi", "balls", "cubes"] = "multi"
    sample: Literal["auto", "unif", "rwalk", "slice", "rslice"] = "auto"
    max_likelihoods: int = 10_000_000

    def __post_init__(self) -> None:
        if self.num_live < 10:
            raise InputError(f"dynesty: num_live = {self.num_live} must be 10 or more.")
        if not self.dlogz > 0:
            raise InputError(f"dynesty: dlogz = {self.dlogz} must be positive.")
        if self.max_likelihoods < 1:
            raise InputError(
                f"dynesty: max_likelihoods = {self.max_likelihoods} must be 1 or more."
            )

    def run(self, target: Target, key: Any, *, progress: Progress | None = None) -> Result:
        """Sample `target`; see the class and `skycensus.samplers.Sampler`.

        Raises:
            InputError: dynesty is not installed; a prior that is not known in the unit cube, naming
                it; a likelihood that is NaN or +inf, naming the point, or zero for all prior draws.
        """
        dynesty = _import()
        cube = target.in_unit_cube()
        rng = generator(key)
        value = cube.compiled("log likelihood", lambda: cube.log_likelihood)
        data = jax.tree.map(jax.numpy.asarray, cube.data)

        def log_likelihood(u: np.ndarray) -> float:
            found = float(value(u, data))
            if math.isnan(found) or found == math.inf:
                evaluate(cube, u[None])  # raises, naming the point
            return found

        settings = {"nlive": self.num_live, "bound": self.bound, "sample": self.sample}
        kind = dynesty.DynamicNestedSampler if self.dynamic else dynesty.NestedSampler
        first = "dlogz_init" if self.dynamic else "dlogz"
        told = {} if progress is None else {"print_func": _printer(progress)}
        with warnings.catch_warnings():
            # Advice of the kind that the status gives.
            warnings.simplefilter("ignore")
            sampler = kind(log_likelihood, np.copy, cube.dim, rstate=rng, **settings)
            sampler.run_nested(
                print_progress=progress is not None,
                maxcall=self.max_likelihoods,
                **{first: self.dlogz},
                **told,
            )
            found = sampler.results
        if not np.isfinite(found.logz[-1]) or found.logz[-1] < -1e290:
            raise InputError(
                "no point that dynesty drew has a likelihood: every one leaves some object "
                "outside the population; use a prior nearer to the data."
            )
        calls = int(np.sum(found.ncall))
        integral = Integral(
            np.asarray(found.logwt),
            float(found.logz[-1]),
            float(found.logzerr[-1]),
            float(found.information[-1]),
        )
        measures = {"num_likelihoods": calls, "information": integral.information}
        # dynesty writes -1e300 for a likelihood of zero.
        some = found.logl > -1e290
        kept = integral._replace(log_weight=integral.log_weight[some])
        points = np.asarray(found.samples_u)[some], np.asarray(found.logl)[some]
        problems = []
        if calls >= self.max_likelihoods:
            said = f"dynesty was stopped after {calls} evaluations"
            problems.append(Problem.of("evidence", said))
        return nested_result(target, *points, kept, rng, measures, problems)


def _import() -> Any:
    try:
        import dynesty
    except ImportError:
        raise InputError(
            "dynesty is not installed; pip install 'skycensus[dynesty]', or use kind = 'nested'."
        ) from None
    return dynesty


def _printer(progress: Progress) -> Any:
    def told(results: Any, niter: int, ncall: int, **_: Any) -> None:
        left = float(results.delta_logz) if np.isfinite(results.delta_logz) else 1.0
        progress(niter, niter + math.ceil(left * 10), "compressing the prior (points)")

    return told
