"""What flows of images share, as values: Glow's step, positions, attention, scales."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from mixerflow.core import Along, Inverse, Layer, Shape, Transform
from mixerflow.nets import LearnedPositionalEncoding, SinusoidalPositionalEncoding
from mixerflow.parts.conditioners import Attention, ConvNet, ImageNet
from mixerflow.parts.convolutions import ZeroConvolution
from mixerflow.parts.linear import LinearMap, LUMap
from mixerflow.parts.model import PositiveCounts
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


def image_coupling(
    net: ImageNet, elementwise: Elementwise, shape: Shape, *, flip: bool = False, context: int = 0
) -> Coupling:
    """Half of an image's channels is transformed, given the other half."""
    given, changed = halves(shape[0], flip=flip)
    built = net.build(given, elementwise.params * changed, context=context, axes=len(shape) - 1)
    return Coupling(0, built, elementwise, flip=flip)


def glow_step(
    net: ImageNet,
    elementwise: Elementwise,
    shape: Shape,
    *,
    linear: LinearMap,
    bias: bool = True,
    floor: float = 1.0,
    flip: bool = False,
    context: int = 0,
) -> list[Transform]:
    """ActNorm, 1x1 convolution and coupling of events ``(C, *spatial)``.

    Args:
        net: the coupling's conditioner.
        elementwise: what the coupling does.
        shape: of the events.
        linear: the 1x1 convolution.
        bias: whether that has one.
        floor: smallest standard deviation that ActNorm believes.
        flip: whether the coupling's halves are turned round.
        context: length of the context.
    """
    channels, axes = shape[0], len(shape) - 1
    steps: list[Transform] = [ActNorm((channels, *(1,) * axes), floor=floor)]
    mix = linear.build(channels, bias=bias)
    if mix is not None:
        steps.append(Along(0, mix))
    if channels > 1:
        steps.append(image_coupling(net, elementwise, shape, flip=flip, context=context))
    return steps


class Prior:
    """A learned Gaussian of the last latents: an affine transform before the standard normal."""

    def build(self, shape: Shape, *, context: int = 0) -> Transform:
        """The transform of events ``(C, *spatial)``."""
        raise NotImplementedError


@register("activation")
@dataclass(frozen=True)
class ActivationPrior(Prior):
    """A mean and a scale for each number, without regard to the context."""

    def build(self, shape: Shape, *, context: int = 0) -> Transform:
        return DiagonalAffine(shape)


@register("convolution-of-zeros")
@dataclass(frozen=True)
class ConvolutionPrior(Prior):
    """A mean and a scale for each channel, given the context, by a convolution that reads zeros."""

    net: ZeroConvolution = ZeroConvolution(factor=3.0, second_bias=False)
    """The convolution, whose weights for the zeros idle, as in published code."""

    def build(self, shape: Shape, *, context: int = 0) -> Transform:
        channels, axes = 2 * shape[0], len(shape) - 1
        net = self.net.build(channels, channels, context=context, axes=axes)
        return Coupling(NoSplit((channels, *shape[1:])), net, Affine())


class Beside:
    """What a mixer layer may have besides its mixing."""

    def on_patches(self, patches: int, channels: int, context: int) -> list[Transform]:
        """Transforms of the patch matrix ``(patches, channels)``."""
        return []

    def on_image(self, shape: Shape, context: int) -> list[Transform]:
        """Transforms of the image, behind the mixing."""
        return []


@register
@dataclass(frozen=True)
class GlowSteps(PositiveCounts, Beside):
    """Pairs of Glow's steps, one a half of the channels, on the squeezed image."""

    pairs: int = 1
    """How many pairs."""
    elementwise: Elementwise = Affine()
    """What happens to each number of a half."""
    net: ImageNet = ConvNet()
    """What reads the other half."""
    linear: LinearMap = LUMap()
    """The 1x1 convolution."""

    def on_image(self, shape: Shape, context: int) -> list[Transform]:
        """As many layers as pairs; an image with an odd side is not squeezed."""
        return [self._pair(shape, context) for _ in range(self.pairs)]

    def _pair(self, shape: Shape, context: int) -> Transform:
        even = all(side % 2 == 0 for side in shape[1:])
        squeeze = Squeeze(shape, 2 if even else 1)
        steps: list[Transform] = []
        for flip in (False, True):
            steps += glow_step(
                self.net,
                self.elementwise,
                squeeze.latent_shape,
                linear=self.linear,
                flip=flip,
                context=context,
            )
        return Layer(squeeze, *steps, Inverse(squeeze, shape))


@register("attention")
@dataclass(frozen=True)
class PatchAttention(Beside):
    """Couplings in which every patch looks at all patches, one half of their channels each."""

    elementwise: Elementwise = Affine()
    """What happens to each number of a half."""
    net: Attention = Attention()
    """What reads the other half."""

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
class InvertibleAttention(Beside):
    """Invertible map and token attention between the patches."""

    def on_patches(self, patches: int, channels: int, context: int) -> list[Transform]:
        steps: list[Transform] = []
        for flip in (False, True) if channels > 1 else ():
            steps += [MapAttention(channels, flip=flip), TokenAttention(channels, flip=flip)]
        return steps


class PositionalEncoding:
    """How a row flow is told which row of an event it transforms."""

    width: int

    def build(self, rows: int) -> nn.Module:
        """A module without arguments that gives ``(rows, width)``."""
        raise NotImplementedError


@register("learned")
@dataclass(frozen=True)
class LearnedEncoding(PositiveCounts, PositionalEncoding):
    """A learned vector for each row."""

    width: int = 16
    """Its length."""

    def build(self, rows: int) -> nn.Module:
        return LearnedPositionalEncoding(rows, self.width)


@register("sinusoidal")
@dataclass(frozen=True)
class SinusoidalEncoding(PositiveCounts, PositionalEncoding):
    """Sines and cosines of the row's number."""

    width: int = 16
    """How many."""

    def build(self, rows: int) -> nn.Module:
        return SinusoidalPositionalEncoding(rows, self.width)


@register
@dataclass(frozen=True)
class Scales(PositiveCounts):
    """Several scales among which the layers are shared out.

    From one to the next the image is squeezed, and half of its channels are done: they are scored
    under a Gaussian given the other half, which is an affine coupling before a standard normal.
    """

    count: int = 2
    """How many."""
    elementwise: Elementwise = Affine()
    """How the half that is done is transformed."""
    net: ImageNet = ConvNet()
    """What reads the half that goes on."""

    def step(self, shape: Shape, context: int) -> Transform:
        """The last layer of a scale of events `shape`, before its first channels are done."""
        squeeze = Squeeze(shape)
        coupling = image_coupling(
            self.net, self.elementwise, squeeze.latent_shape, flip=True, context=context
        )
        return Layer(squeeze, coupling)
