"""The metadata of a run: the content of ``run.json``, and of the card of published weights."""

from __future__ import annotations

import functools
import os
import platform
import warnings
from typing import Any

import torch

from mixerflow.core import Flow
from mixerflow.data import Images
from mixerflow.errors import ConfigError, DataError
from mixerflow.models import flow_from, from_spec, spec_of_flow
from mixerflow.processes import Processes
from mixerflow.registry import Unregistered, describe, restore, settings_of, word_of
from mixerflow.runs.checkpoint import Checkpoints
from mixerflow.runs.folder import FORMAT, RunFolder
from mixerflow.train_config import TrainConfig
from mixerflow.version import __version__

_FREE = (
    *("evaluate_every", "save_every", "evaluate_images", "keep", "tensorboard", "give_up_after"),
    *("memory", "parallel", "graph", "validation"),
)
"""Training settings that may change when a run resumes: the weights do not depend on them.

Which images train and validate, their hashes say.

Rounding does, under "invert", graphs and another number of processes.
"""
_BUDGETS = ("train.steps", "train.epochs", "train.minutes")


def make_metadata(
    flow: Flow,
    images: Images,
    validation: Images,
    objective: str,
    config: TrainConfig,
    processes: Processes,
) -> dict[str, Any]:
    """Return the entries of ``run.json`` that are known before the first step.

    Raises:
        DataError: processes were given different images.
    """
    hashes = (images.fingerprint(), validation.fingerprint())
    if len(set(processes.collect(hashes))) > 1:
        remedy = "give every machine the same images"
        raise DataError("processes were given different images", images.dataset_id, remedy)
    return {
        "format": FORMAT,
        "model": _spec(flow),
        "objective": objective,
        "train": describe(config),
        "data": {
            "dataset_id": images.dataset_id,
            "training_images": len(images),
            "training_sha256": hashes[0],
            "validation_images": len(validation),
            "validation_sha256": hashes[1],
            "shape": list(images.shape),
            "levels": images.levels,
            "classes": list(images.classes),
            "skipped": list(images.skipped),
        },
        "parameters": sum(p.numel() for p in flow.parameters()),
        "versions": versions(),
        "machine": {
            "platform": platform.platform(),
            "device": device_name(flow.device),
            "threads": torch.get_num_threads(),
            "processes": processes.world,
            "cores": os.cpu_count(),
        },
    }


def _spec(flow: Flow) -> dict[str, Any] | None:
    """The spec that `mixerflow.load` rebuilds a flow from; None, with a warning, without one."""
    why = "it was changed after it was made"
    try:
        spec = spec_of_flow(flow)
        with torch.device("meta"):
            rebuilt = {key: t.shape for key, t in flow_from(spec).state_dict().items()}
        if rebuilt == {key: t.shape for key, t in flow.state_dict().items()}:
            return spec
    except Unregistered as error:
        why = str(error)
    message = f"mixerflow.load will not rebuild this flow from its folder: {why}"
    warnings.warn(message, stacklevel=4)
    return None


def model_settings(spec: dict[str, Any] | None) -> dict[str, Any]:
    """Return a model's settings by their flags' paths; of a flow made by hand, its whole spec."""
    if spec is None or spec.get("type") == "Flow":
        return _flatten(spec, "model")
    model, shape = from_spec(spec)
    paths = {f"model.{path}": value for path, value in settings_of(model).items()}
    return {"model": word_of(type(model)), "model.shape": shape} | paths


def existing_run(folder: RunFolder) -> dict[str, Any] | None:
    """Return the metadata of the run with a checkpoint that a folder holds; None without one."""
    if not folder.metadata_path.exists() or not Checkpoints(folder.path / "checkpoints").steps():
        return None
    return folder.read_started()


def require_same_run(existing: dict[str, Any], metadata: dict[str, Any], folder: RunFolder) -> None:
    """Check that an existing run may resume with new metadata.

    Raises:
        ConfigError: the folder holds another run; names the first setting that differs.
    """
    theirs_all = {"objective": "likelihood", **existing}
    readers = {"model": model_settings, "train": _train_settings}
    for part in ("model", "objective", "train", "data"):
        read = readers.get(part) or functools.partial(_flatten, name=part)
        mine, theirs = read(metadata[part]), read(theirs_all.get(part))
        for key in sorted(mine.keys() | theirs.keys()):
            free = part == "train" and key.removeprefix("train.") in _FREE
            free |= key == "data.skipped"  # the hashes tell what was used
            if free or mine.get(key) == theirs.get(key):
                continue
            what = f"another run is here: its {key} is {theirs.get(key)}, not {mine.get(key)}"
            remedy = "use its settings to resume it, or another --out"
            if key in _BUDGETS and existing.get("status") == "finished":
                what = f"the run here has finished, after {existing.get('steps')} steps"
                remedy = f"to train further, give --from {folder.path} and another --out"
            raise ConfigError(what, folder.path, remedy)


def _train_settings(stored: dict[str, Any] | None) -> dict[str, Any]:
    """Return training settings by their flags' paths; one younger than the run has its default."""
    return settings_of(restore(TrainConfig, stored or {}), "train.")


def _flatten(value: Any, name: str) -> dict[str, Any]:  # noqa: ANN401
    """Return nested settings as ``{"part.field": value}``, with lists for tuples as in JSON."""
    if isinstance(value, dict):
        parts = [_flatten(inner, f"{name}.{key}") for key, inner in value.items()]
        return {key: inner for part in parts for key, inner in part.items()}
    return {name: list(value) if isinstance(value, tuple) else value}


def versions() -> dict[str, str]:
    """Return the versions of mixerflow, torch and Python."""
    return {
        "mixerflow": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def device_name(device: torch.device) -> str:
    """Return the name of the GPU, or of the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return platform.processor() or platform.machine()
