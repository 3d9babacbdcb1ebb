"""Glow's conditioner: norms inside that start from data, and an output that starts at 0.

Reference: Kingma, Dhariwal, Glow (2018), sections 3.3 and 4, arXiv:1807.03039.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mixerflow.nets.base import zeroed
from mixerflow.nets.conv import (
    Axes,
    Convolution,
    ImageConditioner,
    PlainConvNet,
    absorb,
    convolution,
    convolve,
)
from mixerflow.registry import register


class ChannelAffine(nn.Module):
    """``y = (x + bias) * exp(log_scale)`` per channel of ``(B, C, *spatial)``.

    It is the identity until `initialize` gives a batch's output mean 0 and variance 1; `floor` is
    the lower bound of the standard deviations that `initialize` divides by.
    """

    def __init__(self, channels: int, *, axes: Axes = 2, floor: float = 1e-3) -> None:
        super().__init__()
        self.floor = floor
        self.bias = nn.Parameter(torch.zeros(channels, *(1,) * axes))
        self.log_scale = nn.Parameter(torch.zeros(channels, *(1,) * axes))

    def forward(self, x: Float[Tensor, "batch channels *spatial"]) -> Tensor:
        return (x + self.bias) * self.log_scale.exp()

    def coefficients(self) -> tuple[Tensor, Tensor]:
        """Scale and shift of ``y = (x + shift) * scale``, for `convolve`."""
        return self.log_scale.exp(), self.bias

    @torch.no_grad()
    def initialize(self, x: Tensor) -> Tensor:
        """Take mean and variance from a batch, and return the batch's output."""
        if x.shape[0] == 0:
            raise ValueError("ChannelAffine: cannot be initialised from an empty batch")
        variance, mean = torch.var_mean(x, [0, *range(2, x.dim())], correction=0, keepdim=True)
        self.bias.copy_(-mean[0])
        self.log_scale.copy_(-variance[0].sqrt().clamp(min=self.floor).log())
        return self(x)


@register
class ZeroConv(ImageConditioner):
    """``out = (K x + C c + b) * exp(factor * g)``, with all parameters 0 at the start.

    K is a convolution with a bias of its own; b and g have a number for each output channel. Glow's
    nets end in this map, and Glow's Gaussians at the splits get their means and scales from it.

    Args, besides those of `ImageConditioner`:
        size: side of K, odd.
        factor: how many times faster the scale learns; 3 in Glow's published code.
        second_bias: whether there is a b besides K's own bias. The map with b can express no more.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        size: int = 3,
        axes: Axes = 2,
        factor: float = 1.0,
        second_bias: bool = True,
        context: int = 0,
    ) -> None:
        enter = convolution(axes, in_channels, out_channels, size)
        super().__init__(enter, nn.Identity(), squash=False, context=context)
        self.factor = factor
        self.bias = nn.Parameter(torch.zeros(out_channels, *(1,) * axes)) if second_bias else None
        self.log_scale = nn.Parameter(torch.zeros(out_channels, *(1,) * axes))
        zeroed(self)

    def coefficients(self) -> tuple[Tensor, Tensor | None]:
        """Scale and shift of the output, for `convolve`."""
        return (self.factor * self.log_scale).exp(), self.bias

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return self.read(x, context, *self.coefficients()).contiguous()


@register
class GlowNet(ImageConditioner):
    """``h = relu(N(E x + C c))``, ``h = relu(N(P h))``, ``out = Z h``: convolutions 3-1-3.

    N is a `ChannelAffine`, which starts from data, and Z a `ZeroConv`; E and P have no bias and
    start at N(0, 0.05^2). The net reads pixels without a squash. `factor` and `second_bias` are
    those of Z.

    Departs from the paper:
        In the published code one more input channel marks the border for 3x3 convolutions; this net
        pads with 0 alone.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        width: int,
        context: int = 0,
        axes: Axes = 2,
        factor: float = 1.0,
        second_bias: bool = True,
    ) -> None:
        enter = convolution(axes, in_channels, width, 3, bias=False)
        leave = ZeroConv(width, out_channels, axes=axes, factor=factor, second_bias=second_bias)
        super().__init__(enter, leave, squash=False, context=context)
        self.norm1 = ChannelAffine(width, axes=axes)
        self.mix = convolution(axes, width, width, bias=False)
        self.norm2 = ChannelAffine(width, axes=axes)
        nn.init.normal_(self.enter.weight, std=0.05)
        nn.init.normal_(self.mix.weight, std=0.05)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        # convolutions keep what they read, not what they give, so ReLU may write there
        h = self.read(x, context, *self.norm1.coefficients()).relu_()
        return self.leave(convolve(self.mix, h, *self.norm2.coefficients()).relu_()).contiguous()

    @torch.no_grad()
    def initialize(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Start the norms from a batch of conditioning images, and return the net's output.

        The first norm starts from the images alone, and C is divided by its scale: what it adds
        behind the norm is as large as at first. Else the context, which is larger than small
        weights make of the images, would drown them.
        """
        if isinstance(self.context, Convolution):
            weight = self.context.weight.clone()
            self.context.weight.zero_()
            self.norm1.initialize(self.read(x, context))
            self.context.weight.copy_(weight / self.norm1.coefficients()[0].unsqueeze(1))
            h = self.read(x, context, *self.norm1.coefficients()).relu()
        else:
            h = self.norm1.initialize(self.read(x, context)).relu()
        return self.leave(self.norm2.initialize(self.mix(h)).relu())

    def folded(self) -> nn.Module:
        """Three convolutions, whose weights have the norms' and the output's scales."""
        leave, told, axes = self.leave, self.context, self.axes
        assert isinstance(leave, ZeroConv)
        out, width = leave.enter.out_channels, self.mix.out_channels
        context = told.in_channels if isinstance(told, Convolution) else 0
        with torch.device("meta"):  # draws no numbers
            net = PlainConvNet(self.in_channels, out, width=width, context=context, axes=axes)
        pairs = [
            (net.enter, absorb(self.enter, *self.norm1.coefficients())),
            (net.mix, absorb(self.mix, *self.norm2.coefficients())),
            (net.leave, absorb(leave.enter, *leave.coefficients())),
        ]
        if isinstance(told, Convolution):
            pairs.append((net.context, absorb(told, self.norm1.coefficients()[0], None)))
        for by, (weight, bias) in pairs:
            by.weight, by.bias = nn.Parameter(weight), None if bias is None else nn.Parameter(bias)
        return net
