"""Residual conditioners: RealNVP's, with a bounded log-scale, and that of neural spline flows."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from mixerflow.moments import Entries
from mixerflow.nets.conv import (
    Axes,
    ImageConditioner,
    bias_of,
    convolution,
    is_batch_norm,
    norm_of_channels,
)
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
        return h + self.look2(self.norm2(self.look1(self.norm1(h).relu())).relu())

    def idle(self) -> Iterator[Entries]:
        if is_batch_norm(self.norm2):
            yield bias_of(self.look1)


@register
class ResNet(ImageConditioner):
    """``h_0 = E x + C c``, ``h_i = block(h_i-1)``, ``out = L relu(norm(sum_i S_i h_i))``.

    E is a convolution of size 3; the S_i, of all depths from 0 on, and L are pointwise. L starts
    at 0: whatever map reads the output starts as the identity.

    Args, besides those of `ImageConditioner`:
        depth: residual blocks, with `norm` before each ReLU.

    References:
        He et al., Identity mappings in deep residual networks (2016), figure 4 (e),
        arXiv:1603.05027.
        Dinh et al., Real NVP (2017), section 3.6, arXiv:1605.08803.

    Departs from the paper:
        Real NVP's residual nets have skip connections, batch norm and weight norm, and the paper
        does not say where; this form is ours, without weight norm.
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
        enter = convolution(axes, in_channels, width, 3)
        leave = convolution(axes, width, out_channels)
        super().__init__(enter, leave, squash=squash, context=context)
        self.blocks = nn.ModuleList(ResNetBlock(width, norm=norm, axes=axes) for _ in range(depth))
        # their outputs are added, so one bias is enough
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

    def idle(self) -> Iterator[Entries]:
        """All that adds a constant to an h or to their sum: every way from there has a norm."""
        if is_batch_norm(self.norm):
            ends = (block.look2 for block in self.blocks)
            yield from map(bias_of, (self.enter, *ends, self.skips[0]))  # pyright: ignore


@register
class PreactivationNet(ImageConditioner):
    """``h_0 = E x + C c``, ``h_i = block(h_i-1)``, ``out = L h``: a pre-activation residual net.

    The blocks are those of `ResNet`; E and L are pointwise, without norm or ReLU.

    Args, besides those of `ImageConditioner`:
        depth: residual blocks, with `norm` before each ReLU.
        zero: whether L starts at 0; otherwise whatever map reads the output does not start as the
            identity.

    References:
        He et al., Identity mappings in deep residual networks (2016), figure 4 (e),
        arXiv:1603.05027.
        Durkan et al., Neural spline flows (2019), appendix B.2, arXiv:1906.04032.

    Departs from the paper:
        There is no dropout.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        width: int,
        depth: int = 3,
        norm: Norm = "batch",
        zero: bool = False,
        squash: bool = False,
        context: int = 0,
        axes: Axes = 2,
    ) -> None:
        enter, leave = convolution(axes, in_channels, width), convolution(axes, width, out_channels)
        super().__init__(enter, leave, squash=squash, context=context, zero=zero)
        blocks = (ResNetBlock(width, norm=norm, axes=axes) for _ in range(depth))
        self.blocks = nn.Sequential(*blocks)

    def hidden(self, h: Tensor) -> Tensor:
        return self.blocks(h)


@register
class TanhScale(nn.Module):
    """``(gain * tanh(s), t)`` of a net's output ``(s, t)``: RealNVP's bounded log-scale.

    An `Affine` coupling reads both: ``z = x * exp(gain * tanh(s)) + t``. The `gain` of each channel
    is learned and starts at 1.

    Args:
        net: a net whose output ``(B, out, ...)`` has the channels of s first.
        channels: number of the channels of s.
    """

    def __init__(self, net: nn.Module, channels: int) -> None:
        super().__init__()
        self.net = net
        self.gain = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return self._bounded(self.net(x, context))

    @torch.no_grad()
    def initialize(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Initialise the net from data, if the net can, and return the bounded output."""
        return self._bounded(getattr(self.net, "initialize", self.net)(x, context))

    def _bounded(self, out: Tensor) -> Tensor:
        gain = self.gain.view(-1, *(1,) * (out.dim() - 2))
        s, t = out[:, : len(gain)], out[:, len(gain) :]
        return torch.cat([gain * s.tanh(), t.to(gain.dtype)], 1)
