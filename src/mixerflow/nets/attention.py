"""Self-attention over the tokens of a patch matrix, as a conditioner."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mixerflow.nets.norm import Norm, norm_of, squash
from mixerflow.registry import register


class Attend(nn.Module):
    """``softmax(Q K^T / sqrt(d)) V`` of each head, over the tokens of one event at a time.

    Args:
        width: features of a token.
        heads: divides `width`.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.read = nn.Linear(width, 3 * width)
        self.write = nn.Linear(width, width)

    def forward(self, h: Float[Tensor, "batch tokens width"]) -> Tensor:
        """``(B, tokens, width)`` to the same."""
        split = self.read(h).unflatten(-1, (3, self.heads, -1)).movedim(1, -2)
        q, k, v = split.unbind(1)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.write(mixed.movedim(-2, 1).flatten(2))


class TokenBlock(nn.Module):
    """``h = h + attend(norm(h));  h = h + W2 gelu(W1 norm(h))``, W1 widening by four."""

    def __init__(self, width: int, heads: int, norm: Norm) -> None:
        super().__init__()
        self.norm1, self.norm2 = norm_of(norm, width), norm_of(norm, width)
        self.attend = Attend(width, heads)
        self.widen, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, h: Float[Tensor, "batch tokens width"]) -> Tensor:
        """``(B, tokens, width)`` to the same."""
        h = h + self.attend(self._each(self.norm1, h))
        return h + self.narrow(nn.functional.gelu(self.widen(self._each(self.norm2, h))))

    @staticmethod
    def _each(norm: nn.Module, h: Tensor) -> Tensor:
        return norm(h.flatten(0, 1)).reshape(h.shape)


@register
class AttentionNet(nn.Module):
    """``h = A s(x) + p + C c``, pre-norm transformer blocks, ``out = B norm(h)``, token by token.

    In ``Coupling(-1, AttentionNet(...), elementwise)`` on a patch matrix, half of each patch's
    channels is transformed given the other half of all patches. B starts at 0: the map starts as
    the identity.

    Args:
        in_features: length of a conditioning token, events being ``(tokens, in_features)``.
        out_features: numbers to give out for each token.
        width: features of a hidden token.
        heads: of the attention; divides `width`.
        depth: blocks.
        norm: "layer", "batch" or "none", before attention, MLP and output. Batch norm couples a
            training batch.
        squash: read ``s(x) = sign(x) log(1 + |x|)``, see `mixerflow.nets.squash`.
        context: length K of the context vectors ``(B, K)``, 0 for none.
        tokens: how many there are, for a learned vector p of each; 0 takes any number and does not
            tell them apart but by what they hold.

    References:
        Vaswani, Shazeer, Parmar, Uszkoreit, Jones, Gomez, Kaiser, Polosukhin: Attention is all you
        need (2017), eq. 1. https://arxiv.org/abs/1706.03762
        Ho, Chen, Srinivas, Duan, Abbeel: Flow++ (2019), section 3.3.
        https://arxiv.org/abs/1902.00275
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
        self.context = nn.Linear(context, width, bias=False) if context else None
        # small, as tokens should first be told apart by what they hold
        self.position = nn.Parameter(torch.randn(tokens, width) * 0.02) if tokens else None
        self.blocks = nn.Sequential(*(TokenBlock(width, heads, norm) for _ in range(depth)))
        self.norm = norm_of(norm, width)
        self.leave = nn.Linear(width, out_features)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(
        self, x: Float[Tensor, "batch tokens in"], context: Float[Tensor, "batch k"] | None = None
    ) -> Float[Tensor, "batch tokens out"]:
        """``(B, tokens, in_features)`` and ``(B, K)`` to ``(B, tokens, out_features)``."""
        given, held = self.enter.in_features, self.position
        tokens = "any" if held is None else len(held)
        if x.dim() != 3 or x.shape[-1] != given or tokens not in ("any", x.shape[1]):
            wanted = f"({tokens}, {given})"
            raise ValueError(f"AttentionNet: reads events {wanted}; got {tuple(x.shape[1:])}")
        h = self.enter(squash(x) if self.squash else x)
        if held is not None:
            h = h + held
        if self.context is not None:
            if context is None:
                raise ValueError("AttentionNet: built for a context, and got none")
            h = h + self.context(context)[:, None]
        h = self.blocks(h)
        return self.leave(self.norm(h.flatten(0, 1)).reshape(h.shape))
