"""A mixture of Gaussians in few dimensions, fitted by expectation and maximisation.

Reference: Dempster, Laird, Rubin: Maximum likelihood from incomplete data via the EM algorithm
    (1977), doi:10.1111/j.2517-6161.1977.tb01600.x.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from mixerflow.registry import register

_FLOOR = 1e-3
"""Added to the variances of each Gaussian, as a share of the points' own variances."""
_ITERATIONS, _GAIN = 500, 1e-7
_LEAST = 25
"""Points for each Gaussian: fewer points get fewer Gaussians."""


@register
@dataclass(frozen=True)
class PlaneMixture:
    """``q(v) = sum_k w_k N(v; m_k, S_k)`` over points v of a few numbers, as nested tuples."""

    weights: tuple[float, ...]
    means: tuple[tuple[float, ...], ...]
    covariances: tuple[tuple[tuple[float, ...], ...], ...]

    def log_density(self, points: np.ndarray) -> np.ndarray:
        """Return ``log q`` ``(N,)`` of points ``(N, d)``; -inf for one that is not finite."""
        points = np.asarray(points, np.float64)
        finite = np.isfinite(points).all(1)
        arrays = (np.array(each) for each in (self.weights, self.means, self.covariances))
        logs = np.full(len(points), -math.inf)
        logs[finite] = np.logaddexp.reduce(_log_terms(points[finite], *arrays), axis=1)
        return logs


def fit_mixture(points: np.ndarray, components: int) -> PlaneMixture:
    """Fit a mixture of at most `components` Gaussians, one for 25 points, to points ``(N, d)``.

    It starts from groups of equal size along the points' first principal axis, so it draws nothing,
    and stops where an iteration adds less than 1e-7 to the mean log-likelihood. Variances have a
    floor of 1e-3 of the points' own, so that equal points have a density.

    Raises:
        ValueError: no points, points that are not finite, or no components.
    """
    points = np.asarray(points, np.float64)
    if points.ndim != 2 or not len(points) or not np.isfinite(points).all() or components < 1:
        raise ValueError(f"fit_mixture: {components} components of points {points.shape}, finite")
    centre, scale = points.mean(0), points.std(0)
    scale = np.where(scale > 1e-12 * (1 + np.abs(centre)), scale, 1.0)
    unit = (points - centre) / scale
    axis = np.linalg.eigh(unit.T @ unit)[1][:, -1]
    order = np.argsort(unit @ axis, kind="stable")
    shares = np.zeros((len(unit), max(1, min(components, len(unit) // _LEAST))))
    for number, group in enumerate(np.array_split(order, shares.shape[1])):
        shares[group, number] = 1
    before = -math.inf
    parts = _maximised(unit, shares)
    for _ in range(_ITERATIONS):
        terms = _log_terms(unit, *parts)
        total = np.logaddexp.reduce(terms, axis=1)
        if total.mean() - before < _GAIN:
            break
        before = total.mean()
        parts = _maximised(unit, np.exp(terms - total[:, None]))
    weights, means, covariances = parts
    means, covariances = means * scale + centre, covariances * np.outer(scale, scale)
    return PlaneMixture(
        tuple(weights.tolist()),
        tuple(map(tuple, means.tolist())),
        tuple(tuple(map(tuple, each)) for each in covariances.tolist()),
    )


def _maximised(points: np.ndarray, shares: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return weights, means and covariances from each point's shares ``(N, K)``."""
    counts = shares.sum(0) + 1e-9
    means = shares.T @ points / counts[:, None]
    away = points[:, None] - means
    covariances = np.einsum("nk,nki,nkj->kij", shares, away, away) / counts[:, None, None]
    return counts / counts.sum(), means, covariances + _FLOOR * np.eye(points.shape[1])


def _log_terms(
    points: np.ndarray, weights: np.ndarray, means: np.ndarray, covariances: np.ndarray
) -> np.ndarray:
    """Return ``log(w_k N(v; m_k, S_k))`` ``(N, K)``."""
    away = points[:, None] - means
    roots = np.linalg.cholesky(covariances)
    whitened = np.linalg.solve(roots, np.moveaxis(away, 0, -1))  # (K, d, N)
    log_det = np.log(np.diagonal(roots, axis1=1, axis2=2)).sum(1)
    normal = -0.5 * (whitened**2).sum(1).T - log_det - 0.5 * points.shape[1] * math.log(2 * math.pi)
    return np.log(weights) + normal
