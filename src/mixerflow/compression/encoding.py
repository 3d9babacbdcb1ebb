"""Images to the blocks of an archive."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
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
from mixerflow.compression.layout import FRAME, LARGEST_BLOCK, Header
from mixerflow.compression.work import in_order
from mixerflow.compression.writing import ArchiveWriter
from mixerflow.core import Flow
from mixerflow.errors import DataError
from mixerflow.evaluate import class_log_probs

_BATCH = 128


@dataclass(frozen=True, eq=False)
class Given:
    """Images to code, and what is kept with them.

    Attributes:
        pixels: ``(N, *shape)``, perhaps a memory map.
        labels: ``(N,)`` integers or ``(N, K)`` floats; None without.
        names: N paths; empty without.
        classes: names of the labels 0, 1, ...
        context: classes ``(N,)`` that the flow is given, -1 for unknown ones; None for none known.
    """

    pixels: np.ndarray
    labels: np.ndarray | None = None
    names: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    context: np.ndarray | None = None

    def with_context(self, flow: Flow) -> Given:
        """Return the same, where no context was given with integer labels that are the flow's."""
        labels, net = self.labels, flow.context_net
        if self.context is not None or labels is None or not isinstance(net, nn.Embedding):
            return self
        fits = labels.ndim == 1 and labels.size and labels.max() < net.num_embeddings
        return replace(self, context=labels) if fits and labels.dtype.kind in "iu" else self

    def check(self, flow: Flow) -> None:
        """Raise a DataError for what a flow does not take, or what does not fit together."""
        pixels, where = self.pixels, "the images"
        count = len(pixels)
        if tuple(pixels.shape[1:]) != tuple(flow.shape) or not count:
            what = f"images {tuple(pixels.shape)}, the flow's are {tuple(flow.shape)}"
            raise DataError(what, where, "give at least one image of that shape")
        if pixels.dtype.kind not in "iu":
            raise DataError(f"images of {pixels.dtype}", where, "give uint8 or uint16")
        if LARGEST_BLOCK < pixels[0].size * _bytes(flow):
            raise DataError("images too large for a block", where, "cut them")
        if self.names and len(self.names) != count:
            what = f"{len(self.names):,} names for {count:,} images"
            raise DataError(what, where, "give one for each")
        labels = self.labels
        if labels is not None and (
            len(labels) != count or (labels.dtype.kind, labels.ndim) not in _LABELS
        ):
            what = f"labels are {labels.dtype} {labels.shape} for {count:,} images"
            raise DataError(what, where, "give integers (N,) or floats (N, K)")
        net = flow.context_net
        if self.context is not None and isinstance(net, nn.Embedding):
            if self.context.shape != (count,) or self.context.max() >= net.num_embeddings:
                what = f"classes {self.context.shape} up to {self.context.max()}"
                remedy = f"give (N,) of 0 to {net.num_embeddings - 1}, or -1 for unknown ones"
                raise DataError(what, where, remedy)


def _bytes(flow: Flow) -> int:
    """Return the bytes of a pixel."""
    return 1 if (flow.levels or 0) <= 256 else 2


_LABELS = {("i", 1), ("u", 1), ("f", 2)}


class _Item(NamedTuple):
    number: int
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
    """

    flow: Flow
    engine: Callable[[int], Engine]
    k: int | None
    block: int | None
    threads: int

    def settings(self, given: Given) -> tuple[int, int]:
        """Return k and the images of a block; a sample of the images is coded where it must be."""
        images = len(given.pixels)
        most = LARGEST_BLOCK // (given.pixels[0].size * _bytes(self.flow))
        places = sample_places(images)
        if not len(places) or (self.k is not None and self.block is not None):
            return self.k or USUAL, min(self.block or images, most)
        pixels = self._checked(given.pixels[places], 0)
        classes = self._classes(pixels, None if given.context is None else given.context[places])

        middle = len(pixels) // 2
        halves = slice(middle), slice(middle, None)  # whatever the number of threads

        def encode(k: int, backwards: bool = False, *, trial: bool = False) -> list[Block]:
            engine, step = self.engine(k), -1 if backwards else 1
            parts = [
                (pixels[here][::step], None if classes is None else classes[here][::step])
                for here in halves
            ]
            with ThreadPoolExecutor(min(self.threads, 2)) as pool:
                return [*pool.map(lambda part: engine.encode(*part, trial=trial), parts)]

        k = self.k or choose_k(functools.partial(encode, trial=True)) or USUAL
        measured = None if self.block is not None else measure(encode, k)
        return k, min(self.block or images, most) if measured is None else measured.block(
            images, most
        )

    def write(
        self, writer: ArchiveWriter, given: Given, block: int, weights: int, watch: Watch
    ) -> Totals:
        """Write all blocks of an archive, and its end."""
        header, report = writer.header, dict[str, float]()
        engine = self.engine(header.k)

        def work(item: _Item) -> tuple[_Item, Block]:
            counter = watch.counter(item.number)
            return item, engine.encode(item.pixels, item.classes, on_progress=counter)

        items = self._items(given, block)
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

    def _items(self, given: Given, block: int) -> Iterator[_Item]:
        """Yield blocks whose sizes differ by one image at most."""
        images = len(given.pixels)
        count = -(-images // block)
        for number in range(count):
            here = slice(number * images // count, (number + 1) * images // count)
            pixels = self._checked(given.pixels[here], here.start)
            classes = self._classes(pixels, None if given.context is None else given.context[here])
            labels = None if given.labels is None else given.labels[here]
            yield _Item(number, pixels, labels, given.names[here], classes)

    def _checked(self, pixels: np.ndarray, first: int) -> np.ndarray:
        """Return pixels in the flow's type; DataError for one beyond its levels."""
        levels = self.flow.levels or 0
        wrong = (pixels < 0) | (pixels >= levels) if pixels.dtype.kind == "i" else pixels >= levels
        if levels < np.iinfo(pixels.dtype).max + 1 and wrong.any():
            number = first + int(np.argmax(wrong.reshape(len(pixels), -1).any(1)))
            what = f"image {number:,} has a pixel beyond the flow's {levels:,} levels"
            raise DataError(what, "the images", f"give pixels of 0 to {levels - 1:,}")
        kind = np.uint8 if levels <= 256 else np.uint16
        return np.ascontiguousarray(pixels, kind)

    def _classes(self, pixels: np.ndarray, known: np.ndarray | None) -> np.ndarray | None:
        """Return the classes that the flow is given ``(n,)`` int32; of unknown ones the likeliest.

        The likeliest is that of the largest log p(x | k), in K passes.
        """
        if not isinstance(self.flow.context_net, nn.Embedding):
            return None
        classes = np.full(len(pixels), -1) if known is None else np.array(known)
        if (unknown := np.flatnonzero(classes < 0)).size:
            scores = class_log_probs(self.flow, pixels[unknown], batch=_BATCH)
            classes[unknown] = scores.argmax(1).numpy()
        return classes.astype(np.int32)


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
