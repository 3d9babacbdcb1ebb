"""Positional encodings: a vector for each row of an event, which conditioners read."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mixerflow.registry import register


class _Encoding(nn.Module):
    """A vector of length `width` for each of the `rows` of an event."""

    table: Tensor

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.rows, self.width = rows, width

    def forward(self) -> Float[Tensor, "rows width"]:
        return self.table


@register
class LearnedPositionalEncoding(_Encoding):
    """A learned vector for each row, ``(rows, width)``, standard normal at the start."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__(rows, width)
        self.table = nn.Parameter(torch.randn(rows, width))


@register
class SinusoidalPositionalEncoding(_Encoding):
    """Sines and cosines of a row's index i, ``(rows, width)``; nothing is learned.

    ``p_{i, 2k} = sin(i / 10000^(2k / width))``, and ``p_{i, 2k + 1}`` the cosine of that angle.

    Reference: Vaswani et al., Attention is all you need (2017), section 3.5, arXiv:1706.03762.
    """

    def __init__(self, rows: int, width: int) -> None:
        super().__init__(rows, width)
        table = _waves(rows, width).to(torch.get_default_dtype())
        self.register_buffer("table", table, persistent=False)


@register
class GridPositionalEncoding(_Encoding):
    """Sines and cosines of each coordinate of a place in a grid; nothing is learned.

    Each of the axes of ``sides`` has an equal share of the width, or one number more for the first
    axes, and its share is the `SinusoidalPositionalEncoding` of the coordinate. Rows are the places
    in row-major order.

    Reference: Gudovskiy et al., CFLOW-AD (2022), section 4.2, arXiv:2107.12571.
    """

    def __init__(self, sides: Sequence[int], width: int) -> None:
        sides = tuple(sides)
        if width < len(sides):
            raise ValueError(f"positions: width must be at least {len(sides)}; got {width}")
        super().__init__(math.prod(sides), width)
        parts = []
        for axis, side in enumerate(sides):
            share = (width + len(sides) - 1 - axis) // len(sides)
            shape = [1] * len(sides) + [share]
            shape[axis] = side
            parts.append(_waves(side, share).reshape(shape).expand(*sides, share))
        table = torch.cat(parts, -1).flatten(0, -2).to(torch.get_default_dtype())
        self.register_buffer("table", table, persistent=False)


def _waves(rows: int, width: int) -> Tensor:
    """Sines and cosines of 0, 1, ..., ``(rows, width)`` in float64."""
    index = torch.arange(rows, dtype=torch.float64)[:, None]
    even = torch.arange(0, width, 2, dtype=torch.float64)
    angle = index * torch.exp(even * (-math.log(10_000) / width))
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(1)[:, :width]
