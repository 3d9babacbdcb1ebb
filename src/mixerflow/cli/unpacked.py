"""Where the images of an archive go: a folder of PNG files, or a file of arrays."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Protocol

import numpy as np

from mixerflow import pictures
from mixerflow.cli.image_rows import csv_of_images
from mixerflow.compression.coded import Part
from mixerflow.compression.layout import Header
from mixerflow.errors import ConfigError, DataError
from mixerflow.runs.files import replacing, require_writable, writing
from mixerflow.temporary import sweep, temporary_path
from mixerflow.terminal import tell

_ARRAYS = (".npy", ".npz")
_LONGEST = 255  # bytes of a file's name
_TO_ARRAYS = "decompress to a file of arrays, --out FILE.npz"
_OF_NAMES = {errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL}


class Output(Protocol):
    """Takes decoded images; `images` counts them."""

    images: int

    def add(self, part: Part) -> None:
        """Write images."""


def require_output(out: Path, header: Header, archive: Path) -> None:
    """Refuse, before long work, a place that cannot take the images.

    Raises:
        ConfigError: PNG has no such images, or other files are there.
        ResourceError: it cannot be written.
    """
    if out.suffix.lower() in _ARRAYS:
        if out.exists() and out.samefile(archive):
            raise ConfigError("the archive itself", f"--out {out}", "name another file")
        _require_new(out)
        require_writable(out, named=True)
        return
    sides, channels = len(header.shape) - 1, header.shape[0]
    deep = header.dtype == np.uint16
    if sides != 2 or channels not in (1, 3) or (deep and channels != 1):
        what = f"PNG has no images {header.shape} of {8 * header.dtype.itemsize} bits"
        raise ConfigError(what, f"--out {out}", "name FILE.npy or FILE.npz")
    if os.path.lexists(out) and not out.is_dir():
        raise ConfigError("a file is there", f"--out {out}", "name a new folder, or FILE.npy")
    if out.is_dir() and any(not name.startswith(".tmp-") for name in os.listdir(out)):
        raise ConfigError("other files are there", f"--out {out}", "name a new folder")
    require_writable(out / "0.png")


@contextmanager
def open_output(out: Path, header: Header, images: int) -> Iterator[Output]:
    """Take decoded images in a ``with`` block; the output is there, whole, when it ends.

    An array is of the images that were given, of `images` at most.
    """
    out = out if out.suffix.lower() in _ARRAYS else Path(os.path.realpath(out))
    with writing(out.parent):
        out.parent.mkdir(parents=True, exist_ok=True)
        sweep(out.parent)
        if out.suffix.lower() not in _ARRAYS:
            folder = _Folder(temporary_path(out), header)
            try:
                folder.root.mkdir()
                yield folder
                folder.finish()
                if out.is_dir():
                    out.rmdir()
                folder.root.rename(out)
            finally:
                shutil.rmtree(folder.root, ignore_errors=True)
            return
        with replacing(out, named=True) as file:
            if out.suffix.lower() == ".npy":
                array = _Array(file, header, images)
                yield array
                array.finish()
                _require_new(out)
                if array.labelled:
                    tell(f"{out} has no labels; an .npz file would")
                return
            with tempfile.TemporaryFile(dir=out.parent) as pixels:
                arrays = _Arrays(pixels, header, images)
                yield arrays
                arrays.finish(file)
                _require_new(out)


def _require_new(out: Path) -> None:
    """Refuse a file that is there; a device or a pipe is written."""
    if out.is_file():
        raise ConfigError("a file is there", f"--out {out}", "name a new one, or remove it")


class _Array:
    """Images as an .npy file as this package reads it: ``(N, H, W)`` or ``(N, H, W, C)``."""

    def __init__(self, file: BinaryIO, header: Header, images: int) -> None:
        self.images, self.labelled = 0, False
        self._file, self._header, self._expected = file, header, images
        self._begin = self._write_head(images)

    def _write_head(self, images: int) -> int:
        shape = self._header.shape
        sides = shape[1:] if shape[0] == 1 and len(shape) == 3 else (*shape[1:], shape[0])
        kind = np.lib.format.dtype_to_descr(self._header.dtype.newbyteorder("<"))
        head = {"descr": kind, "fortran_order": False, "shape": (images, *sides)}
        np.lib.format.write_array_header_1_0(self._file, head)
        return self._file.tell()

    def add(self, part: Part) -> None:
        """Write images."""
        pixels = np.moveaxis(part.pixels, 1, -1).astype(self._header.dtype.newbyteorder("<"))
        self._file.write(np.ascontiguousarray(pixels).data)
        self.images += len(pixels)
        self.labelled |= part.labels is not None

    def finish(self) -> None:
        """Correct the number of images, where some are lost."""
        if self.images == self._expected:
            return
        self._file.seek(0)
        if self._write_head(self.images) != self._begin:  # numpy leaves room for any number
            raise AssertionError("the head of an array has another length")
        self._file.seek(0, os.SEEK_END)


class _Arrays(_Array):
    """Images, labels, names and names of classes as an .npz file."""

    def __init__(self, file: BinaryIO, header: Header, images: int) -> None:
        super().__init__(file, header, images)
        self._labels: list[np.ndarray] = []
        self._names: list[str] = []

    def add(self, part: Part) -> None:
        """Write images, and keep labels and names."""
        super().add(part)
        self._names += part.names
        if part.labels is not None:
            self._labels.append(part.labels)

    def finish(self, file: BinaryIO | None = None) -> None:
        """Write the .npz file."""
        super().finish()
        assert file is not None
        with zipfile.ZipFile(file, "w") as archive:
            self._file.seek(0)
            with archive.open(zipfile.ZipInfo("images.npy"), "w", force_zip64=True) as member:
                shutil.copyfileobj(self._file, member, 1 << 20)
            arrays = {"names": np.array(self._names), "classes": np.array(self._header.classes)}
            if self._labels:
                vectors = self._labels[0].ndim == 2
                labels = np.concatenate(self._labels)
                arrays = {"vectors" if vectors else "labels": labels} | arrays
            for name, array in arrays.items():
                if array.size:
                    with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w") as member:
                        np.lib.format.write_array(member, array, allow_pickle=False)


class _Folder:
    """Images as PNG files, by their names in the archive or by number; and ``labels.csv``.

    There is no such table where each image lies in a folder with the name of its class.
    """

    def __init__(self, root: Path, header: Header) -> None:
        self.root, self.images, self._header = root, 0, header
        self._rows: list[tuple[int, str, tuple[object, ...]]] = []
        self._placed = True

    def add(self, part: Part) -> None:
        """Write images."""
        classes = self._header.classes
        for place, pixels in enumerate(part.pixels):
            number = part.first + place
            name = file_name(part.names[place]) if part.names else f"{number:05}.png"
            path = self.root / name
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("xb") as file:  # of two equal names, neither is lost
                    file.write(pictures.png_bytes(pixels))
            except (FileExistsError, NotADirectoryError) as error:
                what = f"two images have the name {name[:200]!r}, or it lies in an image"
                own = part.names[place] if part.names else name
                what += "" if own == name else f"; one of them is {own[:200]!r}"
                raise DataError(what, "the archive", _TO_ARRAYS) from error
            except OSError as error:
                if error.errno not in _OF_NAMES:
                    raise
                what = f"the name {name[:200]!r} is no file's here ({error.strerror})"
                raise DataError(what, "the archive", _TO_ARRAYS) from error
            if part.labels is not None and part.labels.ndim == 1:
                label = int(part.labels[place])
                word = classes[label] if 0 <= label < len(classes) else ""
                self._placed &= bool(word) and word in PurePosixPath(name).parts[:-1]
                self._rows.append((number, name, (label, word)))
            elif part.labels is not None:
                self._placed = False
                self._rows.append((number, name, tuple(part.labels[place].tolist())))
        self.images += len(part.pixels)

    def finish(self) -> None:
        """Write the labels, where the files' names do not tell them."""
        if not self._rows or self._placed:
            return
        length = self._header.vectors
        head = [f"value_{n}" for n in range(length)] if length else ["label", "class"]
        numbers, files, values = zip(*self._rows, strict=True)
        table, path = csv_of_images(head, values, files, numbers), self.root / "labels.csv"
        if path.exists():
            inside = [name for name in files if name.split("/")[0].lower() == path.name]
            what = f"an image has the name {inside[0][:200]!r}, and the labels go to {path.name}"
            raise DataError(what, "the archive", _TO_ARRAYS)
        path.write_bytes(table)


def file_name(name: str) -> str:
    """Return the relative path of a PNG file for the name of an image, which may be anybody's.

    Raises:
        DataError: a name that leaves its folder, or that no file can have.
    """
    parts = name.split("/")
    wrong = {"", ".", ".."} & set(parts) or "\0" in name
    wrong = wrong or (os.name == "nt" and set(name) & set('\\:*?"<>|'))
    last = parts[-1] if parts[-1].lower().endswith(".png") else f"{parts[-1]}.png"
    if wrong:
        what = f"an image's name leaves its folder, or is no file's: {name[:200]!r}"
        raise DataError(what, "the archive", _TO_ARRAYS)
    if max(len(os.fsencode(each)) for each in (*parts, last)) > _LONGEST:
        end = "" if last == parts[-1] else ", with .png at its end,"
        what = f"an image's name{end} is longer than {_LONGEST} bytes: {name[:200]!r}"
        raise DataError(what, "the archive", _TO_ARRAYS)
    return "/".join((*parts[:-1], last))
