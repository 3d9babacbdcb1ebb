"""Distances between two sets of features: Frechet's, and precision and recall."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

_ROWS = 512
"""Rows of a distance matrix that are in memory at a time."""


@dataclass(frozen=True, eq=False)
class Statistics:
    """Mean and covariance of features, in float64.

    Attributes:
        count: n, the number of images.
        mean: ``(d,)``.
        covariance: ``(d, d)``, divided by n - 1; 0 for one image.
    """

    count: int
    mean: Tensor
    covariance: Tensor

    @staticmethod
    def of(features: Tensor) -> Statistics:
        """Return the statistics of features ``(n, d)``; none are a ValueError."""
        if not len(features):
            raise ValueError("Statistics: no features")
        rows = features.double()
        centred = rows - (mean := rows.mean(0))
        return Statistics(len(rows), mean, centred.mT @ centred / max(len(rows) - 1, 1))

    def merged(self, other: Statistics) -> Statistics:
        """Return the statistics of both sets together.

        ``S = S_a + S_b + (m_b - m_a)(m_b - m_a)^T n_a n_b / (n_a + n_b)``, for the scatter matrices
        ``S = (n - 1) covariance``. No sum of squares is formed, so that large means cost no digits.

        Reference: Chan, Golub and LeVeque, "Algorithms for computing the sample variance: analysis
        and recommendations", The American Statistician 37, 1983.
        """
        count, step = self.count + other.count, other.mean - self.mean
        scatter = self.covariance * (self.count - 1) + other.covariance * (other.count - 1)
        scatter.addr_(step, step, alpha=self.count * other.count / count).div_(count - 1)
        return Statistics(count, self.mean + step * (other.count / count), scatter)

    @staticmethod
    def of_batches(batches: Iterable[Tensor]) -> Statistics:
        """Return the statistics of batches of features ``(n, d)`` together.

        Raises:
            ValueError: no batch.
        """
        total: Statistics | None = None
        for batch in batches:
            part = Statistics.of(batch)
            total = part if total is None else total.merged(part)
        if total is None:
            raise ValueError("Statistics.of_batches: no features")
        return total

    def distance(self, other: Statistics) -> float:
        """Return the `frechet_distance` to other statistics."""
        return frechet_distance(self.mean, self.covariance, other.mean, other.covariance)


def frechet_distance(mean_a: Tensor, cov_a: Tensor, mean_b: Tensor, cov_b: Tensor) -> float:
    """Return the squared Frechet distance of two Gaussians with these means and covariances.

    ``|m_a - m_b|^2 + tr(A + B - 2 (A^(1/2) B A^(1/2))^(1/2))``, in float64. The trace of the root
    is the sum of the singular values of ``F^T G``, where ``A = F F^T`` and ``B = G G^T``: no root
    of a product is taken, so that covariances without full rank give no complex number and lose no
    digits. With features of the published Inception net the figure is known as FID.

    Args:
        mean_a: ``(d,)``.
        cov_a: ``(d, d)``, symmetric, without negative eigenvalues but for rounding.
        mean_b: as the first.
        cov_b: as the first.

    Raises:
        ValueError: other shapes, or values that are not finite.

    Reference: Heusel, Ramsauer, Unterthiner, Nessler and Hochreiter, "GANs trained by a two
    time-scale update rule converge to a local Nash equilibrium", 2017, arXiv:1706.08500; Dowson and
    Landau, "The Frechet distance between multivariate normal distributions", 1982.
    """
    means, covariances = (mean_a.double(), mean_b.double()), (cov_a.double(), cov_b.double())
    size = len(mean_a)
    if any(m.shape != (size,) for m in means) or any(c.shape != (size, size) for c in covariances):
        shapes = [tuple(each.shape) for each in (mean_a, cov_a, mean_b, cov_b)]
        raise ValueError(f"frechet_distance: shapes {shapes} do not fit together")
    if not all(bool(each.isfinite().all()) for each in (*means, *covariances)):
        raise ValueError("frechet_distance: values are not all finite")
    first, second = (_factor(covariance) for covariance in covariances)
    root = torch.linalg.svdvals(first.mT @ second).sum()
    trace = covariances[0].trace() + covariances[1].trace() - 2 * root
    return max(((means[0] - means[1]).square().sum() + trace).item(), 0.0)


def _factor(covariance: Tensor) -> Tensor:
    """Return F ``(d, rank)`` with ``F F^T`` the covariance; rounding makes no further columns."""
    values, vectors = torch.linalg.eigh((covariance + covariance.mT) / 2)
    kept = values > values.amax() * len(values) * torch.finfo(values.dtype).eps
    return vectors[:, kept] * values[kept].sqrt()


def precision_recall(real: Tensor, drawn: Tensor, neighbors: int = 3) -> tuple[float, float]:
    """Return precision and recall of drawn features, by the balls around neighbours.

    A set's manifold is the union of balls around its features, each with the distance to its k-th
    nearest other feature as radius. Precision is the share of `drawn` in the manifold of `real`,
    recall the share of `real` in that of `drawn`. Both depend on the numbers of features: compare
    sets of equal sizes.

    Args:
        real: ``(n, d)``.
        drawn: ``(m, d)``.
        neighbors: k, less than n and m.

    Raises:
        ValueError: too few features, or other shapes.

    Reference: Kynkaanniemi, Karras, Laine, Lehtinen and Aila, "Improved precision and recall metric
    for assessing generative models", 2019, arXiv:1904.06991.
    """
    if real.dim() != 2 or drawn.dim() != 2 or real.shape[1] != drawn.shape[1]:
        shapes = f"{tuple(real.shape)} and {tuple(drawn.shape)}"
        raise ValueError(f"precision_recall: takes features (n, d) and (m, d); got {shapes}")
    if not 0 < neighbors < min(len(real), len(drawn)):
        what = f"{neighbors} neighbours of {len(real)} and {len(drawn)} features"
        raise ValueError(f"precision_recall: {what}: give 1 or more, less than the features")
    center = real.double().mean(0)  # small squares lose fewer digits
    x, y = real.double() - center, drawn.double() - center
    radii_x, radii_y = _radii(x, neighbors), _radii(y, neighbors)
    precise = torch.zeros(len(y), dtype=torch.bool)
    recalled = 0
    for rows, radii in zip(x.split(_ROWS), radii_x.split(_ROWS), strict=True):
        squares = _squared_distances(rows, y)
        precise |= (squares <= radii[:, None]).any(0)
        recalled += int((squares <= radii_y).any(1).sum())
    return precise.double().mean().item(), recalled / len(x)


def _radii(x: Tensor, neighbors: int) -> Tensor:
    """Return the squared distance ``(n,)`` of each row to its k-th nearest other row."""
    # A row is at distance 0 from itself, so that its k-th other row is the (k + 1)-th of all.
    parts = [_squared_distances(rows, x).kthvalue(neighbors + 1).values for rows in x.split(_ROWS)]
    return torch.cat(parts)


def _squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """Return ``|x_i - y_j|^2``, ``(n, m)``, in which what is rounding alone is 0."""
    sizes = x.square().sum(1)[:, None] + y.square().sum(1)
    squares = sizes - 2 * (x @ y.mT)
    rounding = 8 * torch.finfo(x.dtype).eps * sizes
    return squares.where(squares > rounding, torch.zeros((), dtype=x.dtype))
