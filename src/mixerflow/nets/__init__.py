"""Conditioners: plain modules that know nothing of flows or kernels."""

# isort: off
# fmt: off
from mixerflow.nets.attention import AttentionNet
from mixerflow.nets.base import Conditioner, squash
from mixerflow.nets.conv import ImageConditioner, PlainConvNet, ResidualConvNet, WideningConvNet
from mixerflow.nets.dense import DenseAttentionNet, DenseConvNet, DenseEncoder, ResidualDenseNet
from mixerflow.nets.glow import ChannelAffine, GlowNet, ZeroConv
from mixerflow.nets.heads import LinearClassifier, MeanClassifier, ScalesClassifier
from mixerflow.nets.kan import SplineNet
from mixerflow.nets.kernel import Kernel, KernelNet, matern, squared_exponential
from mixerflow.nets.lipschitz import (
    CLipSwish, LipschitzDense, LipschitzMLP, LipSwish, SpectralLinear, spectral_bound,
)
from mixerflow.nets.lines import LineConvNet
from mixerflow.nets.made import MADE, MaskedMLP
from mixerflow.nets.mlp import ResidualMLP, Velocity
from mixerflow.nets.norm import Norm, Scale, SyncedBatchNorm, norm_of
from mixerflow.nets.nystrom import NystromAttention
from mixerflow.nets.positional import (
    GridPositionalEncoding, LearnedPositionalEncoding, SinusoidalPositionalEncoding,
)
from mixerflow.nets.resnet import PreactivationNet, ResNet, TanhScale
from mixerflow.nets.velocity_conv import ConvVelocity

__all__ = [
    "MADE", "AttentionNet", "CLipSwish", "ChannelAffine", "Conditioner", "ConvVelocity",
    "DenseAttentionNet",
    "DenseConvNet", "DenseEncoder", "GlowNet", "GridPositionalEncoding", "ImageConditioner",
    "Kernel", "KernelNet", "LearnedPositionalEncoding", "LineConvNet", "LinearClassifier",
    "LipSwish", "LipschitzDense",
    "LipschitzMLP", "MaskedMLP", "MeanClassifier", "Norm", "NystromAttention", "PlainConvNet",
    "PreactivationNet", "ResNet", "ResidualConvNet", "ResidualDenseNet", "ResidualMLP", "Scale",
    "ScalesClassifier", "SinusoidalPositionalEncoding",
    "SpectralLinear", "SplineNet", "SyncedBatchNorm", "TanhScale", "Velocity", "WideningConvNet",
    "ZeroConv", "matern", "norm_of", "spectral_bound", "squared_exponential", "squash",
]
