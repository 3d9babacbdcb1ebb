"""The base of models: pixels, classes, and a flow over images."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from mixerflow.core import Base, Flow, Shape, StandardNormal, Transform
from mixerflow.errors import ConfigError
from mixerflow.parts.base import PositiveCounts
from mixerflow.parts.heads import Head
from mixerflow.parts.pixels import Pixels, ScaledPixels
from mixerflow.parts.shuffles import Shuffle
from mixerflow.registry import (
    Unregistered,
    describe,
    evolve,
    is_value,
    plain,
    register,
    register_foreign,
    settings_of,
)

register_foreign(nn.Embedding)


@register
@dataclass(frozen=True)
class Classes(PositiveCounts):
    """Class labels, which a model is given with its images."""

    count: int = 10
    """Number of classes."""
    width: int = 32
    """Length of a class's learned embedding, which conditioners read."""

    def embedding(self) -> nn.Module:
        """Return the net that makes contexts ``(B, width)`` of labels ``(B,)``."""
        return nn.Embedding(self.count, self.width)


@dataclass(frozen=True)
class Model:
    """A model: a frozen dataclass of settings and parts, of which `build` makes a flow.

    A subclass adds its fields and `compose`. Run folders, ``--model`` flags and `mixerflow.load`
    know a subclass by name if `mixerflow.register` decorates it.
    """

    pixels: Pixels = dataclasses.field(default=ScaledPixels(), kw_only=True)
    """How an image's values become real numbers."""
    classes: Classes | None = dataclasses.field(default=None, kw_only=True)
    """Classes of a class-conditional model; None for a model without classes."""
    head: Head | None = dataclasses.field(default=None, kw_only=True)
    """Classifier of the latents, which a hybrid objective trains; None for none."""
    shuffle: Shuffle | None = dataclasses.field(default=None, kw_only=True)
    """Order of the pixels in which the model sees images; None for the order that they have."""

    def compose(self, shape: Shape) -> Transform:
        """Return the transform from images ``(C, *spatial)`` to latents.

        Settings that do not fit the images or each other are a ValueError.
        """
        raise NotImplementedError

    def latents(self) -> Base | None:
        """Return the distribution of the latents; None for the standard normal."""
        return None

    def pixel_steps(self, shape: Shape) -> list[Transform]:
        """Return the first transforms of `compose`, of images ``(C, *spatial)``."""
        shuffle = [self.shuffle.build(shape)] if self.shuffle else []
        return [*shuffle, *self.pixels.steps(shape)]

    @property
    def context(self) -> int:
        """Length of the context that conditioners read."""
        return self.classes.width if self.classes else 0

    def build(self, shape: Shape) -> Flow:
        """Return an untrained flow over images ``(C, *spatial)``.

        Settings that do not fit the images or each other are a ConfigError, which names the flag.
        """
        shape = _whole_numbers(shape)
        try:
            flow = _flow(self, shape)
        except ValueError as error:
            names = list(_settings_at_fault(self, shape)) or _first_named(self, str(error))
            where = " or ".join(f"--model.{name.replace('_', '-')}" for name in names)
            raise ConfigError(str(error), where or "--model", "choose another value") from error
        with contextlib.suppress(Unregistered):  # training warns of this, before it writes files
            flow.spec = spec_of(self, shape)
        return flow


def _whole_numbers(shape: Any) -> Shape:  # noqa: ANN401
    """Return a shape as a tuple of positive ints; a ConfigError refuses all else."""
    given = shape.tolist() if isinstance(shape, (np.ndarray, torch.Tensor)) else shape
    numbers = plain(list(given)) if isinstance(given, (tuple, list)) else []
    whole = all(type(number) is int and number > 0 for number in numbers)
    if not whole or not 2 <= len(numbers) <= 4:
        what = f"images are (C, *spatial) with 1 to 3 spatial axes; got {given!r}"
        raise ConfigError(what, "shape", "give the channels, then each side, as integers")
    return tuple(numbers)


def _flow(model: Model, shape: Shape) -> Flow:
    net = model.classes.embedding() if model.classes else None
    transform, base = model.compose(shape), model.latents()
    head = model.head and model.head.build(transform.latent_shapes(shape))
    if isinstance(head, Base):
        if not isinstance(base, StandardNormal | None):
            raise ValueError("base must be normal: the head has the distribution of the latents")
        base, head = head, None
    levels = model.pixels.levels
    return Flow(transform, shape, base, context_net=net, head=head, levels=levels)


def spec_of(model: Model, shape: Shape) -> dict[str, object]:
    """Return the entry of a model in ``run.json``, which `mixerflow.models.from_spec` reads."""
    return describe(model) | {"shape": list(shape)}


def _settings_at_fault(model: Model, shape: Shape) -> Iterator[str]:
    """Yield each setting whose default alone, in its place, lets the model be built."""
    for field in dataclasses.fields(model):
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        if default is dataclasses.MISSING:
            continue
        for path, value in _differences(getattr(model, field.name), default, field.name):
            try:
                with torch.device("meta"):  # a default may make far too large a model here
                    _flow(evolve(model, {path: value}), shape)
            except Exception:
                continue
            yield path


def _differences(setting: object, default: object, path: str) -> Iterator[tuple[str, object]]:
    """Yield the path and the default of each setting that differs from the default."""
    if is_value(setting) and type(setting) is type(default):
        for field in dataclasses.fields(setting):  # pyright: ignore[reportArgumentType]
            name = field.name
            inner = getattr(setting, name), getattr(default, name)
            yield from _differences(*inner, f"{path}.{name}")
    elif setting != default:
        yield path, default


def _first_named(model: Model, message: str) -> list[str]:
    """The path of the first setting that the message names, as a list; an empty list if none."""
    settings = settings_of(model)
    parts = {path.rpartition(".")[0] for path in settings}
    paths = {path.rpartition(".")[2]: path for path in settings if path not in parts}
    return [paths[word] for word in re.findall(r"\w+", message) if word in paths][:1]
