"""Images from measurements without a model: blurs, fillings of hidden pixels, and interpolation.

All functions take and give images ``(B, C, *spatial)``, with one to three spatial axes, and treat
each image and channel by itself.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import interpolate

_STEPS = 2000
_ACCURACY = 1e-6


def blurred(x: Tensor, width: float) -> Tensor:
    """Blur by a Gaussian of standard deviation `width` in pixels; edge pixels repeat outside."""
    for axis in range(2, x.dim()):
        weights = _weights(x.shape[axis], width).to(x.device, x.dtype)
        x = (x.movedim(axis, -1) @ weights.T).movedim(-1, axis)
    return x


def _weights(n: int, width: float) -> Tensor:
    """Return the blur's matrix ``(n, n)`` along an axis of n pixels, whose rows have the sum 1."""
    reach = math.ceil(4 * width)
    offsets = torch.arange(-reach, reach + 1)
    kernel = torch.exp(-0.5 * (offsets.double() / width).square())
    kernel /= kernel.sum()
    places = (torch.arange(n)[:, None] + offsets).clamp(0, n - 1)
    return torch.zeros(n, n, dtype=torch.float64).scatter_add_(1, places, kernel.expand(n, -1))


def means(y: Tensor, known: Tensor) -> Tensor:
    """Fill hidden pixels with the mean of the known ones ``(*spatial)``, of each channel."""
    mean = y[..., known].mean(-1).reshape(*y.shape[:2], *(1,) * known.dim())
    return torch.where(known, y, mean)


def harmonic(y: Tensor, known: Tensor) -> Tensor:
    """Fill hidden pixels so that each is the mean of its neighbours: a discrete Laplace equation.

    ``sum_j (x_i - x_j) = 0`` over the neighbours j of each hidden pixel i along the axes, with the
    known pixels ``(*spatial)`` fixed. In one dimension it is linear interpolation. It is solved by
    conjugate gradients, to a residual of 1e-6 of the first one.
    """
    hidden = ~known
    x = means(y, known).double()
    residual = -_laplacian(x) * hidden
    direction, square = residual, _squares(residual)
    enough = square * _ACCURACY**2
    for _ in range(_STEPS):
        going = square > enough
        if not going.any():
            break
        image = _laplacian(direction) * hidden
        rate = torch.where(going, square / (direction * image).flatten(2).sum(2), 0.0)
        rate = _spread(rate, x)
        x, residual = x + rate * direction, residual - rate * image
        before, square = square, _squares(residual)
        gain = torch.where(going, square / before, 0.0)
        direction = residual + _spread(gain, x) * direction
    return x.to(y.dtype)


def _laplacian(x: Tensor) -> Tensor:
    """Return ``sum_j (x_i - x_j)`` over the neighbours j of each pixel i."""
    out = torch.zeros_like(x)
    for axis in range(2, x.dim()):
        steps, n = x.diff(dim=axis), x.shape[axis]
        out.narrow(axis, 0, n - 1).sub_(steps)
        out.narrow(axis, 1, n - 1).add_(steps)
    return out


def _squares(x: Tensor) -> Tensor:
    return x.square().flatten(2).sum(2)


def _spread(values: Tensor, x: Tensor) -> Tensor:
    return values.reshape(*values.shape, *(1,) * (x.dim() - 2))


def repeated(y: Tensor, factor: int) -> Tensor:
    """Make each pixel a block of `factor` pixels along each axis."""
    for axis in range(2, y.dim()):
        y = y.repeat_interleave(factor, axis)
    return y


def upsampled(y: Tensor, factor: int) -> Tensor:
    """Interpolate linearly along each axis between the centres of blocks of `factor` pixels."""
    mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[y.dim() - 2]
    return interpolate(y, scale_factor=factor, mode=mode, align_corners=False)


FILTERS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2, 1.5, 2.0, 3.0)
"""Widths of the Gaussian filters that are compared, in pixels."""


def best_filter(y: Tensor, truth: Tensor, top: float) -> tuple[float, Tensor]:
    """Return the width of `FILTERS` whose images are nearest to the truth, and these images.

    The truth chooses it, so the filter does better than it could without. Images are compared as
    they are shown, clamped to ``[0, top]``.
    """
    errors = {w: (blurred(y, w).clamp(0, top) - truth).square().mean().item() for w in FILTERS}
    width = min(errors, key=errors.__getitem__)
    return width, blurred(y, width)
