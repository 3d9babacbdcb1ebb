"""`load`: checked images from the name of a set, or from the path of a file or folder."""

from __future__ import annotations

import difflib
import lzma
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from mixerflow.data.batch_files import batch_files, read_batches
from mixerflow.data.dataset import Images, Splits, make_images
from mixerflow.data.decode import parse_transparency, read_image
from mixerflow.data.folder import read_folder
from mixerflow.data.formats import (
    RawSplit,
    RawSplits,
    holds_arrays,
    read_npy,
    read_npz,
    unreadable,
    with_line,
)
from mixerflow.data.idx import IdxSet, idx_sets, is_idx, only_set, read_idx_set
from mixerflow.data.listing import count_line
from mixerflow.data.published_sets import SETS, confirm, fetch_from_hub, identify
from mixerflow.data.reading import Reading
from mixerflow.data.signatures import has_image_ending, image_format, sniff
from mixerflow.errors import DataError, printable

EMBEDDED = "fashion-mini"


def names() -> tuple[str, ...]:
    """Return the names of sets that `load` knows."""
    return (EMBEDDED, *SETS)


def load(
    spec: str | Path,
    *,
    reading: Reading | None = None,
    cache: Path | None = None,
    **settings: Any,  # noqa: ANN401 - each has the type that `Reading` gives it
) -> Splits:
    """Load training and, where there are any, test and validation images.

    Args:
        spec: one of `names()`; or a folder of images; an image; an .npz, .npy or idx file; a
            folder of MNIST's idx files, or of CIFAR's or small ImageNet's batches; or `NAME:PATH`,
            which reads the path and checks that it holds the published set of that name. One of
            several idx sets in a folder is named by the path without `-train-images...`. Content
            decides what a file is, not its ending.
        reading: how images are read.
        cache: folder for the decoded pixels of large sets; by default the user's cache folder.
        **settings: settings of `Reading` by name, `crop="1:1", resize="64"`, which go before those
            of `reading`.

    Raises:
        DataError: there are no such data, or they cannot be used, or a name is also a path here.
        ConfigError: a setting of `reading` that cannot be.
    """
    spec, reading = str(spec), replace(reading or Reading(), **settings)
    name, path = _parsed(spec)
    if path is None:
        _refuse_two_meanings(spec)
        if spec == EMBEDDED:
            return _checked_splits(_embedded_set(), reading, spec)
        raw = fetch_from_hub(spec, transparency=reading.transparency)
        return _checked_splits(raw, reading, f"hub:{spec}")
    raw = _read_arrays(path, reading)
    kind = "folder" if path.is_dir() else path.suffix.lstrip(".").lower() or "file"
    dataset_id = name or printable(f"{kind}:{path.resolve().name}")
    if raw is None:
        raw = read_folder(path, reading=reading, cache=cache)
        if name:
            _confirm(name, raw, path)
        return _named(raw, reading.changes, dataset_id)
    if name:
        _confirm(name, raw, path)
    return _checked_splits(raw, reading, dataset_id)


def path_of(spec: str | Path) -> Path | None:
    """Return the path whose content alone `load` would read; None for a set known by its name."""
    name, path = _parsed(str(spec))
    return None if name else path


def open_arrays(spec: str | Path, reading: Reading) -> RawSplits | None:
    """Return the images of a file or a set as they are stored; None for a folder of pictures.

    An .npy file stays a memory map. Of `reading` only what concerns files counts; `Reading.apply`
    does the rest.

    Raises:
        DataError: there are no such data, or they cannot be read.
    """
    path = path_of(spec)
    if path is not None:
        return _read_arrays(path, reading)
    as_stored = replace(reading, crop="none", resize="none", grey=False)

    def raw(images: Images | None) -> RawSplit | None:
        if images is None:
            return None
        return RawSplit(images.pixels, images.labels, images.classes, images.skipped, images.files)

    splits = load(spec, reading=as_stored)
    train = raw(splits.train)
    assert train is not None
    return RawSplits(train, raw(splits.test), raw(splits.validation))


def require_data(spec: str) -> None:
    """Raise the DataError of `load` for a path that does not exist, before any image is read."""
    _, path = _parsed(spec)
    if path is not None and not _one_of_several(path):
        _require_path(path)


def _parsed(spec: str) -> tuple[str, Path | None]:
    """Return the set that a spec says a path has, if it says one, and the path; None for a set."""
    name, colon, rest = spec.partition(":")
    claimed = bool(colon) and name in SETS
    if colon and name == EMBEDDED:
        raise DataError("a set without a path", spec, f"give a path or {EMBEDDED}")
    if not (rest if claimed else spec).strip():
        what = f"no path after {spec}" if claimed else "no images are named"
        raise DataError(what, "--data", f"give a path or one of {', '.join(names())}")
    if spec in names():
        return "", None
    return name if claimed else "", Path(rest if claimed else spec).expanduser()


def _refuse_two_meanings(name: str) -> None:
    """Refuse the name of a set that is also a path here."""
    if Path(name).exists():
        remedy = f"give ./{name} for the path"
        remedy += "" if name == EMBEDDED else f", or {name}:{name} if it should be that set"
        raise DataError("a set's name, and also a path here", name, f"{remedy}, or rename the path")


def _read_arrays(path: Path, reading: Reading) -> RawSplits | None:
    """Read a file of images or a folder of such files; None for a folder of pictures."""
    if idx := _one_of_several(path):
        return read_idx_set(idx, path)
    _require_path(path)
    if not path.is_dir():
        return _read_file(path, reading)
    if sets := idx_sets(path):
        idx = only_set(sets, path)
        return _others_named(read_idx_set(idx, path), path, list(idx.values()))
    if any(batches := batch_files(path)):
        return _others_named(read_batches(batches, path), path, [*batches[0], *batches[1]])
    return None


def _confirm(name: str, raw: RawSplits, path: Path) -> None:
    confirm(name, raw.train.pixels, raw.test.pixels if raw.test else None, path)


def _require_path(path: Path) -> None:
    """Refuse a path that is neither a file nor a folder, or cannot be read."""
    try:
        if not path.exists():
            raise _missing_path(path)
        if path.is_dir():
            next(path.iterdir(), None)
        elif not path.is_file():
            raise DataError("neither a file nor a folder", path, "give one of these")
    except OSError as error:
        raise unreadable(path, error) from error


def _missing_path(path: Path) -> DataError:
    """Return the error for a path that does not exist: perhaps a misspelt set or file."""
    if str(path).startswith("hf:/"):
        remedy = "download them first, such as with `hf download`, and name the folder"
        return DataError("images are not read from the hub", path, remedy)
    if near := difflib.get_close_matches(str(path).lower(), names(), n=1):
        return DataError("no such data set or path", path, f"did you mean {near[0]}?")
    siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    if near := difflib.get_close_matches(path.name, siblings, n=1):
        return DataError("no such path", path, f"did you mean {path.parent / near[0]}?")
    return DataError("no such path", path, f"give a path or one of {', '.join(names())}")


def _one_of_several(path: Path) -> IdxSet | None:
    """Return the set of idx files that a path names, which is no file or folder itself."""
    try:
        if path.exists() or not path.parent.is_dir():
            return None
        return idx_sets(path.parent).get(path)
    except (OSError, ValueError):  # a name that no file can have
        return None


def _others_named(raw: RawSplits, folder: Path, used: list[Path]) -> RawSplits:
    """Add a line on the folder's other files, which are not used."""
    others = [path for path in folder.rglob("*") if path not in used and not path.is_dir()]
    names = [path.relative_to(folder).as_posix() for path in others]
    return with_line(raw, count_line(names, "not used", folder)) if names else raw


def _read_file(path: Path, reading: Reading) -> RawSplits:
    try:
        head = sniff(path)
    except OSError as error:
        raise unreadable(path, error) from error
    kind, ending = image_format(head), path.suffix.lower()
    if any(batches := batch_files(path)):
        return read_batches(batches, path)
    if head.startswith(b"\x93NUMPY") or (ending == ".npy" and not kind and head[:2] != b"PK"):
        return read_npy(path)
    if holds_arrays(path) or (ending == ".npz" and not kind):
        return read_npz(path)
    if is_idx(path):
        return read_idx_set({("train", "images"): path}, path.parent)
    if kind or has_image_ending(path):
        image = read_image(path, parse_transparency(reading.transparency))
        return RawSplits(RawSplit(image[None], None, files=(path.name,)))
    remedy = "give an image, an .npz, .npy or idx file, a CIFAR batch, or a folder of images"
    raise DataError("not a file of images that is known here", path, remedy)


def _checked_splits(raw: RawSplits, reading: Reading, dataset_id: str) -> Splits:
    """Change arrays as `reading` says, then check and name them."""

    def changed(split: RawSplit) -> RawSplit:
        return split._replace(pixels=reading.apply_to_all(split.pixels, dataset_id))

    new = RawSplits(changed(raw.train), *(each and changed(each) for each in raw[1:]))
    same = new.train.pixels is raw.train.pixels  # all have one shape, or are refused
    return _named(new, "" if same else reading.changes, dataset_id)


def _named(raw: RawSplits, changes: str, dataset_id: str) -> Splits:
    """Check the splits; the content of a published set has the set's name, and no other content."""
    known = SETS.get(dataset_id.removeprefix("hub:"))
    if changes:
        dataset_id = f"{dataset_id} ({changes})"
    if dataset_id not in SETS:
        test = raw.test.pixels if raw.test else None
        dataset_id = identify(raw.train.pixels, test) or dataset_id
        known = SETS.get(dataset_id, known)

    def images(split: RawSplit) -> Images:
        pixels, labels, classes, skipped, files = split
        if labels is not None and labels.ndim == 1 and not classes and known is not None:
            classes = known.classes
        told = {"dataset_id": dataset_id, "classes": classes}
        return make_images(pixels, labels, **told, skipped=skipped, files=files)

    train, test, validation = (each and images(each) for each in raw)
    assert train is not None
    return Splits(train, test, validation)


def _embedded_set() -> RawSplits:
    """The set inside the package, which `tools/make_fashion_mini.py` makes."""
    source = resources.files("mixerflow.data").joinpath("fashion_mini.npz")
    with source.open("rb") as file, np.load(file, allow_pickle=False) as packed:
        shape = tuple(int(n) for n in packed["shape"])
        pixels = np.frombuffer(lzma.decompress(packed["pixels_xz"].tobytes()), np.uint8)
        labels, train = packed["labels"].astype(np.int64), int(packed["train"])
    pixels, classes = pixels.reshape(shape), SETS["fashion-mnist"].classes
    return RawSplits(
        RawSplit(pixels[:train], labels[:train], classes),
        RawSplit(pixels[train:], labels[train:], classes),
    )
