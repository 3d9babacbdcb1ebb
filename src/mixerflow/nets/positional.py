"""Positional encodings: a vector for each row of an event, which conditioners read."""

from __future__ import annotations

import math

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
        index = torch.arange(rows, dtype=torch.float64)[:, None]
        even = torch.arange(0, width, 2, dtype=torch.float64)
        angle = index * torch.exp(even * (-math.log(10_000) / width))
        table = torch.stack([angle.sin(), angle.cos()], -1).flatten(1)[:, :width]
        self.register_buffer("table", table.to(torch.get_default_dtype()), persistent=False)
