"""Objects known by a density learned from their posterior draws: new draws, evenly spread."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..density import Density
from ..errors import InputError
from ..keys import even_points, generator
from .samples import Samples


def learned_samples(
    densities: Sequence[Density],
    log_prior: Callable[[Any], Any] | Sequence[Callable[[Any], Any]],
    *,
    key: Any,
    num_draws: int = 2000,
    log_evidence: Sequence[float] | None = None,
    names: Sequence[str] | None = None,
    dtype: Any = None,
) -> Samples:
    r"""Objects whose likelihood is $p(d_i|\theta) = \mathcal P_i(\theta) Z_i / \pi_i(\theta)$.

    $\mathcal P_i$ is a density learned from the object's posterior draws (`fit_density`), $\pi_i$
    the prior that the draws were made with. The integral over a population p is

    $$\ln m_i = \ln Z_i + \ln \mathrm E_{\theta \sim \mathcal P_i}
      \left[\frac{p(\theta)}{\pi_i(\theta)}\right],$$

    a sum over `num_draws` points of $\mathcal P_i$: `Samples` with draws that are as many as one
    likes, and that fill the volume more evenly than independent ones (a scrambled Halton sequence
    through `from_unit_cube`), so that a population as narrow as the spacing of the original draws
    is still resolved. The variance that `Samples` states is that of this sum. What the original
    draws do not tell, the density does not know either: its own error is that of the fit.

    Args:
        densities: one per object, all over the same parameters.
        log_prior: theta by name -> log prior density, one for all objects or one for each;
            constants matter in the evidence alone.
        key: for the points.
        num_draws: points per object.
        log_evidence: $\ln Z_i$, zero where not given.
        names: of the objects.
        dtype: see `Samples`.

    Raises:
        InputError: no densities, lists of other lengths, or a learned density that reaches where
            the prior of its object has none.
    """
    size = len(densities)
    priors = [log_prior] * size if callable(log_prior) else list(log_prior)
    if not size:
        raise InputError("there are no densities: give one per object.")
    evidences = [0.0] * size if log_evidence is None else list(log_evidence)
    for what, given in (("log_prior", priors), ("log_evidence", evidences)):
        if len(given) != size:
            raise InputError(f"{what} has {len(given)} entries for {size} densities.")
    names = [f"object {i}" for i in range(size)] if names is None else list(names)
    draws, log_ref = [], []
    for i, (density, prior) in enumerate(zip(densities, priors, strict=True)):
        theta = _points(density, jax.random.fold_in(key, i), num_draws)
        reference = np.asarray(prior(theta), float)
        if not np.isfinite(reference).all():
            raise InputError(
                f"{names[i]}: its learned density reaches where its prior has none; declare the "
                "prior's support when fitting (fit_density(..., support=...))."
            )
        draws.append(theta)
        log_ref.append(reference - evidences[i])
    return Samples(draws, log_ref, names=names, dtype=dtype)


def _points(density: Density, key: Any, num: int) -> dict[str, np.ndarray]:
    """Points with the density's distribution, evenly spread where it has a map from the cube."""
    from_unit_cube: Any = getattr(density, "from_unit_cube", None)
    if from_unit_cube is None:
        theta = density.sample(key, (num,))
    else:
        u = even_points(generator(key), num, len(density.names))
        theta = from_unit_cube(jnp.asarray(u))
    return {name: np.asarray(x, float) for name, x in theta.items()}
