"""Conditioners: plain modules that know nothing of flows or kernels."""

from mixerflow.nets.attention import AttentionNet
from mixerflow.nets.conv import ImageConditioner, PlainConvNet, ResidualConvNet
from mixerflow.nets.dense import DenseConvNet
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
from mixerflow.nets.mlp import ResidualMLP
from mixerflow.nets.norm import BatchNorm, Norm, Scale, norm_of, squash
from mixerflow.nets.positions import LearnedPositions, SinusoidalPositions
from mixerflow.nets.resnet import ResNet, TanhScale
from mixerflow.nets.velocity import Velocity

__all__ = [
    "MADE",
    "AttentionNet",
    "BatchNorm",
    "CLipSwish",
    "ChannelAffine",
    "DenseConvNet",
    "GlowNet",
    "ImageConditioner",
    "Kernel",
    "KernelNet",
    "LearnedPositions",
    "LipSwish",
    "LipschitzDense",
    "LipschitzMLP",
    "MaskedMLP",
    "Norm",
    "PlainConvNet",
    "ResNet",
    "ResidualConvNet",
    "ResidualMLP",
    "Scale",
    "SinusoidalPositions",
    "SpectralLinear",
    "SplineNet",
    "TanhScale",
    "Velocity",
    "ZeroConv",
    "matern",
    "norm_of",
    "spectral_bound",
    "squared_exponential",
    "squash",
]
