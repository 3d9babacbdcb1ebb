"""Elementwise monotone maps: what a coupling does to the half it transforms."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor


@runtime_checkable
class Elementwise(Protocol):
    """An elementwise map ``z = f(x; raw)`` with `params` numbers an element.

    ``raw`` has the parameters on a new first axis: ``(params, *x.shape)``. All zeros is the
    identity. `forward` and `inverse` return the image and the elementwise log-derivative.
    """

    params: int

    def forward(self, x: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        """``f(x)`` and ``log f'(x)``, each of x's shape."""
        ...

    def inverse(self, z: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        """``f^-1(z)`` and ``log (f^-1)'(z)``, each of z's shape."""
        ...


class Affine:
    """``z = x * exp(s) + t``, raw = (s, t).

    Args:
        bound: None takes s as the conditioner gives it (the paper's choice); a number keeps
            ``|s| < bound`` by ``s = bound * tanh(raw / bound)``.
    """

    params = 2

    def __init__(self, bound: float | None = None) -> None:
        if bound is not None and not bound > 0:
            raise ValueError(f"Affine: bound must be positive; got {bound}")
        self.bound = bound

    def _read(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        log_scale, shift = raw[0], raw[1]
        if self.bound is not None:
            log_scale = self.bound * torch.tanh(log_scale / self.bound)
        return log_scale, shift

    def forward(self, x: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        """``x * exp(s) + t`` and s."""
        log_scale, shift = self._read(raw)
        return x * log_scale.exp() + shift, log_scale

    def inverse(self, z: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        """``(z - t) * exp(-s)`` and -s."""
        log_scale, shift = self._read(raw)
        return (z - shift) * (-log_scale).exp(), -log_scale

    def __repr__(self) -> str:
        """The bound, in ``print(flow)``."""
        return f"Affine(bound={self.bound})"


class FlooredAffine:
    """``z = x * (1 + (1 - floor) tanh(s / 2)) + t``, raw = (s, t): scales in (floor, 2 - floor).

    The scale is ``floor + (1 - floor) 2 sigmoid(s)``, bounded away from 0: no layer forgets its
    input, and none can amplify it more than twice.

    Args:
        floor: of the scale, in (0, 1).
    """

    params = 2

    def __init__(self, floor: float = 0.1) -> None:
        if not 0 < floor < 1:
            raise ValueError(f"FlooredAffine: floor must be in (0, 1); got {floor}")
        self.floor = floor

    def _excess(self, raw: Tensor) -> Tensor:
        """The scale less 1: exactly 0 at raw 0."""
        return (1 - self.floor) * torch.tanh(raw[0] / 2)

    def forward(self, x: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        """``x * scale + t`` and ``log scale``."""
        excess = self._excess(raw)
        return x * (1 + excess) + raw[1], excess.log1p()

    def inverse(self, z: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        """``(z - t) / scale`` and ``-log scale``."""
        excess = self._excess(raw)
        return (z - raw[1]) / (1 + excess), -excess.log1p()

    def __repr__(self) -> str:
        """The floor, in ``print(flow)``."""
        return f"FlooredAffine(floor={self.floor})"
