"""How an archive is made: k, the bits below a pixel, and the images of a block.

A small k costs bits where a flow contracts, for rounding is coarser there. A large one makes the
first images of a block, which pay for its noise, more: both are measured on a sample.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mixerflow.compression.engine import Block
from mixerflow.compression.layout import HEAD

LEAST, MOST, REFERENCE = 4, 20, 24
"""The range of k that is chosen from, and the k whose cost is compared."""
USUAL = 12
"""The k of a set that is too small to be sampled."""
_TOLERANCE = 0.001
_SAMPLE, _SHARE, _FEW = 200, 50, 40
_OVERHEAD, _OF_FEW, _FEW_BLOCKS = 0.001, 0.003, 4
_SMALLEST = 64  # images of a block
Encode = Callable[[int, bool], Sequence[Block]]
"""Codes the sample with a k, in blocks, of which threads may take one each; or with each block's
images in the opposite order."""


@dataclass(frozen=True)
class Measured:
    """What a sample costs with a k.

    Attributes:
        k: bits below a pixel.
        mean: bits of an image that the flow codes.
        excess: bits that a block takes beside: its head, and what images at its end cost more than
            if the flow coded them.
    """

    k: int
    mean: float
    excess: float

    def block(self, images: int, most: int) -> int:
        """Return the images of a block, for blocks of equal size whose ends cost 0.1 % at most.

        Up to four blocks, which as many threads take, may cost 0.3 %.

        Args:
            images: all images.
            most: images that a block may have.
        """

        def blocks(overhead: float) -> int:
            least = max(math.ceil(self.excess / (overhead * self.mean)), _SMALLEST)
            return images // least

        count = max(blocks(_OVERHEAD), min(blocks(_OF_FEW), _FEW_BLOCKS), 1)
        return math.ceil(images / max(count, math.ceil(images / most)))


def sample_places(images: int) -> np.ndarray:
    """Return places ``(n,)`` of a sample, spread over the images; none of a small set."""
    count = min(_SAMPLE, images // _SHARE)
    if count < _FEW:
        return np.empty(0, np.int64)
    return np.linspace(0, images - 1, count).round().astype(np.int64)


def measure(encode: Encode, k: int) -> Measured | None:
    """Return what a sample costs with this k; None if it is too small to tell.

    Of images at the end of a block, what the flow takes is known from the opposite order.
    """
    blocks, backwards = encode(k, False), encode(k, True)
    bits = _bits(blocks)
    coded = bits[bits >= 0]
    if not len(coded) or not coded.mean() > 0:
        return None
    excess = []
    for one, other in [*zip(blocks, backwards, strict=True), *zip(backwards, blocks, strict=True)]:
        ends = other.bits[: one.initial]  # the same images
        if len(ends) == one.initial and np.all(ends >= 0):
            excess.append(one.report["initial_bits"] - ends.sum())
    if not excess:
        return None
    return Measured(k, float(coded.mean()), sum(excess) / len(excess) + 8 * HEAD.size)


def _bits(blocks: Sequence[Block]) -> np.ndarray:
    """Return the bits of each image ``(N,)``; -1 at the blocks' ends."""
    return np.concatenate([each.bits for each in blocks])


def choose_k(trial: Callable[[int], Sequence[Block]]) -> int | None:
    """Return the smallest k, by bisection, within 0.1 % of the cost of k = 24; None if none tells.

    Of models whose numbers grow, k = 24 leaves the codec's bounds: they are compared with k = 20,
    the largest that is chosen. What the flow does not code, at a block's end, is not compared.

    Args:
        trial: codes the sample with a k, with noise that is the same for every k.
    """
    reference = trial(REFERENCE)
    if any(each.report["plain"] for each in reference):
        reference = trial(MOST)
    bits = _bits(reference)

    def more(k: int) -> float:
        own = _bits(trial(k))
        both = (own >= 0) & (bits >= 0)
        return float((own - bits)[both].mean() / bits[both].mean()) if both.any() else math.nan

    low, high = LEAST, MOST
    while low < high:
        middle = (low + high) // 2
        extra = more(middle)
        if math.isnan(extra):
            return None
        low, high = (low, middle) if extra <= _TOLERANCE else (middle + 1, high)
    return low
