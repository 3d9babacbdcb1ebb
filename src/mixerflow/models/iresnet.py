"""i-ResNet: residual flows that train with the first terms of the log-det's series.

The architecture is `mixerflow.models.residual_flow`'s, with ELU and a smaller Lipschitz constant.
Training maximises the truncated series, which is biased: its figure is no likelihood. Evaluation
has the unbiased estimate.

Reference: Behrmann et al., Invertible residual networks (2019), sections 3 and 5.3,
    arXiv:1811.00995.

Departs from the paper:
    - scales, width and the dense blocks at the end are the residual flow's, which grew out of it:
      the two differ in the estimate, the activation and the constant alone;
    - evaluation is unbiased, where the paper's is truncated too.
"""

from __future__ import annotations

from dataclasses import dataclass

from mixerflow.models.residual_flow import ResidualFlow
from mixerflow.parts.contractions import Contraction, ConvContraction, VectorContraction
from mixerflow.registry import register
from mixerflow.transforms.residual import LogDet


@register("iresnet")
@dataclass(frozen=True)
class IResNet(ResidualFlow):
    """Settings of an i-ResNet; see `ResidualFlow`."""

    net: Contraction = ConvContraction(activation="elu", coefficient=0.9)
    """The contraction of a block."""
    dense: Contraction | None = VectorContraction(activation="elu", coefficient=0.9)
    """The contraction of the last blocks, of all numbers as one vector; None for no such blocks."""
    log_det: LogDet = "truncated"
    """Log-det: in training the first terms alone; "unbiased"; or exact, for small images."""
    terms: int = 5
    """Terms of the log-det's series in training."""
