r"""Archives of test images beside the model's own bound, and beside PNG, WebP and JPEG XL.

    python -m benchmarks.compression digits=weights/digits=mnist:FOLDER \
        --codecs results/compression/codecs.json --out results/compression/table.json

A set is NAME=WEIGHTS=DATA. Its test images are compressed with their labels, where a
class-conditional model takes these, and are decoded and compared. The bound is what
`mixerflow evaluate` gives for the same images. `--codecs` is the file of `benchmarks.codecs`. The
tables of docs/compression.md are printed. The same command goes on with the sets that are not there
yet.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import mixerflow
from benchmarks.common import facts, figure, keep, pin
from mixerflow.data import Images, load
from mixerflow.markdown import table

LABELS = {"png": "PNG", "webp": "WebP", "jxl": "JPEG XL"}


def speed(images: Images, wall: float, cpu: float) -> dict[str, float]:
    """Return images and megabytes of pixels a second, and images a second of one core."""
    count, size = len(images), images.pixels.nbytes / 1e6
    return {
        "images_per_second": count / wall,
        "mb_per_second": size / wall,
        "images_per_cpu_second": count / cpu,
    }


def measured(weights: str | mixerflow.Flow, images: Images, threads: int) -> dict[str, Any]:
    """Return the row of a set; images that do not come back end all."""
    codec = mixerflow.Codec(weights, threads=threads)
    bound = mixerflow.bits(codec.flow, images)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "images.mfa"
        begun, busy = time.perf_counter(), time.process_time()
        found = codec.compress(images.pixels, path, labels=images.labels)
        encoding = speed(images, time.perf_counter() - begun, time.process_time() - busy)
        begun, busy = time.perf_counter(), time.process_time()
        back = codec.decode(path)
        decoding = speed(images, time.perf_counter() - begun, time.process_time() - busy)
    if not np.array_equal(back.images, images.pixels):
        raise SystemExit(f"{images.dataset_id}: the archive is not lossless")
    return {
        "weights": str(weights),
        "dataset_id": images.dataset_id,
        "images": len(images),
        "shape": list(images.shape),
        "bytes": found.size,
        "bytes_of_images": found.for_images,
        "bytes_of_labels": found.labels,
        "bits_per_dim": found.bits_per_dim,
        "bound": bound.bits_per_dim,
        "above_bound": found.bits_per_dim / bound.bits_per_dim - 1,
        "k": found.k,
        "blocks": found.blocks,
        "report": found.report,
        "encode": encoding,
        "decode": decoding,
    }


def sizes(rows: dict[str, dict[str, Any]], codecs: dict[str, Any]) -> str:
    """Return the table of bits/dim: archive, bound, and each codec by file and as a sheet."""
    lines = []
    for name, row in rows.items():
        of = {
            (each["codec"], each["sheet"]): each["bits_per_dim"]
            for each in codecs.get(name, {}).get("codecs", [])
            if codecs[name]["dataset_id"] == row["dataset_id"]
        }
        cells = [f"{row['images']:,}", f"`{row['weights']}`", f"**{row['bits_per_dim']:.3f}**"]
        cells += [f"{row['bound']:.3f}", f"{row['above_bound']:+.2%}"]
        for codec in LABELS:
            pair = [of.get((codec, sheet)) for sheet in (False, True)]
            cells.append(" / ".join("" if one is None else f"{one:.3f}" for one in pair))
        lines.append([name, *cells])
    heads = [f"{each}, files / sheet" for each in LABELS.values()]
    return table(["images", "", "model", "archive", "bound", "above it", *heads], lines)


def speeds(rows: dict[str, dict[str, Any]]) -> str:
    """Return the table of settings and speeds."""
    lines = []
    for name, row in rows.items():
        report = row["report"]
        cells = [str(row["k"]), f"{row['blocks']:,}"]
        cells += [f"{report.get(key, 0):,.0f}" for key in ("initial", "plain")]
        for way in ("encode", "decode"):
            rate = row[way]
            cells.append(figure(rate["images_per_second"]) + f" ({rate['mb_per_second']:.2f} MB)")
            cells.append(figure(rate["images_per_cpu_second"]))
        lines.append([name, *cells])
    heads = ["k", "blocks", "without the flow", "beyond bounds"]
    for way in ("encoded", "decoded"):
        heads += [f"{way}, images/s", "of one core"]
    return table(["images", *heads], lines)


def others(codecs: dict[str, Any]) -> str:
    """Return the table of the other codecs' speeds, a file an image."""
    lines = []
    for name, found in codecs.items():
        of = {each["codec"]: each for each in found["codecs"] if not each["sheet"]}
        lines.append([name])
        for codec in LABELS:
            row = of.get(codec, {})
            pair = [row.get(f"{way}_images_per_second") for way in ("encode", "decode")]
            lines[-1].append(" / ".join(figure(rate) for rate in pair if rate))
    return table(["images/s", *(f"{each}, made / read" for each in LABELS.values())], lines)


def main() -> None:
    """Measure the sets that are named, and print the tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("sets", nargs="*", metavar="NAME=WEIGHTS=DATA")
    parser.add_argument("--codecs", type=Path, help="the file of benchmarks.codecs")
    parser.add_argument("--images", type=int, help="the first images of each set only")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    pin(given.threads, 0)
    result: dict[str, Any] = facts(0) | {"sets": {}}
    if given.out.exists():
        older = json.loads(given.out.read_text())
        result = (result if given.sets else older) | {"sets": older["sets"]}
    for name, weights, source in (each.split("=", 2) for each in given.sets):
        if name in result["sets"]:
            continue
        images = load(source).test
        if images is None:
            raise SystemExit(f"{source} has no test images")
        if given.images is not None:
            images = images.first(given.images)
        result["sets"][name] = measured(weights, images, given.threads)
        keep(result, given.out)
        print(f"{name}: {result['sets'][name]['bits_per_dim']:.4f}", file=sys.stderr)
    codecs = {} if given.codecs is None else json.loads(given.codecs.read_text())["sets"]
    print(f"{sizes(result['sets'], codecs)}\n\n{speeds(result['sets'])}\n\n{others(codecs)}")


if __name__ == "__main__":
    main()
