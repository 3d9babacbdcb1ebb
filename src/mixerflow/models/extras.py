"""What may stand beside the mixing of a MixerFlow: convolutions, attention, several scales."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, cast

from torch import nn

from mixerflow.core import Along, Inverse, Layer, Shape, Transform
from mixerflow.models.steps import LAWS
from mixerflow.nets import AttentionNet, DenseConvNet, ResidualConvNet
from mixerflow.transforms import (
    LU,
    ActNorm,
    Affine,
    Coupling,
    MapAttention,
    Squeeze,
    TokenAttention,
    halves,
)

if TYPE_CHECKING:
    from mixerflow.models.mixerflow import MixerFlowConfig

ExtraName = Literal["none", "convolution", "dense", "attention", "invertible-attention"]

ImageNet = Callable[["MixerFlowConfig", int, int, int], nn.Module]
"""Config, channels in and out, spatial axes."""


def convolutional(config: MixerFlowConfig, given: int, out: int, axes: int) -> nn.Module:
    """A residual block of convolutions."""
    return ResidualConvNet(
        given,
        out,
        width=config.hidden,
        norm=config.norm,
        squash=config.squash,
        context=config.context_width,
        axes=cast(Literal[1, 2, 3], axes),
    )


def dense(config: MixerFlowConfig, given: int, out: int, axes: int) -> nn.Module:
    """A densely connected block of convolutions."""
    return DenseConvNet(
        given,
        out,
        width=config.hidden,
        growth=max(1, config.hidden // 2),
        depth=3,
        norm=config.norm,
        squash=config.squash,
        context=config.context_width,
        axes=cast(Literal[1, 2, 3], axes),
    )


IMAGE_NETS: dict[str, ImageNet] = {"convolution": convolutional, "dense": dense}


def between_patches(config: MixerFlowConfig, patches: int, channels: int) -> list[Transform]:
    """On the patch matrix: attention, in which every patch can look at all, one half at a time."""
    steps: list[Transform] = []
    for flip in (False, True) if channels > 1 else ():  # one number has no halves
        if config.extra == "attention":
            law = LAWS[config.law](config)
            given, changed = halves(channels, flip=flip)
            net = AttentionNet(
                given,
                law.params * changed,
                width=config.hidden,
                heads=math.gcd(4, config.hidden),
                squash=config.squash,
                context=config.context_width,
                tokens=patches,
            )
            steps.append(Coupling(-1, net, law, flip=flip))
        elif config.extra == "invertible-attention":
            steps += [MapAttention(channels, flip=flip), TokenAttention(channels, flip=flip)]
    return steps


def behind_layer(config: MixerFlowConfig, shape: Shape) -> list[Transform]:
    """On the image: couplings whose nets are convolutions."""
    return [glow_steps(config, shape, config.extra)] if config.extra in IMAGE_NETS else []


def glow_steps(config: MixerFlowConfig, shape: Shape, net: str = "convolution") -> Transform:
    """Two of Glow's steps on the squeezed image, one a half of its channels.

    A step is ActNorm, 1x1 convolution, coupling. An image with an odd side is not squeezed.
    """
    even = all(side % 2 == 0 for side in shape[1:])
    squeeze = Squeeze(shape, 2 if even else 1)
    channels, axes = squeeze.given[0], len(shape) - 1
    steps: list[Transform] = []
    for flip in (False, True):
        steps += [ActNorm((channels, *(1,) * axes)), Along(0, LU(channels))]
        if channels > 1:
            law = LAWS[config.law](config)
            given, changed = halves(channels, flip=flip)
            conditioner = IMAGE_NETS[net](config, given, law.params * changed, axes)
            steps.append(Coupling(0, conditioner, law, flip=flip))
    return Layer(squeeze, *steps, Inverse(squeeze, shape))


def next_scale(config: MixerFlowConfig, shape: Shape) -> tuple[Transform, Shape]:
    """The last layer of a scale but the last, and the shape of the last channels, which go on.

    Squeezes; then the first half of the channels is scored under a Gaussian given the other half,
    which is an affine coupling before a standard normal.
    """
    squeeze = Squeeze(shape)
    channels, *spatial = squeeze.given
    given, changed = halves(channels, flip=True)
    law = Affine(config.scale_bound)
    net = convolutional(config, given, law.params * changed, len(spatial))
    return Layer(squeeze, Coupling(0, net, law, flip=True)), (given, *spatial)
