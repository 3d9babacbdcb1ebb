"""Linear maps of images that mix pixels too, as values."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

from mixerflow.core import Along, Inverse, Shape, Transform
from mixerflow.parts.base import PositiveCounts
from mixerflow.parts.linear import ImageMap, LinearMap, MatrixMap, NoMap
from mixerflow.registry import register
from mixerflow.transforms import (
    AutoregressiveConvolution,
    Butterfly,
    PeriodicConvolution,
    Reshape,
    Woodbury,
)


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


@register
@dataclass(frozen=True)
class WoodburyPlanes(PositiveCounts, ImageMap):
    """The identity plus a map of low rank: of the channels, then of the pixels of each channel.

    Log-dets are those of matrices rank x rank, times the number of pixels or channels. Ranks may be
    above the length of their axis, see `mixerflow.transforms.Woodbury`.

    Reference: Lu, Huang, Woodbury transformations for deep generative flows (2020), sections 3.1
        to 3.3, arXiv:2002.12229.
    """

    channel_rank: int = 16
    """Rank of the channels' map."""
    spatial_rank: int = 16
    """Rank of the pixels' maps."""
    memory_efficient: bool = True
    """A map of each spatial axis, the last first; else one of all pixels of a channel together."""

    def on_image(self, shape: Shape, *, bias: bool = True) -> list[Transform]:
        channels, *sides = shape
        rank = self.spatial_rank
        maps: list[Transform] = [Along(0, Woodbury(channels, self.channel_rank, bias=bias))]
        if self.memory_efficient:
            axes = [(axis, sides[axis]) for axis in range(-1, -1 - len(sides), -1)]
            return maps + [Along(axis, Woodbury(n, rank, bias=False)) for axis, n in axes]
        pixels = Reshape(shape, (channels, math.prod(sides)))
        every = Along(-1, Woodbury(math.prod(sides), rank, bias=False))
        return [*maps, pixels, every, Inverse(pixels, shape)]


@register
@dataclass(frozen=True)
class ButterflyImage(PositiveCounts, ImageMap):
    """A linear map of each pixel's channels, and butterflies of all numbers of the image.

    An image ``(C, *spatial)`` is one vector, its last axis fastest, in which level l pairs numbers
    ``C * pixels / 2^(l+1)`` apart: first those half of the channels apart, last neighbours. An odd
    length has two butterflies in place of each, see `mixerflow.transforms.Butterfly`.

    Reference: Meng et al., ButterflyFlow: building invertible layers with butterfly matrices
        (2022), arXiv:2209.13774.
    """

    stacks: int = 1
    """Butterflies one after another; the paper's for permuted images are 10."""
    levels: int | None = None
    """Levels of each; None for as many as the length has factors 2."""
    rotated: bool = False
    """Whether they start as random rotations, as the paper's for permuted images; else as the
    identity."""
    channels: LinearMap = MatrixMap()
    """The map of each pixel's channels, before the butterflies."""

    def on_image(self, shape: Shape, *, bias: bool = True) -> list[Transform]:
        n = math.prod(shape)
        vector = Reshape(shape, (n,))

        def stack() -> Butterfly:
            settings = {"whole": n % 2 == 0, "rotated": self.rotated, "grouped": 1}
            return Butterfly(n, self.levels, bias=False, **settings)

        stacks = [stack() for _ in range(self.stacks)]
        mix = self.channels.on_image(shape, bias=bias)
        return [*mix, vector, *stacks, Inverse(vector, shape)]
