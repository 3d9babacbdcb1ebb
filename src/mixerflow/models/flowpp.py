"""Flow++: couplings by mixtures of logistics, whose nets have gated convolutions and attention.

    pixels -> learned noise -> logit -> couplings of columns -> squeeze -> couplings of channels
    -> couplings of columns -> N(0, I)

A step is ActNorm of each number, a 1x1 convolution of each part of the split, and a coupling: a net
reads one part, and each number of the other goes through the CDF of a mixture of logistics, a logit
and an affine map. Steps with the same split follow each other, and transform the two parts in turn.

The inverse of a step evaluates the net once; the mixture's CDF is then inverted number by number,
with some tens of cheap iterations.

References:
    Ho et al., Flow++: Improving flow-based generative models with variational dequantization and
    architecture design (2019), arXiv:1902.00275.
    The defaults are those of the released model of CIFAR-10, 31,443,440 parameters.

Departs from the paper:
    - nets' last maps start at 0, so that each coupling starts as the identity; the released code
      normalises each map's first outputs;
    - components of a mixture have fixed gains, without which they would stay alike behind a zero
      start: see `mixerflow.transforms.LogisticMixture`; far tails are exact;
    - 1x1 convolutions are LU products, as many numbers, which start as the identity; the released
      code's matrices start near it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from mixerflow.core import Chain, Shape, Transform
from mixerflow.parts.columns import ColumnDequantizer, split_step
from mixerflow.parts.image_nets import GatedAttention
from mixerflow.parts.linear import LinearMap, LUMap
from mixerflow.parts.model import Model
from mixerflow.parts.pixels import LogitPixels, Pixels
from mixerflow.registry import register
from mixerflow.transforms import Columns, Elementwise, Halves, LogisticMixture, SpaceToDepth

Step = Literal["columns", "channels", "squeeze"]


def times(step: Step, count: int) -> tuple[Step, ...]:
    """Return a step so many times."""
    return (step,) * count


@register("flowpp")
@dataclass(frozen=True)
class FlowPP(Model):
    """Settings of a Flow++."""

    steps: tuple[Step, ...] = (
        *times("columns", 4),
        "squeeze",
        *times("channels", 2),
        *times("columns", 3),
    )
    """The steps, nearest the data first: a coupling of columns or of channels, or a squeeze."""
    net: GatedAttention = GatedAttention(dropout=0.2)
    """Net of the couplings."""
    elementwise: Elementwise = LogisticMixture(32)
    """Transform of the part that the net does not read."""
    linear: LinearMap = LUMap()
    """The 1x1 convolution of each part of the split; "none" for none."""
    pixels: Pixels = field(
        default=LogitPixels(
            0.05, dequantizer=ColumnDequantizer(net=GatedAttention(depth=2, dropout=0.2))
        ),
        kw_only=True,
    )
    """How an image's values become real numbers."""

    def __post_init__(self) -> None:
        wrong = [step for step in self.steps if step not in get_args(Step)]
        if wrong or not self.steps:
            got = repr(wrong[0]) if wrong else "none"
            what = f"steps must be of {', '.join(get_args(Step))}; got {got}"
            raise ValueError(f"{type(self).__name__}: {what}")

    def compose(self, shape: Shape) -> Transform:
        if "columns" in self.steps and shape[-1] % 2:
            what = "steps of columns take images of even width (see --resize and --crop)"
            raise ValueError(f"{type(self).__name__}: {what}; these are {shape[-1]} wide")
        made, before, flip = [], "", False
        for step in self.steps:
            if step == "squeeze":
                made.append(SpaceToDepth(shape))
                shape = made[-1].latent_shape
            else:
                flip = step == before and not flip
                made.append(self.step(step, shape, flip=flip))
            before = step
        return Chain(*made)

    def step(self, kind: Step, shape: Shape, *, flip: bool) -> Transform:
        """Return a coupling of columns or channels of events `shape`, as one layer."""
        split = Columns(flip) if kind == "columns" else Halves(0, flip)
        settings = {"net": self.net, "elementwise": self.elementwise, "linear": self.linear}
        return split_step(split, shape, context=self.context, **settings)
