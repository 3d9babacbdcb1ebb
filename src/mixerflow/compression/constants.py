"""Arithmetic of a program's constants, which gives the same bits on every machine.

All of it is elementwise in float64, by +, -, *, / and the square root, in a fixed order: no matrix
product, no LAPACK, no function of a library of mathematics.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64, Int64

Numbers = np.ndarray


def rounded(numbers: Numbers) -> Numbers:
    """Return the nearest float32 values, in float64; infinite where they are too large."""
    with np.errstate(over="ignore"):
        return numbers.astype(np.float32).astype(np.float64)


def contracted(
    vectors: Float64[Numbers, "rows k"], matrix: Float64[Numbers, "n k"]
) -> Float64[Numbers, "rows n"]:
    """Return ``sum_k vectors_rk matrix_nk``, summed from the first k to the last."""
    total = np.zeros((len(vectors), len(matrix)))
    for k in range(matrix.shape[1]):
        total = total + vectors[:, k, None] * matrix[None, :, k]
    return total


def normalisation(
    mean: Numbers, variance: Numbers, eps: float, weight: Numbers, bias: Numbers
) -> tuple[Numbers, Numbers]:
    """Return scale and shift of ``weight (h - mean) / sqrt(variance + eps) + bias``."""
    scale = weight / np.sqrt(variance + eps)
    return scale, bias - scale * mean


def factorise(
    matrix: Float64[Numbers, "n n"],
) -> tuple[Int64[Numbers, " n"], Float64[Numbers, "n n"], Float64[Numbers, " n"]] | None:
    """Return p, the unit triangles T and d with ``A[p] = L U diag(d)``; None for a singular A.

    L lies below T's diagonal, which is 0, and U above it; d are the pivots, of any sign. Rows are
    exchanged so that each pivot is the largest of its column that is left, the first of equals.
    """
    left, n = matrix.copy(), len(matrix)
    order = np.arange(n)
    for k in range(n):
        pivot = k + int(np.argmax(np.abs(left[k:, k])))
        if not np.abs(left[pivot, k]) > 0:
            return None
        left[[k, pivot]], order[[k, pivot]] = left[[pivot, k]], order[[pivot, k]]
        below = left[k + 1 :, k] / left[k, k]
        left[k + 1 :, k] = below
        left[k + 1 :, k + 1 :] = left[k + 1 :, k + 1 :] - below[:, None] * left[k, None, k + 1 :]
    pivots = np.diagonal(left).copy()
    triangles = np.tril(left, -1) + np.triu(left, 1) / pivots[None, :]
    return order, triangles, pivots
