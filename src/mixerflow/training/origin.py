"""A run that begins from weights of another: what has to fit, and what is kept of where from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mixerflow.core import Flow
from mixerflow.errors import CheckpointError, ConfigError
from mixerflow.training.header import model_settings
from mixerflow.training.stored import stored


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
