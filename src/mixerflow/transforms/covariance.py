"""Mean and covariance of vectors, in float64: what maps that start from a first batch read."""

from __future__ import annotations

import torch
from jaxtyping import Float, Float64
from torch import Tensor

_ROWS = 2**14
"""Vectors at a time in sums of float64."""


def mean_of(rows: Float[Tensor, "rows n"]) -> Float64[Tensor, " n"]:
    """Return the mean of vectors; a ValueError refuses none."""
    if len(rows) == 0:
        raise ValueError("no vectors to be initialised from")
    mean = rows.new_zeros(rows.shape[1]).double()
    for part in rows.split(_ROWS):
        mean += part.double().sum(0) / len(rows)
    return mean


def covariance_of(rows: Float[Tensor, "rows n"], mean: Tensor) -> Float64[Tensor, "n n"]:
    """Return the covariance of vectors around their `mean`, which `mean_of` returns."""
    covariance = mean.new_zeros(len(mean), len(mean))
    for part in rows.split(_ROWS):
        centred = part.double() - mean
        covariance += centred.mT @ centred / len(rows)
    return covariance


def inverse_root(covariance: Tensor, ridge: float) -> Float64[Tensor, "n n"]:
    """Return ``(C + ridge l I)^(-1/2)``, the symmetric root; l is the mean eigenvalue of C.

    Where nothing varies, l is 0, it is the identity.
    """
    values, vectors = torch.linalg.eigh(covariance)
    level = values.mean()
    if not level > 0:
        return torch.eye(len(values)).to(covariance)
    scale = (values.clamp(min=0) + ridge * level).rsqrt()
    return (vectors * scale) @ vectors.mT
