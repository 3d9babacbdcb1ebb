"""What ``run.json`` says of a run, and whether the one in a folder is the same."""

from __future__ import annotations

import dataclasses
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
from mixerflow.registry import Unregistered, restore, settings_of, word_of
from mixerflow.runs.checkpoint import Checkpoints
from mixerflow.runs.folder import FORMAT, RunFolder
from mixerflow.train_config import TrainConfig
from mixerflow.version import __version__

_FREE = (
    *("evaluate_every", "save_every", "evaluate_images", "keep", "tensorboard", "give_up_after"),
    *("memory", "parallel", "graph"),
)
"""Settings that may change when a run goes on: the weights do not depend on them ("invert", graphs
and another number of processes move them by rounding)."""


def header_of(
    flow: Flow,
    images: Images,
    validation: Images,
    objective: str,
    config: TrainConfig,
    about: dict[str, Any],
    processes: Processes,
) -> dict[str, Any]:
    """What ``run.json`` says from the start."""
    prints = (images.fingerprint(), validation.fingerprint())
    if len(set(processes.collect(prints))) > 1:
        remedy = "give every machine the same images"
        raise DataError("processes were given different images", images.dataset_id, remedy)
    return {
        "format": FORMAT,
        **about,
        "model": _spec(flow),
        "objective": objective,
        "train": dataclasses.asdict(config),
        "data": {
            "dataset_id": images.dataset_id,
            "training_images": len(images),
            "training_sha256": prints[0],
            "validation_images": len(validation),
            "validation_sha256": prints[1],
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
    """What a flow is rebuilt from; None, with a warning, where a file cannot say it."""
    try:
        spec = spec_of_flow(flow)
        with torch.device("meta"):
            again = {key: t.shape for key, t in flow_from(spec).state_dict().items()}
    except Unregistered as error:
        warnings.warn(
            f"mixerflow.load will not rebuild this flow from its folder: {error}", stacklevel=4
        )
        return None
    if again != {key: t.shape for key, t in flow.state_dict().items()}:
        warnings.warn(
            "mixerflow.load will not rebuild this flow from its folder: it was changed after it "
            "was made",
            stacklevel=4,
        )
        return None
    return spec


def model_settings(spec: dict[str, Any] | None) -> dict[str, Any]:
    """What a spec says of a model, by the paths that flags have; of a flow made by hand, all."""
    if spec is None or spec.get("type") == "Flow":
        return flat(spec, "model")
    model, shape = from_spec(spec)
    paths = {f"model.{path}": value for path, value in settings_of(model).items()}
    return {"model": word_of(type(model)), "model.shape": shape} | paths


def begun(folder: RunFolder) -> dict[str, Any] | None:
    """The header of the run that `folder` holds with a checkpoint; None if it is free."""
    if not folder.config_path.exists() or not Checkpoints(folder.path / "checkpoints").steps():
        return None
    return folder.read_config()


def begun_alike(folder: RunFolder, header: dict[str, Any]) -> dict[str, Any] | None:
    """The header of the same run, if `folder` holds it with a checkpoint; None if it is free.

    Raises:
        ConfigError: it holds a run that differs.
    """
    old = begun(folder)
    if old is None:
        return None
    known = dict(old)  # a setting that is younger than the run stands at its default
    known["train"] = dataclasses.asdict(restore(TrainConfig, old.get("train") or {}))
    known.setdefault("objective", "likelihood")
    for part in ("model", "objective", "train", "data"):
        read = model_settings if part == "model" else functools.partial(flat, name=part)
        mine, theirs = read(header[part]), read(known.get(part))
        for key in sorted(mine.keys() | theirs.keys()):
            free = part == "train" and key.removeprefix("train.") in _FREE
            if not free and mine.get(key) != theirs.get(key):
                raise ConfigError(
                    f"another run is here: its {key} is {theirs.get(key)}, not {mine.get(key)}",
                    folder.path,
                    "use its settings to go on with it, or another --out",
                )
    return old


def flat(value: Any, name: str) -> dict[str, Any]:  # noqa: ANN401
    """Nested settings as ``{"part.field": value}``, lists as JSON has them."""
    if isinstance(value, dict):
        return {
            k: v for key, inner in value.items() for k, v in flat(inner, f"{name}.{key}").items()
        }
    return {name: list(value) if isinstance(value, tuple) else value}


def versions() -> dict[str, str]:
    """Of what computes here."""
    return {
        "mixerflow": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def device_name(device: torch.device) -> str:
    """What is written of the hardware."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return platform.processor() or platform.machine()
