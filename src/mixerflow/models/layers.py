"""The layers of a MixerFlow: each maps an image to an image."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from mixerflow.core import Along, Chain, Inverse, Shape, Transform, Window
from mixerflow.models.steps import flow_layer
from mixerflow.transforms import ActNorm, Bands, Dilated, Patches, Rows, Stripes

if TYPE_CHECKING:
    from mixerflow.models.mixerflow import MixerFlowConfig

CutName = Literal["patches", "stripes", "bands", "dilated"]

CUTS: dict[str, Callable[[Shape, Shape], Patches]] = {
    "patches": Patches,
    "dilated": Dilated,
    "stripes": lambda shape, patch: Stripes(shape, patch[0]),
    "bands": lambda shape, patch: Bands(shape, patch[-1]),
}


def layer(config: MixerFlowConfig, shape: Shape, number: int) -> Transform:
    """Layer `number`, from 1: a mixer layer, or one on a window that shifts its patches' grid.

    The window is ``[s : n - p + s)`` of each spatial axis of n pixels, for shift s and patch p; the
    frame (s pixels before, p - s behind) passes untouched. An axis that a single patch spans, as
    stripes do, is not shifted.
    """
    cut = config.cut_of(number)
    patch, shift = config.patch_of(shape, number), config.shift_of(shape, number)
    if not any(shift):
        return mixer_layer(config, shape, cut=cut, patch=patch)
    spans = CUTS[cut](shape, patch).patch
    sides = zip(shape[1:], spans, shift, strict=True)
    box = [(s, n - p) if s and n > p else (0, n) for n, p, s in sides]
    start, size = zip(*box, strict=True)
    inner = mixer_layer(config, (shape[0], *size), cut=cut, patch=patch)
    return Window(start, size, inner)


def mixer_layer(config: MixerFlowConfig, shape: Shape, *, cut: CutName, patch: Shape) -> Transform:
    """Cut, mix channels, mix patches, put back."""
    cutting = CUTS[cut](shape, patch)
    patches, channels = cutting.matrix
    return Chain(
        cutting,
        mixing(config, dim=-1, n=channels, rows=patches),
        mixing(config, dim=-2, n=patches, rows=channels),
        Inverse(cutting, shape),
    )


def mixing(config: MixerFlowConfig, *, dim: int, n: int, rows: int) -> Transform:
    """A channel flow (``dim=-1``) or patch flow (``dim=-2``): ActNorm, then the flow layers."""
    linear = config.linear if dim == -1 else config.patch_linear or config.linear
    layers = [flow_layer(config, n, linear, flip=i % 2 == 1) for i in range(config.flow_layers)]
    if config.actnorm == "feature":
        steps: list[Transform] = [ActNorm(n)]
        for steps_of_layer in layers:
            steps += [*steps_of_layer, ActNorm(n)]
        return Along(dim, Rows(*steps))
    event = (rows, n) if dim == -1 else (n, rows)
    steps = [ActNorm(event)]
    for steps_of_layer in layers:
        steps += [Along(dim, Rows(*steps_of_layer)), ActNorm(event)]
    return Chain(*steps)
