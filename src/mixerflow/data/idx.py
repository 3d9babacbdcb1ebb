"""MNIST's idx files: one array in a file, by its header; sets of them by their names."""

from __future__ import annotations

import gzip
import math
import re
import sys
import zlib
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from mixerflow.data.formats import (
    RawSplits,
    arranged,
    make_split,
    require_proportion,
    unreadable,
)
from mixerflow.data.signatures import sniff
from mixerflow.errors import DataError

_NAME = re.compile(
    r"(?P<name>.*?)[-_.]?(?P<split>train|t10k|test|val|valid|validation)[-_.]"
    r"(?P<kind>images|labels)[-.]idx\d-\w+(\.gz)?",
    re.IGNORECASE,
)
_SPLITS = {"train": "train", "t10k": "test", "test": "test"}
_REFUSED = (OSError, ValueError, EOFError, zlib.error)

IdxSet = dict[tuple[str, str], Path]
"""Files of one set by split (`train`, `test`, `validation`) and kind (`images`, `labels`)."""


def idx_sets(folder: Path) -> dict[Path, IdxSet]:
    """Find the sets of idx files in a folder, its `raw`, and the `raw` of its subfolders.

    Names are those of MNIST, EMNIST and torchvision, with any prefix; the content must look like
    idx. The key is what `load` takes for one set of several: the path without `-train-...`.
    """
    sets: dict[Path, IdxSet] = {}
    for place in (folder, folder / "raw", *sorted(folder.glob("*/raw"))):
        files = sorted(place.iterdir()) if place.is_dir() else []
        for path in files:  # a plain file sorts before its .gz
            match = _NAME.fullmatch(path.name)
            if match is None or not _may_be_idx(path):
                continue
            home = place.parent if place.name == "raw" and place != folder else place
            split = _SPLITS.get(match["split"].lower(), "validation")
            files_of_set = sets.setdefault(home / match["name"], {})
            files_of_set.setdefault((split, match["kind"].lower()), path)
    return sets


def only_set(sets: dict[Path, IdxSet], folder: Path) -> IdxSet:
    """Return the one set of a folder; several are a DataError that names them."""
    if len(sets) > 1:
        what = f"{len(sets)} sets of idx files"
        raise DataError(what, folder, f"give one of {', '.join(map(str, sets))}")
    return next(iter(sets.values()))


def read_idx_set(files: IdxSet, where: Path) -> RawSplits:
    """Read the splits of a set; test images alone are returned as training images."""
    splits = {}
    for split in ("train", "test", "validation"):
        images, labels = files.get((split, "images")), files.get((split, "labels"))
        if images:
            arrays = {"": read_idx(images)} | ({"labels": read_idx(labels)} if labels else {})
            splits[split] = make_split(arrays, "", "labels", images)
        elif labels:
            raise DataError("labels without images", where, f"put images beside {labels.name}")
    return arranged(splits, where)


def is_idx(path: Path) -> bool:
    """Whether a file starts as an idx file of bytes does, gzip or not."""
    try:
        with _open_idx(path) as file:
            start = file.read(4)
    except _REFUSED:
        return False
    return start[:3] == b"\0\0\x08" and len(start) == 4


def read_idx(path: Path) -> np.ndarray:
    """Read an idx file of bytes (`.gz` or plain) of any rank, as long as its header says."""
    try:
        with _open_idx(path) as file:
            head = file.read(4)
            if head[:3] != b"\0\0\x08" or len(head) < 4:
                remedy = "give one that starts with 00 00 08"
                raise DataError("not an idx file of bytes", path, remedy)
            sides = file.read(4 * head[3])
            if len(sides) < 4 * head[3]:
                raise DataError("an idx file cut off in its header", path, "fetch the file again")
            shape = tuple(int(n) for n in np.frombuffer(sides, ">u4"))
            require_proportion(path, math.prod(shape))
            content = file.read(min(math.prod(shape) + 1, sys.maxsize))
    except _REFUSED as error:
        raise unreadable(path, error) from error
    values = np.frombuffer(content, np.uint8)
    if values.size != math.prod(shape):
        what = f"{values.size} bytes where the header says {shape}"
        raise DataError(what, path, "fetch the file again")
    return values.reshape(shape)


def _open_idx(path: Path) -> BinaryIO:
    with path.open("rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    return cast(BinaryIO, gzip.open(path)) if zipped else path.open("rb")


def _may_be_idx(path: Path) -> bool:
    """Whether a file begins as idx of any type of number does, or gzip, or is cut off at once."""
    try:
        start = sniff(path)[:4] if path.is_file() else b"none"
    except OSError:  # reading it says why
        return True
    return len(start) < 4 or start[:2] in (b"\0\0", b"\x1f\x8b")
