"""A training run from its first step to its last, begun or taken up again."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NoReturn

from mixerflow import pictures
from mixerflow.core import Flow
from mixerflow.data import Images
from mixerflow.errors import CheckpointError, NonFiniteError, ResourceError
from mixerflow.evaluate import Bits, bits, draw_pixels
from mixerflow.processes import cause, is_lost_process
from mixerflow.progress import ProgressBar
from mixerflow.runs.checkpoint import Checkpoint, Checkpoints
from mixerflow.runs.folder import RunFolder
from mixerflow.training.budget import EVALUATIONS, GRID
from mixerflow.training.objective import likelihood, name_of
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
    figures: dict[str, float] = field(default_factory=dict)
    """Sums of the objective's own, over `steps`."""

    def means(self) -> dict[str, float]:
        """The objective's own figures since the last line of metrics."""
        return {name: value / self.steps for name, value in self.figures.items()}


class Session:
    """Runs a `Trainer` to its end: evaluations, samples, checkpoints, metrics, signals.

    Args:
        trainer: at its first step.
        validation: the images to validate on.
        folder: where everything goes; None keeps nothing. Only process 0's counts.
        quiet: show no progress.
    """

    def __init__(
        self, trainer: Trainer, validation: Images, folder: RunFolder | None, *, quiet: bool = False
    ) -> None:
        self.trainer, self.validation = trainer, validation
        self.processes = trainer.processes
        self.folder = folder if self.processes.main else None
        self.path = self.processes.from_main(None if folder is None else folder.path)
        self.quiet = quiet or not self.processes.main
        config, steps = trainer.config, trainer.steps
        self.evaluate_every = config.evaluate_every or max(1, math.ceil(steps / EVALUATIONS))
        self.save_every = config.save_every or self.evaluate_every
        self.log_every = max(1, min(steps // _LINES, self.evaluate_every))
        trainer.read_every = self.log_every
        self.tally = Tally()
        self.result: Bits | None = None
        self._checkpoints = None
        if self.folder is not None:
            self._checkpoints = Checkpoints(self.folder.path / "checkpoints", keep=config.keep)

    def restore(self, checkpoint: Checkpoint | None) -> None:
        """Go on from a checkpoint: weights, average, optimiser, generators, counts, metrics.

        Process 0 gives it, and every process has it afterwards.
        """
        self.processes.on_main(lambda: self._check(checkpoint))
        model = ema = state = tally = None
        if checkpoint is not None:
            model, ema = checkpoint.model, checkpoint.ema or checkpoint.model
            state, tally = checkpoint.state["trainer"], checkpoint.state["tally"]
        self.trainer.load_weights(model, ema)
        self.trainer.load_state(state)
        self.tally = Tally(**(self.processes.from_main(tally) or {}))
        self.processes.on_main(self._cut_back)

    def _cut_back(self) -> None:
        """Drop the metrics after the step that the run goes on from, set checkpoints aside."""
        if self.folder is not None and self._checkpoints is not None:
            self.folder.cut_back(self.trainer.step)
            if self._checkpoints.steps()[-1] > self.trainer.step:
                self._checkpoints.set_aside(self.trainer.step)

    def _check(self, checkpoint: Checkpoint | None) -> None:
        """Raise a CheckpointError unless the checkpoint is of such a flow and objective."""
        assert checkpoint is not None
        own = self.trainer.task.own
        mine = {} if own is None else own.state_dict()
        theirs = checkpoint.state["trainer"].get("objective", {})
        if _shapes(mine) != _shapes(theirs):
            what = f"the checkpoint does not fit {name_of(self.trainer.task.objective)}"
            remedy = "give the objective that it was saved with"
            raise CheckpointError(what, checkpoint.path, remedy)
        names = {name: value.shape for name, value in self.trainer.flow.state_dict().items()}
        shapes = [tuple(parameter.shape) for parameter in self.trainer.parameters]
        try:
            for weights in (checkpoint.model, checkpoint.ema or checkpoint.model):
                if {name: value.shape for name, value in weights.items()} != names:
                    raise ValueError("other weights")
            for i, values in checkpoint.state["trainer"]["optimizer"]["state"].items():
                if any(value.dim() and value.shape != shapes[i] for value in values.values()):
                    raise ValueError("another optimiser")
            Tally(**checkpoint.state["tally"])
        except (ValueError, KeyError, IndexError, TypeError) as error:
            what = "the checkpoint does not fit run.json's model"
            raise CheckpointError(what, checkpoint.path, "restore run.json from a copy") from error

    def run(self) -> int:
        """Train to the end or to a signal; returns 0, 143 (SIGTERM) or 130 (SIGINT).

        Raises:
            NonFiniteError: too many steps in a row were not finite; the last checkpoint stands.
            ResourceError: the folder cannot be written, or another process was lost.
        """
        with Interrupt() as interrupt:
            try:
                return self._run(interrupt)
            except Exception as error:
                if not (self.processes.together and is_lost_process(error)):
                    raise
                interrupt.keep()  # launchers send SIGTERM to what is left, at just this time
                raise self._abandoned(error) from error

    def _abandoned(self, error: Exception) -> ResourceError:
        """What to say when another process is gone; what is whole in this one is saved first."""
        trainer = self.trainer
        if self._checkpoints is not None and not trainer.sharded:
            trainer.leave()
            self.processes = trainer.processes
            self._save(best=False)
        remedy = "nothing was kept: name a run folder the next time"
        if self.path is not None:
            which = "last checkpoint"
            if self._checkpoints is not None:
                which = f"checkpoint of step {self._checkpoints.steps()[-1]}"
            remedy = f"the {which} stands: go on from it with the same command"
        what = f"another process was lost in step {trainer.step + 1} ({cause(error)})"
        return ResourceError(what, self.path or "in memory", remedy)

    def _run(self, interrupt: Interrupt) -> int:
        trainer, processes = self.trainer, self.processes
        config, total = trainer.config, trainer.steps
        scalars = Scalars(self.folder, trainer.step, enabled=config.tensorboard)
        bar = ProgressBar("step", total, done=trainer.step, quiet=self.quiet)
        with bar, contextlib.closing(scalars):
            if trainer.step == 0:
                self._save(best=False)  # an early stop, or NaN, leaves a model to look at
            stop = 0
            while trainer.step < total:
                with self._timed():
                    step = trainer.advance()
                if step.bad_part is not None:
                    self._skipped(step, bar)
                self._record(step, scalars)
                bar.update(trainer.step, self._figures(step))
                stop = processes.largest(interrupt.requested or 0)  # all at the same step
                at_end = trainer.step == total
                if at_end or trainer.step % self.evaluate_every == 0:
                    self._look(bar, scalars)
                elif trainer.step % self.save_every == 0 or stop:
                    self._save(best=False)
                if stop:
                    break
            if self.result is None and trainer.step == total:  # a finished run, taken up again
                self.result = self._score(len(self.validation))
            return 128 + stop if stop and trainer.step < total else 0

    @contextlib.contextmanager
    def _timed(self) -> Iterator[None]:
        begun = time.monotonic()
        yield
        self.tally.seconds += time.monotonic() - begun

    def _skipped(self, step: Step, bar: ProgressBar) -> None:
        trainer = self.trainer
        bar.say(f"step {step.number} skipped: {step.bad_part} is not finite")
        if trainer.bad_in_a_row >= trainer.config.give_up_after:
            self.processes.on_main(lambda: self._give_up(step))

    def _give_up(self, step: Step) -> NoReturn:
        trainer = self.trainer
        where = "in memory" if self.folder is None else self.folder.path
        remedy = "lower --train.lr, or set --model.scale-bound 2"
        if self._checkpoints is not None:
            remedy += f"; the checkpoint of step {self._checkpoints.steps()[-1]} is untouched"
        raise NonFiniteError(
            f"{trainer.bad_in_a_row} steps in a row not finite, the last at step {step.number} "
            f"in {step.bad_part}",
            where,
            remedy,
        )

    def _figures(self, step: Step) -> str:
        tally, trainer = self.tally, self.trainer
        mean = tally.objectives / tally.steps if tally.steps else step.objective
        coupled = trainer.task.objective is likelihood  # by batch norm, or it would be bits/dim
        other = "objective (batch norm)" if coupled else "objective"
        name = "bits/dim" if trainer.is_likelihood else other
        unknown = math.isnan(mean) and step.bad_part is None  # the first figures are on their way
        shown = [f"{name} {'...' if unknown else f'{mean:.3f}'}"]
        means = tally.means() if tally.steps else step.figures
        shown += [f"{name} {value:.3g}" for name, value in means.items()]
        speed = trainer.config.batch * max(1, trainer.step) / max(tally.seconds, 1e-9)
        return "  ".join([*shown, f"{speed:.0f} images/s"])

    def _record(self, step: Step, scalars: Scalars) -> None:
        tally, trainer = self.tally, self.trainer
        if step.counted:
            tally.objectives += step.objective * step.counted
            tally.gradient_norms += step.gradient_norm * step.counted
            tally.steps += step.counted
            for name, value in step.figures.items():
                tally.figures[name] = tally.figures.get(name, 0.0) + value * step.counted
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
            **tally.means(),
        }
        tally.objectives, tally.gradient_norms, tally.steps, tally.figures = 0.0, 0.0, 0, {}
        self._write(record, scalars)

    def _write(self, record: dict[str, Any], scalars: Scalars) -> None:
        if self.folder is not None:
            self.folder.append(record)
        scalars.write(record)

    def _look(self, bar: ProgressBar, scalars: Scalars) -> None:
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
        if self.path is not None:
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
            processes=self.processes,
        )

    def _draw(self, flow: Flow) -> None:
        if len(flow.shape) != 3:
            return  # volumes and sequences have no grid of pictures
        pixels = draw_pixels(flow, GRID, seed=0)[0]  # by all: layers may be sharded
        if self.folder is not None:
            path = self.folder.path / "samples" / f"step-{self.trainer.step}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pictures.save(pictures.grid(pixels, scale=2), path)

    def _save(self, *, best: bool, settled: bool = False) -> None:
        if self.path is None:
            return
        if not settled:  # whoever loads it gets statistics that are the averaged weights' own
            self.trainer.settle()
        state = {"trainer": self.trainer.state(), "tally": dataclasses.asdict(self.tally)}
        model, averaged = self.trainer.weights()

        def write() -> None:
            assert self._checkpoints is not None
            self._checkpoints.save(self.trainer.step, model, averaged, state, best=best)

        self.processes.on_main(write)


def _shapes(state: dict[str, Any]) -> dict[str, Any]:
    """What must agree between a module and a state for it."""
    return {name: getattr(value, "shape", None) for name, value in state.items()}
