"""MixerFlow: an MLP-Mixer-shaped normalising flow, as section 4 of the paper has it.

    pixels -> dequantise -> 1x1 colour transform -> mixer layers -> N(0, I)

A mixer layer patchifies the image, which gives a patch matrix ``(patches, channels)``; transforms
each row by the same channel flow, and each column by the same patch flow; and undoes the cut. A
flow is a few times (linear map, coupling, ActNorm). Every fourth layer is a shift layer: the same
layer on an inner window, whose patches straddle the borders of the other layers' patches.

Reference: English et al., MixerFlow: MLP-Mixer meets Normalising Flows (2023), section 4, Tables 8
    and 9, arXiv:2310.16777.

The paper leaves open, and we chose (the parameter counts of its Tables 1, 2 and 8 settle the first
three points, within 0.5 %):
    - the residual block has two ``width x width`` linears, between a linear in and a linear out;
    - the linear blocks are LU with ``n^2`` numbers and a bias, one before each coupling;
    - "ActNorm to all activations" has one scale and shift a feature (a channel or a patch), shared
      by the rows; ``actnorm="activation"`` is the literal reading (13.1M parameters, not 11.34M);
    - couplings alternate halves; of an odd number the larger half conditions first;
    - a shift layer is a mixer layer with weights of its own;
    - pixels come as ``2 x / levels - 1``.

The flow after each linear map, and additions to the mixing (sections 5.3, 5.6 and 7, appendix D),
are parts: `mixerflow.parts`.

Departs from the paper:
    - conditioners read ``sign(x) log(1 + |x|)`` of their half, and ActNorm's start never amplifies:
      without these changes, data whose pixels are almost always 0 lead to NaN, see
      `docs/stability.md`.
"""

from __future__ import annotations

from dataclasses import dataclass

from mixerflow.core import Along, Base, Chain, MultiScale, Shape, Transform
from mixerflow.parts.bases import BaseChoice, NormalBase
from mixerflow.parts.images import GlowSteps, Scales
from mixerflow.parts.mixing import MixerLayers
from mixerflow.parts.model import Model
from mixerflow.registry import register
from mixerflow.transforms import LU, Squeeze


@register("mixerflow")
@dataclass(frozen=True)
class MixerFlow(MixerLayers, Model):
    """Settings of a MixerFlow; the defaults are the paper's for 32x32 images."""

    layers: int = 30
    """Mixer layers, shift layers included."""
    glow: GlowSteps | None = None
    """Glow's steps before the mixer layers; None for none."""
    squeeze: int = 1
    """Side of the squares that are squeezed into channels before the mixer layers; 1 for none."""
    scales: Scales | None = None
    """Several scales among which the layers are shared out; None for one scale."""
    base: BaseChoice = NormalBase()
    """Distribution of the latents."""
    colour: bool = True
    """Whether the first transform is a linear map of each pixel's channels."""

    def latents(self) -> Base:
        return self.base.build()

    def compose(self, shape: Shape) -> Transform:
        self._check(shape)
        steps: list[Transform] = []
        if self.colour:
            steps.append(Along(0, LU(shape[0], bias=False)))
        inner = shape
        if self.squeeze > 1:
            squeeze = Squeeze(shape, self.squeeze)
            steps.append(squeeze)
            inner = squeeze.latent_shape
        if self.glow is not None:
            steps += self.glow.on_image(inner, self.context)
        if self.scales is None:
            steps += [self.layer(inner, number) for number in range(1, self.layers + 1)]
        else:
            steps.append(self._multiscale(self.scales, inner))
        return Chain(*steps)

    def _multiscale(self, scales: Scales, shape: Shape) -> Transform:
        inner, chains = shape, []
        for scale in range(scales.count):
            numbers = range(1, self.layers + 1)
            own = [n for n in numbers if (n - 1) * scales.count // self.layers == scale]
            steps = [self.layer(inner, number) for number in own]
            if scale < scales.count - 1:
                steps.append(scales.step(inner, self.context))
                channels, *spatial = steps[-1].out_shape(inner)
                inner = (channels // 2, *spatial)
            chains.append(Chain(*steps))
        return MultiScale(shape, chains, keep="last")

    def layer(self, shape: Shape, number: int) -> Transform:
        """Return layer `number`, from 1: a mixer layer, on a window if it shifts the patches."""
        return self.mixer_layer(shape, number, layers=self.layers, context=self.context)

    def _check(self, shape: Shape) -> None:
        if self.scales is not None and self.scales.count > self.layers:
            raise ValueError(f"{self.scales.count} scales for {self.layers} layers")
        self.require_even_reversals(shape, self.layers)
