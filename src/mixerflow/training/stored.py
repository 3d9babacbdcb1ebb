"""Weights that a run folder keeps or that were published, with all that is known of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from mixerflow.core import Flow
from mixerflow.errors import CheckpointError, ConfigError
from mixerflow.models import flow_from
from mixerflow.registry import restore
from mixerflow.train_config import TrainConfig
from mixerflow.training.checkpoint import Checkpoints
from mixerflow.training.folder import FORMAT, RunFolder
from mixerflow.training.manifest import (
    MODEL,
    Damage,
    entry,
    pack_tensors,
    parse,
    read_verified,
    unseal,
)

CARD = "card.json"
"""What makes a folder one of published weights: it names the file `MODEL` beside it."""


@dataclass(frozen=True, eq=False)
class Stored:
    """Weights and their provenance.

    Attributes:
        header: ``run.json``, or ``card.json``, which has the same entries and more.
        path: the folder that holds their file.
        weights: their state dict, on the CPU, as the file has it.
        steps: that the run took to them; of published ones, that all their runs took.
        published: whether `header` is a card.
    """

    header: dict[str, Any]
    path: Path
    weights: dict[str, Tensor]
    steps: int
    published: bool = False

    @property
    def sha256(self) -> str:
        """Of the safetensors file that holds just these weights."""
        if self.published:
            return self.header["files"][MODEL]["sha256"]
        return entry(pack_tensors(self.weights))["sha256"]

    @property
    def pieces(self) -> list[dict[str, Any]]:
        """The runs that led to these weights, the first first, each begun from the one before."""
        if self.published:
            return self.header["pieces"]
        header, origin = self.header, self.header.get("origin") or {}
        config = restore(TrainConfig, header["train"])
        kept = ("start", "whole", "batch", "lr", "betas", "ema", "clip", "precision", "seed")
        piece = {
            "steps": self.steps,
            "of": header.get("steps"),
            "from_sha256": origin.get("sha256"),
            **{name: getattr(config, name) for name in kept},
            **{name: header.get(name) for name in ("recipe", "command", "seconds", "versions")},
            "device": (header.get("machine") or {}).get("device"),
        }
        return [*origin.get("pieces", []), piece]

    def flow(self, device: torch.device) -> Flow:
        """The flow, in eval mode, its weights in float32.

        Raises:
            CheckpointError: a flow of somebody's own code, or weights of another.
        """
        where = "card.json" if self.published else "run.json"
        spec = self.header["model"]
        if spec is None:
            remedy = "build the flow yourself and load model.safetensors into it"
            raise CheckpointError("a flow of classes not registered", self.path, remedy)
        with torch.device("cpu"):
            flow = flow_from(spec, self.path / where)
        try:
            flow.load_state_dict(self.weights)
        except RuntimeError as error:
            what, remedy = f"the weights do not fit {where}'s model", f"restore {where} from a copy"
            raise CheckpointError(what, self.path, remedy) from error
        return flow.to(device).eval()


def is_published(path: Path) -> bool:
    """Whether that is a folder of published weights."""
    return (path / CARD).is_file()


def read_header(path: Path) -> dict[str, Any]:
    """What ``run.json`` says, or the card of published weights.

    Raises:
        ConfigError: neither is there.
        CheckpointError: it is damaged.
    """
    if not is_published(path):
        return RunFolder(path).read_config()
    try:
        card = unseal(path / CARD)
    except Damage as damage:
        raise _damaged(damage) from damage
    if card.get("format") != FORMAT:
        what, remedy = "a card of another version", "use the mixerflow that wrote it"
        raise CheckpointError(what, path / CARD, remedy)
    return card


def stored(
    path: Path, *, which: Literal["best", "last"] | int = "best", average: bool = True
) -> Stored:
    """The weights of a run folder or published ones; no file is parsed before it is verified.

    Args:
        path: the folder.
        which: of a run, the step with the lowest validation bits/dim, the last, or a step.
        average: of a run, the averaged weights rather than the raw ones.

    Raises:
        CheckpointError: nothing there, or damaged; names the file and what to do.
        ConfigError: other weights than those that are published.
    """
    if is_published(path):
        if not average or isinstance(which, int):
            remedy = "name the run folder that they are from"
            raise ConfigError("published weights are of one kind and step", path, remedy)
        return _published(path)
    folder = RunFolder(path)
    if not folder.config_path.exists():
        remedy = "name a folder that `mixerflow train` or `mixerflow publish` made"
        raise CheckpointError("no run here", path, remedy)
    header = folder.read_config()
    if "model" not in header:
        remedy = "restore it from a copy; the weights are in the checkpoints"
        raise CheckpointError("damaged, it names no model", folder.config_path, remedy)
    checkpoints = Checkpoints(path / "checkpoints")
    if which == "best" and not (checkpoints.root / "best").exists():
        which = "last"  # nothing was validated before the run stopped
    checkpoint = checkpoints.load(which, weights_only=True)
    weights = checkpoint.ema if average and checkpoint.ema is not None else checkpoint.model
    return Stored(header, checkpoint.path, weights, checkpoint.step)


def _published(path: Path) -> Stored:
    card = read_header(path)
    try:
        data = read_verified(path / MODEL, card["files"][MODEL])
        weights = parse(path / MODEL, data)
    except Damage as damage:
        raise _damaged(damage) from damage
    return Stored(card, path, weights, card["steps"], published=True)


def _damaged(damage: Damage) -> CheckpointError:
    remedy = "get the folder anew, or publish the run again with --force"
    return CheckpointError(f"published weights damaged ({damage.what})", damage.path, remedy)
