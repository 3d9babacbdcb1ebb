"""``mixerflow publish``: a run's weights as one small file with a card."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tyro

from mixerflow import runs
from mixerflow.cli.evaluate import EvaluationArguments
from mixerflow.cli.figures import advance, bar_of
from mixerflow.cli.parse import parse
from mixerflow.errors import ConfigError
from mixerflow.evaluate import kind_of, probes_of
from mixerflow.runs import Evaluator
from mixerflow.runs.bounded import flow_within_reason
from mixerflow.terminal import say


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
    metadata = runs.RunFolder(given.run).read_started()
    images, split = given.load_images(metadata)
    evaluator = Evaluator(images, split, seed=given.seed, batch=given.batch, device=given.device)
    flow = flow_within_reason(metadata["model"], given.run / "run.json")  # without its weights
    passes = evaluator.passes(flow)
    with bar_of(evaluator, flow, times=2) as bar:
        runs.publish(
            given.run,
            given.to,
            replace(evaluator, on_batch=lambda count: advance(bar, count, passes)),
            which=given.checkpoint,
            average=not given.raw,
            limit_mb=given.limit_mb,
            force=given.force,
            on_card=_print_card,
        )
    say(f"written to {given.to}")
    return 0


def _print_card(card: dict[str, Any]) -> None:
    (file,) = card["files"].values()
    kind = "; ".join(filter(None, (kind_of(card["figure"]), probes_of(card["figure"]))))
    say(
        f"{file['bytes'] / 1e6:.1f} MB, {card['figure']['bits_per_dim']:.4f} bits/dim "
        f"({card['float32']['bits_per_dim']:.4f} in float32) after {card['steps']:,} steps; "
        f"{kind}"
    )
