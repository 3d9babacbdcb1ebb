"""Conditioners: plain modules that know nothing of flows."""

from mixerflow.nets.lipschitz import (
    CLipSwish,
    LipschitzDense,
    LipschitzMLP,
    LipSwish,
    SpectralLinear,
    spectral_bound,
)
from mixerflow.nets.mlp import ResidualMLP
from mixerflow.nets.norm import BatchNorm, Norm, Scale, norm_of, squash

__all__ = [
    "BatchNorm",
    "CLipSwish",
    "LipSwish",
    "LipschitzDense",
    "LipschitzMLP",
    "Norm",
    "ResidualMLP",
    "Scale",
    "SpectralLinear",
    "norm_of",
    "spectral_bound",
    "squash",
]
