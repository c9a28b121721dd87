r"""How p(data | theta) of a batch of objects can be known, and the one operator on it.

Every form integrates a density against the objects' likelihoods,

$$\ln m_i = \ln \int p(d_i \mid \theta)\, p(\theta)\, d\theta .$$

| form      | p(d | theta) is known through                                     |
|-----------|-------------------------------------------------------------------|
| `Samples` | draws of theta, and the log density that they were drawn from     |
| `Grid`    | a table of log p(d | theta) on nodes with quadrature weights      |
| `Quadrature` | a formula, integrated per object with adaptive Gauss–Hermite nodes |
| `Gaussian` | a design matrix and Gaussian noise: closed form                  |
| `LinearGrid` | closed form in some parameters on a grid of the others         |
| `Folded`  | a table over one parameter that all share, as a product of matrices |
| `Constant` | a number per object                                              |

Densities learned from draws become `Samples` with as many draws as one likes (`learned_samples`).

A new form is one class with `log_marginal(density) -> LogMarginal` and, to know the objects after
the fit, `draw(density, key)`. A detection probability is the same integral, so a selection function
is a form with a single object. Mixtures are integrated leaf by leaf where that is better
(`leaves`).
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from jax import Array

__all__ = [
    "Constant",
    "Detected",
    "Folded",
    "Gaussian",
    "Grid",
    "Latent",
    "Leafwise",
    "Likelihood",
    "LinearGrid",
    "LogMarginal",
    "Quadrature",
    "Samples",
    "learned_samples",
]


class LogMarginal(NamedTuple):
    r"""Log marginals $\ln m_i$, one per object, and the Monte Carlo variance of each.

    The variance is that of `value` (so of the logarithm), zero for forms without Monte Carlo noise.
    """

    value: Array
    variance: Array


class Likelihood(Protocol):
    """A batch of objects, each known through its likelihood p(d | theta), and their names."""

    names: tuple[str, ...]

    def log_marginal(self, density: Any) -> LogMarginal:
        """Integrate `density` (a `skycensus.density.Density`) against every object's likelihood."""
        ...

    def draw(self, density: Any, key: Any) -> dict[str, Array]:
        r"""One draw of every object's theta from $p(\theta_i|d_i)$ given the population `density`.

        Name -> (num_objects,); the parameters are those of `density`.
        """
        ...


# The protocol above comes first: the forms import it.
from .folded import Constant, Detected, Folded  # noqa: E402
from .gaussian import Gaussian  # noqa: E402
from .grid import Grid  # noqa: E402
from .latent import Latent  # noqa: E402
from .learned import learned_samples  # noqa: E402
from .leaves import Leafwise  # noqa: E402
from .linear_grid import LinearGrid  # noqa: E402
from .quadrature import Quadrature  # noqa: E402
from .samples import Samples  # noqa: E402
