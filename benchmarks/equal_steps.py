"""Differences between two rows of a table at equal steps, from the curves of its results.

    python -m benchmarks.equal_steps results/mixer-dense/time.json mixer combined 150 200 256

prints bits/dim of the first row less the second's, for each step: the mean over seeds and half of
its 95 % interval, by Student's t. Curves are of held-out images, fewer than a figure's; only curves
of as many images are compared.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from mixerflow.experiments import outcome
from mixerflow.experiments.results import comparable_points


def at_step(row: dict, step: int) -> dict[tuple[int, int], float]:
    """Return the curve's value at a step, by seed and number of images, where the curve has it."""
    found = {}
    for run in row["runs"]:
        if not (points := comparable_points(run)):
            continue
        steps, bits = np.transpose(points)
        if steps[0] <= step <= steps[-1]:
            found[run["seed"], run["curve_images"][0]] = float(np.interp(step, steps, bits))
    return found


def main() -> None:
    """Print a line for each step."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("first")
    parser.add_argument("second")
    parser.add_argument("steps", type=int, nargs="+")
    given = parser.parse_args()
    for column in json.loads(given.results.read_bytes())["columns"]:
        rows = {row["row"]: row for row in column["rows"]}
        for step in given.steps:
            first, second = (at_step(rows[name], step) for name in (given.first, given.second))
            found = outcome(second, first)
            mean, half = found.difference, found.half_width
            said = "no seed has both" if mean is None else f"{mean:+.4f}"
            said += "" if half is None else f" ± {half:.4f}"
            print(f"{column['column']}, step {step}: {said} (seeds: {found.seeds})")


if __name__ == "__main__":
    main()
