"""Pixels in memory, or, where they are many, in a file that later runs map and share."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mixerflow.errors import DataError, ResourceError

LARGE = 512 << 20  # bytes; above this, decoded pixels go to the cache
_VERSION = 1


class Source(NamedTuple):
    """Images that come one at a time.

    Args:
        images: as many as `kept`, each `(C, H, W)`.
        shape: of each image.
        dtype: of each image.
        kept: positions, among the files, of those that are used.
        skipped: a line for each file that is not.
    """

    images: Iterator[np.ndarray]
    shape: tuple[int, ...]
    dtype: np.dtype
    kept: list[int]
    skipped: tuple[str, ...]


def key(folder: Path, files: list[Path], settings: str) -> str:
    """A name for what `files` hold: where they are, names, sizes, times of change; the settings."""
    digest = hashlib.sha256(f"{_VERSION} {settings} {folder.resolve()}\n".encode())
    for path in files:
        try:
            status = path.stat()
        except OSError:  # a broken link; decoding it says so
            continue
        relative = path.relative_to(folder).as_posix()
        digest.update(f"{relative}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:32]


def default_cache() -> Path:
    """`mixerflow` in the user's cache folder (XDG)."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "mixerflow"


def keep(
    decode: Callable[[], Source], *, key: str, cache: Path | None
) -> tuple[np.ndarray, list[int], tuple[str, ...]]:
    """Pixels `(N, C, H, W)`, the positions kept and the files skipped; from the cache if there.

    Sets of up to `LARGE` bytes are held in memory. Larger ones are written to `cache` once, and
    mapped read-only from then on; a run that is killed while writing leaves no half entry.

    Raises:
        DataError: a cached entry is damaged.
        ResourceError: the cache cannot be written.
    """
    entry = (cache or default_cache()) / key
    if entry.is_dir():
        return _mapped(entry)
    source = decode()
    size = len(source.kept) * int(np.prod(source.shape)) * source.dtype.itemsize
    if size > LARGE:
        _write(source, entry)
        return _mapped(entry)
    pixels = np.empty((len(source.kept), *source.shape), source.dtype)
    for row, image in enumerate(source.images):
        pixels[row] = image
    return pixels, source.kept, source.skipped


def _mapped(entry: Path) -> tuple[np.ndarray, list[int], tuple[str, ...]]:
    try:
        pixels = np.load(entry / "pixels.npy", mmap_mode="r", allow_pickle=False)
        index = json.loads((entry / "index.json").read_text())
    except (OSError, ValueError) as error:
        raise DataError("damaged cache", entry, "delete this folder") from error
    return pixels, index["kept"], tuple(index["skipped"])


def _write(source: Source, entry: Path) -> None:
    """Write beside `entry`, then rename: an entry is there whole or not at all."""
    temporary = None
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=entry.parent, prefix=f".{entry.name}-"))
        with (temporary / "pixels.npy").open("wb") as file:
            header = {
                "descr": np.lib.format.dtype_to_descr(source.dtype),
                "fortran_order": False,
                "shape": (len(source.kept), *source.shape),
            }
            np.lib.format.write_array_header_1_0(file, header)
            for image in source.images:
                file.write(image.tobytes())
            file.flush()
            os.fsync(file.fileno())
        index = {"kept": source.kept, "skipped": source.skipped}
        (temporary / "index.json").write_text(json.dumps(index))
        temporary.rename(entry)
    except OSError as error:
        if not entry.is_dir():  # else another run has just finished the same entry
            what = f"decoded images cannot be kept ({error.strerror})"
            raise ResourceError(what, entry.parent, "make room or name another --cache") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
