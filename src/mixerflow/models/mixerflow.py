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
    - the residual block has two ``hidden x hidden`` linears, between a linear in and a linear out;
    - the linear blocks are LU with ``n^2`` numbers and a bias, one before each coupling;
    - "ActNorm to all activations" has one scale and shift a feature (a channel or a patch), shared
      by the rows; ``actnorm="activation"`` is the literal reading (13.1M parameters, not 11.34M);
    - couplings alternate halves; of an odd number the larger half conditions first;
    - a shift layer is a mixer layer with weights of its own;
    - pixels come as ``2 x / levels - 1``.

Departs from the paper:
    - conditioners read ``sign(x) log(1 + |x|)`` of their half, and ActNorm's start never amplifies:
      without either, data whose pixels are almost always 0 reach NaN, see `docs/stability.md`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import nn

from mixerflow.core import Along, Chain, Flow, Inverse, Shape, Transform, Window
from mixerflow.nets import Norm, ResidualMLP
from mixerflow.transforms import (
    LU,
    RLU,
    ActNorm,
    Affine,
    Bands,
    Butterfly,
    Coupling,
    Dequantize,
    Dilated,
    Patches,
    Rescale,
    Rows,
    Stripes,
    Woodbury,
    halves,
)

CUTS: dict[str, Callable[[Shape, Shape], Patches]] = {
    "patches": Patches,
    "dilated": Dilated,
    "stripes": lambda shape, patch: Stripes(shape, patch[0]),
    "bands": lambda shape, patch: Bands(shape, patch[-1]),
}

Linear = Literal["LU", "RLU", "Woodbury", "Butterfly", "none"]

LINEARS: dict[str, Callable[[int, int], Transform]] = {
    "LU": lambda n, rank: LU(n),
    "RLU": lambda n, rank: RLU(n),
    "Woodbury": lambda n, rank: Woodbury(n, min(rank, n)),
    "Butterfly": lambda n, rank: Butterfly(n) if n > 1 else LU(n),  # one entry has no partner
}


@dataclass(frozen=True)
class MixerFlowConfig:
    """Everything that shapes a MixerFlow; the defaults are the paper's for 32x32 images."""

    layers: int = 30
    """Mixer layers, shift layers among them."""
    flow_layers: int = 4
    """(linear map, coupling, ActNorm) in each channel flow and each patch flow."""
    patch: int | tuple[int, ...] = 4
    """A patch's side, or its side on each spatial axis."""
    cut: Literal["patches", "stripes", "bands", "dilated"] = "patches"
    """Stripes take their height, bands their width, from `patch`."""
    shift: int | tuple[int, ...] = 1
    """Pixels by which shift layers move the grid; 0 for none."""
    shift_every: int = 4
    """Every how many layers one is a shift layer."""
    hidden: int = 128
    """Width of the couplings' residual blocks."""
    norm: Norm = "batch"
    """In the residual blocks; the paper has "batch"."""
    squash: bool = True
    """Whether the residual blocks read sign(x) log(1 + |x|); the paper's read x."""
    linear: Linear = "LU"
    """Linear block before each coupling; RLU, an order reversal, in even numbers before a shift."""
    patch_linear: Linear | None = None
    """Another one for the patch flows, whose vectors are as long as patches are many."""
    rank: int = 16
    """Of Woodbury blocks; those of shorter vectors have full rank."""
    actnorm: Literal["feature", "activation"] = "feature"
    """One scale and shift a feature, or one for each number in the patch matrix."""
    scale_bound: float | None = None
    """Bound of the couplings' log-scale; None is the paper's plain exponential."""
    colour: bool = True
    """Whether a linear map of each pixel's channels comes first."""
    levels: int | None = 256
    """Values a pixel can have; None for float data, taken as it is."""
    classes: int = 0
    """Number of classes of a class-conditional model; 0 for none."""
    class_width: int = 32
    """Length of a class's embedding."""

    def patch_of(self, shape: Shape) -> Shape:
        """The patch's side on each spatial axis of `shape`."""
        return _per_axis("patch", self.patch, len(shape) - 1)

    def shift_of(self, shape: Shape) -> Shape:
        """The shift on each spatial axis of `shape`."""
        return _per_axis("shift", self.shift, len(shape) - 1)


def build(config: MixerFlowConfig, shape: Shape) -> Flow:
    """A MixerFlow over images ``(C, *spatial)``, at its identity start.

    Raises:
        ValueError: patch or shift do not fit the images, or settings contradict each other.
    """
    _check(config, shape)
    context_net = nn.Embedding(config.classes, config.class_width) if config.classes else None
    steps: list[Transform] = []
    if config.levels is not None:
        steps += [Dequantize(config.levels), Rescale(2 / config.levels, -1.0)]
    if config.colour:
        steps.append(Along(0, LU(shape[0], bias=False)))
    for number in range(1, config.layers + 1):
        shifted = any(config.shift_of(shape)) and number % config.shift_every == 0
        layer = shift_layer if shifted else mixer_layer
        steps.append(layer(config, shape))
    return Flow(Chain(*steps), shape, context_net=context_net, levels=config.levels)


def mixer_layer(config: MixerFlowConfig, shape: Shape) -> Transform:
    """Cut, mix channels, mix patches, put back: an image to an image."""
    cut = CUTS[config.cut](shape, config.patch_of(shape))
    patches, channels = cut.matrix
    return Chain(
        cut,
        mixing(config, dim=-1, n=channels, rows=patches),
        mixing(config, dim=-2, n=patches, rows=channels),
        Inverse(cut, shape),
    )


def shift_layer(config: MixerFlowConfig, shape: Shape) -> Transform:
    """A mixer layer on the window ``[s : n - p + s)`` of each spatial axis of n pixels.

    The frame (s pixels before, p - s behind) passes untouched. An axis that a single patch spans,
    as stripes do, is not shifted.
    """
    cut = CUTS[config.cut](shape, config.patch_of(shape))
    sides = zip(shape[1:], cut.patch, config.shift_of(shape), strict=True)
    box = [(s, n - p) if s and n > p else (0, n) for n, p, s in sides]
    start, size = zip(*box, strict=True)
    return Window(start, size, mixer_layer(config, (shape[0], *size)))


def mixing(config: MixerFlowConfig, *, dim: int, n: int, rows: int) -> Transform:
    """A channel flow (``dim=-1``) or patch flow (``dim=-2``): ActNorm, then the flow layers."""
    linear = config.linear if dim == -1 else config.patch_linear or config.linear
    layers = [flow_layer(config, n, linear, flip=i % 2 == 1) for i in range(config.flow_layers)]
    if config.actnorm == "feature":
        steps: list[Transform] = [ActNorm(n)]
        for layer in layers:
            steps += [*layer, ActNorm(n)]
        return Along(dim, Rows(*steps))
    event = (rows, n) if dim == -1 else (n, rows)
    steps = [ActNorm(event)]
    for layer in layers:
        steps += [Along(dim, Rows(*layer)), ActNorm(event)]
    return Chain(*steps)


def flow_layer(config: MixerFlowConfig, n: int, linear: Linear, *, flip: bool) -> list[Transform]:
    """A linear map and a coupling of vectors of length n."""
    steps: list[Transform] = []
    if linear != "none":
        steps.append(LINEARS[linear](n, config.rank))
    if n > 1:
        law = Affine(config.scale_bound)
        given, changed = halves(n, flip=flip)
        context = config.class_width if config.classes else 0
        net = ResidualMLP(
            given,
            law.params * changed,
            width=config.hidden,
            norm=config.norm,
            squash=config.squash,
            context=context,
        )
        steps.append(Coupling(-1, net, law, flip=flip))
    return steps


def _check(config: MixerFlowConfig, shape: Shape) -> None:
    for name in ("layers", "flow_layers", "hidden", "shift_every", "class_width", "rank"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be at least 1; got {getattr(config, name)}")
    if config.classes < 0:
        raise ValueError(f"classes must be 0 or more; got {config.classes}")
    if not 2 <= len(shape) <= 4 or min(shape) < 1:
        raise ValueError(f"images are (C, *spatial) with 1 to 3 spatial axes; got {shape}")
    patch, shift = config.patch_of(shape), config.shift_of(shape)
    if not any(shift):
        return
    for axis, (p, s) in enumerate(zip(patch, shift, strict=True)):
        if not 0 <= s < p:
            raise ValueError(
                f"shift {s} on spatial axis {axis} must lie in 0..{p - 1}, less than the patch {p}"
            )
    if config.cut == "patches" and any(
        s and n == p for n, p, s in zip(shape[1:], patch, shift, strict=True)
    ):
        raise ValueError(f"images {shape} are one patch {patch} wide: use shift 0 on that axis")
    if "RLU" in (config.linear, config.patch_linear) and config.flow_layers % 2:
        raise ValueError(
            "an odd number of RLU order reversals before a shift layer would shuffle the positions "
            "it relies on: use LU, an even flow_layers, or shift=0"
        )


def _per_axis(name: str, value: int | tuple[int, ...], axes: int) -> Shape:
    sides = (value,) * axes if isinstance(value, int) else tuple(value)
    if len(sides) != axes:
        raise ValueError(f"{name} {sides} names {len(sides)} spatial axes; the images have {axes}")
    return sides
