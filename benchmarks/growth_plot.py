"""Growth as a figure: time and memory against each axis; operations by term against patches.

python -m benchmarks.growth_plot growth.png growth.json ...    # of runs made one axis at a time
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullLocator


def draw(result: dict[str, Any], path: Path) -> None:
    """Write the PNG: a column for each measured axis, then the terms."""
    axes = list(dict.fromkeys(row["axis"] for row in result["growth"]))
    figure, grid = plt.subplots(
        2, len(axes) + 1, figsize=(4 * (len(axes) + 1), 7), squeeze=False, layout="constrained"
    )
    for column, axis in enumerate(axes):
        rows = [row for row in result["growth"] if row["axis"] == axis]
        _lines(
            grid[0, column], rows, "ms an image", lambda r: 1e3 * r["seconds_per_image"]["median"]
        )
        measured = [row for row in rows if row["peak_mib"] is not None]
        _lines(grid[1, column], measured, "peak MiB", lambda r: r["peak_mib"])
        for panel in grid[:, column]:
            panel.set_xlabel(axis)
    _terms(grid[0, -1], [row for row in result["terms"] if row["line"] == "LU"])
    _shares(grid[1, -1], result)
    threads = f"{result['threads']} thread{'s' if result['threads'] > 1 else ''}"
    figure.suptitle(f"a training step; {result['cpu']}, {threads}")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def _lines(
    panel: Axes, rows: list[dict[str, Any]], what: str, value: Callable[[Any], float]
) -> None:
    for line in dict.fromkeys(row["line"] for row in rows):
        mine = [row for row in rows if row["line"] == line]
        style = "k--" if line.startswith("Glow") else "o-"
        panel.plot([r["value"] for r in mine], [value(r) for r in mine], style, label=line)
    panel.set(xscale="log", yscale="log", ylabel=what)
    ticks = sorted({row["value"] for row in rows})
    panel.set_xticks(ticks, map(str, ticks))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.yaxis.set_major_formatter("{x:g}")
    panel.yaxis.set_minor_locator(NullLocator())
    panel.legend(fontsize=7)


def _terms(panel: Axes, rows: list[dict[str, Any]]) -> None:
    """LU's operations by term against the number of patches."""
    patches = [row["patches"] for row in rows]
    for term in ("conditioners", "linear", "assembly"):
        panel.plot(patches, [row[term] / 1e9 for row in rows], label=f"LU: {term}")
    panel.set(xscale="log", yscale="log", xlabel="patches of 4x4", ylabel="GFLOP an image, forward")
    panel.legend(fontsize=7)


def _shares(panel: Axes, result: dict[str, Any]) -> None:
    """Each linear block's share of the operations, and where it passes one half."""
    for line in dict.fromkeys(row["line"] for row in result["terms"]):
        rows = [row for row in result["terms"] if row["line"] == line]
        ours = [row["linear"] + row["assembly"] for row in rows]
        shares = [a / (a + row["conditioners"]) for a, row in zip(ours, rows, strict=True)]
        panel.plot([row["patches"] for row in rows], shares, label=line)
    panel.axhline(0.5, color="grey", linewidth=0.5)
    panel.set(xscale="log", ylim=(0, 1), xlabel="patches of 4x4", ylabel="share of linear blocks")
    panel.legend(fontsize=7)


def main() -> None:
    """Draw runs of one axis each as one figure."""
    target, *runs = map(Path, sys.argv[1:])
    results = [json.loads(run.read_text()) for run in runs]
    whole = results[0] | {"growth": [row for result in results for row in result["growth"]]}
    draw(whole, target)


if __name__ == "__main__":
    main()
