"""The base of models: pixels, what a model is given beside them, and a flow over images."""

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

from mixerflow.core import Base, Chain, Flow, Shape, StandardNormal, Transform, VectorNet
from mixerflow.errors import ConfigError
from mixerflow.parts.added import AddedChannels
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


@register("auto")
@dataclass(frozen=True)
class Classes(PositiveCounts):
    """Class labels, which a model is given with its images."""

    count: int | None = None
    """Number of classes; None, on the command line, for that of the images."""
    width: int = 32
    """Length of a class's learned embedding, which conditioners read."""

    def net(self) -> nn.Module:
        """Return the net that makes contexts ``(B, width)`` of labels ``(B,)``."""
        return nn.Embedding(_known(self.count, "classes: their count"), self.width)


@register("auto")
@dataclass(frozen=True)
class Vectors(PositiveCounts):
    """Vectors of numbers, which a model is given with its images."""

    length: int | None = None
    """Length of a vector; None, on the command line, for that of the images' vectors."""
    width: int = 32
    """Length of the context that conditioners read."""
    hidden: int = 64
    """Width of the hidden layers of the net that makes it of a vector."""
    depth: int = 2
    """Number of these layers."""

    def net(self) -> nn.Module:
        """Return the net that makes contexts ``(B, width)`` of vectors ``(B, length)``."""
        length = _known(self.length, "vectors: their length")
        return VectorNet(length, self.width, hidden=self.hidden, depth=self.depth)


def _known(number: int | None, what: str) -> int:
    """Return a number that only the data may have told, as one that is at least 1."""
    if number is None:
        raise ValueError(f"{what} is not known without images")
    return number


@dataclass(frozen=True)
class Model:
    """A model: a frozen dataclass of settings and parts, of which `build` makes a flow.

    A subclass adds its fields and `compose`. Run folders, ``--model`` flags and `mixerflow.load`
    know a subclass by name if `mixerflow.register` decorates it.
    """

    pixels: Pixels = dataclasses.field(default=ScaledPixels(), kw_only=True)
    """How an image's values become real numbers."""
    classes: Classes | None = dataclasses.field(default=None, kw_only=True)
    """Classes of a class-conditional model: "auto" takes their number from the images, and
    ".count" sets it; None for a model without classes."""
    vectors: Vectors | None = dataclasses.field(default=None, kw_only=True)
    """Vectors of a model that is conditional on numbers: "auto" takes their length from the images,
    and ".length" sets it; None for a model without vectors."""
    head: Head | None = dataclasses.field(default=None, kw_only=True)
    """Classifier of the latents, which a hybrid objective trains; None for none."""
    shuffle: Shuffle | None = dataclasses.field(default=None, kw_only=True)
    """Order of the pixels in which the model sees images; None for the order that they have."""
    added: AddedChannels | None = dataclasses.field(default=None, kw_only=True)
    """Channels of noise beside the image, which make the flow wider and its density a lower bound;
    None for none."""

    def compose(self, shape: Shape) -> Transform:
        """Return the transform from real-valued images ``(C, *spatial)`` to latents.

        C counts added channels. Settings that do not fit the images or each other are a ValueError.
        """
        raise NotImplementedError

    def latents(self) -> Base | None:
        """Return the distribution of the latents; None for the standard normal."""
        return None

    def pixel_steps(self, shape: Shape) -> list[Transform]:
        """Return the transforms before `compose`, of images ``(C, *spatial)``, but for noise."""
        shuffle = [self.shuffle.build(shape)] if self.shuffle else []
        return [*shuffle, *self.pixels.steps(shape)]

    def transform(self, shape: Shape) -> Transform:
        """Return the whole transform, from an image's values ``(C, *spatial)`` to latents."""
        added = [self.added.build(shape, context=self.context)] if self.added else []
        main = self.compose(added[0].out_shape(shape) if added else shape)
        steps = list(main) if type(main) is Chain else [main]
        return Chain(*self.pixel_steps(shape), *added, *steps)

    @property
    def condition(self) -> Classes | Vectors | None:
        """What the model is given beside images; None for an unconditional model."""
        if self.classes and self.vectors:
            raise ValueError("classes and vectors exclude each other: give one of the two")
        return self.classes or self.vectors

    @property
    def context(self) -> int:
        """Length of the context that conditioners read."""
        return self.condition.width if self.condition else 0

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
    net = model.condition.net() if model.condition else None
    transform, base = model.transform(shape), model.latents()
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
