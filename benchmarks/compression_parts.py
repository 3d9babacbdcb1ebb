r"""Where an archive exceeds the model's bound: k, blocks, tables, rounding; JSON and a plot.

    python -m benchmarks.compression_parts digits=weights/digits=mnist:FOLDER \
        --table results/compression/table.json --out results/compression/parts.json --plot parts.png

A set is NAME=WEIGHTS=DATA. Some test images of each are coded with several k; the cost at a k is
that of the images that the flow codes with every k. A k with numbers beyond the bounds is left out.
Bits of a set's whole archive by cause come from what `benchmarks.compression` wrote. No time is
measured.
"""

from __future__ import annotations

import argparse
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import mixerflow
from benchmarks.common import facts, keep, pin
from mixerflow.compression.engine import Block
from mixerflow.data import Images, load
from mixerflow.errors import ConfigError
from mixerflow.plots import png_of

DEPTHS = (4, 6, 8, 10, 12, 14, 16, 18, 20, 24)
SIZES = (100, 200, 500, 1000, 2000, 5000)
CAUSES = (
    "images without the flow",
    "lattice, and its noise",
    "latents' tables",
    "scales' rounding",
    "header, heads, index",
)


def depths(weights: str, images: Images, threads: int) -> dict[str, Any]:
    """Return what each k costs on the images, against the model's bound, and at a block's end."""
    codec = mixerflow.Codec(weights)
    labels = images.labels if codec.flow.context_net is not None else None

    def coded(k: int) -> Block | None:
        try:
            return codec.engine(k).encode(images.pixels, labels)
        except ConfigError:  # numbers beyond the bounds
            return None

    with ThreadPoolExecutor(threads) as pool:
        tried = dict(zip(DEPTHS, pool.map(coded, DEPTHS), strict=True))
    refused = [k for k, block in tried.items() if block is None or block.report["plain"]]
    found = {k: block for k, block in tried.items() if block and k not in refused}
    by_flow = np.all([block.bits >= 0 for block in found.values()], 0)
    bound = mixerflow.bits(codec.flow, images).per_image[by_flow]
    dims = images.pixels[0].size
    rows = {}
    for k, block in found.items():
        mean = block.bits[by_flow] / dims
        report = block.report
        rows[str(k)] = {
            "bits_per_dim": float(mean.mean()),
            "above_bound": float(mean.mean() / bound.mean() - 1),
            "standard_error": float((mean - bound).std(ddof=1) / len(mean) ** 0.5 / bound.mean()),
            "initial": block.initial,
            "initial_excess_bits": float(
                report["initial_bits"] - block.initial * dims * mean.mean()
            ),
            "report": report,
        }
    count = int(by_flow.sum())
    return {
        "beyond_bounds": refused,
        "images": count,
        "dims": dims,
        "bound": float(bound.mean()),
        "k": rows,
    }


def causes(row: dict[str, Any]) -> dict[str, float]:
    """Return the shares of the bound that an archive takes beyond it, by cause."""
    report, dims = row["report"], int(np.prod(row["shape"]))
    by_flow = row["images"] - report["initial"] - report["plain"]
    ideal = row["bound"] * dims
    table = report["latent_bits"] - report["ideal_latents"]
    scales = report["scale_bits"] - report["ideal_scales"]
    # the images that the flow does not code have the mean of all others, to a good approximation
    initial = report["initial_bits"] - report["initial"] * ideal
    payload = report["flow_bits"] + report["initial_bits"] + report["plain_bits"]
    bits = {
        "images without the flow": initial + report["plain_bits"],
        "lattice, and its noise": report["flow_bits"] - by_flow * ideal - table - scales,
        "latents' tables": table,
        "scales' rounding": scales,
        "header, heads, index": 8 * row["bytes_of_images"] - payload,
    }
    return {name: value / (row["images"] * ideal) for name, value in bits.items()}


def draw(result: dict[str, Any]) -> Figure:
    """Return the figure: causes in whole archives; the cost of k; what blocks cost by size."""
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    _causes(left, result["causes"])
    for number, (name, found) in enumerate(result["sets"].items()):
        rows = {int(k): row for k, row in found["k"].items()}
        cost = [100 * row["above_bound"] for row in rows.values()]
        errors = [100 * row["standard_error"] for row in rows.values()]
        middle.errorbar(list(rows), cost, errors, fmt="o-", color=f"C{number}", label=name, ms=4)
        taken = rows[16]
        ideal = found["bound"] * found["dims"]
        share = [100 * taken["initial_excess_bits"] / (size * ideal) for size in SIZES]
        right.plot(SIZES, share, "o-", color=f"C{number}", label=name)
    middle.set_yscale("symlog", linthresh=0.1)
    middle.set(xlabel="k", ylabel="% above the bound, images by the flow", xticks=DEPTHS)
    middle.axhline(0.1, color="grey", ls="--", lw=1)
    right.set(xscale="log", yscale="log", xlabel="images of a block", ylabel="% at its end, k = 16")
    right.axhline(0.5, color="grey", ls="--", lw=1)
    right.set_xticks(SIZES, [f"{size:,}" for size in SIZES])
    for axes in (middle, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    return figure


def _causes(axes: Axes, sets: dict[str, dict[str, float]]) -> None:
    """Draw the causes of each set as bars, side by side, in percent of the bound."""
    height = 0.8 / max(len(sets), 1)
    for number, (name, found) in enumerate(sets.items()):
        places = np.arange(len(CAUSES)) + number * height
        axes.barh(places, [100 * found[cause] for cause in CAUSES], height, label=name)
    axes.set_yticks(np.arange(len(CAUSES)) + 0.4 - height / 2, CAUSES)
    axes.invert_yaxis()
    axes.set_xlabel("% of the model's bound")
    axes.axvline(0, color="black", lw=0.8)
    axes.grid(alpha=0.3, axis="x")
    axes.legend(fontsize=8)


def main() -> None:
    """Measure the sets that are named, and draw all."""
    parser = argparse.ArgumentParser()
    parser.add_argument("sets", nargs="*", metavar="NAME=WEIGHTS=DATA")
    parser.add_argument("--images", type=int, default=400, help="the first test images of a set")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--table", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--plot", type=Path, required=True)
    given = parser.parse_args()
    pin(1, 0)
    older = json.loads(given.out.read_text()) if given.out.exists() else {"sets": {}}
    result: dict[str, Any] = (facts(0) if given.sets else older) | {"sets": older["sets"]}
    for name, weights, source in (each.split("=", 2) for each in given.sets):
        if name not in result["sets"]:
            images = load(source).test
            if images is None:
                raise SystemExit(f"{source} has no test images")
            result["sets"][name] = depths(weights, images.first(given.images), given.threads)
            keep(result, given.out)
    table = json.loads(given.table.read_text())["sets"]
    result["causes"] = {name: causes(row) for name, row in table.items()}
    keep(result, given.out)
    given.plot.write_bytes(png_of(draw(result)))


if __name__ == "__main__":
    main()
