"""What a codec returns: parts of decoded images, those that are lost, and what was counted."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from mixerflow.compression.layout import BlockHead, Header, totals
from mixerflow.errors import DataError


class Progress(NamedTuple):
    """What is done so far.

    Attributes:
        images: images, those of blocks under way too.
        whole: images of the blocks that are done.
        payload: bytes of these blocks' payloads.
        choosing: whether k and the size of blocks are being chosen, before the first image.
    """

    images: int
    whole: int
    payload: int
    choosing: bool = False


OnProgress = Callable[[Progress], object]
"""Is called ten times a second, in the caller's thread, while threads work."""


@dataclass(frozen=True, eq=False)
class Part:
    """Decoded images of a block.

    Attributes:
        block: the block's number.
        first: number of the first image.
        pixels: ``(n, *shape)``, uint8 or uint16.
        labels: ``(n,)`` int64 or ``(n, K)`` float32; None without.
        names: n paths with `/`; empty without.
        payload: bytes of the block's payload.
    """

    block: int
    first: int
    pixels: np.ndarray
    labels: np.ndarray | None
    names: tuple[str, ...]
    payload: int

    def cut(self, start: int, stop: int) -> Part:
        """Return the images from number `start` to before `stop`."""
        here = slice(max(start - self.first, 0), max(stop - self.first, 0))
        labels = None if self.labels is None else self.labels[here]
        first, pixels, names = self.first + here.start, self.pixels[here], self.names[here]
        return replace(self, first=first, pixels=pixels, labels=labels, names=names)


@dataclass(frozen=True)
class Lost:
    """A block that cannot be decoded.

    Attributes:
        block: its number; None for images that no block is left of.
        first: number of its first image.
        stop: and that after its last one.
        what: why, in a few words.
    """

    block: int | None
    first: int
    stop: int
    what: str

    def __str__(self) -> str:
        last = self.stop - 1
        images = f"image {last:,}" if last == self.first else f"images {self.first:,} to {last:,}"
        block = "" if self.block is None else f", block {self.block:,}"
        return f"{images}{block}: {self.what}"

    def error(self, where: object) -> DataError:
        """Return the error for a block without which there is no result."""
        remedy = "fetch or write it again, or leave its images out with keep_going=True"
        return DataError(f"damaged: {self}", where, remedy)


class Decoded(NamedTuple):
    """Images of an archive.

    Attributes:
        images: ``(n, *shape)``, uint8 or uint16.
        labels: ``(n,)`` int64 or ``(n, K)`` float32; None without.
        names: n paths with `/`; empty without.
        lost: the blocks that are left out.
    """

    images: np.ndarray
    labels: np.ndarray | None
    names: tuple[str, ...]
    lost: tuple[Lost, ...]

    @classmethod
    def of(cls, parts: Sequence[Part | Lost], header: Header) -> Decoded:
        """Join the blocks of an archive."""
        there = [part for part in parts if isinstance(part, Part)]
        pixels = [np.empty((0, *header.shape), header.dtype), *(part.pixels for part in there)]
        labels = [part.labels for part in there if part.labels is not None]
        names = tuple(name for part in there for name in part.names)
        return cls(
            np.concatenate(pixels),
            np.concatenate(labels) if labels and len(labels) == len(there) else None,
            names if len(names) == sum(map(len, pixels)) else (),
            tuple(part for part in parts if isinstance(part, Lost)),
        )


@dataclass(frozen=True)
class Totals:
    """What an archive's bytes are, and what the codec counted.

    Attributes:
        images: number of images.
        dims: numbers of an image.
        pixel_bytes: bytes of all pixels.
        size: bytes of the archive.
        blocks: number of its blocks.
        k: bits below a pixel.
        names: bytes of the names, of
        labels: the labels, and of
        weights: the weights inside.
        report: sums over all blocks, by name (see `native/codec.h`).
    """

    images: int
    dims: int
    pixel_bytes: int
    size: int
    blocks: int
    k: int
    names: int
    labels: int
    weights: int
    report: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        header: Header,
        blocks: Sequence[BlockHead],
        size: int,
        weights: int,
        report: dict[str, float],
    ) -> Totals:
        """Count the bytes of an archive."""
        images, beside = sum(each.images for each in blocks), totals(blocks)
        return cls(
            images=images,
            dims=header.dims,
            pixel_bytes=images * header.dims * header.dtype.itemsize,
            size=size,
            blocks=len(blocks),
            k=header.k,
            names=beside["names"],
            labels=beside["labels"],
            weights=weights,
            report=report,
        )

    @property
    def for_images(self) -> int:
        """Bytes of the images: all but names, labels and weights."""
        return self.size - self.names - self.labels - self.weights

    @property
    def bits_per_dim(self) -> float:
        """``8 for_images / (images dims)``."""
        return 8 * self.for_images / max(self.images * self.dims, 1)

    @property
    def model_bits_per_dim(self) -> float | None:
        """Bits/dim of the images that the flow codes, without the ends of blocks."""
        coded = self.images - self.report.get("initial", 0) - self.report.get("plain", 0)
        if coded < 1 or "flow_bits" not in self.report:
            return None
        return self.report["flow_bits"] / (coded * self.dims)

    @property
    def plain(self) -> int:
        """Images that the flow cannot code, beside those at the ends of blocks."""
        return int(self.report.get("plain", 0))


class Watch:
    """Counts images while threads work on blocks, and stops them.

    Args:
        on_progress: see `OnProgress`.
    """

    def __init__(self, on_progress: OnProgress | None) -> None:
        self._on_progress, self._stopped = on_progress, threading.Event()
        self._under_way: dict[int, int] = {}
        self._whole = self._payload = 0
        self._choosing = False

    @contextmanager
    def choosing(self) -> Iterator[Callable[[int], None]]:
        """Say, in a ``with`` block, that k is chosen; give what ends a trial once it is stopped."""

        def halt(_: int) -> None:
            if self._stopped.is_set():
                raise Halted

        self._choosing = True
        yield halt
        self._choosing = False

    def counter(self, number: int) -> Callable[[int], None]:
        """Return what takes the images so far of a block; it raises once the work is stopped."""

        def count(images: int) -> None:
            if self._stopped.is_set():
                raise Halted
            self._under_way[number] = images

        return count

    def finished(self, number: int | None, images: int, size: int) -> None:
        """Count a block that is done."""
        if number is not None:
            self._under_way.pop(number, None)
        self._whole, self._payload = self._whole + images, self._payload + size
        self.tell()

    def tell(self) -> None:
        """Tell what is done so far."""
        if self._on_progress is not None:
            under_way = sum(list(self._under_way.values()))
            done = Progress(self._whole + under_way, self._whole, self._payload, self._choosing)
            self._on_progress(done)

    def stop(self) -> None:
        """Let the blocks that are under way end."""
        self._stopped.set()


class Halted(Exception):
    """The work was stopped by `Watch.stop`."""
