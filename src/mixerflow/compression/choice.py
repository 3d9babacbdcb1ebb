"""How an archive is made: k, the bits below a pixel, and the images of a block.

A small k costs bits where a flow contracts, for rounding is coarser there. A large one makes the
first images of a block, which pay for its noise, more: both are measured on a sample.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mixerflow.compression.engine import Block

LEAST, MOST, REFERENCE = 12, 20, 24
"""The range of k that is chosen from, and the k whose cost is compared."""
USUAL = 16
"""The k of a set that is too small to be sampled."""
_TOLERANCE = 0.001
_SAMPLE, _SHARE, _FEW = 200, 50, 40
_OVERHEAD = 0.003
_SMALLEST = 64  # images of a block
Encode = Callable[[int, int], Block]
"""Codes the first images of the sample with a k: ``(k, images) -> Block``."""


@dataclass(frozen=True)
class Measured:
    """What a sample costs with a k.

    Attributes:
        k: bits below a pixel.
        mean: bits of an image that the flow codes.
        excess: bits that the images at a block's end cost more than if the flow coded them.
    """

    k: int
    mean: float
    excess: float

    def block(self, images: int, most: int) -> int:
        """Return the images of a block, for blocks of equal size whose ends cost 0.3 % at most.

        Args:
            images: all images.
            most: images that a block may have.
        """
        wanted = max(math.ceil(self.excess / (_OVERHEAD * self.mean)), _SMALLEST)
        blocks = max(images // wanted, math.ceil(images / most), 1)
        return math.ceil(images / blocks)


def sample_places(images: int) -> np.ndarray:
    """Return places ``(n,)`` of a sample, spread over the images; none of a small set."""
    count = min(_SAMPLE, images // _SHARE)
    if count < _FEW:
        return np.empty(0, np.int64)
    return np.linspace(0, images - 1, count).round().astype(np.int64)


def measure(encode: Encode, count: int, k: int) -> Measured | None:
    """Return what a sample of so many images costs with this k; None if it is too small to tell."""
    report, coded = _coded(encode, k, count)
    if coded < 1:
        return None
    mean = report.report["flow_bits"] / coded
    excess = report.report["initial_bits"] - report.initial * mean
    return Measured(k, mean, excess) if mean > 0 else None


def choose_k(encode: Encode, count: int) -> Measured | None:
    """Return the smallest k, by bisection, within 0.1 % of the cost of k = 24, and its costs.

    For each k the flow codes the same images: those at the end, which it does not code, are more
    for a larger k.
    """
    reference, coded = _coded(encode, REFERENCE, count)
    if coded < 1 or not reference.report["flow_bits"] > 0:
        return None
    least = reference.report["flow_bits"] / coded
    known: dict[int, Measured] = {}

    def fits(k: int) -> bool:
        ends = math.ceil(reference.initial * k / REFERENCE)
        images = min(count, coded + ends)
        found = measure(encode, images, k)
        if found is None:
            return False
        known[k] = found
        return found.mean <= (1 + _TOLERANCE) * least

    low, high = LEAST, MOST
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle + 1, high)
    return known.get(low) or measure(encode, count, low)


def _coded(encode: Encode, k: int, count: int) -> tuple[Block, int]:
    """Return the sample's block, and the number of its images that the flow codes."""
    block = encode(k, count)
    return block, count - block.initial - int(block.report["plain"])
