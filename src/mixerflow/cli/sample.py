"""``mixerflow sample`` and ``report``: look at a run, by images drawn from it or by its page."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro

from mixerflow import pictures
from mixerflow.cli.evaluate import WeightsArguments
from mixerflow.cli.parse import parse
from mixerflow.cli.reading import ReadingFlags, load_run_data
from mixerflow.errors import ConfigError
from mixerflow.evaluate import draw_pixels
from mixerflow.runs import RunFolder, load
from mixerflow.runs.files import write_atomically, writing


@dataclass(frozen=True, kw_only=True)
class _SampleArguments(WeightsArguments):
    """Draw images from a run: a PNG grid, and single files on request."""

    run: tyro.conf.Positional[Path]
    """The run folder, or published weights."""
    number: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 64
    """How many images."""
    temperature: float = 1.0
    """Scales the latents: below 1 gives likelier, less varied images."""
    label: int | None = None
    """Class to draw from a class-conditional run; by default all in turn."""
    seed: int = 0
    """Seed of the draws."""
    out: Path | None = None
    """The grid's file; by default in the run folder's samples."""
    files: Path | None = None
    """A folder for the single images, as PNG files."""
    scale: int = 2
    """Side of the square that stands for one pixel of the grid."""


def sample(arguments: list[str]) -> int:
    """Draw images, write them, and print how many values are clamped or not finite."""
    given = parse(_SampleArguments, arguments, prog="mixerflow sample")
    _check(given)
    flow = load(given.run, which=given.checkpoint, average=not given.raw, device=given.device)
    if given.label is not None and flow.context_net is None:
        raise ConfigError("the run has no classes", "--label", "leave it out")
    if given.label is not None and isinstance(flow.context_net, torch.nn.Embedding):
        classes = flow.context_net.num_embeddings
        if not 0 <= given.label < classes:
            raise ConfigError(f"{given.label}", "--label", f"give 0 to {classes - 1}")
    drawn = draw_pixels(
        flow, given.number, seed=given.seed, temperature=given.temperature, label=given.label
    )
    label = "" if given.label is None else f"-label{given.label}"
    weights = ("" if given.checkpoint == "best" else "-last") + ("-raw" if given.raw else "")
    name = f"n{given.number}-t{given.temperature:g}-seed{given.seed}{label}{weights}.png"
    out = given.out or given.run / "samples" / name
    with writing(out.parent):
        out.parent.mkdir(parents=True, exist_ok=True)
        pictures.save(pictures.grid(drawn.pixels, scale=given.scale), out)
    if given.files is not None:
        with writing(given.files):
            given.files.mkdir(parents=True, exist_ok=True)
            for i, image in enumerate(drawn.pixels):
                write_atomically(given.files / f"{i:05}.png", pictures.png_bytes(image))
    print(f"{given.number} images in {out}; {drawn}")
    return 0


def _check(given: _SampleArguments) -> None:
    if given.number < 1:
        raise ConfigError(f"{given.number} images", "-n", "draw at least 1")
    if not 0 <= given.temperature < math.inf:
        raise ConfigError(f"{given.temperature}", "--temperature", "give 0 or more, finite")
    if not 0 <= given.seed < 2**63:
        raise ConfigError(f"{given.seed}", "--seed", "give 0 or more, less than 2^63")
    if given.scale < 1:
        raise ConfigError(f"{given.scale}", "--scale", "give at least 1")
    if given.out is not None and given.out.suffix.lower() not in (".png", ".webp", ".bmp", ".tiff"):
        raise ConfigError("not a picture's name", f"--out {given.out}", "let it end in .png")


@dataclass(frozen=True, kw_only=True)
class _ReportArguments(ReadingFlags):
    """Write report.html into a run folder."""

    run: tyro.conf.Positional[Path]
    """The run folder."""
    data: str | None = None
    """Images to show; by default the run's own."""


def report(arguments: list[str]) -> int:
    """Write the page of a run and print its path."""
    given = parse(_ReportArguments, arguments, prog="mixerflow report")
    metadata = RunFolder(given.run).read_metadata()
    from mixerflow.report import write_report  # matplotlib takes a second, which --help saves

    splits = load_run_data(metadata, given.data, given)
    print(write_report(given.run, splits.train if splits.test is None else splits.test))
    return 0
