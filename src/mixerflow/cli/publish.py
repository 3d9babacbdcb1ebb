"""``mixerflow publish RUN --to FOLDER``: a run's weights as one small file, with a card."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from mixerflow.cli.evaluate import images_of
from mixerflow.cli.parse import data_of, parse
from mixerflow.errors import ConfigError
from mixerflow.training import Judge, RunFolder, is_published, publish
from mixerflow.training.progress import Bar


@dataclass(frozen=True)
class Arguments:
    """Write a run's averaged weights, rounded to 16 bits, with a card that says what they are."""

    run: tyro.conf.Positional[Path]
    """The run folder."""
    to: Path
    """The folder to write, such as weights/NAME; only better weights replace those there."""
    data: str | None = None
    """Images to judge by: a folder, a file or a set's name; by default those of the run."""
    split: Literal["test", "train"] = "test"
    """Which part of the data; all of it, where it has no test part."""
    images: int | None = None
    """Look at the first so many only."""
    checkpoint: Literal["best", "last"] = "best"
    """Which weights; "last" for a run that another is to go on from."""
    raw: bool = False
    """The weights themselves rather than their moving average."""
    limit_mb: float = 25.0
    """Millions of bytes that the file may have."""
    force: bool = False
    """Replace what is published there, even by what is worse."""
    seed: int = 0
    """Of the dequantisation noise."""
    batch: int = 128
    """Images at a time."""
    device: str = "cpu"
    """Where to compute."""
    transparency: str = "refuse"
    """Transparent images: refuse, or the colour to put them on."""
    on_bad_image: Literal["stop", "skip"] = "stop"
    """A bad image file: stop, or skip and list it."""


def main(arguments: list[str]) -> int:
    """Round, judge, write, and say what was written."""
    given = parse(Arguments, arguments, prog="mixerflow publish")
    if given.batch < 1:
        raise ConfigError(f"{given.batch} images at a time", "--batch", "give at least 1")
    if not given.limit_mb > 0:
        raise ConfigError(f"{given.limit_mb} MB", "--limit-mb", "give more than 0")
    if is_published(given.run):
        raise ConfigError("these weights are published already", given.run, "name a run folder")
    header = RunFolder(given.run).read_config()
    images, split = images_of(
        data_of(header, given.data),
        split=given.split,
        images=given.images,
        transparency=given.transparency,
        on_bad_image=given.on_bad_image,
    )
    with Bar("image", 2 * len(images)) as bar:
        judge = Judge(
            images,
            split,
            seed=given.seed,
            batch=given.batch,
            device=given.device,
            on_batch=lambda n: bar.update(bar.done + n, ""),
        )
        card = publish(
            given.run,
            given.to,
            judge,
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
