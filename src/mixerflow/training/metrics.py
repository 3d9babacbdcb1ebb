"""Figures of a run: means between two records, and who is given the records."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL.Image import Image

from mixerflow.core import Flow, is_estimated
from mixerflow.objectives import likelihood
from mixerflow.runs import RunFolder
from mixerflow.training.curves import Curves
from mixerflow.training.trainer import Step, Trainer

OnRecord = Callable[[dict[str, Any]], object]
"""What is given each record; see `mixerflow.train`."""


@dataclass
class Counters:
    """Sums over the steps since the last record, and two figures of the whole run.

    Every checkpoint holds them.
    """

    best: float = math.inf
    """Smallest validation objective; for the likelihood, fewest bits/dim."""
    seconds: float = 0.0
    """Time spent in training steps."""
    objectives: float = 0.0
    gradient_norms: float = 0.0
    steps: int = 0
    figures: dict[str, float] = field(default_factory=dict)
    """Sums of the objective's own figures."""


class Metrics:
    """Writes a record of mean figures every few steps.

    Args:
        trainer: the trainer whose steps are recorded.
        folder: the run folder; None keeps no records.
        on_record: is given each record too, in process 0, whose argument alone counts.

    Attributes:
        every: steps between two records.
        stop: whether `on_record` has asked training to stop; in process 0 only.
    """

    every: int = 1
    stop: bool = False

    def __init__(
        self, trainer: Trainer, folder: RunFolder | None, on_record: OnRecord | None = None
    ) -> None:
        self.trainer, self.folder = trainer, folder
        self.counters = Counters()
        self._on_record = on_record
        self._heard = trainer.processes.from_main(on_record is not None)
        self._curves: Curves | None = None

    def open(self) -> None:
        """Open TensorBoard's file, if asked for, and remove its events after the current step.

        Raises:
            ConfigError: TensorBoard is not installed.
        """
        if self.folder is not None and self.trainer.config.tensorboard:
            self._curves = Curves(self.folder.path / "tensorboard", self.trainer.step)

    def close(self) -> None:
        """Close TensorBoard's file."""
        if self._curves is not None:
            self._curves.close()

    def write(self, record: dict[str, Any]) -> None:
        """Give a record to ``metrics.jsonl``, TensorBoard and `on_record`; all processes call it.

        Raises:
            Exception: what `on_record` raises, in every process.
        """
        if self.folder is not None:
            self.folder.append(record)
        if self._curves is not None:
            self._curves.record(record)
        if self._heard:
            self.trainer.processes.on_main(lambda: self._tell(record))

    def _tell(self, record: dict[str, Any]) -> None:
        assert self._on_record is not None
        answer = self._on_record(dict(record))
        if isinstance(answer, (bool, np.bool_)) and answer:  # of others nobody knows the meaning
            self.stop = True

    def evaluation(self, flow: Flow, bits_per_dim: np.ndarray, samples: Image | None) -> None:
        """Give TensorBoard what an evaluation knows beside its record; see `Curves`."""
        if self._curves is not None:
            self._curves.evaluation(self.trainer.step, flow, bits_per_dim, samples)

    def add(self, step: Step) -> None:
        """Add the figures of a step, and write a record if one is due."""
        counters, trainer = self.counters, self.trainer
        if step.counted:
            counters.objectives += step.objective * step.counted
            counters.gradient_norms += step.gradient_norm * step.counted
            counters.steps += step.counted
            for name, value in step.figures.items():
                counters.figures[name] = counters.figures.get(name, 0.0) + value * step.counted
        if trainer.step % self.every or not counters.steps:
            return
        name = "bits_per_dim" if trainer.is_likelihood else "objective"
        record = {
            "kind": "train",
            "step": trainer.step,
            name: counters.objectives / counters.steps,
            "gradient_norm": counters.gradient_norms / counters.steps,
            "lr": step.lr,
            "skipped": trainer.skipped,
            "seconds": counters.seconds,
            "images_per_second": trainer.config.batch * trainer.step / counters.seconds,
            **({"density": self.trainer.flow.density} if self._estimates else {}),
            **self._means(),
        }
        self.counters = Counters(counters.best, counters.seconds)
        self.write(record)

    def summary(self, step: Step) -> str:
        """Return the figures that the progress bar shows after a step."""
        counters, trainer = self.counters, self.trainer
        mean = counters.objectives / counters.steps if counters.steps else step.objective
        coupled = trainer.task.objective is likelihood  # by batch norm, or it would be bits/dim
        other = "objective (batch norm)" if coupled else "objective"
        name = "bits/dim" if trainer.is_likelihood else other
        name += " (estimate)" if self._estimates else ""
        unknown = math.isnan(mean) and step.bad_part is None  # the device has not sent them yet
        shown = [f"{name} {'...' if unknown else f'{mean:.3f}'}"]
        means = self._means() if counters.steps else step.figures
        shown += [f"{name} {value:.3g}" for name, value in means.items()]
        speed = trainer.config.batch * max(1, trainer.step) / max(counters.seconds, 1e-9)
        return "  ".join([*shown, f"{speed:.0f} images/s"])

    @property
    def _estimates(self) -> bool:
        """Whether log p, and with it the figure, is an estimate by one probe an image."""
        return is_estimated(self.trainer.flow.density)

    def _means(self) -> dict[str, float]:
        """The means of the objective's own figures since the last record."""
        steps = self.counters.steps
        return {name: value / steps for name, value in self.counters.figures.items()}
