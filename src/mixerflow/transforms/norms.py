"""Affine maps of each number: learned, started by a first batch, or normalised by each batch."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from mixerflow.core import (
    Along,
    Chain,
    Context,
    Mapped,
    MixesPlaces,
    Noise,
    Shape,
    Transform,
    constant,
)
from mixerflow.moments import ALL, Entries, RunningMoments, Saved, require_rows, shared_moments
from mixerflow.precision import wide, widen
from mixerflow.processes import Processes
from mixerflow.registry import register
from mixerflow.transforms.linear import Linear


@register
class DiagonalAffine(Transform):
    """``z = x * exp(log_scale) + shift``, elementwise; starts as the identity.

    ``log|det dz/dx|`` is the sum of ``log_scale`` over the event. Behind a flow this is a learned
    Gaussian in place of the standard one.

    Args:
        shape: shape of the parameters. It broadcasts against the end of the event: ``(n,)`` for
            vectors, ``(C, 1, 1)`` for an image's channels, the event's own shape for one pair of
            parameters an activation.
    """

    affine = True

    def __init__(self, shape: Shape | int) -> None:
        super().__init__()
        self.shape = (shape,) if isinstance(shape, int) else tuple(shape)
        self.log_scale = nn.Parameter(torch.zeros(self.shape))
        self.shift = nn.Parameter(torch.zeros(self.shape))

    def _event_sum(self, log_scale: Tensor, x: Tensor) -> Tensor:
        """The sum of `log_scale`, broadcast to an event of `x`; checks the event's shape."""
        self.out_shape(tuple(x.shape[1:]))
        return log_scale.sum() * (math.prod(x.shape[1:]) // log_scale.numel())

    def _log_det(self, x: Tensor) -> Tensor:
        return self._event_sum(self.log_scale, x)

    def forward(self, x: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        log_det = constant(self._log_det(x), x)
        return x * self.log_scale.exp() + self.shift, log_det

    def inverse(self, z: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        log_det = constant(-self._log_det(z), z)
        return (z - self.shift) * (-self.log_scale).exp(), log_det

    def by_place(self, x: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        z, log_scale = self(x)[0], self._place_log_scale()
        each = log_scale.expand(x.shape[1:]).sum(0, dtype=wide(x.dtype)).flatten()
        return z, each.expand(x.shape[0], -1)

    def _place_log_scale(self) -> Tensor:
        """Log-scales, which broadcast against an event."""
        return self.log_scale

    def out_shape(self, shape: Shape) -> Shape:
        k = len(self.shape)
        fits = len(shape) >= k and all(
            p in (1, n) for p, n in zip(self.shape, shape[len(shape) - k :], strict=True)
        )
        if not fits:
            name = type(self).__name__
            raise ValueError(f"{name}: parameters {self.shape} do not fit events of shape {shape}")
        return shape

    def merged(self, before: Transform, after: Transform) -> Transform | None:
        """Merge with another such map; of channels ``(C, 1, ...)``, into a linear map of these."""
        other = after if before is self else before
        if isinstance(other, DiagonalAffine) and before.affine and after.affine:
            return _one_map(before, after)
        if not (isinstance(other, Along) and isinstance(other.transform, Linear)):
            return None
        n = other.transform.n
        if (
            other.dim != 0
            or len(self.shape) < 2
            or self.shape != (n, *(1,) * (len(self.shape) - 1))
        ):
            return None
        own = DiagonalAffine(n).to(self.log_scale)
        own.log_scale.copy_(self.log_scale.view(n))
        own.shift.copy_(self.shift.view(n))
        pair = (own, other.transform) if before is self else (other.transform, own)
        return Along(0, Linear(Chain(*pair), n))

    def constants(self) -> Iterator[Entries]:
        yield self.shift, ALL

    def _shared_axes(self, x: Tensor) -> list[int]:
        """The axes of a batch along which all numbers have the same parameters."""
        trailing = (1,) * (x.dim() - len(self.shape)) + self.shape
        return [axis for axis, n in enumerate(trailing) if n == 1]

    def extra_repr(self) -> str:
        return f"{self.shape}"


def _one_map(before: Transform, after: Transform) -> Transform | None:
    """Return one elementwise affine map equal to two; None where it would have more numbers."""
    assert isinstance(before, DiagonalAffine) and isinstance(after, DiagonalAffine)
    wider = max(before.shape, after.shape, key=math.prod)
    if len(before.shape) != len(after.shape) or wider != torch.broadcast_shapes(
        before.shape, after.shape
    ):
        return None
    merged = DiagonalAffine(wider).to(before.log_scale)
    merged.log_scale.copy_(before.log_scale + after.log_scale)
    merged.shift.copy_(before.shift * after.log_scale.exp() + after.shift)
    return merged


@register
class ActNorm(DiagonalAffine):
    """``z = x * exp(log_scale) + shift``, elementwise, with parameters per feature.

    `initialize` sets the parameters so that a batch comes out with mean 0 and variance at most 1;
    until then the map is the identity.

    Args:
        floor: smallest standard deviation that `initialize` divides by. At 1 it centres and shrinks
            but never amplifies: a dimension that hardly varies in one batch (an image's empty
            border) may vary in the next, and layer upon layer of even tenfold amplification makes
            a value in the thousands out of it.

    Reference: Kingma, Dhariwal, Glow (2018), sec. 3.1, arXiv:1807.03039.
    """

    def __init__(self, shape: Shape | int, *, floor: float = 1.0) -> None:
        super().__init__(shape)
        if not floor > 0:
            raise ValueError(f"ActNorm: floor must be positive; got {floor}")
        self.floor = floor

    @torch.no_grad()
    def initialize(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        self.out_shape(tuple(x.shape[1:]))
        if x.shape[0] == 0:
            raise ValueError("ActNorm: cannot be initialised from an empty batch")
        shared = self._shared_axes(x)
        mean = x.mean(shared, keepdim=True)
        deviation = (x - mean).square().mean(shared, keepdim=True).sqrt()
        log_scale = -deviation.clamp(min=self.floor).log()
        self.log_scale.copy_(log_scale.reshape(self.shape))
        self.shift.copy_((-mean * log_scale.exp()).reshape(self.shape))
        return self(x, context)[0]


@register
class BatchNorm(DiagonalAffine):
    """``z = (x - m) / sqrt(v + eps) * exp(log_scale) + shift``, with parameters per feature.

    ``log|det dz/dx|`` is the sum of ``log_scale - log(v + eps) / 2`` over the event. In training
    mode m and v are those of the batch, so that the log-det is no likelihood and the map has no
    inverse; in eval mode, and in `inverse`, m and v are running averages, and both are exact.
    `initialize` sets the averages from a batch. Folds into an `ActNorm`. `momentum` is the share of
    a batch in the running averages.

    References:
        Dinh et al., Real NVP (2017), section 3.7, arXiv:1605.08803.
        Papamakarios et al., Masked autoregressive flow (2017), appendix B, arXiv:1705.07057.
    """

    affine = False  # not in training mode

    def __init__(self, shape: Shape | int, *, momentum: float = 0.1, eps: float = 1e-5) -> None:
        super().__init__(shape)
        self.moments = Moments(math.prod(self.shape), momentum=momentum, eps=eps)

    @property
    def invertible(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether `forward` uses the statistics that `inverse` uses: not in training mode."""
        return not self.moments.training

    def _place_log_scale(self) -> Tensor:
        if self.moments.training:
            raise MixesPlaces("BatchNorm in training mode reads more than one place at a time")
        return self._running_coefficients()[0]

    def _rows(self, x: Tensor) -> Tensor:
        """``(rows, features)``: the numbers of a column share a mean."""
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
    """

    def __init__(self, width: int, *, momentum: float, eps: float) -> None:
        super().__init__(width, eps=eps, momentum=momentum, affine=False)

    def of(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor | int]:
        """Mean and variance of rows ``(rows, width)`` over all processes, and their number."""
        wide = widen(rows)
        if self.processes.together:
            return _SharedMoments.apply(wide, self.processes)  # pyright: ignore[reportReturnType]
        require_rows(len(rows))
        variance, mean = torch.var_mean(wide, 0, correction=0)
        return mean, variance, len(rows)

    def forward(self, input: Tensor) -> tuple[Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        mean, variance, rows = self.of(input)
        if self.update:
            self.move(mean.detach(), variance.detach(), rows)
        return mean, variance


class _SharedMoments(torch.autograd.Function):
    """`shared_moments` with gradients; one message each way."""

    @staticmethod
    def forward(ctx: Saved, x: Tensor, processes: Processes) -> tuple[Tensor, Tensor, Tensor]:
        mean, variance, rows = shared_moments(x, processes)
        ctx.save_for_backward(x, mean, rows)
        ctx.processes = processes
        ctx.mark_non_differentiable(rows)
        return mean, variance, rows

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Saved, *grads: Tensor
    ) -> tuple[Tensor, None]:
        x, mean, rows = ctx.saved_tensors
        by_mean, by_variance = ctx.processes.sum(torch.stack(grads[:2]))
        return (by_mean + 2 * by_variance * (x - mean)) / rows, None
