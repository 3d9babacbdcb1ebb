"""Mixer layers as a part: MixerFlow is made of them, and other models take them for their units."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Literal

from mixerflow.core import Along, Chain, Inverse, Shape, Transform, Window
from mixerflow.parts.base import PositiveCounts
from mixerflow.parts.images import MixerAddition, PositionalEncoding
from mixerflow.parts.linear import LinearMap, LUMap, SameMap
from mixerflow.parts.patching import Cut, Patching, patchify, window_of
from mixerflow.parts.rows import RowCoupling, RowFlow
from mixerflow.registry import register
from mixerflow.transforms import ActNorm, BatchNorm, KernelChain, MixerLayer, Roll


@dataclass(frozen=True)
class MixerLayers(PositiveCounts):
    """Settings of mixer layers, which map an image to an image; the defaults are the paper's.

    A layer patchifies the image, transforms each row of the patch matrix ``(patches, channels)`` by
    the same channel flow and each column by the same patch flow, and undoes the cut.
    """

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
    patch_flow_layers: int | None = None
    """Number of (linear map, flow, ActNorm) in each patch flow, if it is another than that of the
    channel flows."""

    def mixer_layer(self, shape: Shape, number: int, *, layers: int, context: int = 0) -> Transform:
        """Return layer `number`, from 1, of a model of so many layers, for images `shape`.

        A layer that shifts the patches is a mixer layer on a window of the image. `context` is the
        length of the context that conditioners read.
        """
        cut, size, shift = self.patching.of(shape, number, layers)
        if self.patching.cyclic and any(shift):
            roll = Roll(shape, shift)
            mixed = self._mixed(shape, cut, size, context)
            return MixerLayer(roll, *mixed, Inverse(roll, shape))
        window = window_of(shape, cut, size, shift)
        if window is None:
            return MixerLayer(*self._mixed(shape, cut, size, context))
        return Window(*window, MixerLayer(*self._mixed((shape[0], *window[1]), cut, size, context)))

    def require_even_reversals(self, shape: Shape, layers: int) -> None:
        """Raise a ValueError if order reversals shuffle the positions that shift layers rely on."""
        reverses = self.linear.reverses or self._patch_linear.reverses
        several_cuts = len(self.patching.kinds(shape, layers)) > 1
        odd = self.flow_layers % 2 or self._patch_depth % 2
        if several_cuts and reverses and odd:
            raise ValueError(
                "an odd number of order reversals before a shift layer would shuffle the positions "
                "it relies on: use lu, an even flow_layers, or patching.shift 0"
            )

    def _mixed(self, shape: Shape, cut: Cut, size: Shape, given: int) -> list[Transform]:
        """Return the steps that cut, mix channels, mix patches and undo the cut."""
        to_patches = patchify(shape, cut, size)
        patches, channels = to_patches.matrix
        steps: list[Transform] = [
            to_patches,
            self._vector_flow(
                self.linear, self.flow_layers, dim=-1, n=channels, rows=patches, given=given
            ),
            self._vector_flow(
                self._patch_linear, self._patch_depth, dim=-2, n=patches, rows=channels, given=given
            ),
        ]
        if self.beside is not None:
            steps += self.beside.on_patches(patches, channels, given)
        steps.append(Inverse(to_patches, shape))
        if self.beside is not None:
            steps += self.beside.on_image(shape, given)
        return steps

    @property
    def _patch_linear(self) -> LinearMap:
        return self.linear if isinstance(self.patch_linear, SameMap) else self.patch_linear

    @property
    def _patch_depth(self) -> int:
        return self.flow_layers if self.patch_flow_layers is None else self.patch_flow_layers

    def _vector_flow(
        self, linear: LinearMap, depth: int, *, dim: int, n: int, rows: int, given: int
    ) -> Transform:
        """Return a channel flow (``dim=-1``) or patch flow (``dim=-2``) of vectors of length n.

        The flows read a context of length `given`, and the positional encoding.
        """
        encoding = self.positions
        context = given + (encoding.width if encoding else 0)

        def along(*steps: Transform) -> Transform:
            return Along(dim, KernelChain(*steps), rows=encoding.build(rows) if encoding else None)

        layers = []
        for number in range(depth):
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


@register("mixing")
@dataclass(frozen=True)
class Mixing(MixerLayers):
    """Mixer layers as a part of another model."""
