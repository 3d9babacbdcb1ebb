"""MaCow's conditioner: each line of an image is read by the lines on one side of it only."""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import elu, pad

from mixerflow.nets.conv import Convolution, ImageConditioner, convolution
from mixerflow.registry import register


@register
class LineConvNet(ImageConditioner):
    """``h = E x + C c``, ``out = L elu(h)``: E reads the `reach` lines before each line.

    A line is all that has one place on the spatial axis `axis`: a row of ``(B, C, H, W)`` for axis
    0, a column for axis 1. Output line i depends on the input lines i - reach to i - 1, or, with
    `after`, i + 1 to i + reach; beyond the border there are zeros. Channels need no masks. L is
    pointwise and starts at 0. A context is ``(B, K)``, no map.

    Args, besides those of `ImageConditioner`:
        axis: the spatial axis, from 0.
        after: whether the lines after each line are read, not those before.
        reach: lines that E reads.
        span: how many numbers of each line E reads along each of the other axes; odd.

    Raises:
        ValueError: an axis that images do not have, a reach below 1, an even span.

    Reference: Ma et al., MaCow: masked convolutional generative flow (2019), section 3.1,
        arXiv:1902.04208.

    Departs from the paper:
        Its code normalises the weights and starts them from data; here E starts as torch's.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        width: int,
        axis: int = 0,
        after: bool = False,
        reach: int = 2,
        span: int = 5,
        context: int = 0,
        axes: int = 2,
    ) -> None:
        if not 0 <= axis < axes <= 3 or reach < 1 or span % 2 != 1:
            wanted = "images have 1 to 3 axes, a reach is at least 1, a span odd"
            got = f"axis {axis} of {axes}, reach {reach}, span {span}"
            raise ValueError(f"LineConvNet: {wanted}; got {got}")
        sides = [reach if i == axis else span for i in range(axes)]
        around = [0 if i == axis else span // 2 for i in range(axes)]
        kinds: list[Callable[..., Convolution]] = [nn.Conv1d, nn.Conv2d, nn.Conv3d]
        enter = kinds[axes - 1](in_channels, width, tuple(sides), padding=tuple(around))
        leave = convolution(axes, width, out_channels)
        super().__init__(enter, leave, squash=False, context=context)
        self.axis, self.after, self.reach = axis, after, reach
        ends = (-1, reach) if after else (reach, -1)
        self._shift = [0, 0] * (axes - 1 - axis) + list(ends)  # pad counts from the last axis

    def hidden(self, h: Tensor) -> Tensor:
        return elu(h)

    def forward(
        self, x: Float[Tensor, "batch in *spatial"], context: Tensor | None = None
    ) -> Float[Tensor, "batch out *spatial"]:
        if x.dim() != self.axes + 2:
            return self.line(x, context)  # which refuses it
        return self.line(pad(x, self._shift), context)

    def line(
        self, window: Float[Tensor, "batch in *spatial"], context: Tensor | None = None
    ) -> Float[Tensor, "batch out *spatial"]:
        """Return the output line that belongs to a window of `reach` lines, as one line."""
        return super().forward(window, context)
