"""Images per second of a training step, of scoring and of sampling, on this machine.

    python benchmarks/speed.py [--recipes NAME ...] [--rounds N] [--batch N] [--threads N]

The three jobs are interleaved, round by round, so that a noisy machine slows all alike; each figure
is a median with the smallest and largest. JSON goes to standard output, a table to standard error.
Training steps are a forward and backward pass with Adam, in float32; sampling includes the noise.
"""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table

from mixerflow.data import make_images
from mixerflow.recipes import build, recipe
from mixerflow.training import TrainConfig, Trainer
from mixerflow.training.batches import Batches


@dataclass(frozen=True)
class Arguments:
    """What to time."""

    recipes: tuple[str, ...] = ("mixerflow-tiny", "mixerflow-cifar10-tiny", "mixerflow-cifar10")
    rounds: int = 7
    batch: int = 32
    threads: int = 0


def jobs(name: str, batch: int) -> dict[str, Callable[[], object]]:
    """A training step, a scoring pass and a sampling pass of `batch` images each."""
    rng = np.random.default_rng(0)
    shape = recipe(name).shape
    images = make_images(
        rng.integers(0, 256, (4 * batch, *shape), dtype=np.uint8), None, dataset_id="noise"
    )
    torch.manual_seed(0)
    flow = build(name)
    batches = Batches(images, batch, seed=0, device=flow.device, conditional=False)
    flow.initialize(*batches.first(batch))
    trainer = Trainer(flow, batches, TrainConfig(batch=batch, ema=0.0), steps=10**6)
    scored = build(name)
    scored.load_state_dict(flow.state_dict())
    return {
        "train": trainer.advance,
        "score": lambda: scored.bits_per_dim(images.pixels[:batch]),
        "sample": lambda: scored.sample(batch),
    }


def measure(name: str, rounds: int, batch: int) -> dict[str, dict[str, float]]:
    """Images per second of each job: median, smallest, largest over the rounds."""
    timed = jobs(name, batch)
    speeds: dict[str, list[float]] = {job: [] for job in timed}
    for number in range(rounds + 1):
        for job, run in timed.items():
            begun = time.perf_counter()
            run()
            if number:  # the first round warms up
                speeds[job].append(batch / (time.perf_counter() - begun))
    return {
        job: {"median": statistics.median(each), "least": min(each), "most": max(each)}
        for job, each in speeds.items()
    }


def main() -> None:
    """Time every recipe and print."""
    given = tyro.cli(Arguments)
    if given.threads:
        torch.set_num_threads(given.threads)
    results = {name: measure(name, given.rounds, given.batch) for name in given.recipes}
    machine = {
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "platform": platform.platform(),
    }
    print(json.dumps({"images_per_second": results, "batch": given.batch, **machine}, indent=2))
    table = Table("recipe", "train", "score", "sample", title=f"images/s at batch {given.batch}")
    for name, figures in results.items():
        cells = [f"{f['median']:.0f} ({f['least']:.0f}-{f['most']:.0f})" for f in figures.values()]
        table.add_row(name, *cells)
    Console(stderr=True).print(table)


if __name__ == "__main__":
    main()
