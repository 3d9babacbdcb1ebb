"""Every transform of the package, and how it is made: the cases of the laws."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import nn

from mixerflow.core import (
    Along,
    Chain,
    Inverse,
    Layer,
    MultiScale,
    Shape,
    Transform,
    Window,
)
from mixerflow.core.shared import share
from mixerflow.nets import (
    MADE,
    AttentionNet,
    CLipSwish,
    ColumnEncoder,
    ConvVelocity,
    DenseAttentionNet,
    DenseConvNet,
    DenseEncoder,
    GatedAttentionNet,
    GlowNet,
    KernelNet,
    LearnedPositionalEncoding,
    LineConvNet,
    LipELU,
    LipschitzConvNet,
    LipschitzDense,
    LipschitzDenseConv,
    LipschitzMLP,
    MaskedMLP,
    PlainConvNet,
    PreactivationNet,
    ResidualConvNet,
    ResidualDenseNet,
    ResidualMLP,
    ResNet,
    SinusoidalPositionalEncoding,
    SplineNet,
    TanhScale,
    Velocity,
    WideningConvNet,
    ZeroConv,
    matern,
)
from mixerflow.recipes import build
from mixerflow.transforms import (
    LU,
    PLU,
    RLU,
    AbsoluteValue,
    ActNorm,
    Affine,
    Augment,
    AugmentByFlow,
    Autoregressive,
    AutoregressiveConvolution,
    Bands,
    BatchNorm,
    Butterfly,
    Checkerboard,
    CheckerboardSqueeze,
    Columns,
    Continuous,
    Coupling,
    CrossUnits,
    Dequantize,
    DiagonalAffine,
    Dilated,
    EachPart,
    Elementwise,
    FlooredAffine,
    Gaussianize,
    Halves,
    Householder,
    KernelChain,
    Leading,
    LineAutoregressive,
    LogisticMixture,
    Logit,
    MapAttention,
    Matrix,
    MaxPool,
    MixerLayer,
    Monotone,
    NormalScores,
    NoSplit,
    Patchify,
    PeriodicConvolution,
    RationalQuadratic,
    Rescale,
    Reshape,
    Residual,
    Roll,
    Round,
    ShufflePixels,
    SigmoidAffine,
    Sort,
    SpaceToDepth,
    Split,
    Squeeze,
    Standardize,
    Stripes,
    SwapHalves,
    TokenAttention,
    UnpackedPLU,
    VariationalDequantize,
    Whiten,
    Woodbury,
    halves,
)
from mixerflow.transforms.checks import KindName, check, normal, perturb, unit
from mixerflow.transforms.series import PoissonTail
from mixers import mixer


def coupling(n: int, *, bound=None, flip=False, norm="none", **read) -> Coupling:
    given, changed = halves(n, flip=flip)
    net = ResidualMLP(given, 2 * changed, width=8, norm=norm, **read)
    return Coupling(-1, net, Affine(bound), flip=flip)


def through(dim, n, make: Callable[[int, int], nn.Module], *, flip=False) -> Coupling:
    """A coupling of axis `dim` with n entries, by a net made for its halves."""
    given, changed = halves(n, flip=flip)
    return Coupling(dim, make(given, 2 * changed), Affine(2.0), flip=flip)


def kan(n: int, *, flip=False, **settings) -> Coupling:
    return through(-1, n, lambda a, b: SplineNet(a, b, width=4, **settings), flip=flip)


def kernels(n: int, *, flip=False, **settings) -> Coupling:
    return through(-1, n, lambda a, b: KernelNet(a, b, width=5, **settings), flip=flip)


def image_coupling(channels: int, *, flip=False, **settings) -> Coupling:
    return through(0, channels, lambda a, b: ResidualConvNet(a, b, width=4, **settings), flip=flip)


def squeezed(shape: Shape) -> Chain:
    """Squeezes, mixes the channels and couples them."""
    channels = shape[0] * 2 ** (len(shape) - 1)
    return Chain(Squeeze(shape), Along(0, LU(channels)), Along(0, coupling(channels)))


def dense_coupling(channels: int, *, flip=False, **settings) -> Coupling:
    def make(a, b):
        return DenseConvNet(a, b, width=4, growth=3, depth=2, **settings)

    return through(0, channels, make, flip=flip)


def attentive_coupling(channels: int, *, flip=False, **settings) -> Coupling:
    def make(a, b):
        small = {"width": 4, "growth": 3, "depth": 2, "count": 2}
        return DenseAttentionNet(a, b, **{**small, **settings})

    return through(0, channels, make, flip=flip)


def augment(shape: Shape, channels: int = 1, *, given: int | None = None, context=0) -> Augment:
    axes = len(shape) - 1
    net = WideningConvNet(given or shape[0], 2 * channels, factor=2, context=context, axes=axes)
    return Augment(shape, channels, net)


def augment_by_flow() -> AugmentByFlow:
    """One channel beside images (1, 2, 1), whose pixels read those of the image."""
    read = split_by(Checkerboard(), 1, PlainConvNet, context=2)
    flow = Chain(ActNorm((1, 2, 1)), read)
    return AugmentByFlow((1, 2, 1), 1, PlainConvNet(1, 2, width=4), flow)


def cross_units(shape: Shape, units: int = 3, *, context=0) -> CrossUnits:
    """Units of one coupling and one matrix each, with a channel of noise between them."""
    c, *spatial = shape
    widths = [c + i for i in range(units)]
    made = [
        Chain(Along(0, Matrix(n)), image_coupling(n, squash=False, context=context)) for n in widths
    ]
    given = [c + sum(widths[:i]) for i in range(units - 1)]
    augments = [
        augment((n, *spatial), given=g, context=context)
        for n, g in zip(widths, given, strict=False)
    ]
    return CrossUnits(shape, made, augments)


def variational(shape: Shape, *, factor=2, levels=256) -> VariationalDequantize:
    axes = len(shape) - 1
    squeeze = Squeeze(shape, factor)
    n = squeeze.latent_shape[0]
    given, changed = halves(n)
    net = ResidualDenseNet(given, 2 * changed, width=6, growth=6, depth=2, context=3, axes=axes)
    steps = [DiagonalAffine((n, *(1,) * axes)), Along(0, Matrix(n)), Coupling(0, net, Affine(2.0))]
    encoder = DenseEncoder(shape[0], width=3, growth=6, depth=2, factor=factor, axes=axes)
    flow = Chain(*steps, Inverse(squeeze, shape))
    return VariationalDequantize(shape, encoder, flow, squeeze.latent_shape, levels)


def gated_coupling(channels: int, axes: int = 2, *, context=0, **settings) -> Coupling:
    """Columns of images of four columns mapped by gated convolutions and attention of width 4."""
    sides = (*(3,) * (axes - 1), 2)
    settings = {"width": 4, "depth": 1, "heads": 2, "sides": sides, **settings}
    law = LogisticMixture(2)
    net = GatedAttentionNet(channels, law.params * channels, context=context, **settings)
    return Coupling(Columns(), net, law)


def by_columns(levels=256) -> VariationalDequantize:
    """Noise of images (1, 1, 4) by one coupling of columns, which reads an encoder of columns."""
    flow = gated_coupling(1, context=3, sides=(1, 2))
    encoder = ColumnEncoder((1, 1, 4), width=3, depth=1)
    return VariationalDequantize((1, 1, 4), encoder, flow, (1, 1, 4), levels)


def token_coupling(n: int, *, flip=False, **settings) -> Coupling:
    def make(a, b):
        return AttentionNet(a, b, width=6, heads=2, **settings)

    return through(-1, n, make, flip=flip)


class Cubic(Elementwise):
    """``z = x + a^2 (x + b)^3 + c``, a law without a closed inverse, of three numbers."""

    @property
    def params(self):
        return 3

    def forward(self, x, raw):
        a, b, c = raw
        return x + a**2 * (x + b) ** 3 + c, (3 * a**2 * (x + b) ** 2).log1p()

    def inverse(self, z, raw):
        a, b, c = raw
        # Cardano's: with w = x + b, a^2 w^3 + w = z - c + b has one real root
        p, q = 1 / (3 * a**2), (z - c + b) / (2 * a**2)
        root = (q**2 + p**3).sqrt() + q.abs()
        u = root ** (1 / 3)
        w = q.sign() * (u - p / u)
        w = w - (a**2 * w**3 + w - (z - c + b)) / (1 + 3 * a**2 * w**2)  # and one step of Newton's
        x = w - b
        return x, -(3 * a**2 * w**2).log1p()


def made(n: int, law=None, **settings) -> Autoregressive:
    law = Affine() if law is None else law
    return Autoregressive(MADE(n, law.params, **{"width": 10, **settings}), law)


def masked_mlp(n: int, **settings) -> Autoregressive:
    return Autoregressive(MaskedMLP(n, 2, **{"width": 11, **settings}), Affine(2.0))


class Before(nn.Module):
    """A net that is autoregressive without being a MADE: a strictly triangular matrix."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n = n
        self.weight = nn.Parameter(torch.randn(n, n, generator=torch.Generator().manual_seed(0)))
        self.bias = nn.Parameter(torch.zeros(n))

    def forward(self, x, context=None):
        shift = x.sin() @ self.weight.tril(-1).mT
        return torch.cat([shift.tanh() + self.bias, shift], 1)


def lawful(n: int, law: Elementwise, *, flip=False, context=0) -> Coupling:
    given, changed = halves(n, flip=flip)
    net = ResidualMLP(given, law.params * changed, width=8, context=context)
    return Coupling(-1, net, law, flip=flip)


def split_by(
    split: Split,
    channels: int,
    make: Callable[..., nn.Module] = ResidualConvNet,
    law: Elementwise | None = None,
    **settings,
) -> Coupling:
    """A coupling of images, by a net of width 4."""
    law = Affine(2.0) if law is None else law
    given, changed = split.sizes(channels)
    if make is not ZeroConv:
        settings = {"width": 4, **settings}
    return Coupling(split, make(given, law.params * changed, **settings), law)


def by_lines(channels: int, law: Elementwise | None = None, **settings) -> LineAutoregressive:
    """Lines of images mapped by a net of width 5."""
    law = SigmoidAffine(shift_last=True) if law is None else law
    net = LineConvNet(channels, law.params * channels, **{"width": 5, "span": 3, **settings})
    return LineAutoregressive(net, law)


def real_nvp_coupling(split: Split, channels: int, **settings) -> Coupling:
    given, changed = split.sizes(channels)
    net = ResNet(given, 2 * changed, **{"width": 4, "depth": 1, **settings})
    return Coupling(split, TanhScale(net, changed), Affine())


class ImageVelocity(nn.Module):
    """A convolution that knows nothing of its divergence."""

    def __init__(self, channels: int, context: int = 0, speed: float = 1.0) -> None:
        super().__init__()
        self.speed = speed
        self.enter = nn.Conv2d(channels, 6, 3, padding=1)
        self.leave = nn.Conv2d(6, channels, 1)
        self.told = nn.Linear(1 + context, channels)

    def forward(self, t, x, context=None):
        if x.dim() != 4 or x.shape[1] != self.leave.out_channels:
            raise ValueError(f"{self.leave.out_channels} channels; got events {tuple(x.shape[1:])}")
        moment = torch.as_tensor(t).to(x).reshape(-1, 1).expand(len(x), 1)
        told = moment if context is None else torch.cat([moment, context], 1)
        return self.speed * (self.leave(self.enter(x).tanh()) + self.told(told)[..., None, None])


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
    return build(mixer(**{**small, "levels": None, **settings}), shape).transform


def pixels(levels: int) -> Callable[[int, Shape, torch.Generator], torch.Tensor]:
    def draw(batch, shape, generator):
        values = torch.randint(0, levels, (batch, *shape), generator=generator)
        return values.to(torch.uint8) if levels <= 256 else values

    return draw


def signed(n: int, *, context=0) -> AbsoluteValue:
    return AbsoluteValue(ResidualMLP(n, n, width=6, context=context))


def signed_images() -> AbsoluteValue:
    return AbsoluteValue(PlainConvNet(2, 2, width=4))


def ordered(batch: int, shape: Shape, generator: torch.Generator) -> torch.Tensor:
    return normal(batch, shape, generator).sort().values


def whole(batch: int, shape: Shape, generator: torch.Generator) -> torch.Tensor:
    return (3 * normal(batch, shape, generator)).floor()


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

    def moved(self) -> Transform:
        """The transform away from its start, in float64."""
        transform = self.make().double()
        perturb(transform, size=self.size)
        return transform

    def fused(self) -> "Case":
        """The same transform, moved, as its inference copy."""
        return replace(self, make=lambda: self.moved().fused(), size=0.0)


def started(transform: Transform, shape: Shape) -> Transform:
    """A transform that a batch has initialised whose last entry is constant."""
    x = torch.randn(20, *shape, generator=torch.Generator().manual_seed(0)) * 3 + 1
    x[:, -1] = 2.0
    transform.initialize(x)
    return transform


def scored(shape: Shape, levels: int) -> NormalScores:
    """Normal scores that a batch of mostly small values has initialised."""
    transform = NormalScores(shape, levels)
    x = torch.rand(50, *shape, generator=torch.Generator().manual_seed(0)) ** 3
    transform.initialize(x * levels)
    return transform


def mixerflow_case(*, context: Shape | None = None, **settings) -> Case:
    shape = (2, 6, 4)
    return Case(lambda: mixerflow_layers(shape, **settings), shape, context=context, size=0.15)


class FromContext(nn.Module):
    """A net of which no weight idles although it reads zeros."""

    def __init__(self, out, context=0):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(out))
        self.context = nn.Linear(context, out, bias=False) if context else None

    def forward(self, x, context=None):
        out = self.bias if self.context is None else self.bias + self.context(context)
        return out.expand(len(x), -1)[..., None, None] + x


def called_as_one() -> Transform:
    """A transform that occurs four times, as an export calls it."""
    return share(nn.ModuleList(Chain(LU(4), coupling(4)) for _ in range(4)))[0]


CASES = {
    "called as a function": Case(called_as_one, (4,)),
    "chain": Case(lambda: Chain(LU(5), coupling(5), ActNorm(5)), (5,)),
    "chain of nothing": Case(Chain, (3,)),
    "layer": Case(lambda: Layer(coupling(4), LU(4)), (4,)),
    "rows": Case(lambda: KernelChain(ActNorm(5), LU(5), coupling(5), ActNorm(5)), (5,)),
    "rows with batch norm": Case(
        lambda: KernelChain(
            LU(6), coupling(6, norm="batch"), LU(6), coupling(6, norm="batch", flip=True)
        ),
        (6,),
    ),
    "rows with a KAN": Case(lambda: KernelChain(LU(6), kan(6, norm="batch"), ActNorm(6)), (6,)),
    "inverse": Case(lambda: Inverse(Chain(LU(4), coupling(4)), (4,)), (4,)),
    "inverse of a cut": Case(lambda: Inverse(Patchify((2, 4, 6), (2, 3)), (2, 4, 6)), (4, 12)),
    "inverse of a logit": Case(lambda: Inverse(Logit(), (4,)), (4,)),
    "along the channels": Case(lambda: Along(0, LU(3)), (3, 4, 2)),
    "along the height": Case(lambda: Along(1, Chain(LU(4), coupling(4))), (3, 4, 2)),
    "along the width": Case(lambda: Along(-1, coupling(3)), (2, 4, 3)),
    "along an only axis": Case(lambda: Along(0, LU(4)), (4,)),
    "along with context": Case(lambda: Along(-2, coupling(4, context=3)), (4, 3), context=(3,)),
    "along with positions": Case(
        lambda: Along(-2, coupling(4, context=3), rows=LearnedPositionalEncoding(3, 3)), (4, 3)
    ),
    "along with positions and context": Case(
        lambda: Along(-1, coupling(3, context=5), rows=SinusoidalPositionalEncoding(8, 3)),
        (2, 4, 3),
        context=(2,),
    ),
    "along with a map of contexts": Case(
        lambda: Along(0, coupling(4, context=3)), (4, 2, 3), context=(3, 2, 3)
    ),
    "two scales": Case(
        lambda: MultiScale((1, 4, 2), [squeezed((1, 4, 2)), image_coupling(2)]), (1, 4, 2)
    ),
    "two scales, the last go on, with context": Case(
        lambda: MultiScale(
            (3, 2, 2),
            [image_coupling(3, context=2), Chain(image_coupling(2, context=2))],
            kept=[2],
            keep="last",
        ),
        (3, 2, 2),
        context=(2,),
    ),
    "three scales of signals, unequal": Case(
        lambda: MultiScale(
            (5, 4),
            [Along(0, coupling(5)), Along(-1, coupling(4)), squeezed((1, 4))],
            kept=[4, 1],
        ),
        (5, 4),
    ),
    "three scales of volumes, odd": Case(
        lambda: MultiScale(
            (3, 2, 2, 2),
            [Along(0, LU(3)), squeezed((1, 2, 2, 2)), Chain(ActNorm((4, 1, 1, 1)))],
            keep="last",
        ),
        (3, 2, 2, 2),
    ),
    "scales of a vector": Case(
        lambda: MultiScale((5,), [Layer(LU(5), coupling(5)), LU(2), ActNorm(1)]), (5,)
    ),
    "window": Case(lambda: Window((1, 2), (3, 2), Along(-1, coupling(2))), (2, 5, 4)),
    "window of all": Case(lambda: Window((0,), (4,), coupling(4)), (4,)),
    "LU": Case(lambda: LU(5), (5,)),
    "LU of one": Case(lambda: LU(1), (1,)),
    "LU without bias": Case(lambda: LU(4, bias=False), (4,)),
    "RLU": Case(lambda: RLU(5), (5,)),
    "PLU": Case(lambda: PLU(5), (5,)),
    "PLU with bias": Case(lambda: PLU(4, bias=True), (4,)),
    "matrix": Case(lambda: Matrix(5), (5,)),
    "unpacked PLU": Case(lambda: UnpackedPLU(5), (5,)),
    "unpacked PLU along the channels": Case(lambda: Along(0, UnpackedPLU(3)), (3, 2, 2)),
    "prior": Case(lambda: Coupling(NoSplit((1, 2, 3)), FromContext(6), Affine()), (3, 2, 3)),
    "prior of each class": Case(
        lambda: Coupling(NoSplit((1, 2, 3)), FromContext(6, 2), Affine()), (3, 2, 3), context=(2,)
    ),
    "matrix of one": Case(lambda: Matrix(1), (1,)),
    "matrix along the channels": Case(lambda: Along(0, Matrix(3)), (3, 2, 2)),
    "diagonal, an activation": Case(lambda: DiagonalAffine((4, 3)), (4, 3)),
    "diagonal, a channel": Case(lambda: DiagonalAffine((3, 1, 1)), (3, 2, 4)),
    "linear": Case(lambda: PLU(5, bias=True), (5,)).fused(),
    "Woodbury": Case(lambda: Woodbury(7, 3), (7,)),
    "Woodbury, folded": Case(lambda: Woodbury(7, 3), (7,)).fused(),
    "Woodbury without bias, folded": Case(lambda: Woodbury(4, 2, bias=False), (4,)).fused(),
    "standardised": Case(lambda: started(Standardize((3, 1, 1)), (3, 2, 4)), (3, 2, 4), size=0.0),
    "standardised vectors, one constant": Case(
        lambda: started(Standardize(4), (4,)), (4,), size=0.0
    ),
    "whitened": Case(lambda: started(Whiten(5), (5,)), (5,), size=0.0),
    "whitened along the channels": Case(
        lambda: started(Along(0, Whiten(3, ridge=0.1)), (3, 2, 2)), (3, 2, 2), size=0.0
    ),
    "Woodbury of one": Case(lambda: Woodbury(1, 1), (1,)),
    "Woodbury of more rank than entries": Case(lambda: Woodbury(3, 5), (3,)),
    "autoregressive convolution": Case(lambda: AutoregressiveConvolution(3), (3, 4, 3)),
    "autoregressive convolution, reversed, with bias": Case(
        lambda: AutoregressiveConvolution(2, 5, reverse=True, bias=True), (2, 2, 4)
    ),
    "autoregressive convolution of signals": Case(
        lambda: AutoregressiveConvolution(3, 3, axes=1), (3, 5)
    ),
    "autoregressive convolution of volumes": Case(
        lambda: AutoregressiveConvolution(2, axes=3, reverse=True), (2, 3, 2, 2)
    ),
    "periodic convolution": Case(lambda: PeriodicConvolution(3), (3, 4, 3)),
    "periodic convolution, with bias": Case(
        lambda: PeriodicConvolution(2, 5, bias=True), (2, 1, 4)
    ),
    "periodic convolution of signals": Case(lambda: PeriodicConvolution(3, axes=1), (3, 5)),
    "periodic convolution of volumes": Case(lambda: PeriodicConvolution(2, axes=3), (2, 3, 2, 2)),
    "Woodbury of full rank, without bias": Case(lambda: Woodbury(4, 4, bias=False), (4,)),
    # blocks are many, so each moves little unless the perturbation is large
    "butterfly": Case(lambda: Butterfly(8), (8,), size=1.5),
    "butterfly of two": Case(lambda: Butterfly(2), (2,), size=1.5),
    "butterfly, overlapping": Case(lambda: Butterfly(7), (7,), size=1.5),
    "butterfly, two groups of levels": Case(lambda: Butterfly(37), (37,), size=1.5),
    "butterfly, few levels, without bias": Case(
        lambda: Butterfly(8, 2, bias=False), (8,), size=1.5
    ),
    "butterfly of the whole vector": Case(lambda: Butterfly(12, whole=True), (12,), size=1.5),
    "butterfly, level by level, rotated": Case(lambda: Butterfly(7, rotated=True, grouped=1), (7,)),
    "Householder": Case(lambda: Householder(5), (5,)),
    "Householder, one": Case(lambda: Householder(2, 1), (2,)),
    "Householder, principal": Case(lambda: Householder(5, 3, start="principal"), (5,)),
    "Householder, many": Case(lambda: Householder(3, 8), (3,)),
    "Gaussianize": Case(lambda: Gaussianize(5), (5,), "iterative"),
    "Gaussianize one": Case(lambda: Gaussianize(1, 2), (1,), "iterative"),
    "Gaussianize, rotated": Case(
        lambda: Chain(Gaussianize(3, 5), Householder(3, 2), Gaussianize(3)), (3,), "iterative"
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
    "coupling, squares": Case(lambda: coupling(5, squares=True), (5,)),
    "coupling, batch norm": Case(lambda: coupling(5, norm="batch"), (5,)),
    "coupling, layer norm": Case(lambda: coupling(5, norm="layer"), (5,)),
    "coupling, conditional": Case(lambda: coupling(5, context=3), (5,), context=(3,)),
    "coupling, floored": Case(lambda: lawful(5, FlooredAffine()), (5,)),
    "coupling, floored, flipped": Case(
        lambda: lawful(5, FlooredAffine(0.5), flip=True, context=3), (5,), context=(3,)
    ),
    # perturbed by much: a net's small outputs hardly bend a spline. By more, float32 would fail
    # "batch size", and not for the spline's formulas: a matrix product of 1 row and one of 64 give
    # raw parameters 7e-7 apart, which moves the log-derivative of a steep bin's inverse by up to
    # 1e-4 whatever the precision it is then computed in (raws N(0, 1/4), 8 bins)
    "coupling, spline": Case(lambda: lawful(5, RationalQuadratic()), (5,), "spline", size=0.5),
    "coupling, spline, flipped": Case(
        lambda: lawful(5, RationalQuadratic(3, 1.0), flip=True), (5,), "spline", size=0.5
    ),
    "coupling, spline, conditional": Case(
        lambda: lawful(3, RationalQuadratic(8), flip=True, context=2),
        (3,),
        "spline",
        (2,),
        size=0.3,
    ),
    "coupling, logistics": Case(lambda: lawful(5, LogisticMixture()), (5,), "iterative"),
    "coupling, logistics, flipped": Case(
        lambda: lawful(5, LogisticMixture(3), flip=True), (5,), "iterative", size=1.0
    ),
    "coupling, logistics, conditional": Case(
        lambda: lawful(3, LogisticMixture(4), flip=True, context=2), (3,), "iterative", (2,)
    ),
    "coupling of two by one logistic": Case(
        lambda: lawful(2, LogisticMixture(1)), (2,), "iterative"
    ),
    "coupling of images": Case(lambda: image_coupling(4), (4, 3, 3)),
    "coupling of images, odd": Case(lambda: image_coupling(3, flip=True), (3, 4, 2)),
    "coupling of images, norms, conditional": Case(
        lambda: image_coupling(3, norm="layer", context=2), (3, 2, 3), context=(2,)
    ),
    "coupling of images, batch norm, a map": Case(
        lambda: image_coupling(3, norm="batch", context=2, kernel=1), (3, 2, 3), context=(2, 2, 3)
    ),
    "coupling of signals": Case(lambda: image_coupling(3, axes=1, squash=False), (3, 5)),
    "coupling of volumes": Case(lambda: image_coupling(2, axes=3, depth=0), (2, 3, 2, 2)),
    "coupling, dense": Case(lambda: dense_coupling(3), (3, 4, 2)),
    "coupling, dense, batch norm, conditional": Case(
        lambda: dense_coupling(3, flip=True, norm="batch", context=2), (3, 2, 3), context=(2,)
    ),
    "coupling, dense, signals": Case(lambda: dense_coupling(4, axes=1, norm="layer"), (4, 5)),
    "coupling of tokens": Case(lambda: token_coupling(4), (3, 4)),
    "coupling of tokens, flipped, positions": Case(
        lambda: token_coupling(5, flip=True, tokens=4, depth=2), (4, 5)
    ),
    "coupling of tokens, batch norm, conditional": Case(
        lambda: token_coupling(5, norm="batch", context=3, squash=False), (3, 5), context=(3,)
    ),
    "coupling, KAN": Case(lambda: kan(6), (6,)),
    "coupling, KAN, odd, flipped": Case(lambda: kan(5, flip=True, norm="layer"), (5,)),
    "coupling, KAN, conditional": Case(
        lambda: kan(5, norm="batch", context=2, squash=False, grid=3, extent=0.5),
        (5,),
        context=(2,),
    ),
    "coupling, kernels": Case(lambda: kernels(6), (6,)),
    "coupling, kernels, odd, flipped": Case(lambda: kernels(5, flip=True, norm="layer"), (5,)),
    "coupling, Matern, conditional": Case(
        lambda: kernels(5, norm="batch", context=2, squash=False, kernel=matern), (5,), context=(2,)
    ),
    "coupling, sigmoid": Case(lambda: lawful(5, SigmoidAffine()), (5,)),
    "coupling, sigmoid, then a shift": Case(
        lambda: lawful(5, SigmoidAffine(1.0, shift_last=True)), (5,)
    ),
    "rows from the top": Case(lambda: by_lines(2), (2, 4, 3)),
    "rows from the bottom, conditional": Case(
        lambda: by_lines(2, Affine(2.0), after=True, reach=1, span=5, context=2),
        (2, 3, 4),
        context=(2,),
    ),
    "columns from the left": Case(lambda: by_lines(1, axis=1, reach=3), (1, 3, 5)),
    "columns from the right, splines": Case(
        lambda: by_lines(2, RationalQuadratic(), axis=1, after=True), (2, 1, 3), "spline"
    ),
    "samples of signals in turn": Case(lambda: by_lines(2, axes=1), (2, 5)),
    "planes of volumes in turn": Case(
        lambda: by_lines(1, axes=3, axis=1, after=True), (1, 2, 3, 2)
    ),
    "coupling of a board": Case(lambda: split_by(Checkerboard(), 2), (2, 3, 4)),
    "coupling of a board, flipped, sigmoid": Case(
        lambda: split_by(Checkerboard(flip=True), 1, GlowNet, SigmoidAffine()), (1, 3, 5)
    ),
    "coupling of a board, conditional": Case(
        lambda: real_nvp_coupling(Checkerboard(), 2, norm="batch", context=3),
        (2, 3, 3),
        context=(3,),
    ),
    "coupling of a board, spline": Case(
        lambda: split_by(Checkerboard(flip=True), 2, PlainConvNet, RationalQuadratic()),
        (2, 2, 3),
        "spline",
    ),
    "coupling of a board, logistics": Case(
        lambda: split_by(Checkerboard(), 1, law=LogisticMixture(2)), (1, 3, 3), "iterative"
    ),
    "coupling of a board of signals": Case(
        lambda: split_by(Checkerboard(), 2, ZeroConv, axes=1), (2, 5)
    ),
    "coupling of a board of volumes": Case(
        lambda: split_by(Checkerboard(flip=True), 1, PlainConvNet, axes=3), (1, 3, 2, 3)
    ),
    "coupling of leading channels": Case(lambda: split_by(Leading(1), 3), (3, 2, 3)),
    "coupling of leading channels, flipped": Case(
        lambda: split_by(Leading(1, flip=True), 3), (3, 2, 2)
    ),
    "a map of even and of odd columns": Case(
        lambda: EachPart(Columns(), Along(0, Matrix(2)), ActNorm((2, 2, 2))), (2, 2, 4)
    ),
    "a map of leading channels, and one of the others": Case(
        lambda: EachPart(Leading(1), ActNorm((1, 1, 1)), Along(0, LU(2))), (3, 2, 2)
    ),
    "coupling of columns": Case(lambda: split_by(Columns(), 2), (2, 3, 4)),
    "coupling of columns, flipped, logistics": Case(
        lambda: split_by(Columns(flip=True), 1, law=LogisticMixture(2)), (1, 3, 4), "iterative"
    ),
    "coupling of columns of signals, a map": Case(
        lambda: split_by(Columns(), 2, PlainConvNet, axes=1, zero=True, context=1),
        (2, 6),
        context=(1, 3),
    ),
    "coupling of columns, gated attention": Case(
        lambda: gated_coupling(2, context=3), (2, 3, 4), "iterative", context=(3,)
    ),
    "coupling of columns of signals, gated attention, weight norm, a map": Case(
        lambda: gated_coupling(1, axes=1, weight_norm=True, last_elu=True, context=2),
        (1, 4),
        "iterative",
        context=(2, 2),
    ),
    "coupling, Glow": Case(lambda: split_by(Halves(), 4, GlowNet, SigmoidAffine()), (4, 3, 4)),
    "coupling, Glow, flipped, conditional": Case(
        lambda: split_by(Halves(flip=True), 3, GlowNet, context=2, factor=3.0),
        (3, 2, 3),
        context=(2,),
    ),
    "coupling, zero convolution, a map": Case(
        lambda: split_by(Halves(0, flip=True), 4, ZeroConv, context=2, second_bias=False),
        (4, 3, 2),
        context=(2, 3, 2),
    ),
    "coupling, plain convolutions, splines": Case(
        lambda: split_by(Halves(0, flip=True), 3, PlainConvNet, RationalQuadratic(), context=2),
        (3, 2, 3),
        "spline",
        context=(2,),
    ),
    "coupling, pre-activation": Case(
        lambda: split_by(Halves(), 3, PreactivationNet, norm="batch", depth=1, context=2),
        (3, 3, 2),
        context=(2,),
    ),
    "coupling, RealNVP": Case(
        lambda: real_nvp_coupling(Halves(), 3, depth=2, norm="none"), (3, 3, 2)
    ),
    "mixer": Case(
        lambda: MixerLayer(
            Patchify((2, 4, 4), (2, 2)),
            Along(-1, KernelChain(ActNorm(8), LU(8), coupling(8), ActNorm(8))),
            Along(-2, KernelChain(LU(4), coupling(4, flip=True))),
            Inverse(Patchify((2, 4, 4), (2, 2)), (2, 4, 4)),
        ),
        (2, 4, 4),
    ),
    "attention among patches": Case(
        lambda: Chain(
            Patchify((2, 4, 4), (2, 2)),
            token_coupling(8, tokens=4),
            TokenAttention(8, heads=2, width=2, flip=True),
            Inverse(Patchify((2, 4, 4), (2, 2)), (2, 4, 4)),
        ),
        (2, 4, 4),
    ),
    "map attention": Case(lambda: MapAttention(4), (3, 4)),
    "map attention, odd": Case(lambda: MapAttention(5), (4, 5)),
    "map attention, odd, flipped": Case(lambda: MapAttention(5, flip=True), (4, 5)),
    "token attention": Case(lambda: TokenAttention(4, width=3), (3, 4), size=1.0),
    "token attention, heads": Case(lambda: TokenAttention(8, heads=2, width=2), (4, 8), size=1.0),
    "token attention, odd, flipped": Case(
        lambda: TokenAttention(5, heads=3, width=2, flip=True), (4, 5), size=1.0
    ),
    "token attention of two": Case(lambda: TokenAttention(3), (2, 3)),
    "autoregressive": Case(lambda: made(5), (5,)),
    "autoregressive, reversed": Case(lambda: made(6, order=range(5, -1, -1)), (6,)),
    "autoregressive, any order": Case(lambda: made(5, order=[3, 0, 4, 1, 2]), (5,)),
    "autoregressive of one": Case(lambda: made(1), (1,)),
    "autoregressive of one, conditional": Case(lambda: made(1, context=3), (1,), context=(3,)),
    "autoregressive of two": Case(lambda: made(2, order=[1, 0]), (2,)),
    "autoregressive, conditional": Case(
        lambda: made(4, context=3, blocks=2, order=[2, 0, 3, 1]), (4,), context=(3,)
    ),
    "autoregressive, batch norm": Case(lambda: made(5, norm="batch"), (5,)),
    "autoregressive, narrow, unsquashed": Case(
        lambda: made(7, width=3, squash=False, order=[6, 1, 0, 2, 5, 4, 3]), (7,)
    ),
    "autoregressive, linear": Case(lambda: made(5, blocks=0), (5,)),
    "autoregressive, plain": Case(lambda: masked_mlp(5), (5,)),
    "autoregressive, plain, deep": Case(
        lambda: masked_mlp(6, layers=3, squash=True, context=2, order=range(5, -1, -1)),
        (6,),
        context=(2,),
    ),
    "autoregressive, a cubic law": Case(lambda: made(4, Cubic(), order=[1, 3, 0, 2]), (4,)),
    "autoregressive, a net of yours": Case(lambda: Autoregressive(Before(5), Affine()), (5,)),
    "autoregressive, inverse": Case(lambda: Inverse(made(5, order=[3, 0, 4, 1, 2]), (5,)), (5,)),
    "autoregressive, inverse, conditional": Case(
        lambda: Inverse(made(4, context=3), (4,)), (4,), context=(3,)
    ),
    "autoregressive along patches": Case(
        lambda: Along(-2, made(4, context=2)), (4, 3), context=(2,)
    ),
    "batch norm, vectors": Case(lambda: BatchNorm(5), (5,)),
    "batch norm, a feature": Case(lambda: BatchNorm(3), (4, 3)),
    "batch norm, a channel": Case(lambda: BatchNorm((3, 1, 1)), (3, 2, 4)),
    "batch norm, an activation": Case(lambda: BatchNorm((4, 3)), (4, 3)),
    "batch norm before a linear map": Case(lambda: Chain(BatchNorm(4), LU(4), BatchNorm(4)), (4,)),
    "residual": Case(lambda: Residual(LipschitzMLP(5, 5, width=8)), (5,), "residual", size=2.0),
    "residual, dense": Case(
        lambda: Residual(LipschitzDense(4, 4, width=6)), (4,), "residual", size=2.0
    ),
    "residual, conditional": Case(
        lambda: Residual(LipschitzDense(4, 4, width=6, depth=2, context=3)),
        (4,),
        "residual",
        context=(3,),
        size=2.0,
    ),
    "residual of one": Case(
        lambda: Residual(LipschitzMLP(1, 1, width=6, depth=1, activation=CLipSwish)),
        (1,),
        "residual",
        size=2.0,
    ),
    "residual, along the channels": Case(
        lambda: Along(0, Chain(LU(3), Residual(LipschitzMLP(3, 3, width=6)))),
        (3, 2, 2),
        "residual",
    ),
    "residual, estimated": Case(
        lambda: Residual(LipschitzMLP(4, 4, width=8), log_det="unbiased"),
        (4,),
        "estimate",
        size=2.0,
    ),
    "residual, estimated, conditional": Case(
        lambda: Residual(LipschitzDense(5, 5, width=6, context=3), log_det="unbiased"),
        (5,),
        "estimate",
        context=(3,),
        size=2.0,
    ),
    "residual, estimated, Poisson tail": Case(
        lambda: Residual(
            LipschitzMLP(3, 3, width=6, leading=True, activation=CLipSwish),
            log_det="unbiased",
            eval_terms=1,
            tail=PoissonTail(),
        ),
        (3,),
        "estimate",
        size=2.0,
    ),
    "residual of images": Case(
        lambda: Residual(LipschitzConvNet(2, (3, 2), width=5)), (2, 3, 2), "residual", size=2.0
    ),
    "residual of images, ELU, conditional": Case(
        lambda: Residual(
            LipschitzConvNet(1, (3, 3), width=5, activation=LipELU, leading=False, context=2)
        ),
        (1, 3, 3),
        "residual",
        context=(2,),
        size=2.0,
    ),
    "residual of images, dense": Case(
        lambda: Residual(LipschitzDenseConv(2, (2, 3), width=3, depth=2)),
        (2, 2, 3),
        "residual",
        size=2.0,
    ),
    "residual of images, estimated": Case(
        lambda: Residual(LipschitzConvNet(2, (2, 2), width=5), log_det="unbiased", eval_terms=2),
        (2, 2, 2),
        "estimate",
        size=2.0,
    ),
    "residual of images, dense, estimated": Case(
        lambda: Residual(
            LipschitzDenseConv(2, (2, 2), width=3, depth=2), log_det="truncated", eval_terms=2
        ),
        (2, 2, 2),
        "estimate",
        size=2.0,
    ),
    "residual, narrowed, dense": Case(
        lambda: Residual(LipschitzDense(5, 5, width=3, enter=3, context=2)),
        (5,),
        "residual",
        context=(2,),
        size=2.0,
    ),
    "monotone of images, estimated": Case(
        lambda: Monotone(LipschitzConvNet(2, (2, 2), width=5), log_det="unbiased", eval_terms=2),
        (2, 2, 2),
        "implicit estimate",
        size=2.0,
    ),
    "monotone": Case(lambda: Monotone(LipschitzMLP(4, 4, width=8)), (4,), "implicit", size=2.0),
    "monotone, conditional": Case(
        lambda: Monotone(LipschitzDense(5, 5, width=6, context=3)),
        (5,),
        "implicit",
        context=(3,),
        size=2.0,
    ),
    "monotone of one": Case(
        lambda: Monotone(LipschitzMLP(1, 1, width=6, activation=CLipSwish)),
        (1,),
        "implicit",
        size=2.0,
    ),
    "continuous": Case(lambda: continuous(6), (6,), "ode"),
    "continuous of one": Case(lambda: continuous(1, steps=1), (1,), "ode"),
    "continuous, lively": Case(lambda: continuous(5), (5,), "ode", size=1.5),
    "continuous, conditional": Case(lambda: continuous(5, context=3), (5,), "ode", context=(3,)),
    "continuous of images": Case(lambda: Continuous(ImageVelocity(2)), (2, 3, 2), "ode"),
    "continuous of images, conditional": Case(
        lambda: Continuous(ImageVelocity(1, 3)), (1, 2, 3), "ode", context=(3,)
    ),
    "continuous of small images, conditional": Case(
        lambda: Continuous(ImageVelocity(1, 2, speed=0.1)), (1, 1, 2), "ode", context=(2,)
    ),
    "continuous, estimate": Case(lambda: continuous(4, trace="hutchinson"), (4,), "ode estimate"),
    "continuous of images, estimate": Case(
        lambda: Continuous(ImageVelocity(2), trace="hutchinson"), (2, 2, 2), "ode estimate"
    ),
    "continuous, to a learned end": Case(lambda: continuous(4, learned_end=True), (4,), "ode"),
    "continuous of convolutions, estimate": Case(
        lambda: Continuous(ConvVelocity(1, width=3), trace="hutchinson", learned_end=True),
        (1, 2, 3),
        "ode estimate",
    ),
    "continuous along the patches": Case(
        lambda: Along(-1, Chain(ActNorm(4), LU(4), continuous(4))), (3, 4), "ode"
    ),
    "patches": Case(lambda: Patchify((3, 4, 4), (2, 2)), (3, 4, 4)),
    "patches, rectangular": Case(lambda: Patchify((1, 4, 6), (2, 3)), (1, 4, 6)),
    "patches of signals": Case(lambda: Patchify((2, 6), (3,)), (2, 6)),
    "patches of volumes": Case(lambda: Patchify((2, 4, 2, 3), (2, 1, 3)), (2, 4, 2, 3)),
    "dilated": Case(lambda: Dilated((2, 4, 6), (2, 3)), (2, 4, 6)),
    "dilated volumes": Case(lambda: Dilated((1, 4, 2, 4), (2, 2, 2)), (1, 4, 2, 4)),
    "reshape": Case(lambda: Reshape((2, 3, 2), (4, 3)), (2, 3, 2)),
    "squeeze": Case(lambda: Squeeze((3, 4, 2)), (3, 4, 2)),
    "squeeze of signals, by three": Case(lambda: Squeeze((2, 6), 3), (2, 6)),
    "squeeze of volumes": Case(lambda: Squeeze((1, 2, 4, 2)), (1, 2, 4, 2)),
    "squeeze by place": Case(lambda: SpaceToDepth((2, 4, 6)), (2, 4, 6)),
    "squeeze by place of volumes": Case(lambda: SpaceToDepth((1, 2, 4, 2)), (1, 2, 4, 2)),
    "squeeze by colours": Case(lambda: CheckerboardSqueeze((2, 4, 6)), (2, 4, 6)),
    "stripes": Case(lambda: Stripes((2, 6, 3), 2), (2, 6, 3)),
    "stripes of signals": Case(lambda: Stripes((2, 6), 3), (2, 6)),
    "stripes of volumes": Case(lambda: Stripes((1, 4, 2, 3), 2), (1, 4, 2, 3)),
    "bands": Case(lambda: Bands((2, 3, 6), 2), (2, 3, 6)),
    "bands of volumes": Case(lambda: Bands((1, 2, 3, 4), 2), (1, 2, 3, 4)),
    "swap": Case(SwapHalves, (4, 2, 3)),
    "shuffle": Case(lambda: ShufflePixels((2, 4, 5), 1), (2, 4, 5)),
    "shuffle, local": Case(lambda: ShufflePixels((2, 4, 6), 1, 2), (2, 4, 6)),
    "swap, odd": Case(SwapHalves, (5,)),
    "coupling by dense block and attention": Case(lambda: attentive_coupling(4), (4, 3, 4)),
    "coupling by dense block and attention, transposed": Case(
        lambda: attentive_coupling(5, transposed=True, context=2), (5, 2, 4), context=(2,)
    ),
    "coupling of signals by dense block and attention": Case(
        lambda: attentive_coupling(4, axes=1, count=9, norm="none"), (4, 5)
    ),
    "augment with plain noise": Case(lambda: Augment((2, 1), 1), (2, 1), "augmenting"),
    "augment": Case(lambda: augment((1, 2, 1)), (1, 2, 1), "augmenting"),
    "augment, conditional": Case(
        lambda: augment((2, 1, 1), 2, context=3), (2, 1, 1), "augmenting", context=(3,)
    ),
    "augment by a flow": Case(augment_by_flow, (1, 2, 1), "augmenting"),
    "augment of a signal by a spline": Case(
        lambda: Augment(
            (2, 1),
            1,
            WideningConvNet(2, RationalQuadratic(bins=3).params, factor=2, axes=1),
            RationalQuadratic(bins=3),
        ),
        (2, 1),
        "augmenting",
    ),
    "cross units": Case(lambda: cross_units((2, 1, 1)), (2, 1, 1), "augmenting"),
    "cross units, conditional": Case(
        lambda: cross_units((2, 1, 1), 4, context=2), (2, 1, 1), "augmenting", context=(2,)
    ),
    "variational dequantization": Case(
        lambda: variational((2, 2)), (2, 2), "variational", inputs=pixels(256)
    ),
    "variational dequantization, 16 bits, odd": Case(
        lambda: variational((2, 1, 1), factor=1, levels=2**16),
        (2, 1, 1),
        "variational",
        inputs=pixels(2**16),
    ),
    "max pool": Case(lambda: MaxPool((1, 2, 4)), (1, 2, 4), "surjection"),
    "max pool, channels": Case(lambda: MaxPool((2, 2, 2)), (2, 2, 2), "surjection"),
    "max pool of a signal, by three": Case(lambda: MaxPool((2, 6), 3), (2, 6), "surjection"),
    "max pool of a volume": Case(lambda: MaxPool((1, 2, 2, 2)), (1, 2, 2, 2), "surjection"),
    "absolute value": Case(AbsoluteValue, (4,), "surjection"),
    "absolute value, learned signs": Case(lambda: signed(3), (3,), "surjection", size=1.0),
    "absolute value, conditional signs": Case(
        lambda: signed(3, context=2), (3,), "surjection", context=(2,), size=1.0
    ),
    "absolute value of images, learned signs": Case(signed_images, (2, 1, 2), "surjection"),
    "sort": Case(Sort, (4,), "surjection"),
    "sort of columns": Case(lambda: Sort(0), (3, 2), "surjection"),
    "round": Case(Round, (2, 2), "rounding"),
    "chain of surjections": Case(
        lambda: Chain(LU(4), Reshape((4,), (1, 2, 2)), MaxPool((1, 2, 2)), AbsoluteValue()),
        (4,),
        "surjection",
        size=0.5,
    ),
    "along the channels, signs": Case(lambda: Along(0, signed(2)), (2, 2), "surjection", size=1.0),
    "inverse of a max pool": Case(lambda: Inverse(MaxPool((1, 2)), (1, 2)), (1, 1), "augmenting"),
    "inverse of an absolute value": Case(
        lambda: Inverse(signed(4), (4,)), (4,), "surjection turned round", inputs=unit, size=1.0
    ),
    "inverse of a sort": Case(
        lambda: Inverse(Sort(), (4,)), (4,), "surjection turned round", inputs=ordered
    ),
    "inverse of a round": Case(
        lambda: Inverse(Round(), (4,)), (4,), "surjection turned round", inputs=whole
    ),
    "variational dequantization by columns": Case(
        by_columns, (1, 1, 4), "variational", inputs=pixels(256)
    ),
    "dequantize": Case(Dequantize, (3, 2, 4), "stochastic", inputs=pixels(256)),
    "dequantize, 5 levels": Case(lambda: Dequantize(5), (7,), "stochastic", inputs=pixels(5)),
    "dequantize, 16 bits": Case(
        lambda: Dequantize(2**16), (2, 5), "stochastic", inputs=pixels(2**16)
    ),
    "rescale": Case(lambda: Rescale(2 / 256, -1.0), (3, 2, 4)),
    "rescale, negative": Case(lambda: Rescale(-3.0), (5,)),
    "logit": Case(Logit, (2, 3), inputs=unit),
    "normal scores": Case(lambda: scored((2, 3, 2), 5), (2, 3, 2), inputs=unit),
    "roll": Case(lambda: Roll((2, 4, 5), (1, 3)), (2, 4, 5)),
    "roll_of_channels": Case(lambda: Roll((5, 4, 3), (0, 1), channels=2), (5, 4, 3)),
    "LU, from whitening": Case(lambda: started(LU(4, start="whitening"), (4,)), (4,)),
    "RLU, from whitening": Case(lambda: started(RLU(4, start="whitening"), (4,)), (4,)),
    "mixerflow": mixerflow_case(layers=4, shift_every=4),
    "mixerflow, batch norm": mixerflow_case(norm="batch"),
    "mixerflow, layer norm": mixerflow_case(norm="layer"),
    "mixerflow, per activation": mixerflow_case(actnorm="activation"),
    "mixerflow, conditional": mixerflow_case(context=(3,), classes=4, class_width=3),
    "mixerflow, dilated RLU": mixerflow_case(cut="dilated", linear="RLU", scale_bound=2.0),
    "mixerflow, Woodbury": mixerflow_case(linear="Woodbury", rank=2),
    "mixerflow, butterfly among patches": mixerflow_case(patch_linear="Butterfly"),
    "mixerflow, stripes": mixerflow_case(cut="stripes"),
    "mixerflow, MAF with splines, told its place": mixerflow_case(
        flow="maf", law="spline", positions="learned"
    ),
    "mixerflow, two scales after Glow": mixerflow_case(scales=2, glow=1, patch=1, shift=0),
    "mixerflow, squeezed, batch-norm flows": mixerflow_case(
        squeeze=2, actnorm="batch", patch=1, shift=0
    ),
    "mixerflow, KAN and invertible attention": mixerflow_case(
        net="kan", extra="invertible-attention"
    ),
}
