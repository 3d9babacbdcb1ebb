"""``mixerflow restore``: its table, and what it writes: figures, pictures and single images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.box import SIMPLE
from rich.table import Column, Table
from torch import Tensor

from mixerflow import pictures
from mixerflow.cli.evaluate import file_name
from mixerflow.cli.singles import write_singles
from mixerflow.core import Flow, Samples
from mixerflow.evaluate import to_pixels
from mixerflow.means import mean_and_error
from mixerflow.restoration import Row
from mixerflow.runs.files import sealed, write_atomically, writing
from mixerflow.terminal import say, show


def print_rows(result: dict[str, Any], rows: list[Row]) -> None:
    """Print a row for each way to restore, with means over the images and standard errors."""
    plural = "" if result["images"] == 1 else "s"
    where = f"{result['dataset_id']}, {result['split']}"
    say(f"{where}: {result['images']:,} image{plural}; {result['words']}")
    scored = any(row.psnr is not None for row in rows)
    heads = [*(("PSNR, dB", "± s.e.") if scored else ()), "bits/dim", "± s.e."]
    table = Table("", *(Column(head, justify="right") for head in heads), box=SIMPLE)
    for row in rows:
        near = _figures(row.psnr, 2) if scored else ()
        table.add_row(row.name, *near, *_figures(row.bits_per_dim, 3))
    show(table)
    search, threads = result["search"], result["threads"]
    kind = search["type"].removesuffix("Search").lower()
    say(
        f"restored: {search['steps']} steps in {kind} space, rate {search['rate']:g}, prior "
        f"{search['prior']:g}; {result['seconds']:.0f} s, {threads} "
        f"thread{'' if threads == 1 else 's'}",
        "bits/dim of real numbers, without dequantisation noise: no code length",
    )
    if any(row.name.startswith("filter") for row in rows):
        say("filter: the Gaussian filter of the width, in pixels, that the truth chooses")


def _figures(values: Tensor | None, digits: int) -> tuple[str, str]:
    if values is None:
        return "", ""
    mean, error = mean_and_error(values)
    return f"{mean:.{digits}f}", "" if error is None else f"{error:.{digits}f}"


def write_copies(
    result: dict[str, Any], rows: list[Row], strip: Tensor, flow: Flow, folder: Path, scale: int
) -> list[Path]:
    """Write figures and pictures into a folder; return their files.

    The pictures show the truth, the `strip` of measurements ``(N, *shape)``, and the other images,
    a row for each, and a column for each image. Images of other than two axes have no pictures.

    Raises:
        ResourceError: the folder cannot be written.
    """
    settings = result["search"]
    words = [result["dataset_id"], result["split"], result["words"]]
    words += [settings["type"], *(f"{settings[key]:g}" for key in ("steps", "rate", "prior"))]
    words += [f"seed{result['seed']}"] if result["seed"] else []
    words += [] if result["weights"]["checkpoint"] == "best" else ["last"]
    words += [] if result["weights"]["averaged"] else ["raw"]
    words += ["measured"] if result["measured"] else []
    path = folder / f"{file_name(' '.join(words))}.json"
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, sealed(result))
        if strip.dim() == 4:
            shown = {"measurement": strip}
            images = {row.name: row.images for row in rows}
            order = [images.pop("truth")] if "truth" in images else []
            order += (shown | {k: v for k, v in images.items() if k != "measurement"}).values()
            pixels = whole_pixels(flow, torch.cat(order))
            picture = path.with_suffix(".png")
            pictures.save(pictures.grid(pixels, columns=len(strip), scale=scale), picture)
            return [path, picture]
    return [path]


def write_files(restored: Tensor, flow: Flow, folder: Path, *, force: bool) -> None:
    """Write each restored image ``(N, *shape)`` as a PNG file."""
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        write_singles(whole_pixels(flow, restored), folder, force=force)


def whole_pixels(flow: Flow, images: Tensor) -> np.ndarray:
    """Return images in the unit of pixel values as the nearest pixels, of uint8 or uint16."""
    assert flow.levels is not None
    values = images.clamp(0, flow.levels - 1).round().cpu()
    return to_pixels(flow, Samples(values, 0, torch.zeros_like(values, dtype=torch.bool)))
