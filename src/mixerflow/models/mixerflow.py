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

What follows each linear map, and what may stand beside the mixing, is a setting (sections 5.3, 5.6
and 7, appendix D); `mixerflow.models.steps` and `mixerflow.models.extras` are the menus.

Departs from the paper:
    - conditioners read ``sign(x) log(1 + |x|)`` of their half, and ActNorm's start never amplifies:
      without either, data whose pixels are almost always 0 reach NaN, see `docs/stability.md`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from mixerflow.core import BASES, Along, Chain, Flow, MultiScale, Shape, Transform
from mixerflow.models.extras import ExtraName, glow_steps, next_scale
from mixerflow.models.layers import CutName, PositionName, layer
from mixerflow.models.steps import FlowName, LawName, LinearName, NetName
from mixerflow.nets import Norm
from mixerflow.transforms import LU, Dequantize, Rescale, Squeeze

BaseName = Literal["normal", "student-t", "cauchy", "mixture", "spike-and-slab"]


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
    """What couplings read their other half with: an MLP, a KAN, or a kernel machine with `hidden`
    points."""
    bins: int = 4
    """Of a spline."""
    tail: float = 3.0
    """A spline bends values between -tail and tail."""
    components: int = 8
    """Logistic distributions in a mixture, of the logistic law and of Gaussianisation."""
    log_det: Literal["exact", "unbiased"] = "exact"
    """Of residual and continuous flows: exact, or an unbiased estimate, for long vectors."""
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
    actnorm: Literal["feature", "activation", "batch"] = "feature"
    """One scale and shift a feature, or one for each number in the patch matrix; or, in place of
    all ActNorms, a batch-norm flow layer behind each channel flow and each patch flow."""
    positions: PositionName = "none"
    """Whether channel and patch flows are told which patch or channel they are at, and how."""
    position_width: int = 16
    """Length of what tells them."""
    extra: ExtraName = "none"
    """What each mixer layer has besides: couplings by convolutions or a dense block on the image,
    couplings by attention or invertible attention between the patches."""
    glow: int = 0
    """Pairs of Glow's steps before the mixer layers."""
    squeeze: int = 1
    """By how much space is squeezed into channels before the mixer layers; 1 for not at all."""
    scales: int = 1
    """Scales among which the layers are shared out; from one to the next images are squeezed and
    half of the channels are done."""
    base: BaseName = "normal"
    """Distribution of the latents."""
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

    def scale_of(self, number: int) -> int:
        """The scale of layer `number`, from 0."""
        return (number - 1) * self.scales // self.layers

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
    inner = shape
    if config.squeeze > 1:
        squeeze = Squeeze(shape, config.squeeze)
        steps.append(squeeze)
        inner = squeeze.given
    steps += [glow_steps(config, inner) for _ in range(config.glow)]
    steps += _layers(config, inner)
    base = BASES[config.base]()
    return Flow(Chain(*steps), shape, base, context_net=context_net, levels=config.levels)


def _layers(config: MixerFlowConfig, shape: Shape) -> list[Transform]:
    """The mixer layers, or the one transform that they make in several scales."""
    scales: list[list[Transform]] = [[]]
    inner = shape
    for number in range(1, config.layers + 1):
        if config.scale_of(number) == len(scales):
            last, inner = next_scale(config, inner)
            scales[-1].append(last)
            scales.append([])
        scales[-1].append(layer(config, inner, number))
    if len(scales) == 1:
        return scales[0]
    return [MultiScale(shape, [Chain(*steps) for steps in scales], keep="last")]


_COUNTS = (
    *("layers", "flow_layers", "hidden", "shift_every", "class_width", "rank", "components"),
    *("position_width", "squeeze", "scales"),
)


def _check(config: MixerFlowConfig, shape: Shape) -> None:
    for name in _COUNTS:
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be at least 1; got {getattr(config, name)}")
    for name in ("classes", "glow"):
        if getattr(config, name) < 0:
            raise ValueError(f"{name} must be 0 or more; got {getattr(config, name)}")
    if not 2 <= len(shape) <= 4 or min(shape) < 1:
        raise ValueError(f"images are (C, *spatial) with 1 to 3 spatial axes; got {shape}")
    if config.cut == ():
        raise ValueError("cut names no cut")
    for name in ("patches", "scales"):
        value = getattr(config, name)
        count = value if isinstance(value, int) else len(value)
        if count > config.layers:
            raise ValueError(f"{count} {name} for {config.layers} layers")
    for name, fits in (
        ("law", config.law == "affine"),
        ("net", config.net == "mlp"),
        ("log_det", config.log_det == "exact"),
    ):
        if not (fits or config.flow in _READING[name]):
            what = f"{name} {getattr(config, name)} has no place in flow {config.flow}"
            raise ValueError(f"{what}: use flow {_READING[name][0]}")
    kinds: set[tuple[CutName, Shape, Shape]] = {
        (config.cut_of(i), config.patch_of(shape, i), config.shift_of(shape, i))
        for i in range(1, config.layers + 1)
    }
    for _, patch, shift in sorted(kinds):
        _check_shift(patch, shift)
    if len(kinds) > 1 and "RLU" in (config.linear, config.patch_linear) and config.flow_layers % 2:
        raise ValueError(
            "an odd number of RLU order reversals before a shift layer would shuffle the positions "
            "it relies on: use LU, an even flow_layers, or shift=0"
        )


_READING = {
    "law": ("coupling", "maf", "iaf"),
    "net": ("coupling",),
    "log_det": ("residual", "dense-residual", "continuous"),
}
"""Setting -> the flows that it is of."""


def _check_shift(patch: Shape, shift: Shape) -> None:
    for axis, (p, s) in enumerate(zip(patch, shift, strict=True)):
        if s and not 0 <= s < p:
            raise ValueError(
                f"shift {s} on spatial axis {axis} must lie in 0..{p - 1}, less than the patch {p}"
            )


def _per_axis(name: str, value: int | tuple[int, ...], axes: int) -> Shape:
    sides = (value,) * axes if isinstance(value, int) else tuple(value)
    if len(sides) != axes:
        raise ValueError(f"{name} {sides} names {len(sides)} spatial axes; the images have {axes}")
    return sides
