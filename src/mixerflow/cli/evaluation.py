"""The images that weights are judged by: what `evaluate` and `publish` ask alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from mixerflow.cli.parse import data_of
from mixerflow.data import Images, load
from mixerflow.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class EvaluationArguments:
    """Which images, and how they are scored."""

    data: str | None = None
    """Images: a folder, a file or a set's name; by default what the run was trained on."""
    split: Literal["test", "train"] = "test"
    """Which part of the data; all of it, where it has no test part."""
    images: int | None = None
    """Look at the first so many only."""
    checkpoint: Literal["best", "last"] = "best"
    """Which weights; "last" are what another run is to go on from."""
    raw: bool = False
    """The weights themselves rather than their moving average."""
    seed: int = 0
    """Of the dequantisation noise."""
    batch: int = 128
    """Images at a time, in each process."""
    device: str = "cpu"
    """Where to compute: cpu or cuda. cuda is experimental: it has never run on a GPU here."""
    transparency: str | None = None
    """Transparent images: refuse, or the colour to put them on; by default as the run does."""
    on_bad_image: Literal["stop", "skip"] | None = None
    """A bad image file: stop, or skip and list it; by default as the run does."""

    def check(self) -> None:
        """Raise a ConfigError for numbers that cannot be."""
        if self.batch < 1:
            raise ConfigError(f"{self.batch} images at a time", "--batch", "give at least 1")
        if self.images is not None and self.images < 1:
            raise ConfigError(f"{self.images} images", "--images", "give at least 1")

    def choose(self, header: dict[str, Any]) -> tuple[Images, str]:
        """The images to score the run of that ``run.json`` with, and what to call that part.

        Raises:
            DataError: images that cannot be found, read or used.
        """
        options = options_of(header)
        given = {"transparency": self.transparency, "on_bad_image": self.on_bad_image}
        options |= {name: value for name, value in given.items() if value is not None}
        splits = load(data_of(header, self.data), **options)
        if self.split == "test" and splits.test is not None:
            chosen, name = splits.test, "test"
        else:
            chosen, name = splits.train, "train" if self.split == "train" else "all"
        if self.images is not None and self.images < len(chosen):
            return chosen.take(np.arange(self.images)), f"{name}, first {self.images}"
        return chosen, name


def options_of(header: dict[str, Any]) -> dict[str, Any]:
    """How the run of that ``run.json`` read its images, for `mixerflow.data.load`."""
    source = header.get("source") or {}
    return {name: source[name] for name in ("transparency", "on_bad_image") if name in source}
