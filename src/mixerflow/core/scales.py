"""Multi-scale flows: part of an event is done early, the rest goes on."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mixerflow.core.combine import _Around
from mixerflow.core.noise import Noise
from mixerflow.core.transform import Shape, Transform, constant, expect


class Flatten(Transform):
    """``(C, *spatial)`` as a vector ``(D,)``, the first channel first; log-det 0.

    Args:
        shape: of the events that it takes.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = tuple(shape)

    def forward(
        self, x: Tensor, context: Tensor | None = None, noise: Noise | None = None
    ) -> tuple[Tensor, Tensor]:
        expect(self, tuple(x.shape[1:]), self.shape)
        return x.reshape(-1, math.prod(self.shape)), constant(0.0, x)

    def inverse(
        self, z: Tensor, context: Tensor | None = None, noise: Noise | None = None
    ) -> tuple[Tensor, Tensor]:
        expect(self, tuple(z.shape[1:]), (math.prod(self.shape),))
        return z.reshape(-1, *self.shape), constant(0.0, z)

    def out_shape(self, shape: Shape) -> Shape:
        expect(self, shape, self.shape)
        return (math.prod(shape),)

    def extra_repr(self) -> str:
        """The events, in ``print(flow)``."""
        return f"{self.shape}"


class Tail(_Around):
    """A transform of the last numbers of a vector; those before them pass untouched.

    What passes is done: it is scored under the base distribution as it is. So a multi-scale flow is
    a chain as any other: layers, `Flatten`, then layers each in a `Tail`, shorter from scale to
    scale. Of a flattened image the tail is its last channels. The conditional Gaussian under which
    Glow scores what it factors out is an affine coupling just before, which transforms that part
    given the rest.

    Args:
        shape: the events that `transform` takes; the tail has as many numbers.
        transform: what happens to it.

    References:
        Dinh, Sohl-Dickstein, Bengio: Density estimation using Real NVP (2017), section 3.6.
        https://arxiv.org/abs/1605.08803
    """

    def __init__(self, shape: Shape, transform: Transform) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self.taken = math.prod(self.shape)
        self.given = tuple(transform.out_shape(self.shape))
        if math.prod(self.given) != self.taken:
            raise ValueError(f"Tail: the transform makes {self.given} of events {self.shape}")
        self.transform = transform

    def _parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.out_shape(tuple(x.shape[1:]))
        return x[:, : x.shape[1] - self.taken], x[:, x.shape[1] - self.taken :]

    def forward(
        self, x: Tensor, context: Tensor | None = None, noise: Noise | None = None
    ) -> tuple[Tensor, Tensor]:
        head, tail = self._parts(x)
        tail, log_det = self.transform(tail.reshape(-1, *self.shape), context, noise)
        return torch.cat([head, tail.flatten(1)], 1), log_det

    def inverse(
        self, z: Tensor, context: Tensor | None = None, noise: Noise | None = None
    ) -> tuple[Tensor, Tensor]:
        head, tail = self._parts(z)
        tail, log_det = self.transform.inverse(tail.reshape(-1, *self.given), context)
        return torch.cat([head, tail.flatten(1)], 1), log_det

    def out_shape(self, shape: Shape) -> Shape:
        if len(shape) != 1 or shape[0] < self.taken:
            raise ValueError(f"Tail: takes vectors of at least ({self.taken},); got {tuple(shape)}")
        return shape

    @torch.no_grad()
    def initialize(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        head, tail = self._parts(x)
        tail = self.transform.initialize(tail.reshape(-1, *self.shape), context)
        return torch.cat([head, tail.flatten(1)], 1)

    def extra_repr(self) -> str:
        """The events, in ``print(flow)``."""
        return f"{self.shape}"
