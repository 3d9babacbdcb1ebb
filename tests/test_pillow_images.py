"""Every image of Pillow's own tests is read without loss, or refused in one line.

The folder is `Tests/images` of Pillow's repository, which this repository does not hold:

    git clone --depth 1 https://github.com/python-pillow/Pillow
    MIXERFLOW_PILLOW_IMAGES=Pillow/Tests/images pytest -m slow tests/test_pillow_images.py
"""

import collections
import io
import os
import resource
import subprocess
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from mixerflow.data import load
from mixerflow.data.decode import read_image
from mixerflow.data.losses import loss
from mixerflow.data.signatures import READ_FORMATS
from mixerflow.errors import DataError

FOLDER = os.environ.get("MIXERFLOW_PILLOW_IMAGES", "")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not FOLDER, reason="MIXERFLOW_PILLOW_IMAGES names no folder"),
]


def independent(path: Path) -> np.ndarray:
    """The pixels by way of an 8-bit RGB, or 16-bit grey, PNG written and read again."""
    out = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(path, formats=READ_FORMATS) as image:
            image.load()
            upright = ImageOps.exif_transpose(image)
    deep = upright.mode.startswith("I")
    upright = upright.convert("I;16") if upright.mode == "I" else upright
    (upright if deep else upright.convert("RGB")).save(out, "PNG")
    array = np.asarray(Image.open(out))
    return array[None] if deep else np.moveaxis(array, -1, 0)


def test_each_file_is_read_as_it_is_or_refused(monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("another process"))
    monkeypatch.setattr(os, "system", lambda *_: pytest.fail("another process"))
    files = sorted(path for path in Path(FOLDER).rglob("*") if path.is_file())
    assert len(files) > 500
    reasons: collections.Counter[str] = collections.Counter()
    warnings.simplefilter("error")
    for path in files:
        start = time.monotonic()
        try:
            array = read_image(path)
        except DataError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            reasons[error.what] += 1
        else:
            reasons["read"] += 1
            expected = independent(path)
            assert array.shape[1:] == expected.shape[1:], path
            assert np.array_equal(np.broadcast_to(array, expected.shape), expected), path
        assert time.monotonic() - start < 20, path
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 4 << 20  # KiB
    for reason, count in reasons.most_common():
        print(f"{count:5} {reason}")
    assert reasons["read"] > len(files) / 3


def test_the_folder_as_a_whole_loses_no_file():
    """Each visible file is kept, or named in a line of `skipped`, or counted in one."""
    train = load(FOLDER, on_bad_image="skip").train
    counted = [line.split(": ")[1].split(" files are ") for line in train.skipped]
    others = sum(int(parts[0].replace(",", "")) if len(parts) > 1 else 1 for parts in counted)
    assert len(train) + others == sum(path.is_file() for path in Path(FOLDER).rglob("*"))


def test_no_file_is_read_from_which_a_further_band_or_page_is_lost():
    """Pillow's own count of bands and pages, for every file that is read."""
    for path in sorted(path for path in Path(FOLDER).rglob("*") if path.is_file()):
        try:
            array = read_image(path)
        except DataError:
            continue
        with Image.open(path, formats=READ_FORMATS) as image:
            assert not loss(image, path.read_bytes()), path
            assert image.format == "MPO" or getattr(image, "n_frames", 1) == 1, path
            bits = getattr(image, "tag_v2", {}).get(258, ())
            assert not bits or max(bits) <= 8 * array.itemsize, path
