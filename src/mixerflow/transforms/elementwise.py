"""Elementwise monotone maps: the maps by which a coupling changes the part that it transforms."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from mixerflow.registry import register

_LEAST_LOGIT = math.log(1e-3 / (1 - 1e-3))


class Elementwise(ABC):
    """An elementwise map ``z = f(x; raw)`` with `params` numbers an element.

    ``raw`` has the parameters on a new first axis: ``(params, *x.shape)``. All zeros give the
    identity, unless a class says otherwise. `forward` and `inverse` return the image and the
    elementwise log-derivative. The classes of this package are frozen dataclasses: values.
    """

    @property
    @abstractmethod
    def params(self) -> int:
        """Number of raw parameters of an element."""

    @abstractmethod
    def forward(self, x: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        """``f(x)`` and ``log f'(x)``, each of x's shape."""

    @abstractmethod
    def inverse(self, z: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        """``f^-1(z)`` and ``log (f^-1)'(z)``, each of z's shape."""


class _ScaleAndShift(Elementwise):
    """A map with a raw scale s and a shift t for each element: ``raw = (s, t)``."""

    @property
    def params(self) -> int:
        return 2


@register("affine")
@dataclass(frozen=True)
class Affine(_ScaleAndShift):
    """``z = x * exp(s) + t``, raw = (s, t)."""

    bound: float | None = None
    """None takes s as the conditioner gives it (the paper's choice); a number keeps
    ``|s| < bound`` by ``s = bound * tanh(raw / bound)``."""

    def __post_init__(self) -> None:
        if self.bound is not None and not self.bound > 0:
            raise ValueError(f"Affine: bound must be positive; got {self.bound}")

    def _read(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        log_scale, shift = raw[0], raw[1]
        if self.bound is not None:
            log_scale = self.bound * torch.tanh(log_scale / self.bound)
        return log_scale, shift

    def forward(self, x: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        log_scale, shift = self._read(raw)
        return x * log_scale.exp() + shift, log_scale

    def inverse(self, z: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        log_scale, shift = self._read(raw)
        return (z - shift) * (-log_scale).exp(), -log_scale


@register("floored")
@dataclass(frozen=True)
class FlooredAffine(_ScaleAndShift):
    """``z = x * (1 + (1 - floor) tanh(s / 2)) + t``, raw = (s, t): scales in (floor, 2 - floor).

    The scale is ``floor + (1 - floor) 2 sigmoid(s)``, bounded away from 0: no layer forgets its
    input, and none can amplify it more than twice.
    """

    floor: float = 0.1
    """Least scale, in (0, 1)."""

    def __post_init__(self) -> None:
        if not 0 < self.floor < 1:
            raise ValueError(f"FlooredAffine: floor must be in (0, 1); got {self.floor}")

    def _scale_less_one(self, raw: Tensor) -> Tensor:
        """The scale less 1: exactly 0 at raw 0."""
        return (1 - self.floor) * torch.tanh(raw[0] / 2)

    def forward(self, x: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        less_one = self._scale_less_one(raw)
        return x * (1 + less_one) + raw[1], less_one.log1p()

    def inverse(self, z: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        less_one = self._scale_less_one(raw)
        return (z - raw[1]) / (1 + less_one), -less_one.log1p()


@register("sigmoid")
@dataclass(frozen=True)
class SigmoidAffine(_ScaleAndShift):
    """``z = (x + t) * sigmoid(s + offset)``, raw = (s, t): Glow's map, which only shrinks.

    MaCow's map is ``z = x * sigmoid(s + offset) + t``, with `shift_last`. The scale is at least
    0.001: the inverse divides by it, and a scale that underflows would have none. Not the identity
    at raw 0: there ``z = x * sigmoid(offset)``, with a log-derivative of -0.127 for an offset of 2.

    References:
        Kingma, Dhariwal, Glow (2018); the sigmoid is in its published code, arXiv:1807.03039.
        Ma et al., MaCow (2019), arXiv:1902.04208.
    """

    offset: float = 2.0
    """Added to s before the sigmoid."""
    shift_last: bool = False
    """Whether t is added after the scaling, as in MaCow, not before it."""

    def _scale(self, raw: Tensor) -> Tensor:
        """The scale, at least 0.001: its own logarithm is exact enough, and fast."""
        return (raw[0] + self.offset).clamp(min=_LEAST_LOGIT).sigmoid()

    def forward(self, x: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        scale = self._scale(raw)
        z = x * scale + raw[1] if self.shift_last else (x + raw[1]) * scale
        return z, scale.log()

    def inverse(self, z: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        scale = self._scale(raw)
        x = (z - raw[1]) / scale if self.shift_last else z / scale - raw[1]
        return x, -scale.log()
