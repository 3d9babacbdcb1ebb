"""The base of models and parts: pixels as real numbers, classes, and a flow over images."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from mixerflow.core import Base, Flow, Shape, Transform
from mixerflow.errors import ConfigError
from mixerflow.registry import Unregistered, describe, evolve, is_value, register, settings_of
from mixerflow.transforms import Dequantize, Logit, Rescale


class Part:
    """A value that makes an object of the class `makes`, with its own fields as settings."""

    makes: ClassVar[type[Any]]

    def make(self, *sizes: int, **settings: object) -> Any:  # noqa: ANN401
        """Return an object of the class `makes`, from `sizes`, `settings` and the other fields."""
        return self.makes(*sizes, **(vars(self) | settings))


class PositiveCounts:
    """A value whose counts, the fields of type int, must be at least `least`, else ValueError."""

    least: ClassVar[int] = 1

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # pyright: ignore[reportArgumentType]
            count = getattr(self, field.name)
            if field.type in (int, "int") and count < self.least:
                what = f"{field.name} must be at least {self.least}; got {count}"
                raise ValueError(f"{type(self).__name__}: {what}")


class Pixels:
    """The first transforms of a model, which make real numbers of an image's values."""

    levels: int | None

    def steps(self) -> list[Transform]:
        """Return the transforms, nearest the data first; none for float data."""
        return [] if self.levels is None else self.transforms(self.levels)

    def transforms(self, levels: int) -> list[Transform]:
        """Return the transforms of pixels with that number of levels."""
        raise NotImplementedError


@register("scaled")
@dataclass(frozen=True)
class ScaledPixels(Pixels):
    """Integers, uniformly dequantised and scaled to an interval."""

    low: float = -1.0
    """Lower end of the interval."""
    high: float = 1.0
    """Upper end of the interval."""
    levels: int | None = 256
    """Values a pixel can have; None for float data, taken as it is."""

    def transforms(self, levels: int) -> list[Transform]:
        return [Dequantize(levels), Rescale((self.high - self.low) / levels, self.low)]


@register("logit")
@dataclass(frozen=True)
class LogitPixels(Pixels):
    """Integers, uniformly dequantised, scaled to the unit interval, and their logit."""

    alpha: float = 0.05
    """The logit is of ``alpha + (1 - 2 alpha) x``, which keeps it finite."""
    levels: int | None = 256
    """Values a pixel can have; None for float data, taken as it is, without a logit."""

    def transforms(self, levels: int) -> list[Transform]:
        return [Dequantize(levels), Rescale(1 / levels), Logit(self.alpha)]


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

    def compose(self, shape: Shape) -> Transform:
        """Return the transform from images ``(C, *spatial)`` to latents.

        Settings that do not fit the images or each other are a ValueError.
        """
        raise NotImplementedError

    def latents(self) -> Base | None:
        """Return the distribution of the latents; None for the standard normal."""
        return None

    @property
    def context(self) -> int:
        """Length of the context that conditioners read."""
        return self.classes.width if self.classes else 0

    def build(self, shape: Shape) -> Flow:
        """Return an untrained flow over images ``(C, *spatial)``.

        Settings that do not fit the images or each other are a ConfigError, which names the flag.
        """
        shape = tuple(shape)
        if not 2 <= len(shape) <= 4 or min(shape) < 1:
            what = f"images are (C, *spatial) with 1 to 3 spatial axes; got {shape}"
            raise ConfigError(what, "shape", "give the channels, then each side")
        try:
            flow = _flow(self, shape)
        except ValueError as error:
            names = list(_settings_at_fault(self, shape)) or _first_named(self, str(error))
            where = " or ".join(f"--model.{name.replace('_', '-')}" for name in names)
            raise ConfigError(str(error), where or "--model", "choose another value") from error
        with contextlib.suppress(Unregistered):  # training warns of this, before it writes files
            flow.spec = spec_of(self, shape)
        return flow


def _flow(model: Model, shape: Shape) -> Flow:
    net = model.classes.embedding() if model.classes else None
    transform, base = model.compose(shape), model.latents()
    return Flow(transform, shape, base, context_net=net, levels=model.pixels.levels)


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
