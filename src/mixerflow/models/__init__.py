"""Models: one paper, one file, one frozen config and one ``build(config, shape) -> Flow``."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import torch

from mixerflow.core import Flow, Shape
from mixerflow.errors import CheckpointError, ConfigError
from mixerflow.models import maf, mixerflow
from mixerflow.models.maf import MAFConfig
from mixerflow.models.mixerflow import MixerFlowConfig
from mixerflow.settings import restore

Config = MixerFlowConfig | MAFConfig
"""Any model's config."""

MODELS: dict[str, tuple[type[Config], Callable[[Any, Shape], Flow]]] = {
    "mixerflow": (MixerFlowConfig, mixerflow.build),
    "maf": (MAFConfig, maf.build),
}
"""Model name -> (config class, build function)."""

__all__ = ["MODELS", "Config", "MAFConfig", "MixerFlowConfig", "build", "from_spec", "spec_of"]


def build(config: Config, shape: Shape) -> Flow:
    """The flow over images of `shape` that `config` describes.

    Raises:
        ConfigError: the settings do not fit the images or each other.
    """
    for _, (kind, make) in MODELS.items():
        if isinstance(config, kind):
            try:
                flow = make(config, tuple(shape))
            except ValueError as error:
                names = _at_fault(config, tuple(shape), make) or _named_first(config, str(error))
                where = " or ".join(f"--model.{name.replace('_', '-')}" for name in names)
                raise ConfigError(str(error), where or "--model", "choose another value") from error
            flow.spec = spec_of(config, flow.shape)
            return flow
    raise TypeError(f"no model has a config of type {type(config).__name__}")


def _at_fault(config: Config, shape: Shape, make: Callable[[Any, Shape], Flow]) -> list[str]:
    """Settings without which the model could be built: each alone put back to its default."""
    changed = [
        field
        for field in dataclasses.fields(config)
        if getattr(config, field.name) != field.default
    ]
    names = []
    for field in changed:
        try:
            with torch.device("meta"):  # a default may be far too large a model for these images
                make(dataclasses.replace(config, **{field.name: field.default}), shape)
        except Exception:
            continue
        names.append(field.name)
    return names


def _named_first(config: Config, message: str) -> list[str]:
    """The first setting that a message names, in a list, or none."""
    names = {field.name for field in dataclasses.fields(config)}
    return [word for word in re.findall(r"\w+", message) if word in names][:1]


def spec_of(config: Config, shape: Shape) -> dict[str, Any]:
    """What `from_spec` rebuilds the flow from, for JSON."""
    name = next(name for name, (kind, _) in MODELS.items() if isinstance(config, kind))
    return {"name": name, "config": dataclasses.asdict(config), "shape": list(shape)}


def from_spec(spec: dict[str, Any]) -> tuple[Config, Shape]:
    """A config and shape from what `spec_of` wrote.

    Raises:
        CheckpointError: written by a version with other models or settings.
    """
    if spec.get("name") not in MODELS:
        what, remedy = f"unknown model {spec.get('name')}", "use the mixerflow that wrote it"
        raise CheckpointError(what, "run.json", remedy)
    kind, _ = MODELS[spec["name"]]
    return restore(kind, spec["config"]), tuple(spec["shape"])
