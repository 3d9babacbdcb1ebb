"""Norms of hidden rows, and batch norm that processes share."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from mixerflow.moments import RunningMoments, Saved, require_rows, shared_moments
from mixerflow.precision import widen
from mixerflow.processes import Processes

Norm = Literal["batch", "layer", "rms", "none"]


def norm_of(kind: Norm, width: int) -> nn.Module:
    """A normalisation of hidden rows ``(rows, width)``, or the identity for "none".

    "batch" is the paper's. "layer" normalises each row to mean 0 and variance 1, and learns a scale
    and a shift for each feature; "rms" normalises each row to mean square 1, and learns nothing.
    """
    if kind == "batch":
        return SyncedBatchNorm(width)
    if kind == "layer":
        return nn.LayerNorm(width)
    if kind == "rms":
        return nn.RMSNorm(width, eps=1e-5, elementwise_affine=False)
    if kind != "none":
        raise ValueError(f"norm must be one of {', '.join(get_args(Norm))}; got {kind!r}")
    return nn.Identity()


class Scale(nn.Module):
    """``weight h + bias`` per feature of ``(rows, width)``: batch norm in eval mode."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, input: Tensor) -> Tensor:
        return torch.addcmul(self.bias, input, self.weight)

    def forward_units(self, input: Tensor, units: slice) -> Tensor:
        """`forward` of some of the features, ``(rows, units)``."""
        return torch.addcmul(self.bias[units], input, self.weight[units])


class SyncedBatchNorm(RunningMoments):
    """``gamma (h - mean) / sqrt(var + eps) + beta`` per feature of ``(rows, width)``.

    Mean and variance are the batch's in training mode, running averages in eval mode.
    """

    def forward(self, input: Tensor) -> Tensor:
        if self.training and self.processes.together:
            shared = _Shared.apply(input, self.weight, self.bias, self.eps, self.processes)
            normal, mean, variance, rows = shared  # pyright: ignore[reportGeneralTypeIssues]
            if self.update:
                self.move(mean, variance, rows)
            return normal
        if self.training:
            require_rows(len(input))
        if self.training and not self.update:
            return nn.functional.batch_norm(
                input, None, None, self.weight, self.bias, training=True, eps=self.eps
            )
        return super().forward(input)

    def forward_units(self, input: Tensor, units: slice) -> Tensor:
        """`forward` of some of the features, ``(rows, units)``; moves no running average."""
        weight = None if self.weight is None else self.weight[units]
        bias = None if self.bias is None else self.bias[units]
        if self.training and self.processes.together:
            return _Shared.apply(input, weight, bias, self.eps, self.processes)[0]  # pyright: ignore
        if self.training or self.running_mean is None or self.running_var is None:
            return nn.functional.batch_norm(
                input, None, None, weight, bias, training=True, eps=self.eps
            )
        mean, variance = self.running_mean[units], self.running_var[units]
        return nn.functional.batch_norm(input, mean, variance, weight, bias, eps=self.eps)

    def folded(self) -> nn.Module:
        """The affine map of eval mode; self where there are no running averages or no weights."""
        if not self.track_running_stats or not self.affine:
            return self
        assert self.running_mean is not None and self.running_var is not None
        weight = self.weight * (self.running_var + self.eps).rsqrt()
        return Scale(weight, self.bias - weight * self.running_mean)


class _Shared(torch.autograd.Function):
    """Normalise rows by the mean and variance over all processes' rows; one message each way."""

    @staticmethod
    def forward(
        ctx: Saved, x: Tensor, weight: Tensor, bias: Tensor, eps: float, processes: Processes
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        wide = widen(x)
        mean, variance, rows = shared_moments(wide, processes)
        scale = (variance + eps).rsqrt()
        ctx.save_for_backward(x, weight, mean, scale, rows)
        ctx.processes = processes
        ctx.mark_non_differentiable(mean, variance, rows)
        return ((wide - mean) * (scale * weight) + bias).to(x.dtype), mean, variance, rows

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Saved, grad: Tensor, *_: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, None, None]:
        x, weight, mean, scale, rows = ctx.saved_tensors
        normal = (x - mean) * scale
        wide = grad.to(normal.dtype)
        own = torch.stack([wide.sum(0), (wide * normal).sum(0)])
        shift, stretch = ctx.processes.sum(own) / rows
        inner = (wide - shift - normal * stretch) * (scale * weight)
        return inner.to(x.dtype), own[1].to(weight.dtype), own[0].to(weight.dtype), None, None
