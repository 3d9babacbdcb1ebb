"""Small flows of every kind that the codec takes."""

from dataclasses import replace

import torch
from torch import nn

from mixerflow.core import Along, Chain, Flow, Inverse, Layer, MultiScale, Window
from mixerflow.models import MixerFlow
from mixerflow.nets import LearnedPositionalEncoding, ResidualMLP
from mixerflow.parts import (
    MLP,
    Classes,
    ConvNet,
    GlobalShuffle,
    GlowSteps,
    GridEncoding,
    LinearHead,
    LocalShuffle,
    LUMap,
    NormalScorePixels,
    Patching,
    PLUMap,
    RowCoupling,
    StudentTBase,
)
from mixerflow.transforms import (
    LU,
    PLU,
    ActNorm,
    Affine,
    BatchNorm,
    CheckerboardSqueeze,
    Coupling,
    Dequantize,
    DiagonalAffine,
    KernelChain,
    Linear,
    Matrix,
    RationalQuadratic,
    Rescale,
    Reshape,
    Roll,
    Squeeze,
    Standardize,
    SwapHalves,
    UnpackedPLU,
    Whiten,
    halves,
)
from mixerflow.transforms.checks import perturb
from mixers import mixer


def small(**settings):
    """A MixerFlow of two layers, flows of two steps, patches of 2 and nets of width 6."""
    few = {"layers": 2, "flow_layers": 2, "patch": 2, "shift_every": 2, "hidden": 6}
    return mixer(**few | settings)


def plain(**settings):
    """A MixerFlow as its fields name it."""
    coupling = RowCoupling(Affine(2.0), MLP(6, norm="none"))
    patching = Patching(2, shift=(0, 1))
    few = {"layers": 2, "flow_layers": 2, "flow": coupling, "patching": patching}
    return MixerFlow(**few | settings)


FAST = plain(
    patch_flow_layers=1,
    patching=Patching(2, shift=((0, 0), (1, 1), (0, 1), (1, 0)), cyclic=True),
    flow=RowCoupling(Affine(bound=2.0), MLP(6, squares=True)),
    linear=LUMap(start="whitening"),
    base=StudentTBase(),
)
"""The recipes for two cores, smaller."""

SCORED = plain(
    flow=RowCoupling(RationalQuadratic(3, tail=2.0), MLP(6, norm="none")),
    pixels=NormalScorePixels(levels=16),
    classes=Classes(3, 4),
)
"""Couplings by splines, and pixels as their normal scores."""

MODELS = {
    "batch": (small(), (1, 6, 6)),
    "fast": (FAST, (3, 4, 4)),
    "fast classes": (replace(FAST, classes=Classes(3, 4)), (3, 4, 4)),
    "rlu layer floored": (small(linear="RLU", norm="layer", law="floored"), (1, 6, 6)),
    "rms mixture batch": (small(norm="rms", base="mixture", actnorm="batch"), (1, 6, 6)),
    "learned activation": (
        small(positions="learned", position_width=3, actnorm="activation", norm="none", classes=3),
        (2, 4, 4),
    ),
    "plu": (plain(linear=PLUMap()), (2, 4, 4)),
    "splines of scores": (SCORED, (2, 4, 4)),
}
"""Models with the shape of their images: one of nearly every mechanism."""

MORE = {
    "no linear": (small(linear="none", norm="none", scale_bound=1.0), (3, 4, 4)),
    "no squash": (small(squash=False, norm="rms", scale_bound=1.0), (1, 6, 6)),
    "no colour": (small(colour=False), (3, 4, 4)),
    "16 bit": (small(levels=65536), (1, 6, 6)),
    "2 levels": (small(levels=2), (1, 6, 6)),
    "5 levels": (small(levels=5), (4, 4, 4)),
    "sinusoidal": (small(positions="sinusoidal", position_width=5), (1, 6, 6)),
    "grid": (plain(positions=GridEncoding(4)), (1, 6, 6)),
    "grid classes": (plain(positions=GridEncoding(4), classes=Classes(4, 3)), (1, 6, 6)),
    "stripes": (small(cut="stripes"), (1, 6, 6)),
    "bands": (small(cut="bands"), (2, 4, 6)),
    "dilated": (small(cut="dilated", shift=0), (1, 6, 6)),
    "cuts": (
        plain(layers=3, patching=Patching(2, shift=(0,), cut=("patches", "stripes", "bands"))),
        (1, 6, 6),
    ),
    "sides": (plain(patching=Patching(((2, 3),), shift=((0, 0), (1, 2)))), (1, 6, 9)),
    "odd": (small(patch=3, flow_layers=3, linear="RLU", shift=0), (1, 9, 9)),
    "squeeze": (small(squeeze=2, patch=1, shift=0), (3, 4, 4)),
    "1 axis": (small(), (2, 8)),
    "3 axes": (small(), (1, 4, 4, 4)),
    "4 channels": (replace(FAST, classes=Classes(2, 3)), (4, 4, 4)),
    "student": (small(base="student-t", norm="layer"), (1, 6, 6)),
    "fixed student": (plain(base=StudentTBase(3.5, learned=False)), (1, 6, 6)),
    "cauchy": (small(base="cauchy"), (1, 6, 6)),
    "spike": (small(base="spike-and-slab"), (1, 6, 6)),
    "shuffled": (plain(shuffle=GlobalShuffle(3)), (1, 6, 6)),
    "locally": (plain(shuffle=LocalShuffle(2, 4)), (3, 4, 4)),
    "head": (plain(head=LinearHead(3)), (1, 6, 6)),
    "batch classes": (small(classes=5, actnorm="batch", positions="learned"), (3, 4, 4)),
    "scales": (small(scales=2, shift=0, hidden=4), (1, 4, 4)),
    "scales classes": (small(scales=2, layers=3, shift=0, classes=3, norm="layer"), (3, 4, 4)),
    "convolutions": (small(extra="convolution", norm="rms", hidden=4, scale_bound=2.0), (2, 4, 4)),
    "convolution floored": (small(glow=1, law="floored", norm="none", classes=2), (1, 4, 6)),
    "convolutions of 1 axis": (small(glow=1, squash=False, scale_bound=1.0), (2, 8)),
    "convolutions of 3 axes": (small(glow=2, shift=0, scale_bound=2.0), (1, 4, 2, 2)),
    "deep convolutions": (
        plain(glow=GlowSteps(1, Affine(2.0), ConvNet(4, depth=2, kernel=5, norm="batch"))),
        (2, 6, 4),
    ),
    "spline of plu": (plain(linear=PLUMap(), flow=SCORED.flow), (1, 6, 6)),
    "spline convolutions": (
        plain(glow=GlowSteps(1, RationalQuadratic(4), ConvNet(4))),
        (2, 4, 4),
    ),
    "scores shuffled": (plain(pixels=NormalScorePixels(), shuffle=GlobalShuffle(3)), (3, 4, 4)),
    "one patch": (small(patch=4, shift=0), (1, 4, 4)),
}
"""Other settings of these mechanisms."""


def flow_of(model, shape):
    """The flow of a model in eval mode, whose parameters are none of them those of a start."""
    return perturbed(model.build(shape))


def perturbed(flow, size=0.3):
    flow.eval()
    with torch.no_grad():
        perturb(flow, size=size)
    return flow


def mlp(n, *, flip=False, context=0, **settings):
    given, changed = halves(n, flip=flip)
    net = ResidualMLP(given, 2 * changed, width=5, context=context, **settings)
    return Coupling(-1, net, Affine(1.5), flip=flip)


def own_flow(context=0):
    """A flow of several scales, of every transform that no MixerFlow has."""
    rows = LearnedPositionalEncoding(4, 2)
    first = Chain(
        Squeeze((2, 4, 4)),
        SwapHalves(),
        Along(0, Matrix(8)),
        ActNorm((8, 1, 1)),
        Layer(Window((1, 0), (1, 2), Along(0, mlp(8, context=context)))),
        DiagonalAffine((1, 2, 1)),
        Along(0, Whiten(8)),
        BatchNorm((8, 1, 1)),
    )
    second = Chain(
        Roll((4, 2, 2), (1, 0), channels=1),
        Reshape((4, 2, 2), (4, 4)),
        LU(4),
        Along(1, Chain(PLU(4, bias=True), mlp(4, flip=True, context=2 + context)), rows=rows),
        ActNorm((4, 4)),
        Inverse(Reshape((4, 2, 2), (4, 4)), (4, 2, 2)),
        Along(0, UnpackedPLU(4)),
    )
    third = Chain(
        CheckerboardSqueeze((3, 2, 2)),
        Inverse(SwapHalves(), (12, 1, 1)),
        Along(0, KernelChain(RowsLinear(12), mlp(12, norm="batch", context=context))),
        DiagonalAffine(()),
    )
    scales = MultiScale((2, 4, 4), [first, second, third], kept=(4, 3), keep="last")
    net = nn.Embedding(3, context) if context else None
    steps = Chain(Dequantize(16), Rescale(1 / 8, -1.0), Standardize((2, 1, 1)), scales)
    flow = Flow(steps, (2, 4, 4), context_net=net, levels=16)
    flow.initialize(torch.randint(16, (40, 2, 4, 4)), torch.arange(40) % 3 if context else None)
    return perturbed(flow, 0.2)


def RowsLinear(n):
    """A dense matrix that has absorbed an `LU` and an `ActNorm`."""
    inner = Chain(LU(n), ActNorm(n))
    with torch.no_grad():
        perturb(inner, seed=5)
    return Linear(inner, n)
