"""``mixerflow evaluate RUN``: bits/dim on images, beside what ordinary codecs need."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from mixerflow import images as pictures
from mixerflow.cli.parse import data_of, parse
from mixerflow.data import Images
from mixerflow.data import load as load_data
from mixerflow.errors import ConfigError, DataError
from mixerflow.evaluate import Bits, bits
from mixerflow.processes import Processes, joined
from mixerflow.training import device_of, labels_of, load, read_header
from mixerflow.training.disk import write_atomically
from mixerflow.training.progress import Bar


@dataclass(frozen=True)
class Arguments:
    """Bits/dim of a run on images, beside PNG and lossless WebP for the same images."""

    run: tyro.conf.Positional[Path]
    """The run folder, or published weights."""
    data: str | None = None
    """Images: a folder, a file or a set's name; by default what the run was trained on."""
    split: Literal["test", "train"] = "test"
    """Which part of the data; all of it, where it has no test part."""
    images: int | None = None
    """Look at the first so many only."""
    checkpoint: Literal["best", "last"] = "best"
    """Which weights."""
    raw: bool = False
    """The weights themselves rather than their moving average."""
    seed: int = 0
    """Of the dequantisation noise."""
    batch: int = 128
    """Images at a time, in each process."""
    device: str = "cpu"
    """Where to compute."""
    json: bool = False
    """Print JSON rather than a table."""
    transparency: str = "refuse"
    """Transparent images: refuse, or the colour to put them on."""
    on_bad_image: Literal["stop", "skip"] = "stop"
    """A bad image file: stop, or skip and list it."""


def main(arguments: list[str]) -> int:
    """Score, compare, print, and keep the figures in the run folder."""
    given = parse(Arguments, arguments, prog="mixerflow evaluate")
    if given.batch < 1:
        raise ConfigError(f"{given.batch} images at a time", "--batch", "give at least 1")
    with joined() as processes:
        return _evaluate(given, processes)


def _evaluate(given: Arguments, processes: Processes) -> int:
    device = processes.place(device_of(given.device))
    flow = load(given.run, which=given.checkpoint, average=not given.raw, device=device)
    header = read_header(given.run)
    images, split = images_of(
        data_of(header, given.data),
        split=given.split,
        images=given.images,
        transparency=given.transparency,
        on_bad_image=given.on_bad_image,
    )
    if images.shape != flow.shape:
        what = f"images are {images.shape}, the run's are {flow.shape}"
        raise DataError(what, images.dataset_id, "give images of that shape")
    labels = None if flow.context_net is None else labels_of(header, images)
    with Bar("image", len(images), quiet=given.json or not processes.main) as bar:
        figure = bits(
            flow,
            images.pixels,
            labels=labels,
            batch=given.batch,
            seed=given.seed,
            dataset_id=images.dataset_id,
            split=split,
            on_batch=lambda n: bar.update(bar.done + n, ""),
            processes=processes,
        )
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


def images_of(
    spec: str,
    *,
    split: Literal["test", "train"],
    images: int | None,
    transparency: str,
    on_bad_image: Literal["stop", "skip"],
) -> tuple[Images, str]:
    """The images to score, and what to call that part of their data.

    Raises:
        ConfigError: fewer than one image.
        DataError: images that cannot be found, read or used.
    """
    splits = load_data(spec, transparency=transparency, on_bad_image=on_bad_image)
    if split == "test" and splits.test is not None:
        chosen, name = splits.test, "test"
    else:
        chosen, name = splits.train, "train" if split == "train" else "all"
    if images is not None:
        if images < 1:
            raise ConfigError(f"{images} images", "--images", "give at least 1")
        count = min(images, len(chosen))
        name = name if count == len(chosen) else f"{name}, first {count}"
        chosen = chosen.take(np.arange(count))
    return chosen, name


def _keep(run: Path, result: dict[str, Any]) -> None:
    name = "".join(c if c.isalnum() else "-" for c in f"{result['dataset_id']}-{result['split']}")
    folder = run / "evaluations"
    folder.mkdir(exist_ok=True)
    write_atomically(folder / f"{name}.json", (json.dumps(result, indent=2) + "\n").encode())


def _show(figure: Bits, others: dict[str, float | None]) -> None:
    title = f"{figure.dataset_id}, {figure.split}: {figure.images} images"
    table = Table("", "bits/dim", "± s.e.", "what it is", title=title)
    kind = f"{figure.density} density, {figure.dequantization} dequantisation"
    if figure.dequantization == "uniform":
        kind += ", one draw an image"
    model = f"{figure.bits_per_dim:.3f}"
    table.add_row("the flow", model, f"{figure.standard_error:.3f}", kind)
    for name, value in others.items():
        shown = "n/a" if value is None else f"{value:.3f}"
        table.add_row(name, shown, "", "lossless code, headers included")
    Console().print(table)
