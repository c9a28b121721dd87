r"""Distances of stars known by their parallaxes.

A parallax $\varpi$ [mas] measured with Gaussian error $\sigma$ says of the distance $r$ [kpc]

$$p(\varpi \mid r) = \mathcal N(\varpi \mid 1/r,\ \sigma^2),$$

which is not Gaussian in r: inverting noisy parallaxes is biased (Luri et al. 2018,
arXiv:1804.09376), integrating over r is not.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import astropy.units as u
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from astropy.table import QTable, Table
from jax import Array

from ..density import Joint
from ..errors import InputError
from ..likelihood.quadrature import Quadrature
from ..predictive_checks import Measurements
from .tables import check_uncertainties, columns_of, read_table


class Parallaxes(NamedTuple):
    """Measured parallaxes.

    Attributes:
        parallax, error: (star,) in mas.
        names: of the stars.
    """

    parallax: np.ndarray
    error: np.ndarray
    names: tuple[str, ...]


def parallaxes(
    table: Table,
    *,
    parallax: str = "parallax",
    error: str = "parallax_error",
    name: str | None = None,
    source: str = "the table",
    drop_invalid: bool = False,
) -> Parallaxes:
    """Take parallaxes from an astropy `Table` or `QTable`, in any unit of angle (plain: mas).

    Args:
        table: one row for each star.
        parallax, error, name: its columns; without a column of names stars are numbered.
        source: how messages call the table.
        drop_invalid: leave out stars with a missing value instead of refusing them.

    Raises:
        InputError: see `tables.columns_of`; or two stars of one name.
    """
    wanted: dict[str, Any] = {"parallax": (parallax, u.mas), "error": (error, u.mas)}
    if name is not None:
        wanted["name"] = (name, None)
    found = columns_of(
        table,
        wanted,
        source=source,
        positive=["error"],
        text=["name"],
        drop_invalid=drop_invalid,
    )
    if name is None:
        names = tuple(f"star {i}" for i in found.rows)
    else:
        names = tuple(found.values["name"])
        if len(set(names)) < len(names):
            twice = sorted({n for n in names if names.count(n) > 1})[0]
            raise InputError(f"{source}: there is more than one row of star '{twice}'.")
    return Parallaxes(found.values["parallax"], found.values["error"], names)


def read_parallaxes(path: str | Path, **options: Any) -> Parallaxes:
    """`parallaxes` of a file; see there."""
    return parallaxes(read_table(path), source=str(path), **options)


def log_likelihood(theta: Mapping[str, Array], data: Mapping[str, Array]) -> Array:
    r"""$\ln \mathcal N(\varpi | 1/r, \sigma^2)$ of one star, `theta["r"]` in kpc."""
    return dist.Normal(1.0 / theta["r"], data["error"]).log_prob(data["parallax"])


def objects(data: Parallaxes, **options: Any) -> Quadrature:
    """The stars as a likelihood over `r`, their distance in kpc; options are `Quadrature`'s.

    Raises:
        InputError: an uncertainty that is not positive (the star is named).
    """
    check_uncertainties(data.error, data.names)
    columns = {"parallax": data.parallax, "error": data.error}
    return Quadrature(log_likelihood, columns, names=data.names, **options)


def measurements(data: Parallaxes) -> Measurements:
    """The parallaxes for a predictive check."""

    def predict(theta: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        return 1.0 / theta["r"], data.error

    owner = np.arange(len(data.names))
    return Measurements(data.parallax, owner, predict, r"$\varpi\ [\mathrm{mas}]$")


def normal_cluster(h: Mapping[str, Array]) -> Joint:
    r"""A cluster whose stars' distances are normal, cut at zero: $r \sim \mathcal N_{r>0}(\mu_r,
    \sigma_r)$.

    Hyperparameters: `mu_r` [kpc] and `ln_std_r`, the natural log of $\sigma_r$ / kpc.
    """
    return Joint(r=dist.TruncatedNormal(h["mu_r"], jnp.exp(h["ln_std_r"]), low=0.0))


def cluster_size(h: Mapping[str, Array]) -> dict[str, Array]:
    r"""`std_r` [kpc], which follows from `ln_std_r`."""
    return {"std_r": jnp.exp(h["ln_std_r"])}


def simulate_cluster(
    seed: int = 42, *, num_stars: int = 256, mean: float = 500.0, sd: float = 8.7
) -> QTable:
    """Make parallaxes of a cluster at `mean` with spread `sd` [pc], errors 0.01 to 0.1 mas.

    The default is, draw for draw, the cluster of the tutorial "Hierarchical Models 1" by
    A. Price-Whelan (adrian.pw/blog/hierarchical-models-1).
    """
    rng = np.random.default_rng(seed)
    distance = rng.normal(mean, sd, size=num_stars)
    error = 10 ** rng.uniform(-2, -1.0, size=num_stars)
    table = QTable({"parallax": rng.normal(1e3 / distance, error) * u.mas})
    table["parallax_error"] = error * u.mas
    return table
