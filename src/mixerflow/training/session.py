"""A training run from its first step to its last, begun or taken up again."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mixerflow import images as pictures
from mixerflow.core import Flow
from mixerflow.data import Images
from mixerflow.errors import CheckpointError, NonFiniteError
from mixerflow.evaluate import Bits, bits, draw_pixels
from mixerflow.training.budget import EVALUATIONS, GRID
from mixerflow.training.checkpoint import Checkpoint, Checkpoints
from mixerflow.training.folder import RunFolder
from mixerflow.training.progress import Bar
from mixerflow.training.scalars import Scalars
from mixerflow.training.signals import Interrupt
from mixerflow.training.trainer import Step, Trainer

_LINES = 200
"""Training records in metrics.jsonl, about."""


@dataclass
class Tally:
    """What a session counts, saved with every checkpoint."""

    best: float = math.inf
    seconds: float = 0.0
    objectives: float = 0.0
    gradient_norms: float = 0.0
    steps: int = 0


class Session:
    """Runs a `Trainer` to its end: evaluations, samples, checkpoints, metrics, signals.

    Args:
        trainer: at its first step.
        validation: the images to validate on.
        folder: where everything goes; None keeps nothing.
        quiet: show no progress.
    """

    def __init__(
        self, trainer: Trainer, validation: Images, folder: RunFolder | None, *, quiet: bool = False
    ) -> None:
        self.trainer, self.validation, self.folder, self.quiet = trainer, validation, folder, quiet
        config, steps = trainer.config, trainer.steps
        self.evaluate_every = config.evaluate_every or max(1, math.ceil(steps / EVALUATIONS))
        self.save_every = config.save_every or self.evaluate_every
        self.log_every = max(1, min(steps // _LINES, self.evaluate_every))
        self.tally = Tally()
        self.result: Bits | None = None
        self._checkpoints = None
        if folder is not None:
            self._checkpoints = Checkpoints(folder.path / "checkpoints", keep=config.keep)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint: weights, average, optimiser, generators, counts, metrics."""
        try:
            self.trainer.flow.load_state_dict(checkpoint.model)
            self.trainer.average.flow.load_state_dict(checkpoint.ema or checkpoint.model)
            self.trainer.load_state(checkpoint.state["trainer"])
        except (RuntimeError, ValueError, KeyError) as error:
            what = "the checkpoint does not fit run.json's model"
            raise CheckpointError(what, checkpoint.path, "restore run.json from a copy") from error
        self.tally = Tally(**checkpoint.state["tally"])
        if self.folder is not None:
            self.folder.cut_back(checkpoint.step)

    def run(self) -> int:
        """Train to the end or to a signal; returns 0, 143 (SIGTERM) or 130 (SIGINT).

        Raises:
            NonFiniteError: too many steps in a row were not finite; the last checkpoint stands.
            ResourceError: the folder cannot be written.
        """
        trainer = self.trainer
        config, total = trainer.config, trainer.steps
        scalars = Scalars(self.folder, trainer.step, enabled=config.tensorboard)
        bar = Bar("step", total, done=trainer.step, quiet=self.quiet)
        with Interrupt() as interrupt, bar, contextlib.closing(scalars):
            if trainer.step == 0 and self._checkpoints is not None:
                self._save(best=False)  # an early stop, or NaN, leaves a model to look at
            while trainer.step < total:
                with self._timed():
                    step = trainer.advance()
                if step.bad_part is not None:
                    self._skipped(step, bar)
                self._record(step, scalars)
                bar.update(trainer.step, self._figures(step))
                at_end = trainer.step == total
                if at_end or trainer.step % self.evaluate_every == 0:
                    self._look(bar, scalars)
                elif trainer.step % self.save_every == 0 or interrupt.requested:
                    self._save(best=False)
                if interrupt.requested:
                    break
            if self.result is None and trainer.step == total:  # a finished run, taken up again
                self.result = self._score(len(self.validation))
            return interrupt.exit_code if trainer.step < total else 0

    @contextlib.contextmanager
    def _timed(self) -> Iterator[None]:
        begun = time.monotonic()
        yield
        self.tally.seconds += time.monotonic() - begun

    def _skipped(self, step: Step, bar: Bar) -> None:
        trainer = self.trainer
        bar.say(f"step {trainer.step} skipped: {step.bad_part} is not finite")
        if trainer.bad_in_a_row < trainer.config.give_up_after:
            return
        where = "in memory" if self.folder is None else self.folder.path
        remedy = "lower --train.lr, or set --model.scale-bound 2"
        if self._checkpoints is not None:
            remedy += f"; the checkpoint of step {self._checkpoints.steps()[-1]} is untouched"
        raise NonFiniteError(
            f"{trainer.bad_in_a_row} steps in a row not finite, the last at step {trainer.step} "
            f"in {step.bad_part}",
            where,
            remedy,
        )

    def _figures(self, step: Step) -> str:
        tally, batch = self.tally, self.trainer.config.batch
        mean = tally.objectives / tally.steps if tally.steps else step.objective
        name = "bits/dim" if self.trainer.is_likelihood else "objective (batch norm)"
        speed = batch * max(1, self.trainer.step) / max(tally.seconds, 1e-9)
        return f"{name} {mean:.3f}  {speed:.0f} images/s"

    def _record(self, step: Step, scalars: Scalars) -> None:
        tally, trainer = self.tally, self.trainer
        if step.bad_part is None:
            tally.objectives += step.objective
            tally.gradient_norms += step.gradient_norm
            tally.steps += 1
        if trainer.step % self.log_every or not tally.steps:
            return
        name = "bits_per_dim" if trainer.is_likelihood else "objective"
        record = {
            "kind": "train",
            "step": trainer.step,
            name: tally.objectives / tally.steps,
            "gradient_norm": tally.gradient_norms / tally.steps,
            "lr": step.lr,
            "skipped": trainer.skipped,
            "seconds": tally.seconds,
            "images_per_second": trainer.config.batch * trainer.step / tally.seconds,
        }
        tally.objectives, tally.gradient_norms, tally.steps = 0.0, 0.0, 0
        self._write(record, scalars)

    def _write(self, record: dict[str, Any], scalars: Scalars) -> None:
        if self.folder is not None:
            self.folder.append(record)
        scalars.write(record)

    def _look(self, bar: Bar, scalars: Scalars) -> None:
        """Evaluate the averaged weights, draw from them, and save."""
        trainer = self.trainer
        at_end = trainer.step == trainer.steps
        few = trainer.config.evaluate_images or len(self.validation)
        figure = self._score(len(self.validation) if at_end else few)
        # the same images every time, or the best would be the one that saw the easiest
        comparable = float(figure.per_image[:few].mean())
        best = comparable < self.tally.best
        self.tally.best = min(comparable, self.tally.best)
        self._write({"kind": "validation", "step": trainer.step, **figure.as_dict()}, scalars)
        if at_end:
            self.result = figure
        if self.folder is not None:
            self._draw(trainer.average.flow)
            self._save(best=best, settled=True)
        bar.say(f"step {trainer.step}: validation {figure}")

    def _score(self, count: int) -> Bits:
        """Bits/dim of the averaged weights on the first `count` validation images."""
        flow, labels = self.trainer.settle(), self.validation.labels
        return bits(
            flow,
            self.validation.pixels[:count],
            labels=labels[:count] if flow.context_net is not None and labels is not None else None,
            seed=self.trainer.config.seed,
            dataset_id=self.validation.dataset_id,
            split="validation",
        )

    def _draw(self, flow: Flow) -> None:
        assert self.folder is not None
        if len(flow.shape) != 3:
            return  # volumes and sequences have no grid of pictures
        path = self.folder.path / "samples" / f"step-{self.trainer.step}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pictures.save(pictures.grid(draw_pixels(flow, GRID, seed=0)[0], scale=2), path)

    def _save(self, *, best: bool, settled: bool = False) -> None:
        if self._checkpoints is None:
            return
        if not settled:  # whoever loads it gets statistics that are the averaged weights' own
            self.trainer.settle()
        state = {"trainer": self.trainer.state(), "tally": vars(self.tally).copy()}
        averaged = self.trainer.average.flow.state_dict()
        model = self.trainer.flow.state_dict()
        self._checkpoints.save(self.trainer.step, model, averaged, state, best=best)
