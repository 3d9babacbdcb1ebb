"""The blocks of an archive to images."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from mixerflow.compression.archive import Archive, Coded
from mixerflow.compression.coded import Lost, Part, Watch
from mixerflow.compression.engine import Engine
from mixerflow.compression.layout import Broken, Header, digest
from mixerflow.compression.program import Program
from mixerflow.compression.work import in_order
from mixerflow.errors import CheckpointError, DataError
from mixerflow.version import __version__


def require_same(header: Header, program: Program, where: object) -> None:
    """Raise a CheckpointError if the program of an archive's weights is none that decodes it."""
    mine, theirs = ((each.shape, each.levels) for each in (program, header))
    if mine != theirs:
        words = [f"{shape} of {levels:,} levels" for shape, levels in (theirs, mine)]
        what = f"its images are {words[0]}, those of the weights {words[1]}"
        raise CheckpointError(what, where, "give the archive's own weights with --weights")
    if program.sha256 == header.program:
        return
    if header.mixerflow == __version__:
        remedy = "name the weights that it was made with, by --weights"
        raise CheckpointError("an archive of other weights", where, remedy)
    what = f"mixerflow {header.mixerflow} made another program of these weights"
    remedy = f"decompress it with that version (this is {__version__})"
    raise CheckpointError(what, where, remedy)


def require_arithmetic(header: Header, engine: Engine, where: object) -> None:
    """Raise a DataError if this machine's arithmetic is not that of an archive."""
    here = f"{engine.fingerprint:016x}"
    if here != header.fingerprint:
        what = f"this machine computes otherwise than the one that wrote it ({here}, not "
        what += f"{header.fingerprint[:16]}), and would decode other pixels"
        raise DataError(what, where, "decompress it elsewhere, or with another C compiler (CC)")


def decoded_parts(
    archive: Archive, engine: Engine, start: int, stop: int, threads: int, watch: Watch
) -> Iterator[Part | Lost]:
    """Yield the decoded blocks of an archive in order, and those that are lost.

    Of a block that begins before image `start`, or ends after `stop`, only the images between.

    Raises:
        DataError: there are no such images.
    """
    if not 0 <= start < stop <= archive.images:
        what = f"no images from {start:,} to before {stop:,}"
        raise DataError(what, archive.where, f"it has {archive.images:,}, from 0 on")
    numbers, heads = archive.blocks_of(start, stop), archive.index.blocks

    def lost(number: int, error: Broken | DataError) -> Lost:
        head, what = heads[number], error.what if isinstance(error, DataError) else str(error)
        return Lost(number, head.first, head.first + head.images, what)

    def blocks() -> Iterator[tuple[int, Coded | Lost]]:
        after = start
        for number in numbers:
            if heads[number].first > after:  # of an archive that is read without its index
                yield number, _gap(after, heads[number].first)
            after = heads[number].first + heads[number].images
            try:
                yield number, archive.read(number)
            except Broken as broken:
                yield number, lost(number, broken)
        if after < stop:
            yield len(heads), _gap(after, stop)

    def work(block: tuple[int, Coded | Lost]) -> Part | Lost:
        number, coded = block
        if isinstance(coded, Lost):
            return coded
        try:
            pixels = _pixels(engine, coded, archive.header, watch.counter(number))
        except (Broken, DataError) as error:
            return lost(number, error)
        head = coded.head
        part = Part(number, head.first, pixels, coded.labels, coded.names, head.payload)
        return part.cut(start, stop)

    for part in in_order(work, blocks(), threads, watch.tell, watch.stop):
        images, size = (0, 0) if isinstance(part, Lost) else (len(part.pixels), part.payload)
        watch.finished(part.block, images, size)
        yield part


def _gap(first: int, stop: int) -> Lost:
    return Lost(None, first, stop, "no block is left that has them")


def _pixels(
    engine: Engine, coded: Coded, header: Header, on_progress: Callable[[int], None]
) -> np.ndarray:
    """Return the pixels of a block, whose digest is right."""
    head, classes = coded.head, coded.classes
    if engine.program.classes and classes is None:
        labels = coded.labels
        if labels is None or labels.ndim != 1:
            raise Broken("its classes are missing")
        classes = labels.astype(np.int32)
    if classes is not None and not 0 <= classes.min() <= classes.max() < engine.program.classes:
        raise Broken("classes that the flow does not have")
    pixels = engine.decode(
        coded.payload, head.images, head.initial, classes, on_progress=on_progress
    )
    pixels = np.ascontiguousarray(pixels, header.dtype)
    little_endian = np.ascontiguousarray(pixels, header.dtype.newbyteorder("<"))
    if digest(little_endian.data.cast("B")) != head.pixels_digest:
        raise Broken("the digest of its decoded pixels differs")
    return pixels
