"""The published sets that results are compared on: their names, their download, their content.

A set is recognised by its content in any file format: the number and shape of its images and,
where its digest is known, a digest of the images that does not depend on their order.
"""

from __future__ import annotations

import hashlib
import importlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from mixerflow.data.decode import Color, parse_transparency, to_array
from mixerflow.data.formats import RawSplit, RawSplits
from mixerflow.errors import DataError, first_line


@dataclass(frozen=True)
class NamedSet:
    """A published set of images.

    Args:
        shape: `(C, H, W)`.
        counts: numbers of training and of test (or official validation) images; None where
            publications differ.
        remedy: how a person gets the set.
        repository: name on the Hugging Face hub, None where the set is not there as published.
        column: name of the images' column in that repository.
        classes: names of the labels.
        digests: `content_digest` of training and test images.
    """

    shape: tuple[int, int, int]
    counts: tuple[int | None, int | None]
    remedy: str
    repository: str | None = None
    column: str = "image"
    classes: tuple[str, ...] = ()
    digests: tuple[str, str] | None = None


def _old_imagenet(side: int, torrent: str) -> NamedSet:
    remedy = (
        "the first version (van den Oord et al., 2016) is only on Academic Torrents:"
        f" https://academictorrents.com/details/{torrent}; unpack it and give"
        f" imagenet{side}-old:FOLDER"
    )
    return NamedSet((3, side, side), (1_281_149, 49_999), remedy)


def _new_imagenet(side: int) -> NamedSet:
    remedy = (
        f"sign in at https://image-net.org/download-images, fetch Imagenet{side}_train_npz and"
        f" Imagenet{side}_val_npz, unpack both into one folder and give imagenet{side}-new:FOLDER"
    )
    return NamedSet((3, side, side), (1_281_167, 50_000), remedy)


SETS: dict[str, NamedSet] = {
    "mnist": NamedSet(
        (1, 28, 28),
        (60_000, 10_000),
        "or give its four idx files: mnist:FOLDER",
        repository="ylecun/mnist",
        classes=tuple("0123456789"),
        digests=(
            "03a8a048601ebb4610dcd79cd759c718bed893982a4c153c4f33a41885101c0b",
            "e2842441ab1468bab7eeaa886875a3a7662245f3768610c4b4ca84d7ac309c70",
        ),
    ),
    "fashion-mnist": NamedSet(
        (1, 28, 28),
        (60_000, 10_000),
        "or give its four idx files (github.com/zalandoresearch/fashion-mnist):"
        " fashion-mnist:FOLDER",
        repository="zalando-datasets/fashion_mnist",
        classes=(
            *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
            *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
        ),
        digests=(
            "aa670e63ae523d8fb206db0595287cd9ecee8f29b1b8ea690da7712c7444eb56",
            "f966ad9a453e7d5ef297476fd4939780e707ce15a852b67597069832263d31bd",
        ),
    ),
    "cifar10": NamedSet(
        (3, 32, 32),
        (50_000, 10_000),
        "or unpack an archive of https://www.cs.toronto.edu/~kriz/cifar.html: cifar10:FOLDER",
        repository="uoft-cs/cifar10",
        column="img",
        classes=(
            *("airplane", "automobile", "bird", "cat", "deer"),
            *("dog", "frog", "horse", "ship", "truck"),
        ),
        digests=(
            "c4f3d45acfc15350af7065445e9de41001417180428b1d37e2fa37e634414112",
            "2b47ae852d2a691a0f721e2b78f55dfba705c73504ae93a00eda74c8e562b1a8",
        ),
    ),
    "imagenet32-old": _old_imagenet(32, "bf62f5051ef878b9c357e6221e879629a9b4b172"),
    "imagenet32-new": _new_imagenet(32),
    "imagenet64-old": _old_imagenet(64, "96816a530ee002254d29bf7a61c0c158d3dedc3b"),
    "imagenet64-new": _new_imagenet(64),
    "celeba64": NamedSet(
        (3, 64, 64),
        (None, None),
        "fetch CelebA (aligned and cropped) from https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html,"
        " scale it to 64 x 64 and give celeba64:FOLDER",
    ),
    "anime-faces": NamedSet(
        (3, 64, 64),
        (63_565, None),
        "fetch Anime Face Dataset from https://www.kaggle.com/datasets/splcher/animefacedataset,"
        " scale it to 64 x 64 and give anime-faces:FOLDER",
    ),
    "galaxy": NamedSet(
        (3, 32, 32),
        (5_000, None),
        "follow https://github.com/SpaceML/merger_transfer_learning, scale the non-interacting"
        " galaxies to 32 x 32 and give galaxy:FOLDER",
    ),
}


def fetch_from_hub(name: str, *, transparency: str = "refuse") -> RawSplits:
    """Fetch a set of `SETS` with Hugging Face's `datasets` (the extra `hub`).

    Raises:
        DataError: the set is not on the hub, `datasets` is not installed, or fetching failed.
    """
    known = SETS[name]
    if known.repository is None:
        raise DataError("not to be had from the Hugging Face hub", name, known.remedy)
    try:
        datasets = importlib.import_module("datasets")
    except ImportError as error:
        remedy = f"pip install 'mixerflow[hub]'; {known.remedy}"
        raise DataError("the package 'datasets' is not installed", name, remedy) from error
    try:
        splits = datasets.load_dataset(known.repository)
    except Exception as error:  # network, hub and cache each raise kinds of their own
        what = f"cannot be fetched ({first_line(error)})"
        raise DataError(what, name, f"check the network; {known.remedy}") from error
    if "train" not in splits:
        raise DataError("no training images", known.repository, known.remedy)
    ground = parse_transparency(transparency)
    train = _read_split(splits["train"], known, ground)
    test = _read_split(splits["test"], known, ground) if "test" in splits else None
    return RawSplits(train, test)


def _read_split(rows: Any, known: NamedSet, ground: Color | None) -> RawSplit:  # noqa: ANN401
    """Read one split, a sequence of rows `{column: picture, "label": number}`."""
    pixels = np.empty((len(rows), *known.shape), np.uint8)
    labels = []
    for index, row in enumerate(rows):
        where = f"{known.repository} [{index}]"
        image = to_array(row[known.column], where, ground)
        if image.shape != known.shape or image.dtype != np.uint8:
            what = f"an image of {image.shape} {image.dtype}, not {known.shape} uint8"
            raise DataError(what, where, known.remedy)
        pixels[index] = image
        labels.append(row.get("label"))
    if None in labels:
        return RawSplit(pixels, None)
    return RawSplit(pixels, np.array(labels, dtype=np.int64), known.classes)


def content_digest(pixels: np.ndarray) -> str:
    """SHA-256 (hex) of the images `(N, C, H, W)` as a set: their order does not change it."""
    digests = sorted(hashlib.sha256(image.tobytes()).digest() for image in pixels)
    return hashlib.sha256(b"".join(digests)).hexdigest()


def identify(train: np.ndarray, test: np.ndarray | None) -> str | None:
    """Return the name of the published set that has these pixels, image for image, or None."""
    for name, known in SETS.items():
        if known.digests and not _difference(known, train, test):
            return name
    return None


def confirm(name: str, train: np.ndarray, test: np.ndarray | None, where: object) -> None:
    """Refuse pixels that are not the published set `name`, as far as it is known."""
    if difference := _difference(SETS[name], train, test):
        raise DataError(f"not {name}: {difference}", where, "give the path without a name")


def _difference(known: NamedSet, train: np.ndarray, test: np.ndarray | None) -> str:
    """Return the first difference between these pixels and the known set, or an empty text."""
    splits = [("training", train, known.counts[0]), ("test", test, known.counts[1])]
    for kind, pixels, count in splits:
        if pixels is None:
            continue
        if pixels.shape[1:] != known.shape or pixels.dtype != np.uint8:
            return f"images are {pixels.shape[1:]} {pixels.dtype}, not {known.shape} uint8"
        if count is not None and len(pixels) != count:
            return f"{len(pixels):,} {kind} images, not {count:,}"
    for (kind, pixels, _), digest in zip(splits, known.digests or (), strict=False):
        if pixels is not None and content_digest(pixels) != digest:
            return f"other {kind} images"
    return ""
