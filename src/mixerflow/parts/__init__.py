"""Parts of models as values: frozen dataclasses, each with its own settings and nothing else.

A model holds parts, and a part does not see the model around it. A part builds its transform or net
where the sizes are known. Elementwise transforms are values too, in `mixerflow.transforms`.
"""

# isort: off
# fmt: off
from mixerflow.parts.bases import (
    BaseChoice, CauchyBase, MixtureBase, NormalBase, SpikeAndSlabBase, StudentTBase,
)
from mixerflow.parts.conditioners import (
    KAN, MLP, Attention, ConvNet, DenseLipschitzNet, DenseNet, GlowConv, ImageNet, KernelMachine,
    LipschitzNet, MaskedNet, PlainConv, ResidualConv, RowNet, VelocityNet, ZeroConvolution,
)
from mixerflow.parts.images import (
    ActivationPrior, ConvolutionPrior, GlowSteps, InvertibleAttention, LearnedEncoding,
    MixerAddition, PatchAttention, PositionalEncoding, Prior, Scales, SinusoidalEncoding, glow_step,
    image_coupling,
)
from mixerflow.parts.linear import (
    ButterflyMap, LinearMap, LUMap, MatrixMap, NoMap, PLUMap, RLUMap, SameMap, UnpackedPLUMap,
    WoodburyMap,
)
from mixerflow.parts.model import (
    Classes, LogitPixels, Model, Part, Pixels, PositiveCounts, ScaledPixels,
)
from mixerflow.parts.patching import Patching
from mixerflow.parts.rows import (
    RowAutoregression, RowContinuous, RowCoupling, RowDenseResidual, RowFlow, RowGaussianization,
    RowInverseAutoregression, RowMonotone, RowResidual,
)

__all__ = [
    "KAN", "MLP", "ActivationPrior", "Attention", "BaseChoice", "ButterflyMap", "CauchyBase",
    "Classes", "ConvNet", "ConvolutionPrior", "DenseLipschitzNet", "DenseNet", "GlowConv",
    "GlowSteps", "ImageNet", "InvertibleAttention", "KernelMachine", "LUMap", "LearnedEncoding",
    "LinearMap", "LipschitzNet", "LogitPixels", "MaskedNet", "MatrixMap", "MixerAddition",
    "MixtureBase", "Model", "NoMap", "NormalBase", "PLUMap", "Part", "PatchAttention", "Patching",
    "Pixels", "PlainConv", "PositionalEncoding", "PositiveCounts", "Prior", "RLUMap",
    "ResidualConv", "RowAutoregression", "RowContinuous", "RowCoupling", "RowDenseResidual",
    "RowFlow", "RowGaussianization", "RowInverseAutoregression", "RowMonotone", "RowNet",
    "RowResidual", "SameMap", "ScaledPixels", "Scales", "SinusoidalEncoding", "SpikeAndSlabBase",
    "StudentTBase", "UnpackedPLUMap", "VelocityNet", "WoodburyMap", "ZeroConvolution", "glow_step",
    "image_coupling",
]
