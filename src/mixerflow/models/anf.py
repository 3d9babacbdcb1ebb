"""Augmented normalizing flow: noise beside the image, each of the two transformed given the other.

    pixels -> learned dequantisation -> add noise e -> L times [squeeze -> K steps -> factor out
    half of x and half of e] -> N(0, I)

A step is ActNorm, a 1x1 convolution of the channels of x and one of those of e, and two couplings:

    encoder step    e' = s(x) e + m(x)
    decoder step    x' = s(e') x + m(e')

log p(x) is at least ``E [log p(x, e) - log q(e)]``, e ~ q. One step without ActNorm and 1x1
convolutions is a variational autoencoder: the encoder step draws from the posterior
``N(m(x), s(x)^2)``, the decoder step scores x under ``N(-m(e') / s(e'), s(e')^-2)``, and the bound
is the evidence lower bound.

Factored-out channels are scored under a Gaussian given the channels that go on, of x and of e.

References:
    Huang, Dinh, Courville: Augmented normalizing flows: bridging the gap between generative flows
    and latent variable models (2020), sections 3 and 4, arXiv:2002.07101.
    Kingma, Dhariwal, Glow (2018), arXiv:1807.03039: the scales, the nets and the 1x1 convolutions.

The paper's models have neither released code nor counts of parameters; the defaults are ours:
3 scales of 8 steps, 3 channels of noise and nets of width 512, 33,731,840 parameters at 3x32x32, in
the size of Flow++ and VFlow.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from mixerflow.core import Chain, Layer, Shape, Transform
from mixerflow.models.glow import Glow
from mixerflow.parts.added import AddedChannels, NormalChannels
from mixerflow.parts.image_nets import GlowConv, ImageNet
from mixerflow.parts.pixels import Pixels, ScaledPixels, VariationalDequantizer
from mixerflow.registry import register
from mixerflow.transforms import ActNorm, Affine, Coupling, EachPart, Elementwise, Leading, Roll


@register("anf")
@dataclass(frozen=True)
class ANF(Glow):
    """Settings of an augmented normalizing flow: those of a Glow, with other steps."""

    steps: int = 8
    """Steps of each scale, K: an encoder step and a decoder step each."""
    elementwise: Elementwise = Affine(2.0)
    """Transform of the noise given the image, and of the image given the noise."""
    net: ImageNet = GlowConv()
    """Net of the couplings, which reads the image or the noise."""
    flip: bool = False
    """Whether the decoder step comes first."""
    pixels: Pixels = field(
        default=ScaledPixels(-0.5, 0.5, dequantizer=VariationalDequantizer()), kw_only=True
    )
    """How an image's values become real numbers."""
    added: AddedChannels = field(default=NormalChannels(), kw_only=True)
    """Channels of noise beside the image, which the model cannot do without."""

    def steps_of(self, shape: Shape, scale: int) -> list[Transform]:
        """Return the steps of a scale; after all but the last, half of x and of e come first."""
        steps = super().steps_of(shape, scale)
        if scale < self.scales - 1:
            roll = Roll(shape, (0,) * (len(shape) - 1), channels=self.of_image(shape, scale) // 2)
            steps.append(roll)
        return steps

    def step(self, shape: Shape, scale: int) -> Transform:
        """Return a step of a scale, numbered from 0, as one layer."""
        x = self.of_image(shape, scale)
        e, sides = shape[0] - x, shape[1:]
        mixes = (
            Chain(*self.linear_at(scale).on_image((n, *sides), bias=self.bias)) for n in (x, e)
        )
        couplings = (self.coupling(Leading(x, flip), shape) for flip in (self.flip, not self.flip))
        norm = ActNorm((shape[0], *(1,) * len(sides)), floor=self.floor)
        return Layer(norm, EachPart(Leading(x), *mixes), *couplings)

    def coupling(self, split: Leading, shape: Shape) -> Coupling:
        """Return the coupling of events ``(C, *spatial)`` that changes the part that `split` says.

        An encoder step conditions on the leading channels, x, and a decoder step on the others.
        """
        given, changed = split.sizes(shape[0])
        out = self.elementwise.params * changed
        net = self.net.build(given, out, sides=shape[1:], context=self.context)
        return Coupling(split, net, self.elementwise)

    def of_image(self, shape: Shape, scale: int) -> int:
        """Return how many channels of events of a scale, numbered from 0, are of the image.

        A squeeze makes 2^axes channels of each, and half of them go on to the next scale.
        """
        if not isinstance(self.added, AddedChannels):
            raise ValueError(f"ANF: added must be channels of noise; got {self.added!r}")
        axes = len(shape) - 1
        noise = self.added.channels * 2 ** (axes + scale * (axes - 1))
        if noise >= shape[0]:
            what = f"{shape[0]} channels of scale {scale + 1}, and {noise} of them are added"
            raise ValueError(f"ANF: {what}: compose takes the channels of the image and of noise")
        return shape[0] - noise
