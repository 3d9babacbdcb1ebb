"""``mixerflow publish``: a run's weights as one small file with a card, and on the hub."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tyro

from mixerflow import runs
from mixerflow.cli.evaluate import EvaluationArguments
from mixerflow.cli.figures import advance, bar_of
from mixerflow.cli.inside import FitFlags, Measurer, fit_of
from mixerflow.cli.parse import parse
from mixerflow.errors import ConfigError
from mixerflow.evaluate import kind_of, probes_of
from mixerflow.hub import require_token
from mixerflow.named import HubName, hub_name
from mixerflow.runs import Evaluator
from mixerflow.runs.bounded import flow_within_reason
from mixerflow.signals import Stopped
from mixerflow.terminal import say, tell


@dataclass(frozen=True, kw_only=True)
class _PublishArguments(FitFlags, EvaluationArguments):
    """Write a run's averaged weights, rounded to 16 bits, with a card, samples and thresholds."""

    run: tyro.conf.Positional[Path]
    """The run folder; with --push also published weights, which are pushed as they are."""
    to: Path | None = None
    """The folder to write, such as weights/NAME; only better weights replace older ones."""
    limit_mb: float = 25.0
    """Millions of bytes that the file may have."""
    force: bool = False
    """Replace the published weights there, even by worse ones."""
    thresholds: bool | None = None
    """Fit thresholds of outliers for the rounded weights; by default if the run has thresholds from
    its validation images, or --inside names others."""
    push: str | None = None
    """Push to this repository of the Hugging Face hub, OWNER/NAME, in one commit."""
    private: bool = False
    """A repository that is made for it is private."""
    license: str = ""
    """License of the weights, as the hub names it: apache-2.0, cc-by-4.0, ..."""

    def repository(self) -> HubName | None:
        """Return the repository to push to, after a look for its flags and for a token."""
        if self.push is None:
            for flag in ("private", "license"):
                if getattr(self, flag):
                    what = "only what is pushed has it"
                    raise ConfigError(what, f"--{flag}", "give --push OWNER/NAME")
            return None
        name = hub_name(self.push if self.push.startswith("hf:/") else f"hf://{self.push}")
        if name is None or name.revision:
            raise ConfigError("no name of a repository", f"--push {self.push}", "give OWNER/NAME")
        require_token(name)
        return name


def publish(arguments: list[str]) -> int:
    """Round a run's weights, score them, and write one small file with a card; push the folder.

    The exit code is 0, or 130 / 143 after a signal while thresholds are fitted.
    """
    given = parse(_PublishArguments, arguments, prog="mixerflow publish")
    given.check()
    given.check_inside()
    if not given.limit_mb > 0:
        raise ConfigError(f"{given.limit_mb} MB", "--limit-mb", "give more than 0")
    name, folder = given.repository(), given.to
    if runs.is_published(given.run):
        if name is None or given.to is not None:
            remedy = "name a run folder, or give --push OWNER/NAME without --to"
            raise ConfigError("these weights are published already", given.run, remedy)
        folder = given.run
    elif folder is None:
        raise ConfigError("no folder for the weights", "--to", "name one, such as weights/NAME")
    else:
        _write(given, folder)
        if code := _fit(given, folder):
            return code
    if name is not None:
        pushed = runs.push(folder, name, license=given.license, private=given.private)
        say(f"pushed to {pushed.url}, commit {pushed.revision}")
    return 0


def _write(given: _PublishArguments, to: Path) -> None:
    metadata = runs.RunFolder(given.run).read_started()
    images, split = given.load_images(metadata)
    evaluator = Evaluator(images, split, seed=given.seed, batch=given.batch, device=given.device)
    flow = flow_within_reason(metadata["model"], given.run / "run.json")  # without its weights
    passes = evaluator.passes(flow)
    with bar_of(evaluator, flow, times=2) as bar:
        runs.publish(
            given.run,
            to,
            replace(evaluator, on_batch=lambda count: advance(bar, count, passes)),
            which=given.checkpoint,
            average=not given.raw,
            limit_mb=given.limit_mb,
            force=given.force,
            on_card=_print_card,
        )
    say(f"written to {to}")


def _fit(given: _PublishArguments, to: Path) -> int:
    """Fit thresholds for the weights as published, if they are asked for; return the exit code.

    The run's own are of the weights before they were rounded.
    """
    before = runs.kept_fit(given.run)
    if given.thresholds is False or (given.thresholds is None and not (before or given.inside)):
        return 0
    if before is not None and given.inside is None and before.images.get("split") != "validation":
        if given.thresholds is None:
            names = f"{before.images.get('dataset_id')}, {before.images.get('split')}"
            tell(f"no thresholds: the run's are from {names}; --inside takes them along")
            return 0
        before = None
    alarms, group = given.false_alarms, given.group
    if before is not None:
        alarms = before.fitted.thresholds[0].false_alarms if alarms is None else alarms
        group = before.fitted.group if group is None else group
    usual = {"checkpoint": "best", "raw": False, "seed": 0}
    fitting = replace(given, **usual, false_alarms=alarms, group=group)
    held = runs.read_weights(to)
    flow = held.flow(runs.device_of(given.device))
    try:
        fit_of(to, Measurer(flow, held, fitting, None, quiet=False), fitting)
    except Stopped as stopped:
        return stopped.exit_code
    return 0


def _print_card(card: dict[str, Any]) -> None:
    (file,) = card["files"].values()
    kind = "; ".join(filter(None, (kind_of(card["figure"]), probes_of(card["figure"]))))
    say(
        f"{file['bytes'] / 1e6:.1f} MB, {card['figure']['bits_per_dim']:.4f} bits/dim "
        f"({card['float32']['bits_per_dim']:.4f} in float32) after {card['steps']:,} steps; "
        f"{kind}"
    )
