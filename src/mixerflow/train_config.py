"""How a flow is trained: the settings, and the learning rate they make of a step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from mixerflow.core import Memory
from mixerflow.errors import ConfigError


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a training run; the defaults are Table 9's for CIFAR-10 where it has them.

    The budget is the first that is set of `steps`, `epochs` and `minutes`.
    """

    steps: int | None = None
    """Optimiser steps."""
    epochs: float | None = None
    """Passes over the training images."""
    minutes: float | None = None
    """Time on this machine; becomes a number of steps once, after a timed trial."""
    batch: int = 512
    """Images a step, over all processes."""
    accumulate: int = 1
    """Parts in which a batch goes through the model, for less memory; gradients are added."""
    lr: float = 1e-3
    """Adam's learning rate at its highest; a cosine takes it to 0 over the budget."""
    layer_lr: float = 1.0
    """Learning rate of the last layer, nearest the latent, over the first's; geometric between."""
    grow: int = 0
    """Stages, equally long, in which the flow grows to its depth: the later layers stand as the
    identity until theirs begins; 0 for all layers from the start."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Adam's decay rates."""
    warmup: int = 500
    """Steps over which the learning rate rises from 0, and in a run that begins at `start` to its
    rate there; at most a tenth of the budget."""
    start: int = 0
    """Step of a longer schedule at which this run begins, up to which others trained before."""
    whole: int | None = None
    """Steps of that longer schedule; it ends with this run unless given."""
    clip: float = 5.0
    """Largest norm of the gradient of the mean bits/dim; longer ones are shortened to it."""
    ema: float = 0.999
    """Decay of the averaged weights that evaluation and sampling use; 0 for none."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the conditioner nets in training; transforms and log-dets stay float32."""
    memory: Memory = "store"
    """What a step keeps for its backward pass: all, each layer's input, or nothing ("invert")."""
    seed: int = 0
    """Of the weights, the order of images, the noise and the held-out part."""
    validation: Literal["held-out", "test"] = "held-out"
    """Images to validate on: 4 % held out from the training images, or the test images."""
    initial: int = 512
    """Training images that data-dependent initialisation sees."""
    evaluate_every: int = 0
    """Steps between evaluations, sample grids and checkpoints; 0 for a tenth of the run."""
    save_every: int = 0
    """Steps between checkpoints; 0 for one at each evaluation."""
    evaluate_images: int = 1000
    """Images that the evaluations on the way look at; the last one looks at all; 0 for all."""
    keep: int = 2
    """Latest checkpoints that stay, besides the best."""
    give_up_after: int = 10
    """Non-finite steps in a row that end the run; single ones are skipped and counted."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """How several processes share the flow: whole in each, or a part of every layer in each."""
    graph: bool = False
    """Whether a step is one CUDA graph, captured once and replayed, for a GPU that waits for the
    host. Figures, NaN too, then appear with each line of metrics rather than at once. Experimental:
    it has never run on a GPU here."""
    tensorboard: bool = False
    """Whether to write TensorBoard's event files too (extra `tensorboard`)."""

    def __post_init__(self) -> None:
        for name in ("batch", "accumulate", "initial", "keep", "give_up_after"):
            _require(name, getattr(self, name), getattr(self, name) >= 1, "at least 1")
        for name in ("grow", "warmup", "start", "evaluate_every", "save_every"):
            _require(name, getattr(self, name), getattr(self, name) >= 0, "at least 0")
        for name in ("evaluate_images", "seed"):
            _require(name, getattr(self, name), getattr(self, name) >= 0, "at least 0")
        _require("seed", self.seed, self.seed < 2**63, "less than 2^63")
        for name in ("steps", "epochs", "minutes"):
            value = getattr(self, name)
            _require(name, value, value is None or (value > 0 and math.isfinite(value)), "positive")
        for name in ("lr", "layer_lr", "clip"):
            value = getattr(self, name)
            _require(name, value, value > 0 and math.isfinite(value), "positive")
        _require("betas", self.betas, all(0 <= b < 1 for b in self.betas), "in [0, 1)")
        _require("ema", self.ema, 0 <= self.ema < 1, "in [0, 1)")
        later = self.whole is None or self.whole > self.start
        _require("whole", self.whole, later, f"more than --train.start, {self.start}")
        pieces = self.start > 0 or self.whole is not None
        _require("grow", self.grow, self.grow < 2 or not pieces, "0 in a piece of a schedule")
        known = get_args(Memory)
        _require("memory", self.memory, self.memory in known, f"one of {', '.join(known)}")
        fits = self.batch % self.accumulate == 0
        _require("accumulate", self.accumulate, fits, f"a divisor of the batch, {self.batch}")

    def lr_at(self, step: int, steps: int) -> float:
        """The learning rate of step `step` (from 0) of `steps`: linear up, then a cosine to 0.

        Both count this run's own steps; `start` and `whole` say where in a schedule they lie. A run
        that begins later than its schedule rises to the rate there first: Adam knows no gradients
        yet, and at the full rate its first steps would undo what hundreds before have learned.
        """
        place, whole = self.start + step, self.whole or self.start + steps
        warmup = min(self.warmup, whole // 10)
        if place < warmup:
            rate = self.lr * (place + 1) / warmup
        else:
            part = (place - warmup) / max(1, whole - warmup)
            rate = self.lr * 0.5 * (1 + math.cos(math.pi * part))
        rise = min(self.warmup, steps // 10) if self.start else 0
        return rate * (step + 1) / rise if step < rise else rate


_BUDGETS = ("steps", "epochs", "minutes")


def _require(name: str, value: object, holds: bool, what: str) -> None:
    if not holds:
        flag = f"--{name}" if name in _BUDGETS else f"--train.{name.replace('_', '-')}"
        raise ConfigError(f"{value} cannot be", flag, f"it must be {what}")
