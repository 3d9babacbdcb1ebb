"""Gated convolutions and gated attention, which alternate: the net of Flow++'s couplings.

Reference: Ho et al., Flow++ (2019), section 3.3, arXiv:1902.00275.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import dropout, elu

from mixerflow.nets.attention import SelfAttention
from mixerflow.nets.base import Conditioner
from mixerflow.nets.conv import Axes, Convolution, convolution
from mixerflow.nets.norm import Norm, norm_of
from mixerflow.nets.weight_norm import normalise_weights, start_at_zero
from mixerflow.registry import register

# hidden images are (B, *spatial, width): pointwise maps and norms then read rows, and a 3x3
# convolution of the same memory, seen as (B, width, *spatial), is in the CPU's fastest order
_Hidden = Float[Tensor, "batch *spatial width"]


def concatenated_elu(h: Tensor) -> Tensor:
    """``[elu(h), elu(-h)]`` along the last axis."""
    return elu(torch.cat([h, -h], -1))


def gated(h: Tensor) -> Tensor:
    """``a sigmoid(b)`` of the two halves a and b of the last axis."""
    a, b = h.chunk(2, -1)
    return a * b.sigmoid()


def look(by: Convolution, h: Tensor) -> Tensor:
    """Return a convolution of hidden images ``(B, *spatial, width)``, in this order of axes."""
    return by(h.movedim(-1, 1)).movedim(1, -1)


class GatedConvolution(nn.Module):
    """``h + gate(W drop(c(K c(h) + C c(x))))``, c the concatenated ELU, x a context of each pixel.

    K is a convolution, C pointwise, and W, to two numbers a channel, pointwise or as K.
    """

    def __init__(
        self, width: int, *, axes: int, context: int, dropout: float, pointwise: bool = True
    ) -> None:
        super().__init__()
        self.dropout = dropout
        self.look = convolution(axes, 2 * width, width, 3)
        self.context = nn.Linear(2 * context, width) if context else None
        wide = 2 * width
        self.mix = nn.Linear(wide, wide) if pointwise else convolution(axes, wide, wide, 3)

    def forward(self, h: _Hidden, context: Tensor | None = None) -> _Hidden:
        inner = look(self.look, concatenated_elu(h))
        if self.context is not None:
            assert context is not None
            inner = inner + self.context(concatenated_elu(context))
        inner = dropout(concatenated_elu(inner), self.dropout, self.training)
        mixed = self.mix(inner) if isinstance(self.mix, nn.Linear) else look(self.mix, inner)
        return h + gated(mixed)


class GatedAttention(nn.Module):
    """``h + gate(W drop(A (h + p)))`` with self-attention A between all pixels, and positions p."""

    def __init__(self, width: int, *, heads: int, dropout: float) -> None:
        super().__init__()
        self.attend = SelfAttention(width, heads, 2 * width, dropout=dropout)

    def forward(self, h: _Hidden, position: Float[Tensor, "pixels width"]) -> _Hidden:
        tokens = h.flatten(1, -2) + position
        return h + gated(self.attend(tokens)).reshape(h.shape)


class GatedBlock(nn.Module):
    """A gated convolution and a gated attention, each followed by a norm of each pixel."""

    def __init__(
        self,
        width: int,
        *,
        axes: int,
        heads: int,
        context: int,
        dropout: float,
        norm: Norm,
        pointwise: bool = True,
    ) -> None:
        super().__init__()
        self.look = GatedConvolution(
            width, axes=axes, context=context, dropout=dropout, pointwise=pointwise
        )
        self.attend = GatedAttention(width, heads=heads, dropout=dropout)
        self.norm1, self.norm2 = norm_of(norm, width), norm_of(norm, width)

    def forward(self, h: _Hidden, position: Tensor, context: Tensor | None = None) -> _Hidden:
        h = _by_row(self.norm1, self.look(h, context))
        return _by_row(self.norm2, self.attend(h, position))


def _by_row(norm: nn.Module, h: Tensor) -> Tensor:
    return norm(h.flatten(0, -2)).reshape(h.shape)


def _position(pixels: int, width: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(pixels, width) * 0.01)


@register
class GatedAttentionNet(Conditioner):
    """``h = K x``, `depth` blocks of a gated convolution and a gated attention, ``out = L h``.

    K and L are 3x3 convolutions. L starts at 0: whatever map reads the output starts as the
    identity. A context, ``(B, k)`` or a map ``(B, k, *sides)``, is read by each gated convolution.

    Args:
        in_channels, out_channels: channels of the images ``(B, in_channels, *sides)``, and of the
            output.
        sides: of the images: each pixel has a learned position.
        width: hidden channels.
        depth: number of blocks.
        heads: attention's heads; divides `width`.
        dropout: share of the numbers that are set to 0 in training, before each gate's map.
        norm: norm of each pixel's hidden channels after each convolution and attention.
        weight_norm: whether each map's weight is a norm for each output times a direction.
        last_elu: whether L reads the concatenated ELU of h.
        context: length k of contexts; 0 for none.

    Reference: Ho et al., Flow++ (2019), section 3.3, arXiv:1902.00275.

    Departs from the paper:
        L starts at 0; in the released code every map starts so that its first outputs have a
        small variance.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        sides: tuple[int, ...],
        width: int,
        depth: int = 10,
        heads: int = 4,
        dropout: float = 0.0,
        norm: Norm = "layer",
        weight_norm: bool = False,
        last_elu: bool = False,
        context: int = 0,
    ) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise ValueError(f"GatedAttentionNet: heads must divide the width {width}; got {heads}")
        if not 0 <= dropout < 1:
            raise ValueError(f"GatedAttentionNet: dropout must be in [0, 1); got {dropout}")
        self.in_channels, self.sides, self.last_elu = in_channels, tuple(sides), last_elu
        axes, self.context_length = len(self.sides), context
        self.enter = convolution(axes, in_channels, width, 3)
        self.position = _position(torch.Size(self.sides).numel(), width)
        settings = {"axes": axes, "heads": heads, "dropout": dropout, "norm": norm}
        blocks = (GatedBlock(width, context=context, **settings) for _ in range(depth))
        self.blocks = nn.ModuleList(blocks)
        self.leave = convolution(axes, 2 * width if last_elu else width, out_channels, 3)
        if weight_norm:
            normalise_weights(self)
        start_at_zero(self.leave)

    def forward(
        self,
        x: Float[Tensor, "batch in *sides"],
        context: Float[Tensor, "batch k *sides"] | Float[Tensor, "batch k"] | None = None,
    ) -> Float[Tensor, "batch out *sides"]:
        if tuple(x.shape[1:]) != (self.in_channels, *self.sides):
            wanted = f"{(self.in_channels, *self.sides)}"
            raise ValueError(f"{type(self).__name__}: reads {wanted}; got {tuple(x.shape[1:])}")
        context = self._context_of_pixels(context)
        h = look(self.enter, x.movedim(1, -1).contiguous())
        for block in self.blocks:
            h = block(h, self.position, context)
        h = concatenated_elu(h) if self.last_elu else h
        return look(self.leave, h).movedim(-1, 1).contiguous()

    def _context_of_pixels(self, context: Tensor | None) -> Tensor | None:
        """The context ``(B, *sides, k)``, or ``(B, 1, ..., k)`` where all pixels have the same."""
        if not self.context_length:
            return None
        context = self.require_context(context)
        if context.shape[1] != self.context_length:
            wanted = f"contexts of length {self.context_length}"
            raise ValueError(f"{type(self).__name__}: reads {wanted}; got {context.shape[1]}")
        if context.dim() == 2:
            return context[(slice(None), *(None,) * len(self.sides))]
        if tuple(context.shape[2:]) != self.sides:
            sides = f"a map of {tuple(context.shape[2:])}, and the image of {self.sides}"
            raise ValueError(f"{type(self).__name__}: the context is {sides}")
        return context.movedim(1, -1)


@register
class ColumnEncoder(nn.Module):
    """Feature maps ``(B, width, *sides, n / 2)`` of images ``(B, C, *sides, n)`` of even width n.

    Each place reads an even column and the odd one beside it, 2 C channels; then come gated
    convolutions, or blocks as those of `GatedAttentionNet` where `attention` is true.

    Args:
        shape: of the images, ``(C, *sides, n)``.
        width: channels of the maps.
        depth: number of gated convolutions, or blocks.
        attention: whether each gated convolution has an attention behind it, with norms.
        heads, dropout, norm, weight_norm: as in `GatedAttentionNet`.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        width: int,
        depth: int = 3,
        attention: bool = False,
        heads: int = 4,
        dropout: float = 0.0,
        norm: Norm = "layer",
        weight_norm: bool = False,
    ) -> None:
        super().__init__()
        channels, *sides, columns = shape
        axes: Axes = len(shape) - 1  # pyright: ignore[reportAssignmentType]
        self.enter = convolution(axes, 2 * channels, width, 3)
        settings = {"axes": axes, "context": 0, "dropout": dropout, "pointwise": False}
        self.position = None
        if attention:
            self.position = _position(torch.Size((*sides, columns // 2)).numel(), width)
            blocks = (GatedBlock(width, heads=heads, norm=norm, **settings) for _ in range(depth))
        else:
            blocks = (GatedConvolution(width, **settings) for _ in range(depth))
        self.blocks = nn.ModuleList(blocks)
        if weight_norm:
            normalise_weights(self)

    def forward(self, x: Float[Tensor, "batch channels *spatial"]) -> Tensor:
        pairs = torch.cat([x[..., 0::2], x[..., 1::2]], 1)
        h = look(self.enter, pairs.movedim(1, -1).contiguous())
        for block in self.blocks:
            h = block(h) if self.position is None else block(h, self.position)
        return h.movedim(-1, 1)
