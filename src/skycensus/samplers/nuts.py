r"""The No-U-Turn sampler, from NumPyro."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer import NUTS as Kernel

from ..checkpoint import Part
from ..diagnostics import diagnose, effective_sample_size
from ..result import Result
from ..target import Target
from ..weights import pareto_smooth
from . import Progress, batch_size, evaluate, named_draws, require_numbers
from .chains import Chains, Method
from .settings import require
from .starts import Start, start_points
from .warmup import MAX_EARLY_DEPTH, Warmup

# What the state of a chain tells of a step besides the place.
_FIELDS = ("diverging", "num_steps", "accept_prob", "potential_energy")

# Chains whose gradients fit into the cache together, for which it pays to move all at once: each
# then waits for the longest trajectory, and one core does most of the work.
_TOGETHER = 4


@dataclass(frozen=True, kw_only=True)
class NUTS:
    r"""Hamiltonian Monte Carlo with self-tuned trajectories (Hoffman & Gelman 2014), by NumPyro.

    A target whose likelihood jumps where an edge of the population passes a draw cannot be followed
    by gradients. The chains then follow its smooth version, and the draws carry the importance
    weights $L / L_\mathrm{smooth}$, Pareto-smoothed, whose tail shape $\hat k$ is in the status.

    Mass matrices are learnt from draws and gradients (see `warmup`), which takes a few dozen steps.

    Args:
        num_warmup, num_samples, num_chains, thinning: per chain, NumPyro's words.
        chain_method: "vectorized" (all at once), "parallel" (one per device; one after the other
            where there are fewer) or "sequential" (each a program of its own, as many at a time as
            there are cores); "auto" takes the last where the data are not few.
        dense_mass: a full mass matrix (of the hyperparameters, where there are latent parameters);
            else a diagonal one.
        max_tree_depth: doublings of a trajectory at most.
        target_accept_prob: step-size goal; nearer to one takes smaller steps.
        start: "prior": at the best of `num_start` draws of the prior; "mode": around the modes
            found from there; or parameters by name near which all chains start, or one such mapping
            for each chain (see `starts.start_points`).
        num_start: draws of the prior to start from.
        edges: "auto" as above, "sharp" to follow the jumping likelihood regardless.
    """

    num_warmup: int = 300
    num_samples: int = 1000
    num_chains: int = 4
    thinning: int = 1
    chain_method: Literal["auto", "vectorized", "parallel", "sequential"] = "auto"
    dense_mass: bool = True
    max_tree_depth: int = 10
    target_accept_prob: float = 0.8
    start: Start = "prior"
    num_start: int = 512
    edges: Literal["auto", "sharp"] = "auto"

    def __post_init__(self) -> None:
        require(
            self,
            counts=("num_samples", "num_chains", "thinning", "max_tree_depth", "num_start"),
            counts_or_none=("num_warmup",),
            shares=("target_accept_prob",),
        )

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
            InputError: start values without density, or a log density that is NaN (at which point).
        """
        followed = target
        if self.edges == "auto" and target.smooth is not None:
            followed = target.smooth()
        start_key, run_key = jax.random.split(key)
        start = jnp.asarray(
            start_points(followed, self.start, start_key, self.num_chains, num_start=self.num_start)
        )

        # Hundreds of latent parameters have no dense mass matrix that could be learnt.
        sites = {"x": target.dim - target.num_latent, "z": target.num_latent}
        sites = {name: size for name, size in sites.items() if size}

        def model(data: Any) -> None:
            vector = dist.constraints.real_vector
            parts = [
                numpyro.sample(name, dist.ImproperUniform(vector, (), (size,)))
                for name, size in sites.items()
            ]
            numpyro.factor("log_density", followed.log_density(jnp.concatenate(parts), data))

        kernel = Kernel(
            model,
            dense_mass=[("x",)] if self.dense_mass and "x" in sites else [],
            max_tree_depth=(min(MAX_EARLY_DEPTH, self.max_tree_depth), self.max_tree_depth),
            adapt_step_size=False,
            adapt_mass_matrix=False,
        )
        chains = Chains(
            kernel=kernel,
            warmup=Warmup(self.num_warmup, self.target_accept_prob),
            collect=lambda state: dict(state.z) | {name: getattr(state, name) for name in _FIELDS},
            target=followed,
            name=f"NUTS {self.num_warmup} {self._tuning}",
            num_samples=self.num_samples,
            num_chains=self.num_chains,
            thinning=self.thinning,
            method=self.method(followed),
        )

        parts = jnp.split(start, [target.dim - target.num_latent], axis=1)
        first = dict(zip(sites, (part for part in parts if part.size), strict=True))
        kept = chains.run(run_key, first, progress=progress, checkpoint=checkpoint)
        x = np.concatenate([np.asarray(kept.pop(name), float) for name in sites], axis=-1)
        return self._result(target, followed, x, kept)

    def method(self, target: Target) -> Method:
        """How the chains of `target` run here: `chain_method`, where it is not left open."""
        if self.chain_method == "parallel" and self.num_chains > jax.local_device_count():
            return "sequential"
        if self.chain_method != "auto":
            return self.chain_method
        if 1 < self.num_chains <= jax.local_device_count():
            return "parallel"
        apart = batch_size(target, gradient=True) < min(self.num_chains, _TOGETHER)
        return "sequential" if apart and jax.default_backend() == "cpu" else "vectorized"

    @property
    def _tuning(self) -> tuple[bool, int, float]:
        return self.dense_mass, self.max_tree_depth, self.target_accept_prob

    def longer(self, by: float) -> NUTS:
        """The same chains with `by` times as many draws, the first of which are the same."""
        more = math.ceil((by - 1.0) * self.num_samples / self.thinning) * self.thinning
        return replace(self, num_samples=self.num_samples + more)

    def _result(
        self, target: Target, followed: Target, x: np.ndarray, extra: dict[str, np.ndarray]
    ) -> Result:
        flat = x.reshape(-1, x.shape[-1])
        require_numbers(target, flat, -extra["potential_energy"].reshape(-1))
        draws = named_draws(target, x)
        log_l, _ = evaluate(target, flat)
        log_weight, k_hat = None, None
        if followed is not target:
            ratio = log_l - evaluate(followed, flat)[0]
            efficiency = min(
                min(1.0, effective_sample_size(d, kind="bulk") / d.size) for d in draws.values()
            )
            log_weight, k_hat = pareto_smooth(ratio, relative_efficiency=efficiency)
            log_weight = log_weight.reshape(x.shape[:2])
        stats = {
            "diverging": extra["diverging"],
            "num_steps": extra["num_steps"],
            "accept_prob": extra["accept_prob"],
            "log_likelihood": log_l.reshape(x.shape[:2]),
        }
        status = diagnose(
            draws,
            stats,
            log_weight,
            k_hat=k_hat,
            prior_bounds=target.prior.bounds(),
            max_tree_depth=self.max_tree_depth,
        )
        in_warmup = int(extra["num_warmup_steps"].sum())
        measures: dict[str, float] = {
            "num_likelihoods": in_warmup + int(extra["num_steps"].sum()),
            "num_warmup_likelihoods": in_warmup,
        }
        if k_hat is not None:
            measures["k_hat"] = k_hat
        return Result(draws, status, log_weight=log_weight, sample_stats=stats, measures=measures)
