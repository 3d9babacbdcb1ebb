"""Memory of training on large images: a process's peak, by what a step keeps; prints a table.

    python -m benchmarks.large --out large.json

The model has the paper's depth and width, 30 layers of width 128, with patches of `--patch` pixels.
Each line trains for a few steps in a process of its own, with the package's trainer, averaged
weights included. The peak is that of the whole process: weights, gradients, Adam's moments, the
average, activations, and torch itself. Images are noise, which costs what photographs cost.
"""

from __future__ import annotations

import itertools
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from benchmarks.common import facts, figure, keep, pin
from benchmarks.costs import fresh, resident
from benchmarks.kept import require_positive, told_in_a_line
from mixerflow.core import Memory
from mixerflow.data import make_images
from mixerflow.errors import ConfigError
from mixerflow.markdown import table
from mixerflow.models import MixerFlow
from mixerflow.parts import Patching
from mixerflow.train_config import TrainConfig
from mixerflow.training import Trainer
from mixerflow.training.batches import Batches


@dataclass(frozen=True)
class Arguments:
    """What to measure."""

    sides: tuple[int, ...] = (128, 256)
    """Sides of the images in pixels."""
    modes: tuple[Memory, ...] = ("store", "checkpoint", "invert")
    """What a step keeps, see docs/memory.md."""
    patch: int = 16
    """Side of the patches in pixels."""
    layers: int = 30
    batch: int = 4
    steps: int = 2
    threads: int = 1
    out: Path | None = None
    """Where to write the JSON too."""

    def __post_init__(self) -> None:
        require_positive(self, "patch", "layers", "batch", "steps", "threads")
        for side in self.sides:
            if side < 1 or side % self.patch:
                what = f"{side} pixels are no whole number of patches of {self.patch}"
                raise ConfigError(what, "--sides", "give multiples of --patch")


def measure(given: Arguments, side: int, mode: Memory) -> dict[str, Any]:
    """Train for a few steps in this process; return what it took."""
    pin(given.threads, 0)
    patching = Patching(given.patch, shift=(0, 0, 0, given.patch // 2))
    shape, batch = (3, side, side), given.batch
    flow = MixerFlow(layers=given.layers, patching=patching).build(shape)
    pixels = np.random.default_rng(0).integers(0, 256, (2 * batch, *shape), dtype=np.uint8)
    images = make_images(pixels, None, dataset_id="noise")
    batches = Batches(images, batch, seed=0, device=flow.device, conditional=False)
    flow.initialize(*batches.first(batch))
    config = TrainConfig(batch=batch, memory=mode)
    trainer = Trainer(flow, batches, config, steps=1000)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        begun = time.process_time()
        for _ in range(given.steps):
            trainer.advance()
        seconds = time.process_time() - begun
    return {
        "side": side,
        "mode": mode,
        "parameters": sum(p.numel() for p in flow.parameters()),
        "peak_mib": resident("VmHWM"),
        "cpu_seconds_per_image": seconds / given.steps / batch,
        "warnings": [str(each.message) for each in told],
    }


def told(rows: list[dict[str, Any]]) -> str:
    """Return the measurements as a table."""
    lines = []
    for row in rows:
        peak = "" if row["peak_mib"] is None else figure(row["peak_mib"] / 1024)
        size, seconds = figure(row["parameters"] / 1e6), figure(row["cpu_seconds_per_image"])
        lines.append([str(row["side"]), row["mode"], f"{size}M", peak, seconds])
    return table(["pixels", "mode", "par.", "peak GiB", "CPU s an image"], lines)


def main() -> None:
    """Measure each size and mode in a fresh process, and print the table."""
    with told_in_a_line(Arguments):
        given = tyro.cli(Arguments, description=__doc__)
        pin(given.threads, 0)
        settings = {name: getattr(given, name) for name in ("layers", "patch", "batch", "steps")}
        result: dict[str, Any] = {**facts(0), "settings": settings, "rows": []}
        for side, mode in itertools.product(given.sides, given.modes):
            result["rows"].append(fresh(measure, given, side, mode))
            keep(result, given.out)  # the next may need more memory than there is
        print(told(result["rows"]))
        for row in result["rows"]:
            for warning in row["warnings"]:
                print(f"{row['side']} pixels, {row['mode']}: {warning}")


if __name__ == "__main__":
    main()
