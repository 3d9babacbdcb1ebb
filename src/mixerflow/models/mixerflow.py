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

from dataclasses import dataclass
from typing import Literal

from torch import nn

from mixerflow.core import Along, Chain, Flow, Shape, Transform
from mixerflow.models.layers import CutName, layer
from mixerflow.models.steps import FlowName, LawName, LinearName, NetName
from mixerflow.nets import Norm
from mixerflow.transforms import LU, Dequantize, Rescale


@dataclass(frozen=True)
class MixerFlowConfig:
    """Everything that shapes a MixerFlow; the defaults are the paper's for 32x32 images."""

    layers: int = 30
    """Mixer layers, shift layers among them."""
    flow_layers: int = 4
    """(linear map, coupling, ActNorm) in each channel flow and each patch flow."""
    patch: int | tuple[int, ...] = 4
    """A patch's side, or its side on each spatial axis."""
    patches: tuple[int, ...] = ()
    """Patch sides that change with depth: as many equal shares of the layers; () for `patch`."""
    cut: CutName | tuple[CutName, ...] = "patches"
    """Or several, which the layers take in turn. Stripes have their height, bands their width, from
    `patch`."""
    shift: int | tuple[int, ...] = 1
    """Pixels by which shift layers move the grid; 0 for none."""
    shift_every: int = 4
    """Every how many layers one is a shift layer."""
    shifts: tuple[int, ...] = ()
    """Shifts that the layers take in turn, in place of `shift` and `shift_every`: 0 0 0 1 is the
    paper's, 0 1 2 3 changes the patches a little after every layer."""
    flow: FlowName = "coupling"
    """What follows each linear map."""
    law: LawName = "affine"
    """How couplings and autoregressive flows transform a value."""
    net: NetName = "mlp"
    """What couplings read their other half with."""
    hidden: int = 128
    """Width of these nets."""
    norm: Norm = "batch"
    """In these nets; the paper has "batch"."""
    squash: bool = True
    """Whether these nets read sign(x) log(1 + |x|); the paper's read x."""
    linear: LinearName = "LU"
    """Linear block before each coupling; RLU, an order reversal, in even numbers before a shift."""
    patch_linear: LinearName | None = None
    """Another one for the patch flows, whose vectors are as long as patches are many."""
    rank: int = 16
    """Of Woodbury blocks; those of shorter vectors have full rank."""
    actnorm: Literal["feature", "activation"] = "feature"
    """One scale and shift a feature, or one for each number in the patch matrix."""
    scale_bound: float | None = None
    """Bound of the affine law's log-scale; None is the paper's plain exponential."""
    colour: bool = True
    """Whether a linear map of each pixel's channels comes first."""
    levels: int | None = 256
    """Values a pixel can have; None for float data, taken as it is."""
    classes: int = 0
    """Number of classes of a class-conditional model; 0 for none."""
    class_width: int = 32
    """Length of a class's embedding."""

    def cut_of(self, number: int) -> CutName:
        """How layer `number` (from 1) cuts."""
        return self.cut if isinstance(self.cut, str) else self.cut[(number - 1) % len(self.cut)]

    def patch_of(self, shape: Shape, number: int = 1) -> Shape:
        """The patch's side on each spatial axis of `shape`, in layer `number`."""
        patch = self.patch
        if self.patches:
            patch = self.patches[(number - 1) * len(self.patches) // self.layers]
        return _per_axis("patch", patch, len(shape) - 1)

    def shift_of(self, shape: Shape, number: int | None = None) -> Shape:
        """The shift on each spatial axis of `shape`, in layer `number`; None for a shift layer."""
        shift = self.shift
        if number is not None and self.shifts:
            shift = self.shifts[(number - 1) % len(self.shifts)]
        elif number is not None and number % self.shift_every:
            shift = 0
        return _per_axis("shift", shift, len(shape) - 1)

    @property
    def context_width(self) -> int:
        """Length of the context that the nets read."""
        return self.class_width if self.classes else 0


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
    steps += [layer(config, shape, number) for number in range(1, config.layers + 1)]
    return Flow(Chain(*steps), shape, context_net=context_net, levels=config.levels)


def _check(config: MixerFlowConfig, shape: Shape) -> None:
    for name in ("layers", "flow_layers", "hidden", "shift_every", "class_width", "rank"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be at least 1; got {getattr(config, name)}")
    if config.classes < 0:
        raise ValueError(f"classes must be 0 or more; got {config.classes}")
    if not 2 <= len(shape) <= 4 or min(shape) < 1:
        raise ValueError(f"images are (C, *spatial) with 1 to 3 spatial axes; got {shape}")
    if config.cut == ():
        raise ValueError("cut names no cut")
    if len(config.patches) > config.layers:
        raise ValueError(f"{len(config.patches)} patches for {config.layers} layers")
    kinds: set[tuple[CutName, Shape, Shape]] = {
        (config.cut_of(i), config.patch_of(shape, i), config.shift_of(shape, i))
        for i in range(1, config.layers + 1)
    }
    for cut, patch, shift in sorted(kinds):
        _check_shift(cut, shape, patch, shift)
    if len(kinds) > 1 and "RLU" in (config.linear, config.patch_linear) and config.flow_layers % 2:
        raise ValueError(
            "an odd number of RLU order reversals before a shift layer would shuffle the positions "
            "it relies on: use LU, an even flow_layers, or shift=0"
        )


def _check_shift(cut: CutName, shape: Shape, patch: Shape, shift: Shape) -> None:
    sides = list(zip(shape[1:], patch, shift, strict=True))
    for axis, (_, p, s) in enumerate(sides):
        if s and not 0 <= s < p:
            raise ValueError(
                f"shift {s} on spatial axis {axis} must lie in 0..{p - 1}, less than the patch {p}"
            )
    if cut == "patches" and any(s and n == p for n, p, s in sides):
        raise ValueError(f"images {shape} are one patch {patch} wide: use shift 0 on that axis")


def _per_axis(name: str, value: int | tuple[int, ...], axes: int) -> Shape:
    sides = (value,) * axes if isinstance(value, int) else tuple(value)
    if len(sides) != axes:
        raise ValueError(f"{name} {sides} names {len(sides)} spatial axes; the images have {axes}")
    return sides
