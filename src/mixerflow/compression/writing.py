"""`ArchiveWriter`: an archive that is written from its start to its end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

import numpy as np

from mixerflow.compression.layout import (
    END,
    FORMAT,
    LARGEST_JSON,
    START,
    BlockHead,
    Broken,
    Header,
    Index,
    digest,
    pack_end,
    section,
    within,
)
from mixerflow.compression.side import pack_names, pack_numbers, unpack_names, unpack_numbers
from mixerflow.errors import DataError
from mixerflow.named import ARCHIVE


@contextmanager
def readable(remedy: str) -> Iterator[None]:
    """Turn what a reader would refuse, in a ``with`` block, into an error of who writes it."""
    try:
        yield
    except Broken as broken:
        what = f"no archive can have these images ({broken})"
        raise DataError(what, "the images", remedy) from broken


def _short(content: bytes) -> bytes:
    if len(content) > LARGEST_JSON:
        raise Broken(f"a section of {len(content):,} bytes, of {LARGEST_JSON:,} at most")
    return content


class ArchiveWriter:
    """Writes an archive to a file from its start to its end; it is none before `finish`.

    What it writes it reads again, within the bounds of a reader, before the file has it.

    Args:
        file: takes the bytes; it is not read.
        header: what is said of all images.
        weights: the card and the safetensors file to put inside.

    Raises:
        DataError: a header or a card that no reader would take.
    """

    def __init__(
        self, file: BinaryIO, header: Header, weights: tuple[bytes, bytes] | None = None
    ) -> None:
        self._file, self.header, self.index, self.size = file, header, Index(), 0
        self._write(START.pack(ARCHIVE, FORMAT))
        content, remedy = header.pack(), "give other images, or fewer and shorter names of classes"
        with readable(remedy):
            if Header.unpack(_short(content)) != header:
                raise Broken("its header would be read otherwise")
        self._write(section(b"HEAD", content))
        if weights is not None:
            with readable("leave the weights out: --weights name"):
                _short(weights[0])
            for kind, content in zip((b"CARD", b"MODL"), weights, strict=True):
                self._write(section(kind, content))

    def add(
        self,
        payload: bytes,
        pixels: np.ndarray,
        initial: int,
        *,
        names: tuple[str, ...] = (),
        labels: np.ndarray | None = None,
        classes: np.ndarray | None = None,
    ) -> BlockHead:
        """Write a block of images ``(n, *shape)``; return its head.

        Raises:
            DataError: a name that cannot be kept, or what no reader would take.
        """
        sides = (
            pack_names(names) if names else b"",
            b"" if labels is None else pack_numbers(labels),
            b"" if classes is None else pack_numbers(classes),
        )
        first, side = self.index.images, b"".join(sides)
        little_endian = self.header.dtype.newbyteorder("<")
        seen = np.ascontiguousarray(pixels, little_endian)
        head = BlockHead(
            first=first,
            images=len(pixels),
            initial=initial,
            payload=len(payload),
            names=len(sides[0]),
            labels=len(sides[1]),
            classes=len(sides[2]),
            payload_digest=digest(payload),
            side_digest=digest(side),
            pixels_digest=digest(seen.data.cast("B")),
        )
        with readable("give a smaller --block, or shorter names"):
            within(head, self.header)
            self._read_again(head, sides, names, labels)
        for part in (head.pack(), payload, side):
            self._write(part)
        self.index.blocks.append(head)
        return head

    def finish(self, report: dict[str, float]) -> int:
        """Write the index and the end, which make the archive whole; return its bytes.

        Raises:
            DataError: an index that no reader would take.
        """
        self.index.report = report
        index_at, content = self.size, self.index.pack()
        with readable("give a larger --block"):
            Index.unpack(_short(content), self.header)
        self._write(section(b"INDX", content))
        self._write(pack_end(index_at, self.size + END.size))
        return self.size

    def _read_again(
        self,
        head: BlockHead,
        sides: tuple[bytes, bytes, bytes],
        names: tuple[str, ...],
        labels: np.ndarray | None,
    ) -> None:
        """Raise `Broken` if a block's names and labels would not be read as they were given."""
        n = head.images
        same = not names or unpack_names(sides[0], n) == names
        if labels is not None:
            read = unpack_numbers(sides[1], n, self.header.vectors)
            same &= np.array_equal(read, labels, equal_nan=labels.dtype.kind == "f")
        if not same:
            raise Broken("names and labels would be read otherwise")

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self.size += len(data)
