"""How well a score tells outliers from inliers: AUROC, AUPR and the false alarms at 95 %.

Everywhere a larger score is more outlying, and an outlier is the positive class.

References:
    Hendrycks, Gimpel: A baseline for detecting misclassified and out-of-distribution examples in
        neural networks (2017), arXiv:1610.02136: the three figures.
    Efron, Tibshirani: An introduction to the bootstrap (1993), chapter 6: their standard errors.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

RESAMPLES = 200
"""Resamples of the images from which standard errors come."""
_FOUND = 0.95


@dataclass(frozen=True)
class Detection:
    """How well a score tells `outside` images from `inside` ones, each figure from 0 to 1.

    Standard errors are over the images, for fixed weights: of resamples of both sets. They are too
    small for images that depend on each other, such as crops of one photograph, and know nothing
    of another training. They are NaN for a set of one image.

    Attributes:
        auroc: probability that an outside image scores above an inside one, ties counted half; 0.5
            is chance, and below it the score is the wrong way round.
        auroc_error: its standard error.
        aupr: area under the curve of precision by recall, outside images positive, as a sum of
            steps (average precision); chance is the share of outside images.
        aupr_error: its standard error.
        fpr95: share of the inside images that score at least as high as the threshold that finds 95
            % of the outside images; chance is 0.95.
        fpr95_error: its standard error.
        inside: number of inside images.
        outside: number of outside images.
    """

    auroc: float
    auroc_error: float
    aupr: float
    aupr_error: float
    fpr95: float
    fpr95_error: float
    inside: int
    outside: int

    def as_dict(self) -> dict[str, Any]:
        """Return the figures for JSON; None for NaN."""
        return {k: None if v != v else v for k, v in asdict(self).items()}


def detection(
    inside: np.ndarray, outside: np.ndarray, *, resamples: int = RESAMPLES, seed: int = 0
) -> Detection:
    """Compare scores of inside images ``(N,)`` with those of outside images ``(M,)``.

    Infinite scores are scores; NaN counts as an outlier's, above all others.

    Args:
        inside: scores of images that are no outliers.
        outside: scores of outliers.
        resamples: of the bootstrap, in which both sets are drawn anew with replacement.
        seed: of the resamples.

    Raises:
        ValueError: a set without images, or scores that are no vector.
    """
    inside, outside = (np.asarray(each, np.float64) for each in (inside, outside))
    if inside.ndim != 1 or outside.ndim != 1 or not len(inside) or not len(outside):
        raise ValueError(f"detection: takes (N,) and (M,), got {inside.shape}, {outside.shape}")
    ranks = _ranks(np.concatenate([inside, outside]))
    counts = [
        np.bincount(part, minlength=ranks.max() + 1) for part in np.split(ranks, [len(inside)])
    ]
    figures = _figures(*counts)
    random = np.random.default_rng(seed)
    drawn = [
        _figures(*(random.multinomial(each.sum(), each / each.sum()) for each in counts))
        for _ in range(resamples)
    ]
    known = resamples > 1 and min(len(inside), len(outside)) > 1
    errors = np.std(drawn, axis=0, ddof=1) if known else np.full(3, np.nan)
    pairs = (float(value) for pair in zip(figures, errors, strict=True) for value in pair)
    return Detection(*pairs, inside=len(inside), outside=len(outside))


def _ranks(scores: np.ndarray) -> np.ndarray:
    """Return the place of each score among the different ones, from 0; NaN is the highest."""
    filled = np.where(np.isnan(scores), np.inf, scores)
    ranks = np.unique(filled, return_inverse=True)[1].ravel()
    return np.where(np.isnan(scores), ranks.max() + 1, ranks)


def _figures(inside: np.ndarray, outside: np.ndarray) -> tuple[float, float, float]:
    """Return the three figures from the numbers of images at each score, from low to high."""
    false, true = (each[::-1].cumsum() for each in (inside, outside))  # at or above a score
    below = inside.cumsum() - inside
    auroc = (outside * (below + inside / 2)).sum() / (inside.sum() * outside.sum())
    precision = true / np.maximum(true + false, 1)
    aupr = (outside[::-1] * precision).sum() / outside.sum()
    place = int(np.argmax(true >= _FOUND * outside.sum()))
    return float(auroc), float(aupr), float(false[place] / inside.sum())
