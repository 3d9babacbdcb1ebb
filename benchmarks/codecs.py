"""Bits/dim and speed of lossless PNG, WebP and JPEG XL on test images: each a file, and one sheet.

    python -m benchmarks.codecs digits=mnist:train.npz photos=cifar10:FOLDER --out codecs.json

Each file is decoded and compared. Seconds are those of the processor, one thread; WebP's are those
of all its settings, whose shortest file counts (`mixerflow.pictures.SETTINGS`). The same command
goes on with the rows that are not there yet.
"""

from __future__ import annotations

import argparse
import io
import json
import time
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.common import emit, facts, keep, pin
from mixerflow.data import load
from mixerflow.pictures import SETTINGS, PictureCodec, encoded, installed, sheets


def decoded(file: bytes, like: np.ndarray) -> np.ndarray:
    """Return the pixels of a file, of the shape of the picture `like` ``(H, W, C)``."""
    image = Image.open(io.BytesIO(file), formats=None)
    mode = "L" if like.shape[-1] == 1 else "RGB"
    return np.asarray(image if image.mode == mode else image.convert(mode)).reshape(like.shape)


def measured(pixels: np.ndarray, codec: PictureCodec, *, sheet: bool) -> dict[str, object]:
    """Return the row of a codec for images ``(N, C, H, W)``; a file that differs ends all."""
    cells = np.moveaxis(pixels, 1, -1)
    pictures = list(sheets(cells)) if sheet else list(cells)
    encoded(pictures[0][:8, :8], codec)  # imports, tables
    begun = time.process_time()
    files = [encoded(picture, codec) for picture in pictures]
    coded = time.process_time()
    found = [decoded(file, picture) for file, picture in zip(files, pictures, strict=True)]
    ended = time.process_time()
    if not all(map(np.array_equal, found, pictures)):
        raise SystemExit(f"{codec} is not lossless")
    return {
        "codec": codec,
        "sheet": sheet,
        "settings": SETTINGS[codec],
        "files": len(files),
        "bytes": sum(map(len, files)),
        "bits_per_dim": 8 * sum(map(len, files)) / pixels.size,
        "encode_images_per_second": len(pixels) / (coded - begun),
        "decode_images_per_second": len(pixels) / (ended - coded),
    }


def main() -> None:
    """Measure every codec that is installed on every set that is named."""
    parser = argparse.ArgumentParser()
    parser.add_argument("sets", nargs="+", metavar="NAME=DATA", help="as --data of the commands")
    parser.add_argument("--images", type=int, help="the first images of each set only")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    pin(1, 0)
    packages = ("pillow", "pillow-jxl-plugin")
    result = facts(0, packages) | {"clock": "cpu", "sets": {}}
    if given.out.exists():
        result["sets"] = json.loads(given.out.read_text())["sets"]
    sets = result["sets"]
    assert isinstance(sets, dict)
    for sheet in (False, True):
        for codec in installed():
            for name, _, source in (each.partition("=") for each in given.sets):
                images = load(source).test
                assert images is not None
                pixels = images.pixels[: given.images]
                of = {"images": len(pixels), "shape": list(images.shape)}
                here = sets.setdefault(name, of | {"dataset_id": images.dataset_id, "codecs": []})
                if any((r["codec"], r["sheet"]) == (codec, sheet) for r in here["codecs"]):
                    continue
                here["codecs"].append(measured(pixels, codec, sheet=sheet))
                keep(result, given.out)
    emit(result, given.out)


if __name__ == "__main__":
    main()
