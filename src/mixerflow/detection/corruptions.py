"""Corrupted images, of five strengths, as outliers of a known kind.

Reference: Hendrycks, Dietterich: Benchmarking neural network robustness to common corruptions and
    perturbations (2019), arXiv:1903.12261. The strengths are those of CIFAR-10-C.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from mixerflow.restoration import blurred

NOISE = (0.04, 0.06, 0.08, 0.09, 0.10)
"""Standard deviations of normal noise, as shares of the largest value."""
BLUR = (0.4, 0.6, 0.7, 0.8, 1.0)
"""Standard deviations of a Gaussian blur, in pixels."""
CONTRAST = (0.75, 0.5, 0.4, 0.3, 0.15)
"""Shares of the distance from each channel's mean that are left."""


def noisy(pixels: np.ndarray, strength: int, seed: int = 0) -> np.ndarray:
    """Return images ``(N, C, H, W)`` of integers with normal noise, rounded and clamped."""
    top = np.iinfo(pixels.dtype).max
    noise = np.random.default_rng((seed, strength)).normal(0, NOISE[strength] * top, pixels.shape)
    return _whole(pixels + noise, pixels.dtype)


def smoothed(pixels: np.ndarray, strength: int, seed: int = 0) -> np.ndarray:
    """Return images ``(N, C, H, W)`` of integers, blurred and rounded; edges repeat."""
    found = blurred(torch.from_numpy(pixels.astype(np.float64)), BLUR[strength])
    return _whole(found.numpy(), pixels.dtype)


def flattened(pixels: np.ndarray, strength: int, seed: int = 0) -> np.ndarray:
    """Return images ``(N, C, H, W)`` of integers of less contrast, rounded."""
    mean = pixels.mean((2, 3), keepdims=True)
    return _whole(mean + CONTRAST[strength] * (pixels - mean), pixels.dtype)


CORRUPTIONS: dict[str, Callable[[np.ndarray, int, int], np.ndarray]] = {
    "noise": noisy,
    "blur": smoothed,
    "contrast": flattened,
}
"""Name -> function of images, a strength 0 to 4, and a seed."""


def _whole(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    return values.round().clip(0, np.iinfo(dtype).max).astype(dtype)
