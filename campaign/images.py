"""Damaged and forged image files of every format that is read.

Each is read, or refused in one line, within memory that its header or its size allows.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import pickle
import random
import resource
import signal
import struct
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from campaign.base import Found, Outcome, Row, prepared

FILES = 100
"""Files in a trial."""
_SECONDS, _ADDRESSES, _MEMORY = 20, 4 << 30, 1 << 30
"""Limits of one file's reading, and of the memory of all files of a trial together."""
NUMBERS = (0, 1, 2, 127, 128, 255)
WORDS = (0, 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 10**6)


def _picture(kind: str, mode: str, **settings: object) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 14, 4), np.uint8)
    if mode == "I;16":
        image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    else:
        image = Image.fromarray(pixels[..., :3]).convert(mode)
    with io.BytesIO() as file:
        image.save(file, kind, **settings)
        return file.getvalue()


def _arrays(**arrays: np.ndarray) -> bytes:
    with io.BytesIO() as file:
        np.savez_compressed(file, **arrays)
        return file.getvalue()


def _npy(array: np.ndarray) -> bytes:
    with io.BytesIO() as file:
        np.save(file, array)
        return file.getvalue()


def samples() -> dict[str, bytes]:
    """Return a good file of every kind that is read, by its name; images are small."""
    grey = np.random.default_rng(0).integers(0, 256, (6, 5, 5), np.uint8)
    rows = np.random.default_rng(1).integers(0, 256, (4, 3072), np.uint8)
    labels = np.arange(4) % 2
    idx = b"\0\0\x08\x03" + struct.pack(">3I", *grey.shape) + grey.tobytes()
    batch = {b"data": rows, b"labels": labels.tolist()}
    images = {
        "rgb.png": ("PNG", "RGB"),
        "deep.png": ("PNG", "I;16"),
        "palette.png": ("PNG", "P"),
        "alpha.png": ("PNG", "RGBA"),
        "two.png": ("PNG", "1"),
        "rgb.jpg": ("JPEG", "RGB"),
        "grey.jpg": ("JPEG", "L"),
        "a.gif": ("GIF", "P"),
        "rgb.bmp": ("BMP", "RGB"),
        "palette.bmp": ("BMP", "P"),
        "rgb.webp": ("WEBP", "RGB"),
        "rgb.ppm": ("PPM", "RGB"),
        "grey.pgm": ("PPM", "L"),
        "rgb.tif": ("TIFF", "RGB"),
        "deep.tif": ("TIFF", "I;16"),
    }
    return {
        **{name: _picture(*each) for name, each in images.items()},
        "progressive.jpg": _picture("JPEG", "RGB", progressive=True),
        "lossless.webp": _picture("WEBP", "RGB", lossless=True),
        "lzw.tif": _picture("TIFF", "RGB", compression="tiff_lzw"),
        "jpeg.tif": _picture("TIFF", "RGB", compression="jpeg"),
        "deflate.tif": _picture("TIFF", "L", compression="tiff_adobe_deflate"),
        "a.npz": _arrays(train_images=grey, train_labels=np.arange(6)),
        "a.npy": _npy(grey),
        "x-images-idx3-ubyte": idx,
        "y-images-idx3-ubyte.gz": gzip.compress(idx),
        "data_batch_1": pickle.dumps(batch, protocol=2),
        "data_batch_2.bin": np.c_[labels.astype(np.uint8)[:, None], rows].tobytes(),
        "train_data_batch_1.npz": _arrays(data=rows, labels=labels + 1),
    }


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Return a file with bits, bytes or words changed, or parts cut, doubled or moved.

    Half of the changes fall on the first 200 bytes, where headers are.
    """
    made = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 5, 30])):
        end = min(len(made), rng.choice([200, len(made)]))
        at = rng.randrange(end) if end else 0
        kind = rng.choice(["bit", "byte", "word", "word", "cut", "double", "drop", "noise"])
        if kind == "bit" and made:
            made[at] ^= 1 << rng.randrange(8)
        elif kind == "byte" and made:
            made[at] = rng.choice(NUMBERS)
        elif kind == "word":
            form = rng.choice(["<I", ">I", "<H", ">H"])
            word = struct.pack(form, rng.choice(WORDS) % (1 << 8 * struct.calcsize(form)))
            made[at : at + len(word)] = word
        elif kind == "cut" and rng.random() < 0.3:
            del made[at:]
        elif kind == "double":
            made[at:at] = made[at : at + rng.randrange(1, 64)]
        elif kind == "drop":
            del made[at : at + rng.randrange(1, 16)]
        elif kind == "noise":
            made[at : at + 8] = rng.randbytes(8)
    return bytes(made)


def check(read: Callable[[Path], object], path: Path) -> bool:
    """Read a file; return whether it was refused, in one line, within the time.

    Raises:
        Found: any other error, or a warning.
    """
    from mixerflow.errors import MixerFlowError

    signal.alarm(_SECONDS)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()) as said:
            warnings.simplefilter("error")
            read(path)
    except MixerFlowError as error:
        if "\n" in str(error) or len(str(error)) > 2000:
            raise Found("traceback", f"{path.name}: not one line: {str(error)[:3000]}") from error
        return True
    except Exception as error:
        raise Found("traceback", f"{path.name}: {type(error).__name__}: {error}") from error
    finally:
        signal.alarm(0)
    if said.getvalue():
        raise Found("traceback", f"{path.name}: {said.getvalue()}")
    return False


def _prepare(folder: Path) -> None:
    from mixerflow.data import load

    for name, data in samples().items():
        place = folder / name.split(".")[0] / name
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(data)
        load(place)


def _trial(number: int, folder: Path) -> Outcome:
    """Damage and read some files; a crash, or the alarm, ends the process."""
    from mixerflow.data import load

    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESSES, _ADDRESSES))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libtiff prints its own remarks there
    good = sorted(path for path in prepared(folder).glob("*/*") if path.is_file())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for part in range(FILES):
        rng = random.Random(FILES * number + part)
        source = rng.choice(good)
        path = folder / source.name
        path.write_bytes(damaged(source.read_bytes(), rng))
        check(load, path)
        path.unlink()
    memory = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    if memory > _MEMORY:
        raise Found("lost", f"{memory:,} bytes of memory")
    return Outcome(memory / 1e6)


ROWS = (
    Row(
        "images",
        f"{FILES} image files of all formats are damaged and read",
        100,
        _trial,
        figure="most memory, MB",
        seconds=2,
        prepare=_prepare,
        limit=FILES * _SECONDS,
    ),
)
