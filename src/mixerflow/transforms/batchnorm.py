"""Batch normalisation as a transform: an affine map that takes its scale from the batch."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from mixerflow.core import Context, Mapped, Noise, Shape, Transform, constant
from mixerflow.moments import RunningMoments, shared_moments
from mixerflow.processes import Processes
from mixerflow.registry import register
from mixerflow.transforms.actnorm import ActNorm, DiagonalAffine


@register
class BatchNorm(DiagonalAffine):
    """``z = (x - m) / sqrt(v + eps) * exp(log_scale) + shift``, with parameters per feature.

    ``log|det dz/dx|`` is the sum of ``log_scale - log(v + eps) / 2`` over the event. In training
    mode m and v are those of the batch, so that the log-det is no likelihood and the map has no
    inverse; in eval mode, and in `inverse`, m and v are running averages, and both are exact.
    `initialize` sets the averages from a batch. Folds into an `ActNorm`.

    Args:
        shape: of the parameters, as a `DiagonalAffine`'s.
        momentum: share of a batch in the running averages.
        eps: added to the variance.

    References:
        Dinh, Sohl-Dickstein, Bengio: Density estimation using Real NVP (2017), section 3.7.
        https://arxiv.org/abs/1605.08803
        Papamakarios, Pavlakou, Murray: Masked autoregressive flow for density estimation (2017),
        appendix B. https://arxiv.org/abs/1705.07057
    """

    affine = False  # not in training mode

    def __init__(self, shape: Shape | int, *, momentum: float = 0.1, eps: float = 1e-5) -> None:
        super().__init__(shape)
        self.moments = Moments(math.prod(self.shape), momentum=momentum, eps=eps)

    @property
    def invertible(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether `forward` uses the statistics that `inverse` uses: not in training mode."""
        return not self.moments.training

    def _rows(self, x: Tensor) -> Tensor:
        """The batch as ``(rows, features)``: the numbers of a column share a mean."""
        shared = self._shared_axes(x)
        own = [axis for axis in range(x.dim()) if axis not in shared]
        return x.permute(*shared, *own).reshape(-1, self.log_scale.numel())

    def _coefficients(self, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        """Log-scale and shift of the affine map, by the statistics ``(features,)``."""
        log_scale = self.log_scale - 0.5 * (variance + self.moments.eps).log().view(self.shape)
        return log_scale, self.shift - mean.view(self.shape) * log_scale.exp()

    def _running_coefficients(self) -> tuple[Tensor, Tensor]:
        mean, variance = self.moments.running_mean, self.moments.running_var
        assert mean is not None and variance is not None
        return self._coefficients(mean, variance)

    def forward(self, x: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        self.out_shape(tuple(x.shape[1:]))
        if self.moments.training:
            log_scale, shift = self._coefficients(*self.moments(self._rows(x)))
        else:
            log_scale, shift = self._running_coefficients()
        log_det = constant(self._event_sum(log_scale, x), x)
        return (x * log_scale.exp() + shift).to(x.dtype), log_det

    def inverse(self, z: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        log_scale, shift = self._running_coefficients()
        log_det = constant(-self._event_sum(log_scale, z), z)
        return (z - shift) * (-log_scale).exp(), log_det

    @torch.no_grad()
    def initialize(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        self.out_shape(tuple(x.shape[1:]))
        mean, variance, rows = self.moments.of(self._rows(x))
        running_mean, running_variance = self.moments.running_mean, self.moments.running_var
        assert running_mean is not None and running_variance is not None
        running_mean.copy_(mean)
        running_variance.copy_(variance * (rows / (rows - 1)))
        log_scale, shift = self._running_coefficients()
        return x * log_scale.exp() + shift

    def folded(self) -> Transform:
        """The affine map of eval mode, which merges with a linear map next to it."""
        other = ActNorm(self.shape).to(self.log_scale)
        log_scale, shift = self._running_coefficients()
        other.log_scale.copy_(log_scale)
        other.shift.copy_(shift)
        return other


class Moments(RunningMoments):
    """Mean and variance ``(width,)`` of rows in training mode, with their running averages.

    Trainers treat this module as the batch norm of a net.

    Args:
        width: length of the rows.
        momentum: share of a batch in the running averages.
        eps: for code that divides by the standard deviation.
    """

    def __init__(self, width: int, *, momentum: float, eps: float) -> None:
        super().__init__(width, eps=eps, momentum=momentum, affine=False)

    def of(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor | int]:
        """Mean and variance of rows ``(rows, width)`` over all processes, and their number.

        Raises:
            ValueError: fewer than 2 rows.
        """
        wide = rows.to(torch.promote_types(rows.dtype, torch.float32))
        if self.processes.together:
            return _SharedMoments.apply(wide, self.processes)  # pyright: ignore[reportReturnType]
        if len(rows) < 2:
            raise ValueError(
                f"BatchNorm: {len(rows)} values a feature have no variance: train on 2 or more, or "
                "call eval()"
            )
        variance, mean = torch.var_mean(wide, 0, correction=0)
        return mean, variance, len(rows)

    def forward(self, input: Tensor) -> tuple[Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The batch's mean and variance."""
        mean, variance, rows = self.of(input)
        if self.update:
            self.move(mean.detach(), variance.detach(), rows)
        return mean, variance


class _SharedMoments(torch.autograd.Function):
    """`shared_moments` with gradients; one message each way."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        x: Tensor,
        processes: Processes,
    ) -> tuple[Tensor, Tensor, Tensor]:
        mean, variance, rows = shared_moments(x, processes)
        ctx.save_for_backward(x, mean, rows)
        ctx.processes = processes
        ctx.mark_non_differentiable(rows)
        return mean, variance, rows

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,  # noqa: ANN401
        *grads: Tensor,
    ) -> tuple[Tensor, None]:
        x, mean, rows = ctx.saved_tensors
        by_mean, by_variance = ctx.processes.sum(torch.stack(grads[:2]))
        return (by_mean + 2 * by_variance * (x - mean)) / rows, None
