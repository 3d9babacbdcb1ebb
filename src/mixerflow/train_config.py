"""Settings of a training run, and the learning rate of each step."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Literal, get_args

from mixerflow.augmentation import Augmentation
from mixerflow.core import Memory
from mixerflow.errors import ConfigError
from mixerflow.objectives import Likelihood, ObjectiveChoice
from mixerflow.optimizers import Adam, Optimizer, optimizer_of
from mixerflow.registry import register
from mixerflow.schedule import Cosine, Schedule


@register
@dataclass(frozen=True)
class TrainConfig:
    """Settings of a training run; the defaults are Table 9's for CIFAR-10 where it has them.

    The budget is `steps`, `epochs` or `minutes`; of several, the one that ends first.
    """

    steps: int | None = None
    """Optimiser steps."""
    epochs: float | None = None
    """Passes over the training images."""
    minutes: float | None = None
    """Time on this machine: the schedule follows the clock; evaluations take at most a tenth."""
    clock: Literal["wall", "cpu"] = "wall"
    """Time that minutes and images/s count: what passes, or the processor time of all threads of
    this process, which other processes do not use up ("cpu"); of several, process 0's."""
    batch: int = 512
    """Images of a step, over all processes."""
    accumulate: int = 1
    """Parts in which a batch goes through the model, to save memory; gradients are added."""
    optimizer: Optimizer = Adam()
    """Optimiser: Adam; Adamax, which divides by the largest recent gradient; AdamW, Adam with
    weight decay; or Muon, orthogonal steps of the nets' matrices. Its word stands for its
    defaults."""
    lr: float = 1e-3
    """Learning rate at the end of the warm-up; `schedule` says what follows."""
    layer_lr: float = 1.0
    """Learning rate of the last layer, nearest the latent, over the first's; geometric between."""
    betas: tuple[float, float] = (0.9, 0.999)
    """The optimiser's decay rates."""
    schedule: Schedule = Cosine()
    """Learning rate after the warm-up: a cosine from `lr` to 0 over the budget, or a constant."""
    warmup: int = 500
    """Steps over which the learning rate rises from 0, or to its value at `schedule_start`; at most
    a tenth of the budget."""
    schedule_start: int = 0
    """Step of a longer schedule at which this run begins; earlier runs trained up to it."""
    schedule_steps: int | None = None
    """Steps of that longer schedule; None ends it with this run."""
    clip: float = 5.0
    """Largest norm of the gradient of the mean bits/dim; a longer gradient is shortened to it."""
    ema: float = 0.999
    """Decay of the averaged weights that evaluation and sampling use; 0 for none."""
    objective: ObjectiveChoice = Likelihood()
    """What training maximises: the likelihood; a hybrid of it and a classifier's, whose head reads
    the latents; or the classifier's alone on a flow that stays as it is ("frozen")."""
    labels_per_class: int | None = None
    """Training images of each class that have a label, drawn with the seed; the others count as
    unlabelled. None for all."""
    labelled: float = 0.25
    """Share of the images with a label in a batch, where some have none; 1 leaves the others
    out."""
    late_epochs: float = 0.0
    """Passes over the training images before a model's late parameters learn: the shares of a
    dense contraction's layers."""
    augmentation: Augmentation = Augmentation()
    """Random changes of the training images."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Precision of the conditioner nets in training; transforms and log-dets stay float32."""
    memory: Memory = "store"
    """Tensors that a step keeps for its backward pass: all, each layer's input, or none
    ("invert")."""
    seed: int = 0
    """Seed of the weights, the order of images, augmentation, noise and the held-out part."""
    validation: Literal["auto", "held-out", "test"] = "auto"
    """Images to validate on: the data's own validation images, or else 4 % held out from the
    training images ("auto"); always such a part ("held-out"); or the test images."""
    initial: int = 512
    """Training images for the data-dependent initialisation."""
    evaluate_every: int = 0
    """Steps between evaluations, sample grids and checkpoints; 0 for a tenth of the run."""
    save_every: int = 0
    """Steps between checkpoints; 0 for one at each evaluation."""
    evaluate_images: int = 1000
    """Images of an evaluation during training; 0 for all. The last evaluation uses all images."""
    keep: int = 2
    """Number of latest checkpoints to keep, besides the best one."""
    give_up_after: int = 10
    """Non-finite steps in a row that end the run; fewer in a row are skipped and counted."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """How processes share the flow: each has all of it ("ddp") or a part of each layer ("fsdp")."""
    graph: bool = False
    """Experimental: capture a step as one CUDA graph and replay it, for a GPU that waits for the
    host. Figures, NaN among them, then show with each line of metrics rather than at once."""
    tensorboard: bool = False
    """Whether to write TensorBoard's event files too (extra `tensorboard`)."""

    def __post_init__(self) -> None:
        if isinstance(self.optimizer, str):
            object.__setattr__(self, "optimizer", optimizer_of(self.optimizer))
        for name in ("batch", "accumulate", "initial", "keep", "give_up_after"):
            _require(name, getattr(self, name), getattr(self, name) >= 1, "at least 1")
        least_0 = ("warmup", "schedule_start", "evaluate_every", "save_every", "evaluate_images")
        for name in (*least_0, "seed"):
            _require(name, getattr(self, name), getattr(self, name) >= 0, "at least 0")
        _require("seed", self.seed, self.seed < 2**63, "less than 2^63")
        for name in ("steps", "epochs", "minutes"):
            value = getattr(self, name)
            _require(name, value, value is None or (value > 0 and math.isfinite(value)), "positive")
        for name in ("lr", "layer_lr", "clip"):
            value = getattr(self, name)
            _require(name, value, value > 0 and math.isfinite(value), "positive")
        late = self.late_epochs
        _require("late_epochs", late, late >= 0 and math.isfinite(late), "at least 0")
        if self.labels_per_class is not None:
            some = self.labels_per_class >= 1
            _require("labels_per_class", self.labels_per_class, some, "at least 1")
        _require("labelled", self.labelled, 0 < self.labelled <= 1, "more than 0, at most 1")
        _require("betas", self.betas, all(0 <= b < 1 for b in self.betas), "in [0, 1)")
        _require("ema", self.ema, 0 <= self.ema < 1, "in [0, 1)")
        start, end = self.schedule_start, self.schedule_steps
        later = end is None or end > start
        _require("schedule_steps", end, later, f"more than --train.schedule-start, {start}")
        for name, known in (
            ("memory", get_args(Memory)),
            ("clock", ("wall", "cpu")),
        ):
            value = getattr(self, name)
            _require(name, value, value in known, f"one of {', '.join(known)}")
        fits = self.batch % self.accumulate == 0
        _require("accumulate", self.accumulate, fits, f"a divisor of the batch, {self.batch}")

    def now(self) -> float:
        """Return the seconds of `clock`, from a start that has no meaning."""
        return time.process_time() if self.clock == "cpu" else time.monotonic()

    def lr_at(self, step: float, steps: int, *, moments: bool = False) -> float:
        """Return the learning rate of step `step` (from 0) of `steps`: linear up, then `schedule`.

        Both count the places of this run's schedule: its steps, in a budget of steps; a step may
        lie between two places where time is the budget. A run that begins late in its schedule with
        moments at zero first rises to the rate there: at the full rate its first steps would undo
        what hundreds of steps have learned.

        Args:
            step: the step.
            steps: the steps of this run.
            moments: whether the optimiser's moments came with the weights that the run began from.
        """
        place = self.schedule_start + step
        whole = self.schedule_steps or self.schedule_start + steps
        warmup = min(self.warmup, whole // 10)
        if place < warmup:
            rate = min(self.lr, self.lr * (place + 1) / warmup)
        else:
            rate = self.schedule.rate(self.lr, place, whole, warmup)
        rise = min(self.warmup, steps // 10) if self.schedule_start and not moments else 0
        return rate * (step + 1) / rise if step < rise else rate


_BUDGETS = ("steps", "epochs", "minutes")


def _require(name: str, value: object, holds: bool, what: str) -> None:
    if not holds:
        flag = f"--{name}" if name in _BUDGETS else f"--train.{name.replace('_', '-')}"
        raise ConfigError(f"{value} cannot be", flag, f"it must be {what}")
