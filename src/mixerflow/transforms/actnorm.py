"""Learned affine maps of each number: free, or started by standardising a first batch."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mixerflow.core import Context, Mapped, Noise, Shape, Transform, constant
from mixerflow.registry import register


@register
class DiagonalAffine(Transform):
    """``z = x * exp(log_scale) + shift``, elementwise; starts as the identity.

    ``log|det dz/dx|`` is the sum of ``log_scale`` over the event. Behind a flow this is a learned
    Gaussian in place of the standard one.

    Args:
        shape: of the parameters. It broadcasts against the end of the event: ``(n,)`` for
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

    def out_shape(self, shape: Shape) -> Shape:
        k = len(self.shape)
        fits = len(shape) >= k and all(
            p in (1, n) for p, n in zip(self.shape, shape[len(shape) - k :], strict=True)
        )
        if not fits:
            name = type(self).__name__
            raise ValueError(f"{name}: parameters {self.shape} do not fit events of shape {shape}")
        return shape

    def _shared_axes(self, x: Tensor) -> list[int]:
        """The axes of a batch along which all numbers have the same parameters."""
        trailing = (1,) * (x.dim() - len(self.shape)) + self.shape
        return [axis for axis, n in enumerate(trailing) if n == 1]

    def extra_repr(self) -> str:
        return f"{self.shape}"


@register
class ActNorm(DiagonalAffine):
    """``z = x * exp(log_scale) + shift``, elementwise, with parameters per feature.

    `initialize` sets the parameters so that a batch comes out with mean 0 and variance at most 1;
    until then the map is the identity.

    Args:
        shape: of the parameters, as a `DiagonalAffine`'s.
        floor: smallest standard deviation that `initialize` divides by. At 1 it centres and shrinks
            but never amplifies: a dimension that hardly varies in one batch (an image's empty
            border) may vary in the next, and layer upon layer of even tenfold amplification makes
            a value in the thousands out of it.

    References:
        Kingma, Dhariwal: Glow: generative flow with invertible 1x1 convolutions (2018), sec. 3.1.
        https://arxiv.org/abs/1807.03039
    """

    def __init__(self, shape: Shape | int, *, floor: float = 1.0) -> None:
        super().__init__(shape)
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
