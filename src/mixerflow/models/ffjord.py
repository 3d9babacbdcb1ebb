"""FFJORD: continuous flows of images at several scales, with an estimated log-det.

    pixels -> dequantise -> logit -> L - 1 times [blocks -> squeeze -> blocks -> factor out half the
    channels] -> blocks -> N(0, I)

A block is the solution of an ordinary differential equation whose velocity is a stack of 3x3
convolutions that read the time as one more channel, and whose end time is learned. Factored-out
channels are scored under a standard normal. Hutchinson's estimate of the log-det is unbiased, and
so is that of the log-likelihood.

Reference: Grathwohl et al., FFJORD: Free-form continuous dynamics for scalable reversible
    generative models (2019), section 4.2 and appendix B, arXiv:1810.01367.

Departs from the paper:
    - gradients by backpropagation through the solver's steps, not by the adjoint method;
    - in training every image takes its own steps, not the batch's; evaluation takes equal steps,
      halved for each image until they make no difference (`mixerflow.transforms.Continuous`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from mixerflow.core import Chain, MultiScale, Shape, Transform
from mixerflow.parts.base import PositiveCounts
from mixerflow.parts.image_nets import ConvVelocityNet
from mixerflow.parts.images import require_halvable
from mixerflow.parts.model import Model
from mixerflow.parts.pixels import LogitPixels, Pixels
from mixerflow.registry import register
from mixerflow.transforms import Continuous, Squeeze


@register("ffjord")
@dataclass(frozen=True)
class FFJORD(PositiveCounts, Model):
    """Settings of an FFJORD; the defaults are the paper's for images."""

    scales: int | None = None
    """Number of scales, L; each has half as many pixels a side as the one before. None for all
    whose sides have at least 4 pixels."""
    blocks: int = 2
    """Continuous flows before a squeeze, and as many after it."""
    net: ConvVelocityNet = ConvVelocityNet()
    """Right-hand side of the equations."""
    log_det: Literal["exact", "unbiased"] = "unbiased"
    """Log-det by the trace itself, for small images, or an unbiased estimate of the trace."""
    learned_end: bool = True
    """Whether each flow learns the time at which it ends; else it is 1."""
    train_tolerance: float = 1e-5
    """Largest error of a solver's step in training, relative to one plus the values."""
    tolerance: float | None = None
    """Largest error in evaluation and sampling; None for 1e-5, in float64 for 1e-8."""
    pixels: Pixels = field(default=LogitPixels(0.05), kw_only=True)
    """How an image's values become real numbers."""

    def compose(self, shape: Shape) -> Transform:
        count = self.scales or scales_of(shape)
        require_halvable(shape, count - 1, f"{count} scales")
        inner, scales = shape, []
        for number in range(count):
            steps = self.flows(inner)
            if number < count - 1:
                squeeze = Squeeze(inner)
                inner = squeeze.latent_shape
                steps += [squeeze, *self.flows(inner)]
                inner = (inner[0] // 2, *inner[1:])
            scales.append(Chain(*steps))
        return MultiScale(shape, scales)

    def flows(self, shape: Shape) -> list[Transform]:
        """Return the continuous flows of images ``(C, *spatial)``, each a layer."""
        return [
            Continuous(
                self.net.build(shape, context=self.context),
                trace="exact" if self.log_det == "exact" else "hutchinson",
                learned_end=self.learned_end,
                tolerance=self.tolerance,
                train_tolerance=self.train_tolerance,
            )
            for _ in range(self.blocks)
        ]


def scales_of(shape: Shape) -> int:
    """Return how often sides halve until one has less than 4 pixels; at least 1."""
    side, count = min(shape[1:]), 0
    while side >= 4:
        side, count = side // 2, count + 1
    return max(count, 1)
