"""`Archive`: an archive that is read, block by block.

Where its bytes lie, `mixerflow.compression.layout` says.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, NamedTuple

import numpy as np

from mixerflow.compression.layout import (
    BLOCK,
    END,
    FORMAT,
    FRAME,
    HEAD,
    LARGEST_JSON,
    LAST,
    START,
    BlockHead,
    Broken,
    Header,
    Index,
    digest,
    frame_of,
    unpack_end,
    within,
)
from mixerflow.compression.side import unpack_names, unpack_numbers
from mixerflow.errors import DataError
from mixerflow.named import ARCHIVE

_REMEDY = "fetch or write it again"
_PIECE = 1 << 20
_TRIES = 1000  # places that may be an end
_BYTES = (bytes, bytearray, memoryview)
Source = bytes | bytearray | memoryview | Path | str
"""An archive's file, or all its bytes."""


class Coded(NamedTuple):
    """A coded block, verified: what the codec needs, and what lies beside it.

    Attributes:
        head: its head.
        payload: the coder's words.
        names: of its images; empty without.
        labels: ``(n,)`` int64 or ``(n, K)`` float32; None without.
        classes: that the flow is given, ``(n,)`` int32; None without.
    """

    head: BlockHead
    payload: bytes
    names: tuple[str, ...]
    labels: np.ndarray | None
    classes: np.ndarray | None


class Archive:
    """An archive, open in a ``with`` block; all but its blocks is read and verified at once.

    Args:
        source: the file, or all its bytes.
        rescue: find the blocks by their heads, not by the index: of a file that was cut short or
            damaged, those that are left.

    Attributes:
        where: names the archive in errors.
        header: what it says of all images.
        index: lengths of its blocks, and what was counted.
        size: its bytes.

    Raises:
        DataError: no archive, a damaged one, one cut short, or one of a newer format.
    """

    def __init__(self, source: Source, *, rescue: bool = False) -> None:
        self.where = "the archive" if isinstance(source, _BYTES) else Path(source)
        self._file = self._open(source)
        try:
            self.size = self._file.seek(0, os.SEEK_END)
            self._read_start()
            if rescue:
                self._places, self.index = self._found()
            else:
                self._places, self.index = self._listed()
        except Broken as broken:
            self._file.close()
            raise self._damaged(broken, rescue=rescue) from broken
        except OSError as error:
            self._file.close()
            raise DataError(f"cannot be read ({error.strerror})", self.where, _REMEDY) from error
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Archive:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()

    @property
    def images(self) -> int:
        """The number of the last image, and one: of a whole archive the count of its images."""
        return self.index.images

    def weights(self) -> tuple[bytes, bytes] | None:
        """Return the card and the safetensors file of the weights inside, verified; or None."""
        if not self.header.weights["embedded"]:
            return None
        try:
            card = self._section(b"CARD", self._after_header, LARGEST_JSON)
            return card, self._section(b"MODL", self._after_header + FRAME.size + len(card))
        except Broken as broken:
            what = f"the weights inside are damaged ({broken})"
            raise DataError(what, self.where, "give others of these weights with --weights") from (
                broken
            )

    def blocks_of(self, start: int, stop: int) -> range:
        """Return the numbers of the blocks that hold images from `start` to before `stop`."""
        heads = self.index.blocks
        inside = [
            number
            for number, each in enumerate(heads)
            if each.first < stop and each.first + each.images > start
        ]
        return range(inside[0], inside[-1] + 1) if inside else range(0)

    def read(self, number: int) -> Coded:
        """Return a block.

        Raises:
            Broken: it is damaged.
        """
        expected, place = self.index.blocks[number], self._places[number]
        head = BlockHead.unpack(self._bytes(place, HEAD.size))
        if head[:7] != expected[:7]:
            raise Broken("its head differs from the index")
        within(head, self.header)
        payload = self._bytes(place + HEAD.size, head.payload)
        if digest(payload) != head.payload_digest:
            raise Broken("the digest of its payload differs")
        side = self._bytes(place + HEAD.size + head.payload, head.side)
        if digest(side) != head.side_digest:
            raise Broken("the digest of its names and labels differs")
        ends = head.names, head.names + head.labels
        names, labels, classes = side[: ends[0]], side[ends[0] : ends[1]], side[ends[1] :]
        n = head.images
        return Coded(
            head,
            payload,
            unpack_names(names, n) if names else (),
            unpack_numbers(labels, n, self.header.vectors) if labels else None,
            _as_classes(unpack_numbers(classes, n)) if classes else None,
        )

    def _open(self, source: Source) -> BinaryIO:
        if isinstance(source, _BYTES):
            return io.BytesIO(source)
        path = Path(source)
        try:
            if path.exists() and not path.is_file():  # a pipe would not end
                raise DataError("no file", path, "name an archive that `mixerflow compress` wrote")
            return path.open("rb")
        except FileNotFoundError:
            raise DataError("no such file", path, "name an archive") from None
        except (OSError, ValueError) as error:
            what = f"cannot be read ({getattr(error, 'strerror', None) or error})"
            raise DataError(what, path, "check its name and its permissions") from error

    def _bytes(self, place: int, count: int) -> bytes:
        """Return so many bytes from a place; none are read unless all are there."""
        if place < 0 or count < 0 or place + count > self.size:
            raise Broken("cut short")
        self._file.seek(place)
        data = self._file.read(count)
        if len(data) != count:
            raise Broken("cut short while it was read")
        return data

    def _section(self, kind: bytes, place: int, most: int | None = None) -> bytes:
        """Return the verified content of a section."""
        found, length, expected = frame_of(self._bytes(place, FRAME.size))
        name = kind.decode()
        if found != kind:
            raise Broken(f"no section {name} where it should be")
        if most is not None and length > most:
            raise Broken(f"a section {name} of {length:,} bytes")
        content = self._bytes(place + FRAME.size, length)
        if digest(content) != expected:
            raise Broken(f"the digest of its section {name} differs")
        return content

    def _read_start(self) -> None:
        first = self._bytes(0, min(self.size, len(ARCHIVE)))
        if not ARCHIVE.startswith(first):
            remedy = "name one that `mixerflow compress` wrote"
            raise DataError("no archive of images", self.where, remedy)
        start = self._bytes(0, START.size)
        _, number = START.unpack(start)
        if number > FORMAT:
            what = f"an archive of format {number}, and this mixerflow knows {FORMAT}"
            raise DataError(what, self.where, "use a newer mixerflow")
        if number < 1:
            raise Broken(f"format {number}")
        content = self._section(b"HEAD", START.size, LARGEST_JSON)
        self.header = Header.unpack(content)
        self._after_header = START.size + FRAME.size + len(content)

    def _listed(self) -> tuple[list[int], Index]:
        """Return the places of all blocks and the index, by the end of the file."""
        try:
            index_at, length = unpack_end(self._bytes(max(self.size - END.size, 0), END.size))
        except Broken:
            if behind := self._behind_end():
                raise Broken(f"{behind:,} bytes behind its end") from None
            raise
        if length != self.size:
            raise Broken(f"{self.size:,} bytes, and its end says {length:,}")
        content = self._section(b"INDX", index_at, LARGEST_JSON)
        if index_at + FRAME.size + len(content) + END.size != self.size:
            raise Broken("bytes between its index and its end")
        index = Index.unpack(content, self.header)
        place, places = self._first_block(), []
        for block in index.blocks:
            places.append(place)
            place += block.size
        if place != index_at:
            raise Broken("its blocks have other lengths than its index says")
        return places, index

    def _behind_end(self) -> int:
        """Return the number of bytes that follow the archive's end; 0 if it has none."""
        stop, left = self.size, _TRIES
        while stop > 0:
            start = max(stop - _PIECE, 0)
            data = self._bytes(start, min(stop + len(LAST) - 1, self.size) - start)
            at = data.rfind(LAST)
            while at >= 0 and (left := left - 1) >= 0:
                after = start + at + len(LAST)
                with contextlib.suppress(Broken):
                    if unpack_end(self._bytes(after - END.size, END.size))[1] == after:
                        return self.size - after
                at = data.rfind(LAST, 0, at + len(LAST) - 1)
            stop = start
        return 0

    def _first_block(self) -> int:
        place = self._after_header
        if self.header.weights["embedded"]:
            for _ in ("CARD", "MODL"):
                place += FRAME.size + frame_of(self._bytes(place, FRAME.size))[1]
        return place

    def _found(self) -> tuple[list[int], Index]:
        """Return the places of the blocks that are whole, and an index of them."""
        places, heads = [], []
        for place, head in self._heads():
            after = heads[-1].first + heads[-1].images if heads else 0
            if head.first >= after and place + head.size <= self.size:
                places.append(place)
                heads.append(head)
        if not heads:
            raise Broken("no whole block is left")
        return places, Index(heads)

    def _heads(self) -> Iterator[tuple[int, BlockHead]]:
        """Yield the place and the head of each block in the file's order; pass over damage."""
        place = self._after_header
        while place + HEAD.size <= self.size:
            data = self._bytes(place, min(_PIECE, self.size - place))
            at, after = data.find(BLOCK), place + len(data) - len(BLOCK) + 1
            while at >= 0:
                try:
                    data_of_head = self._bytes(place + at, HEAD.size)
                    head = within(BlockHead.unpack(data_of_head), self.header)
                except Broken:
                    at = data.find(BLOCK, at + 1)
                    continue
                yield place + at, head
                after = place + at + head.size
                break
            place = after

    def _damaged(self, broken: Broken, *, rescue: bool) -> DataError:
        header = getattr(self, "header", None)
        more = "" if rescue or header is None else ", or read what is left with --rescue"
        return DataError(f"archive damaged ({broken})", self.where, f"{_REMEDY}{more}")


def _as_classes(numbers: np.ndarray) -> np.ndarray:
    """Return the classes of a flow as the codec takes them."""
    if numbers.min() < 0 or numbers.max() >= 1 << 31:
        raise Broken("classes beyond any flow's")
    return numbers.astype(np.int32)
