"""The tables of docs/speed.md from the JSON of `benchmarks.speed`, `growth` and `minutes`.

python -m benchmarks.markdown results/cpu/speed.json results/cpu/growth.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks import minutes_tables
from benchmarks.common import JOBS, figure
from mixerflow.markdown import table


def speed(rows: list[dict[str, Any]]) -> str:
    """One preset: images a second, median (least to most), and share of the floor."""
    lines = []
    for row in rows:
        if not row["installed"]:
            lines.append([row["name"], *["not installed"] * 7])
            continue
        cells = []
        for job in JOBS:
            least, median, most = (
                figure(row["images_per_second"][job][key]) for key in ("least", "median", "most")
            )
            share = row["of_floor"][job]["median"]
            cells.append(f"**{median}** ({least}-{most}), {share:.0%}")
        peak = row.get("peak_mib")
        size = [f"{row['parameters'] / 1e6:.2f}M", f"{row['gflop_per_image']:.3f}"]
        calls = f"{row['operators_per_training_step']:,}"
        lines.append([row["name"], *size, *cells, calls, "" if peak is None else f"{peak:,.0f}"])
    return table(["model", "par.", "GFLOP", *JOBS, "operators", "peak MiB"], lines)


def growth(rows: list[dict[str, Any]], axis: str) -> str:
    """One axis: milliseconds an image and peak MiB of a training step."""
    mine = [row for row in rows if row["axis"] == axis]
    values = sorted({row["value"] for row in mine})
    lines = []
    for line in dict.fromkeys(row["line"] for row in mine):
        found = {row["value"]: row for row in mine if row["line"] == line}
        cells = []
        for value in values:
            time, peak = found[value]["seconds_per_image"]["median"], found[value]["peak_mib"]
            cells.append(f"{1e3 * time:.3g} ms" + ("" if peak is None else f", {peak:,.0f} MiB"))
        lines.append([line, *cells])
    return table([axis, *map(str, values)], lines)


def terms(rows: list[dict[str, Any]], sizes: tuple[int, ...] = (16, 32, 64, 128, 256)) -> str:
    """Operations of a forward pass by term, for every linear block."""
    lines = []
    for row in (row for row in rows if row["size"] in sizes):
        parts = [row[term] / 1e9 for term in ("conditioners", "linear", "assembly")]
        share = 1 - parts[0] / sum(parts)
        cells = [row["line"], f"{row['size']}", f"{row['patches']:,}"]
        lines.append([*cells, *(f"{part:.4f}" for part in parts), f"{share:.0%}"])
    names = ["block", "size", "patches", "conditioners", "linear blocks", "assembly", "share"]
    return table(names, lines)


def main() -> None:
    """Print the tables of each file."""
    for path in map(Path, sys.argv[1:]):
        result = json.loads(path.read_text())
        print(f"`{result['command']}`; {result['cpu']}, {result['threads']} threads\n")
        for preset, rows in result.get("presets", {}).items():
            print(f"{preset}\n\n{speed(rows)}\n")
        for axis in dict.fromkeys(row["axis"] for row in result.get("growth", [])):
            print(f"{growth(result['growth'], axis)}\n")
        if "minutes" in result:
            print(f"{minutes_tables.tables(result)}\n")
        if "terms" in result:
            print(f"{terms(result['terms'])}\n")
            print(f"passed at {result['takeover']} patches\n")


if __name__ == "__main__":
    main()
