"""Weights of a run folder or published ones, with their metadata, and the flow that they make."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from mixerflow.core import Flow
from mixerflow.errors import CheckpointError, ConfigError
from mixerflow.named import CARD
from mixerflow.registry import describe, restore
from mixerflow.runs.bounded import flow_within
from mixerflow.runs.checkpoint import Checkpoints
from mixerflow.runs.folder import FORMAT, RunFolder
from mixerflow.runs.kinds import CARD_KINDS, misfit
from mixerflow.runs.located import Located, locate, shown, spelled
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

_OF_HEADS = ("head", "base")
"""Modules of a flow that hold what a head learns."""
_KINDS = ("not averaged", "averaged")
Which = Literal["best", "last"] | int
"""The checkpoint of fewest validation bits/dim, the last one, or that of a step."""


@dataclass(frozen=True, eq=False)
class Weights:
    """A state dict and its metadata.

    Attributes:
        metadata: the content of ``run.json``, or of ``card.json``, which has its entries and more.
        path: the folder that holds the weights' file.
        tensors: the state dict, on the CPU, in the file's dtypes.
        steps: steps that the run took to the weights; for published ones, the steps of all runs.
        published: whether `metadata` is a card.
        kind: words for which weights they are: "best checkpoint, averaged".
        located: where they are from: the package, the hub, or a path alone.
    """

    metadata: dict[str, Any]
    path: Path
    tensors: dict[str, Tensor]
    steps: int
    published: bool = False
    kind: str = ""
    located: Located | None = None

    @property
    def named(self) -> dict[str, str]:
        """What results say of published weights: "sha256", and where from, as `Located.named`."""
        source = {} if self.located is None else self.located.named()
        return {"sha256": self.sha256, **source} if self.published else {}

    @property
    def sha256(self) -> str:
        """SHA-256 of the safetensors file that holds just these weights."""
        if self.published:
            return self.metadata["files"][MODEL]["sha256"]
        return entry(pack_tensors(self.tensors))["sha256"]

    @property
    def pieces(self) -> list[dict[str, Any]]:
        """The runs that led to these weights, in order; each began from the weights before."""
        if self.published:
            return self.metadata["pieces"]
        return pieces_of(self.metadata, self.steps)

    def flow(self, device: torch.device) -> Flow:
        """Build the flow, in eval mode, with these weights in float32.

        Raises:
            CheckpointError: a flow of somebody's own code, or weights that do not fit the model.
        """
        file = CARD if self.published else "run.json"
        spec = self.metadata["model"]
        if spec is None:
            remedy = "build the flow yourself and load model.safetensors into it"
            raise CheckpointError("a flow of classes not registered", self.path, remedy)
        numbers = sum(tensor.numel() for tensor in self.tensors.values())
        where = self.path / file
        flow = flow_within(spec, where, numbers=numbers, parts=len(self.tensors))
        if difference := _difference(flow.state_dict(), self.tensors):
            what, remedy = f"the weights do not fit {file}'s model", f"restore {file} from a copy"
            raise CheckpointError(f"{what} ({difference})", self.path, remedy)
        flow.load_state_dict(self.tensors)
        return flow.to(device).eval()


def _difference(state: dict[str, Tensor], tensors: dict[str, Tensor]) -> str:
    """Return the first difference of names, shapes and kinds of numbers; an empty text if none."""
    for name in dict.fromkeys((*state, *tensors)):
        mine, theirs = (
            None if (t := each.get(name)) is None else (tuple(t.shape), t.is_floating_point())
            for each in (state, tensors)
        )
        if mine != theirs:
            words = [_words(each.get(name)) for each in (tensors, state)]
            return f"{name[:100]}: {words[0]} where it has {words[1]}"
    return ""


def _words(tensor: Tensor | None) -> str:
    return "nothing" if tensor is None else f"{tensor.dtype} {tuple(tensor.shape)}"


def pieces_of(metadata: dict[str, Any], steps: int) -> list[dict[str, Any]]:
    """Return the runs that led to a run's weights after `steps` of its own steps, in order."""
    origin = metadata.get("origin") or {}
    config = describe(restore(TrainConfig, metadata["train"]))
    kept = ("schedule_start", "schedule_steps", "batch", "lr", "betas", "ema", "clip", "precision")
    parts = ("optimizer", "schedule", "augmentation")
    piece = {
        "steps": steps,
        "of": metadata.get("steps"),
        "from_sha256": origin.get("sha256"),
        "moments": bool(origin.get("moments")),
        **{name: config[name] for name in (*kept, *parts, "seed")},
        **{name: metadata.get(name) for name in ("recipe", "command", "seconds", "versions")},
        "device": (metadata.get("machine") or {}).get("device"),
    }
    return [*origin.get("pieces", []), piece]


def is_published(path: Path) -> bool:
    """Whether a folder holds published weights."""
    try:
        return (path / CARD).is_file()
    except OSError:  # a name too long, or a folder that may not be entered: reading says why
        return False


def read_metadata(path: Path) -> dict[str, Any]:
    """Return the content of ``run.json``, or of the card of published weights.

    Raises:
        ConfigError: neither is there.
        CheckpointError: it is damaged, or of another format.
        ResourceError: the hub cannot be reached; see `locate`.
    """
    path = locate(path).path
    if not is_published(path):
        return RunFolder(path).read_started()
    try:
        card = unseal(path / CARD)
    except Damage as damage:
        raise _damaged(damage) from damage
    if card.get("format") != FORMAT:
        what, remedy = "a card of another version", "use the mixerflow that wrote it"
        raise CheckpointError(what, path / CARD, remedy)
    if entry := misfit(card, CARD_KINDS):
        raise _damaged(Damage(f"its entry {entry} is missing or of another kind", path / CARD))
    return card


def read_weights(path: Path, *, which: Which = "best", average: bool = True) -> Weights:
    """Read the weights of a run folder, or published ones; a file is verified before it is parsed.

    Args:
        path: the folder, or a name: ``weights/NAME`` of the package, ``hf://OWNER/NAME`` of the
            hub.
        which: the checkpoint of a run.
        average: for a run, take the averaged weights rather than the raw ones.

    Raises:
        CheckpointError: no weights there, or damaged ones; names the file and the remedy.
        ConfigError: no such checkpoint, or one, or raw weights, that published weights do not have.
        ResourceError: the hub cannot be reached; see `locate`.
    """
    if which not in ("best", "last") and not isinstance(which, int):
        raise ConfigError(f"no checkpoint is called {which!r}", "which", "best, last or a step")
    located = locate(path)
    path = located.path
    if is_published(path):
        if not average or isinstance(which, int):
            remedy = "name the run folder that they are from"
            raise ConfigError("published weights are of one kind and step", path, remedy)
        return _read_published(located)
    folder = RunFolder(path)
    try:
        metadata = folder.read_started()
    except ConfigError as error:
        remedy = "name a folder that `mixerflow train` or `mixerflow publish` made"
        raise CheckpointError("no run here", path, remedy) from error
    checkpoints = Checkpoints(path / "checkpoints")
    if which == "best" and not (checkpoints.root / "best").exists():
        which = "last"  # the run stopped before its first validation
    checkpoint = checkpoints.load(which, weights_only=True)
    tensors = checkpoint.ema if average and checkpoint.ema is not None else checkpoint.model
    name = f"{which} checkpoint" if isinstance(which, str) else "checkpoint"
    kind = f"{name}, {_KINDS[tensors is checkpoint.ema]}"
    return Weights(metadata, checkpoint.path, tensors, checkpoint.step, kind=kind)


def _read_published(located: Located) -> Weights:
    path = located.path
    card = read_metadata(path)
    try:
        data = read_verified(path / MODEL, card["files"][MODEL])
        tensors = parse(path / MODEL, data)
    except Damage as damage:
        raise _damaged(damage) from damage
    kind = f"published, {_KINDS[bool(card['averaged'])]}" if "averaged" in card else "published"
    steps = card["steps"]
    return Weights(card, path, tensors, steps, published=True, kind=kind, located=located)


def _damaged(damage: Damage) -> CheckpointError:
    remedy = (
        "get the folder anew, or publish the run again: `mixerflow publish RUN --to FOLDER --force`"
    )
    return CheckpointError(f"published weights damaged ({damage.what})", damage.path, remedy)


def load(
    run: Path | str,
    *,
    which: Which = "best",
    average: bool = True,
    device: torch.device | str = "cpu",
) -> Flow:
    """Return the flow of a run folder or of published weights, in eval mode.

    Args:
        run: the folder, or a name: ``weights/NAME`` that ships with the package, or
            ``hf://OWNER/NAME[@REVISION]`` on the Hugging Face hub (extra `hub`).
        which: the step with the lowest validation bits/dim, the last, or a step's number.
        average: take the averaged weights, of which the published figures are, not the raw ones.
        device: the flow's device.

    Raises:
        CheckpointError: no run there, or a damaged one; names the file and the remedy.
        ConfigError: no such device, checkpoint or repository.
        ResourceError: the hub cannot be reached, or a file there is too large.
    """
    place = device_of(device)
    return read_weights(Path(run), which=which, average=average).flow(place)


def device_of(name: torch.device | str) -> torch.device:
    """Return the device of a name; "auto" is a GPU where there is one (experimental), or the CPU.

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


def begin_from(flow: Flow, path: Path) -> dict[str, Any]:
    """Load the averaged weights of a run folder, or published ones, into a flow of the same model.

    A flow with a head may begin from weights without one: its head stays as it is. A flow without a
    head may begin from weights with one, unless it is a Gaussian for each class, a part of the
    density.

    Returns:
        The entry "origin" of ``run.json``: the path or name as given, the file's SHA-256, the steps
        that all runs before took, and those runs; for weights of the hub, their revision.

    Raises:
        ConfigError: the flow is of another model; names the first setting that differs.
        CheckpointError: no weights there, or damaged ones.
    """
    weights = read_weights(path)
    spec = weights.metadata["model"]
    require_same_model(flow, spec, shown(path))
    tensors = weights.tensors
    if spec is not None and spec.get("head") is None:
        own = {k: t for k, t in flow.state_dict().items() if k.partition(".")[0] in _OF_HEADS}
        tensors = {**own, **tensors}
    elif not flow.classifies:
        tensors = {k: t for k, t in tensors.items() if not k.startswith("head.")}
    if difference := _difference(flow.state_dict(), tensors):
        what, remedy = f"the weights do not fit their own model ({difference})", "get it anew"
        raise CheckpointError(what, weights.path, remedy)
    flow.load_state_dict(tensors)
    located = weights.located
    source = {} if located is None else located.named()
    return origin_of(path, weights.sha256, weights.pieces) | source


def origin_of(path: Path, sha256: str, pieces: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the entry "origin" of a run that begins from weights with this SHA-256."""
    steps = sum(piece["steps"] for piece in pieces)
    return {"path": spelled(path), "sha256": sha256, "steps": steps, "pieces": pieces}


def require_same_model(flow: Flow, spec: dict[str, Any] | None, path: Path | str) -> None:
    """Raise a ConfigError that names the first setting in which a flow differs from a spec."""
    if spec is None or flow.spec is None:
        remedy = "build the flow yourself, load model.safetensors into it, and call mixerflow.train"
        raise ConfigError("a flow made by hand", path, remedy)
    mine, theirs = model_settings(flow.spec), model_settings(spec)
    own, other = mine.get("model.head"), theirs.get("model.head")
    if other is None or (own is None and other != "gaussians"):  # a head is added, or dropped
        mine, theirs = (
            {name: value for name, value in each.items() if not name.startswith("model.head")}
            for each in (mine, theirs)
        )
    for name in dict.fromkeys(["model", "model.shape", *mine, *theirs]):
        if mine.get(name) == theirs.get(name):
            continue
        flag = f"set --{name.replace('_', '-')} to {theirs.get(name)}"
        own = name in ("model", "model.shape")
        remedy = "train a recipe of theirs on images of theirs" if own else flag
        raise ConfigError(f"its {name} is {theirs.get(name)}, not {mine.get(name)}", path, remedy)
