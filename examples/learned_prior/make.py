"""Write chain.csv, the chain of an earlier experiment, and points.ecsv, the points of a new one."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from astropy.table import Table

SLOPE, INTERCEPT, LOW = 3.17, -11.9, 3.0


def points(seed: int, num: int, error: float) -> Table:
    """Points of one experiment, on the same line."""
    rng = np.random.default_rng(seed)
    x = np.sort(rng.uniform(0.0, 10.0, num))
    y = rng.normal(SLOPE * x + INTERCEPT, error)
    return Table({"x": x, "y": y, "y_err": np.full(num, error)})


def log_likelihood(table: Table, slope: np.ndarray, intercept: np.ndarray) -> np.ndarray:
    """That of a line, at arrays of slopes and intercepts."""
    line = slope[..., None] * np.asarray(table["x"]) + intercept[..., None]
    z = (np.asarray(table["y"]) - line) / np.asarray(table["y_err"])
    return -0.5 * np.sum(z**2 + np.log(2 * np.pi * np.asarray(table["y_err"]) ** 2), axis=-1)


def earlier_and_new() -> tuple[Table, Table]:
    return points(1, 8, 2.0), points(2, 12, 1.5)


def chain(table: Table, num: int = 10_000) -> dict[str, np.ndarray]:
    """Independent draws of m and b under flat priors, with m above `LOW`: a Gaussian, cut."""
    rng = np.random.default_rng(3)
    design = np.stack([table["x"], np.ones(len(table))], axis=-1) / table["y_err"][:, None]
    covariance = np.linalg.inv(design.T @ design)
    mean = covariance @ design.T @ (table["y"] / table["y_err"])
    drawn = rng.multivariate_normal(mean, covariance, 4 * num)
    drawn = drawn[drawn[:, 0] > LOW][:num]
    return {"m": drawn[:, 0], "b": drawn[:, 1]}


def exact() -> dict[str, float]:
    """Mean and sd of both parameters and the evidence, by sums over a fine grid."""
    earlier, new = earlier_and_new()
    m = LOW + (np.arange(2000) + 0.5) * 1e-3
    b = np.linspace(-25.0, 0.0, 2501)
    grid = np.meshgrid(m, b, indexing="ij")
    log_prior = log_likelihood(earlier, *grid)
    prior = np.exp(log_prior - log_prior.max())
    prior /= prior.sum()
    weight = prior * np.exp(log_likelihood(new, *grid))
    found = {"log_evidence": float(np.log(weight.sum()))}
    for name, x in zip("mb", grid, strict=True):
        mean = np.average(x, weights=weight)
        found[name] = float(mean)
        found[f"{name}_sd"] = float(np.sqrt(np.average((x - mean) ** 2, weights=weight)))
    return found


def write(folder: Path) -> None:
    earlier, new = earlier_and_new()
    columns = chain(earlier)
    rows = np.stack(list(columns.values()), axis=-1)
    np.savetxt(folder / "chain.csv", rows, delimiter=",", header=",".join(columns), comments="")
    new.write(folder / "points.ecsv", overwrite=True)


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    write(folder)
    print(f"chain.csv and points.ecsv written to {folder}; exact answer: {exact()}")
