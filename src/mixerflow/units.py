"""Unit vectors of vectors of any length: no square overflows or underflows."""

from __future__ import annotations

import torch
from torch import Tensor

_PLAIN = 1e-8, 1e8
"""Largest entries between which the fourth powers of a vector's entries can be summed."""


def unit_of(x: Tensor, dim: int | None = None) -> Tensor:
    """Return the largest ``|x|``, along `dim` (kept) or of all, if it is far from 1, else 1.

    Divided by it, the numbers have squares that can be summed. It has no gradient: it is for
    functions that do not depend on the unit of x, or do so by a factor.
    """
    size = x.detach().abs()
    most = size.amax() if dim is None else size.amax(dim, keepdim=True)
    low, high = _PLAIN
    return most.masked_fill(((most >= low) & (most <= high)) | (most == 0), 1.0)


def unit_rows(vectors: Tensor) -> Tensor:
    """Return ``v / |v|`` of each row v of ``(rows, n)``; a row of zeros stays 0."""
    scaled = vectors / unit_of(vectors, 1)
    norm = torch.linalg.vector_norm(scaled, dim=1, keepdim=True)
    return scaled / norm.where(norm > 0, 1.0)
