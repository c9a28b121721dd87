r"""What a sampler hands back: draws, weights, evidence, diagnostics and where they came from."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from .diagnostics import effective_sample_size, import_arviz, r_hat, scalars
from .errors import InputError
from .folders import write_whole
from .status import Problem, Status
from .weights import kish, normalised_weights, quantile, systematic

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["Problem", "Result", "Status"]

QUANTILES = (5, 16, 50, 84, 95)
FORMAT = 1

# Draws and scalars whose place in the file is their name.
_PER_OBJECT = ("log_marginal_variances", "n_eff")
_RECORD = (
    *("log_evidence", "log_evidence_error", "truth", "fixed", "provenance"),
    *("seconds", "peak_memory_bytes", "measures"),
)


def plain(value: Any, *, strict: bool = True) -> Any:
    """`value` in the types of JSON: arrays become lists, paths and other objects their text.

    `strict` makes numbers that are not finite null; otherwise they stay what they are.
    """
    if isinstance(value, Mapping):
        return {str(key): plain(item, strict=strict) for key, item in value.items()}
    if isinstance(value, str) or value is None or isinstance(value, bool):
        return value
    if hasattr(value, "tolist"):  # NumPy's and JAX's arrays and scalars
        return plain(value.tolist(), strict=strict)
    if isinstance(value, list | tuple | set | frozenset):
        items = sorted(value, key=str) if isinstance(value, set | frozenset) else value
        return [plain(item, strict=strict) for item in items]
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return None if strict and not math.isfinite(value) else float(value)
    return str(value)


def summarise(x: ArrayLike, log_weight: ArrayLike | None = None) -> dict[str, Any]:
    r"""The row of one scalar parameter in `Result.summary`, from its draws (chain, draw).

    `mean`, `sd`, `quantiles` (keys "5", "16", "50", "84", "95": per cent), `r_hat`, `ess_bulk`,
    `ess_tail` and `mcse_mean`, the Monte Carlo standard error of the mean. What cannot be known
    is None: all for draws that are not finite, the diagnostics of a constant, and $\hat R$ of a
    single weighted chain, whose draws are taken for independent.
    """
    x = np.asarray(x, float)
    finite = bool(np.isfinite(x).all())
    mass = None if log_weight is None else normalised_weights(log_weight)
    mean = float(np.average(x, weights=mass)) if finite else math.nan
    sd = math.sqrt(np.average((x - mean) ** 2, weights=mass)) if finite else math.nan
    levels = quantile(x, np.array(QUANTILES) / 100, log_weight) if finite else [None] * 5
    ess_mean = effective_sample_size(x, log_weight, kind="mean")
    row = {
        "mean": mean,
        "sd": sd,
        "quantiles": dict(zip(map(str, QUANTILES), levels, strict=True)),
        "r_hat": r_hat(x) if log_weight is None or len(x) > 1 else None,
        "ess_bulk": effective_sample_size(x, log_weight, kind="bulk"),
        "ess_tail": effective_sample_size(x, log_weight, kind="tail"),
        "mcse_mean": sd / math.sqrt(ess_mean),
    }
    return plain(row)


def _arrays(
    values: Mapping[str, ArrayLike] | None, kind: type | None = float
) -> dict[str, np.ndarray]:
    return {str(name): np.array(array, kind) for name, array in (values or {}).items()}


@dataclass(frozen=True, eq=False)
class Result:
    r"""Draws from the posterior of a population's hyperparameters, and all that is known of them.

    Args:
        draws: name -> array (chain, draw), or (chain, draw, ...) for an array-valued parameter.
        status: converged, or the problems with their remedies.
        log_weight: unnormalised log weights of the draws (chain, draw); None where they are equal.
        log_evidence: natural log of the evidence, where the sampler knows it, and its error.
        sample_stats: name -> array (chain, draw): log_likelihood, diverging, num_steps, ...
        log_marginals: $\log m_i(\Lambda)$ of every object, array (chain, thinned draw, object).
        log_marginal_variances: their Monte Carlo variances, same shape.
        n_eff: the effective number of draws behind each, same shape.
        marginal_draws: for which draws of a chain they were computed (default: the first ones).
        object_names: one name per object.
        prior_draws: name -> one-dimensional array of draws from the prior.
        derived: name -> array (chain, draw, ...) of what follows from the draws (a total rate).
        latents: name -> array (chain, draw, object), parameters of the objects that were sampled
            too. The status has judged them as `name[object]`; tables and plots leave them out.
        truth: name -> true value, where the data were simulated.
        fixed: name -> value of the parameters that were held constant.
        measures: numbers about the run as a whole: k_hat, number of likelihood evaluations, ...
        provenance: seed, command, versions, inputs (file -> hash), config.
        seconds: reading, compiling, sampling, total.
        peak_memory_bytes: the largest resident memory.

    Arrays are copied; floats become 64-bit.

    Raises:
        ValueError: shapes that do not belong together, or a name used twice.
    """

    draws: Mapping[str, np.ndarray]
    status: Status
    _: KW_ONLY
    log_weight: np.ndarray | None = None
    log_evidence: float | None = None
    log_evidence_error: float | None = None
    sample_stats: Mapping[str, np.ndarray] = field(default_factory=dict)
    log_marginals: np.ndarray | None = None
    log_marginal_variances: np.ndarray | None = None
    n_eff: np.ndarray | None = None
    marginal_draws: np.ndarray | None = None
    object_names: Sequence[str] = ()
    prior_draws: Mapping[str, np.ndarray] = field(default_factory=dict)
    derived: Mapping[str, np.ndarray] = field(default_factory=dict)
    latents: Mapping[str, np.ndarray] = field(default_factory=dict)
    truth: Mapping[str, Any] | None = None
    fixed: Mapping[str, Any] = field(default_factory=dict)
    measures: Mapping[str, float] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    peak_memory_bytes: int | None = None

    def __post_init__(self) -> None:
        def put(name: str, value: Any) -> None:
            object.__setattr__(self, name, value)

        for name in ("draws", "derived", "latents", "prior_draws"):
            put(name, _arrays(getattr(self, name)))
        put("sample_stats", _arrays(self.sample_stats, None))
        for name in ("log_weight", "log_marginals", *_PER_OBJECT):
            value = getattr(self, name)
            put(name, None if value is None else np.array(value, float))
        for name in ("log_evidence", "log_evidence_error"):
            value = getattr(self, name)
            put(name, None if value is None else float(value))
        if self.log_marginals is not None and self.marginal_draws is None:
            put("marginal_draws", np.arange(np.shape(self.log_marginals)[1]))
        elif self.marginal_draws is not None:
            put("marginal_draws", np.array(self.marginal_draws, int))
        put("object_names", tuple(str(name) for name in self.object_names))
        self._check_shapes()

    def _check_shapes(self) -> None:
        if not self.draws:
            raise ValueError("a Result needs draws of at least one parameter.")
        groups = (self.draws, self.derived, self.latents)
        once = set().union(*groups)
        if repeated := sorted(n for n in once if sum(n in group for group in groups) > 1):
            raise ValueError(f"{repeated} are draws and derived, or latents; rename the latter.")
        for name, array in self.latents.items():
            if array.shape != (expected := (*self.shape, len(self.object_names))):
                meant = f"(chain, draw, object_names) = {expected}"
                raise ValueError(f"latents[{name!r}] has shape {array.shape}; expected {meant}.")
        shape = self.shape
        for group in ("draws", "derived", "sample_stats"):
            for name, array in getattr(self, group).items():
                if array.shape[:2] != shape:
                    came = f"{group}[{name!r}] has shape {array.shape}"
                    raise ValueError(f"{came}; expected (chain, draw) = {shape} first.")
        if reserved := sorted(set(self.sample_stats) & {"log_weight", *_PER_OBJECT}):
            raise ValueError(f"sample_stats may not hold {reserved}; give them as fields.")
        if len({array.shape[:1] for array in self.prior_draws.values()}) > 1:
            raise ValueError("prior_draws need one number of draws for every parameter.")
        if self.log_weight is not None:
            if self.log_weight.shape != shape:
                raise ValueError(f"log_weight has shape {self.log_weight.shape}, not {shape}.")
            normalised_weights(self.log_weight)  # raises for a NaN or nothing but zeros
        if self.log_marginals is None:
            return
        count = 0 if self.marginal_draws is None else self.marginal_draws.size
        expected = (shape[0], count, len(self.object_names))
        for name in ("log_marginals", *_PER_OBJECT):
            array = getattr(self, name)
            if array is not None and array.shape != expected:
                meant = f"(chain, marginal_draws, object_names) = {expected}"
                raise ValueError(f"{name} has shape {array.shape}; expected {meant}.")

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of chains and of draws in each."""
        first = next(iter(self.draws.values()))
        if first.ndim < 2:
            name = next(iter(self.draws))
            raise ValueError(f"draws[{name!r}] has shape {first.shape}; expected (chain, draw).")
        return first.shape[0], first.shape[1]

    @property
    def weights(self) -> np.ndarray:
        """Weights of the draws (chain, draw) that sum to one."""
        if self.log_weight is None:
            return np.full(self.shape, 1 / math.prod(self.shape))
        return normalised_weights(self.log_weight)

    def summary(self) -> dict[str, dict[str, Any]]:
        """Name -> the row of `summarise`, for every scalar of `draws` and then of `derived`."""
        every = {**self.draws, **self.derived}
        return {name: summarise(x, self.log_weight) for name, x in scalars(every)}

    def latent_summary(self) -> dict[str, dict[str, Any]]:
        """`name[object]` -> the row of `summarise`, for every latent parameter."""
        return {
            f"{name}[{label}]": summarise(x[..., i], self.log_weight)
            for name, x in self.latents.items()
            for i, label in enumerate(self.object_names)
        }

    def effective_sample_size(self) -> float:
        """Kish's number of weighted draws; for chains the smallest bulk value of the parameters.

        Where chains have weights, the latter counts both, and is no more than Kish's number.
        """
        most = float("inf") if self.log_weight is None else kish(self.log_weight)
        if self.log_weight is not None and self.shape[0] == 1:
            return most
        sizes = [effective_sample_size(x, self.log_weight) for _, x in scalars(self.draws)]
        return float(min(most, *sizes))

    def equal_weight_draws(
        self, seed: int | Sequence[int] | np.random.Generator, n: int, *, latents: bool = False
    ) -> dict[str, np.ndarray]:
        r"""`n` draws of equal weight, name -> array (n, ...), in the order of the chains.

        Systematic resampling: a draw of normalised weight $w$ is taken $\lfloor nw \rfloor$ or
        $\lceil nw \rceil$ times, on average $nw$; more than the effective sample size repeats
        draws. `seed` is what `numpy.random.default_rng` takes. Includes `derived`, and `latents`
        where asked for.
        """
        chosen = systematic(self.weights, n, np.random.default_rng(seed).random())
        every = {**self.draws, **self.derived, **(self.latents if latents else {})}
        return {name: array.reshape(-1, *array.shape[2:])[chosen] for name, array in every.items()}

    def summary_json(self) -> dict[str, Any]:
        """The run in the types of strict JSON (null for what is not finite): summary.json."""
        rows = self.summary()
        names = [name for name, _ in scalars(self.draws)]
        evidence = {"value": self.log_evidence, "error": self.log_evidence_error}
        status = self.status
        told = {
            "parameters": {name: rows[name] for name in names},
            "derived": {name: row for name, row in rows.items() if name not in names},
            "latents": self.latent_summary(),
            "fixed": self.fixed,
            "truth": self.truth,
            "log_evidence": None if self.log_evidence is None else evidence,
            "status": {
                "converged": status.converged,
                "problems": [{"kind": p.kind, "message": p.message} for p in status.problems],
                "notes": [{"kind": p.kind, "message": p.message} for p in status.notes],
            },
            "effective_sample_size": self.effective_sample_size(),
            "num_chains": self.shape[0],
            "num_samples": self.shape[1],
            "measures": self.measures,
            "seconds": self.seconds,
            "peak_memory_bytes": self.peak_memory_bytes,
            "versions": self.provenance.get("versions"),
            "seed": self.provenance.get("seed"),
            "inputs": self.provenance.get("inputs"),
        }
        return plain(told)

    # ---- files -------------------------------------------------------------------------------

    def to_arviz(self) -> Any:
        """The result as ArviZ holds one: an InferenceData (arviz 0.2x) or a DataTree (arviz 1).

        Groups: `posterior` (draws, derived, and latents with their dimension `object`),
        `sample_stats` (with `log_weight`, and variance and n_eff of the log marginals),
        `log_likelihood` (the log marginals: ArviZ's pointwise log likelihood is exactly that),
        `prior`, and `constant_data`, which holds one text: all the rest as JSON.
        """
        groups = _to_datasets(self)
        if version("arviz").startswith("0."):
            return import_arviz().InferenceData(**groups)
        import xarray as xr

        return xr.DataTree.from_dict(groups)

    def save(self, path: str | Path) -> None:
        """Write netCDF that ArviZ reads (`arviz.from_netcdf`), whole or not at all.

        Raises:
            InputError: the folder cannot be written to, or is full.
        """
        import xarray as xr

        path = Path(path)
        # Made in memory, because HDF5 crashes the process some time after a disk was full.
        tree = xr.DataTree.from_dict(_to_datasets(self))
        content = tree.to_netcdf(format="NETCDF4", engine="h5netcdf")
        try:
            write_whole(path, content)
        except OSError as error:
            raise InputError(
                f"cannot write {path}: {error.strerror}; choose a folder that exists, is "
                "writable and has space, or free some."
            ) from error

    @classmethod
    def load(cls, path: str | Path) -> Result:
        """Read what `save` wrote; floats come back to the bit.

        Raises:
            InputError: no such file, or not one of ours.
        """
        import xarray as xr

        if not Path(path).is_file():
            raise InputError(f"no result at {path}; give the result.nc that a run wrote.")
        try:
            with xr.open_datatree(path, engine="h5netcdf") as tree:
                groups = {name: node.to_dataset().load() for name, node in tree.children.items()}
            record = json.loads(str(groups["constant_data"]["record"].item()))
        except (OSError, ValueError, KeyError) as error:
            raise InputError(
                f"{path} is not a result that this package wrote ({error})."
            ) from error
        if record["format"] > FORMAT:
            raise InputError(f"{path} was written by a newer skycensus; update to read it.")
        return _from_datasets(cls, groups, record)


# ---- the layout of the file ----------------------------------------------------------------------


def _variables(
    values: Mapping[str, np.ndarray], leading: tuple[str, ...]
) -> dict[str, tuple[tuple[str, ...], np.ndarray]]:
    """Arrays with named dimensions: the leading ones, then ArviZ's name_dim_0, name_dim_1, ..."""
    return {
        name: ((*leading, *(f"{name}_dim_{k}" for k in range(array.ndim - len(leading)))), array)
        for name, array in values.items()
    }


def _to_datasets(result: Result) -> dict[str, xr.Dataset]:
    import xarray as xr

    chain, draw = (np.arange(size) for size in result.shape)
    main: dict[str, Any] = {"chain": chain, "draw": draw}
    both = ("chain", "draw")
    posterior: dict[str, Any] = _variables({**result.draws, **result.derived}, both)
    posterior |= {name: ((*both, "object"), x) for name, x in result.latents.items()}
    posterior_coords = dict(main)
    if result.latents:
        posterior_coords["object"] = np.array(result.object_names, dtype=object)
    stats: dict[str, Any] = dict(_variables(result.sample_stats, both))
    stats_coords = dict(main)
    if result.log_weight is not None:
        stats["log_weight"] = (both, result.log_weight)
    groups: dict[str, Any] = {}
    if result.log_marginals is not None:
        names = np.array(result.object_names, dtype=object)
        coords = {"chain": chain, "draw": result.marginal_draws, "object": names}
        marginal = {"log_marginal": (("chain", "draw", "object"), result.log_marginals)}
        groups["log_likelihood"] = xr.Dataset(marginal, coords)
        # A thinned set has its own draws; sample_stats has those of the posterior.
        stats_coords |= {"object": names, "marginal_draw": result.marginal_draws}
        for name in _PER_OBJECT:
            if (array := getattr(result, name)) is not None:
                stats[name] = (("chain", "marginal_draw", "object"), array)
    if result.prior_draws:
        prior = {name: array[None] for name, array in result.prior_draws.items()}
        groups["prior"] = xr.Dataset(_variables(prior, both))
    status = result.status
    record = {name: getattr(result, name) for name in _RECORD} | {
        "format": FORMAT,
        "converged": status.converged,
        "problems": [[p.kind, p.message] for p in status.problems],
        "notes": [[p.kind, p.message] for p in status.notes],
        "derived": list(result.derived),
        "latents": list(result.latents),
        "sample_stats": list(result.sample_stats),
        "object_names": list(result.object_names),
    }
    # A variable, because HDF5 allows an attribute 64 kB and the hashes of 1,000 files are more.
    text = np.array(json.dumps(plain(record, strict=False)), dtype=object)
    groups = {
        "posterior": xr.Dataset(posterior, posterior_coords),
        "sample_stats": xr.Dataset(stats, stats_coords),
        **groups,
        "constant_data": xr.Dataset({"record": ((), text)}),
    }
    for dataset in groups.values():
        dataset.attrs["inference_library"] = "skycensus"
    return groups


def _from_datasets(
    cls: type[Result], groups: Mapping[str, xr.Dataset], record: Mapping[str, Any]
) -> Result:
    def values(group: str) -> dict[str, np.ndarray]:
        return (
            {str(k): v.values for k, v in groups[group].data_vars.items()}
            if group in groups
            else {}
        )

    posterior, stats = values("posterior"), values("sample_stats")
    status = Status(
        record["converged"],
        tuple(Problem(*item) for item in record["problems"]),
        tuple(Problem(*item) for item in record["notes"]),
    )
    latents = record.get("latents", [])
    apart = {*record["derived"], *latents}
    marginals = groups.get("log_likelihood")
    rest: dict[str, Any] = {name: record[name] for name in _RECORD}
    rest |= {name: stats.get(name) for name in ("log_weight", *_PER_OBJECT)}
    if marginals is not None:
        rest["log_marginals"] = marginals["log_marginal"].values
        rest["marginal_draws"] = marginals["draw"].values
    return cls(
        {name: array for name, array in posterior.items() if name not in apart},
        status,
        derived={name: posterior[name] for name in record["derived"]},
        latents={name: posterior[name] for name in latents},
        sample_stats={name: stats[name] for name in record["sample_stats"]},
        object_names=record["object_names"],
        prior_draws={name: array[0] for name, array in values("prior").items()},
        **rest,
    )
