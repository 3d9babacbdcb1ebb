"""Invertible attention: one half of each token's features decides how the other half is mixed.

Reference: Sukthanker et al., Generative flows with invertible attentions (2022), map-based and
    transformer-based attention, arXiv:2106.03959.

Departs from the paper:
    - the features are cut in halves, where the paper takes a checkerboard of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mixerflow.core import Context, Mapped, Noise, Shape, Transform, total
from mixerflow.moments import Entries
from mixerflow.precision import widen, without_autocast
from mixerflow.registry import register
from mixerflow.transforms.coupling import Halves

_READ, _ATTENDED = 1e4, 1e12
"""Largest numbers that a map of tokens reads, and of which products are summed: sums and products
of much larger ones overflow, and the difference of two infinities is NaN."""


def _held(x: Tensor, most: float) -> Tensor:
    return x.clamp(-most, most)


class _TokenHalves(Transform):
    """Events ``(tokens, n)`` of which one half of the features decides a map of the other half."""

    def __init__(self, n: int, *, flip: bool) -> None:
        super().__init__()
        if n < 2:
            name = type(self).__name__
            raise ValueError(f"{name}: needs 2 features or more to cut in two; got {n}")
        self.n, self.split = n, Halves(-1, flip)
        self.given, self.changed = self.split.sizes(n)

    def _map(self, given: Tensor, changed: Tensor, *, inverse: bool) -> Mapped:
        """The changed half's image, or its preimage, and that direction's log-det."""
        raise NotImplementedError

    def _transform(self, event: Tensor, *, inverse: bool) -> Mapped:
        """One direction; the map is computed in float32 or wider."""
        self.out_shape(tuple(event.shape[1:]))
        given, changed = self.split.parts(event)
        changed, log_det = self._map(given, widen(changed), inverse=inverse)
        return self.split.join(given, changed.to(given.dtype)), log_det

    def forward(self, x: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        return self._transform(x, inverse=False)

    def inverse(self, z: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        return self._transform(z, inverse=True)

    def out_shape(self, shape: Shape) -> Shape:
        if len(shape) != 2 or shape[-1] != self.n:
            name = type(self).__name__
            raise ValueError(f"{name}: takes events (tokens, {self.n}); got shape {tuple(shape)}")
        return shape

    def extra_repr(self) -> str:
        return f"{self.n}, flip={self.split.flip}"


@register
class MapAttention(_TokenHalves):
    """``z_a = x_a, z_b = m(x_a) x_b``, one weight a token, ``m = max(f, 2 sigmoid(w x_a + c))``.

    ``log|det dz/dx| = sum_tokens (n_b log m)``. The map m lets a token through or fades it out, but
    not below the floor f = 0.1: without it, a latent that training never met could be divided by 0
    in the inverse. x_a is read held to ±10^4. Starts as the identity: w and c are 0. `flip` reads
    the second half and changes the first.

    Departs from the paper:
        - its pointwise convolution and the mean over the channels are one linear map here, which
          can do the same;
        - the weight is twice the sigmoid, which is 1 at 0, and it has a floor;
        - scaling the half that passes is left to `ActNorm`.
    """

    floor = 0.1

    def __init__(self, n: int, *, flip: bool = False) -> None:
        super().__init__(n, flip=flip)
        self.read = nn.Linear(self.given, 1)
        nn.init.zeros_(self.read.weight)
        nn.init.zeros_(self.read.bias)

    def _map(self, given: Tensor, changed: Tensor, *, inverse: bool) -> Mapped:
        raw = self.read(_held(given, _READ)).to(changed.dtype)
        log_map = (nn.functional.logsigmoid(raw) + math.log(2)).clamp(min=math.log(self.floor))
        log_map = log_map.expand_as(changed)
        log_det = total(log_map)
        if inverse:
            return changed * (-log_map).exp(), -log_det
        return changed * log_map.exp(), log_det


@register
class TokenAttention(_TokenHalves):
    """``z_a = x_a, z_b = M(x_a) x_b``, where M mixes the tokens: ``M = I + g (P - I)``.

    ``P = softmax(Q K^T / sqrt(d))`` with queries and keys from x_a, one P for each head and so for
    ``n_b / heads`` of the changed features; g is a learned gate of each head, ``|g| < 0.45``.
    ``log|det dz/dx| = sum_heads (n_b / heads) log|det M|``.

    P's rows are positive and add up to 1. So M is strictly diagonally dominant: in the largest row
    sum, ``|M| <= 1.9`` and ``|M^-1| <= 1 / (1 - 2 max(g, 0)) <= 10`` whatever the tokens hold. A
    positive gate blurs, a negative one sharpens. Starts as the identity: g is 0. One token alone is
    left as it is.

    Costs a factorisation of each head's matrix, ``2/3 tokens^3`` operations, in either direction,
    and as many again in the inverse.

    Args:
        n: features of a token.
        heads: a divisor of the number of features that are changed.
        width: length of each head's queries and keys.
        flip: read the second half of the features and change the first.

    Departs from the paper:
        - its matrix is P + I, which is singular where P has the eigenvalue -1 (two tokens that read
          each other only) and is the identity at no setting; here the gate's bound excludes a
          singular matrix, and the gate 0 gives the identity;
        - there are heads.
    """

    bound = 0.45

    def __init__(self, n: int, *, heads: int = 1, width: int = 16, flip: bool = False) -> None:
        super().__init__(n, flip=flip)
        if heads < 1 or self.changed % heads:
            what = f"heads must divide the {self.changed} features that are changed; got {heads}"
            raise ValueError(f"TokenAttention: {what}")
        self.heads = heads
        self.read = nn.Linear(self.given, 2 * heads * width)
        self.gate = nn.Parameter(torch.zeros(heads))

    def _matrix(self, given: Tensor, dtype: torch.dtype) -> Float[Tensor, "batch heads t t"]:
        """M for each event and head."""
        read = _held(self.read(_held(given, _READ)).to(dtype), _ATTENDED)
        read = read.unflatten(-1, (2, self.heads, -1))
        q, k = read.movedim(1, -2).unbind(1)
        with without_autocast(given):
            pattern = (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1)
            unit = torch.eye(q.shape[-2], dtype=dtype, device=q.device)
            gate = self.bound * torch.tanh(self.gate.to(dtype) / self.bound)
            return unit + gate[:, None, None] * (pattern - unit)

    def _map(self, given: Tensor, changed: Tensor, *, inverse: bool) -> Mapped:
        matrix = self._matrix(given, changed.dtype)
        with without_autocast(given):
            heads = changed.unflatten(-1, (self.heads, -1)).movedim(-2, 1)
            heads = torch.linalg.solve(matrix, heads) if inverse else matrix @ heads
            # det M > 0: real eigenvalues are positive, complex ones come in conjugate pairs
            log_det = torch.linalg.slogdet(matrix)[1].sum(1) * (self.changed // self.heads)
            return heads.movedim(1, -2).flatten(-2), -log_det if inverse else log_det

    def idle(self) -> Iterator[Entries]:
        """The keys' bias: it adds the same to all scores of a query."""
        yield self.read.bias, slice(self.read.out_features // 2, None)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, heads={self.heads}"
