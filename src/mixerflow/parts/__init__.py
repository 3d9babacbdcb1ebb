"""Parts of models as values: frozen dataclasses, each with its own settings and nothing else.

A model holds parts, and a part does not see the model around it. A part builds its transform or net
where the sizes are known. Elementwise transforms are values too, in `mixerflow.transforms`.
"""

# isort: off
# fmt: off
from mixerflow.parts.added import AddedChannels, ConditionalChannels, NormalChannels
from mixerflow.parts.base import Part, PositiveCounts
from mixerflow.parts.bases import (
    BaseChoice, CauchyBase, MixtureBase, NormalBase, SpikeAndSlabBase, StudentTBase,
)
from mixerflow.parts.columns import ColumnChannels, ColumnDequantizer
from mixerflow.parts.conditioners import (
    KAN, MLP, Attention, DenseLipschitzNet, KernelMachine, LipschitzNet, MaskedNet, RowNet,
    VelocityNet,
)
from mixerflow.parts.heads import GaussiansHead, Head, LinearHead, MeanHead, ScalesHead
from mixerflow.parts.image_maps import (
    ButterflyImage, EmergingMap, PeriodicMap, WoodburyPlanes,
)
from mixerflow.parts.image_nets import (
    ConvNet, ConvVelocityNet, DenseAttention, DenseNet, GatedAttention, GlowConv, ImageNet,
    PlainConv, PreactivationConv, ResidualConv, ResidualDense, WideningConv, ZeroConvolution,
)
from mixerflow.parts.images import (
    ActivationPrior, ConvolutionPrior, GlowSteps, GridEncoding, InvertibleAttention,
    LearnedEncoding,
    MixerAddition, PatchAttention, PositionalEncoding, Prior, Scales, SinusoidalEncoding, glow_step,
    image_coupling,
)
from mixerflow.parts.linear import (
    ButterflyMap, ImageMap, LinearMap, LUMap, MatrixMap, NoMap, PLUMap, RLUMap,
    SameMap, UnpackedPLUMap, WhiteMap, WoodburyMap,
)
from mixerflow.parts.mixing import Mixing
from mixerflow.parts.model import Classes, Model, Vectors
from mixerflow.parts.patching import Patching
from mixerflow.parts.pixels import (
    Dequantizer, LogitPixels, NormalScorePixels, Pixels, ScaledPixels, UniformDequantizer,
    VariationalDequantizer,
)
from mixerflow.parts.rows import (
    RowAutoregression, RowContinuous, RowCoupling, RowDenseResidual, RowFlow, RowGaussianization,
    RowInverseAutoregression, RowMonotone, RowResidual,
)
from mixerflow.parts.shuffles import GlobalShuffle, LocalShuffle, Shuffle

__all__ = [
    "KAN", "MLP", "ActivationPrior", "AddedChannels", "Attention", "BaseChoice", "ButterflyImage",
    "ButterflyMap", "CauchyBase", "Classes", "ColumnChannels", "ColumnDequantizer",
    "ConditionalChannels", "ConvNet", "ConvVelocityNet", "ConvolutionPrior", "DenseAttention",
    "DenseLipschitzNet", "DenseNet", "Dequantizer", "EmergingMap", "GatedAttention",
    "GaussiansHead", "GlobalShuffle", "GlowConv", "GlowSteps", "GridEncoding", "Head", "ImageMap",
    "ImageNet", "InvertibleAttention", "KernelMachine", "LUMap", "LearnedEncoding", "LinearHead",
    "LinearMap", "LipschitzNet", "LocalShuffle", "LogitPixels", "MaskedNet", "MatrixMap",
    "MeanHead", "MixerAddition", "Mixing", "MixtureBase", "Model", "NoMap", "NormalBase",
    "NormalChannels", "NormalScorePixels", "PLUMap", "Part", "PatchAttention", "Patching",
    "PeriodicMap", "Pixels", "PlainConv", "PositionalEncoding", "PositiveCounts",
    "PreactivationConv", "Prior", "RLUMap", "ResidualConv", "ResidualDense", "RowAutoregression",
    "RowContinuous", "RowCoupling", "RowDenseResidual", "RowFlow", "RowGaussianization",
    "RowInverseAutoregression", "RowMonotone", "RowNet", "RowResidual", "SameMap", "ScaledPixels",
    "Scales", "ScalesHead", "Shuffle", "SinusoidalEncoding", "SpikeAndSlabBase", "StudentTBase",
    "UniformDequantizer", "UnpackedPLUMap", "VariationalDequantizer", "Vectors", "VelocityNet",
    "WhiteMap", "WideningConv", "WoodburyMap", "WoodburyPlanes", "ZeroConvolution", "glow_step",
    "image_coupling",
]
