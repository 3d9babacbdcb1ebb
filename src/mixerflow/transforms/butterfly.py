"""Products of sparse layers that pair entries at halving distances: n log n numbers."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mixerflow.registry import register
from mixerflow.transforms.linear import _LinearMap


@register
class Butterfly(_LinearMap):
    """``z = B_levels ... B_1 x + b``, each B made of 2x2 blocks; starts as the identity.

    On vectors of length P, a power of two, level l = 0, 1, ... cuts the vector into 2^l segments
    and mixes entry i of a segment's first half with entry i of its second, ``P / 2^(l+1)`` further
    on, by one 2x2 block for each pair. After log2 P levels each output depends on each input, with
    2 P log2 P numbers. A block is a rotation times an upper triangle,

        [[cos t, -sin t], [sin t, cos t]] [[exp(a), c], [0, exp(d)]],

    which is every 2x2 matrix of positive determinant once (up to t's period) and never singular;
    so ``log|det dz/dx|`` is the sum of all a and d.

    Any other n gets two such maps, one after the other, on its first and on its last P entries,
    P being the largest power of two below n: they overlap, as P > n / 2. With `whole` P is n
    instead, as in the paper, and n must be a multiple of 2^levels: the last level's segments of an
    odd length are not mixed further.

    Args:
        n: length of the vectors, at least 2.
        levels: their number, 1 to log2 P, or with `whole` to the number of factors 2 in n; None for
            all. Fewer leave out the short distances.
        whole: apply each level to the whole vector, also where n is no power of two.
        rotated: start with random angles, so as a random rotation of the vectors.
        grouped: levels that are multiplied out into one dense block of 2^grouped, see below. 3 to 6
            take about as long; 1 is faster for vectors that come fewer than about 64 at a time.
        generator: draws the angles.

    Reference: Meng et al., ButterflyFlow: building invertible layers with butterfly matrices
        (2022), section 3, arXiv:2209.13774.

    Departs from the paper:
        - Blocks are free 2x2 matrices there, which may become singular, and lengths must be
          multiples of 2^levels.
        - Levels are evaluated four at a time, as products with dense blocks of 16 x 16: the same
          map, more multiplications, and less time than many passes over memory.
    """

    def __init__(
        self,
        n: int,
        levels: int | None = None,
        *,
        bias: bool = True,
        whole: bool = False,
        rotated: bool = False,
        grouped: int = 4,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(n)
        if n < 2:
            raise ValueError(f"Butterfly: vectors must have at least 2 entries to mix; got {n}")
        if whole and n % 2:
            raise ValueError(f"Butterfly: no level fits the whole of an odd length; got {n}")
        most = (n & -n if whole else n).bit_length() - 1
        self.size, self.levels = n if whole else 2**most, most if levels is None else levels
        self.grouped = grouped
        if not 1 <= self.levels <= most:
            raise ValueError(f"Butterfly: levels must be 1 to {most} for length {n}; got {levels}")
        self.starts = (0,) if n == self.size else (0, n - self.size)
        # for each window, level and block: angle t, log-diagonal a and d, corner c
        shape = (len(self.starts), self.levels, self.size // 2)
        turns = torch.rand(shape, generator=generator) if rotated else torch.zeros(shape)
        self.angle = nn.Parameter(2 * math.pi * turns)
        self.log_diagonal = nn.Parameter(torch.zeros(2, *shape))
        self.corner = nn.Parameter(torch.zeros(shape))
        self.bias = nn.Parameter(torch.zeros(n)) if bias else None

    def blocks(self, *, inverse: bool = False) -> Float[Tensor, "window level out in pair"]:
        """The 2x2 blocks, or their inverses."""
        cos, sin, corner = self.angle.cos(), self.angle.sin(), self.corner
        first, second = (-self.log_diagonal if inverse else self.log_diagonal).exp()
        if inverse:  # the triangle's inverse, then the rotation back
            corner = -corner * first * second
            rows = (first * cos - corner * sin, first * sin + corner * cos)
            rows += (-second * sin, second * cos)
        else:
            rows = (first * cos, corner * cos - second * sin)
            rows += (first * sin, corner * sin + second * cos)
        return torch.stack(rows, 2).unflatten(2, (2, 2))

    def _merge(self, blocks: Tensor, group: range) -> Tensor:
        """The product of some neighbouring levels of one window.

        Entry (j, s, i, r) is the weight of entry j of segment s, at remainder r, in entry i there.
        """
        order = min(group)
        wide = 2 ** len(group)
        segments, rest = 2**order, self.size // 2**order // wide
        x = torch.diag_embed(torch.ones_like(blocks[0, 0, 0, :1].expand(wide)))
        x = x[:, None, :, None].expand(wide, segments, wide, rest)
        x = x.reshape(wide, self.size)
        for level in group:
            x = _mix(x, blocks[level], level)
        return x.reshape(wide, segments, wide, rest)

    def _apply_levels(self, x: Tensor, *, inverse: bool) -> Tensor:
        """All levels of all windows, ``(B, n)`` to the same, or their inverse."""
        levels = range(self.levels)
        groups = [levels[start : start + self.grouped] for start in levels[:: self.grouped]]
        windows = list(zip(self.starts, self.blocks(inverse=inverse), strict=True))
        if inverse:
            groups = [group[::-1] for group in groups[::-1]]
            windows.reverse()
        for start, blocks in windows:
            end = start + self.size
            mixed = x[:, start:end]
            for group in groups:
                if self.grouped == 1:
                    mixed = _mix(mixed, blocks[group[0]], group[0])
                    continue
                dense = self._merge(blocks, group)
                parts = mixed.unflatten(1, dense.shape[1:])
                mixed = torch.einsum("nsjr,jsir->nsir", parts, dense).flatten(1)
            x = mixed if self.size == self.n else torch.cat([x[:, :start], mixed, x[:, end:]], 1)
        return x

    def _multiply(self, x: Tensor) -> Tensor:
        z = self._apply_levels(x, inverse=False)
        return z if self.bias is None else z + self.bias

    def _solve(self, y: Tensor) -> Tensor:
        return self._apply_levels(y, inverse=True)

    def _log_det(self) -> Tensor:
        return self.log_diagonal.sum()

    def extra_repr(self) -> str:
        return f"{self.n}, levels={self.levels}, bias={self.bias is not None}"


def _mix(
    x: Float[Tensor, "rows size"], block: Float[Tensor, "out in pair"], level: int
) -> Float[Tensor, "rows size"]:
    """One level applied to rows."""
    (a, b), (c, d) = block.unflatten(-1, (2**level, -1))
    first, second = x.unflatten(1, (2**level, 2, -1)).unbind(2)
    return torch.stack([a * first + b * second, c * first + d * second], 2).flatten(1)
