"""Randomness as an argument: noise that depends on the seed and the image, not on the batch.

Reference:
    Salmon, Moraes, Dror, Shaw: Parallel random numbers: as easy as 1, 2, 3 (2011), Philox4x32-10.
    https://doi.org/10.1145/2063384.2063405
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


def philox(counter: list[Tensor], seed: int) -> list[Tensor]:
    """Philox4x32-10: four int64 tensors of 32-bit words to four such, keyed by a 64-bit seed."""
    c0, c1, c2, c3 = counter
    key0, key1 = seed & _MASK, seed >> 32 & _MASK
    for _ in range(10):
        # int64 products wrap, but their 64 bits are the right ones: both halves can be cut out
        a, b = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1 = (b >> 32 & _MASK) ^ c1 ^ key0, b & _MASK
        c2, c3 = (a >> 32 & _MASK) ^ c3 ^ key1, a & _MASK
        key0, key1 = (key0 + _WEYL[0]) & _MASK, (key1 + _WEYL[1]) & _MASK
    return [c0, c1, c2, c3]


class Noise:
    """Draws that are a pure function of seed, image index, stream and position.

    Evaluation with it does not depend on batch size, order, rank or recomputation.

    Args:
        seed: any integer; its low 64 bits count.
        index: ``(B,)`` int64, the images' numbers in their data set.
    """

    def __init__(self, seed: int, index: Int[Tensor, " batch"]) -> None:
        self.seed = seed
        self.index = index
        self.row = torch.zeros_like(index)

    def __getitem__(self, part: slice) -> Noise:
        """The noise of a part of the batch."""
        noise = Noise(self.seed, self.index[part])
        noise.row = self.row[part]
        return noise

    def rows(self, n: int) -> Noise:
        """The noise of a batch in which each image became `n` consecutive rows."""
        noise = Noise(self.seed, self.index.repeat_interleave(n))
        row = torch.arange(n, device=self.index.device).repeat(len(self.index))
        noise.row = self.row.repeat_interleave(n) * n + row
        return noise

    def uniform(self, like: Float[Tensor, "batch *event"], stream: int) -> Tensor:
        """Values in ``[0, 1)``, multiples of 2^-24, of the shape, dtype and device of `like`."""
        if like.shape[0] != len(self.index):
            raise ValueError(f"noise for {len(self.index)} images, a batch of {like.shape[0]}")
        numbers = like[0].numel() if len(like) else 0
        blocks = torch.arange((numbers + 3) // 4, device=like.device)
        row, image = (t.to(like.device)[:, None] & _MASK for t in (self.row, self.index))
        blocks, row, image = torch.broadcast_tensors(blocks, row, image)
        words = philox([blocks, row, image, torch.full_like(blocks, stream)], self.seed)
        bits = torch.stack(words, -1).flatten(1)[:, :numbers] >> 8
        return (bits.to(torch.float32) * 2.0**-24).to(like.dtype).reshape(like.shape)

    def normal(self, like: Float[Tensor, "batch *event"], stream: int) -> Tensor:
        """Standard normal values of the shape, dtype and device of `like`."""
        middle = self.uniform(like.to(torch.float64), stream) + 2.0**-25
        return torch.special.ndtri(middle).to(like.dtype)


class Centre(Noise):
    """No noise at all: uniform draws are 1/2, normal draws 0. `Flow.encode` uses it."""

    def __init__(self) -> None:
        super().__init__(0, torch.zeros(0, dtype=torch.int64))

    def __getitem__(self, part: slice) -> Noise:
        return self

    def rows(self, n: int) -> Noise:
        return self

    def uniform(self, like: Float[Tensor, "batch *event"], stream: int) -> Tensor:
        return torch.full_like(like, 0.5)

    def normal(self, like: Float[Tensor, "batch *event"], stream: int) -> Tensor:
        return torch.zeros_like(like)
