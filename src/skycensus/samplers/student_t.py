r"""Mixtures of multivariate Student-t densities, fitted to weighted points."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import gammaincinv, gammaln, ndtri

from ..estimators.clusters import spread_points
from ..keys import even_points

# Points that weigh less than so much of the heaviest one tell a fit nothing, and cost as much.
_NEGLIGIBLE = 1e-9
# A fit has settled when a step gains less mean log density than this.
_SETTLED = 1e-4


@dataclass(frozen=True)
class StudentTMixture:
    r"""$q(x) = \sum_k w_k\, t_\nu(x \mid \mu_k, \Sigma_k)$ in `dim` dimensions.

    Shapes: `weight` (k,), `loc` (k, dim), `cholesky` (k, dim, dim) lower triangular.
    """

    weight: np.ndarray
    loc: np.ndarray
    cholesky: np.ndarray
    dof: float

    @property
    def dim(self) -> int:
        return self.loc.shape[1]

    def _log_terms(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Log density of each component, (k, n), and the squared Mahalanobis distances."""
        d, nu = self.dim, self.dof
        const = gammaln((nu + d) / 2) - gammaln(nu / 2) - 0.5 * d * np.log(nu * np.pi)
        # Triangular and small: inverted once, a whitening is one product for all points.
        whiten = np.linalg.inv(self.cholesky)
        z = whiten @ x.T - whiten @ self.loc[:, :, None]
        distance = np.einsum("kdn,kdn->kn", z, z)
        log_det = np.sum(np.log(np.diagonal(self.cholesky, axis1=1, axis2=2)), axis=1)
        log_t = -0.5 * (nu + d) * np.log1p(distance / nu)
        return log_t + (const - log_det + np.log(self.weight))[:, None], distance

    def log_prob(self, x: np.ndarray) -> np.ndarray:
        """Log density at points (n, dim)."""
        return np.logaddexp.reduce(self._log_terms(x)[0], axis=0)

    def sample(self, rng: np.random.Generator, num: int) -> np.ndarray:
        """Draw `num` points from `even_points`.

        Each by itself has the density of the mixture, and sums over all of them have a smaller
        error than the formulas for independent draws say.
        """
        u = even_points(rng, num, self.dim + 2)
        edges = np.cumsum(self.weight / self.weight.sum())
        component = np.searchsorted(edges[:-1], u[:, 0], side="right")
        z = ndtri(u[:, 2:])
        scale = np.sqrt(self.dof / (2.0 * gammaincinv(0.5 * self.dof, u[:, 1])))
        step = np.einsum("nij,nj->ni", self.cholesky[component], z)
        return self.loc[component] + step * scale[:, None]


def fit(
    rng: np.random.Generator,
    x: np.ndarray,
    weight: np.ndarray,
    *,
    num_components: int,
    dof: float,
    num_iterations: int = 30,
) -> StudentTMixture:
    """Fit a mixture to weighted points by expectation-maximisation (Peel & McLachlan 2000).

    Components that come to hold too few effective points for a covariance are dropped.
    """
    used = weight > _NEGLIGIBLE * weight.max()
    x, weight = x[used], weight[used] / weight[used].sum()
    dim = x.shape[1]
    mean = weight @ x
    cov = _covariance(x, weight, mean)
    start = spread_points(rng, x, weight, num_components, np.linalg.cholesky(cov))
    mixture = StudentTMixture(
        np.full(len(start), 1.0 / len(start)),
        start,
        np.repeat(np.linalg.cholesky(cov / len(start) ** (2 / dim))[None], len(start), 0),
        dof,
    )
    before = -np.inf
    for _ in range(num_iterations):
        log_terms, distance = mixture._log_terms(x)
        log_prob = np.logaddexp.reduce(log_terms, axis=0)
        score = weight @ log_prob
        if score - before < _SETTLED:
            break
        before = score
        share = np.exp(log_terms - log_prob) * weight
        mixture = _maximised(x, share, (dof + dim) / (dof + distance), cov, dof)
    return mixture


def _maximised(
    x: np.ndarray, share: np.ndarray, pull: np.ndarray, cov: np.ndarray, dof: float
) -> StudentTMixture:
    """The mixture whose components own `share` (k, n) of the points and feel `pull` of each."""
    dim = x.shape[1]
    total = share.sum(axis=1)
    effective = total**2 / np.maximum((share**2).sum(axis=1), 1e-300)
    keep = (effective > 2 * (dim + 1)) & (total > 1e-3)
    if not keep.any():
        keep = total == total.max()
    # Far points pull less: the t's own down-weighting.
    pull, total = (share * pull)[keep], total[keep]
    loc = pull @ x / pull.sum(axis=1)[:, None]
    centred = x - loc[:, None, :]
    scatter = np.swapaxes(pull[:, :, None] * centred, 1, 2) @ centred / total[:, None, None]
    # A little of the whole keeps a component with few points from collapsing.
    shrink = np.minimum(0.5, (dim + 1) / effective[keep])[:, None, None]
    scatter = (1 - shrink) * scatter + shrink * cov * total[:, None, None]
    scatter += 1e-12 * np.trace(cov) / dim * np.eye(dim)
    return StudentTMixture(total / total.sum(), loc, np.linalg.cholesky(scatter), dof)


def _covariance(x: np.ndarray, weight: np.ndarray, mean: np.ndarray) -> np.ndarray:
    centred = x - mean
    cov = (weight[:, None] * centred).T @ centred
    return cov + (1e-12 * np.trace(cov) / len(mean) + 1e-300) * np.eye(len(mean))
