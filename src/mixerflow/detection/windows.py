"""Windows of images, and how they are filled in from the pixels around them."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor


class Window(NamedTuple):
    """A rectangle of pixels: its first row and column, and its sides."""

    top: int
    left: int
    height: int
    width: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """Its rows and its columns."""
        rows = slice(self.top, self.top + self.height)
        return rows, slice(self.left, self.left + self.width)


def windows_of(height: int, width: int, side: int, stride: int) -> list[Window]:
    """Return square windows that cover ``height x width`` pixels, row by row.

    They begin at multiples of `stride`; the last ones end at the edge. Along an axis that is
    shorter than `side` they are as long as the axis.
    """
    tall, wide = min(side, height), min(side, width)
    tops, lefts = _starts(height, tall, stride), _starts(width, wide, stride)
    return [Window(top, left, tall, wide) for top in tops for left in lefts]


def _starts(length: int, side: int, stride: int) -> list[int]:
    starts = list(range(0, length - side + 1, stride))
    return starts if starts[-1] == length - side else [*starts, length - side]


def filled(x: Tensor, window: Window) -> Tensor:
    """Return images ``(N, C, H, W)`` with a window filled in from around it, harmonically.

    Each pixel i of the window is the mean of its neighbours j along the axes in the image,
    ``sum_j (x_i - x_j) = 0``, with all pixels outside fixed: a linear system, which is solved
    exactly. It is the filling of `restoration.harmonic`, for rectangles. The window must not be
    the whole image.
    """
    rows, columns = window.slices
    before = (min(1, window.top), min(1, window.left))
    after = (
        min(1, x.shape[2] - rows.stop),
        min(1, x.shape[3] - columns.stop),
    )
    frame = (
        slice(rows.start - before[0], rows.stop + after[0]),
        slice(columns.start - before[1], columns.stop + after[1]),
    )
    weights = _weights(window.height, window.width, before, after).to(x.device)
    around = x[:, :, *frame].flatten(2).double()
    x = x.clone()
    x[:, :, rows, columns] = (around @ weights.T).unflatten(2, window[2:]).to(x.dtype)
    return x


@functools.lru_cache(maxsize=64)
def _weights(height: int, width: int, before: tuple[int, int], after: tuple[int, int]) -> Tensor:
    """Return the matrix from a window with its frame, flattened, to the filling of the window.

    `before` and `after` say along each axis whether the image has a pixel beyond the window; where
    it has none, pixels have fewer neighbours. Columns of the window itself are 0.
    """
    tall, wide = height + before[0] + after[0], width + before[1] + after[1]
    place = torch.arange(tall * wide).reshape(tall, wide)
    inside = torch.zeros(tall, wide, dtype=torch.bool)
    inside[before[0] : before[0] + height, before[1] : before[1] + width] = True
    laplacian = torch.zeros(tall * wide, tall * wide, dtype=torch.float64)
    for one, other in ((place[1:], place[:-1]), (place[:, 1:], place[:, :-1])):
        laplacian[one.flatten(), other.flatten()] = -1.0
        laplacian[other.flatten(), one.flatten()] = -1.0
    laplacian -= torch.diag(laplacian.sum(1))
    hidden = inside.flatten()
    weights = torch.zeros(int(hidden.sum()), tall * wide, dtype=torch.float64)
    system, right = laplacian[hidden][:, hidden], -laplacian[hidden][:, ~hidden]
    weights[:, ~hidden] = torch.linalg.solve(system, right)
    return weights
