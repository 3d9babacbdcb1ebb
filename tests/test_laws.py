"""Every transform of the package obeys the laws of its class."""

import importlib
import pkgutil
from collections.abc import Iterator

import pytest
import torch

import mixerflow
from cases import CASES, split_by
from mixerflow.core import Along, Composite, FixedShape, Inverse, Transform, Window
from mixerflow.nets import ResidualConvNet
from mixerflow.transforms import (
    LU,
    ActNorm,
    Affine,
    Butterfly,
    Checkerboard,
    Columns,
    Coupling,
    Dequantize,
    DiagonalAffine,
    MapAttention,
    Matrix,
    Patchify,
    TokenAttention,
    Woodbury,
)
from mixerflow.transforms.checks import LAWS

GRAPHS = {"compile forward", "compile inverse", "export"}
# seconds each: one of every sort by default, the rest among the slow tests
COMPILED = [
    "LU",
    "coupling, flipped",
    "autoregressive, any order",
    "batch norm, a channel",
    "along with context",
    "window",
    "dequantize",
    "logit",
]


LONG = {
    "continuous, lively",
    "continuous of convolutions, estimate",
    "continuous of images",
    "continuous of images, conditional",
    "continuous of images, estimate",
    "continuous along the patches",
    "continuous of small images, conditional",
    "continuous, estimate",
    "continuous, to a learned end",
    "continuous of one",
    "residual, estimated, conditional",
    "residual of images, dense, estimated",
    "monotone of images, estimated",
    "mixerflow, MAF with splines, told its place",
    "mixerflow, KAN and invertible attention",
    "mixerflow, butterfly among patches",
    "mixerflow, Woodbury",
    "mixerflow, dilated RLU",
    "mixerflow, stripes",
    "mixerflow, layer norm",
}
"""Equations of many short steps, solved hundreds of times, and mixers of parts with own cases."""


def slow_where(names, slow):
    """Every name, these marked that would take a quarter of all tests' time."""
    return [pytest.param(n, marks=pytest.mark.slow) if n in slow else n for n in names]


@pytest.mark.parametrize("name", slow_where(CASES, LONG))
def test_obeys_its_laws(name):
    CASES[name].check(set(LAWS) - GRAPHS)


def computed_with(transform):
    """All that a transform computes with: modules and what each is told, and tensors by name."""
    simple = bool | int | float | str | tuple | None
    told = [
        (
            name,
            type(part),
            {k: v for k, v in vars(part).items() if k != "_made_with" and isinstance(v, simple)},
        )
        for name, part in transform.named_modules()
    ]
    return told, dict([*transform.named_parameters(), *transform.named_buffers()])


@pytest.mark.parametrize("name", slow_where(CASES, LONG))
def test_its_inference_copy_obeys_them(name):
    """Where nothing folds, the copy is the transform itself, which obeys them above."""
    case = CASES[name]
    moved = case.moved().eval()
    (told, tensors), (copied, copies) = computed_with(moved), computed_with(moved.fused())
    if told == copied and tensors.keys() == copies.keys():
        assert all(torch.equal(copies[key], tensor) for key, tensor in tensors.items())
    else:
        case.fused().check(set(LAWS) - GRAPHS - {"gradients"})  # nothing in it wants one


@pytest.mark.parametrize("name", COMPILED)
def test_compiles_and_exports(name):
    CASES[name].check(GRAPHS)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(CASES.keys() - set(COMPILED)))
def test_compiles_and_exports_too(name):
    CASES[name].check(GRAPHS)


def subclasses(parent: type) -> Iterator[type]:
    for child in parent.__subclasses__():
        yield child
        yield from subclasses(child)


def test_every_transform_of_the_package_has_a_case():
    for module in pkgutil.walk_packages(mixerflow.__path__, "mixerflow."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    ours = {c for c in subclasses(Transform) if c.__module__.startswith("mixerflow.")}
    tried = {type(case.make()) for case in CASES.values()}
    assert len(ours) >= 16
    abstract = {c for c in ours if c.__name__.startswith("_") and c.__subclasses__()}
    abstract |= {Composite, FixedShape}
    assert ours - tried == abstract, "add a case for each of these to CASES"


@pytest.mark.parametrize(
    ("transform", "x", "named"),
    [
        (Dequantize(), torch.full((1, 4), 256), r"0\.\.255; got 256 to 256"),
        (Dequantize(), torch.full((1, 4), -1), r"0\.\.255; got -1 to -1"),
        (Dequantize(), torch.full((1, 4), 0.5), r"integers 0\.\.255"),
        (Dequantize(), torch.full((1, 4), float("nan")), r"0\.\.255; got nan"),
        (Dequantize(5), torch.full((1, 4), 5, dtype=torch.uint8), r"0\.\.4; got 5 to 5"),
    ],
)
def test_wrong_ranges_are_refused(transform, x, named):
    with pytest.raises(ValueError, match=named):
        transform(x)


@pytest.mark.parametrize(
    ("make", "shape", "named"),
    [
        (lambda: LU(4), (5,), r"\(4,\).*\(5,\)"),
        (lambda: Matrix(4), (5,), r"\(4,\).*\(5,\)"),
        (lambda: DiagonalAffine((3, 1, 1)), (4, 2, 2), r"DiagonalAffine.*\(3, 1, 1\).*\(4, 2, 2\)"),
        (lambda: split_by(Checkerboard(), 1), (3, 1, 1), r"2 pixels.*\(3, 1, 1\)"),
        (lambda: split_by(Checkerboard(), 1), (3,), r"spatial axes.*\(3,\)"),
        (lambda: split_by(Columns(), 1), (3, 4, 3), r"\(3, 4, 3\).*must be even"),
        (lambda: Woodbury(4, 2), (5,), r"\(4,\).*\(5,\)"),
        (lambda: Butterfly(4), (5,), r"\(4,\).*\(5,\)"),
        (lambda: ActNorm((3, 1, 1)), (4, 2, 2), r"\(3, 1, 1\).*\(4, 2, 2\)"),
        (lambda: Patchify((3, 4, 4), (2, 2)), (3, 4, 6), r"\(3, 4, 4\).*\(3, 4, 6\)"),
        (lambda: MapAttention(4), (2, 5), r"\(tokens, 4\).*\(2, 5\)"),
        (lambda: TokenAttention(4), (4,), r"\(tokens, 4\).*\(4,\)"),
        (lambda: Along(0, LU(3)), (4, 2), r"\(3,\).*\(4,\)"),
        (lambda: Along(2, LU(3)), (3, 2), r"axis 2.*\(3, 2\)"),
        (lambda: Window((1,), (4,), LU(4)), (4,), r"\(1,\) to \[5\].*\(4,\)"),
        (lambda: Inverse(Patchify((1, 4), (2,)), (1, 4)), (1, 4), r"\(2, 2\).*\(1, 4\)"),
        (
            lambda: Coupling(0, ResidualConvNet(1, 2, width=2), Affine()),
            (1, 4, 4),
            r"axis 0.*\(1, 4, 4\)",
        ),
    ],
)
def test_wrong_shapes_are_refused_when_a_flow_is_built(make, shape, named):
    with pytest.raises(ValueError, match=named):
        make().out_shape(shape)
