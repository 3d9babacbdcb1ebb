"""Masked convolutions: each line of an image is mapped by parameters that read other lines."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from mixerflow.core import Context, Mapped, Noise, Shape, Transform, total
from mixerflow.registry import register
from mixerflow.transforms.elementwise import Elementwise


@runtime_checkable
class LineNet(Protocol):
    """A net of images that reads a few lines of one side for each line, as `LineConvNet` does."""

    in_channels: int
    axis: int
    """The spatial axis, from 0, along which lines are counted."""
    after: bool
    """Whether the net reads the `reach` lines after a line, not those before it."""
    reach: int

    @property
    def axes(self) -> int:
        """Number of spatial axes."""
        ...

    def __call__(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """The output ``(B, out, *spatial)`` of images ``(B, in_channels, *spatial)``."""
        ...

    def line(self, window: Tensor, context: Tensor | None = None) -> Tensor:
        """The output of one line, one line wide, from the lines that it reads."""
        ...


@register
class LineAutoregressive(Transform):
    """``z_i = elementwise(x_i; net(lines before i, context))`` for the lines i of an image.

    Events are ``(C, *spatial)``. The lines are the rows or the columns, and all of a line is mapped
    at once. ``log|det dz/dx|`` is the sum of the map's log-derivatives: the Jacobian is block
    triangular, with diagonal blocks. The density takes one convolution of the image. The inverse
    finds the lines one after another, each exactly, and convolves only the few lines that the net
    reads; under autocast, the whole image for each line.

    Args:
        net: gives ``elementwise.params * C`` channels; parameter k of channel j is channel
            ``k C + j``. It says what the lines are, and which come before others.
        elementwise: the map of each number.

    Reference: Ma et al., MaCow: masked convolutional generative flow (2019), section 3.1,
        arXiv:1902.04208.
    """

    def __init__(self, net: LineNet, elementwise: Elementwise) -> None:
        super().__init__()
        self.net, self.elementwise = net, elementwise

    def _read(self, out: Tensor, x: Tensor) -> Tensor:
        """The net's output as raw parameters ``(params, *out.shape)``, in the dtype of x."""
        params = self.elementwise.params
        if out.shape[1] != params * x.shape[1]:
            expected, got = params * x.shape[1], f"the net gives {out.shape[1]}"
            wanted = f"{self.elementwise!r} takes {expected} parameters for {x.shape[1]} channels"
            raise ValueError(f"LineAutoregressive: {wanted}; {got}")
        return out.to(x.dtype).unflatten(1, (params, x.shape[1])).movedim(1, 0)

    def forward(self, x: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        self.out_shape(tuple(x.shape[1:]))
        z, log_slope = self.elementwise.forward(x, self._read(self.net(x, context), x))
        return z, total(log_slope)

    def inverse(self, z: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        self.out_shape(tuple(z.shape[1:]))
        net, axis = self.net, self.net.axis + 2
        lines = z.split(1, axis)
        order = range(len(lines))[:: -1 if net.after else 1]
        zero = torch.zeros_like(lines[0])
        # lines not found yet, and those beyond both borders, are 0
        found = [zero] * (len(lines) + 2 * net.reach)
        log_slopes = []
        for i in order:
            place = i + net.reach
            if torch.is_autocast_enabled(z.device.type):
                # half-precision sums in another order would be other parameters than forward's
                whole = torch.cat(found[net.reach : net.reach + len(lines)], axis)
                out = net(whole, context).narrow(axis, i, 1)
            else:
                first = place + 1 if net.after else place - net.reach
                out = net.line(torch.cat(found[first : first + net.reach], axis), context)
            found[place], log_slope = self.elementwise.inverse(lines[i], self._read(out, z))
            log_slopes.append(log_slope)
        x = torch.cat(found[net.reach : net.reach + len(lines)], axis)
        return x, total(torch.cat(log_slopes, axis))

    def out_shape(self, shape: Shape) -> Shape:
        channels, axes = self.net.in_channels, self.net.axes
        if len(shape) != axes + 1 or shape[0] != channels:
            takes = f"takes images of {channels} channels and {axes} axes"
            raise ValueError(f"LineAutoregressive: {takes}; got {tuple(shape)}")
        return shape

    def extra_repr(self) -> str:
        return f"elementwise={self.elementwise!r}"
