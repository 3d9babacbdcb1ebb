"""What published weights lose: by rounding, and by going on from them in pieces.

    python -m benchmarks.weights rounding --data cifar10.npz RUN ... [--images N] [--out FILE]
    python -m benchmarks.weights pieces [--seeds N] [--steps N] [--out FILE]

``rounding`` takes run folders, and rounds their averaged weights in several ways. ``pieces`` trains
`mixerflow-tiny`, made small, on its embedded images: at once, and in three pieces that each begin
from what the one before has published. Bits/dim on test images, the noise the same for all.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.common import emit, facts, pin
from mixerflow.core import Flow
from mixerflow.data import Splits, load
from mixerflow.evaluate import bits
from mixerflow.recipes import recipe
from mixerflow.registry import evolve
from mixerflow.runs.publish import Evaluator, is_large, publish, rounded
from mixerflow.runs.weights import load as restore
from mixerflow.training import TrainConfig, train

_PIECES = 3


@dataclass(frozen=True)
class Rounding:
    """Round the weights of runs."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    data: str
    """Their images, as `mixerflow train --data` takes them."""
    images: int = 500
    """Test images, the first so many."""
    threads: int = 0
    out: Path | None = None


@dataclass(frozen=True)
class Pieces:
    """Train at once and in pieces."""

    seeds: int = 3
    steps: int = 900
    threads: int = 1
    out: Path | None = None


def _bfloat16(flow: Flow, wanted: Callable[[Tensor], bool]) -> dict[str, Tensor]:
    """A state dict with the floats that are `wanted` in bfloat16."""
    return {
        name: value.bfloat16() if value.is_floating_point() and wanted(value) else value
        for name, value in flow.state_dict().items()
    }


ROUNDINGS: dict[str, Callable[[Flow], dict[str, Tensor]]] = {
    "everything in bfloat16": lambda flow: _bfloat16(flow, lambda value: True),
    "all matrices in bfloat16": lambda flow: _bfloat16(flow, is_large),
    "as published": rounded,
}


@torch.no_grad()
def rounding(given: Rounding) -> dict[str, Any]:
    """Of each run, bits/dim in float32, and how many more after each rounding."""
    splits = load(given.data)
    pixels = (splits.train if splits.test is None else splits.test).pixels[: given.images]
    found: dict[str, Any] = {}
    for path in given.runs:
        flow = restore(path, device="cpu")
        exact = {name: value.clone() for name, value in flow.state_dict().items()}
        figure = bits(flow, pixels).bits_per_dim
        more = {}
        for name, way in ROUNDINGS.items():
            flow.load_state_dict(way(flow))
            more[name] = bits(flow, pixels).bits_per_dim - figure
            flow.load_state_dict(exact)
        found[str(path)] = {"float32": figure, "more": more}
    return {"images": len(pixels), "runs": found}


WAYS = {
    "at once": {"pieces": 1},
    "from averaged weights": {"average": True},
    "from averaged weights, no rise": {"average": True, "warmup": 0},
    "from raw weights": {"average": False},
}


def _trained(
    splits: Splits, config: TrainConfig, *, pieces: int = _PIECES, average: bool = True,
    warmup: int | None = None,
) -> float:  # fmt: skip
    """Test bits/dim of the averaged weights at the end."""
    model = evolve(recipe("mixerflow-tiny").model, {"layers": 2, "flow.net.width": 32})
    assert splits.test is not None and config.steps is not None
    each, flow = config.steps // pieces, model.build(splits.train.shape)
    with tempfile.TemporaryDirectory() as folder:
        for number in range(pieces):
            run, published = Path(folder) / f"run-{number}", Path(folder) / f"weights-{number}"
            part = replace(
                config, steps=each, schedule_start=number * each, schedule_steps=config.steps
            )
            if number and warmup is not None:
                part = replace(part, warmup=warmup)
            flow = model.build(splits.train.shape) if number else flow
            begin = published.with_name(f"weights-{number - 1}") if number else None
            train(flow, splits.train, out=run, config=part, begin=begin, quiet=True)
            if number + 1 < pieces:
                publish(
                    run, published, Evaluator(splits.test, "test"), which="last", average=average
                )
        return bits(flow, splits.test.pixels).bits_per_dim


def pieces(given: Pieces) -> dict[str, Any]:
    """Of each seed and way, the bits/dim at the end."""
    splits = load("fashion-mini")
    found: dict[str, list[float]] = {name: [] for name in WAYS}
    for seed in range(given.seeds):
        config = replace(
            recipe("mixerflow-tiny").train, seed=seed, steps=given.steps, minutes=None, lr=0.01,
            ema=0.99, warmup=20, evaluate_every=given.steps, evaluate_images=64,
        )  # fmt: skip
        for name, way in WAYS.items():
            torch.manual_seed(seed)
            found[name].append(_trained(splits, config, **way))
    return {"steps": given.steps, "pieces": _PIECES, "bits_per_dim": found}


def _show(result: dict[str, Any]) -> Table:
    if "runs" in result:
        table = Table("run", "float32", *ROUNDINGS, title="bits/dim, and how many more")
        for path, row in result["runs"].items():
            table.add_row(
                path, f"{row['float32']:.4f}", *(f"{v:+.5f}" for v in row["more"].values())
            )
        return table
    found = result["bits_per_dim"]
    seeds = range(len(found["at once"]))
    table = Table("", *(f"seed {seed}" for seed in seeds), "mean difference", title="test bits/dim")
    for name, row in found.items():
        gaps = [a - b for a, b in zip(row, found["at once"], strict=True)]
        table.add_row(name, *(f"{value:.3f}" for value in row), f"{statistics.mean(gaps):+.3f}")
    return table


def main() -> None:
    """Measure one of the two, and print."""
    given = tyro.cli(
        Annotated[Rounding, tyro.conf.subcommand("rounding")]  # pyright: ignore[reportArgumentType]
        | Annotated[Pieces, tyro.conf.subcommand("pieces")]
    )
    pin(given.threads, 0)
    result = rounding(given) if isinstance(given, Rounding) else pieces(given)
    Console(stderr=True, width=120).print(_show(result))
    emit({**facts(0), **result}, given.out)


if __name__ == "__main__":
    main()
