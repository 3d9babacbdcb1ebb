"""What ``run.json`` says of a run, and whether the one in a folder is the same."""

from __future__ import annotations

import dataclasses
import os
import platform
from typing import Any

import torch

from mixerflow.core import Flow
from mixerflow.data import Images
from mixerflow.errors import ConfigError, DataError
from mixerflow.models import from_spec, spec_of
from mixerflow.processes import Processes
from mixerflow.settings import restore
from mixerflow.train_config import TrainConfig
from mixerflow.training.checkpoint import Checkpoints
from mixerflow.training.folder import RunFolder
from mixerflow.training.objective import Objective, name_of

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
    objective: Objective,
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
        "format": 1,
        **about,
        "model": flow.spec,
        "objective": name_of(objective),
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
    if old.get("model") is not None:
        known["model"] = spec_of(*from_spec(old["model"]))
    known.setdefault("objective", "likelihood")
    for part in ("model", "objective", "train", "data"):
        mine, theirs = flat(header[part], part), flat(known.get(part), part)
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
