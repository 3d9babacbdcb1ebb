"""Glow's conditioner: norms inside that start from data, and an end that starts at 0."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mixerflow.nets.conv import Axes, ImageConditioner, convolution
from mixerflow.registry import register


class ChannelAffine(nn.Module):
    """``y = (x + bias) * exp(log_scale)`` per channel of ``(B, C, *spatial)``.

    `initialize` makes a batch come out with mean 0 and variance 1; until then it is the identity.

    Args:
        channels: C.
        axes: spatial axes.
        floor: smallest standard deviation that `initialize` believes.
    """

    def __init__(self, channels: int, *, axes: Axes = 2, floor: float = 1e-3) -> None:
        super().__init__()
        self.floor = floor
        self.bias = nn.Parameter(torch.zeros(channels, *(1,) * axes))
        self.log_scale = nn.Parameter(torch.zeros(channels, *(1,) * axes))

    def forward(self, x: Float[Tensor, "batch channels *spatial"]) -> Tensor:
        """``(B, C, *spatial)`` to the same."""
        return (x + self.bias) * self.log_scale.exp()

    @torch.no_grad()
    def initialize(self, x: Tensor) -> Tensor:
        """Take mean and variance from a batch, and return what becomes of it.

        Raises:
            ValueError: an empty batch.
        """
        if x.shape[0] == 0:
            raise ValueError("ChannelAffine: cannot be initialised from an empty batch")
        variance, mean = torch.var_mean(x, [0, *range(2, x.dim())], correction=0, keepdim=True)
        self.bias.copy_(-mean[0])
        self.log_scale.copy_(-variance[0].sqrt().clamp(min=self.floor).log())
        return self(x)


@register
class ZeroConv(ImageConditioner):
    """``out = (K x + C c + b) * exp(factor * g)``, of parameters that all start at 0.

    K is a convolution with a bias of its own; b and g have a number for each channel that is given
    out. Glow's nets end in it, and by itself it is what Glow's Gaussians at the splits read their
    means and scales with.

    Args:
        in_channels: channels of the conditioning images ``(B, in_channels, *spatial)``.
        out_channels: channels to give out.
        size: of K, odd.
        axes: spatial axes.
        factor: by how much quicker the scale learns; 3 in Glow's published code.
        second_bias: whether there is a b besides K's bias, which can do all that b can.
        context: length K of contexts ``(B, K)``, added to every pixel, or ``(B, K, *spatial)``.

    References:
        Kingma, Dhariwal: Glow: generative flow with invertible 1x1 convolutions (2018), sec. 3.3.
        https://arxiv.org/abs/1807.03039
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
        super().__init__(
            convolution(axes, in_channels, out_channels, size),
            nn.Identity(),
            in_channels=in_channels,
            width=out_channels,
            axes=axes,
            squash=False,
            context=context,
        )
        self.factor = factor
        self.bias = nn.Parameter(torch.zeros(out_channels, *(1,) * axes)) if second_bias else None
        self.log_scale = nn.Parameter(torch.zeros(out_channels, *(1,) * axes))
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    def hidden(self, h: Tensor) -> Tensor:
        h = h if self.bias is None else h + self.bias
        return h * (self.factor * self.log_scale).exp()


@register
class GlowNet(ImageConditioner):
    """``h = relu(N(E x + C c))``, ``h = relu(N(P h))``, ``out = Z h``: convolutions 3-1-3.

    N is a `ChannelAffine`, which starts from data, and Z a `ZeroConv`; E and P have no bias and
    start at N(0, 0.05^2). Each pixel is read as it is.

    Args:
        in_channels: channels of the conditioning images ``(B, in_channels, *spatial)``.
        out_channels: channels to give out.
        width: hidden channels.
        context: length K of contexts ``(B, K)``, added to every pixel, or ``(B, K, *spatial)``.
        axes: spatial axes.
        factor: of the `ZeroConv`.
        second_bias: of the `ZeroConv`.

    References:
        Kingma, Dhariwal: Glow: generative flow with invertible 1x1 convolutions (2018), section 4.
        https://arxiv.org/abs/1807.03039

    Departs from the paper:
        The published code tells 3x3 convolutions where the border is by one more channel; this
        pads by 0 alone.
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
        super().__init__(
            convolution(axes, in_channels, width, 3, bias=False),
            ZeroConv(width, out_channels, axes=axes, factor=factor, second_bias=second_bias),
            in_channels=in_channels,
            width=width,
            axes=axes,
            squash=False,
            context=context,
        )
        self.norm1 = ChannelAffine(width, axes=axes)
        self.mix = convolution(axes, width, width, bias=False)
        self.norm2 = ChannelAffine(width, axes=axes)
        for part in (self.enter, self.mix):
            nn.init.normal_(part.weight, std=0.05)  # pyright: ignore[reportArgumentType]

    def hidden(self, h: Tensor) -> Tensor:
        h = self.norm1(h).relu()
        return self.norm2(self.mix(h)).relu()

    @torch.no_grad()
    def initialize(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Start the norms from a batch of conditioning images, and return the net's output."""
        h = self.norm1.initialize(self.read(x, context)).relu()
        return self.leave(self.norm2.initialize(self.mix(h)).relu())
