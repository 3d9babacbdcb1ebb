"""Folders of single images, PNG files 00000.png and so on, that a command writes."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from mixerflow import pictures
from mixerflow.errors import ConfigError
from mixerflow.runs.files import write_atomically
from mixerflow.temporary import sweep

_SINGLE = re.compile(r"\d{5,}\.png")


def require_own(folder: Path, number: int) -> None:
    """Refuse a folder with files that this draw does not write: they would pass for its images."""
    try:
        others = sorted(path.name for path in folder.iterdir())
    except OSError:
        return  # no folder yet; or no folder at all, which the try of writing says better
    own = {_name(i) for i in range(number)}
    stay = [name for name in others if name not in own and not name.startswith(".tmp-")]
    if stay:
        remedy = "name an empty folder, or remove the files of an earlier draw with --force"
        what = f"{len(stay):,} other file{'s are' if len(stay) > 1 else ' is'} there ({stay[0]})"
        raise ConfigError(what, folder, remedy)


def write_singles(pixels: np.ndarray, folder: Path, *, force: bool) -> None:
    """Write images ``(N, C, H, W)``; `force` removes those of an earlier command first."""
    folder.mkdir(exist_ok=True)
    sweep(folder)
    if force:
        for path in folder.iterdir():
            if _SINGLE.fullmatch(path.name):
                path.unlink()
    for i, image in enumerate(pixels):
        write_atomically(folder / _name(i), pictures.png_bytes(image))


def _name(number: int) -> str:
    return f"{number:05}.png"
