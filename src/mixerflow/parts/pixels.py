"""Pixels as values: how an image's integers become real numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from mixerflow.core import Along, Chain, Inverse, Shape, Transform
from mixerflow.nets import DenseEncoder
from mixerflow.parts.base import PositiveCounts
from mixerflow.parts.image_nets import ImageNet, ResidualDense
from mixerflow.parts.images import image_coupling
from mixerflow.registry import register
from mixerflow.transforms import (
    Affine,
    Dequantize,
    DiagonalAffine,
    Logit,
    Matrix,
    NormalScores,
    Rescale,
    Squeeze,
    VariationalDequantize,
)


class Dequantizer:
    """Noise that makes real numbers in ``[0, levels)`` of the integers of an image."""

    positive: ClassVar[bool] = False
    """Whether the numbers are more than 0 and, divided by `levels`, less than 1 in float32."""

    def build(self, shape: Shape, levels: int) -> Transform:
        """Return the transform of images ``(C, *spatial)``."""
        raise NotImplementedError


@register("uniform")
@dataclass(frozen=True)
class UniformDequantizer(Dequantizer):
    """Uniform noise."""

    def build(self, shape: Shape, levels: int) -> Transform:
        return Dequantize(levels)


@register("variational")
@dataclass(frozen=True)
class VariationalDequantizer(PositiveCounts, Dequantizer):
    """Learned noise, from a flow of couplings that reads the image, not its class.

    The defaults are DenseFlow's.

    ``normal noise -> DiagonalAffine -> steps of [1x1 convolution, coupling] -> 1x1 convolution ->
    unsqueeze -> sigmoid``, on the squeezed image where its sides are even.
    """

    positive = True

    steps: int = 4
    """Number of couplings."""
    context: int = 64
    """Channels of the feature maps of the image, which the couplings read."""
    width: int | None = None
    """Channels of the maps before the last dense block, which gives these; None for as many."""
    growth: int = 16
    """Channels that each layer of the feature maps' dense blocks adds."""
    depth: int = 4
    """Layers of each of these two blocks."""
    net: ImageNet = ResidualDense(64)
    """Net of the couplings."""

    def build(self, shape: Shape, levels: int) -> Transform:
        axes, factor = len(shape) - 1, 2 if all(side % 2 == 0 for side in shape[1:]) else 1
        squeeze = Squeeze(shape, factor)
        inner = squeeze.latent_shape
        steps: list[Transform] = [DiagonalAffine((inner[0], *(1,) * axes))]
        for _ in range(self.steps):
            steps.append(Along(0, Matrix(inner[0])))
            if inner[0] > 1:
                steps.append(image_coupling(self.net, Affine(2.0), inner, context=self.context))
        steps += [Along(0, Matrix(inner[0])), Inverse(squeeze, shape)]
        width = self.context if self.width is None else self.width
        settings = {"width": width, "growth": self.growth, "depth": self.depth}
        encoder = DenseEncoder(shape[0], self.context, **settings, factor=factor, axes=axes)
        return VariationalDequantize(shape, encoder, Chain(*steps), inner, levels)


class Pixels:
    """The first transforms of a model, which make real numbers of an image's values."""

    dequantizer: Dequantizer
    levels: int | None

    def steps(self, shape: Shape) -> list[Transform]:
        """Return the transforms of images ``(C, *spatial)``, nearest the data first.

        There are none for float data.
        """
        if self.levels is None:
            return []
        return [self.dequantizer.build(shape, self.levels), *self.scaling(shape, self.levels)]

    def scaling(self, shape: Shape, levels: int) -> list[Transform]:
        """Return the transforms of real numbers in ``[0, levels)``."""
        raise NotImplementedError


@register("scaled")
@dataclass(frozen=True)
class ScaledPixels(Pixels):
    """Integers, dequantised and scaled to an interval."""

    low: float = -1.0
    """Lower end of the interval."""
    high: float = 1.0
    """Upper end of the interval."""
    levels: int | None = 256
    """Values a pixel can have; None for float data, taken as it is."""
    dequantizer: Dequantizer = UniformDequantizer()
    """Noise that makes real numbers of the integers."""

    def scaling(self, shape: Shape, levels: int) -> list[Transform]:
        return [Rescale((self.high - self.low) / levels, self.low)]


@register("logit")
@dataclass(frozen=True)
class LogitPixels(Pixels):
    """Integers, dequantised, scaled to the unit interval, and their logit."""

    alpha: float = 0.05
    """The logit is of ``alpha + (1 - 2 alpha) x``, which keeps it finite: at least 2^-24; with
    learned noise, which is never 0, it may be 0."""
    levels: int | None = 256
    """Values a pixel can have; None for float data, taken as it is, without a logit."""
    dequantizer: Dequantizer = UniformDequantizer()
    """Noise that makes real numbers of the integers."""

    def scaling(self, shape: Shape, levels: int) -> list[Transform]:
        inside = {"inside": True} if self.dequantizer.positive else {}
        return [Rescale(1 / levels), Logit(self.alpha, **inside)]


@register("normal-scores")
@dataclass(frozen=True)
class NormalScorePixels(Pixels):
    """Integers, dequantised, and made normal by the distribution of the first images' values.

    For images of which much is one value, as a black background: an affine coupling cannot make a
    narrow spike normal, and this map makes it wide.
    """

    smoothing: float = 0.01
    """Least part of the probability that all values share; with few pixels it is more."""
    levels: int | None = 256
    """Values a pixel can have; None for float data, taken as it is."""
    dequantizer: Dequantizer = UniformDequantizer()
    """Noise that makes real numbers of the integers."""

    def scaling(self, shape: Shape, levels: int) -> list[Transform]:
        return [NormalScores(shape, levels, smoothing=self.smoothing)]
