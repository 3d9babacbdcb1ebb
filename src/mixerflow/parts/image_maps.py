"""Linear maps of images that mix pixels too, as values."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from mixerflow.core import Shape, Transform
from mixerflow.parts.base import PositiveCounts
from mixerflow.parts.linear import ImageMap, LinearMap, NoMap
from mixerflow.registry import register
from mixerflow.transforms import AutoregressiveConvolution, PeriodicConvolution


@register("emerging")
@dataclass(frozen=True)
class EmergingMap(PositiveCounts, ImageMap):
    """Two autoregressive convolutions of opposite directions."""

    kernel: int = 3
    """Side of the kernels, odd; half of a kernel's taps are used."""
    first: LinearMap = NoMap()
    """1x1 convolution before them; the published code has one."""

    def on_image(self, shape: Shape, *, bias: bool = True) -> list[Transform]:
        axes = len(shape) - 1
        make = functools.partial(AutoregressiveConvolution, shape[0], self.kernel, axes=axes)
        return [*self.first.on_image(shape, bias=False), make(), make(reverse=True, bias=bias)]


@register("periodic")
@dataclass(frozen=True)
class PeriodicMap(PositiveCounts, ImageMap):
    """A convolution on a torus."""

    makes = PeriodicConvolution

    kernel: int = 3
    """Side of the kernel, odd."""
    bias: bool = False
    """Whether there is a bias beside an ActNorm too, which has one; the published code has it."""

    def on_image(self, shape: Shape, *, bias: bool = True) -> list[Transform]:
        return [self.make(shape[0], axes=len(shape) - 1, bias=bias or self.bias)]
