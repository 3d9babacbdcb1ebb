"""Conditioners: plain modules that know nothing of flows."""

from mixerflow.nets.made import MADE, MaskedMLP
from mixerflow.nets.mlp import ResidualMLP
from mixerflow.nets.norm import BatchNorm, Norm, Scale, norm_of, squash

__all__ = [
    "MADE",
    "BatchNorm",
    "MaskedMLP",
    "Norm",
    "ResidualMLP",
    "Scale",
    "norm_of",
    "squash",
]
