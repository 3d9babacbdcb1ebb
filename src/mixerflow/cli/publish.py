"""``mixerflow publish RUN --to FOLDER``: a run's weights as one small file, with a card."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from mixerflow.cli.evaluation import EvaluationArguments
from mixerflow.cli.parse import parse
from mixerflow.errors import ConfigError
from mixerflow.progress import ProgressBar
from mixerflow.runs import Evaluator, RunFolder, is_published, publish


@dataclass(frozen=True, kw_only=True)
class Arguments(EvaluationArguments):
    """Write a run's averaged weights, rounded to 16 bits, with a card that says what they are."""

    run: tyro.conf.Positional[Path]
    """The run folder."""
    to: Path
    """The folder to write, such as weights/NAME; only better weights replace those there."""
    limit_mb: float = 25.0
    """Millions of bytes that the file may have."""
    force: bool = False
    """Replace what is published there, even by what is worse."""


def main(arguments: list[str]) -> int:
    """Round, judge, write, and say what was written."""
    given = parse(Arguments, arguments, prog="mixerflow publish")
    given.check()
    if not given.limit_mb > 0:
        raise ConfigError(f"{given.limit_mb} MB", "--limit-mb", "give more than 0")
    if is_published(given.run):
        raise ConfigError("these weights are published already", given.run, "name a run folder")
    header = RunFolder(given.run).read_metadata()
    images, split = given.choose(header)
    with ProgressBar("image", 2 * len(images)) as bar:
        judge = Evaluator(
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
