"""Names, labels and classes of a block, compressed by zlib, and read again within bounds."""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence

import numpy as np

from mixerflow.compression.layout import LARGEST_BLOCK, LONGEST_NAME, Broken
from mixerflow.errors import DataError

_KINDS = tuple(np.dtype(each) for each in ("<i1", "<i2", "<i4", "<i8"))
_REAL = np.dtype("<f4")


def pack_names(names: Sequence[str]) -> bytes:
    """Return names, UTF-8 or what the file system has instead, with zeros between them.

    Raises:
        DataError: a name that is too long, or has a zero in it.
    """
    return zlib.compress(b"\0".join(map(encoded, names)), 9)


def encoded(name: str) -> bytes:
    """Return the bytes of an image's name.

    Raises:
        DataError: it is too long, has a zero in it, or characters that no name has.
    """
    try:
        raw = os.fsencode(name)
        same = os.fsdecode(raw) == name
    except UnicodeEncodeError:
        raw, same = b"", False
    if not same:
        raise DataError("a name that is no text in UTF-8", name[:60], "give it another")
    if len(raw) > LONGEST_NAME or b"\0" in raw:
        what = f"a name of {len(raw):,} bytes, or with a zero in it"
        raise DataError(what, name[:60], f"give at most {LONGEST_NAME:,} bytes")
    return raw


def unpack_names(data: bytes, images: int) -> tuple[str, ...]:
    """Return the names of a block's images; `Broken` if these are not as many."""
    raw = _inflated(data, min(images * (LONGEST_NAME + 1), LARGEST_BLOCK), "names")
    names = raw.split(b"\0", images)
    if len(names) != images or max(map(len, names)) > LONGEST_NAME:
        raise Broken(f"{len(names):,} names for {images:,} images, or one too long")
    return tuple(os.fsdecode(name) for name in names)


def pack_numbers(numbers: np.ndarray) -> bytes:
    """Return integers ``(N,)`` in the smallest type that holds them, or float32 ``(N, K)``."""
    if numbers.dtype.kind == "f":
        return zlib.compress(np.ascontiguousarray(numbers, _REAL).tobytes(), 9)
    low, high = int(numbers.min()), int(numbers.max())
    fits = (np.iinfo(each).min <= low and high <= np.iinfo(each).max for each in _KINDS)
    kind = next(n for n, each in enumerate(fits) if each)
    return bytes([kind]) + zlib.compress(numbers.astype(_KINDS[kind]).tobytes(), 9)


def unpack_numbers(data: bytes, images: int, length: int = 0) -> np.ndarray:
    """Return integers ``(images,)`` int64, or vectors ``(images, length)`` float32.

    Raises:
        Broken: these are not as many.
    """
    kind = _REAL
    if not length:
        if data[:1] not in (b"\0", b"\1", b"\2", b"\3"):
            raise Broken("numbers of an unknown type")
        kind, data = _KINDS[data[0]], data[1:]
    size = images * max(length, 1) * kind.itemsize
    if size > LARGEST_BLOCK * 8:
        raise Broken(f"{size:,} bytes of numbers")
    raw = _inflated(data, size, "numbers")
    if len(raw) != size:
        raise Broken(f"{len(raw):,} bytes of numbers for {images:,} images")
    numbers = np.frombuffer(raw, kind)
    return numbers.reshape(images, length).astype(np.float32) if length else numbers.astype(int)


def _inflated(data: bytes, most: int, what: str) -> bytes:
    """Return what was compressed, of at most so many bytes; no more are ever made."""
    inflater = zlib.decompressobj()
    try:
        raw = inflater.decompress(data, most + 1)
    except zlib.error as error:
        raise Broken(f"{what} cannot be decompressed") from error
    if len(raw) > most or not inflater.eof or inflater.unused_data:
        raise Broken(f"more {what} than its images can have, or fewer")
    return raw
