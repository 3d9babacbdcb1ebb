"""Conditioners: plain modules that know nothing of flows."""

from mixerflow.nets.mlp import Norm, ResidualMLP
from mixerflow.nets.norm import BatchNorm, Scale

__all__ = ["BatchNorm", "Norm", "ResidualMLP", "Scale"]
