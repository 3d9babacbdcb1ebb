"""MixerFlow: an MLP-Mixer-shaped normalising flow, as section 4 of the paper has it.

    pixels -> dequantise -> 1x1 colour transform -> mixer layers -> N(0, I)

A mixer layer cuts the image into patches, which gives a patch matrix ``(patches, channels)``; runs
the same channel flow on each row; the same patch flow on each column; and puts the image back. A
flow is a few times (linear map, coupling, ActNorm). Every fourth layer is a shift layer: the same
layer on an inner window, whose patches straddle the borders of the others'.

References:
    English, Kirchler, Lippert: MixerFlow: MLP-Mixer meets Normalising Flows (2023), section 4,
    Tables 8 and 9. https://arxiv.org/abs/2310.16777

What the paper leaves open, and what we chose (the parameter counts of its Tables 1, 2 and 8 settle
the first three, within 0.5 %):
    - the residual block has two ``width x width`` linears, between a linear in and a linear out;
    - the linear blocks are LU with ``n^2`` numbers and a bias, one before each coupling;
    - "ActNorm to all activations" has one scale and shift a feature (a channel or a patch), shared
      by the rows; ``actnorm="activation"`` is the literal reading (13.1M parameters, not 11.34M);
    - couplings alternate halves; of an odd number the larger half conditions first;
    - a shift layer is a mixer layer with weights of its own;
    - pixels come as ``2 x / levels - 1``.

What follows each linear map, and what may stand beside the mixing, are parts (sections 5.3, 5.6 and
7, appendix D): `mixerflow.parts`.

Departs from the paper:
    - conditioners read ``sign(x) log(1 + |x|)`` of their half, and ActNorm's start never amplifies:
      without either, data whose pixels are almost always 0 reach NaN, see `docs/stability.md`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mixerflow.core import Along, Base, Chain, Inverse, MultiScale, Shape, Transform, Window
from mixerflow.parts.bases import BaseChoice, NormalBase
from mixerflow.parts.images import Beside, GlowSteps, PositionalEncoding, Scales
from mixerflow.parts.linear import LinearMap, LUMap, SameMap
from mixerflow.parts.model import Model, PositiveCounts
from mixerflow.parts.patching import Cut, Patching, box_of, cutting_of
from mixerflow.parts.rows import RowCoupling, RowFlow
from mixerflow.registry import register
from mixerflow.transforms import LU, ActNorm, BatchNorm, KernelChain, MixerLayer, Squeeze


@register("mixerflow")
@dataclass(frozen=True)
class MixerFlow(PositiveCounts, Model):
    """Everything that shapes a MixerFlow; the defaults are the paper's for 32x32 images."""

    layers: int = 30
    """Mixer layers, shift layers among them."""
    flow_layers: int = 4
    """(linear map, flow, ActNorm) in each channel flow and each patch flow."""
    patching: Patching = Patching()
    """How the layers cut the image."""
    flow: RowFlow = RowCoupling()
    """What follows each linear map."""
    linear: LinearMap = LUMap()
    """Linear block before each of these; an order reversal (rlu) comes in even numbers before a
    shift."""
    patch_linear: LinearMap | SameMap = SameMap()
    """Another one for the patch flows, whose vectors are as long as patches are many."""
    actnorm: Literal["feature", "activation", "batch"] = "feature"
    """One scale and shift a feature, or one for each number in the patch matrix; or, in place of
    all ActNorms, a batch-norm flow layer behind each channel flow and each patch flow."""
    positions: PositionalEncoding | None = None
    """How channel and patch flows are told which patch or channel they are at."""
    beside: Beside | None = None
    """What each mixer layer has besides."""
    glow: GlowSteps | None = None
    """Glow's steps before the mixer layers."""
    squeeze: int = 1
    """By how much space is squeezed into channels before the mixer layers; 1 for not at all."""
    scales: Scales | None = None
    """Several scales among which the layers are shared out; None for one."""
    base: BaseChoice = NormalBase()
    """Distribution of the latents."""
    colour: bool = True
    """Whether a linear map of each pixel's channels comes first."""

    def latents(self) -> Base:
        return self.base.build()

    def compose(self, shape: Shape) -> Transform:
        self._check(shape)
        steps = self.pixels.steps()
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
        at, each = shape, []
        for scale in range(scales.count):
            numbers = range(1, self.layers + 1)
            mine = [n for n in numbers if (n - 1) * scales.count // self.layers == scale]
            steps = [self.layer(at, number) for number in mine]
            if scale < scales.count - 1:
                steps.append(scales.step(at, self.context))
                channels, *spatial = steps[-1].out_shape(at)
                at = (channels // 2, *spatial)
            each.append(Chain(*steps))
        return MultiScale(shape, each, keep="last")

    def layer(self, shape: Shape, number: int) -> Transform:
        """Layer `number`, from 1: a mixer layer, or one on a window that shifts the patches."""
        cut, size, shift = self.patching.of(shape, number, self.layers)
        box = box_of(shape, cut, size, shift)
        if box is None:
            return self._mixer_layer(shape, cut, size)
        return Window(*box, self._mixer_layer((shape[0], *box[1]), cut, size))

    def _mixer_layer(self, shape: Shape, cut: Cut, size: Shape) -> Transform:
        """Cut, mix channels, mix patches, put back; then what stands beside."""
        cutting = cutting_of(shape, cut, size)
        patches, channels = cutting.matrix
        steps: list[Transform] = [
            cutting,
            self._mixing(self.linear, dim=-1, n=channels, rows=patches),
            self._mixing(self._patch_linear, dim=-2, n=patches, rows=channels),
        ]
        if self.beside is not None:
            steps += self.beside.on_patches(patches, channels, self.context)
        steps.append(Inverse(cutting, shape))
        if self.beside is not None:
            steps += self.beside.on_image(shape, self.context)
        return MixerLayer(*steps)

    @property
    def _patch_linear(self) -> LinearMap:
        return self.linear if isinstance(self.patch_linear, SameMap) else self.patch_linear

    def _mixing(self, linear: LinearMap, *, dim: int, n: int, rows: int) -> Transform:
        """A channel flow (``dim=-1``) or patch flow (``dim=-2``): a norm, then the flow layers.

        The norm is an ActNorm, here and after each layer; or a batch norm, after the last alone.
        """
        positions = self.positions
        context = self.context + (positions.width if positions else 0)

        def along(*steps: Transform) -> Transform:
            return Along(
                dim, KernelChain(*steps), rows=positions.build(rows) if positions else None
            )

        layers = []
        for number in range(self.flow_layers):
            mix = linear.build(n)
            flow = self.flow.build(
                n, flip=number % 2 == 1, reversed=linear.reverses, context=context
            )
            layers.append([step for step in (mix, flow) if step is not None])
        if self.actnorm == "batch":
            steps = [step for steps_of_layer in layers for step in steps_of_layer]
            return Chain(along(*steps), Along(dim, BatchNorm(n)))
        if self.actnorm == "activation":
            event = (rows, n) if dim == -1 else (n, rows)
            steps: list[Transform] = [ActNorm(event)]
            for steps_of_layer in layers:
                steps += [along(*steps_of_layer), ActNorm(event)]
            return Chain(*steps)
        steps = [ActNorm(n)]
        for steps_of_layer in layers:
            steps += [*steps_of_layer, ActNorm(n)]
        return along(*steps)

    def _check(self, shape: Shape) -> None:
        if self.scales is not None and self.scales.count > self.layers:
            raise ValueError(f"{self.scales.count} scales for {self.layers} layers")
        reverses = self.linear.reverses or self._patch_linear.reverses
        moves = len(self.patching.kinds(shape, self.layers)) > 1
        if moves and reverses and self.flow_layers % 2:
            raise ValueError(
                "an odd number of order reversals before a shift layer would shuffle the positions "
                "it relies on: use lu, an even flow_layers, or patching.shift 0"
            )
