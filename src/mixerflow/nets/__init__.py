"""Conditioners: plain modules that know nothing of flows."""

from mixerflow.nets.attention import Attention
from mixerflow.nets.conv import ConvNet
from mixerflow.nets.dense import DenseNet
from mixerflow.nets.kan import KAN
from mixerflow.nets.kernel import Kernel, KernelMachine, matern, squared_exponential
from mixerflow.nets.made import MADE, MaskedMLP
from mixerflow.nets.mlp import ResidualMLP
from mixerflow.nets.norm import BatchNorm, Norm, Scale, norm_of, squash
from mixerflow.nets.positions import LearnedPositions, SinusoidalPositions

__all__ = [
    "KAN",
    "MADE",
    "Attention",
    "BatchNorm",
    "ConvNet",
    "DenseNet",
    "Kernel",
    "KernelMachine",
    "LearnedPositions",
    "MaskedMLP",
    "Norm",
    "ResidualMLP",
    "Scale",
    "SinusoidalPositions",
    "matern",
    "norm_of",
    "squared_exponential",
    "squash",
]
