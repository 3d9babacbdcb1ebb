"""Residual flows: many residual maps of whole images, each a contraction added to the identity.

    pixels -> ActNorm -> K blocks -> squeeze -> K blocks -> squeeze -> K blocks
    -> k dense blocks of all numbers -> N(0, I)

A block is ``x + g(x)`` with a contraction g, then ActNorm. No channel is split or factored out. The
first K blocks see the image at its own resolution. The log-det is an unbiased estimate: figures are
estimates, and `Flow.exact` is for small images.

Reference: Chen, Behrmann, Duvenaud, Jacobsen: Residual flows for invertible generative modeling
    (2019), arXiv:1906.02735. The defaults are its model of CIFAR-10: 25,174,233 parameters, of
    which 104, two a block (`geom_p` and `lamb` there), train in the released code neither.

Departs from the paper:
    - a contraction's last map alone has the coefficient; its norm is bounded from above, not
      approached from below by power iteration (see `mixerflow.nets.spectral`);
    - the last map of each contraction starts at 0, so that a block starts as the identity;
    - probes are signs; see `mixerflow.transforms.series` for the gradient.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from mixerflow.core import Chain, Layer, Shape, Transform
from mixerflow.parts.base import PositiveCounts
from mixerflow.parts.contractions import Contraction, ConvContraction, VectorContraction
from mixerflow.parts.images import require_halvable
from mixerflow.parts.model import Model
from mixerflow.parts.pixels import LogitPixels, Pixels
from mixerflow.registry import register
from mixerflow.transforms import ActNorm, Reshape, Residual, Squeeze
from mixerflow.transforms.residual import LogDet
from mixerflow.transforms.series import PoissonTail, Tail


@register("residual-flow")
@dataclass(frozen=True)
class ResidualFlow(PositiveCounts, Model):
    """Settings of a residual flow."""

    scales: int = 3
    """Number of scales; each has half as many pixels a side as the one before."""
    blocks: int = 16
    """Blocks of each scale, K."""
    net: Contraction = ConvContraction()
    """The contraction of a block."""
    dense: Contraction | None = VectorContraction()
    """The contraction of the last blocks, of all numbers as one vector; None for no such blocks."""
    dense_blocks: int = 4
    """Number of these blocks, k."""
    log_det: LogDet = "unbiased"
    """Log-det: an unbiased estimate; in training the first terms alone ("truncated"); or exact, for
    small images."""
    terms: int = 2
    """Terms of the log-det's series in every draw of training."""
    eval_terms: int = 20
    """Terms in every draw of evaluation."""
    tail: Tail = PoissonTail()
    """Distribution of the number of further terms."""
    spare: bool = False
    """Whether each block has two parameters more, which nothing reads, as in the released code."""
    floor: float = 0.01
    """Lower bound of the standard deviations that ActNorm's start from data divides by."""
    pixels: Pixels = field(default=LogitPixels(0.05), kw_only=True)
    """How an image's values become real numbers."""

    kind = Residual
    """The map that a block makes of its contraction."""

    def compose(self, shape: Shape) -> Transform:
        times = self.scales - 1
        require_halvable(shape, times, f"{self.scales} scales")
        steps: list[Transform] = [self.actnorm(shape)]
        inner = shape
        for scale in range(self.scales):
            if scale:
                squeeze = Squeeze(inner)
                steps.append(squeeze)
                inner = squeeze.latent_shape
            for number in range(self.blocks):
                steps.append(self.block(self.net, inner, first=scale == number == 0))
        if self.dense is not None:
            vector = (math.prod(inner),)
            steps.append(Reshape(inner, vector))
            steps += [self.block(self.dense, vector) for _ in range(self.dense_blocks)]
        return Chain(*steps)

    def block(self, net: Contraction, shape: Shape, *, first: bool = False) -> Transform:
        """Return a block of events `shape`, as one layer."""
        contraction = net.build(shape, context=self.context, first=first)
        settings = {"terms": self.terms, "eval_terms": self.eval_terms, "tail": self.tail}
        settings |= {"log_det": self.log_det, "unused": 2 * self.spare}
        return Layer(self.kind(contraction, **settings), self.actnorm(shape))

    def actnorm(self, shape: Shape) -> Transform:
        """Return an ActNorm of each channel of an image, or of each number of a vector."""
        return ActNorm((shape[0], *(1,) * (len(shape) - 1)), floor=self.floor)
