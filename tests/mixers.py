"""MixerFlows and MAFs from one flat list of settings, as tests vary them; a small DenseFlow."""

from mixerflow.models import MAF, DenseFlow, MixerFlow
from mixerflow.parts import (
    KAN,
    MLP,
    Attention,
    ButterflyMap,
    CauchyBase,
    Classes,
    ConvNet,
    DenseAttention,
    DenseLipschitzNet,
    DenseNet,
    GlowSteps,
    InvertibleAttention,
    KernelMachine,
    LearnedEncoding,
    LipschitzNet,
    LogitPixels,
    LUMap,
    MaskedNet,
    MixtureBase,
    NoMap,
    NormalBase,
    PatchAttention,
    Patching,
    ResidualDense,
    RLUMap,
    RowAutoregression,
    RowContinuous,
    RowCoupling,
    RowDenseResidual,
    RowGaussianization,
    RowInverseAutoregression,
    RowMonotone,
    RowResidual,
    SameMap,
    ScaledPixels,
    Scales,
    SinusoidalEncoding,
    SpikeAndSlabBase,
    StudentTBase,
    VariationalDequantizer,
    VelocityNet,
    WoodburyMap,
)
from mixerflow.transforms import Affine, FlooredAffine, LogisticMixture, RationalQuadratic

_SETTINGS = {}


def mixer(**settings):
    """The MixerFlow of these flat settings; `vary` changes some of them."""
    model = _mixer(**settings)
    _SETTINGS[model] = settings
    return model


def vary(model, **changes):
    """A model that `mixer` made, with other flat settings."""
    return mixer(**{**_SETTINGS[model], **changes})


def _mixer(
    *,
    layers=30,
    flow_layers=4,
    patch=4,
    patches=(),
    cut="patches",
    shift=1,
    shift_every=4,
    shifts=(),
    flow="coupling",
    law="affine",
    net="mlp",
    bins=4,
    tail=3.0,
    components=8,
    log_det="exact",
    hidden=128,
    norm="batch",
    squash=True,
    linear="LU",
    patch_linear=None,
    rank=16,
    actnorm="feature",
    positions="none",
    position_width=16,
    extra="none",
    glow=0,
    squeeze=1,
    scales=1,
    base="normal",
    scale_bound=None,
    colour=True,
    levels=256,
    classes=0,
    class_width=32,
):
    """The MixerFlow of these settings."""
    elementwise = {
        "affine": Affine(scale_bound),
        "floored": FlooredAffine(),
        "spline": RationalQuadratic(bins, tail),
        "logistic": LogisticMixture(components),
    }[law]
    rows = {"mlp": MLP, "kan": KAN, "kernel": KernelMachine}[net](hidden, norm, squash)
    masked = MaskedNet(hidden, norm, squash)
    contraction = LipschitzNet(hidden)
    convolutions = ConvNet(hidden, norm=norm, squash=squash)
    dense = DenseNet(hidden, growth=max(1, hidden // 2), norm=norm, squash=squash)
    maps = {
        "LU": LUMap(),
        "RLU": RLUMap(),
        "Woodbury": WoodburyMap(rank),
        "Butterfly": ButterflyMap(),
        "none": NoMap(),
    }
    return MixerFlow(
        layers=layers,
        flow_layers=flow_layers,
        patching=Patching(
            size=patches or (patch,),
            shift=shifts or (*(0,) * (shift_every - 1), shift),
            cut=cut,
        ),
        flow={
            "coupling": lambda: RowCoupling(elementwise, rows),
            "maf": lambda: RowAutoregression(elementwise, masked),
            "iaf": lambda: RowInverseAutoregression(elementwise, masked),
            "residual": lambda: RowResidual(contraction, log_det),
            "dense-residual": lambda: RowDenseResidual(
                DenseLipschitzNet(max(1, hidden // 4)), log_det
            ),
            "monotone": lambda: RowMonotone(contraction, log_det),
            "continuous": lambda: RowContinuous(VelocityNet(hidden), log_det),
            "gaussianization": lambda: RowGaussianization(max(2, components)),
        }[flow](),
        linear=maps[linear],
        patch_linear=maps[patch_linear] if patch_linear else SameMap(),
        actnorm=actnorm,
        positions={
            "none": None,
            "learned": LearnedEncoding(position_width),
            "sinusoidal": SinusoidalEncoding(position_width),
        }[positions],
        beside={
            "none": None,
            "convolution": GlowSteps(1, elementwise, convolutions),
            "dense": GlowSteps(1, elementwise, dense),
            "attention": PatchAttention(elementwise, Attention(hidden, squash=squash)),
            "invertible-attention": InvertibleAttention(),
        }[extra],
        glow=GlowSteps(glow, elementwise, convolutions) if glow else None,
        squeeze=squeeze,
        scales=Scales(scales, Affine(scale_bound), convolutions) if scales > 1 else None,
        base={
            "normal": NormalBase,
            "student-t": StudentTBase,
            "cauchy": CauchyBase,
            "mixture": MixtureBase,
            "spike-and-slab": SpikeAndSlabBase,
        }[base](),
        colour=colour,
        pixels=ScaledPixels(levels=levels),
        classes=Classes(classes, class_width) if classes else None,
    )


def maf(
    *, hidden=1024, alpha=1e-6, scale_bound=None, levels=256, classes=0, class_width=32, **settings
):
    """The MAF of these settings."""
    return MAF(
        width=hidden,
        elementwise=Affine(scale_bound),
        pixels=LogitPixels(alpha, levels),
        classes=Classes(classes, class_width) if classes else None,
        **settings,
    )


DENSEFLOW = DenseFlow(
    units=(3, 2),
    modules=(1, 2),
    growth=2,
    net=DenseAttention(6, growth=4, depth=2),
    pixels=ScaledPixels(
        -0.5,
        0.5,
        dequantizer=VariationalDequantizer(
            steps=1, context=4, growth=4, depth=1, net=ResidualDense(4, growth=4, depth=1)
        ),
    ),
)
"""Every mechanism of DenseFlow, in hundreds of operations."""
