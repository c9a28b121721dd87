r"""How a run ended: `Status`, its problems, and what to do about each kind of problem."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from .errors import did_you_mean

REMEDIES: Mapping[str, str] = MappingProxyType(
    {
        "r_hat": "the chains have not mixed: raise num_warmup and num_samples, start closer to the "
        "posterior, or use a sampler made for several modes",
        "ess": "raise num_samples, or use a dense mass matrix where parameters are correlated",
        "stuck": "the sampler never moved it: start elsewhere, or give it a fixed number as prior",
        "stuck_latents": "they sit in the wrong one of several maxima, which longer chains do not "
        "leave: integrate these parameters over a grid of all maxima (Grid, LinearGrid)",
        "divergences": "raise target_accept_prob towards 0.99, or look for a hard edge or a funnel "
        "in the model; the draws may miss a part of the posterior",
        "tree_depth": "raise max_tree_depth, or use a dense mass matrix",
        "k_hat": "the proposal is too narrow in the tails and a few draws dominate: let it adapt "
        "longer, give it heavier tails, or use NUTS",
        "importance_ess": "raise num_samples, or let the proposal adapt longer",
        "monte_carlo_variance": "log L is not known well enough: use more draws per object or more "
        "injections, or set max_variance",
        "integration_error": "raise the tolerance of the objects' integrals if that is precise "
        "enough, or give the objects another form (Grid, Latent)",
        "tolerance": "the posterior is rough, or wide for its modes: raise max_nodes or tolerance, "
        "or use importance sampling or NUTS",
        "insertion_ranks": "new points are not drawn as from the prior, which biases the "
        "evidence: raise num_inner_steps, or num_live where modes are many",
        "evidence": "raise max_likelihoods, or look for a likelihood without an upper bound",
        "few_draws": "their log marginals are rough: use more draws of them, or leave them out",
        "few_injections": "the selection integral is rough: use more injections, nearer to the "
        "population",
        "target_ess": "raise time_limit, ask for fewer, or use a sampler that suits the posterior "
        "better",
        "time_limit": "raise it for more draws",
        "coarse": "a finer version needs fewer likelihoods of the exact one, a coarser one costs "
        "less itself",
        "extrapolated": "its learned likelihood is hardly more than a guess there, and the "
        "experiments disagree: draw more of its posterior, or sample the full joint likelihood",
        "unforeseen": "give the first run more points, or another kind of density; or sample from "
        "the prior itself, and compare",
        "learned_error": "fit the densities to more draws; num_bootstrap=10 tells what their draws "
        "leave open",
        "learned": "a longer first run, or another kind of density, makes a better proposal",
        "prior_edge": "the bound may set this result, not the data: widen the prior unless the "
        "bound is physical",
        "nan_likelihood": "the model is broken there: evaluate it at this point and mend it, or "
        "keep the prior away",
        "nan_draws": "a NaN is a fault of the model or the sampler, never a result: evaluate the "
        "model near the last finite draw",
        "density_marginals": "try kind='auto' or another kind, declare the support of parameters "
        "that have bounds, or give more draws",
        "density_shape": "try kind='auto' or another kind, or give more draws",
        "density_lost": "a mode or a tail was lost: try kind='piecewise' or kind='auto', or give "
        "more draws of it",
        "density_draws": "every statement from this density is as rough: give more draws, or draws "
        "of more even weights",
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
