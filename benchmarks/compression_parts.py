r"""Where an archive exceeds the model's bound: k, blocks, tables, rounding; JSON and a plot.

    python -m benchmarks.compression_parts digits=weights/digits=mnist:FOLDER \
        --table results/compression/table.json --out results/compression/parts.json --plot parts.png

A set is NAME=WEIGHTS=DATA. Some test images of each are coded with several k and the same noise.
A k with numbers beyond the bounds is left out.
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
TAKEN = 12
"""The k for which a block's end is drawn."""
LEAST = 1e-5
"""The least share that the logarithmic axis shows: smaller ones, and those below 0, are there."""
ENDS = 60
"""More images than a block's end has."""
SIZES = (100, 200, 500, 1000, 2000, 5000)
CAUSES = (
    "images without the flow",
    "lattice, and its noise",
    "latents' tables",
    "scales' rounding",
    "header, heads, index",
)


def depths(weights: str | mixerflow.Flow, images: Images, threads: int) -> dict[str, Any]:
    """Return what each k costs on the images, with the same noise, and at a block's end."""
    codec = mixerflow.Codec(weights)
    labels = images.labels if codec.flow.context_net is not None else None

    # the last images, and behind them others: the flow codes the last ones too
    turned = np.r_[len(images) - ENDS : len(images), :ENDS] % len(images)

    def coded(k: int) -> tuple[Block, Block, Block] | None:
        try:
            engine = codec.engine(k)
        except ConfigError:  # numbers beyond the bounds
            return None
        trial = engine.encode(images.pixels, labels, trial=True)
        ends = engine.encode(
            images.pixels[turned], None if labels is None else labels[turned], trial=True
        )
        return trial, ends, engine.encode(images.pixels, labels)

    with ThreadPoolExecutor(threads) as pool:
        tried = dict(zip(DEPTHS, pool.map(coded, DEPTHS), strict=True))
    refused = [k for k, three in tried.items() if three is None or three[0].report["plain"]]
    found = {k: three for k, three in tried.items() if three and k not in refused}
    best, whole = found[max(found)][0].bits, images.pixels[0].size
    by_flow = np.all([trial.bits >= 0 for trial, _, _ in found.values()], 0)
    rows = {}
    for k, (trial, ends, block) in found.items():
        more = (trial.bits - best)[by_flow] / best[by_flow].mean()
        by_flow_too = ends.bits[ENDS - block.initial : ENDS]
        rows[str(k)] = {
            "bits_per_dim": float(trial.bits[by_flow].mean() / whole),
            "more": float(more.mean()),
            "standard_error": float(more.std(ddof=1) / len(more) ** 0.5),
            "initial": block.initial,
            "excess_bits": float(block.report["initial_bits"] - by_flow_too.sum()),
            "report": block.report,
        }
    count = int(by_flow.sum())
    return {"beyond_bounds": refused, "images": count, "dims": whole, "k": rows}


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
    _causes(left, {name: result["causes"][name] for name in result["sets"]})
    for number, (name, found) in enumerate(result["sets"].items()):
        style: dict[str, Any] = {"color": f"C{number}", "label": name, "marker": "o", "ms": 4}
        rows = {int(k): row for k, row in found["k"].items()}
        most = max(rows)
        ks = [k for k in rows if k < most]
        middle.plot(ks, [100 * max(rows[k]["more"], LEAST) for k in ks], **style)
        image = rows[most]["bits_per_dim"] * found["dims"]
        excess = rows[TAKEN]["excess_bits"]
        right.plot(SIZES, [100 * excess / (size * image) for size in SIZES], **style)
    middle.set(xlabel="k", ylabel="% more than the largest k", xticks=DEPTHS[:-1], yscale="log")
    middle.axhline(0.1, color="grey", ls="--", lw=1)
    right.set(xscale="log", yscale="log", xlabel="images of a block")
    right.set_ylabel(f"% more for a block's end, k = {TAKEN}")
    right.axhline(0.1, color="grey", ls="--", lw=1)
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
