"""Bits/dim of lossless codecs on a sample of images; the lengths of the files are kept."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from PIL import features

from mixerflow.caches import store, user_cache, without_digest
from mixerflow.core import Flow
from mixerflow.data import Images
from mixerflow.means import mean_and_error
from mixerflow.pictures import SETTINGS, PictureCodec, encoded, installed, sheets
from mixerflow.transforms import ShufflePixels

SAMPLE = 250
"""Images by default: WebP codes some 70 of 32 x 32 pixels a second and thread."""
_SEED = 0


@dataclass(frozen=True)
class CodecBits:
    """Bits/dim of a codec, headers included; None where it has no such images.

    Attributes:
        codec: the codec, see `mixerflow.pictures.codec_bits`.
        sheet: whether all images are one picture; otherwise each is a file.
        images: number of images.
        bits_per_dim: mean over the images.
        standard_error: of that mean, over images; None for a sheet, and for one image.
    """

    codec: PictureCodec
    sheet: bool
    images: int
    bits_per_dim: float | None = None
    standard_error: float | None = None

    @property
    def name(self) -> str:
        """The codec, and what is a file."""
        return f"{self.codec}, {'one sheet' if self.sheet else 'a file an image'}"


def sample_of(images: Images, count: int) -> np.ndarray:
    """Return the positions of `count` images, drawn once and for all; of more, the first ones.

    A larger sample holds a smaller one.
    """
    return np.random.default_rng(_SEED).permutation(len(images))[:count]


def shuffle_of(flow: Flow) -> ShufflePixels | None:
    """Return the transform that shuffles the flow's images, if it has one."""
    shuffles = (module for module in flow.modules() if isinstance(module, ShufflePixels))
    return next(shuffles, None)


def coded_as_seen(
    flow: Flow,
    images: Images,
    *,
    count: int = SAMPLE,
    on_file: Callable[[int, int], None] | None = None,
) -> list[CodecBits]:
    """Code a sample of images as the flow sees them; lengths of files are in the user's cache.

    Images of a flow that shuffles its pixels are coded shuffled. `count` and `on_file` are those of
    `codec_rows`.
    """
    shuffle, order = shuffle_of(flow), ""
    if shuffle is not None:
        order = hashlib.sha256(shuffle.order.cpu().numpy().tobytes()).hexdigest()

    def seen(pixels: np.ndarray) -> np.ndarray:
        if shuffle is None:
            return pixels
        places = shuffle.order.cpu().numpy()  # torch indexes no 16-bit pixels
        return pixels.reshape(*pixels.shape[:2], -1)[..., places].reshape(pixels.shape)

    return codec_rows(
        images,
        count=count,
        seen=seen,
        order=order,
        threads=torch.get_num_threads(),
        cache=user_cache() / "codecs",
        on_file=on_file,
    )


def coded_in_seconds(flow: Flow, images: Images) -> list[CodecBits]:
    """Code images for a few seconds: `SAMPLE` of 32 x 32 pixels, and fewer of larger ones."""
    count = SAMPLE * 3 * 32**2 // images.pixels[0].size
    return coded_as_seen(flow, images, count=min(SAMPLE, max(1, count)))


def without_files(rows: list[CodecBits], images: Images) -> str:
    """Return words for the codecs that have no such images; "" where each has some."""
    missing = sorted({row.codec for row in rows if row.bits_per_dim is None})
    if not missing:
        return ""
    channels, axes = images.shape[0], len(images.shape) - 1
    kind = f"{channels} channel{'' if channels == 1 else 's'} of {images.pixels.dtype}"
    kind += "" if axes == 2 else f" and {axes} spatial axes"
    return f"{' and '.join(missing)}: no files of images with {kind}"


def codec_rows(
    images: Images,
    *,
    count: int = SAMPLE,
    seen: Callable[[np.ndarray], np.ndarray] = lambda pixels: pixels,
    order: str = "",
    threads: int = 1,
    cache: Path | None = None,
    on_file: Callable[[int, int], None] | None = None,
) -> list[CodecBits]:
    """Code a sample of images with PNG, WebP and, where it is installed, JPEG XL.

    See `mixerflow.pictures.codec_bits`.

    Args:
        images: images ``(N, C, H, W)``.
        count: images of the sample, at least 1, see `sample_of`.
        seen: makes of pixels ``(n, C, H, W)`` those that are coded.
        order: names what `seen` does; lengths of another order are not used.
        threads: threads that code.
        cache: folder that keeps the lengths of the files, for the same images; a stopped call, or
            one for more images, goes on with them. What cannot be written is a warning.
        on_file: called with the number of files done and of all, now and after each. What it raises
            stops the call, after the files that are being coded; the lengths so far are kept.

    Raises:
        ValueError: a count below 1.
    """
    if count < 1:
        raise ValueError(f"codec_rows: count {count}: give at least 1")
    places = sample_of(images, count)
    cells = np.moveaxis(seen(images.pixels[places]), 1, -1)
    key = {"images_sha256": images.fingerprint(), "order": order, "pillow": PIL.__version__}
    rows: list[tuple[PictureCodec, _Lengths | None, _Lengths | None]] = []
    jobs: list[tuple[_Lengths, int, Callable[[], int]]] = []
    whole: list[tuple[_Lengths, int, Callable[[], int]]] = []  # last: no stop reaches into one
    for codec in installed():
        own = key | {"codec": codec, "library": _library(codec)}
        own |= {"settings": SETTINGS[codec]}
        try:
            encoded(cells[0], codec)
            pictures = list(sheets(cells))
        except ValueError:  # no such images, or no sheet of them
            rows.append((codec, None, None))
            continue
        sheet = _Lengths(own | {"sheet": len(places)}, 1, cache)
        files = _Lengths(own, len(images), cache)
        rows.append((codec, files, sheet))
        whole.append((sheet, 0, lambda c=codec, p=pictures: sum(len(encoded(x, c)) for x in p)))
        for place, cell in zip(places, cells, strict=True):
            jobs.append((files, place, lambda c=codec, x=cell: len(encoded(x, c))))
    jobs += whole
    try:
        _run(jobs, threads, on_file or (lambda done, total: None))
    finally:
        for lengths in {id(lengths): lengths for lengths, _, _ in jobs}.values():
            lengths.save()
    size = images.pixels[0].size
    found = (_rows(codec, files, sheet, places, size) for codec, files, sheet in rows)
    return [row for each in found for row in each]


def _library(codec: PictureCodec) -> str | None:
    """Return the version of what makes the codec's files."""
    if codec == "jxl":
        return version("pillow-jxl-plugin")
    return features.version("zlib" if codec == "png" else codec)


def _rows(
    codec: PictureCodec,
    files: _Lengths | None,
    sheet: _Lengths | None,
    places: np.ndarray,
    size: int,
) -> list[CodecBits]:
    count = len(places)
    if files is None or sheet is None:
        return [CodecBits(codec, whole, count) for whole in (False, True)]
    bits = 8 * files.lengths[places] / size
    mean, error = mean_and_error(bits)
    whole = 8 * int(sheet.lengths[0]) / (size * count)
    return [
        CodecBits(codec, False, count, mean, error),
        CodecBits(codec, True, count, whole),
    ]


def _run(
    jobs: list[tuple[_Lengths, int, Callable[[], int]]],
    threads: int,
    on_file: Callable[[int, int], None],
) -> None:
    """Do the jobs whose lengths are not known; the codecs' work needs no lock of Python's."""
    done = sum(bool(lengths.lengths[place]) for lengths, place, _ in jobs)
    on_file(done, len(jobs))
    pool = ThreadPoolExecutor(threads)
    missing = [job for job in jobs if not job[0].lengths[job[1]]]
    waiting = {pool.submit(work): (lengths, place) for lengths, place, work in missing}
    try:
        for future in as_completed(waiting):
            future.result()
            done += 1
            on_file(done, len(jobs))
    finally:
        pool.shutdown(cancel_futures=True)
        for future, (lengths, place) in waiting.items():
            if not future.cancelled() and future.exception() is None:
                lengths.lengths[place] = future.result()


class _Lengths:
    """Bytes of files, 0 where they are not known, and the file that keeps them.

    It begins with the SHA-256 of its key and its content. One of another SHA-256 is computed again.

    Args:
        key: all that a length depends on, for JSON.
        count: number of files.
        folder: where it is; None keeps nothing.

    Attributes:
        lengths: ``(count,)`` integers.
    """

    def __init__(self, key: dict[str, Any], count: int, folder: Path | None) -> None:
        self._key = json.dumps(key, sort_keys=True).encode()
        name = hashlib.sha256(self._key).hexdigest()[:32]
        self._path = None if folder is None else folder / f"{name}.lengths"
        self.lengths = np.zeros(count, np.int64)
        self._read()
        self._known = np.count_nonzero(self.lengths)

    def save(self) -> None:
        """Write the file, if there are more lengths than it has."""
        if self._path is None or np.count_nonzero(self.lengths) == self._known:
            return
        data = self.lengths.astype("<i8").tobytes()
        try:
            store(self._path, data, self._key + b" ")
        except OSError as error:
            warnings.warn(f"the codecs' figures are not kept: {error}", stacklevel=3)

    def _read(self) -> None:
        if self._path is None:
            return
        try:
            data = without_digest(self._path.read_bytes(), self._key + b" ")
        except OSError:
            return
        if data is not None and len(data) == self.lengths.nbytes:
            self.lengths = np.frombuffer(data, "<i8").astype(np.int64)
        else:
            warnings.warn(f"coded again: SHA-256 differs: {self._path}", stacklevel=4)
