"""Conditioners: plain modules that know nothing of flows."""

from mixerflow.nets.mlp import Norm, ResidualMLP

__all__ = ["Norm", "ResidualMLP"]
