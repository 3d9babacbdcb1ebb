"""Decoded pixels in memory or, for a large set, in a file that later runs map and share."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mixerflow.caches import user_cache
from mixerflow.errors import DataError, ResourceError
from mixerflow.temporary import sweep, temporary_path

MEMORY_LIMIT = 512 << 20  # bytes; larger sets of decoded pixels go to the cache
_VERSION = 3  # of the rules for what is read, and of the files
_DIGEST = "sha256"


class ImageStream(NamedTuple):
    """Images `(C, H, W)` of one shape and type that are decoded one at a time.

    `kept` has the positions, among the files, of the files that are used; `skipped` has a line for
    each other file.
    """

    images: Iterator[np.ndarray]
    shape: tuple[int, ...]
    dtype: np.dtype
    kept: list[int]
    skipped: tuple[str, ...]


DecodedImages = tuple[np.ndarray, list[int], tuple[str, ...]]
"""Pixels `(N, C, H, W)`, and `kept` and `skipped` as an `ImageStream` has them."""


def cache_key(folder: Path, files: list[Path], settings: str) -> str:
    """Return a name for the content of `files`: paths, sizes, times of change and `settings`."""
    digest = hashlib.sha256(f"{_VERSION} {settings} ".encode() + os.fsencode(folder.resolve()))
    for path in files:
        digest.update(b"\0" + os.fsencode(path.relative_to(folder)))  # a name may be any bytes
        try:
            status = path.stat()
        except OSError:  # a broken link, which decoding reports, and which `kept` counts
            digest.update(b"\0-")
            continue
        digest.update(f"\0{status.st_size}\0{status.st_mtime_ns}".encode())
    return digest.hexdigest()[:32]


def load_or_decode(
    decode: Callable[[], ImageStream], *, key: str, cache: Path | None
) -> DecodedImages:
    """Return the pixels of the cache's entry `key`, or decode them.

    Sets of up to `MEMORY_LIMIT` bytes are held in memory. A larger one is written to `cache` once,
    and later runs map it read-only; a run that is killed while writing leaves no partial entry.

    Raises:
        DataError: a cached entry is damaged.
        ResourceError: the cache cannot be written.
    """
    entry = (cache or user_cache()) / key
    if entry.is_dir():
        return _map(entry)
    stream = decode()
    size = len(stream.kept) * int(np.prod(stream.shape)) * stream.dtype.itemsize
    if size > MEMORY_LIMIT:
        _write(stream, entry)
        return _map(entry)
    pixels = np.empty((len(stream.kept), *stream.shape), stream.dtype)
    for row, image in enumerate(stream.images):
        pixels[row] = image
    return pixels, stream.kept, stream.skipped


def _map(entry: Path) -> DecodedImages:
    try:
        if (entry / _DIGEST).read_text("utf-8") != _digest(entry):
            raise ValueError("SHA-256 differs")
        pixels = np.load(entry / "pixels.npy", mmap_mode="r", allow_pickle=False)
        index = json.loads((entry / "index.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DataError("damaged cache", entry, "delete this folder") from error
    return pixels, index["kept"], tuple(index["skipped"])


def _digest(entry: Path) -> str:
    """Hash both files of an entry; a memory map would show a flipped bit as a pixel."""
    digest = hashlib.sha256((entry / "index.json").read_bytes())
    with (entry / "pixels.npy").open("rb") as file:
        while part := file.read(1 << 24):
            digest.update(part)
    return digest.hexdigest()


def _write(stream: ImageStream, entry: Path) -> None:
    """Write a folder beside `entry`, then rename the folder: an entry is always complete."""
    temporary = None
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        sweep(entry.parent)
        temporary = temporary_path(entry)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        with (temporary / "pixels.npy").open("wb") as file:
            shape, kind = (len(stream.kept), *stream.shape), stream.dtype
            header = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False}
            np.lib.format.write_array_header_1_0(file, {**header, "shape": shape})
            for image in stream.images:
                file.write(image.tobytes())
            file.flush()
            os.fsync(file.fileno())
        index = {"kept": stream.kept, "skipped": stream.skipped}
        (temporary / "index.json").write_text(json.dumps(index), "utf-8")
        (temporary / _DIGEST).write_text(_digest(temporary), "utf-8")
        temporary.rename(entry)
    except OSError as error:
        if not entry.is_dir():  # otherwise another run has just written the same entry
            what = f"decoded images cannot be kept ({error.strerror})"
            raise ResourceError(what, entry.parent, "make room or name another --cache") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
