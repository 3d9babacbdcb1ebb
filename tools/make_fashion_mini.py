"""Make the image set that comes with the package, `fashion-mini`, from Fashion-MNIST.

The first 400 training and the first 100 test images of each of the ten classes, in their old
order: 4,000 + 1,000 grey images of 28 x 28, exactly as published. The source is the four idx files
of Fashion-MNIST (Debian: package `dataset-fashion-mnist`).

Fashion-MNIST: Han Xiao, Kashif Rasul, Roland Vollgraf, "Fashion-MNIST: a Novel Image Dataset for
Benchmarking Machine Learning Algorithms", 2017, https://arxiv.org/abs/1708.07747. Copyright 2017
Zalando SE, MIT licence; the file holds the licence's text in its array `licence`.

The pixels are one xz stream of the plain bytes: 1.87 MB, where PNG (one sheet) takes 2.02 MB,
lossless WebP 1.94 MB, and xz after PNG's or LOCO-I's prediction 1.95 MB.

Usage: make_fashion_mini.py [SOURCE [OUT]]
"""

from __future__ import annotations

import hashlib
import lzma
import sys
from pathlib import Path

import numpy as np

from mixerflow.data.formats import idx_files, read_idx_folder

SOURCE = Path("/usr/share/datasets/fashion-mnist")
OUT = Path(__file__).parents[1] / "src" / "mixerflow" / "data" / "fashion_mini.npz"
EACH = {"train": 400, "test": 100}

LICENCE = """\
MIT License

Copyright (c) 2017 Zalando SE, https://tech.zalando.com

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and \
associated documentation files (the "Software"), to deal in the Software without restriction, \
including without limitation the rights to use, copy, modify, merge, publish, distribute, \
sublicense, and/or sell copies of the Software, and to permit persons to whom the Software is \
furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or \
substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT \
NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND \
NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, \
DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT \
OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""


def main() -> None:
    """Write the file and print its size and SHA-256."""
    given = [Path(argument) for argument in sys.argv[1:3]]
    source, out = given + [SOURCE, OUT][len(given) :]
    pixels, labels = [], []
    splits = read_idx_folder(idx_files(source), source)
    for part, each in zip((splits.train, splits.test), EACH.values(), strict=True):
        if part is None or part.labels is None:
            sys.exit(f"images or labels are missing in {source}")
        of_class = [np.flatnonzero(part.labels == label)[:each] for label in range(10)]
        chosen = np.sort(np.concatenate(of_class))
        pixels.append(part.pixels[chosen])
        labels.append(part.labels[chosen])
    images = np.concatenate(pixels)
    stream = lzma.compress(images.tobytes(), preset=9 | lzma.PRESET_EXTREME)
    np.savez_compressed(
        out,
        pixels_xz=np.frombuffer(stream, np.uint8),
        shape=np.array(images.shape),
        labels=np.concatenate(labels),
        train=np.array(len(pixels[0])),
        licence=np.array(LICENCE.splitlines()),
    )
    content = out.read_bytes()
    print(f"{out}: {len(content)} bytes, SHA-256 {hashlib.sha256(content).hexdigest()}")


if __name__ == "__main__":
    main()
