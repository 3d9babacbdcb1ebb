"""Bits/dim of what takes no training: fitted Gaussians and lossless codecs, to hold models against.

A flow that is worse than one Gaussian of all values has learned less than their covariances.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from mixerflow.core import as_tensor
from mixerflow.pictures import codec_bits

_LARGEST = 4096
"""Most values of an image for which a full covariance is fitted."""
_BATCH = 4096


def gaussian_bits(train: np.ndarray, test: np.ndarray, *, full: bool) -> float:
    """Return the expected bits/dim of test images under a Gaussian that is fitted to others.

    Images are dequantised by uniform noise u, whose expectation is exact:
    ``E log N(x + u; m, S) = log N(x + 1/2; m, S) - tr(S^-1) / 24``, with mean m and covariance S of
    ``x + u``, over all D values of an image.

    Args:
        train: images ``(N, C, *spatial)``, integers.
        test: images ``(M, C, *spatial)``.
        full: whether S is any covariance, not a diagonal one.

    Raises:
        ValueError: no images, or other shapes; for a full covariance too few images, at most D, or
            too many values, over 4096.
    """
    x, y = (as_tensor(images) for images in (train, test))
    if not (len(x) and len(y)) or x.shape[1:] != y.shape[1:]:
        what = f"takes images of one shape, some in both sets; got {(*x.shape,)} and {(*y.shape,)}"
        raise ValueError(f"gaussian_bits: {what}")
    x, y, size = x.flatten(1), y.flatten(1), x[0].numel()
    parts, zero = x.split(_BATCH), torch.zeros(size, dtype=torch.float64)
    mean = sum((part.double().sum(0) for part in parts), zero) / len(x)
    if not full:
        variance = sum(((part - mean).square().sum(0) for part in parts), zero) / len(x) + 1 / 12
        squares = [((part - mean).square() / variance).sum(1) for part in y.split(_BATCH)]
        return _bits(squares, variance.log().sum(), (1 / variance).sum(), size)
    if len(x) <= size or size > _LARGEST:
        what = f"{len(x)} images of {size} values have no full covariance here"
        raise ValueError(f"gaussian_bits: {what}: give more images than values, at most {_LARGEST}")
    covariance = torch.zeros(size, size, dtype=torch.float64)
    for part in parts:  # products of small integers less their mean: float32 suffices
        centred = (part - mean).float()
        covariance += (centred.mT @ centred).double()
    factor = torch.linalg.cholesky(covariance / len(x) + torch.eye(size).double() / 12)
    squares = [_whitened(factor, part - mean).square().sum(1) for part in y.split(_BATCH)]
    inverse = torch.cholesky_inverse(factor)
    return _bits(squares, 2 * factor.diagonal().log().sum(), inverse.trace(), size)


def _whitened(factor: Tensor, centred: Tensor) -> Tensor:
    return torch.linalg.solve_triangular(factor, centred.mT, upper=False).mT


def _bits(squares: list[Tensor], log_det: Tensor, trace: Tensor, size: int) -> float:
    square = torch.cat(squares).mean() + trace / 12
    return ((square + log_det) / size + math.log(2 * math.pi)).item() / 2 / math.log(2)


def yardsticks(train: np.ndarray, test: np.ndarray, levels: int) -> dict[str, float]:
    """Return bits/dim of test images by name; what cannot take these images is left out.

    Args:
        train: images ``(N, C, *spatial)``, to which Gaussians are fitted.
        test: images ``(M, C, *spatial)``.
        levels: values that a pixel can have.
    """
    made: dict[str, Callable[[], float]] = {
        "uniform": lambda: math.log2(levels),
        "independent Gaussians": lambda: gaussian_bits(train, test, full=False),
        "one Gaussian": lambda: gaussian_bits(train, test, full=True),
        "PNG": lambda: codec_bits(test, "png", sheet=False),
        "WebP": lambda: codec_bits(test, "webp", sheet=False),
        "JPEG XL": lambda: codec_bits(test, "jxl", sheet=False),  # with Pillow's plugin alone
    }
    found = {}
    for name, measure in made.items():
        try:
            found[name] = measure()
        except ValueError:
            continue
    return found
