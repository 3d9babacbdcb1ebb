"""What every model has: pixels that become numbers, classes, and a flow of images of some shape."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from mixerflow.core import Base, Flow, Shape, Transform
from mixerflow.errors import ConfigError
from mixerflow.registry import Unregistered, describe, evolve, is_value, register, settings_of
from mixerflow.transforms import Dequantize, Logit, Rescale


class Pixels:
    """How an image's values become real numbers: the first steps of a model, and its levels."""

    levels: int | None

    def steps(self) -> list[Transform]:
        """The transforms, nearest the data first."""
        raise NotImplementedError


@register("scaled")
@dataclass(frozen=True)
class ScaledPixels(Pixels):
    """Integers, uniformly dequantised and scaled to an interval."""

    low: float = -1.0
    """Where the interval begins."""
    high: float = 1.0
    """Where it ends."""
    levels: int | None = 256
    """Values a pixel can have; None for float data, taken as it is."""

    def steps(self) -> list[Transform]:
        if self.levels is None:
            return []
        return [Dequantize(self.levels), Rescale((self.high - self.low) / self.levels, self.low)]


@register("logit")
@dataclass(frozen=True)
class LogitPixels(Pixels):
    """Integers, uniformly dequantised, scaled to the unit interval and spread by a logit."""

    alpha: float = 0.05
    """Keeps the logit finite: it is that of ``alpha + (1 - 2 alpha) x``."""
    levels: int | None = 256
    """Values a pixel can have; None for float data, taken as it is, without a logit."""

    def steps(self) -> list[Transform]:
        if self.levels is None:
            return []
        return [Dequantize(self.levels), Rescale(1 / self.levels), Logit(self.alpha)]


class PositiveCounts:
    """A value whose counts, the fields that are ints, cannot be less than `least`.

    What cannot be is refused where it is written: as the value is made.
    """

    least: ClassVar[int] = 1

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # pyright: ignore[reportArgumentType]
            given = getattr(self, field.name)
            if field.type in (int, "int") and given < self.least:
                what = f"{field.name} must be at least {self.least}; got {given}"
                raise ValueError(f"{type(self).__name__}: {what}")


@register
@dataclass(frozen=True)
class Classes(PositiveCounts):
    """Class labels that a model is given with its images."""

    count: int = 10
    """How many classes."""
    width: int = 32
    """Length of a class's learned embedding, which conditioners read."""

    def embedding(self) -> nn.Module:
        """From labels ``(B,)`` to contexts ``(B, width)``."""
        return nn.Embedding(self.count, self.width)


@dataclass(frozen=True)
class Model:
    """A model: a frozen dataclass of settings and parts that `build` makes a flow of.

    A subclass adds its fields and `compose`; with `mixerflow.register` in front, run folders,
    ``--model`` flags and `mixerflow.load` know it by name.
    """

    pixels: Pixels = dataclasses.field(default=ScaledPixels(), kw_only=True)
    """How an image's values become real numbers."""
    classes: Classes | None = dataclasses.field(default=None, kw_only=True)
    """Of a class-conditional model; None for one without."""

    def compose(self, shape: Shape) -> Transform:
        """From images ``(C, *spatial)`` to latents; a ValueError says what does not fit."""
        raise NotImplementedError

    def latents(self) -> Base | None:
        """The latents' distribution; None for the standard normal."""
        return None

    @property
    def context(self) -> int:
        """Length of the context that conditioners read."""
        return self.classes.width if self.classes else 0

    def build(self, shape: Shape) -> Flow:
        """A flow, untrained, over images ``(C, *spatial)``.

        Raises:
            ConfigError: the settings do not fit the images or each other; names the flag.
        """
        shape = tuple(shape)
        if not 2 <= len(shape) <= 4 or min(shape) < 1:
            what = f"images are (C, *spatial) with 1 to 3 spatial axes; got {shape}"
            raise ConfigError(what, "shape", "give the channels, then each side")
        try:
            flow = _flow(self, shape)
        except ValueError as error:
            names = list(_at_fault(self, shape)) or _named_first(self, str(error))
            where = " or ".join(f"--model.{name.replace('_', '-')}" for name in names)
            raise ConfigError(str(error), where or "--model", "choose another value") from error
        with contextlib.suppress(Unregistered):  # training says it, where files are to be written
            flow.spec = spec_of(self, shape)
        return flow


def _flow(model: Model, shape: Shape) -> Flow:
    net = model.classes.embedding() if model.classes else None
    transform, base = model.compose(shape), model.latents()
    return Flow(transform, shape, base, context_net=net, levels=model.pixels.levels)


def spec_of(model: Model, shape: Shape) -> dict[str, object]:
    """What ``run.json`` says of a model, for `mixerflow.models.from_spec`."""
    return describe(model) | {"shape": list(shape)}


def _at_fault(model: Model, shape: Shape) -> Iterator[str]:
    """Settings without which the model could be built: each alone put back to its default."""
    for path, default in _changed(model):
        try:
            with torch.device("meta"):  # a default may be far too large a model for these images
                _flow(evolve(model, {path: default}), shape)
        except Exception:
            continue
        yield path


def _changed(model: Model) -> Iterator[tuple[str, object]]:
    """Paths of the settings that differ from the model's defaults, with those."""
    for field in dataclasses.fields(model):
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        if default is not dataclasses.MISSING:
            yield from _differences(getattr(model, field.name), default, field.name)


def _differences(given: object, default: object, path: str) -> Iterator[tuple[str, object]]:
    if is_value(given) and type(given) is type(default):
        for field in dataclasses.fields(given):  # pyright: ignore[reportArgumentType]
            name = field.name
            yield from _differences(getattr(given, name), getattr(default, name), f"{path}.{name}")
    elif given != default:
        yield path, default


def _named_first(model: Model, message: str) -> list[str]:
    """The path of the first setting that a message names, in a list, or none."""
    settings = settings_of(model)
    parts = {path.rpartition(".")[0] for path in settings}
    paths = {path.rpartition(".")[2]: path for path in settings if path not in parts}
    return [paths[word] for word in re.findall(r"\w+", message) if word in paths][:1]
