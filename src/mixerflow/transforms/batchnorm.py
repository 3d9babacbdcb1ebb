"""Batch normalisation as a transform: an affine map that takes its scale from the batch."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from mixerflow.core import Context, Mapped, Noise, Shape, Transform, constant
from mixerflow.processes import SINGLE, Processes
from mixerflow.registry import register
from mixerflow.transforms.actnorm import ActNorm


@register
class BatchNorm(Transform):
    """``z = (x - m) / sqrt(v + eps) * exp(log_scale) + shift``, with parameters per feature.

    ``log|det dz/dx|`` is the sum of ``log_scale - log(v + eps) / 2`` over the event. In training
    mode m and v are those of the batch, so that the figure is no likelihood and the map has no
    inverse; in eval mode, and on the way back, they are running averages, and both are exact.
    `initialize` sets these from a batch. Folds into an `ActNorm`.

    Args:
        shape: of the parameters. It broadcasts against the end of the event, as `ActNorm`'s:
            ``(n,)`` for vectors, ``(C, 1, 1)`` for an image's channels.
        momentum: share of a batch in the running averages.
        eps: added to the variance.

    References:
        Dinh, Sohl-Dickstein, Bengio: Density estimation using Real NVP (2017), section 3.7.
        https://arxiv.org/abs/1605.08803
        Papamakarios, Pavlakou, Murray: Masked autoregressive flow for density estimation (2017),
        appendix B. https://arxiv.org/abs/1705.07057
    """

    def __init__(self, shape: Shape | int, *, momentum: float = 0.1, eps: float = 1e-5) -> None:
        super().__init__()
        self.shape = (shape,) if isinstance(shape, int) else tuple(shape)
        self.log_scale = nn.Parameter(torch.zeros(self.shape))
        self.shift = nn.Parameter(torch.zeros(self.shape))
        self.moments = Moments(math.prod(self.shape), momentum=momentum, eps=eps)

    @property
    def invertible(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether `forward` used what `inverse` uses: not in training mode."""
        return not self.moments.training

    def _rows(self, x: Tensor) -> Tensor:
        """What shares a mean, ``(rows, features)``."""
        trailing = (1,) * (x.dim() - len(self.shape)) + self.shape
        shared = [axis for axis, n in enumerate(trailing) if n == 1]
        own = [axis for axis, n in enumerate(trailing) if n != 1]
        return x.permute(*shared, *own).reshape(-1, self.log_scale.numel())

    def _map(self, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        """``log dz/dx`` and ``z(0)`` of each feature."""
        log_scale = self.log_scale - 0.5 * (variance + self.moments.eps).log().view(self.shape)
        return log_scale, self.shift - mean.view(self.shape) * log_scale.exp()

    def _kept(self) -> tuple[Tensor, Tensor]:
        mean, variance = self.moments.running_mean, self.moments.running_var
        assert mean is not None and variance is not None
        return self._map(mean, variance)

    def _total(self, log_scale: Tensor, x: Tensor) -> Tensor:
        return constant(log_scale.sum() * (math.prod(x.shape[1:]) // log_scale.numel()), x)

    def forward(self, x: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        self.out_shape(tuple(x.shape[1:]))
        if self.moments.training:
            log_scale, shift = self._map(*self.moments(self._rows(x)))
        else:
            log_scale, shift = self._kept()
        return (x * log_scale.exp() + shift).to(x.dtype), self._total(log_scale, x)

    def inverse(self, z: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        self.out_shape(tuple(z.shape[1:]))
        log_scale, shift = self._kept()
        return (z - shift) * (-log_scale).exp(), self._total(-log_scale, z)

    def out_shape(self, shape: Shape) -> Shape:
        k = len(self.shape)
        fits = len(shape) >= k and all(
            p in (1, n) for p, n in zip(self.shape, shape[len(shape) - k :], strict=True)
        )
        if not fits:
            raise ValueError(
                f"BatchNorm: parameters {self.shape} do not fit events of shape {shape}"
            )
        return shape

    @torch.no_grad()
    def initialize(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        self.out_shape(tuple(x.shape[1:]))
        mean, variance, rows = self.moments.of(self._rows(x))
        kept_mean, kept_variance = self.moments.running_mean, self.moments.running_var
        assert kept_mean is not None and kept_variance is not None
        kept_mean.copy_(mean)
        kept_variance.copy_(variance * (rows / (rows - 1)))
        log_scale, shift = self._kept()
        return x * log_scale.exp() + shift

    def folded(self) -> Transform:
        """The affine map that it is in eval mode, which merges with a linear map next to it."""
        other = ActNorm(self.shape).to(self.log_scale)
        log_scale, shift = self._kept()
        other.log_scale.copy_(log_scale)
        other.shift.copy_(shift)
        return other

    def extra_repr(self) -> str:
        """The parameters' shape, in ``print(flow)``."""
        return f"{self.shape}"


class Moments(nn.BatchNorm1d):
    """Mean and variance ``(width,)`` of rows in training mode, whose running averages it keeps.

    A batch norm like those of nets to whoever trains them: in training the averages move with each
    batch unless ``update`` is False, ``processes`` share a batch, and averaged weights get averages
    of their own.

    Args:
        width: length of the rows.
        momentum: share of a batch in the running averages.
        eps: for who divides by the deviation.
    """

    update: bool = True
    processes: Processes = SINGLE

    def __init__(self, width: int, *, momentum: float, eps: float) -> None:
        super().__init__(width, eps=eps, momentum=momentum, affine=False)

    def of(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor | int]:
        """Mean and variance of rows ``(rows, width)``, over all processes, and how many they are.

        Raises:
            ValueError: they are fewer than 2.
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
            self._move(mean.detach(), variance.detach() * (rows / (rows - 1)))
        return mean, variance

    @torch.no_grad()
    def _move(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean), share)
        self.running_var.lerp_(variance.to(self.running_var), share)


class _SharedMoments(torch.autograd.Function):
    """Mean and variance over all processes' rows; one message each way (Chan et al., 1979)."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        x: Tensor,
        processes: Processes,
    ) -> tuple[Tensor, Tensor, Tensor]:
        own_variance, own_mean = torch.var_mean(x, 0, correction=0)
        own = torch.stack([torch.full_like(own_mean, len(x)), own_mean, own_variance])
        counts, means, variances = processes.gather(own).unbind(1)
        rows = counts.sum(0)
        mean = (counts * means).sum(0) / rows
        variance = (counts * (variances + (means - mean).square())).sum(0) / rows
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
