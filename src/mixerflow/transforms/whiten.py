"""Affine maps of channels that a first batch fixes: nothing here is trained afterwards."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from mixerflow.core import Shape
from mixerflow.moments import Entries
from mixerflow.registry import register
from mixerflow.transforms.covariance import covariance_of, mean_of
from mixerflow.transforms.lu import PLU, packed
from mixerflow.transforms.norms import DiagonalAffine

_CONSTANT = 1e-6
"""A standard deviation, relative to the largest value, below which a number counts as constant."""


@register
class Standardize(DiagonalAffine):
    """``z_i = (x_i - m_i) / s_i`` with the mean and the standard deviation of a first batch.

    ``log|det dz/dx|`` is the sum of ``-log s_i`` over the event. Nothing here is trained; until
    `initialize` the map is the identity. A channel that is constant in the batch, or nearly, has
    ``s_i = floor * sqrt(mean_j s_j^2)``: it counts as one that varies that little, so that the map
    stays finite and the same in every unit of the data. Where all are constant, ``s_i = 1``.

    Args:
        shape: ``(C, 1, 1)`` for the channels of images ``(C, H, W)``.
        floor: least standard deviation, relative to the root mean square of all of them.
    """

    log_scale: Tensor  # pyright: ignore[reportIncompatibleVariableOverride]
    shift: Tensor  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(self, shape: Shape | int, *, floor: float = 0.1) -> None:
        super().__init__(shape)
        if not 0 < floor <= 1:
            raise ValueError(f"Standardize: floor must be in (0, 1]; got {floor}")
        if any(n != 1 for n in self.shape[1:]):
            raise ValueError(f"Standardize: parameters of channels, (C, 1, ...); got {self.shape}")
        self.floor = floor
        for name in ("log_scale", "shift"):
            values = getattr(self, name).detach()
            delattr(self, name)
            self.register_buffer(name, values)

    @torch.no_grad()
    def initialize(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        self.out_shape(tuple(x.shape[1:]))
        rows = x.movedim(1, -1).flatten(0, -2)
        mean = mean_of(rows)
        deviation = covariance_of(rows, mean).diagonal().sqrt()
        deviation = deviation.where(deviation > _CONSTANT * rows.abs().amax(0), 0.0)
        least = self.floor * float(deviation.square().mean().sqrt())
        deviation = deviation.clamp(min=least) if least > 0 else torch.ones_like(deviation)
        self.log_scale.copy_(-deviation.log().view(self.shape))
        self.shift.copy_((-mean / deviation).view(self.shape))
        return self(x, context)[0]

    def constants(self) -> Iterator[Entries]:
        return iter(())


@register
class Whiten(PLU):
    """``z = O (L + ridge l I)^(-1/2) U^T (x - m)``, with ``U L U^T`` a first batch's covariance.

    Nothing here is trained; until `initialize` it is the identity. Behind it the numbers are
    uncorrelated, with variances of at most 1. l is the mean of the eigenvalues L.
    ``log|det dz/dx| = -1/2 sum_i log(L_i + ridge l)``. The order O puts every second principal
    component into the first half of the vector, the largest first, so that each half of a coupling
    has the same share of what varies. The product is stored as triangles, see `PLU`, so that
    rounding makes no inverse and no log-det inexact.

    The ridge bounds the map where vectors lie in a subspace, or are fewer than n: along a direction
    in which they do not vary it amplifies by ``(ridge l)^(-1/2)``. Where nothing varies at all, the
    map is a shift.

    Args:
        ridge: what is added to the eigenvalues, relative to their mean, more than 0.
        bias: whether the mean is taken off.

    References:
        Kessy, Lewin, Strimmer, Optimal whitening and decorrelation (2018): PCA whitening,
        arXiv:1512.00809.
        Defard et al., PaDiM (2021), section III.B, for the ridge of 0.01 on covariances of
        features, arXiv:2011.08785.
    """

    bias: Tensor  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(self, n: int, *, ridge: float = 0.01, bias: bool = True) -> None:
        super().__init__(n, generator=torch.Generator())
        if not 0 < ridge < math.inf:
            raise ValueError(f"Whiten: ridge must be positive and finite; got {ridge}")
        self.ridge, self.centres = ridge, bias
        del self.packed, self.bias
        self.register_buffer("packed", torch.zeros(n, n))
        self.register_buffer("bias", torch.zeros(n))
        self.permutation.copy_(torch.arange(n))
        self.signs.fill_(1.0)

    @torch.no_grad()
    def initialize(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        rows = x.movedim(1, -1).reshape(-1, self.n)
        mean = mean_of(rows)
        covariance = covariance_of(rows, mean)
        level = float(covariance.diagonal().mean())
        if level > 0:
            values, vectors = torch.linalg.eigh(covariance)
            order = torch.arange(self.n - 1, -1, -1, device=rows.device)
            order = torch.cat([order[0::2], order[1::2]])
            scale = (values[order].clamp(min=0) + self.ridge * level).rsqrt()
            self._store(scale[:, None] * vectors[:, order].mT)
        if self.centres:
            self.bias.copy_(-(self._matrix().to(mean) @ mean))
        return self(x, context)[0]

    def _store(self, matrix: Tensor) -> None:
        p, lower, upper = torch.linalg.lu(matrix)
        self.packed.copy_(packed(lower, upper))
        self.permutation.copy_(p.argmax(-1))
        self.signs.copy_(upper.diagonal().sign())

    def extra_repr(self) -> str:
        return f"{self.n}, ridge={self.ridge:g}"
