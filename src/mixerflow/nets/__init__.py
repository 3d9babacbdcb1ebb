"""Conditioners: plain modules that know nothing of flows or kernels."""

from mixerflow.nets.attention import AttentionNet
from mixerflow.nets.conv import ResidualConvNet
from mixerflow.nets.dense import DenseConvNet
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
from mixerflow.nets.velocity import Velocity

__all__ = [
    "MADE",
    "AttentionNet",
    "BatchNorm",
    "CLipSwish",
    "DenseConvNet",
    "Kernel",
    "KernelNet",
    "LearnedPositions",
    "LipSwish",
    "LipschitzDense",
    "LipschitzMLP",
    "MaskedMLP",
    "Norm",
    "ResidualConvNet",
    "ResidualMLP",
    "Scale",
    "SinusoidalPositions",
    "SpectralLinear",
    "SplineNet",
    "Velocity",
    "matern",
    "norm_of",
    "spectral_bound",
    "squared_exponential",
    "squash",
]
