"""Nyström attention: self-attention over many tokens, through a few landmarks.

References:
    Xiong et al., Nyströmformer: a Nyström-based algorithm for approximating self-attention (2021),
    eq. 13 and 14, arXiv:2102.03902.
    Grcić et al., Densely connected normalizing flows (2021), section 3.2, arXiv:2106.04627.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mixerflow.moments import Entries
from mixerflow.nets.conv import Axes, bias_of, convolution
from mixerflow.precision import widen, without_autocast
from mixerflow.registry import register

Tokens = Float[Tensor, "batch tokens width"]


def landmarks(x: Tokens, count: int) -> Float[Tensor, "batch count width"]:
    """Return the means of `count` runs of neighbouring tokens, which differ by one in length.

    As many landmarks as tokens are the tokens themselves; more are not made.
    """
    count = min(count, x.shape[1])
    if x.shape[1] % count == 0:
        return x.unflatten(1, (count, -1)).mean(2)
    return torch.stack([part.mean(1) for part in x.tensor_split(count, 1)], 1)


def iterated_inverse(k: Float[Tensor, "batch n n"], steps: int = 6) -> Tensor:
    """Approximate the pseudo-inverse of each matrix, by an iteration of third order.

    ``V <- V (13 I - K V (15 I - K V (7 I - K V))) / 4`` from ``K^T / (|K|_1 |K|_inf)``, each
    matrix with norms of its own. Six steps, as in the papers, have not converged yet.
    """
    size = k.abs()
    v = k.mT / (size.sum(-2).amax(-1) * size.sum(-1).amax(-1))[:, None, None]
    for _ in range(steps):
        kv = k.bmm(v)
        inner = torch.baddbmm(kv, kv, kv, beta=7, alpha=-1)
        inner = torch.baddbmm(kv, kv, inner, beta=15, alpha=-1)
        v = torch.baddbmm(v, v, inner, beta=13 / 4, alpha=-1 / 4)
    return v


def nystrom_attention(
    q: Tokens,
    k: Tokens,
    v: Tokens,
    *,
    count: int,
    inverse: Callable[[Tensor], Tensor] = iterated_inverse,
) -> Tokens:
    """``softmax(q m^T) softmax(l m^T)^+ softmax(l k^T) v`` with landmarks l of q and m of k.

    With as many landmarks as tokens and an exact pseudo-inverse it is ``softmax(q k^T) v``. The
    softmax is over keys; `q` comes divided by the root of its width.
    """
    q_marks, k_marks = landmarks(q, count), landmarks(k, count)
    read = q_marks.bmm(k.mT).softmax(-1).bmm(v)
    middle = inverse(q_marks.bmm(k_marks.mT).softmax(-1))
    # tokens come last here: a softmax along a last axis of four numbers is slow
    written = k_marks.bmm(q.mT).softmax(1)
    return middle.bmm(read).mT.bmm(written).mT


def transposed_attention(q: Tokens, k: Tokens, v: Tokens, *, count: int) -> Tokens:
    """`nystrom_attention` as DenseFlow's released model computes it, by a description of its code.

    The softmax is over rows, not keys, and landmarks, not queries, are divided by a root: that of
    the number of tokens.
    """
    root = q.shape[1] ** 0.5
    q_marks, k_marks = landmarks(q, count) / root, landmarks(k, count) / root
    read = (q_marks @ k.mT).softmax(-2) @ v
    written = (q @ k_marks.mT).softmax(-2)
    return written @ (iterated_inverse((q_marks @ k_marks.mT).softmax(-2)) @ read)


@register
class NystromAttention(nn.Module):
    """``h = W (attention(q, k, v) + v)`` with ``(q, k, v) = R x`` at each pixel; pixels are tokens.

    Maps ``(B, channels, *spatial)`` to the same shape. Each image attends to its own pixels alone,
    in float32 or wider under autocast too.

    Args:
        channels: of the image.
        width: length of queries, keys and values; one head.
        count: number of landmarks, or fewer if an image has fewer pixels.
        transposed: compute as DenseFlow's released model does, by a description of its code: a
            token is ``3 width`` numbers that follow each other in ``(channels, *spatial)``, first
            along the pixels, and attention is `transposed_attention`.
        axes: number of spatial axes.
    """

    def __init__(
        self,
        channels: int,
        *,
        width: int,
        count: int = 4,
        transposed: bool = False,
        axes: Axes = 2,
    ) -> None:
        super().__init__()
        self.width, self.count, self.transposed = width, count, transposed
        self.read = convolution(axes, channels, 3 * width)
        self.write = convolution(axes, width, channels)

    def forward(self, x: Float[Tensor, "batch channels *spatial"]) -> Tensor:
        made, pixels = self.read(x), x.shape[2:]
        made = widen(made)
        with without_autocast(x):
            if self.transposed:
                tokens = made.reshape(len(x), pixels.numel(), 3 * self.width)
                q, k, v = tokens.chunk(3, -1)
                out = transposed_attention(q, k, v, count=self.count) + v
                out = out.reshape(len(x), self.width, *pixels)
            else:
                q, k, v = made.flatten(2).mT.chunk(3, -1)
                out = nystrom_attention(q * self.width**-0.5, k, v, count=self.count) + v
                out = out.mT.unflatten(2, pixels)
        return self.write(out)

    def idle(self) -> Iterator[Entries]:
        """The keys' bias: it adds the same to all scores of a query."""
        if not self.transposed:
            yield bias_of(self.read, slice(self.width, 2 * self.width))
