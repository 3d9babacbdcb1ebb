"""i-DenseNet: residual flows whose contractions are densely connected.

The frame is `mixerflow.models.residual_flow`'s. A layer of a contraction keeps its input beside
what it adds, with two learned shares whose squares add up to 1; activations are concatenated
LipSwish. The shares are equal until `--train.late-epochs`, and learn from then on.

Reference: Perugachi-Diaz, Tomczak, Bhulai: Invertible DenseNets with concatenated LipSwish (2021),
    arXiv:2102.02694. The defaults are its model of CIFAR-10: 24,894,690 parameters, of which 104,
    two a block, are read by nothing in the released code either.

Departs from the paper as `ResidualFlow` does from its own.
"""

from __future__ import annotations

from dataclasses import dataclass

from mixerflow.models.residual_flow import ResidualFlow
from mixerflow.parts.contractions import (
    Contraction,
    DenseConvContraction,
    DenseVectorContraction,
)
from mixerflow.registry import register


@register("idensenet")
@dataclass(frozen=True)
class IDenseNet(ResidualFlow):
    """Settings of an i-DenseNet; see `ResidualFlow`."""

    net: Contraction = DenseConvContraction()
    """The contraction of a block."""
    dense: Contraction | None = DenseVectorContraction()
    """The contraction of the last blocks, of all numbers as one vector; None for no such blocks."""
