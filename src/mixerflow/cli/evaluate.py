"""``mixerflow evaluate RUN``: bits/dim on images, beside what ordinary codecs need."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from mixerflow import pictures
from mixerflow.cli.evaluation import EvaluationArguments
from mixerflow.cli.parse import parse
from mixerflow.evaluate import Bits
from mixerflow.processes import Processes, joined
from mixerflow.progress import ProgressBar
from mixerflow.runs import Evaluator, device_of, load, read_metadata
from mixerflow.runs.files import write_atomically


@dataclass(frozen=True, kw_only=True)
class Arguments(EvaluationArguments):
    """Bits/dim of a run on images, beside PNG and lossless WebP for the same images."""

    run: tyro.conf.Positional[Path]
    """The run folder, or published weights."""
    importance_samples: int = 1
    """Draws of dequantisation noise an image: more tighten the bound, and take as often as long."""
    json: bool = False
    """Print JSON rather than a table."""


def main(arguments: list[str]) -> int:
    """Score, compare, print, and keep the figures in the run folder."""
    given = parse(Arguments, arguments, prog="mixerflow evaluate")
    given.check()
    with joined() as processes:
        return _evaluate(given, processes)


def _evaluate(given: Arguments, processes: Processes) -> int:
    device = processes.place(device_of(given.device))
    flow = load(given.run, which=given.checkpoint, average=not given.raw, device=device)
    header = read_metadata(given.run)
    images, split = given.choose(header)
    with ProgressBar("image", len(images), quiet=given.json or not processes.main) as bar:
        judge = Evaluator(
            images,
            split,
            seed=given.seed,
            batch=given.batch,
            importance_samples=given.importance_samples,
            on_batch=lambda n: bar.update(bar.done + n, ""),
            processes=processes,
        )
        figure = judge.score(flow, header)
    if not processes.main:
        return 0
    kept = ("recipe", "command", "steps", "seconds", "parameters", "versions", "machine")
    result = figure.as_dict() | {
        "codecs": codecs(images.pixels),
        "weights": {
            "checkpoint": given.checkpoint,
            "averaged": header.get("averaged", not given.raw),
        },
        "run": {key: header.get(key) for key in kept},
    }
    _keep(given.run, result)
    if given.json:
        print(json.dumps(result, indent=2))
    else:
        _show(figure, result["codecs"])
    return 0


def codecs(pixels: np.ndarray) -> dict[str, float | None]:
    """Bits/dim of PNG and lossless WebP, by file and as one sheet; None where one cannot."""

    def measure(codec: pictures.Codec, sheet: bool) -> float | None:
        try:
            return pictures.codec_bits(pixels, codec, sheet=sheet)
        except ValueError:
            return None

    return {
        "png, a file an image": measure("png", False),
        "png, one sheet": measure("png", True),
        "webp, a file an image": measure("webp", False),
        "webp, one sheet": measure("webp", True),
    }


def _keep(run: Path, result: dict[str, Any]) -> None:
    name = f"{result['dataset_id']}-{result['split']}"
    if result["importance_samples"] > 1:
        name += f"-{result['importance_samples']}-draws"
    name = "".join(c if c.isalnum() else "-" for c in name)
    folder = run / "evaluations"
    folder.mkdir(exist_ok=True)
    write_atomically(folder / f"{name}.json", (json.dumps(result, indent=2) + "\n").encode())


def _show(figure: Bits, others: dict[str, float | None]) -> None:
    title = f"{figure.dataset_id}, {figure.split}: {figure.images} images"
    table = Table("", "bits/dim", "± s.e.", "what it is", title=title)
    model = f"{figure.bits_per_dim:.3f}"
    table.add_row("the flow", model, f"{figure.standard_error:.3f}", figure.kind)
    for name, value in others.items():
        shown = "n/a" if value is None else f"{value:.3f}"
        table.add_row(name, shown, "", "lossless code, headers included")
    Console().print(table)
