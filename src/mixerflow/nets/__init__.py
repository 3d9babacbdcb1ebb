"""Conditioners: plain modules that know nothing of flows or kernels."""

# isort: off
# fmt: off
from mixerflow.nets.attention import AttentionNet
from mixerflow.nets.base import Conditioner, squash
from mixerflow.nets.conv import ImageConditioner, PlainConvNet, ResidualConvNet, WideningConvNet
from mixerflow.nets.dense import DenseAttentionNet, DenseConvNet, DenseEncoder, ResidualDenseNet
from mixerflow.nets.gated import ColumnEncoder, GatedAttentionNet
from mixerflow.nets.glow import ChannelAffine, GlowNet, ZeroConv
from mixerflow.nets.heads import LinearClassifier, MeanClassifier, ScalesClassifier
from mixerflow.nets.kan import SplineNet
from mixerflow.nets.kernel import Kernel, KernelNet, matern, squared_exponential
from mixerflow.nets.lipschitz import LipschitzConvNet, LipschitzMLP
from mixerflow.nets.lipschitz_dense import LipschitzDense, LipschitzDenseConv
from mixerflow.nets.lipswish import Activation, CLipSwish, LipELU, LipSwish
from mixerflow.nets.lines import LineConvNet
from mixerflow.nets.made import MADE, MaskedMLP
from mixerflow.nets.mlp import ResidualMLP, Velocity
from mixerflow.nets.norm import Norm, Scale, SyncedBatchNorm, norm_of
from mixerflow.nets.nystrom import NystromAttention
from mixerflow.nets.positional import (
    GridPositionalEncoding, LearnedPositionalEncoding, SinusoidalPositionalEncoding,
)
from mixerflow.nets.resnet import PreactivationNet, ResNet, TanhScale
from mixerflow.nets.spectral import (
    SpectralConv, SpectralLinear, spectral_bound, spectral_bound_of_convolution,
)
from mixerflow.nets.velocity_conv import ConvVelocity

__all__ = [
    "MADE", "Activation", "AttentionNet", "CLipSwish", "ChannelAffine", "ColumnEncoder",
    "Conditioner", "ConvVelocity", "DenseAttentionNet", "DenseConvNet", "DenseEncoder",
    "GatedAttentionNet", "GlowNet", "GridPositionalEncoding", "ImageConditioner", "Kernel",
    "KernelNet", "LearnedPositionalEncoding", "LineConvNet", "LinearClassifier", "LipELU",
    "LipSwish", "LipschitzConvNet", "LipschitzDense", "LipschitzDenseConv", "LipschitzMLP",
    "MaskedMLP", "MeanClassifier", "Norm", "NystromAttention", "PlainConvNet", "PreactivationNet",
    "ResNet", "ResidualConvNet", "ResidualDenseNet", "ResidualMLP", "Scale", "ScalesClassifier",
    "SinusoidalPositionalEncoding", "SpectralConv", "SpectralLinear", "SplineNet",
    "SyncedBatchNorm", "TanhScale", "Velocity", "WideningConvNet", "ZeroConv", "matern", "norm_of",
    "spectral_bound", "spectral_bound_of_convolution", "squared_exponential", "squash",
]
