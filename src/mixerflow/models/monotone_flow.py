"""Monotone flows: the Cayley operators of contractions, in the frame of a residual flow.

A block ``z = (I + G)^-1 (2 x) - x`` reaches slopes between ``(1 - L) / (1 + L)`` and its inverse,
where a residual block's lie between ``1 - L`` and ``1 + L``. Both directions are fixed points: each
step of training iterates the nets of all blocks until they converge.

Reference: Ahn, Kim, Hong, Ko: Invertible monotone operators for normalizing flows (2022),
    arXiv:2210.08176.

Departs from the paper:
    - the frame is `mixerflow.models.residual_flow`'s, with concatenated LipSwish;
    - activations are not the paper's concatenated Pila.
"""

from __future__ import annotations

from dataclasses import dataclass

from mixerflow.models.residual_flow import ResidualFlow
from mixerflow.parts.contractions import Contraction, ConvContraction, VectorContraction
from mixerflow.registry import register
from mixerflow.transforms import Monotone


@register("monotone-flow")
@dataclass(frozen=True)
class MonotoneFlow(ResidualFlow):
    """Settings of a monotone flow; see `ResidualFlow`."""

    net: Contraction = ConvContraction(activation="concatenated-lipswish")
    """The contraction of a block."""
    dense: Contraction | None = VectorContraction(activation="concatenated-lipswish")
    """The contraction of the last blocks, of all numbers as one vector; None for no such blocks."""

    kind = Monotone
