"""Affine maps of vectors that a first batch fixes: nothing here is trained afterwards."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from mixerflow.core import Transform
from mixerflow.registry import register
from mixerflow.transforms.linear import Linear, _DenseMap

_CONSTANT = 1e-6
"""A standard deviation, relative to the largest value, below which a number counts as constant."""
_ROWS = 2**14
"""Vectors at a time in sums of float64."""


class _FromData(_DenseMap):
    """``z = A (x - m)`` with buffers that `initialize` sets; the identity until then."""

    affine = True
    bias: Tensor  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(self, n: int, *, floor: float = 0.1) -> None:
        super().__init__(n)
        if not 0 < floor <= 1:
            raise ValueError(f"{type(self).__name__}: floor must be in (0, 1]; got {floor}")
        self.floor = floor
        self.register_buffer("bias", torch.zeros(n))

    def folded(self) -> Transform:
        return Linear(self, self.n)

    def _fit(self, mean: Tensor, deviation: Tensor, covariance: Tensor) -> None:
        """Set the buffers: ``(n,)``, ``(n,)`` and ``(n, n)`` in float64."""
        raise NotImplementedError

    @torch.no_grad()
    def initialize(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        rows = x.movedim(1, -1).reshape(-1, self.n)
        if len(rows) == 0:
            raise ValueError(f"{type(self).__name__}: cannot be initialised from an empty batch")
        mean = torch.zeros(self.n, dtype=torch.float64, device=x.device)
        for part in rows.split(_ROWS):
            mean += part.double().sum(0) / len(rows)
        covariance = torch.zeros(self.n, self.n, dtype=torch.float64, device=x.device)
        for part in rows.split(_ROWS):
            centred = part.double() - mean
            covariance += centred.mT @ centred / len(rows)
        deviation = covariance.diagonal().sqrt()
        deviation = deviation.where(deviation > _CONSTANT * rows.abs().amax(0), 0.0)
        least = self.floor * deviation.square().mean().sqrt()
        deviation = deviation.clamp(min=float(least)) if least > 0 else torch.ones_like(deviation)
        self._fit(mean, deviation, covariance)
        return self(x, context)[0]


@register
class Standardize(_FromData):
    """``z_i = (x_i - m_i) / s_i`` with the mean and the standard deviation of a first batch.

    ``log|det dz/dx| = -sum_i log s_i``. A number that is constant in the batch, or nearly, has
    ``s_i = floor * sqrt(mean_j s_j^2)``: it counts as one that varies that little, so that the map
    stays finite and the same in every unit of the data. Where all are constant, ``s_i = 1``.

    Args:
        floor: least standard deviation, relative to the root mean square of all of them.
    """

    log_scale: Tensor

    def __init__(self, n: int, *, floor: float = 0.1) -> None:
        super().__init__(n, floor=floor)
        self.register_buffer("log_scale", torch.zeros(n))

    def _fit(self, mean: Tensor, deviation: Tensor, covariance: Tensor) -> None:
        self.log_scale.copy_(-deviation.log())
        self.bias.copy_(-mean / deviation)

    def _multiply(self, x: Tensor) -> Tensor:
        return x * self.log_scale.exp() + self.bias

    def _solve(self, y: Tensor) -> Tensor:
        return y * (-self.log_scale).exp()

    def _multiply_columns(self, x: Tensor) -> Tensor:
        return x * self.log_scale.exp()[:, None] + self.bias[:, None]

    def _solve_columns(self, y: Tensor) -> Tensor:
        return y * (-self.log_scale).exp()[:, None]

    def _log_det(self) -> Tensor:
        return self.log_scale.sum()


@register
class Whiten(_FromData):
    """``z = L^-1 S^-1 (x - m)`` with ``L L^T = (S^-1 Cov S^-1 + ridge I) / (1 + ridge)``.

    Mean m, covariance Cov and standard deviations S (diagonal, as `Standardize` has them) are those
    of a first batch, and L is lower triangular: behind it the numbers are uncorrelated, with
    variances of at most 1. ``log|det dz/dx| = -sum_i log L_ii - sum_i log s_i``.

    The ridge bounds the map where vectors lie in a subspace, or are fewer than n: along a direction
    in which the standardised vectors do not vary, it amplifies by ``sqrt((1 + ridge) / ridge)``.

    Args:
        ridge: what is added to the correlation matrix's diagonal, more than 0.
        floor: as in `Standardize`.

    Reference: Defard et al., PaDiM (2021), section III.B, for the ridge of 0.01 on covariances of
        features, arXiv:2011.08785.
    """

    weight: Tensor

    def __init__(self, n: int, *, ridge: float = 0.01, floor: float = 0.1) -> None:
        super().__init__(n, floor=floor)
        if not 0 < ridge < math.inf:
            raise ValueError(f"Whiten: ridge must be positive and finite; got {ridge}")
        self.ridge = ridge
        self.register_buffer("weight", torch.eye(n))

    def _fit(self, mean: Tensor, deviation: Tensor, covariance: Tensor) -> None:
        correlation = covariance / deviation / deviation[:, None]
        correlation.diagonal().add_(self.ridge)
        lower = torch.linalg.cholesky(correlation / (1 + self.ridge)) * deviation[:, None]
        unit = torch.eye(self.n).to(lower)
        weight = torch.linalg.solve_triangular(lower, unit, upper=False)
        self.weight.copy_(weight)
        self.bias.copy_(-(weight @ mean))

    def _matrix(self) -> Float[Tensor, "n n"]:
        return self.weight

    def _solve(self, y: Tensor) -> Tensor:
        return torch.linalg.solve_triangular(self.weight.mT, y, upper=True, left=False)

    def _log_det(self) -> Tensor:
        return self.weight.diagonal().log().sum()

    def extra_repr(self) -> str:
        return f"{self.n}, ridge={self.ridge:g}"
