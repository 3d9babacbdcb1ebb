"""The published sets that results are compared on, and how to tell whether data are one of them.

A set is recognised by its content whatever file it came in: the number and shape of its images
and, where it was to be had, a digest of them that does not depend on their order.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from mixerflow.errors import DataError

_IMAGENET_OLD = (
    "the first version (van den Oord et al., 2016) is only on Academic Torrents:"
    " https://academictorrents.com/details/{}; unpack it and give {}:FOLDER"
)
_IMAGENET_NEW = (
    "sign in at https://image-net.org/download-images, fetch Imagenet{}_train_npz and"
    " Imagenet{}_val_npz, unpack both into one folder and give {}:FOLDER"
)


@dataclass(frozen=True)
class NamedSet:
    """A published set of images.

    Args:
        shape: `(C, H, W)`.
        train: number of training images, None where publications differ.
        test: the same of test (or official validation) images.
        remedy: where a person gets it.
        repository: on the Hugging Face hub, None where the set is not there as published.
        column: of the images in that repository.
        classes: names of its labels.
        digests: `content_digest` of training and test images.
    """

    shape: tuple[int, int, int]
    train: int | None
    test: int | None
    remedy: str
    repository: str | None = None
    column: str = "image"
    classes: tuple[str, ...] = ()
    digests: tuple[str, str] | None = None


def _imagenet(side: int, *, torrent: str | None) -> NamedSet:
    name = f"imagenet{side}-{'old' if torrent else 'new'}"
    if torrent:
        remedy, counts = _IMAGENET_OLD.format(torrent, name), (1_281_149, 49_999)
    else:
        remedy, counts = _IMAGENET_NEW.format(side, side, name), (1_281_167, 50_000)
    return NamedSet((3, side, side), *counts, remedy)


SETS: dict[str, NamedSet] = {
    "mnist": NamedSet(
        (1, 28, 28),
        60_000,
        10_000,
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
        60_000,
        10_000,
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
        50_000,
        10_000,
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
    "imagenet32-old": _imagenet(32, torrent="bf62f5051ef878b9c357e6221e879629a9b4b172"),
    "imagenet32-new": _imagenet(32, torrent=None),
    "imagenet64-old": _imagenet(64, torrent="96816a530ee002254d29bf7a61c0c158d3dedc3b"),
    "imagenet64-new": _imagenet(64, torrent=None),
    "celeba64": NamedSet(
        (3, 64, 64),
        None,
        None,
        "fetch CelebA (aligned and cropped) from https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html,"
        " scale it to 64 x 64 and give celeba64:FOLDER",
    ),
    "anime-faces": NamedSet(
        (3, 64, 64),
        63_565,
        None,
        "fetch Anime Face Dataset from https://www.kaggle.com/datasets/splcher/animefacedataset,"
        " scale it to 64 x 64 and give anime-faces:FOLDER",
    ),
    "galaxy": NamedSet(
        (3, 32, 32),
        5_000,
        None,
        "follow https://github.com/SpaceML/merger_transfer_learning, scale the non-interacting"
        " galaxies to 32 x 32 and give galaxy:FOLDER",
    ),
}


def content_digest(pixels: np.ndarray) -> str:
    """SHA-256 (hex) of the images `(N, C, H, W)` as a set: the same in whatever order they are."""
    each = sorted(hashlib.sha256(image.tobytes()).digest() for image in pixels)
    return hashlib.sha256(b"".join(each)).hexdigest()


def identify(train: np.ndarray, test: np.ndarray | None) -> str | None:
    """The name of the published set that these pixels are, image for image, if they are one."""
    for name, known in SETS.items():
        if known.digests and not _difference(known, train, test):
            return name
    return None


def confirm(name: str, train: np.ndarray, test: np.ndarray | None, where: object) -> None:
    """Check that data that are said to be the set `name` are it, as far as can be known.

    Raises:
        DataError: counts, shape or content are not its.
    """
    if difference := _difference(SETS[name], train, test):
        raise DataError(f"not {name}: {difference}", where, "give the path without a name")


def _difference(known: NamedSet, train: np.ndarray, test: np.ndarray | None) -> str:
    """In what these pixels are not the known set; empty where in nothing."""
    parts = (("training", train, known.train, 0), ("test", test, known.test, 1))
    for kind, pixels, count, _ in parts:
        if pixels is None:
            continue
        if pixels.shape[1:] != known.shape or pixels.dtype != np.uint8:
            return f"images are {pixels.shape[1:]} {pixels.dtype}, not {known.shape} uint8"
        if count is not None and len(pixels) != count:
            return f"{len(pixels):,} {kind} images, not {count:,}"
    for kind, pixels, _, index in parts:
        if known.digests and pixels is not None and content_digest(pixels) != known.digests[index]:
            return f"other {kind} images"
    return ""
