"""Who takes part in `benchmarks.minutes`, and a recipe of the package, trained by its trainer."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch

from mixerflow.data import Images
from mixerflow.evaluate import bits
from mixerflow.parts.model import Model
from mixerflow.recipes import recipe
from mixerflow.train_config import TrainConfig
from mixerflow.training.batches import Batches
from mixerflow.training.budget import Pace
from mixerflow.training.graphed import trainer_of
from mixerflow.training.optimizer import batch_norms

BATCH = 128
"""Images scored at a time."""
_SETTLE = 0.01
"""Share of the seconds for batch-norm statistics of the averaged weights, as in the package."""


class Learner(Protocol):
    """A model in training; what it draws comes from torch's generator."""

    config: TrainConfig
    parameters: int
    settling: float
    """CPU seconds that `settle` will take, about."""

    @property
    def skipped(self) -> int:
        """Steps that were not finite."""
        ...

    def step(self, place: float, whole: int) -> None:
        """Take a step at a place of a schedule of `whole` places."""
        ...

    def settle(self) -> None:
        """Do what the averaged weights need before they are scored."""
        ...

    def score(self, images: Images) -> np.ndarray:
        """Bits/dim ``(N,)`` of images, by the averaged weights in eval mode."""
        ...


class Entrant(Protocol):
    """Who takes part, as plain data."""

    @property
    def name(self) -> str:
        """As commands and tables call it."""
        ...

    @property
    def about(self) -> str:
        """Kind and size."""
        ...

    @property
    def package(self) -> str:
        """Whose model it is."""
        ...

    @property
    def rates(self) -> tuple[float, ...]:
        """Learning rates of its own, to be tried beside those of the benchmark."""
        ...

    def begin(self, images: Images, seed: int, rate: float, seconds: float) -> Learner:
        """Build the model and give it its data-dependent start."""
        ...


@dataclass(frozen=True)
class Named:
    """A recipe of the package.

    Raises:
        ConfigError: there is no such recipe.
    """

    name: str
    package: str = "mixerflow"

    def __post_init__(self) -> None:
        recipe(self.name)

    @property
    def about(self) -> str:
        """What the recipe says."""
        return recipe(self.name).about

    @property
    def rates(self) -> tuple[float, ...]:
        """The recipe's rate."""
        return (recipe(self.name).train.lr,)

    def begin(self, images: Images, seed: int, rate: float, seconds: float) -> Learner:
        """As `mixerflow.train` begins."""
        named = recipe(self.name)
        return Ours(named.model, replace(named.train, lr=rate, seed=seed), images, seconds)


class Ours:
    """A model in the package's trainer, whose schedule follows the clock."""

    def __init__(self, model: Model, config: TrainConfig, images: Images, seconds: float) -> None:
        self.config, seed = config, config.seed
        torch.manual_seed(seed)
        flow = model.build(images.shape)
        self.parameters = sum(p.numel() for p in flow.parameters() if p.requires_grad)
        batches = Batches(
            images,
            config.batch,
            seed=seed,
            device=flow.device,
            conditional=flow.context_net is not None,
            parts=config.accumulate,
            augmentation=config.augmentation,
        )
        flow.initialize(*batches.first(config.initial))
        self.trainer = trainer_of(flow, batches, config, steps=10 * max(100, config.warmup))
        self.settling = 0.0
        if batch_norms(flow):  # as `Agenda.limit_settling` does
            most, self.trainer.settle_images = self.trainer.settle_images, config.batch
            begun = time.process_time()
            self.trainer.settle()
            each = max(time.process_time() - begun, 1e-9)
            rounds = min(max(1, int(_SETTLE * seconds / each)), max(1, most // config.batch))
            self.trainer.settle_images, self.settling = rounds * config.batch, rounds * each

    @property
    def skipped(self) -> int:
        return self.trainer.skipped

    def step(self, place: float, whole: int) -> None:
        self.trainer.pace = Pace(whole, whole, self.trainer.step, place)
        self.trainer.advance()

    def settle(self) -> None:
        self.trainer.settle()

    def score(self, images: Images) -> np.ndarray:
        return bits(self.trainer.average.flow, images, batch=BATCH).per_image
