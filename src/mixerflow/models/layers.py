"""The layers of a MixerFlow: each maps an image to an image."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from torch import nn

from mixerflow.core import Along, Chain, Inverse, Shape, Transform, Window
from mixerflow.models.extras import behind_layer, between_patches
from mixerflow.models.steps import flow_layer
from mixerflow.nets import LearnedPositions, SinusoidalPositions
from mixerflow.transforms import (
    ActNorm,
    Bands,
    BatchNorm,
    Dilated,
    Mixer,
    Patches,
    Rows,
    Stripes,
)

if TYPE_CHECKING:
    from mixerflow.models.mixerflow import MixerFlowConfig

CutName = Literal["patches", "stripes", "bands", "dilated"]

CUTS: dict[str, Callable[[Shape, Shape], Patches]] = {
    "patches": Patches,
    "dilated": Dilated,
    "stripes": lambda shape, patch: Stripes(shape, patch[0]),
    "bands": lambda shape, patch: Bands(shape, patch[-1]),
}

PositionName = Literal["none", "learned", "sinusoidal"]

POSITIONS: dict[str, Callable[[int, int], nn.Module | None]] = {
    "none": lambda rows, width: None,
    "learned": LearnedPositions,
    "sinusoidal": SinusoidalPositions,
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
    sides = list(zip(shape[1:], patch, shift, strict=True))
    if cut == "patches" and any(s and n == p for n, p, s in sides):
        raise ValueError(f"images {shape} are one patch {patch} wide: use shift 0 on that axis")
    sides = zip(shape[1:], spans, shift, strict=True)
    box = [(s, n - p) if s and n > p else (0, n) for n, p, s in sides]
    start, size = zip(*box, strict=True)
    inner = mixer_layer(config, (shape[0], *size), cut=cut, patch=patch)
    return Window(start, size, inner)


def mixer_layer(config: MixerFlowConfig, shape: Shape, *, cut: CutName, patch: Shape) -> Transform:
    """Cut, mix channels, mix patches, put back; then what `extra` adds."""
    cutting = CUTS[cut](shape, patch)
    patches, channels = cutting.matrix
    steps: list[Transform] = [
        cutting,
        mixing(config, dim=-1, n=channels, rows=patches),
        mixing(config, dim=-2, n=patches, rows=channels),
    ]
    steps += between_patches(config, patches, channels)
    steps += [Inverse(cutting, shape), *behind_layer(config, shape)]
    return Mixer(*steps)


def mixing(config: MixerFlowConfig, *, dim: int, n: int, rows: int) -> Transform:
    """A channel flow (``dim=-1``) or patch flow (``dim=-2``): a norm, then the flow layers.

    The norm is an ActNorm, here and after each layer; or a batch norm, after the last layer alone.
    """
    linear = config.linear if dim == -1 else config.patch_linear or config.linear
    context = config.context_width
    if config.positions != "none":
        context += config.position_width

    def along(*steps: Transform) -> Transform:
        places = POSITIONS[config.positions](rows, config.position_width)
        return Along(dim, Rows(*steps), rows=places)

    layers = [
        flow_layer(config, n, linear, flip=i % 2 == 1, context=context)
        for i in range(config.flow_layers)
    ]
    if config.actnorm == "activation":
        event = (rows, n) if dim == -1 else (n, rows)
        steps: list[Transform] = [ActNorm(event)]
        for steps_of_layer in layers:
            steps += [along(*steps_of_layer), ActNorm(event)]
        return Chain(*steps)
    if config.actnorm == "batch":
        steps = [step for steps_of_layer in layers for step in steps_of_layer]
        return Chain(along(*steps), Along(dim, BatchNorm(n)))
    steps = [ActNorm(n)]
    for steps_of_layer in layers:
        steps += [*steps_of_layer, ActNorm(n)]
    return along(*steps)
