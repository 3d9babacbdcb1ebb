"""Coupling: one half passes, a net reads it, and an elementwise map transforms the other half."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mixerflow.core import Noise, Shape, Transform, total
from mixerflow.transforms.elementwise import Elementwise


def halves(n: int, *, flip: bool = False) -> tuple[int, int]:
    """Sizes of the conditioning and the transformed part of `n` features.

    The first part has the larger half where `n` is odd; unflipped couplings condition on it.
    """
    first, second = (n + 1) // 2, n // 2
    return (second, first) if flip else (first, second)


class Coupling(Transform):
    """``z_a = x_a, z_b = elementwise(x_b; net(x_a, context))`` along one axis of the event.

    ``log|det dz/dx|`` is the sum of the map's log-derivatives. Works on any axis of any event: rows
    with an MLP, feature maps with a convolutional net.

    Args:
        dim: event axis to split: 0 is the first, -1 the last.
        net: maps ``(B, ..., a, ...)`` and the context to ``(B, ..., elementwise.params * b,
            ...)``; a and b are `halves` of the axis. Parameter k of feature j is feature
            ``k * b + j``.
        elementwise: what happens to the transformed half.
        flip: condition on the second part instead of the first.

    References:
        Dinh, Sohl-Dickstein, Bengio: Density estimation using Real NVP (2017), eq. 4 to 8.
        https://arxiv.org/abs/1605.08803
    """

    def __init__(
        self, dim: int, net: nn.Module, elementwise: Elementwise, *, flip: bool = False
    ) -> None:
        super().__init__()
        self.dim = dim
        self.net = net
        self.elementwise = elementwise
        self.flip = flip

    def _axis(self) -> int:
        return self.dim + 1 if self.dim >= 0 else self.dim

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Conditioning and transformed part."""
        axis = self._axis()
        first = x.narrow(axis, 0, (x.shape[axis] + 1) // 2)
        second = x.narrow(axis, first.shape[axis], x.shape[axis] // 2)
        return (second, first) if self.flip else (first, second)

    def _join(self, passed: Tensor, changed: Tensor) -> Tensor:
        parts = (changed, passed) if self.flip else (passed, changed)
        return torch.cat(parts, self._axis())

    def _parameters_of(self, given: Tensor, changed: Tensor, context: Tensor | None) -> Tensor:
        axis = self._axis()
        raw = self.net(given, context).to(changed.dtype)
        expected = self.elementwise.params * changed.shape[axis]
        if raw.shape[axis] != expected:
            raise ValueError(
                f"Coupling: {self.elementwise!r} takes {expected} parameters for "
                f"{changed.shape[axis]} features; the net gives {raw.shape[axis]} "
                f"from {tuple(given.shape)}"
            )
        axis = axis % raw.dim()
        return raw.unflatten(axis, (self.elementwise.params, changed.shape[axis])).movedim(axis, 0)

    def forward(
        self, x: Tensor, context: Tensor | None = None, noise: Noise | None = None
    ) -> tuple[Tensor, Tensor]:
        self.out_shape(tuple(x.shape[1:]))
        given, changed = self._split(x)
        changed, log_det = self.elementwise.forward(
            changed, self._parameters_of(given, changed, context)
        )
        return self._join(given, changed), total(log_det)

    def inverse(
        self, z: Tensor, context: Tensor | None = None, noise: Noise | None = None
    ) -> tuple[Tensor, Tensor]:
        self.out_shape(tuple(z.shape[1:]))
        given, changed = self._split(z)
        changed, log_det = self.elementwise.inverse(
            changed, self._parameters_of(given, changed, context)
        )
        return self._join(given, changed), total(log_det)

    def out_shape(self, shape: Shape) -> Shape:
        if not -len(shape) <= self.dim < len(shape) or shape[self.dim] < 2:
            raise ValueError(f"Coupling: axis {self.dim} of events {shape} has no two parts")
        return shape

    def extra_repr(self) -> str:
        """Axis, elementwise and direction, in ``print(flow)``."""
        return f"dim={self.dim}, elementwise={self.elementwise!r}, flip={self.flip}"
