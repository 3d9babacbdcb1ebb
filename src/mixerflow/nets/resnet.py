"""RealNVP's conditioner: residual blocks that all reach the output, and a bounded log-scale."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mixerflow.nets.conv import Axes, ImageConditioner, convolution, norm_of_channels
from mixerflow.nets.norm import Norm
from mixerflow.registry import register


class ResNetBlock(nn.Module):
    """``h + K relu(norm(K relu(norm(h))))`` with two convolutions K of size 3."""

    def __init__(self, width: int, *, norm: Norm, axes: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = norm_of_channels(norm, width), norm_of_channels(norm, width)
        self.look1 = convolution(axes, width, width, 3)
        self.look2 = convolution(axes, width, width, 3)

    def forward(self, h: Tensor) -> Tensor:
        """``(B, width, *spatial)`` to the same."""
        inner = self.look1(self.norm1(h).relu())
        return h + self.look2(self.norm2(inner).relu())


@register
class ResNet(ImageConditioner):
    """``h_0 = E x + C c``, ``h_i = block(h_i-1)``, ``out = L relu(norm(sum_i S_i h_i))``.

    E is a convolution of size 3; the S_i, of all depths from 0 on, and L are pointwise. L starts
    at 0: whatever map reads the output starts as the identity.

    Args:
        in_channels: channels of the conditioning images ``(B, in_channels, *spatial)``.
        out_channels: channels to give out.
        width: hidden channels.
        depth: residual blocks.
        norm: "batch", "layer", "rms" or "none", before each ReLU. Batch norm couples a training
            batch.
        squash: read ``s(x) = sign(x) log(1 + |x|)``, see `mixerflow.nets.squash`.
        context: length K of contexts ``(B, K)``, added to every pixel, or ``(B, K, *spatial)``.
        axes: spatial axes.

    References:
        He, Zhang, Ren, Sun: Identity mappings in deep residual networks (2016), figure 4 (e).
        https://arxiv.org/abs/1603.05027
        Dinh, Sohl-Dickstein, Bengio: Density estimation using Real NVP (2017), section 3.6.
        https://arxiv.org/abs/1605.08803

    Departs from the paper:
        It has skip connections, batch norm and weight norm in its residual nets and does not say
        how; this form is ours, without weight norm.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        width: int,
        depth: int,
        norm: Norm = "batch",
        squash: bool = False,
        context: int = 0,
        axes: Axes = 2,
    ) -> None:
        super().__init__(
            convolution(axes, in_channels, width, 3),
            convolution(axes, width, out_channels),
            in_channels=in_channels,
            width=width,
            axes=axes,
            squash=squash,
            context=context,
        )
        blocks = (ResNetBlock(width, norm=norm, axes=axes) for _ in range(depth))
        self.blocks = nn.ModuleList(blocks)
        # one bias for all: their sum is what is read
        skips = (convolution(axes, width, width, bias=i == 0) for i in range(depth + 1))
        self.skips = nn.ModuleList(skips)
        self.norm = norm_of_channels(norm, width)

    def hidden(self, h: Tensor) -> Tensor:
        first, *skips = self.skips
        out = first(h)
        for block, skip in zip(self.blocks, skips, strict=True):
            h = block(h)
            out = out + skip(h)
        return self.norm(out).relu()


@register
class TanhScale(nn.Module):
    """``(gain * tanh(s), t)`` of a net's output ``(s, t)``: RealNVP's bounded log-scale.

    For `Affine` to read: ``z = x * exp(gain * tanh(s)) + t``. A `gain` for each channel is learned,
    starting at 1.

    Args:
        net: gives ``(B, out, ...)``, s first.
        channels: how many of these are s.
    """

    def __init__(self, net: nn.Module, channels: int) -> None:
        super().__init__()
        self.net = net
        self.gain = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """What the net reads to ``(B, out, ...)``."""
        return self._bounded(self.net(x, context))

    @torch.no_grad()
    def initialize(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """The net's own start from data, where it has one; returns the output."""
        return self._bounded(getattr(self.net, "initialize", self.net)(x, context))

    def _bounded(self, out: Tensor) -> Tensor:
        gain = self.gain.view(-1, *(1,) * (out.dim() - 2))
        s, t = out[:, : len(gain)], out[:, len(gain) :]
        return torch.cat([gain * s.tanh(), t.to(gain.dtype)], 1)
