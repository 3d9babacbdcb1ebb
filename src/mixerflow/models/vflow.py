"""VFlow: a Flow++ of the image and of added channels, whose noise a flow makes from the image.

    pixels -> learned noise -> logit -> added channels -> couplings of columns, of channels
    -> squeeze -> couplings of columns, of channels -> N(0, I)

A flow keeps the number of dimensions, which bounds how wide it is; with added channels n ~ q(n | x)
it models ``p(x, n)``, and ``E [log p(x, n) - log q(n | x)]`` bounds ``log p(x)`` from below.

References:
    Chen et al., VFlow: more expressive generative flows with variational data augmentation (2020),
    arXiv:2002.09741.
    The defaults are those of the released run file for CIFAR-10: 39,700,096 parameters, of which
    31,741,248 are the flow's, 3,466,976 the dequantiser's and 4,491,872 the added channels'. The
    paper prints no count; one of 37.8M, which others quote, does not fit that file.

Departs from the paper, besides what `mixerflow.models.flowpp` says:
    - the released code stretches the mixture's CDF to (0.05, 0.95) before its logit, against
      gradients that are not numbers. Then no image has a latent outside of an interval, and part of
      the normal distribution is lost to the density. Here the logit is computed from the CDF's
      logarithms, with finite gradients, and every latent is that of an image.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from mixerflow.models.flowpp import FlowPP, Step, times
from mixerflow.parts.added import AddedChannels
from mixerflow.parts.columns import ColumnChannels
from mixerflow.parts.image_nets import GatedAttention
from mixerflow.registry import register


@register("vflow")
@dataclass(frozen=True)
class VFlow(FlowPP):
    """Settings of a VFlow: those of a Flow++, with added channels."""

    steps: tuple[Step, ...] = (
        *times("columns", 2),
        *times("channels", 2),
        "squeeze",
        *times("columns", 2),
        *times("channels", 3),
    )
    """The steps, nearest the data first: a coupling of columns or of channels, or a squeeze."""
    added: AddedChannels | None = field(
        default=ColumnChannels(net=GatedAttention(depth=3, dropout=0.2)), kw_only=True
    )
    """Channels of noise beside the image; None for none, as in Flow++."""
