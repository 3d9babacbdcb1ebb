"""`load`: checked images from the name of a set, or from the path of a file or folder."""

from __future__ import annotations

import difflib
import lzma
from importlib import resources
from pathlib import Path

import numpy as np

from mixerflow.data import formats
from mixerflow.data.batch_files import batch_files, read_batches
from mixerflow.data.dataset import Images, Splits, make_images
from mixerflow.data.folder import OnBadImage, read_folder
from mixerflow.data.formats import RawSplit, RawSplits
from mixerflow.data.published_sets import SETS, confirm, fetch_from_hub, identify
from mixerflow.errors import DataError

EMBEDDED = "fashion-mini"


def names() -> tuple[str, ...]:
    """Return the names of sets that `load` knows."""
    return (EMBEDDED, *SETS)


def load(
    spec: str | Path,
    *,
    transparency: str = "refuse",
    on_bad_image: OnBadImage = "stop",
    cache: Path | None = None,
) -> Splits:
    """Load training and, where there are any, test images.

    Args:
        spec: one of `names()`; or a folder of images; an .npz, .npy or idx file; a folder of
            MNIST's idx files, or of CIFAR's or small ImageNet's batches; or `NAME:PATH`, which
            reads the path and checks that it holds the published set of that name.
        transparency: `refuse`, or the colour to put transparent images on, such as `#ffffff`.
        on_bad_image: at a bad file in a folder, `stop`, or leave the file out (`skip`) and list it
            in `Images.skipped`.
        cache: folder for the decoded pixels of large sets; by default the user's cache folder.

    Raises:
        DataError: there are no such data, or they cannot be used.
        ConfigError: `transparency` is not a colour.
    """
    spec = str(spec)
    if spec == EMBEDDED:
        return _embedded_set()
    if spec in SETS:
        return _checked_splits(fetch_from_hub(spec, transparency=transparency), f"hub:{spec}")
    name, _, rest = spec.partition(":")
    claimed = name in SETS
    path = _existing_path(rest if claimed else spec)
    if not path.is_dir():
        raw = _read_file(path)
    elif idx := formats.idx_files(path):
        raw = formats.read_idx_folder(idx, path)
    elif any(batches := batch_files(path)):
        raw = read_batches(batches, path)
    else:
        raw = read_folder(
            path, transparency=transparency, on_bad_image=on_bad_image, cache=cache
        )
    if claimed:
        confirm(name, raw.train.pixels, raw.test.pixels if raw.test else None, path)
        return _checked_splits(raw, name)
    kind = "folder" if path.is_dir() else path.suffix.lstrip(".").lower() or "file"
    return _checked_splits(raw, f"{kind}:{path.resolve().name}")


def _existing_path(text: str) -> Path:
    """Return the path, which exists and can be read."""
    path = Path(text).expanduser()
    try:
        if not text or not path.exists():
            raise _missing_path(text, path)
        if path.is_dir():
            next(path.iterdir(), None)
        elif not path.is_file():
            raise DataError("neither a file nor a folder", path, "give one of these")
    except OSError as error:
        raise formats.unreadable(path, error) from error
    return path


def _missing_path(spec: str, path: Path) -> DataError:
    """Return the error for a path that does not exist: perhaps a misspelt set or file."""
    if near := difflib.get_close_matches(spec.lower(), names(), n=1):
        return DataError("no such data set or path", spec, f"did you mean {near[0]}?")
    siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    if near := difflib.get_close_matches(path.name, siblings, n=1):
        return DataError("no such path", path, f"did you mean {path.parent / near[0]}?")
    return DataError("no such path", path, f"give a path or one of {', '.join(names())}")


def _read_file(path: Path) -> RawSplits:
    if path.suffix.lower() in (".npz", ".npy"):
        return formats.read_arrays(path)
    if formats.is_idx(path):
        return formats.read_idx_folder({"train-images": path}, path.parent)
    if any(batches := batch_files(path)):
        return read_batches(batches, path)
    remedy = "give an .npz, .npy or idx file, a CIFAR batch, or a folder of images"
    raise DataError("not a file of images that is known here", path, remedy)


def _checked_splits(raw: RawSplits, dataset_id: str) -> Splits:
    """Check the splits; the content of a published set gets the set's name."""
    train, test, validation = raw
    if validation is not None:
        line = f"{len(validation.pixels):,} validation images: not used"
        train = train._replace(skipped=(*train.skipped, line))
    if dataset_id not in SETS:
        dataset_id = identify(train.pixels, test.pixels if test else None) or dataset_id

    def images(split: RawSplit) -> Images:
        pixels, labels, classes, skipped = split
        if labels is not None and not classes and dataset_id in SETS:
            classes = SETS[dataset_id].classes
        return make_images(pixels, labels, dataset_id=dataset_id, classes=classes, skipped=skipped)

    return Splits(images(train), images(test) if test else None)


def _embedded_set() -> Splits:
    """The set inside the package, which `tools/make_fashion_mini.py` makes."""
    source = resources.files("mixerflow.data").joinpath("fashion_mini.npz")
    with source.open("rb") as file, np.load(file, allow_pickle=False) as packed:
        shape = tuple(int(n) for n in packed["shape"])
        pixels = np.frombuffer(lzma.decompress(packed["pixels_xz"].tobytes()), np.uint8)
        labels, train = packed["labels"].astype(np.int64), int(packed["train"])
    pixels, classes = pixels.reshape(shape), SETS["fashion-mnist"].classes
    raw = RawSplits(
        RawSplit(pixels[:train], labels[:train], classes),
        RawSplit(pixels[train:], labels[train:], classes),
    )
    return _checked_splits(raw, EMBEDDED)
