"""What a flow says of images' classes, ``p(y | x)``, and how far it can be trusted."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mixerflow.core import Flow, as_tensor
from mixerflow.evaluate.posterior import class_count, class_log_probs
from mixerflow.processes import SINGLE, Processes

BINS = 15
"""Bins of confidence in the calibration error."""


@dataclass(frozen=True, eq=False)
class Reliability:
    """Confidence against accuracy, in bins of equal width; NaN in bins without images.

    Attributes:
        counts: images ``(bins,)`` whose confidence, the largest ``p(y | x)``, lies in each bin.
        confidence: their mean confidence ``(bins,)``.
        accuracy: the share of them whose likeliest class is theirs ``(bins,)``.
    """

    counts: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray

    @property
    def error(self) -> float:
        """The expected calibration error, ``sum_b n_b / n |accuracy_b - confidence_b|``."""
        gaps = np.abs(self.accuracy - self.confidence)[self.counts > 0]
        return float((gaps * self.counts[self.counts > 0]).sum() / self.counts.sum())


@dataclass(frozen=True, eq=False)
class Classification:
    """Figures of a classifier on images with labels.

    Attributes:
        log_probs: ``log p(k | x)`` of each image and class ``(N, K)``, in nats.
        labels: the true classes ``(N,)``.
    """

    log_probs: np.ndarray
    labels: np.ndarray

    @property
    def predicted(self) -> np.ndarray:
        """The likeliest class of each image ``(N,)``."""
        return self.log_probs.argmax(1)

    @property
    def confidence(self) -> np.ndarray:
        """The largest ``p(k | x)`` of each image ``(N,)``."""
        return np.exp(self.log_probs.max(1))

    @property
    def accuracy(self) -> float:
        """Share of the images whose likeliest class is theirs."""
        return float((self.predicted == self.labels).mean())

    @property
    def accuracy_error(self) -> float:
        """Standard error of the accuracy over the images; NaN for one image."""
        n, share = len(self.labels), self.accuracy
        return math.sqrt(share * (1 - share) / (n - 1)) if n > 1 else math.nan

    @property
    def loss(self) -> float:
        """Mean ``-log p(y | x)`` of the true class, in nats."""
        return float(-self.log_probs[np.arange(len(self.labels)), self.labels].mean())

    def confusion(self) -> np.ndarray:
        """Return the counts ``(K, K)``: rows are true classes, columns the likeliest ones."""
        classes = self.log_probs.shape[1]
        pairs = self.labels * classes + self.predicted
        return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)

    def reliability(self, bins: int = BINS) -> Reliability:
        """Return confidence against accuracy.

        Reference: Guo et al., On calibration of modern neural networks (2017), section 2,
            arXiv:1706.04599.
        """
        place = np.ceil(self.confidence * bins).astype(np.int64).clip(1, bins) - 1
        counts = np.bincount(place, minlength=bins)
        with np.errstate(invalid="ignore"):
            means = [
                np.bincount(place, weights=values, minlength=bins) / counts
                for values in (self.confidence, (self.predicted == self.labels).astype(np.float64))
            ]
        return Reliability(counts, *means)

    def least_sure(self, count: int) -> np.ndarray:
        """Return the numbers of the images of least confidence, the least sure first."""
        return np.argsort(self.confidence, kind="stable")[:count]

    def as_dict(self) -> dict[str, Any]:
        """Return the figures for JSON; those that are no numbers are None."""
        bins = self.reliability()
        own: dict[str, Any] = {
            "images": len(self.labels),
            "classes": self.log_probs.shape[1],
            "accuracy": self.accuracy,
            "accuracy_standard_error": self.accuracy_error,
            "label_loss": self.loss,
            "calibration_error": bins.error,
        }
        known = {name: value if math.isfinite(value) else None for name, value in own.items()}
        return known | {
            "confusion": self.confusion().tolist(),
            "reliability": [
                {"images": int(n), "confidence": float(c), "accuracy": float(a)}
                for n, c, a in zip(bins.counts, bins.confidence, bins.accuracy, strict=True)
                if n
            ],
        }


def classify(
    flow: Flow,
    images: np.ndarray | Tensor,
    *,
    batch: int = 128,
    seed: int = 0,
    on_batch: Callable[[int], None] | None = None,
    processes: Processes = SINGLE,
) -> np.ndarray:
    """Return ``log p(k | x)`` of images ``(N, *shape)`` and all classes, ``(N, K)`` float64.

    An image's result depends on no other image: its noise is that of `seed` and its own pixels.

    Args:
        flow: a flow with a head, with a Gaussian for each class, or class-conditional.
        images: integers as the flow's levels say, or floats.
        batch: images at a time, in each process.
        seed: seed of the noise.
        on_batch: called after each batch with the number of its images, by all processes.
        processes: the processes that share the images; each returns the result for all.

    Raises:
        ConfigError: a flow that tells no classes.
        ValueError: no images, or images of another shape.
    """
    if len(images) == 0:
        raise ValueError("classify: no images")
    found = torch.zeros(len(images), class_count(flow), dtype=torch.float64)
    size = batch * processes.world
    for start in range(0, len(images), size):
        block = np.arange(start, min(start + size, len(images)))
        own = block[processes.share(len(block))]
        x = as_tensor(images[own])
        found[own] = class_log_probs(flow, x, seed=seed, batch=batch).cpu()
        if on_batch is not None:
            on_batch(len(block))
    return processes.sum(found).numpy()
