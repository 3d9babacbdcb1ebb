"""A named run, and the result that a paper reports for one."""

from __future__ import annotations

from dataclasses import dataclass, replace

from mixerflow.core import Shape
from mixerflow.parts.model import Model
from mixerflow.train_config import TrainConfig

CIFAR10: tuple[str, Shape] = ("cifar10", (3, 32, 32))
MNIST: tuple[str, Shape] = ("mnist", (1, 28, 28))
IMAGENET32: tuple[str, Shape] = ("imagenet32-old", (3, 32, 32))
IMAGENET64: tuple[str, Shape] = ("imagenet64-old", (3, 64, 64))
NEW_IMAGENET32: tuple[str, Shape] = ("imagenet32-new", (3, 32, 32))
NEW_IMAGENET64: tuple[str, Shape] = ("imagenet64-new", (3, 64, 64))
CELEBA64: tuple[str, Shape] = ("celeba64", (3, 64, 64))
ANIME64: tuple[str, Shape] = ("anime-faces", (3, 64, 64))
GALAXY32: tuple[str, Shape] = ("galaxy", (3, 32, 32))
UNIFORM = "exact density, uniform dequantisation, single-sample"
OLD_IMAGENET = f"{UNIFORM}; the old downsampled ImageNet, not comparable with the new"
TWIN = TrainConfig(
    minutes=10, batch=32, lr=2e-3, betas=(0.9, 0.99), warmup=50, ema=0.99, initial=512
)
"""Training of a baseline's twin."""


@dataclass(frozen=True)
class PublishedResult:
    """The result that a paper reports for a model.

    `note` says which comparisons hold: first the kind of figure, in the words of `Bits.kind`, and
    after a semicolon what else there is to say.
    """

    bits_per_dim: float | None
    parameters: float | None = None
    """In millions; None where the paper does not say."""
    where: str = ""
    """Place in the paper."""
    note: str = ""


@dataclass(frozen=True)
class Recipe:
    """A named run."""

    about: str
    model: Model
    train: TrainConfig
    data: str
    """Argument of `mixerflow.data.load`, unless ``--data`` is given."""
    shape: Shape
    """Shape of the images of `data`, for ``mixerflow info``."""
    published: PublishedResult | None = None

    def reported(
        self, bits: float | None, parameters: float | None, where: str, note: str = UNIFORM
    ) -> Recipe:
        """Return the recipe with its published result, see `PublishedResult`."""
        return replace(self, published=PublishedResult(bits, parameters, where, note))
