"""Conditioners: plain modules that know nothing of flows."""

from mixerflow.nets.attention import Attention
from mixerflow.nets.conv import ConvNet
from mixerflow.nets.dense import DenseNet
from mixerflow.nets.kan import KAN
from mixerflow.nets.kernel import Kernel, KernelMachine, matern, squared_exponential
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
    "KAN",
    "MADE",
    "Attention",
    "BatchNorm",
    "CLipSwish",
    "ConvNet",
    "DenseNet",
    "Kernel",
    "KernelMachine",
    "LearnedPositions",
    "LipSwish",
    "LipschitzDense",
    "LipschitzMLP",
    "MaskedMLP",
    "Norm",
    "ResidualMLP",
    "Scale",
    "SinusoidalPositions",
    "SpectralLinear",
    "Velocity",
    "matern",
    "norm_of",
    "spectral_bound",
    "squared_exponential",
    "squash",
]
