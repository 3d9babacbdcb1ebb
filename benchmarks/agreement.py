"""Bits/dim after equal steps, with the kernels and operator by operator, from the same seeds.

    python -m benchmarks.agreement cifar10.npz [--recipe NAME] [--steps N] [--seeds N] [--out FILE]

Both give the same gradients to rounding; training amplifies rounding, so the runs drift apart as
those of two machines would. What must not differ, beyond the spread of seeds, is where they end.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import tyro
from rich.console import Console
from rich.table import Table

from benchmarks.common import emit, facts, pin
from mixerflow import kernels
from mixerflow.data import load
from mixerflow.evaluate import bits
from mixerflow.recipes import build, recipe
from mixerflow.training import train


@dataclass(frozen=True)
class Arguments:
    """What to train."""

    data: tyro.conf.Positional[str]
    recipe: str = "mixerflow-cifar10-tiny"
    steps: int = 300
    seeds: int = 3
    images: int = 1000
    threads: int = 1
    out: Path | None = None


def run(given: Arguments, *, seed: int, kernel: bool) -> dict[str, float]:
    """Train once; test bits/dim of the averaged weights, and images/s."""
    splits = load(given.data)
    torch.manual_seed(seed)
    flow = build(given.recipe, splits.train.shape)
    config = replace(
        recipe(given.recipe).train, seed=seed, steps=given.steps, minutes=None,
        evaluate_every=given.steps, evaluate_images=64,
    )  # fmt: skip
    test = splits.train if splits.test is None else splits.test
    with contextlib.nullcontext() if kernel else kernels.disabled():
        begun = time.perf_counter()
        train(flow, splits.train, config=config, quiet=True)
        seconds = time.perf_counter() - begun
        found = bits(flow, test.pixels[: given.images])
    return {
        "bits_per_dim": found.bits_per_dim,
        "images_per_second": given.steps * config.batch / seconds,
    }


def main() -> None:
    """Train every seed in both ways and print."""
    given = tyro.cli(Arguments)
    pin(given.threads, 0)
    results: dict[str, list[dict[str, float]]] = {"kernels": [], "operators": []}
    for seed in range(given.seeds):
        for name, each in results.items():
            each.append(run(given, seed=seed, kernel=name == "kernels"))
    pairs = zip(results["kernels"], results["operators"], strict=True)
    gaps = [a["bits_per_dim"] - b["bits_per_dim"] for a, b in pairs]
    report: dict[str, Any] = {
        "recipe": given.recipe, "steps": given.steps, "images": given.images,
        "results": results, "mean_difference": statistics.mean(gaps),
    }  # fmt: skip
    table = Table("seed", *results, title=f"test bits/dim after {given.steps} steps")
    for seed in range(given.seeds):
        table.add_row(str(seed), *(f"{r[seed]['bits_per_dim']:.4f}" for r in results.values()))
    Console(stderr=True).print(table)
    emit(facts(0) | report, given.out)


if __name__ == "__main__":
    main()
