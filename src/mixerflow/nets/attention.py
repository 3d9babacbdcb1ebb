"""Self-attention over the tokens of a patch matrix, as a conditioner."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mixerflow.moments import ALL, Entries
from mixerflow.nets.base import Conditioner, context_map, squash, zeroed
from mixerflow.nets.norm import Norm, SyncedBatchNorm, norm_of
from mixerflow.registry import register


class SelfAttention(nn.Module):
    """``softmax(Q K^T / sqrt(d)) V`` of each head, over the tokens of one event at a time.

    A linear map of the result has `out` numbers, by default `width`; in training a share `dropout`
    of what it reads is set to 0.
    """

    def __init__(
        self, width: int, heads: int, out: int | None = None, *, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.read = nn.Linear(width, 3 * width)
        self.write = nn.Linear(width, width if out is None else out)

    def forward(self, h: Float[Tensor, "batch tokens width"]) -> Tensor:
        split = self.read(h).unflatten(-1, (3, self.heads, -1)).movedim(1, -2)
        q, k, v = split.unbind(1)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        mixed = mixed.movedim(-2, 1).flatten(2)
        return self.write(nn.functional.dropout(mixed, self.dropout, self.training))

    def idle(self) -> Iterator[Entries]:
        """The keys' bias: it adds the same to all scores of a query."""
        width = self.write.in_features
        yield self.read.bias, slice(width, 2 * width)


class TokenBlock(nn.Module):
    """``h = h + attend(norm(h));  h = h + W2 gelu(W1 norm(h))``, W1 from width to 4 width."""

    def __init__(self, width: int, heads: int, norm: Norm) -> None:
        super().__init__()
        self.norm1, self.norm2 = norm_of(norm, width), norm_of(norm, width)
        self.attend = SelfAttention(width, heads)
        self.widen, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, h: Float[Tensor, "batch tokens width"]) -> Tensor:
        h = h + self.attend(_normalise(self.norm1, h))
        return h + self.narrow(nn.functional.gelu(self.widen(_normalise(self.norm2, h))))


@register
class AttentionNet(Conditioner):
    """``h = A s(x) + p + C c``, pre-norm transformer blocks, ``out = B norm(h)``, token by token.

    ``Coupling(-1, AttentionNet(...), elementwise)`` on a patch matrix transforms half of each
    patch's channels given the other half of all patches. B starts at 0: the coupling starts as the
    identity.

    Args, besides those of `Conditioner` (events are ``(tokens, in_features)``):
        heads: number of attention heads; divides `width`.
        depth: number of blocks, with `norm` before attention and MLP.
        tokens: number of tokens, each with a learned positional encoding p; 0 for any number of
            tokens, without positions.

    References:
        Vaswani et al., Attention is all you need (2017), eq. 1, arXiv:1706.03762.
        Ho et al., Flow++ (2019), section 3.3, arXiv:1902.00275.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        width: int,
        heads: int = 4,
        depth: int = 1,
        norm: Norm = "layer",
        squash: bool = True,
        context: int = 0,
        tokens: int = 0,
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"AttentionNet: heads must divide the width {width}; got {heads}")
        self.squash = squash
        self.enter = nn.Linear(in_features, width)
        self.context = context_map(context, width)
        # small, so that the tokens' contents differ more than their positions at first
        self.position = nn.Parameter(torch.randn(tokens, width) * 0.02) if tokens else None
        self.blocks = nn.Sequential(*(TokenBlock(width, heads, norm) for _ in range(depth)))
        self.norm = norm_of(norm, width)
        self.leave = zeroed(nn.Linear(width, out_features))

    def forward(
        self, x: Float[Tensor, "batch tokens in"], context: Float[Tensor, "batch k"] | None = None
    ) -> Float[Tensor, "batch tokens out"]:
        length, position = self.enter.in_features, self.position
        tokens = "any" if position is None else len(position)
        if x.dim() != 3 or x.shape[-1] != length or tokens not in ("any", x.shape[1]):
            wanted = f"({tokens}, {length})"
            raise ValueError(f"AttentionNet: reads events {wanted}; got {tuple(x.shape[1:])}")
        h = self.enter(squash(x) if self.squash else x)
        h = h if position is None else h + position
        if self.context is not None:
            h = h + self.context(self.require_context(context))[:, None]
        return self.leave(_normalise(self.norm, self.blocks(h)))

    def idle(self) -> Iterator[Entries]:
        """All that adds a constant to every h: every way from there has a norm."""
        if not isinstance(self.norm, SyncedBatchNorm):
            return
        yield self.enter.bias, ALL
        for block in cast(Iterable[TokenBlock], self.blocks):
            attend, narrow = block.attend, block.narrow
            yield attend.read.bias, slice(2 * attend.write.in_features, None)  # a mean of values
            yield attend.write.bias, ALL
            yield narrow.bias, ALL


def _normalise(norm: nn.Module, h: Tensor) -> Tensor:
    return norm(h.flatten(0, 1)).reshape(h.shape)
