"""Every transform of the package obeys the laws of its class."""

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

import mixerflow
from mixerflow.core import Along, Chain, Inverse, Shape, Transform, Window
from mixerflow.models.mixerflow import MixerFlowConfig, build
from mixerflow.nets import ResidualMLP, Velocity
from mixerflow.transforms import (
    LU,
    PLU,
    RLU,
    ActNorm,
    Affine,
    Bands,
    Butterfly,
    Continuous,
    Coupling,
    Dequantize,
    Dilated,
    Logit,
    Patches,
    Rescale,
    Rows,
    Stripes,
    Woodbury,
    halves,
)
from mixerflow.transforms.checks import LAWS, KindName, check, normal, perturb, unit


class ConvNet(nn.Module):
    """Two convolutions that keep the image's size."""

    def __init__(self, given: int, out: int) -> None:
        super().__init__()
        self.given = given
        self.enter = nn.Conv2d(given, 6, 3, padding=1)
        self.leave = nn.Conv2d(6, out, 1)

    def forward(self, x, context=None):
        if x.dim() != 4 or x.shape[1] != self.given:
            raise ValueError(f"ConvNet: {self.given} channels; got events {tuple(x.shape[1:])}")
        return self.leave(self.enter(x).tanh())


def coupling(n: int, *, bound=None, flip=False, norm="none", context=0, squash=True) -> Coupling:
    given, changed = halves(n, flip=flip)
    net = ResidualMLP(given, 2 * changed, width=8, norm=norm, context=context, squash=squash)
    return Coupling(-1, net, Affine(bound), flip=flip)


def image_coupling(channels: int, *, flip=False) -> Coupling:
    given, changed = halves(channels, flip=flip)
    return Coupling(0, ConvNet(given, 2 * changed), Affine(2.0), flip=flip)


class ImageVelocity(nn.Module):
    """A convolution that knows nothing of its divergence."""

    def __init__(self, channels: int, context: int = 0) -> None:
        super().__init__()
        self.net = ConvNet(channels, channels)
        self.told = nn.Linear(1 + context, channels)

    def forward(self, t, x, context=None):
        moment = x.new_full((len(x), 1), float(t))
        told = moment if context is None else torch.cat([moment, context], 1)
        return self.net(x) + self.told(told)[..., None, None]


def continuous(n: int, *, context=0, **settings) -> Continuous:
    return Continuous(Velocity(n, width=8, context=context), **settings)


def mixerflow_layers(shape: Shape, **settings) -> Transform:
    """A whole small MixerFlow, the last of its layers a shift layer."""
    small = {
        "layers": 2,
        "shift_every": 2,
        "flow_layers": 2,
        "patch": 2,
        "hidden": 6,
        "norm": "none",
    }
    return build(MixerFlowConfig(**{**small, "levels": None, **settings}), shape).transform


def pixels(levels: int) -> Callable[[int, Shape, torch.Generator], torch.Tensor]:
    def draw(batch, shape, generator):
        values = torch.randint(0, levels, (batch, *shape), generator=generator)
        return values.to(torch.uint8) if levels <= 256 else values

    return draw


@dataclass(frozen=True)
class Case:
    """How to make a transform, and what it takes."""

    make: Callable[[], Transform]
    shape: Shape
    kind: KindName = "algebraic"
    context: Shape | None = None
    inputs: Callable[[int, Shape, torch.Generator], torch.Tensor] = normal
    size: float = 0.3

    def check(self, laws: set[str]) -> None:
        check(
            self.make(),
            self.shape,
            kind=self.kind,
            context=self.context,
            inputs=self.inputs,
            laws=laws,
            size=self.size,
        )

    def fused(self) -> "Case":
        """The same transform, moved, as its inference copy."""

        def make() -> Transform:
            transform = self.make().double()
            perturb(transform, size=self.size)
            return transform.fused()

        return replace(self, make=make, size=0.0)


def mixerflow_case(*, context: Shape | None = None, **settings) -> Case:
    shape = (2, 6, 4)
    return Case(lambda: mixerflow_layers(shape, **settings), shape, context=context, size=0.15)


CASES = {
    "chain": Case(lambda: Chain(LU(5), coupling(5), ActNorm(5)), (5,)),
    "chain of nothing": Case(Chain, (3,)),
    "rows": Case(lambda: Rows(ActNorm(5), LU(5), coupling(5), ActNorm(5)), (5,)),
    "rows with batch norm": Case(
        lambda: Rows(LU(6), coupling(6, norm="batch"), LU(6), coupling(6, norm="batch", flip=True)),
        (6,),
    ),
    "inverse": Case(lambda: Inverse(Chain(LU(4), coupling(4)), (4,)), (4,)),
    "inverse of a cut": Case(lambda: Inverse(Patches((2, 4, 6), (2, 3)), (2, 4, 6)), (4, 12)),
    "inverse of a logit": Case(lambda: Inverse(Logit(), (4,)), (4,)),
    "along the channels": Case(lambda: Along(0, LU(3)), (3, 4, 2)),
    "along the height": Case(lambda: Along(1, Chain(LU(4), coupling(4))), (3, 4, 2)),
    "along the width": Case(lambda: Along(-1, coupling(3)), (2, 4, 3)),
    "along an only axis": Case(lambda: Along(0, LU(4)), (4,)),
    "along with context": Case(lambda: Along(-2, coupling(4, context=3)), (4, 3), context=(3,)),
    "window": Case(lambda: Window((1, 2), (3, 2), Along(-1, coupling(2))), (2, 5, 4)),
    "window of all": Case(lambda: Window((0,), (4,), coupling(4)), (4,)),
    "LU": Case(lambda: LU(5), (5,)),
    "LU of one": Case(lambda: LU(1), (1,)),
    "LU without bias": Case(lambda: LU(4, bias=False), (4,)),
    "RLU": Case(lambda: RLU(5), (5,)),
    "PLU": Case(lambda: PLU(5), (5,)),
    "PLU with bias": Case(lambda: PLU(4, bias=True), (4,)),
    "linear": Case(lambda: PLU(5, bias=True), (5,)).fused(),
    "Woodbury": Case(lambda: Woodbury(7, 3), (7,)),
    "Woodbury of one": Case(lambda: Woodbury(1, 1), (1,)),
    "Woodbury of full rank, without bias": Case(lambda: Woodbury(4, 4, bias=False), (4,)),
    # blocks are many, so each moves little unless the perturbation is large
    "butterfly": Case(lambda: Butterfly(8), (8,), size=1.5),
    "butterfly of two": Case(lambda: Butterfly(2), (2,), size=1.5),
    "butterfly, overlapping": Case(lambda: Butterfly(7), (7,), size=1.5),
    "butterfly, two groups of levels": Case(lambda: Butterfly(37), (37,), size=1.5),
    "butterfly, few levels, without bias": Case(
        lambda: Butterfly(8, 2, bias=False), (8,), size=1.5
    ),
    "actnorm, vectors": Case(lambda: ActNorm(5), (5,)),
    "actnorm, a feature": Case(lambda: ActNorm(3), (4, 3)),
    "actnorm, a channel": Case(lambda: ActNorm((3, 1, 1)), (3, 2, 4)),
    "actnorm, an activation": Case(lambda: ActNorm((4, 3)), (4, 3)),
    "coupling": Case(lambda: coupling(6), (6,)),
    "coupling, flipped": Case(lambda: coupling(6, flip=True), (6,)),
    "coupling, odd": Case(lambda: coupling(5), (5,)),
    "coupling, odd, flipped": Case(lambda: coupling(5, flip=True), (5,)),
    "coupling of two": Case(lambda: coupling(2), (2,)),
    "coupling, bounded": Case(lambda: coupling(5, bound=1.5), (5,)),
    "coupling, unsquashed": Case(lambda: coupling(5, squash=False), (5,)),
    "coupling, batch norm": Case(lambda: coupling(5, norm="batch"), (5,)),
    "coupling, layer norm": Case(lambda: coupling(5, norm="layer"), (5,)),
    "coupling, conditional": Case(lambda: coupling(5, context=3), (5,), context=(3,)),
    "coupling of images": Case(lambda: image_coupling(4), (4, 3, 3)),
    "coupling of images, odd": Case(lambda: image_coupling(3, flip=True), (3, 4, 2)),
    "continuous": Case(lambda: continuous(6), (6,), "ode"),
    "continuous of one": Case(lambda: continuous(1, steps=1), (1,), "ode"),
    "continuous, lively": Case(lambda: continuous(5), (5,), "ode", size=1.5),
    "continuous, conditional": Case(lambda: continuous(5, context=3), (5,), "ode", context=(3,)),
    "continuous of images": Case(lambda: Continuous(ImageVelocity(2)), (2, 3, 2), "ode"),
    "continuous of images, conditional": Case(
        lambda: Continuous(ImageVelocity(1, 3)), (1, 2, 3), "ode", context=(3,)
    ),
    "continuous, estimate": Case(lambda: continuous(4, trace="hutchinson"), (4,), "ode estimate"),
    "continuous of images, estimate": Case(
        lambda: Continuous(ImageVelocity(2), trace="hutchinson"), (2, 2, 2), "ode estimate"
    ),
    "continuous along the patches": Case(
        lambda: Along(-1, Chain(ActNorm(4), LU(4), continuous(4))), (3, 4), "ode"
    ),
    "patches": Case(lambda: Patches((3, 4, 4), (2, 2)), (3, 4, 4)),
    "patches, rectangular": Case(lambda: Patches((1, 4, 6), (2, 3)), (1, 4, 6)),
    "patches of signals": Case(lambda: Patches((2, 6), (3,)), (2, 6)),
    "patches of volumes": Case(lambda: Patches((2, 4, 2, 3), (2, 1, 3)), (2, 4, 2, 3)),
    "dilated": Case(lambda: Dilated((2, 4, 6), (2, 3)), (2, 4, 6)),
    "dilated volumes": Case(lambda: Dilated((1, 4, 2, 4), (2, 2, 2)), (1, 4, 2, 4)),
    "stripes": Case(lambda: Stripes((2, 6, 3), 2), (2, 6, 3)),
    "stripes of signals": Case(lambda: Stripes((2, 6), 3), (2, 6)),
    "stripes of volumes": Case(lambda: Stripes((1, 4, 2, 3), 2), (1, 4, 2, 3)),
    "bands": Case(lambda: Bands((2, 3, 6), 2), (2, 3, 6)),
    "bands of volumes": Case(lambda: Bands((1, 2, 3, 4), 2), (1, 2, 3, 4)),
    "dequantize": Case(Dequantize, (3, 2, 4), "stochastic", inputs=pixels(256)),
    "dequantize, 5 levels": Case(lambda: Dequantize(5), (7,), "stochastic", inputs=pixels(5)),
    "dequantize, 16 bits": Case(
        lambda: Dequantize(2**16), (2, 5), "stochastic", inputs=pixels(2**16)
    ),
    "rescale": Case(lambda: Rescale(2 / 256, -1.0), (3, 2, 4)),
    "rescale, negative": Case(lambda: Rescale(-3.0), (5,)),
    "logit": Case(Logit, (2, 3), inputs=unit),
    "mixerflow": mixerflow_case(layers=4, shift_every=4),
    "mixerflow, batch norm": mixerflow_case(norm="batch"),
    "mixerflow, layer norm": mixerflow_case(norm="layer"),
    "mixerflow, per activation": mixerflow_case(actnorm="activation"),
    "mixerflow, conditional": mixerflow_case(context=(3,), classes=4, class_width=3),
    "mixerflow, dilated RLU": mixerflow_case(cut="dilated", linear="RLU", scale_bound=2.0),
    "mixerflow, Woodbury": mixerflow_case(linear="Woodbury", rank=2),
    "mixerflow, butterfly among patches": mixerflow_case(patch_linear="Butterfly"),
    "mixerflow, stripes": mixerflow_case(cut="stripes"),
}

GRAPHS = {"compile forward", "compile inverse", "export"}
# seconds each: one of every sort by default, the rest among the slow tests
COMPILED = ["LU", "coupling, flipped", "along with context", "window", "dequantize", "logit"]


@pytest.mark.parametrize("name", CASES)
def test_obeys_its_laws(name):
    CASES[name].check(set(LAWS) - GRAPHS)


@pytest.mark.parametrize("name", CASES)
def test_its_inference_copy_obeys_them(name):
    CASES[name].fused().check(set(LAWS) - GRAPHS - {"gradients"})  # nothing in it wants one


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
    assert ours - tried == set(), "add a case for each of these to CASES"


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
        (lambda: Woodbury(4, 2), (5,), r"\(4,\).*\(5,\)"),
        (lambda: Butterfly(4), (5,), r"\(4,\).*\(5,\)"),
        (lambda: ActNorm((3, 1, 1)), (4, 2, 2), r"\(3, 1, 1\).*\(4, 2, 2\)"),
        (lambda: Patches((3, 4, 4), (2, 2)), (3, 4, 6), r"\(3, 4, 4\).*\(3, 4, 6\)"),
        (lambda: Along(0, LU(3)), (4, 2), r"\(3,\).*\(4,\)"),
        (lambda: Along(2, LU(3)), (3, 2), r"axis 2.*\(3, 2\)"),
        (lambda: Window((1,), (4,), LU(4)), (4,), r"\(1,\) to \[5\].*\(4,\)"),
        (lambda: Inverse(Patches((1, 4), (2,)), (1, 4)), (1, 4), r"\(2, 2\).*\(1, 4\)"),
        (lambda: Coupling(0, ConvNet(1, 2), Affine()), (1, 4, 4), r"axis 0.*\(1, 4, 4\)"),
    ],
)
def test_wrong_shapes_are_refused_when_a_flow_is_built(make, shape, named):
    with pytest.raises(ValueError, match=named):
        make().out_shape(shape)
