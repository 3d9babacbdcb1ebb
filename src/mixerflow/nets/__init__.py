"""Conditioners: plain modules that know nothing of flows or kernels."""

from mixerflow.nets.attention import AttentionNet
from mixerflow.nets.base import Conditioner, squash
from mixerflow.nets.conv import DenseConvNet, ImageConditioner, PlainConvNet, ResidualConvNet
from mixerflow.nets.glow import ChannelAffine, GlowNet, ZeroConv
from mixerflow.nets.kan import SplineNet
from mixerflow.nets.kernel import Kernel, KernelNet, matern, squared_exponential
from mixerflow.nets.lipschitz import (
    CLipSwish,
    LipschitzDense,
    LipschitzMLP,
    LipSwish,
    SpectralLinear,
    spectral_bound,
)
from mixerflow.nets.made import MADE, MaskedMLP
from mixerflow.nets.mlp import ResidualMLP, Velocity
from mixerflow.nets.norm import Norm, Scale, SyncedBatchNorm, norm_of
from mixerflow.nets.positional import LearnedPositionalEncoding, SinusoidalPositionalEncoding
from mixerflow.nets.resnet import ResNet, TanhScale

__all__ = ["AttentionNet"]
__all__ += ["Conditioner", "squash"]
__all__ += ["DenseConvNet", "ImageConditioner", "PlainConvNet", "ResidualConvNet"]
__all__ += ["ChannelAffine", "GlowNet", "ZeroConv"]
__all__ += ["SplineNet"]
__all__ += ["Kernel", "KernelNet", "matern", "squared_exponential"]
__all__ += ["CLipSwish", "LipSwish", "LipschitzDense", "LipschitzMLP", "SpectralLinear"]
__all__ += ["spectral_bound"]
__all__ += ["MADE", "MaskedMLP"]
__all__ += ["ResidualMLP", "Velocity"]
__all__ += ["Norm", "Scale", "SyncedBatchNorm", "norm_of"]
__all__ += ["LearnedPositionalEncoding", "SinusoidalPositionalEncoding"]
__all__ += ["ResNet", "TanhScale"]
