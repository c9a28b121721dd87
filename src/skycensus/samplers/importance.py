r"""Adaptive importance sampling: population Monte Carlo with Student-t mixtures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from scipy.special import logsumexp

from ..diagnostics import diagnose, kish, pareto_smooth
from ..model import Target
from ..result import Result
from . import Progress, evaluate, named_draws
from .student_t import StudentTMixture, fit


@dataclass(frozen=True, kw_only=True)
class ImportanceSampler:
    r"""Independent weighted draws from a proposal that was adapted to the posterior.

    From prior draws, the target $\pi(x) L(x)^\beta$ is followed to $\beta = 1$, each step as large
    as the effective sample size allows, fitting a mixture of Student-t densities to all weighted
    points so far; then the proposal is held fixed and fresh draws give posterior and evidence,

    $$\hat Z = \frac1S \sum_s w_s,\qquad w_s = \frac{\pi(x_s) L(x_s)}{q(x_s)},\qquad
      \operatorname{sd}(\ln \hat Z) = \sqrt{1/n_\mathrm{eff} - 1/S}.$$

    The weights are Pareto-smoothed, and their tail shape $\hat k$ decides on convergence. It needs
    no gradient and does not mind jumps of the likelihood: the quickest road up to about ten
    parameters. (Cappé et al. 2008, arXiv:0710.4242; Cornuet et al. 2012, arXiv:0907.1254; Vehtari
    et al. 2024, JMLR 25(72).)

    Args:
        target_ess: stop when the weighted draws are worth this many.
        num_adapt: draws per adaptation step.
        max_adapt_steps: adaptation steps at most.
        max_samples: evaluations at most in the final stage.
        num_components: components of the proposal at most.
        dof: degrees of freedom of the Student-t's; smaller means heavier tails.
    """

    target_ess: float = 2000.0
    num_adapt: int = 1000
    max_adapt_steps: int = 30
    max_samples: int = 100_000
    num_components: int = 4
    dof: float = 6.0

    def run(self, target: Target, key: Any, *, progress: Progress | None = None) -> Result:
        """Sample `target`; see the class and `skycensus.samplers.Sampler`.

        Raises:
            InputError: a likelihood that is NaN or +inf, naming the point.
        """
        prior_key, seed_key = jax.random.split(key)
        rng = np.random.default_rng(np.asarray(jax.random.key_data(seed_key)).ravel().tolist())
        proposal, used = self._adapt(target, prior_key, rng, progress)
        x, log_weight, log_likelihood = self._draw(target, proposal, rng, progress)
        n_eff = kish(log_weight)
        smoothed, k_hat = pareto_smooth(log_weight)
        draws = named_draws(target, x[None])
        return Result(
            draws,
            diagnose(
                draws,
                log_weight=smoothed[None],
                k_hat=k_hat,
                prior_bounds=target.prior.bounds(),
                min_ess=min(400.0, self.target_ess),
            ),
            log_weight=smoothed[None],
            log_evidence=float(logsumexp(log_weight) - np.log(len(x))),
            log_evidence_error=float(np.sqrt(max(1 / n_eff - 1 / len(x), 0.0))),
            sample_stats={"log_likelihood": log_likelihood[None]},
            measures={
                "k_hat": k_hat,
                "n_eff": n_eff,
                "num_likelihoods": used + len(x),
                "num_components": len(proposal.weight),
            },
        )

    def _adapt(
        self, target: Target, key: Any, rng: np.random.Generator, progress: Progress | None
    ) -> tuple[StudentTMixture, int]:
        """Follow the tempered posterior to the posterior; return the proposal and what it cost."""
        x = np.asarray(target.sample_prior(key, 2 * self.num_adapt))
        log_l, log_p = evaluate(target, x)
        # Every point's weight is against the mixture of all proposals that made points so far.
        mixtures: list[StudentTMixture | None] = [None]
        counts = [len(x)]
        log_q = log_p[:, None]  # (point, proposal)
        beta, before = 0.0, 0.0
        for step in range(self.max_adapt_steps):
            log_mix = logsumexp(log_q + np.log(np.array(counts) / sum(counts)), axis=1)
            beta = _next_temperature(beta, log_l, log_p - log_mix, goal=self.num_adapt / 4)
            log_w = beta * log_l + log_p - log_mix
            proposal = fit(
                rng,
                x[np.isfinite(log_w)],
                np.exp(log_w - log_w.max())[np.isfinite(log_w)],
                num_components=self.num_components,
                dof=self.dof,
            )
            if progress:
                progress(step + 1, self.max_adapt_steps, f"adapting (temperature {beta:.2g})")
            new = proposal.sample(rng, self.num_adapt)
            new_l, new_p = evaluate(target, new)
            share = kish(new_l + new_p - proposal.log_prob(new)) / len(new)
            x = np.concatenate([x, new])
            log_l, log_p = np.append(log_l, new_l), np.append(log_p, new_p)
            mixtures.append(proposal)
            counts.append(len(new))
            log_q = np.stack([log_p if m is None else m.log_prob(x) for m in mixtures], axis=1)
            # At the posterior, stop when another step has not made the proposal better.
            if beta == 1.0 and share < 1.1 * before:
                break
            before = share if beta == 1.0 else 0.0
        log_mix = logsumexp(log_q + np.log(np.array(counts) / sum(counts)), axis=1)
        log_w = log_l + log_p - log_mix
        good = np.isfinite(log_w)
        final = fit(
            rng,
            x[good],
            np.exp(log_w[good] - log_w.max()),
            num_components=self.num_components,
            dof=self.dof,
        )
        return final, len(x)

    def _draw(
        self,
        target: Target,
        proposal: StudentTMixture,
        rng: np.random.Generator,
        progress: Progress | None,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Fresh draws from the fixed proposal until they are worth `target_ess`."""
        xs, weights, likelihoods = [], [], []
        n_eff, total = 0.0, 0
        size = max(2 * self.num_adapt, int(self.target_ess))
        while n_eff < self.target_ess and total < self.max_samples:
            x = proposal.sample(rng, min(size, self.max_samples - total))
            log_l, log_p = evaluate(target, x)
            xs.append(x)
            likelihoods.append(log_l)
            weights.append(log_l + log_p - proposal.log_prob(x))
            total += len(x)
            n_eff = kish(np.concatenate(weights))
            if progress:
                done = int(min(n_eff, self.target_ess))
                progress(done, int(self.target_ess), "sampling (effective draws)")
            # As many again as the rate so far says are missing.
            size = int(np.clip(1.1 * total * (self.target_ess / n_eff - 1), 500, 4 * total))
        return np.concatenate(xs), np.concatenate(weights), np.concatenate(likelihoods)


def _next_temperature(
    beta: float, log_l: np.ndarray, log_base: np.ndarray, *, goal: float
) -> float:
    """The largest power of the likelihood whose weights keep `goal` effective points."""

    def enough(b: float) -> bool:
        log_w = log_base + np.where(b * log_l == b * log_l, b * log_l, -np.inf)
        return kish(log_w) >= goal

    if enough(1.0):
        return 1.0
    low, high = beta, 1.0
    if not enough(max(low, 1e-12)):
        return max(low, 1e-12)
    for _ in range(40):
        middle = 0.5 * (low + high) if low > 0 else high / 8
        low, high = (middle, high) if enough(middle) else (low, middle)
        if low > 0 and high < 1.02 * low:
            break
    return low
