"""Densely connected conditioners: each layer reads the outputs of all layers before it.

References:
    Huang et al., Densely connected convolutional networks (2017), section 3, arXiv:1608.06993.
    Nielsen et al., SurVAE flows (2020), appendix (image experiments), arXiv:2007.02731.
    Grcić et al., Densely connected normalizing flows (2021), section 3.2, arXiv:2106.04627.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float
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
from mixerflow.nets.nystrom import NystromAttention
from mixerflow.registry import register


class DenseBlock(nn.Module):
    """``h_i = [h, relu(K_i relu(P_i h))]`` with P pointwise; then ``a + b sigmoid(g)``.

    Each of `depth` layers appends `growth` channels to all before it; a pointwise convolution of
    all of them gives a, b and g, `out` channels each; by default as many as come in.
    """

    def __init__(
        self,
        width: int,
        out: int | None = None,
        *,
        growth: int,
        depth: int,
        kernel: int,
        axes: int,
    ) -> None:
        super().__init__()
        widths = [width + growth * i for i in range(depth)]
        self.mix = nn.ModuleList(convolution(axes, n, n) for n in widths)
        self.grow = nn.ModuleList(convolution(axes, n, growth, kernel) for n in widths)
        self.gate = convolution(axes, width + growth * depth, 3 * (width if out is None else out))

    def forward(self, h: Tensor) -> Tensor:
        for mix, grow in zip(self.mix, self.grow, strict=True):
            h = torch.cat([h, grow(mix(h).relu_()).relu_()], 1)
        a, b, g = self.gate(h).chunk(3, 1)
        return a + b * g.sigmoid()

    def constant(self) -> Entries:
        """The bias of a, which a norm of the output removes."""
        return bias_of(self.gate, slice(self.gate.out_channels // 3))


@register
class DenseConvNet(ImageConditioner):
    """``h = P s(x) + C c``, a `DenseBlock`, ``out = L relu(norm(h))``.

    The last convolution starts at 0: whatever map reads the output starts as the identity.

    Args, besides those of `ImageConditioner`:
        growth: channels that each layer of the block appends.
        depth: layers of the block, which `norm` follows.
        kernel: side of the convolutions that are not pointwise; odd.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        width: int,
        growth: int = 64,
        depth: int = 7,
        norm: Norm = "none",
        squash: bool = True,
        context: int = 0,
        kernel: int = 3,
        axes: Axes = 2,
    ) -> None:
        enter = convolution(axes, in_channels, width)
        leave = convolution(axes, width, out_channels)
        super().__init__(enter, leave, squash=squash, context=context)
        self.block = DenseBlock(width, growth=growth, depth=depth, kernel=kernel, axes=axes)
        self.norm = norm_of_channels(norm, width)

    def hidden(self, h: Tensor) -> Tensor:
        return self.norm(self.block(h)).relu()

    def idle(self) -> Iterator[Entries]:
        if is_batch_norm(self.norm):
            yield self.block.constant()


@register
class ResidualDenseNet(ImageConditioner):
    """``h = P x + C c``, ``out = L (h + D h)`` with a `DenseBlock` D; the output starts at 0.

    Args, besides those of `ImageConditioner`:
        growth: channels that each layer of the block appends.
        depth: layers of the block.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        width: int,
        growth: int = 64,
        depth: int = 4,
        context: int = 0,
        axes: Axes = 2,
    ) -> None:
        enter = convolution(axes, in_channels, width)
        leave = convolution(axes, width, out_channels)
        super().__init__(enter, leave, squash=False, context=context)
        self.block = DenseBlock(width, growth=growth, depth=depth, kernel=3, axes=axes)

    def hidden(self, h: Tensor) -> Tensor:
        return h + self.block(h)


@register
class DenseAttentionNet(ImageConditioner):
    """``h = P x + C c``, ``out = L F relu(norm([A h, D h]))``: attention beside a `DenseBlock`.

    The net of DenseFlow's intra-unit coupling. D sees what is near, the Nyström attention A the
    whole image; F is pointwise, without a bias. The output starts at 0: whatever map reads it
    starts as the identity.

    Args, besides those of `ImageConditioner`:
        growth: channels that each layer of the block appends.
        depth: layers of the block.
        attention: width of the attention's queries, keys and values; None for half of `width`.
        count: landmarks of the attention.
        transposed: see `NystromAttention`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        width: int,
        growth: int = 64,
        depth: int = 7,
        attention: int | None = None,
        count: int = 4,
        transposed: bool = False,
        norm: Norm = "batch",
        context: int = 0,
        axes: Axes = 2,
    ) -> None:
        enter = convolution(axes, in_channels, width)
        leave = convolution(axes, width, out_channels)
        super().__init__(enter, leave, squash=False, context=context)
        self.block = DenseBlock(width, growth=growth, depth=depth, kernel=3, axes=axes)
        inner = max(1, width // 2) if attention is None else attention
        self.attention = NystromAttention(
            width, width=inner, count=count, transposed=transposed, axes=axes
        )
        self.norm = norm_of_channels(norm, 2 * width)
        self.fuse = convolution(axes, 2 * width, width, bias=False)

    def hidden(self, h: Tensor) -> Tensor:
        both = torch.cat([self.attention(h), self.block(h)], 1)
        return self.fuse(self.norm(both).relu())

    def idle(self) -> Iterator[Entries]:
        if is_batch_norm(self.norm):
            yield self.block.constant()
            yield bias_of(self.attention.write)


@register
class DenseEncoder(nn.Module):
    """Feature maps ``(B, out, *spatial / factor)`` of images: `DenseBlock`, stride, `DenseBlock`.

    Args:
        in_channels: channels of the images.
        width: channels before the last block.
        out: channels of the maps; None for `width`.
        growth: channels that each layer of a block appends.
        depth: layers of each block.
        factor: stride and side of the convolution between the blocks.
        axes: number of spatial axes.
    """

    def __init__(
        self,
        in_channels: int,
        out: int | None = None,
        *,
        width: int,
        growth: int,
        depth: int,
        factor: int,
        axes: int = 2,
    ) -> None:
        super().__init__()
        settings = {"growth": growth, "depth": depth, "kernel": 3}
        self.near = DenseBlock(in_channels, width, **settings, axes=axes)
        self.shrink = convolution(axes, width, width, stride=factor)
        self.far = DenseBlock(width, out, **settings, axes=axes)

    def forward(self, x: Float[Tensor, "batch in *spatial"]) -> Tensor:
        return self.far(self.shrink(self.near(x)))
