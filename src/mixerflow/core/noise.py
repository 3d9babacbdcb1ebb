"""Randomness as an argument: noise that depends on the seed and the image, not on the batch.

Reference: Salmon et al., Parallel random numbers: as easy as 1, 2, 3 (2011), Philox4x32-10,
    doi:10.1145/2063384.2063405.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)

_KINDS = ("<u1", "<i4", "<f8")
"""Types in which a digest may read an image's values; the first that holds them is used."""


def philox(counter: list[Tensor], key0: Tensor | int, key1: Tensor | int) -> list[Tensor]:
    """Philox4x32-10: map four int64 tensors of 32-bit words to four others, under two key words."""
    c0, c1, c2, c3 = counter
    for _ in range(10):
        # int64 products wrap, but their 64 bits are right, so both halves can be extracted
        a, b = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1 = (b >> 32 & _MASK) ^ c1 ^ key0, b & _MASK
        c2, c3 = (a >> 32 & _MASK) ^ c3 ^ key1, a & _MASK
        key0, key1 = (key0 + _WEYL[0]) & _MASK, (key1 + _WEYL[1]) & _MASK
    return [c0, c1, c2, c3]


def mixed(word: int) -> int:
    """Map 32-bit words one to one, 0 to 0 and neighbours far apart (MurmurHash3's finalizer)."""
    word &= _MASK
    word = (word ^ word >> 16) * 0x85EBCA6B & _MASK
    word = (word ^ word >> 13) * 0xC2B2AE35 & _MASK
    return word ^ word >> 16


def digests(images: Shaped[Tensor, "batch *event"]) -> Int[Tensor, " batch"]:
    """Hash each image's shape and values, not its dtype, to 64 bits: ``(B,)`` int64."""
    shape = tuple(images.shape[1:])
    values = images.detach().cpu().reshape(len(images), math.prod(shape)).contiguous()
    if values.dtype in (torch.bfloat16, torch.float16):
        values = values.float()
    rows = values.numpy()
    kinds = np.zeros(len(rows), np.int64)
    if rows.dtype != np.uint8:
        low, high = rows.min(1, initial=0), rows.max(1, initial=0)
        integer = (rows == np.floor(rows)).all(1) if rows.dtype.kind == "f" else True
        is_uint8 = integer & (low >= 0) & (high < 2**8)
        is_int32 = integer & (low >= -(2**31)) & (high < 2**31)
        kinds = 2 - is_int32.astype(np.int64) - is_uint8
    keys = []
    for row, kind in zip(rows, kinds.tolist(), strict=True):
        written = row.astype(_KINDS[kind], copy=False)
        digest = hashlib.blake2b(f"{_KINDS[kind]} {shape}".encode(), digest_size=8)
        digest.update(written if kind < 2 else written + 0.0)  # -0.0 becomes 0.0
        keys.append(int.from_bytes(digest.digest(), "little", signed=True))
    return torch.tensor(keys, dtype=torch.int64, device=images.device)


class Noise:
    """Draws that are a pure function of seed, key, draw, stream and position.

    A score with such noise depends on no batch size, order, process or recomputation. With the keys
    of `of` it depends on no other image either: equal images have equal scores. The keys are
    ``(B,)`` int64, one an image. 64 bits of the seed count, and 32 bits of the draw's number.

    A draw is all noise that an image's density is a function of: that of the dequantiser, say. An
    estimate of a log-det has a probe besides, which another `probe` replaces while all else stays:
    16 bits of its number count. Transforms that estimate draw from ``noise.probing(stream)``.
    """

    def __init__(
        self, seed: int, keys: Int[Tensor, " batch"], *, draw: int = 0, probe: int = 0
    ) -> None:
        self.seed, self.keys, self.draw, self.probe = seed, keys, draw, probe
        self.row = torch.zeros_like(keys)

    def probing(self, stream: int) -> int:
        """Return the stream of a probe, for a transform with this stream that estimates."""
        return stream + ((self.probe & 0xFFFF) << 16)

    @classmethod
    def of(cls, seed: int, images: Shaped[Tensor, "batch *event"], *, draw: int = 0) -> Noise:
        """Return the noise of images ``(B, *event)``, whose keys are digests of their values."""
        return Noise(seed, digests(images), draw=draw)

    def __getitem__(self, part: slice) -> Noise:
        return self._with(self.keys[part], self.row[part])

    def rows(self, n: int) -> Noise:
        """Return the noise of a batch in which each image became `n` consecutive rows."""
        row = torch.arange(n, device=self.keys.device).repeat(len(self.keys))
        return self._with(self.keys.repeat_interleave(n), self.row.repeat_interleave(n) * n + row)

    def _with(self, keys: Tensor, row: Tensor) -> Noise:
        noise = Noise(self.seed, keys, draw=self.draw, probe=self.probe)
        noise.row = row
        return noise

    def uniform(self, like: Float[Tensor, "batch *event"], stream: int) -> Tensor:
        """Draw multiples of 2^-24 in ``[0, 1)`` with the shape, dtype and device of `like`."""
        if like.shape[0] != len(self.keys):
            raise ValueError(f"noise for {len(self.keys)} images, a batch of {like.shape[0]}")
        numbers = like[0].numel() if len(like) else 0
        blocks = torch.arange((numbers + 3) // 4, device=like.device)
        row, keys = (t.to(like.device)[:, None] for t in (self.row, self.keys))
        # for a 32-bit key and draw 0, the key of Philox is the seed
        key0 = self.seed & _MASK ^ keys >> 32 & _MASK
        key1 = self.seed >> 32 & _MASK ^ mixed(self.draw)
        blocks, row, keys = torch.broadcast_tensors(blocks, row & _MASK, keys & _MASK)
        words = philox([blocks, row, keys, torch.full_like(blocks, stream)], key0, key1)
        bits = torch.stack(words, -1).flatten(1)[:, :numbers] >> 8
        return (bits.to(torch.float32) * 2.0**-24).to(like.dtype).reshape(like.shape)

    def normal(self, like: Float[Tensor, "batch *event"], stream: int) -> Tensor:
        """Draw standard normal values with the shape, dtype and device of `like`."""
        middle = self.uniform(like.to(torch.float64), stream) + 2.0**-25
        return torch.special.ndtri(middle).to(like.dtype)


class Centre(Noise):
    """No noise: uniform draws are 1/2, normal draws 0. `Flow.encode` uses it."""

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
