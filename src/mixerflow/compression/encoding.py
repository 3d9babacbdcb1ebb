"""Images to the blocks of an archive."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from torch import nn

from mixerflow.compression.choice import (
    USUAL,
    choose_k,
    measure,
    sample_places,
)
from mixerflow.compression.coded import Totals, Watch
from mixerflow.compression.engine import Block, Engine
from mixerflow.compression.given import Given
from mixerflow.compression.layout import FRAME, MOST_BLOCKS, Header
from mixerflow.compression.work import in_order
from mixerflow.compression.writing import ArchiveWriter
from mixerflow.core import Flow
from mixerflow.errors import DataError, ResourceError
from mixerflow.evaluate import class_log_probs

_BATCH = 128


class _Item(NamedTuple):
    number: int
    first: int
    pixels: np.ndarray
    labels: np.ndarray | None
    names: tuple[str, ...]
    classes: np.ndarray | None


@dataclass(frozen=True, eq=False)
class Encoder:
    """Codes images of a flow.

    Attributes:
        flow: the flow.
        engine: the native codec for a k.
        k: bits below a pixel; None for a k that is chosen.
        block: images of a block; None for a number that is chosen.
        threads: blocks at a time.
        verify: decode each block again, and compare.
    """

    flow: Flow
    engine: Callable[[int], Engine]
    k: int | None
    block: int | None
    threads: int
    verify: bool = False

    def settings(self, given: Given, watch: Watch) -> tuple[int, int]:
        """Return k and the images of a block; a sample of the images is coded where it must be.

        Raises:
            DataError: more blocks than an archive can have.
        """
        images, most = len(given.pixels), given.most(self.flow)
        places = sample_places(images)
        if not len(places) or (self.k is not None and self.block is not None):
            k, block = self.k or USUAL, min(self.block or images, most)
        else:
            with watch.choosing() as halt:
                k, block = self._chosen(given, places, most, watch, halt)
        if (blocks := math.ceil(images / block)) > MOST_BLOCKS:
            what = f"{blocks:,} blocks, and an archive has {MOST_BLOCKS:,} at most"
            least = math.ceil(images / MOST_BLOCKS)
            remedy = f"give a --block of at least {least:,}, or fewer images"
            raise DataError(what, "the images", remedy if least <= most else "give fewer images")
        return k, block

    def _chosen(
        self,
        given: Given,
        places: np.ndarray,
        most: int,
        watch: Watch,
        halt: Callable[[int], None],
    ) -> tuple[int, int]:
        pixels, images = self._checked(given.pixels[places], places), len(given.pixels)
        known = None if given.context is None else given.context[places]
        classes = self._classes(pixels, known, watch.tell)

        middle = len(pixels) // 2
        halves = slice(middle), slice(middle, None)  # whatever the number of threads

        def encode(k: int, backwards: bool = False, *, trial: bool = False) -> list[Block]:
            engine, step = self.engine(k), -1 if backwards else 1

            def work(here: slice) -> Block:
                own = None if classes is None else classes[here][::step]
                return engine.encode(pixels[here][::step], own, on_progress=halt, trial=trial)

            return [*in_order(work, halves, min(self.threads, 2), watch.tell, watch.stop)]

        k = self.k or choose_k(functools.partial(encode, trial=True)) or USUAL
        measured = None if self.block is not None else measure(encode, k)
        if measured is None:
            return k, min(self.block or images, most)
        return k, measured.block(images, most)

    def write(
        self, writer: ArchiveWriter, given: Given, block: int, weights: int, watch: Watch
    ) -> Totals:
        """Write all blocks of an archive, and its end."""
        header, report = writer.header, dict[str, float]()
        engine = self.engine(header.k)

        def work(item: _Item) -> tuple[_Item, Block]:
            counter = watch.counter(item.number)
            if not self.verify:
                return item, engine.encode(item.pixels, item.classes, on_progress=counter)
            coded = engine.encode(item.pixels, item.classes, on_progress=lambda n: counter(n // 2))
            _verify(engine, item, coded, counter)
            return item, coded

        items = self._items(given, block, watch.tell)
        for item, coded in in_order(work, items, self.threads, watch.tell, watch.stop):
            same = item.classes is not None and _are(item.labels, item.classes)
            writer.add(
                coded.payload,
                item.pixels,
                coded.initial,
                names=item.names,
                labels=item.labels,
                classes=None if same else item.classes,
            )
            for name, value in (coded.report | {"initial": coded.initial}).items():
                report[name] = report.get(name, 0) + value
            watch.finished(item.number, len(item.pixels), len(coded.payload))
        size = writer.finish(report)
        return Totals.of(header, writer.index.blocks, size, weights, report)

    def _items(self, given: Given, block: int, tell: Callable[[], object]) -> Iterator[_Item]:
        """Yield blocks whose sizes differ by one image at most."""
        images = len(given.pixels)
        count = -(-images // block)
        for number in range(count):
            here = slice(number * images // count, (number + 1) * images // count)
            pixels = self._checked(given.pixels[here], range(images)[here])
            known = None if given.context is None else given.context[here]
            classes = self._classes(pixels, known, tell)
            labels = None if given.labels is None else given.labels[here]
            yield _Item(number, here.start, pixels, labels, given.names[here], classes)

    def _checked(self, pixels: np.ndarray, numbers: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return pixels of images of these numbers in the flow's type.

        Raises:
            DataError: a pixel beyond its levels.
        """
        levels = self.flow.levels or 0
        if pixels.min() < 0 or pixels.max() >= levels:
            wrong = ((pixels < 0) | (pixels >= levels)).reshape(len(pixels), -1).any(1)
            number = int(numbers[int(np.argmax(wrong))])
            what = f"image {number:,} has a pixel beyond the flow's {levels:,} levels"
            raise DataError(what, "the images", f"give pixels of 0 to {levels - 1:,}")
        kind = np.uint8 if levels <= 256 else np.uint16
        return np.ascontiguousarray(pixels, kind)

    def _classes(
        self, pixels: np.ndarray, known: np.ndarray | None, tell: Callable[[], object]
    ) -> np.ndarray | None:
        """Return the classes that the flow is given ``(n,)`` int32; of unknown ones the likeliest.

        The likeliest is that of the largest log p(x | k), in K passes.
        """
        if not isinstance(self.flow.context_net, nn.Embedding):
            return None
        classes = np.full(len(pixels), -1) if known is None else np.array(known)
        unknown = np.flatnonzero(classes < 0)
        for start in range(0, len(unknown), _BATCH):
            tell()  # which may raise
            here = unknown[start : start + _BATCH]
            scores = class_log_probs(self.flow, pixels[here], batch=_BATCH)
            classes[here] = scores.argmax(1).numpy()
        return classes.astype(np.int32)


def _verify(engine: Engine, item: _Item, coded: Block, counter: Callable[[int], None]) -> None:
    """Raise a ResourceError if a block does not decode to its images."""
    n = len(item.pixels)

    def second_half(images: int) -> None:
        counter((n + images) // 2)

    try:
        pixels = engine.decode(
            coded.payload, n, coded.initial, item.classes, on_progress=second_half
        )
        wrong = (pixels != item.pixels).reshape(n, -1).any(1)
    except DataError:  # no block at all
        wrong = np.ones(n, bool)
    if wrong.any():
        number = item.first + int(np.argmax(wrong))
        what = f"block {item.number:,} does not decode to its images, from image {number:,} on"
        remedy = "nothing is kept; please report it, with the model and the images"
        raise ResourceError(what, "the codec", remedy)


def _are(labels: np.ndarray | None, classes: np.ndarray) -> bool:
    return labels is not None and labels.ndim == 1 and np.array_equal(labels, classes)


def sections(weights: tuple[bytes, bytes] | None) -> int:
    """Return the bytes that weights take inside of an archive."""
    return 0 if weights is None else sum(FRAME.size + len(each) for each in weights)


def header_of(
    flow: Flow, engine: Engine, program: str, k: int, said: dict[str, object], given: Given
) -> Header:
    """Return the header of an archive of images."""
    labels = given.labels
    return Header(
        shape=tuple(flow.shape),
        levels=flow.levels or 0,
        k=k,
        program=program,
        fingerprint=f"{engine.fingerprint:016x}",
        weights=dict(said),
        classes=given.classes,
        vectors=0 if labels is None or labels.ndim == 1 else labels.shape[1],
    )
