r"""A straight line through points with errors in y, some of which are outliers.

Each point has a true ordinate $y_i$, known by a Gaussian measurement, and the population of true
ordinates at abscissa $x$ is a mixture (Hogg, Bovy & Lang 2010, arXiv:1008.4686, section 3),

$$p(y|x) = w_0\,\delta(y - m x - b)
  + (1-w_0)\,\mathcal N(y\,|\,\mu_\mathrm{out}, s_\mathrm{out}^2).$$

Both leaves are linear in y with Gaussian noise, so each is integrated in closed form.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from astropy.table import Table
from jax import Array

from ..density import Joint, Mixture
from ..likelihood.gaussian import Gaussian
from ..predictive_checks import Measurements
from .tables import check_uncertainties, columns_of, read_table


class Points(NamedTuple):
    """Points of a plane with errors in y.

    Attributes:
        x, y, error: (point,).
        names: of the points.
    """

    x: np.ndarray
    y: np.ndarray
    error: np.ndarray
    names: tuple[str, ...]


def points(
    table: Table,
    *,
    x: str = "x",
    y: str = "y",
    error: str = "y_err",
    source: str = "the table",
    drop_invalid: bool = False,
) -> Points:
    """Take points from an astropy table.

    Raises:
        InputError: see `tables.columns_of`.
    """
    wanted = {"x": (x, None), "y": (y, None), "error": (error, None)}
    found = columns_of(table, wanted, source=source, positive=["error"], drop_invalid=drop_invalid)
    names = tuple(f"point {i}" for i in found.rows)
    return Points(found.values["x"], found.values["y"], found.values["error"], names)


def read_points(path: str | Path, **options: Any) -> Points:
    """`points` of a file; see there."""
    return points(read_table(path), source=str(path), **options)


def objects(data: Points) -> Gaussian:
    """The points as a likelihood over `y`, their true ordinates; `x` is known.

    Raises:
        InputError: an uncertainty that is not positive (the point is named).
    """
    check_uncertainties(data.error, data.names)
    return Gaussian(
        [np.ones((1, 1))] * len(data.y),
        [np.atleast_1d(y) for y in data.y],
        [np.atleast_1d(e) for e in data.error],
        parameters=["y"],
        names=data.names,
        given={"x": data.x},
    )


def measurements(data: Points) -> Measurements:
    """The ordinates for a predictive check."""

    def predict(theta: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        return theta["y"], data.error

    return Measurements(data.y, np.arange(len(data.y)), predict, "$y$")


def line(h: Mapping[str, Array], *, intrinsic_scatter: bool = False) -> Joint:
    r"""A straight line $y = m x + b$, hyperparameters `m` and `b`.

    With `intrinsic_scatter`, $y \sim \mathcal N(mx + b, s^2)$ with $s$ = exp of `ln_s`.
    """
    scatter = jnp.exp(h["ln_s"]) if intrinsic_scatter else jnp.zeros(())
    slope, intercept = h["m"], h["b"]
    # The scale is zero where the points lie on the line: only closed forms meet it.
    return Joint(y=lambda t: dist.Normal(slope * t["x"] + intercept, scatter, validate_args=False))


def line_with_outliers(
    h: Mapping[str, Array], *, intrinsic_scatter: bool = False, mean_outlier: float = 0.0
) -> Mixture:
    r"""A line, and outliers around `mean_outlier` with a spread of their own.

    Hyperparameters: those of `line`; `w0`, the fraction of points on the line; `ln_s_out`, the
    natural log of the outliers' standard deviation. Leaves: `line`, `outlier`.
    """
    spread = jnp.exp(h["ln_s_out"])
    return Mixture(
        {
            "line": line(h, intrinsic_scatter=intrinsic_scatter),
            "outlier": Joint(y=dist.Normal(mean_outlier, spread)),
        },
        log_weights={"line": jnp.log(h["w0"]), "outlier": jnp.log1p(-h["w0"])},
    )


def simulate(
    seed: int = 42,
    *,
    num_points: int = 32,
    num_outliers: int = 8,
    m: float = 3.17,
    b: float = -11.9,
) -> Table:
    """Make points on a line with errors of 0.5 to 2.5, some of them replaced by outliers.

    Outliers are normal with mean 0 and standard deviation 12; the column `is_outlier` tells them.
    """
    rng = np.random.default_rng(seed)
    x = np.sort(rng.uniform(0.0, 10.0, num_points))
    error = rng.uniform(0.5, 2.5, num_points)
    truth = m * x + b
    outlier = np.zeros(num_points, bool)
    outlier[rng.choice(num_points, num_outliers, replace=False)] = True
    truth[outlier] = rng.normal(0.0, 12.0, num_outliers)
    return Table({"x": x, "y": rng.normal(truth, error), "y_err": error, "is_outlier": outlier})
