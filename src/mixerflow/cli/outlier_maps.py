"""``mixerflow outliers --maps``: where in the most outlying images the flow finds them unlikely."""

from __future__ import annotations

import io
from collections.abc import Collection
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mixerflow import pictures, runs
from mixerflow.cli.copies import keeping
from mixerflow.core import Flow, as_tensor
from mixerflow.data import Images
from mixerflow.detection import OutlierMap, Outliers
from mixerflow.errors import ConfigError, nearest
from mixerflow.evaluate import to_pixels
from mixerflow.progress import ProgressBar
from mixerflow.registry import choices
from mixerflow.runs.files import write_atomically, writing
from mixerflow.signals import Interrupt, Stopped
from mixerflow.terminal import say, tell

_SCALE = 2


@dataclass(frozen=True, kw_only=True)
class MapFlags:
    """Which maps are made, and of how many images."""

    maps: str = ""
    """Maps of the most outlying images, as in `slope,occlusion`: slope, occlusion, gradient or
    variance."""
    map_images: int = 16
    """How many images have maps."""
    patch: int | None = None
    """Side in pixels of the windows of an occlusion map; 12 unless given."""
    stride: int | None = None
    """Pixels between its windows; 4 unless given."""

    def chosen_maps(self, flow: Flow) -> dict[str, OutlierMap]:
        """Return the maps that flags name, by their words.

        Raises:
            ConfigError: a map or a number that cannot be, or images that have no maps.
        """
        words = list(dict.fromkeys(word.strip() for word in self.maps.split(",") if word.strip()))
        known, made = choices(OutlierMap), {}
        given = {"patch": self.patch, "stride": self.stride}
        given = {name: value for name, value in given.items() if value is not None}
        for word in words:
            if word not in known:
                raise ConfigError(f"no map {word}", "--maps", nearest(word, known))
            has = {field.name for field in fields(known[word])}
            made[word] = replace(known[word](), **{k: v for k, v in given.items() if k in has})
            made[word].check_flow(flow)
        if self.map_images < 1:
            raise ConfigError(f"{self.map_images} images", "--map-images", "give at least 1")
        for name in given:
            if not any(hasattr(each, name) for each in made.values()):
                remedy = "give --maps occlusion too"
                raise ConfigError("it is for windows, and no map has any", f"--{name}", remedy)
        return made


def ordering(found: Outliers, scores: Collection[str]) -> str:
    """Return the score that orders images: the first of the `scores` that flags name.

    Where they name none, it is that of `Fitted.ordering`.
    """
    wanted = (name for name in scores if name in found.scores)
    return next(wanted, None) or found.fitted.ordering


def mapped(
    given: Any,  # noqa: ANN401
    flow: Flow,
    metadata: dict[str, Any],
    images: Images,
    beside: Path,
    found: Outliers,
    by: str,
) -> list[tuple[str, bytes]]:
    """Write the maps that flags ask for beside a file, and say where they are.

    They are of the most outlying images by the score `by`. Returned are a caption and a PNG file
    for each kind of map, with the images in rows of eight.

    Raises:
        Stopped: after a signal; no maps are written.
    """
    maps = given.chosen_maps(flow)
    if not maps:
        return []
    chosen = found.order(by)[: given.map_images]
    labels = runs.vectors_of(flow, metadata, images)
    path = beside.with_name(f"{beside.stem}-maps")
    with keeping("the map"), writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        settings = {"labels": labels, "batch": given.batch, "quiet": given.json}
        heats = write_maps(flow, images, chosen, maps, path, **settings)
        if not given.json:
            plural = "" if len(chosen) == 1 else "s"
            say(f"maps of the {len(chosen):,} most outlying image{plural} by {by}:")
            say(*(f"in {path.with_suffix(end)}" for end in (".npz", ".png")))
        of = f"of the {len(chosen):,} most outlying images by {by}, in their order"
        return [
            (f"Map {word} {of}", pictures.png_grid(each, columns=8)) for word, each in heats.items()
        ]
    return []


def write_maps(
    flow: Flow,
    images: Images,
    chosen: np.ndarray,
    maps: dict[str, OutlierMap],
    path: Path,
    *,
    labels: np.ndarray | None = None,
    batch: int = 128,
    quiet: bool = False,
) -> dict[str, np.ndarray]:
    """Write maps of the `chosen` images ``(n,)``; return them as heat, ``(n, 3, H, W)``, by word.

    ``PATH.npz`` has the images' numbers as `images`, and ``(n, H, W)`` float32 under each map's
    word. ``PATH.png`` shows the images in a row, and below them a row for each map, as heat.

    Raises:
        ResourceError: the files cannot be written.
        Stopped: after a signal; nothing is written.
    """
    pixels = as_tensor(images.pixels[chosen])
    given = None if labels is None else as_tensor(labels[chosen])
    total = len(chosen) * sum(each.evaluations(flow.shape) for each in maps.values())
    found: dict[str, np.ndarray] = {}
    with ProgressBar("evaluation", total, quiet=quiet) as bar, Interrupt() as interrupt:
        for word, each in maps.items():

            def on_batch(count: int, word: str = word) -> None:
                bar.update(bar.done + count, f"{word} of {len(chosen):,} images")
                if interrupt.requested:
                    tell("stopped: no maps are written")
                    raise Stopped(interrupt.requested)

            values = each.map(flow, pixels, given, batch=batch, on_batch=on_batch)
            found[word] = values.numpy().astype(np.float32)
    data, arrays = io.BytesIO(), {"images": chosen, **found}
    np.savez_compressed(data, **arrays)  # pyright: ignore[reportArgumentType]
    shown = to_pixels(flow, torch.as_tensor(pixels))
    heats = {word: pictures.heat(shown, each) for word, each in found.items()}
    rows = np.concatenate([pictures.coloured(shown), *heats.values()])
    sheet = pictures.grid(rows, columns=len(chosen), scale=_SCALE)
    write_atomically(path.with_suffix(".npz"), data.getvalue())
    pictures.save(sheet, path.with_suffix(".png"))
    return heats
