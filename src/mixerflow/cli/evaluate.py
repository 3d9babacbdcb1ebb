"""``mixerflow evaluate`` and ``publish``: score a run's weights on images, and keep the result."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from mixerflow import pictures, runs
from mixerflow.cli.parse import parse
from mixerflow.data import Images, Splits, load
from mixerflow.errors import ConfigError
from mixerflow.evaluate import Bits
from mixerflow.processes import Processes, joined
from mixerflow.progress import ProgressBar
from mixerflow.runs import Evaluator
from mixerflow.runs.files import write_atomically


@dataclass(frozen=True, kw_only=True)
class WeightsArguments:
    """Which weights of a run, and where they compute."""

    checkpoint: Literal["best", "last"] = "best"
    """Which weights; another run goes on from "last"."""
    raw: bool = False
    """The weights themselves rather than their moving average."""
    device: str = "cpu"
    """Device: cpu or cuda (experimental)."""


@dataclass(frozen=True, kw_only=True)
class EvaluationArguments(WeightsArguments):
    """Which images score the weights, and how."""

    data: str | None = None
    """Images: a folder, a file or a set's name; by default the run's own."""
    split: Literal["test", "train"] = "test"
    """Which part of the data; all of it, where it has no test part."""
    images: int | None = None
    """Score the first so many only."""
    seed: int = 0
    """Seed of the dequantisation noise."""
    batch: int = 128
    """Images at a time, in each process."""
    transparency: str | None = None
    """Transparent images: refuse, or the colour to put them on; by default as the run does."""
    on_bad_image: Literal["stop", "skip"] | None = None
    """A bad image file: stop, or skip and list it; by default as the run does."""

    def check(self) -> None:
        """Refuse impossible numbers with a ConfigError."""
        if self.batch < 1:
            raise ConfigError(f"{self.batch} images at a time", "--batch", "give at least 1")
        if self.images is not None and self.images < 1:
            raise ConfigError(f"{self.images} images", "--images", "give at least 1")

    def load_images(self, metadata: dict[str, Any]) -> tuple[Images, str]:
        """Load the images that score the run of this ``run.json``, and name their split.

        Raises:
            DataError: the images cannot be found, read or used.
        """
        splits = load_run_data(
            metadata, self.data, transparency=self.transparency, on_bad_image=self.on_bad_image
        )
        if self.split == "test" and splits.test is not None:
            images, name = splits.test, "test"
        else:
            images, name = splits.train, "train" if self.split == "train" else "all"
        if self.images is not None and self.images < len(images):
            return images.first(self.images), f"{name}, first {self.images}"
        return images, name

    def evaluator(self, images: Images, split: str, bar: ProgressBar, **more: Any) -> Evaluator:  # noqa: ANN401
        """Make an evaluator of these arguments that shows its progress."""

        def on_batch(count: int) -> None:
            bar.update(bar.done + count, "")

        return Evaluator(images, split, seed=self.seed, batch=self.batch, on_batch=on_batch, **more)


def load_run_data(metadata: dict[str, Any], data: str | None, **options: str | None) -> Splits:
    """Load images as the run of this ``run.json`` did, unless the arguments differ.

    Raises:
        ConfigError: neither `data` nor ``run.json`` names images.
    """
    source = metadata.get("source") or {}
    spec = data or source.get("data")
    if spec is None:
        raise ConfigError("no images named", "--data", "name a folder, a file or a set")
    chosen = {name: source.get(name) for name in ("transparency", "on_bad_image")}
    chosen |= {name: value for name, value in options.items() if value is not None}
    settings: dict[str, Any] = {key: value for key, value in chosen.items() if value is not None}
    return load(spec, **settings)


@dataclass(frozen=True, kw_only=True)
class _EvaluateArguments(EvaluationArguments):
    """Bits/dim of a run on images, beside PNG and lossless WebP for the same images."""

    run: tyro.conf.Positional[Path]
    """The run folder, or published weights."""
    importance_samples: int = 1
    """Draws of dequantisation noise an image: more tighten the bound, and take as often as long."""
    json: bool = False
    """Print JSON rather than a table."""


def evaluate(arguments: list[str]) -> int:
    """Score the weights and codecs, print the figures, and write them into the run folder."""
    given = parse(_EvaluateArguments, arguments, prog="mixerflow evaluate")
    given.check()
    with joined() as processes:
        return _evaluate(given, processes)


def _evaluate(given: _EvaluateArguments, processes: Processes) -> int:
    device = processes.place(runs.device_of(given.device))
    flow = runs.load(given.run, which=given.checkpoint, average=not given.raw, device=device)
    metadata = runs.read_metadata(given.run)
    images, split = given.load_images(metadata)
    with ProgressBar("image", len(images), quiet=given.json or not processes.main) as bar:
        draws = given.importance_samples
        evaluator = given.evaluator(
            images, split, bar, importance_samples=draws, processes=processes
        )
        figure = evaluator.score(flow, metadata)
    if not processes.main:
        return 0
    keys = ("recipe", "command", "steps", "seconds", "parameters", "versions", "machine")
    averaged = metadata.get("averaged", not given.raw)
    result = figure.as_dict() | {
        "codecs": _codecs(images.pixels),
        "weights": {"checkpoint": given.checkpoint, "averaged": averaged},
        "run": {key: metadata.get(key) for key in keys},
    }
    _write_result(given.run, result)
    if given.json:
        print(json.dumps(result, indent=2))
    else:
        _print_table(figure, result["codecs"])
    return 0


def _codecs(pixels: np.ndarray) -> dict[str, float | None]:
    """Score PNG and lossless WebP, by file and as one sheet; None for a codec that fails."""
    figures: dict[str, float | None] = {}
    for codec in ("png", "webp"):
        for name, sheet in (("a file an image", False), ("one sheet", True)):
            try:
                figures[f"{codec}, {name}"] = pictures.codec_bits(pixels, codec, sheet=sheet)
            except ValueError:
                figures[f"{codec}, {name}"] = None
    return figures


def _write_result(run: Path, result: dict[str, Any]) -> None:
    name = f"{result['dataset_id']}-{result['split']}"
    if result["importance_samples"] > 1:
        name += f"-{result['importance_samples']}-draws"
    name = "".join(c if c.isalnum() else "-" for c in name)
    folder = run / "evaluations"
    folder.mkdir(exist_ok=True)
    write_atomically(folder / f"{name}.json", (json.dumps(result, indent=2) + "\n").encode())


def _print_table(figure: Bits, codecs: dict[str, float | None]) -> None:
    title = f"{figure.dataset_id}, {figure.split}: {figure.images} images"
    table = Table("", "bits/dim", "± s.e.", "what it is", title=title)
    score, error = f"{figure.bits_per_dim:.3f}", f"{figure.standard_error:.3f}"
    table.add_row("the flow", score, error, figure.kind)
    for name, value in codecs.items():
        shown = "n/a" if value is None else f"{value:.3f}"
        table.add_row(name, shown, "", "lossless code, headers included")
    Console().print(table)


@dataclass(frozen=True, kw_only=True)
class _PublishArguments(EvaluationArguments):
    """Write a run's averaged weights, rounded to 16 bits, with a card that describes them."""

    run: tyro.conf.Positional[Path]
    """The run folder."""
    to: Path
    """The folder to write, such as weights/NAME; only better weights replace older ones."""
    limit_mb: float = 25.0
    """Millions of bytes that the file may have."""
    force: bool = False
    """Replace the published weights there, even by worse ones."""


def publish(arguments: list[str]) -> int:
    """Round a run's weights, score them, and write one small file with a card."""
    given = parse(_PublishArguments, arguments, prog="mixerflow publish")
    given.check()
    if not given.limit_mb > 0:
        raise ConfigError(f"{given.limit_mb} MB", "--limit-mb", "give more than 0")
    if runs.is_published(given.run):
        raise ConfigError("these weights are published already", given.run, "name a run folder")
    images, split = given.load_images(runs.RunFolder(given.run).read_metadata())
    with ProgressBar("image", 2 * len(images)) as bar:
        card = runs.publish(
            given.run,
            given.to,
            given.evaluator(images, split, bar, device=given.device),
            which=given.checkpoint,
            average=not given.raw,
            limit_mb=given.limit_mb,
            force=given.force,
        )
    (file,) = card["files"].values()
    print(
        f"{given.to}: {file['bytes'] / 1e6:.1f} MB, {card['figure']['bits_per_dim']:.4f} bits/dim "
        f"({card['float32']['bits_per_dim']:.4f} in float32) after {card['steps']:,} steps"
    )
    return 0
