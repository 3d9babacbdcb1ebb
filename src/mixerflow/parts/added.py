"""Channels of noise beside the image, as values: they let a flow be wider than the image.

References:
    Huang et al., Augmented normalizing flows (2020), eq. 3, arXiv:2002.07101.
    Chen et al., VFlow (2020), eq. 4, arXiv:2002.09741.
"""

from __future__ import annotations

from dataclasses import dataclass

from mixerflow.core import Shape
from mixerflow.parts.base import PositiveCounts
from mixerflow.parts.image_nets import ImageNet, WideningConv
from mixerflow.registry import register
from mixerflow.transforms import Affine, Augment, Elementwise


@dataclass(frozen=True)
class AddedChannels(PositiveCounts):
    """Channels of noise that a model adds to the image."""

    channels: int = 3
    """How many channels."""

    def build(self, shape: Shape, *, context: int = 0) -> Augment:
        """Return the transform of images ``(C, *spatial)``, which appends the channels."""
        raise NotImplementedError


@register("normal")
@dataclass(frozen=True)
class NormalChannels(AddedChannels):
    """Standard normal noise."""

    def build(self, shape: Shape, *, context: int = 0) -> Augment:
        return Augment(shape, self.channels)


@register("conditional")
@dataclass(frozen=True)
class ConditionalChannels(AddedChannels):
    """Normal noise, each number of which is transformed as a net that reads the image says."""

    net: ImageNet = WideningConv()
    """The net."""
    elementwise: Elementwise = Affine(2.0)
    """Transform of each number of the noise."""

    def build(self, shape: Shape, *, context: int = 0) -> Augment:
        out = self.elementwise.params * self.channels
        net = self.net.build(shape[0], out, sides=shape[1:], context=context)
        return Augment(shape, self.channels, net, self.elementwise)
