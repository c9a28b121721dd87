r"""How p(data | theta) of a batch of objects can be known, and the one operator on it.

Every form integrates a density against the objects' likelihoods,

$$\ln m_i = \ln \int p(d_i \mid \theta)\, p(\theta)\, d\theta .$$

| form      | p(d | theta) is known through                                     |
|-----------|-------------------------------------------------------------------|
| `Samples` | draws of theta, and the log density that they were drawn from     |
| `Grid`    | a table of log p(d | theta) on nodes with quadrature weights      |

A new form is one class with one method, `log_marginal(density) -> LogMarginal`. A detection
probability is the same integral, so a selection function is a form with a single object.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from jax import Array

__all__ = ["Grid", "Likelihood", "LogMarginal", "Samples"]


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


# The protocol above comes first: the forms import it.
from .grid import Grid  # noqa: E402
from .samples import Samples  # noqa: E402
