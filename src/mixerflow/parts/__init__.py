"""Parts of models as values: frozen dataclasses, each with its own settings and nothing else.

A model holds parts, and a part does not see the model around it. A part builds its transform or net
where the sizes are known. Elementwise transforms are values too, in `mixerflow.transforms`.
"""

from mixerflow.parts.bases import (
    BaseChoice,
    CauchyBase,
    MixtureBase,
    NormalBase,
    SpikeAndSlabBase,
    StudentTBase,
)
from mixerflow.parts.conditioners import (
    KAN,
    MLP,
    Attention,
    ConvNet,
    DenseLipschitzNet,
    DenseNet,
    GlowConv,
    ImageNet,
    KernelMachine,
    LipschitzNet,
    MaskedNet,
    PlainConv,
    ResidualConv,
    RowNet,
    VelocityNet,
    ZeroConvolution,
)
from mixerflow.parts.images import (
    ActivationPrior,
    ConvolutionPrior,
    GlowSteps,
    InvertibleAttention,
    LearnedEncoding,
    MixerAddition,
    PatchAttention,
    PositionalEncoding,
    Prior,
    Scales,
    SinusoidalEncoding,
    glow_step,
    image_coupling,
)
from mixerflow.parts.linear import (
    ButterflyMap,
    LinearMap,
    LUMap,
    MatrixMap,
    NoMap,
    PLUMap,
    RLUMap,
    SameMap,
    UnpackedPLUMap,
    WoodburyMap,
)
from mixerflow.parts.model import (
    Classes,
    LogitPixels,
    Model,
    Part,
    Pixels,
    PositiveCounts,
    ScaledPixels,
)
from mixerflow.parts.patching import Patching
from mixerflow.parts.rows import (
    RowAutoregression,
    RowContinuous,
    RowCoupling,
    RowDenseResidual,
    RowFlow,
    RowGaussianization,
    RowInverseAutoregression,
    RowMonotone,
    RowResidual,
)

__all__ = ["BaseChoice", "CauchyBase", "MixtureBase", "NormalBase", "SpikeAndSlabBase"]
__all__ += ["StudentTBase"]
__all__ += ["KAN", "MLP", "Attention", "ConvNet", "DenseLipschitzNet", "DenseNet", "GlowConv"]
__all__ += ["ImageNet", "KernelMachine", "LipschitzNet", "MaskedNet", "PlainConv", "ResidualConv"]
__all__ += ["RowNet", "VelocityNet", "ZeroConvolution"]
__all__ += ["ActivationPrior", "ConvolutionPrior", "GlowSteps", "InvertibleAttention"]
__all__ += ["LearnedEncoding", "MixerAddition", "PatchAttention", "PositionalEncoding", "Prior"]
__all__ += ["Scales", "SinusoidalEncoding", "glow_step", "image_coupling"]
__all__ += ["ButterflyMap", "LUMap", "LinearMap", "MatrixMap", "NoMap", "PLUMap", "RLUMap"]
__all__ += ["SameMap", "UnpackedPLUMap", "WoodburyMap"]
__all__ += ["Classes", "LogitPixels", "Model", "Part", "Pixels", "PositiveCounts", "ScaledPixels"]
__all__ += ["Patching"]
__all__ += ["RowAutoregression", "RowContinuous", "RowCoupling", "RowDenseResidual", "RowFlow"]
__all__ += ["RowGaussianization", "RowInverseAutoregression", "RowMonotone", "RowResidual"]
