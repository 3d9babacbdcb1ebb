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

import itertools
from dataclasses import dataclass
from typing import Literal

from mixerflow.core import Along, Base, Chain, Inverse, MultiScale, Shape, Transform, Window
from mixerflow.parts.base import PositiveCounts
from mixerflow.parts.bases import BaseChoice, NormalBase
from mixerflow.parts.images import GlowSteps, MixerAddition, PositionalEncoding, Scales
from mixerflow.parts.linear import LinearMap, LUMap, SameMap
from mixerflow.parts.model import Model
from mixerflow.parts.patching import Cut, Patching, patchify, window_of
from mixerflow.parts.rows import RowCoupling, RowFlow
from mixerflow.registry import register
from mixerflow.transforms import LU, ActNorm, BatchNorm, KernelChain, MixerLayer, Squeeze


@register("mixerflow")
@dataclass(frozen=True)
class MixerFlow(PositiveCounts, Model):
    """Settings of a MixerFlow; the defaults are the paper's for 32x32 images."""

    layers: int = 30
    """Mixer layers, shift layers included."""
    flow_layers: int = 4
    """Number of (linear map, flow, ActNorm) in each channel flow and each patch flow."""
    patching: Patching = Patching()
    """How the layers patchify the image."""
    flow: RowFlow = RowCoupling()
    """Flow after each linear map."""
    linear: LinearMap = LUMap()
    """Linear map before each flow; order reversals (rlu) must be even in number before a shift."""
    patch_linear: LinearMap | SameMap = SameMap()
    """Linear map of the patch flows, whose vectors have one entry for each patch."""
    actnorm: Literal["feature", "activation", "batch"] = "feature"
    """One scale and shift for each feature, or for each number in the patch matrix; or, in place of
    all ActNorms, a batch-norm flow layer after each channel flow and each patch flow."""
    positions: PositionalEncoding | None = None
    """Positional encoding of patches and channels, which the flows read; None for none."""
    beside: MixerAddition | None = None
    """Transforms that each mixer layer has besides its mixing; None for none."""
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
        steps = self.pixel_steps(shape)
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
        cut, size, shift = self.patching.of(shape, number, self.layers)
        window = window_of(shape, cut, size, shift)
        if window is None:
            return self._mixer_layer(shape, cut, size)
        return Window(*window, self._mixer_layer((shape[0], *window[1]), cut, size))

    def _mixer_layer(self, shape: Shape, cut: Cut, size: Shape) -> Transform:
        """Return a layer that cuts, mixes channels, mixes patches and undoes the cut."""
        to_patches = patchify(shape, cut, size)
        patches, channels = to_patches.matrix
        steps: list[Transform] = [
            to_patches,
            self._vector_flow(self.linear, dim=-1, n=channels, rows=patches),
            self._vector_flow(self._patch_linear, dim=-2, n=patches, rows=channels),
        ]
        if self.beside is not None:
            steps += self.beside.on_patches(patches, channels, self.context)
        steps.append(Inverse(to_patches, shape))
        if self.beside is not None:
            steps += self.beside.on_image(shape, self.context)
        return MixerLayer(*steps)

    @property
    def _patch_linear(self) -> LinearMap:
        return self.linear if isinstance(self.patch_linear, SameMap) else self.patch_linear

    def _vector_flow(self, linear: LinearMap, *, dim: int, n: int, rows: int) -> Transform:
        """Return a channel flow (``dim=-1``) or patch flow (``dim=-2``) of vectors of length n."""
        encoding = self.positions
        context = self.context + (encoding.width if encoding else 0)

        def along(*steps: Transform) -> Transform:
            return Along(dim, KernelChain(*steps), rows=encoding.build(rows) if encoding else None)

        layers = []
        for number in range(self.flow_layers):
            mix, flip = linear.build(n), number % 2 == 1
            flow = self.flow.build(n, flip=flip, reversed=linear.reverses, context=context)
            layers.append([step for step in (mix, flow) if step is not None])
        if self.actnorm == "batch":
            return Chain(along(*itertools.chain(*layers)), Along(dim, BatchNorm(n)))
        if self.actnorm == "activation":
            event = (rows, n) if dim == -1 else (n, rows)
            steps: list[Transform] = [ActNorm(event)]
            for layer in layers:
                steps += [along(*layer), ActNorm(event)]
            return Chain(*steps)
        steps = [ActNorm(n)]
        for layer in layers:
            steps += [*layer, ActNorm(n)]
        return along(*steps)

    def _check(self, shape: Shape) -> None:
        if self.scales is not None and self.scales.count > self.layers:
            raise ValueError(f"{self.scales.count} scales for {self.layers} layers")
        reverses = self.linear.reverses or self._patch_linear.reverses
        several_cuts = len(self.patching.kinds(shape, self.layers)) > 1
        if several_cuts and reverses and self.flow_layers % 2:
            raise ValueError(
                "an odd number of order reversals before a shift layer would shuffle the positions "
                "it relies on: use lu, an even flow_layers, or patching.shift 0"
            )
