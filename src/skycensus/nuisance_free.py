"""Likelihoods whose nuisance parameters are integrated out, learned from runs, and their sum."""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from .density import Density, Theta
from .diagnostics import scalars
from .errors import InputError
from .estimators.files import density_bytes, load_density, packed, write_new
from .estimators.learned import LearnedDensity, replica_error, replicas_of_density
from .prior import Prior
from .result import Result
from .samplers import Sampler
from .samplers.importance import ImportanceSampler
from .status import Problem
from .target import Target
from .weights import log_mean_weight, normalised_weights, quantile

# A joint posterior farther out in an experiment's own than all but this part of its draws lies
# where the learned density has seen hardly any.
_FAR_OUT = 1e-3
_NUM_OWN = 4000

# What is told of every parameter, and which part of its standard deviation may be uncertain.
_LEVELS = np.array([0.05, 0.5, 0.95])
_TOLD = {
    "mean": "mean",
    "sd": "standard deviation",
    "q5": "5 % quantile",
    "q50": "median",
    "q95": "95 % quantile",
}
_TOLERATED = 0.3
_EVIDENCE = "log_evidence"

_FORMAT, _VERSION, _HEAD = "skycensus nuisance-free likelihood", 1, "likelihood.json"


@dataclass(frozen=True, kw_only=True)
class NuisanceFree:
    r"""The likelihood of shared parameters alone, with an experiment's nuisances integrated out.

    $$\mathcal L(\theta) = \int L(\theta, \alpha)\,\pi(\alpha|\theta)\,\mathrm d\alpha
      = \frac{\mathcal Z\,\mathcal P(\theta)}{\pi(\theta)},$$

    with the marginal posterior learned from the draws of a run, the marginal of the prior that the
    run used, and its evidence: exact for a density that is (Bevins et al. 2023, arXiv:2305.02930,
    after Lemos et al. 2021).

    Args:
        posterior: $\mathcal P$, `fit_density` of the shared columns of the run's draws. Its support
            should be declared: it says where the experiment knows its likelihood.
        prior: $\pi$ over the same parameters: `Prior.marginal`, or learned from draws of the prior
            where the marginal has no formula.
        log_evidence: $\ln\mathcal Z$ of the run, its error in `log_evidence_error`; zero serves
            where evidences are not wanted.

    Raises:
        InputError: other parameters in the prior, or a prior narrower than the posterior.
    """

    posterior: Density
    prior: Density | Prior
    log_evidence: float = 0.0
    log_evidence_error: float = 0.0

    def __post_init__(self) -> None:
        if sorted(self.names) != sorted(self.prior.names):
            raise InputError(
                f"the posterior is over {list(self.names)}, the prior over "
                f"{list(self.prior.names)}; take prior.marginal of these names."
            )
        for name in ("log_evidence", "log_evidence_error"):
            if not math.isfinite(getattr(self, name)):
                raise InputError(f"{name} = {getattr(self, name)} is not a finite number.")
        draws = self.posterior.sample(jax.random.key(0), (1000,))
        outside = ~np.isfinite(np.asarray(self.prior.log_prob(draws)))
        # A learned density may leak a little over an undeclared edge, which is not its posterior.
        if outside.mean() > 0.01:
            raise InputError(
                f"{outside.mean():.0%} of the posterior lies where its prior has no density: this "
                "is not the run's prior, or the posterior was fitted without its support; give the "
                "prior of the run, and fit_density(..., support=prior)."
            )

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters."""
        return tuple(self.posterior.names)

    def log_likelihood(self, theta: Theta) -> Array:
        r"""$\ln\mathcal L(\theta)$; $-\infty$ outside the posterior's support.

        Raises:
            InputError: a parameter is missing.
        """
        log_posterior = self.posterior.log_prob(theta)
        log_prior = self.prior.log_prob({name: theta[name] for name in self.names})
        known = jnp.isfinite(log_prior)
        value = self.log_evidence + log_posterior - jnp.where(known, log_prior, 0.0)
        # Where its prior was zero, an experiment does not know its likelihood.
        return jnp.where(known | jnp.isnan(log_prior), value, -jnp.inf)

    def log_likelihood_error(self, theta: Theta) -> Array:
        """Its standard error, from the spread of the posterior's replicas and the evidence.

        Raises:
            InputError: the posterior has no replicas.
        """
        error: Any = getattr(self.posterior, "log_prob_error", None)
        if error is None:
            raise InputError("this posterior was not learned, so that nothing tells its error.")
        return jnp.hypot(error(theta), self.log_evidence_error)

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write it to one file, for others to load: a ZIP archive without draws or code.

        Raises:
            InputError: the file exists and `overwrite` is not set, the posterior is not learned, or
                the prior is neither learned nor known by its arguments.
        """
        return write_new(path, self._bytes, overwrite=overwrite)

    def _bytes(self) -> bytes:
        if not isinstance(self.posterior, LearnedDensity):
            raise InputError("only a learned posterior (fit_density) can be written to a file.")
        head: dict[str, Any] = {
            "format": _FORMAT,
            "version": _VERSION,
            "log_evidence": self.log_evidence,
            "log_evidence_error": self.log_evidence_error,
        }
        parts = {"posterior": self.posterior}
        if isinstance(self.prior, LearnedDensity):
            parts["prior"] = self.prior
        elif isinstance(self.prior, Prior):
            head["prior"] = self.prior.entries()
        else:
            raise InputError("the prior must be a Prior or a learned density to be written.")
        entries = {_HEAD: json.dumps(head, indent=1).encode()}
        entries |= {f"{name}.skc": density_bytes(density) for name, density in parts.items()}
        return packed(entries)

    @classmethod
    def load(cls, path: str | Path) -> NuisanceFree:
        """Read a file of `save`.

        Raises:
            InputError: a file that is missing, damaged, of another format or an unknown version.
        """
        try:
            with TemporaryDirectory() as folder, zipfile.ZipFile(path) as archive:
                head = json.loads(archive.read(_HEAD))
                if head.get("format") != _FORMAT:
                    raise KeyError("format")
                if head.get("version") != _VERSION:
                    raise InputError(
                        f"'{path}' has format version {head.get('version')}, and this skycensus "
                        f"knows version {_VERSION}; update skycensus, or make the file again."
                    )
                learned = {
                    name: load_density(archive.extract(f"{name}.skc", folder))
                    for name in ("posterior", "prior")
                    if f"{name}.skc" in archive.namelist()
                }
        except OSError as error:
            raise InputError(f"'{path}' cannot be read: {error.strerror}.") from None
        except (zipfile.BadZipFile, EOFError, KeyError, json.JSONDecodeError):
            raise InputError(
                f"'{path}' is no nuisance-free likelihood, or only a part of one; give a file that "
                "NuisanceFree.save has written."
            ) from None
        return cls(
            posterior=learned["posterior"],
            prior=learned["prior"] if "prior" in learned else Prior(head["prior"]),
            log_evidence=head["log_evidence"],
            log_evidence_error=head["log_evidence_error"],
        )


def joint_target(prior: Prior, experiments: Mapping[str, NuisanceFree]) -> Target:
    r"""The target $\ln L(\theta) = \sum_k \ln\mathcal L_k(\theta)$ of independent experiments.

    Args:
        prior: of all parameters of all experiments.
        experiments: by name, over some or all of the prior's parameters.

    Raises:
        InputError: an experiment has a parameter without a prior, or the prior reaches farther than
            the prior with which an experiment was made, so that its likelihood is unknown there.
    """
    if not experiments:
        raise InputError("a joint analysis needs experiments.")
    known = {*prior.names, *prior.fixed, *prior.same_as}
    for label, experiment in experiments.items():
        missing = [name for name in experiment.names if name not in known]
        if missing:
            raise InputError(f"experiment '{label}' has {missing}, which the prior does not know.")
        _check_reach(label, experiment, prior)
    ordered = tuple(experiments.values())

    def log_likelihood(free: Mapping[str, Array], data: Any) -> Array:
        every = prior.complete(free)
        return sum((one.log_likelihood(every) for one in ordered), start=jnp.zeros(()))

    return Target(prior, log_likelihood)


def joint_analysis(
    key: Any,
    prior: Prior,
    experiments: Mapping[str, NuisanceFree],
    *,
    sampler: Sampler | None = None,
) -> Result:
    r"""Sample the shared parameters of several experiments: `joint_target`, run and judged.

    The errors that come from the learned densities are found by weighting the joint draws anew as
    each of their replicas has it (`fit_density(..., num_bootstrap=10)`, or an ensemble of flows).
    For every parameter `measures` has them as `learned_error_mean[a]`, `..._sd[a]` and, of the
    5, 50 and 95 % quantiles, `..._q5[a]` and so on. They leave out what the densities' kind cannot
    describe, which in the tails may be more. Where one is above 0.3 posterior standard
    deviations that is a problem of the status; so is a joint posterior that lies where an
    experiment had next to no draws. The error of the evidence adds, to that of the sampler, those
    of the experiments' evidences and of their densities.

    Args:
        key: for the sampler.
        prior, experiments: see `joint_target`.
        sampler: importance sampling where not given.

    Raises:
        InputError: see `joint_target`.
    """
    target = joint_target(prior, experiments)
    result = (sampler or ImportanceSampler()).run(target, key)
    theta = prior.complete({n: jnp.asarray(x.reshape(-1)) for n, x in result.draws.items()})
    far = [
        Problem.of(
            "extrapolated",
            f"half of the joint posterior lies farther out than {1 - _FAR_OUT:.1%} of the draws of "
            f"experiment '{label}'",
        )
        for label, experiment in experiments.items()
        if _is_far_out(experiment, theta, result.weights.ravel())
    ]
    errors = _learned_errors(experiments, theta, result)
    found = [*far, *_uncertain(result, errors)]
    unknown = tuple(
        Problem.of("learned_error", f"experiment '{label}' has no replicas: its error is left out")
        for label, experiment in experiments.items()
        if not any(replicas_of_density(part) for part in (experiment.posterior, experiment.prior))
    )
    own = [result.log_evidence_error or 0.0, errors.pop(_EVIDENCE)]
    own += [experiment.log_evidence_error for experiment in experiments.values()]
    return replace(
        result,
        status=result.status.plus(*found, notes=unknown),
        log_evidence_error=None if result.log_evidence is None else math.hypot(*own),
        measures={**result.measures, **errors},
    )


def _check_reach(label: str, experiment: NuisanceFree, prior: Prior) -> None:
    theirs = getattr(experiment.prior, "bounds", {})
    theirs = theirs() if callable(theirs) else theirs
    ours = prior.bounds()
    for name in experiment.names:
        if name not in ours or name not in theirs:
            continue
        (low, high), (their_low, their_high) = ours[name], theirs[name]
        slack = 1e-9 * (high - low) if math.isfinite(high - low) else 0.0
        if low < their_low - slack or high > their_high + slack:
            raise InputError(
                f"the prior of '{name}' reaches over [{low:g}, {high:g}], but experiment '{label}' "
                f"was made with [{their_low:g}, {their_high:g}]; its likelihood is unknown beyond. "
                "Narrow the prior, or run the experiment with a wider one."
            )


def _is_far_out(experiment: NuisanceFree, theta: Theta, weight: np.ndarray) -> bool:
    """Whether half of the weight lies at densities that few of the experiment's own draws have."""
    own = experiment.posterior.sample(jax.random.key(0), (_NUM_OWN,))
    edge = np.quantile(np.asarray(experiment.posterior.log_prob(own)), _FAR_OUT)
    there = np.asarray(experiment.posterior.log_prob({n: theta[n] for n in experiment.names}))
    return bool(weight[there < edge].sum() > 0.5)


def _learned_errors(
    experiments: Mapping[str, NuisanceFree], theta: Theta, result: Result
) -> dict[str, float]:
    """The errors of what the joint draws tell, from all learned densities; see `joint_analysis`.

    That of the evidence alone where no density has replicas.
    """
    draws = {name: x.ravel() for name, x in scalars(result.draws)}
    log_weight = np.log(np.maximum(result.weights.ravel(), 1e-300))
    errors = [
        _error_by(density, sign, {n: theta[n] for n in experiment.names}, draws, log_weight)
        for experiment in experiments.values()
        for density, sign in ((experiment.posterior, 1.0), (experiment.prior, -1.0))
        if replicas_of_density(density)
    ]
    if not errors:
        return {_EVIDENCE: 0.0}
    labels = [f"learned_error_{kind}[{name}]" for name in draws for kind in _TOLD]
    total = np.sqrt(np.sum(np.square(errors), axis=0))
    return dict(zip([_EVIDENCE, *labels], map(float, total), strict=True))


def _error_by(
    density: Any, sign: float, theta: Theta, draws: Mapping[str, np.ndarray], log_weight: np.ndarray
) -> np.ndarray:
    """The errors of `_told` from one density that is a factor of the likelihood, or a divisor."""
    base = np.asarray(density.log_prob(theta))

    def told(replica: Density) -> list[float]:
        shift = sign * (np.asarray(replica.log_prob(theta)) - base)
        # Outside of the support, where no weight is, both are infinite.
        return _told(draws, log_weight + np.where(np.isfinite(base), shift, 0.0))

    with np.errstate(invalid="ignore"):
        return replica_error(density, told)


def _told(draws: Mapping[str, np.ndarray], log_weight: np.ndarray) -> list[float]:
    """The log of the mean weight, and of every parameter the numbers of `_TOLD`."""
    weight = normalised_weights(log_weight)
    found = [log_mean_weight(log_weight)[0]]
    for x in draws.values():
        mean = float(weight @ x)
        sd = math.sqrt(weight @ (x - mean) ** 2)
        found += [mean, sd, *quantile(x, _LEVELS, log_weight)]
    return found


def _uncertain(result: Result, errors: Mapping[str, float]) -> list[Problem]:
    """The parameters of which something is not known to a part of their standard deviation."""
    found, rows = [], result.summary()
    for name, _ in scalars(result.draws) if len(errors) > 1 else ():
        row = rows[name]
        mine = {kind: errors[f"learned_error_{kind}[{name}]"] for kind in _TOLD}
        worst = max(mine, key=lambda kind: mine[kind])
        if mine[worst] > _TOLERATED * row["sd"]:
            parts = mine[worst] / row["sd"]
            said = f"the learned densities leave the {_TOLD[worst]} of '{name}' uncertain by"
            found.append(
                Problem.of("learned_error", f"{said} {parts:.2g} sd (tolerated: {_TOLERATED})")
            )
    return found
