"""`ArchiveWriter`: an archive that is written from its start to its end."""

from __future__ import annotations

from typing import BinaryIO

import numpy as np

from mixerflow.compression.layout import (
    END,
    FORMAT,
    START,
    BlockHead,
    Header,
    Index,
    digest,
    pack_end,
    section,
    within,
)
from mixerflow.compression.side import pack_names, pack_numbers
from mixerflow.named import ARCHIVE


class ArchiveWriter:
    """Writes an archive to a file from its start to its end; it is none before `finish`.

    Args:
        file: takes the bytes; it is not read.
        header: what is said of all images.
        weights: the card and the safetensors file to put inside.
    """

    def __init__(
        self, file: BinaryIO, header: Header, weights: tuple[bytes, bytes] | None = None
    ) -> None:
        self._file, self.header, self.index, self.size = file, header, Index(), 0
        self._write(START.pack(ARCHIVE, FORMAT))
        self._write(section(b"HEAD", header.pack()))
        if weights is not None:
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
            DataError: a name that cannot be kept.
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
        within(head, self.header)
        for part in (head.pack(), payload, side):
            self._write(part)
        self.index.blocks.append(head)
        return head

    def finish(self, report: dict[str, float]) -> int:
        """Write the index and the end, which make the archive whole; return its bytes."""
        self.index.report = report
        index_at, content = self.size, section(b"INDX", self.index.pack())
        self._write(content)
        self._write(pack_end(index_at, self.size + END.size))
        return self.size

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self.size += len(data)
