"""Weights that a run folder keeps or that were published, and the flow that they make."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from mixerflow.core import Flow
from mixerflow.data import Images
from mixerflow.errors import CheckpointError, ConfigError, DataError
from mixerflow.models import flow_from
from mixerflow.registry import restore
from mixerflow.runs.checkpoint import Checkpoints
from mixerflow.runs.folder import FORMAT, RunFolder
from mixerflow.runs.manifest import (
    MODEL,
    Damage,
    entry,
    pack_tensors,
    parse,
    read_verified,
    unseal,
)
from mixerflow.runs.metadata import model_settings
from mixerflow.train_config import TrainConfig

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


def device_of(name: torch.device | str) -> torch.device:
    """The device of that name; "auto" is a GPU where there is one.

    Raises:
        ConfigError: this machine has no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda"):
            raise RuntimeError(f"flows run on cpu and cuda, not on {device.type}")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError("no such device here", f"--device {name}", "use cpu") from error
    return device


def load(
    run: Path | str,
    *,
    which: Literal["best", "last"] | int = "best",
    average: bool = True,
    device: torch.device | str = "cpu",
) -> Flow:
    """The flow of a run folder or of published weights, in eval mode.

    Args:
        run: the folder.
        which: the step with the lowest validation bits/dim, the last, or a step's number.
        average: the averaged weights, with which the published figures are made, not the raw ones.
        device: where to put it.

    Raises:
        CheckpointError: no run there, or a damaged one; names the file and what to do.
        ConfigError: a device or checkpoint that there is not.
    """
    if which not in ("best", "last") and not isinstance(which, int):
        raise ConfigError(f"no checkpoint is called {which!r}", "which", "best, last or a step")
    place = device_of(device)
    return stored(Path(run), which=which, average=average).flow(place)


def labels_of(header: dict[str, Any], images: Images) -> np.ndarray:
    """The labels of `images` in the numbering of the run whose ``run.json``, or card, is `header`.

    Raises:
        DataError: images without labels, or with classes that the run does not know.
    """
    if images.labels is None:
        raise DataError("a class-conditional run needs labels", images.dataset_id, "add them")
    known = list(header["data"]["classes"])
    if list(images.classes) == known:
        return images.labels
    unknown = sorted(set(images.classes) - set(known))
    if not images.classes or unknown:
        what = f"classes {list(images.classes)} are not the run's {known}"
        raise DataError(what, images.dataset_id, "name the class folders as in training")
    return np.array([known.index(name) for name in images.classes])[images.labels]


def begin_from(flow: Flow, path: Path) -> dict[str, Any]:
    """Give a flow the averaged weights of a run folder, or published ones.

    They are initialised, so training goes on with them as they are.

    Returns:
        What ``run.json`` says of it under "origin": the path as given, the file's SHA-256, the
        steps that all runs before took, and those runs.

    Raises:
        ConfigError: the flow is not such as theirs; names the first setting that differs.
        CheckpointError: no weights there, or damaged ones.
    """
    held = stored(path)
    _check(flow, held.header["model"], path)
    try:
        flow.load_state_dict(held.weights)
    except RuntimeError as error:
        what, remedy = "the weights do not fit their own model", "get the folder anew"
        raise CheckpointError(what, held.path, remedy) from error
    pieces = held.pieces
    return {
        "path": str(path),
        "sha256": held.sha256,
        "steps": sum(piece["steps"] for piece in pieces),
        "pieces": pieces,
    }


def _check(flow: Flow, spec: dict[str, Any] | None, path: Path) -> None:
    if spec is None or flow.spec is None:
        remedy = "build the flow yourself, load model.safetensors into it, and call mixerflow.train"
        raise ConfigError("a flow made by hand", path, remedy)
    mine, theirs = model_settings(flow.spec), model_settings(spec)
    for name in dict.fromkeys(["model", "model.shape", *mine, *theirs]):
        if mine.get(name) == theirs.get(name):
            continue
        flag = f"set --{name.replace('_', '-')} to {theirs.get(name)}"
        own = name in ("model", "model.shape")
        remedy = "train a recipe of theirs on images of theirs" if own else flag
        raise ConfigError(f"its {name} is {theirs.get(name)}, not {mine.get(name)}", path, remedy)
