"""What a named run is, and a figure that was published for one."""

from __future__ import annotations

from dataclasses import dataclass

from mixerflow.core import Shape
from mixerflow.parts.model import Model
from mixerflow.train_config import TrainConfig


@dataclass(frozen=True)
class PublishedResult:
    """What a paper reports for a model; which comparisons hold is in `note`."""

    bits_per_dim: float | None
    parameters: float | None = None
    """In millions, where it says."""
    where: str = ""
    """Where it says so."""
    note: str = ""


@dataclass(frozen=True)
class Recipe:
    """A named run."""

    about: str
    model: Model
    train: TrainConfig
    data: str
    """What `mixerflow.data.load` takes, unless ``--data`` says otherwise."""
    shape: Shape
    """Of that data's images: what ``mixerflow info`` draws."""
    published: PublishedResult | None = None


CIFAR10: tuple[str, Shape] = ("cifar10", (3, 32, 32))
MNIST: tuple[str, Shape] = ("mnist", (1, 28, 28))
IMAGENET32: tuple[str, Shape] = ("imagenet32-old", (3, 32, 32))
IMAGENET64: tuple[str, Shape] = ("imagenet64-old", (3, 64, 64))
ANIME64: tuple[str, Shape] = ("anime-faces", (3, 64, 64))
GALAXY32: tuple[str, Shape] = ("galaxy", (3, 32, 32))
UNIFORM = "uniform dequantisation, one draw an image"
OLD_IMAGENET = f"{UNIFORM}; the old downsampled ImageNet, not comparable with the new"
