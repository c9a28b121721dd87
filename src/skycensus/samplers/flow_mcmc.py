r"""Flow-enhanced Markov chain Monte Carlo, from flowMC."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ..checkpoint import Part, pack, unpack
from ..diagnostics import GOALS, diagnose
from ..errors import InputError, did_you_mean
from ..keys import generator
from ..result import Result
from ..status import REMEDIES, Problem, Status
from ..target import Target
from ..weights import kish, log_mean_weight, pareto_k
from . import Progress, at_point, evaluate, named_draws, require_numbers
from .flow_chains import Chains, build, local_kernel, require_gradients, whitened
from .pilot import Pilot, run_pilot
from .settings import is_count
from .starts import Start, start_points

# Acceptance that each kind of local step works best at (Roberts & Rosenthal 2001; Beskos et al.
# 2013 give 0.65 for trajectories, and a little more costs less than a little less).
GOAL_ACCEPTANCE = {"hmc": 0.75, "mala": 0.574, "random_walk": 0.3}

_COUNTS = (
    *("num_chains", "num_training_loops", "num_production_loops", "num_local_steps"),
    *("num_global_steps", "local_thinning", "global_thinning", "num_leapfrog", "num_layers"),
    *("num_bins", "num_epochs", "batch_size", "max_examples", "history_window"),
    *("proposal_batch_size", "num_start", "num_particles"),
)


@dataclass(frozen=True, kw_only=True)
class FlowMCMC:
    r"""Local steps alternating with independent proposals of a normalizing flow that learns.

    Each loop moves every chain by `num_local_steps` of a local kernel and then proposes
    `num_global_steps` draws $x' \sim q$ of a flow $q$ with density known, accepted with

    $$\min\left\{1, \frac{p(x')\, q(x)}{p(x)\, q(x')}\right\}.$$

    In the training loops $q$ is fitted to the chains by maximum likelihood after the local steps;
    in the production loops, whose draws are returned, everything is fixed and both moves leave $p$
    invariant. (Gabrié, Rotskoff & Vanden-Eijnden 2022, PNAS 119, e2109420119, arXiv:2105.12603;
    Wong, Gabrié & Foreman-Mackey 2023, JOSS 8, 5021, arXiv:2211.06397.)

    All happens in coordinates $y = S^{-1}(x - c)$ of the target's unconstrained space. Centre $c$,
    covariance $S S^\top$ and the starts of the chains come from a pilot: prior draws carried to the
    posterior by tempering, $\pi(x) L(x)^\beta$ with $\beta$ rising to one, resampling and random
    walks (Del Moral, Doucet & Jasra 2006, JRSS B 68, 411). Step sizes are thus in units of
    posterior standard deviations, and no chain starts where the density is zero.

    A target whose likelihood jumps (hard edges) is sampled as it is: only the direction of the
    local steps comes from the gradient of its smooth version, which leaves the acceptance exact.

    The evidence is the importance-sampling estimate with `num_flow_draws` fresh draws, most of them
    of the flow, given where their weights have a Pareto $\hat k \le 0.7$.

    GWKokab's names for the same (bundle_config): n_chains, n_training_loops, n_production_loops,
    n_local_steps, n_global_steps, n_leapfrog, n_epochs: num_ for n_; local_sampler_name:
    local_sampler; condition_matrix (earlier mass_matrix): mass_matrix; n_max_examples:
    max_examples; n_NFproposal_batch_size: proposal_batch_size; rq_spline_hidden_units, _n_bins,
    _n_layers, _range: hidden_units, num_bins, num_layers, spline_range; data_dump.n_samples:
    num_flow_draws; verbose: the argument `progress` of `run`; all others have the same name.

    Args:
        num_chains, num_training_loops, num_production_loops: as above.
        num_local_steps, num_global_steps: steps of each kind in a loop.
        local_thinning, global_thinning: of these, every so manieth is kept.
        local_sampler: "hmc", "mala" (Langevin) or "random_walk" (no gradient).
        step_size: in posterior standard deviations, the first guess; by default the best for a
            Gaussian of this dimension.
        adapt_step_size: tune it to the acceptance rate in the training loops.
        num_leapfrog: inner leapfrog steps of "hmc". A trajectory is num_leapfrog + 1 steps; the
            tuned step keeps it within $\pi/2$, where a Gaussian forgets its start (at $\pi$ it
            would return to the mirror point).
        mass_matrix: diagonal of the inverse mass of "hmc" in the coordinates $y$, where one is
            right; a number or one for each dimension.
        num_layers, hidden_units, num_bins, spline_range: of the rational-quadratic spline flow.
        learning_rate, num_epochs, batch_size: of its training, in each loop.
        max_examples, history_window: it learns from so many points among the last so many of
            every chain.
        chain_batch_size: chains moved together, to save memory; 0 is all of them.
        proposal_batch_size: flow proposals of a chain evaluated together.
        start: "prior": the pilot as above; "mode" or values by name: its points begin there, at the
            posterior itself, without tempering (see `starts.start_points`).
        num_start: prior draws that the pilot starts from.
        num_particles: points that the pilot carries.
        num_flow_draws: draws behind the evidence; 0 for none.
        edges: "auto" as above; "sharp" takes the gradient of the jumping likelihood itself.

    Raises:
        InputError: settings that make no sense, all named at once.
    """

    num_chains: int = 20
    num_training_loops: int = 10
    num_production_loops: int = 10
    num_local_steps: int = 20
    num_global_steps: int = 50
    local_thinning: int = 1
    global_thinning: int = 1
    local_sampler: Literal["hmc", "mala", "random_walk"] = "hmc"
    step_size: float | None = None
    adapt_step_size: bool = True
    num_leapfrog: int = 3
    mass_matrix: float | Sequence[float] = 1.0
    num_layers: int = 4
    hidden_units: Sequence[int] = (32, 32)
    num_bins: int = 8
    spline_range: Sequence[float] = (-10.0, 10.0)
    learning_rate: float = 3e-3
    num_epochs: int = 8
    batch_size: int = 1000
    max_examples: int = 5000
    history_window: int = 200
    chain_batch_size: int = 0
    proposal_batch_size: int = 10
    start: Start = "prior"
    num_start: int = 2048
    num_particles: int = 512
    num_flow_draws: int = 2048
    edges: Literal["auto", "sharp"] = "auto"

    def __post_init__(self) -> None:
        problems = [
            f"{name}={getattr(self, name)!r} must be a whole number, 1 or more"
            for name in _COUNTS
            if not is_count(getattr(self, name))
        ]
        problems += [
            f"{name}={getattr(self, name)!r} must be a whole number, 0 or more"
            for name in ("chain_batch_size", "num_flow_draws")
            if not is_count(getattr(self, name), 0)
        ]
        if not problems:
            problems += [
                f"{kind}_thinning={thinning} keeps none of num_{kind}_steps={steps}; lower it"
                for kind, thinning, steps in (
                    ("local", self.local_thinning, self.num_local_steps),
                    ("global", self.global_thinning, self.num_global_steps),
                )
                if thinning > steps
            ]
        problems += list(self._other_problems())
        if problems:
            raise InputError("\n".join(f"sampler: {problem}." for problem in problems))

    def _other_problems(self) -> Iterator[str]:
        if self.local_sampler not in GOAL_ACCEPTANCE:
            known = f"{did_you_mean(self.local_sampler, GOAL_ACCEPTANCE)}; use one of "
            yield f"local_sampler={self.local_sampler!r} is not known{known}{[*GOAL_ACCEPTANCE]}"
        if self.edges not in ("auto", "sharp"):
            yield f"edges={self.edges!r} is not known; use 'auto' or 'sharp'"
        if self.step_size is not None and not 0 < self.step_size < math.inf:
            yield f"step_size={self.step_size} must be positive, or None"
        if not 0 < self.learning_rate < math.inf:
            yield f"learning_rate={self.learning_rate} must be positive"
        if not np.all(np.asarray(self.mass_matrix, float) > 0):
            yield f"mass_matrix={self.mass_matrix} must be positive"
        if len(self.spline_range) != 2 or not self.spline_range[0] < self.spline_range[1]:
            yield f"spline_range={self.spline_range} must be two numbers, the lower one first"
        if not self.hidden_units or not all(is_count(n, 1) for n in self.hidden_units):
            yield f"hidden_units={self.hidden_units} must be numbers of units, one for each layer"

    # ---- the run -----------------------------------------------------------------------------

    def run(
        self,
        target: Target,
        key: Any,
        *,
        progress: Progress | None = None,
        checkpoint: Part | None = None,
    ) -> Result:
        """Sample `target`; see the class and `skycensus.samplers.Sampler`.

        `measures` has the acceptance rates of both kinds of steps, the step size and the number of
        likelihoods; `sample_stats` has for each draw the log density `lp`, `log_likelihood`, the
        acceptance rate since the draw before it, and whether the step was global. A log density of
        NaN or +inf on the way ends the run; the status then names the point.

        Raises:
            InputError: no prior draw with a likelihood, a log density that is NaN or +inf where
                the pilot looks, or a gradient that is NaN at a start; the point is named.
        """
        pilot_key, build_key, run_key, flow_key = jax.random.split(key, 4)
        kernel = local_kernel(self, target.dim)
        pilot = run_pilot(
            target,
            generator(pilot_key),
            num_chains=self.num_chains,
            num_start=self.num_start,
            num_particles=self.num_particles,
            start=self._first_points(target, pilot_key),
            progress=progress,
        )
        force = target
        if self.edges == "auto" and target.smooth is not None and self._uses_gradient:
            force = target.smooth()
        log_density, data = whitened(target, force, pilot)
        y = jnp.asarray(np.linalg.solve(pilot.scale, (pilot.start - pilot.center).T).T)
        if self._uses_gradient:
            require_gradients(target, log_density, data, y, pilot.start)
        chains = build(self, build_key, log_density, kernel, target.dim)

        num_loops = self._run_loops(chains, run_key, y, data, progress, checkpoint)
        return self._result(target, pilot, chains, flow_key, num_loops)

    def longer(self, by: float) -> FlowMCMC:
        """The same chains with `by` times as many production loops, the first being the same."""
        return replace(self, num_production_loops=math.ceil(by * self.num_production_loops))

    def _first_points(self, target: Target, key: Any) -> np.ndarray | None:
        if self.start == "prior":
            return None
        num = max(self.num_particles, self.num_chains)
        return start_points(target, self.start, key, num, num_start=self.num_start)

    def _run_loops(
        self,
        chains: Chains,
        key: Any,
        y: Any,
        data: Any,
        progress: Progress | None,
        checkpoint: Part | None,
    ) -> int:
        """All loops from the starts `y`, or what an interrupted run has left of them; how many."""
        stored = checkpoint.load() if checkpoint is not None else None
        total = self.num_training_loops + self.num_production_loops
        # A longer run may have come further.
        done = 0 if stored is None else min(int(stored["done"]), total)
        for number in range(max(done - 1, 0), total):
            if number >= done and checkpoint is not None and checkpoint.time_is_up:
                self._require_draws(number, checkpoint)
                return number
            training = number < self.num_training_loops
            if number in (0, self.num_training_loops) or number < done:
                loops = self.num_training_loops if training else self.num_production_loops
                chains.clear(self.num_chains, self._stored * loops, y.shape[1])
            if stored is not None and number < done:
                # Its state is known: the last loop that was done.
                chains.restore(stored)
                key, y = unpack(stored, (key, y))
            else:
                key, y = self._loop(chains, key, y, data, number, training)
            if checkpoint is not None:
                checkpoint.offer(_snapshot(chains, key, y, number + 1), f"loop {number + 1}")
            if progress:
                progress(number + 1, total, "training" if training else "sampling")
            if np.any(np.asarray(chains.resources["log_density"].data) == np.inf):
                break
        return number + 1

    def _require_draws(self, number: int, checkpoint: Part) -> None:
        """Raise `InputError` where the time was up before there was a production loop."""
        if number <= self.num_training_loops:
            checkpoint.save()
            raise InputError(
                f"time_limit: the time was up after {number} of {self.num_training_loops} training "
                "loops, before there was any draw; raise time_limit (the same command goes on "
                "where this run was), or lower num_training_loops."
            )

    @property
    def _uses_gradient(self) -> bool:
        return self.local_sampler != "random_walk"

    @property
    def _stored(self) -> int:
        """Draws of a chain that a loop leaves."""
        local = self.num_local_steps // self.local_thinning
        return local + self.num_global_steps // self.global_thinning

    def _loop(
        self, chains: Chains, key: Any, y: Any, data: Any, number: int, training: bool
    ) -> tuple[Any, Any]:
        """One loop of local steps, training and tuning where wanted, and global steps."""
        resources = chains.resources
        begin = chains.local_steps.current_position
        key, resources, y = chains.local_steps(key, resources, y, data)
        end = chains.local_steps.current_position
        if training and self.adapt_step_size:
            accepted = float(resources["acceptance"].data[:, begin:end].mean())
            self._tune(resources, accepted, number)
        if training:
            key, resources, y = chains.training(key, resources, y, data)
            chains.propose()
        chains.global_steps.set_current_position(end)
        key, resources, y = chains.global_steps(key, resources, y, data)
        chains.local_steps.set_current_position(chains.global_steps.current_position)
        return key, y

    def _tune(self, resources: dict[str, Any], accepted: float, number: int) -> None:
        """Move the log of the step size by the acceptance in excess (Robbins & Monro 1951)."""
        gain = 2.0 / (1 + number) ** 0.6
        kernel = resources["local_kernel"]
        excess = accepted - GOAL_ACCEPTANCE[self.local_sampler]
        step = jnp.minimum(kernel.step_size * math.exp(gain * excess), self._longest_step)
        resources["local_kernel"] = eqx.tree_at(lambda k: k.step_size, kernel, step)

    @property
    def _longest_step(self) -> float:
        if self.local_sampler != "hmc":
            return math.inf
        fastest = math.sqrt(float(np.max(self.mass_matrix)))
        return 0.5 * math.pi / ((self.num_leapfrog + 1) * fastest)

    def first_step(self, dim: int) -> float:
        """The step with the best acceptance in a standard normal of this dimension."""
        if self.step_size is not None:
            return float(self.step_size)
        best = {
            "hmc": 1.2 * dim**-0.25,
            "mala": 1.65 * dim ** (-1 / 6),
            "random_walk": 2.38 * dim**-0.5,
        }
        return min(best[self.local_sampler], self._longest_step)

    # ---- what comes out ----------------------------------------------------------------------

    def _result(
        self, target: Target, pilot: Pilot, chains: Chains, key: Any, num_loops: int
    ) -> Result:
        y, log_density, acceptance = chains.drawn()
        x = pilot.center + y @ pilot.scale.T
        draws = named_draws(target, x)
        stored_local = self.num_local_steps // self.local_thinning
        is_global = np.arange(y.shape[1]) % self._stored >= stored_local
        log_prior = np.asarray(jax.jit(jax.vmap(jax.vmap(target.log_prior)))(x), float)
        stats = {
            "lp": log_density,
            "log_likelihood": log_density - log_prior,
            "acceptance": acceptance,
            "global_step": np.broadcast_to(is_global, acceptance.shape),
        }
        measures = {
            "local_acceptance": float(acceptance[:, ~is_global].mean()),
            "global_acceptance": float(acceptance[:, is_global].mean()),
            "step_size": float(np.mean(chains.resources["local_kernel"].step_size)),
            "num_likelihoods": self._cost(pilot, num_loops),
        }
        evidence = _Evidence()
        trapped = np.argwhere(log_density == np.inf)
        if len(trapped):
            evidence = _Evidence(problems=(_not_a_number(target, x[tuple(trapped[0])]),))
        elif self.num_flow_draws:
            evidence = _flow_evidence(
                target, pilot, chains.resources["flow"], key, self.num_flow_draws
            )
            measures["num_likelihoods"] += self.num_flow_draws
        status = _own_words(diagnose(draws, stats, prior_bounds=target.prior.bounds()))
        return Result(
            draws,
            status.plus(*evidence.problems),
            sample_stats=stats,
            measures=measures | evidence.measures,
            log_evidence=evidence.value,
            log_evidence_error=evidence.error,
        )

    def _cost(self, pilot: Pilot, num_loops: int) -> int:
        """Evaluations of the likelihood, each with a gradient counted once."""
        per_step = {"hmc": self.num_leapfrog + 3, "mala": 2, "random_walk": 1}[self.local_sampler]
        loop = self.num_local_steps * per_step + self.num_global_steps
        return pilot.used + self.num_chains * num_loops * loop


def _snapshot(chains: Chains, key: Any, y: Any, done: int) -> Callable[[], dict[str, Any]]:
    """What describes the chains after `done` loops, also when they have gone on."""
    arrays = chains.arrays() | pack((key, y)) | {"done": np.array(done)}
    return lambda: arrays


class _Evidence(NamedTuple):
    """The log evidence and its error, None where weights of draws of the flow do not give it."""

    value: float | None = None
    error: float | None = None
    measures: dict[str, float] = {}  # noqa: RUF012
    problems: tuple[Problem, ...] = ()


def _flow_evidence(target: Target, pilot: Pilot, flow: Any, key: Any, num: int) -> _Evidence:
    r"""$\ln \hat Z$ of $w_s = p(x_s) / q(x_s)$ over `num` draws of the flow, and its error.

    A fifth of the draws come from a Student-t with the covariance of the pilot, and $q$ is the
    mixture: the tails of the flow alone are those of a Gaussian, and weights would have no bound
    (Hesterberg 1995, Technometrics 37, 185).
    """
    from scipy.stats import multivariate_t

    flow_key, wide_key = jax.random.split(key)
    wide = multivariate_t(np.zeros(target.dim), np.eye(target.dim), df=5)
    num_wide = num // 5
    y = np.concatenate(
        [
            eqx.filter_jit(flow.sample)(flow_key, num - num_wide),
            wide.rvs(num_wide, random_state=generator(wide_key)).reshape(-1, target.dim),
        ]
    )
    log_q = np.logaddexp(
        eqx.filter_jit(flow.log_prob)(jnp.asarray(y)) + math.log(1 - num_wide / num),
        wide.logpdf(y) + (math.log(num_wide / num) if num_wide else -math.inf),
    )
    # The flow is a density of y; the target one of x.
    log_q = log_q - np.linalg.slogdet(pilot.scale)[1]
    x = pilot.center + np.asarray(y, float) @ pilot.scale.T
    try:
        log_likelihood, log_prior = evaluate(target, x)
    except InputError as error:
        return _Evidence(problems=(Problem("nan_likelihood", str(error)),))
    log_weight = log_likelihood + log_prior - log_q
    if not np.isfinite(log_weight).any():
        return _Evidence()
    k_hat = pareto_k(log_weight)
    measures = {"flow_k_hat": k_hat, "flow_efficiency": kish(log_weight) / num}
    if not k_hat <= GOALS.k_hat:
        return _Evidence(measures=measures)
    return _Evidence(*log_mean_weight(log_weight), measures)


def _not_a_number(target: Target, x: np.ndarray) -> Problem:
    log_density = np.asarray(jax.jit(target.log_density)(x), float)
    try:
        require_numbers(target, x[None], log_density[None])
    except InputError as error:
        return Problem("nan_likelihood", str(error))
    # It was not a number inside the compiled chain, and is one by itself: rounding at an edge.
    near = at_point(target, x)
    return Problem("nan_likelihood", f"the log density was not a number near {near}.")


def _own_words(status: Status) -> Status:
    """The status with remedies that name the settings of this sampler."""
    own = {
        "r_hat": "the chains have not mixed: raise num_training_loops, so that the flow learns "
        "every mode, or num_production_loops",
        "ess": "raise num_production_loops",
    }
    problems = tuple(
        Problem(p.kind, p.message.replace(REMEDIES[p.kind], own.get(p.kind, REMEDIES[p.kind])))
        for p in status.problems
    )
    return Status(status.converged, problems, status.notes)
