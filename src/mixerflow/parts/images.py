"""Parts of image flows as values: Glow's step, positional encodings, attention, scales."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

from torch import nn

from mixerflow.core import Inverse, Layer, Shape, Transform
from mixerflow.nets import (
    GridPositionalEncoding,
    LearnedPositionalEncoding,
    SinusoidalPositionalEncoding,
)
from mixerflow.parts.base import Part, PositiveCounts
from mixerflow.parts.conditioners import Attention
from mixerflow.parts.image_nets import ConvNet, ImageNet, ZeroConvolution
from mixerflow.parts.linear import ImageMap, LinearMap, LUMap
from mixerflow.registry import register
from mixerflow.transforms import (
    ActNorm,
    Affine,
    Coupling,
    DiagonalAffine,
    Elementwise,
    MapAttention,
    NoSplit,
    Squeeze,
    TokenAttention,
    halves,
)


def require_halvable(shape: Shape, times: int, what: str) -> None:
    """Raise a ValueError, which names `what` halves images, unless sides halve so many times."""
    factor = 2 ** min(times, 64)  # no side has so many, and a file may name any number
    if any(side % factor for side in shape[1:]):
        sides = " x ".join(map(str, shape[1:]))
        wanted = f"sides must be multiples of {factor}; these are {sides}"
        raise ValueError(f"{what} divide each side by {factor}: {wanted}")


def image_coupling(
    net: ImageNet, elementwise: Elementwise, shape: Shape, *, flip: bool = False, context: int = 0
) -> Coupling:
    """Return a coupling that transforms half of an image's channels, given the other half."""
    given, changed = halves(shape[0], flip=flip)
    built = net.build(given, elementwise.params * changed, sides=shape[1:], context=context)
    return Coupling(0, built, elementwise, flip=flip)


def glow_step(
    net: ImageNet,
    elementwise: Elementwise,
    shape: Shape,
    *,
    linear: ImageMap,
    bias: bool = True,
    floor: float = 1.0,
    flip: bool = False,
    context: int = 0,
) -> list[Transform]:
    """Return ActNorm, `linear`, such as a 1x1 convolution, and coupling of ``(C, *spatial)``.

    `floor` is the lower bound of the standard deviations that ActNorm's start from data divides by.
    """
    channels, axes = shape[0], len(shape) - 1
    steps: list[Transform] = [ActNorm((channels, *(1,) * axes), floor=floor)]
    steps += linear.on_image(shape, bias=bias)
    if channels > 1:
        steps.append(image_coupling(net, elementwise, shape, flip=flip, context=context))
    return steps


class Prior:
    """A learned Gaussian of the last latents: an affine transform before the standard normal."""

    def build(self, shape: Shape, *, context: int = 0) -> Transform:
        """Return the transform of events ``(C, *spatial)``."""
        raise NotImplementedError


@register("activation")
@dataclass(frozen=True)
class ActivationPrior(Prior):
    """A mean and a scale for each number, which do not depend on the context."""

    def build(self, shape: Shape, *, context: int = 0) -> Transform:
        return DiagonalAffine(shape)


@register("convolution-of-zeros")
@dataclass(frozen=True)
class ConvolutionPrior(Prior):
    """A mean and a scale for each channel, given the context: outputs of a convolution of zeros."""

    net: ZeroConvolution = ZeroConvolution(factor=3.0, second_bias=False)
    """The convolution, whose weights for the zeros are unused, as in published code."""

    def build(self, shape: Shape, *, context: int = 0) -> Transform:
        channels = 2 * shape[0]
        net = self.net.build(channels, channels, sides=shape[1:], context=context)
        return Coupling(NoSplit((channels, *shape[1:])), net, Affine())


class MixerAddition:
    """Transforms that a mixer layer may have besides its mixing."""

    def on_patches(self, patches: int, channels: int, context: int) -> list[Transform]:
        """Return transforms of the patch matrix ``(patches, channels)``."""
        return []

    def on_image(self, shape: Shape, context: int) -> list[Transform]:
        """Return transforms of the image, which follow the mixing."""
        return []


@register
@dataclass(frozen=True)
class GlowSteps(PositiveCounts, MixerAddition):
    """Pairs of Glow's steps on the squeezed image, one step for each half of the channels."""

    pairs: int = 1
    """Number of pairs."""
    elementwise: Elementwise = Affine()
    """Transform of each number of the changed half."""
    net: ImageNet = ConvNet()
    """Net that reads the other half."""
    linear: LinearMap = LUMap()
    """The 1x1 convolution."""
    squeeze: int = 2
    """Side of the squares that are squeezed into channels, if it divides the image's sides."""

    def on_image(self, shape: Shape, context: int) -> list[Transform]:
        """Return one layer for each pair."""
        return [self._pair(shape, context) for _ in range(self.pairs)]

    def _pair(self, shape: Shape, context: int) -> Transform:
        divides = all(side % self.squeeze == 0 for side in shape[1:])
        squeeze = Squeeze(shape, self.squeeze if divides else 1)
        step = functools.partial(glow_step, self.net, self.elementwise, squeeze.latent_shape)
        steps: list[Transform] = []
        for flip in (False, True):
            steps += step(linear=self.linear, flip=flip, context=context)
        return Layer(squeeze, *steps, Inverse(squeeze, shape))


@register("attention")
@dataclass(frozen=True)
class PatchAttention(MixerAddition):
    """Two couplings, one for each half of the channels, in which every patch reads all patches."""

    elementwise: Elementwise = Affine()
    """Transform of each number of the changed half."""
    net: Attention = Attention()
    """Net that reads the other half."""

    def on_patches(self, patches: int, channels: int, context: int) -> list[Transform]:
        steps: list[Transform] = []
        for flip in (False, True) if channels > 1 else ():  # one number has no halves
            given, changed = halves(channels, flip=flip)
            out = self.elementwise.params * changed
            net = self.net.build(given, out, tokens=patches, context=context)
            steps.append(Coupling(-1, net, self.elementwise, flip=flip))
        return steps


@register
@dataclass(frozen=True)
class InvertibleAttention(MixerAddition):
    """Invertible map and token attention between the patches."""

    def on_patches(self, patches: int, channels: int, context: int) -> list[Transform]:
        steps: list[Transform] = []
        for flip in (False, True) if channels > 1 else ():
            steps += [MapAttention(channels, flip=flip), TokenAttention(channels, flip=flip)]
        return steps


@dataclass(frozen=True)
class PositionalEncoding(PositiveCounts, Part):
    """A positional encoding: tells a row flow which row of an event it transforms."""

    width: int = 16
    """Length of a row's vector."""

    def build(self, rows: int) -> nn.Module:
        """Return a module without arguments whose output is ``(rows, width)``."""
        return self.make(rows)

    def on_grid(self, sides: Shape) -> nn.Module:
        """Return the encoding of the places of a grid, in row-major order."""
        return self.build(math.prod(sides))


@register("learned")
@dataclass(frozen=True)
class LearnedEncoding(PositionalEncoding):
    """A learned vector for each row."""

    makes = LearnedPositionalEncoding


@register("sinusoidal")
@dataclass(frozen=True)
class SinusoidalEncoding(PositionalEncoding):
    """Sines and cosines of the row's index."""

    makes = SinusoidalPositionalEncoding


@register("grid")
@dataclass(frozen=True)
class GridEncoding(PositionalEncoding):
    """Sines and cosines of each coordinate of a place; of plain rows, of the row's index."""

    makes = GridPositionalEncoding

    def build(self, rows: int) -> nn.Module:
        return self.on_grid((rows,))

    def on_grid(self, sides: Shape) -> nn.Module:
        return self.makes(sides, self.width)


@register
@dataclass(frozen=True)
class Scales(PositiveCounts):
    """Several scales among which the layers are shared out.

    After each scale but the last, the image is squeezed and half of its channels are factored out:
    they are scored under a Gaussian given the other half, which is an affine coupling before a
    standard normal.
    """

    count: int = 2
    """Number of scales."""
    elementwise: Elementwise = Affine()
    """Transform of the half that is factored out."""
    net: ImageNet = ConvNet()
    """Net that reads the other half."""

    def step(self, shape: Shape, context: int) -> Transform:
        """Return the last layer of a scale of events `shape`; then the first channels leave."""
        squeeze = Squeeze(shape)
        net, elementwise, inner = self.net, self.elementwise, squeeze.latent_shape
        return Layer(squeeze, image_coupling(net, elementwise, inner, flip=True, context=context))
