"""Conditioners: plain modules that know nothing of flows."""

from mixerflow.nets.mlp import ResidualMLP
from mixerflow.nets.norm import BatchNorm, Norm, Scale, norm_of, squash
from mixerflow.nets.velocity import Velocity

__all__ = ["BatchNorm", "Norm", "ResidualMLP", "Scale", "Velocity", "norm_of", "squash"]
