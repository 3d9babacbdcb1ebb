"""A densely connected convolutional conditioner with a gated end."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mixerflow.nets.conv import Axes, ImageConditioner, convolution, norm_of_channels
from mixerflow.nets.norm import Norm
from mixerflow.registry import register


class DenseBlock(nn.Module):
    """``h_i = [h, relu(K_i relu(P_i h))]`` with P pointwise; then ``a + b sigmoid(g)``.

    Each of `depth` layers appends `growth` channels to all before it; a pointwise convolution of
    all of them gives a, b and g, `width` channels each.
    """

    def __init__(self, width: int, *, growth: int, depth: int, kernel: int, axes: int) -> None:
        super().__init__()
        widths = [width + growth * i for i in range(depth)]
        self.mix = nn.ModuleList(convolution(axes, n, n) for n in widths)
        self.grow = nn.ModuleList(convolution(axes, n, growth, kernel) for n in widths)
        self.gate = convolution(axes, width + growth * depth, 3 * width)

    def forward(self, h: Tensor) -> Tensor:
        """``(B, width, *spatial)`` to the same."""
        for mix, grow in zip(self.mix, self.grow, strict=True):
            h = torch.cat([h, grow(mix(h).relu()).relu()], 1)
        a, b, g = self.gate(h).chunk(3, 1)
        return a + b * g.sigmoid()


@register
class DenseConvNet(ImageConditioner):
    """``h = P s(x) + C c``, a `DenseBlock`, ``out = L relu(norm(h))``.

    The last convolution starts at 0: whatever map reads the output starts as the identity.

    Args:
        in_channels: channels of the conditioning images ``(B, in_channels, *spatial)``.
        out_channels: channels to give out.
        width: channels before and after the block.
        growth: channels that each layer of the block appends.
        depth: layers of the block.
        norm: "batch", "layer" (over each pixel's channels) or "none", behind the block. Batch norm
            couples a training batch.
        squash: read ``s(x) = sign(x) log(1 + |x|)``, see `mixerflow.nets.squash`.
        context: length K of contexts ``(B, K)``, added to every pixel, or ``(B, K, *spatial)``.
        kernel: side of the convolutions that are not pointwise; odd.
        axes: spatial axes.

    References:
        Huang, Liu, van der Maaten, Weinberger: Densely connected convolutional networks (2017),
        section 3. https://arxiv.org/abs/1608.06993
        Nielsen, Jaini, Hoogeboom, Winther, Welling: SurVAE flows (2020), appendix (image
        experiments). https://arxiv.org/abs/2007.02731
        Grcić, Grubišić, Šegvić: Densely connected normalizing flows (2021), figure 2 (dense part
        of the coupling's net). https://arxiv.org/abs/2106.04627
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
        super().__init__(
            convolution(axes, in_channels, width),
            convolution(axes, width, out_channels),
            in_channels=in_channels,
            width=width,
            axes=axes,
            squash=squash,
            context=context,
        )
        self.block = DenseBlock(width, growth=growth, depth=depth, kernel=kernel, axes=axes)
        self.norm = norm_of_channels(norm, width)

    def hidden(self, h: Tensor) -> Tensor:
        return self.norm(self.block(h)).relu()
