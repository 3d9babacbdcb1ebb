"""The training loop: steps, evaluations, samples, checkpoints, metrics, signals, and the clock."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator
from typing import Any, NoReturn

from torch import Tensor

from mixerflow.data import Images
from mixerflow.errors import CheckpointError, NonFiniteError, ResourceError
from mixerflow.evaluate import Bits
from mixerflow.processes import cause, is_lost_process
from mixerflow.progress import ProgressBar
from mixerflow.runs import Checkpoint, Checkpoints, RunFolder
from mixerflow.signals import Interrupt
from mixerflow.training.agenda import Agenda
from mixerflow.training.budget import EVALUATIONS, Clock
from mixerflow.training.metrics import Counters, Metrics, OnRecord
from mixerflow.training.objective import name_of
from mixerflow.training.trainer import Step, Trainer
from mixerflow.training.validation import Validation

_LINES = 200
"""Training records in metrics.jsonl, about."""

_ASKED = 1
"""`on_record`'s wish to stop, among the numbers of signals: any signal counts more."""

_REMEDY = "lower --train.lr, or bound a coupling's scales (its elementwise.bound)"


class Loop:
    """Runs a `Trainer` to its end, or to a signal.

    Args:
        trainer: at its first step.
        validation: the validation images.
        folder: the run folder, of which process 0's counts; None keeps nothing.
        clock: the time of a budget in minutes, of which process 0's counts; None without one.
        limit: largest number of steps; None where only time limits them.
        on_record: is given each record, in process 0, whose argument counts; True from it stops.
        quiet: show no progress.
    """

    def __init__(
        self,
        trainer: Trainer,
        validation: Images,
        folder: RunFolder | None,
        *,
        clock: Clock | None = None,
        limit: int | None = None,
        on_record: OnRecord | None = None,
        quiet: bool = False,
    ) -> None:
        self.trainer = trainer
        self.processes = trainer.processes
        self.folder = folder if self.processes.main else None
        self.path = self.processes.from_main(None if folder is None else folder.path)
        self.quiet = quiet or not self.processes.main
        self.validation = Validation(trainer, validation)
        self.agenda = Agenda(trainer, self.validation, clock, limit)
        self.metrics = Metrics(trainer, self.folder, on_record)
        self._record_often()
        self.result: Bits | None = None
        self.figures: dict[str, float] = {}
        self._checkpoints = None
        if self.folder is not None:
            self._checkpoints = Checkpoints(
                self.folder.path / "checkpoints", keep=trainer.config.keep
            )
        self._saving = 0.0  # seconds of the last checkpoint
        self._said: set[str] = set()

    def run(self) -> int:
        """Train to the end, to a signal, or to `on_record`'s wish; return 0, 143 or 130.

        The last two are for SIGTERM and SIGINT.

        Raises:
            NonFiniteError: too many steps in a row were not finite; the last checkpoint is intact.
            ResourceError: the folder cannot be written, or another process was lost.
        """
        trainer, stop = self.trainer, 0
        bar = ProgressBar("step", trainer.steps, done=trainer.step, quiet=self.quiet)
        with Interrupt() as interrupt, self._losses_reported(interrupt), bar:
            self.metrics.open()
            self.agenda.limit_settling()
            if trainer.step == 0:
                with self.agenda.aside(saving=True):
                    self._save(best=False)  # an early stop, or NaN, leaves a model to look at
            self.agenda.begin()
            while trainer.step < trainer.steps and not stop:
                started = self.trainer.config.now()
                step = trainer.advance()
                self.metrics.counters.seconds += self.trainer.config.now() - started
                if step.bad_part is not None:
                    self._report_skipped(step, bar)
                self.metrics.add(step)
                self.agenda.step_done()
                stop = self._signals(interrupt, bar)
                bar.update(trainer.step, self.metrics.summary(step))
                if self.agenda.evaluates():
                    self._evaluate(bar)
                    stop = max(stop, self.processes.largest(self._asked(interrupt)))
                elif stop or self.agenda.saves():
                    with self.agenda.aside(saving=True):
                        self._save(best=False)
                self._say_once(bar)
            if self.result is None and trainer.step == trainer.steps:  # resumed at its end
                images = self.agenda.last_images()
                score = self.validation.score(trainer.settle(), images)
                self.result, self.figures = score.figure, score.objective
        self._require_figure()
        return 128 + stop if stop > _ASKED and trainer.step < trainer.steps else 0

    def _asked(self, interrupt: Interrupt) -> int:
        """Return the number of a signal that this process got, `_ASKED`, or 0."""
        return interrupt.requested or (_ASKED if self.metrics.stop else 0)

    def _signals(self, interrupt: Interrupt, bar: ProgressBar) -> int:
        """Return a signal's number, or 0; plan anew if the clock asks; alike in all processes."""
        asked = 2 * self._asked(interrupt) + self.agenda.due
        stop, due = divmod(self.processes.largest(asked), 2)
        if due and not stop:
            first = not self.agenda.planned
            self.metrics.write(self.agenda.plan(self._saving))
            bar.total = self.trainer.steps
            if first:
                self._record_often()
                if self.folder is not None:
                    self.folder.update({"steps": self.trainer.steps})
        return stop

    def _say_once(self, bar: ProgressBar) -> None:
        """Print each of the agenda's notes, but not the same for every step."""
        for note in self.agenda.notes:
            kind = note.partition(":")[2]
            if kind not in self._said:
                bar.say(note)
            self._said.add(kind)
        self.agenda.notes.clear()

    def _record_often(self) -> None:
        """Write about as many records as `_LINES`, and one with each evaluation."""
        trainer = self.trainer
        every = trainer.config.evaluate_every or math.ceil(trainer.steps / EVALUATIONS)
        self.metrics.every = trainer.read_every = max(1, min(trainer.steps // _LINES, every))

    @contextlib.contextmanager
    def _losses_reported(self, interrupt: Interrupt) -> Iterator[None]:
        """Save, and raise an error for people, when another process is lost; close the metrics."""
        try:
            yield
        except Exception as error:
            if not (self.processes.together and is_lost_process(error)):
                raise
            interrupt.keep()  # launchers send SIGTERM to the remaining processes at this time
            raise self._lost(error) from error
        finally:
            self.metrics.close()

    def _lost(self, error: Exception) -> ResourceError:
        """Save this process's state, if it is whole; return the error that says what to do."""
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
            remedy = f"the {which} is intact: resume with the same command"
        what = f"another process was lost in step {trainer.step + 1} ({cause(error)})"
        return ResourceError(what, self.path or "in memory", remedy)

    def _require_figure(self) -> None:
        """Refuse the end of a run that changed no weight, or whose figure is no number."""
        trainer, result = self.trainer, self.result
        if result is None:
            return
        what = ""
        if not math.isfinite(result.bits_per_dim):
            what = f"the validation figure is {result.bits_per_dim} bits/dim"
        if 0 < trainer.skipped == trainer.step:
            what = f"none of {trainer.step} steps was finite"
        if what:
            raise NonFiniteError(what, "in memory" if self.path is None else self.path, _REMEDY)

    def _report_skipped(self, step: Step, bar: ProgressBar) -> None:
        trainer = self.trainer
        bar.say(f"step {step.number} skipped: {step.bad_part} is not finite")
        if trainer.bad_in_a_row >= trainer.config.give_up_after:
            self.processes.on_main(lambda: self._give_up(step))

    def _give_up(self, step: Step) -> NoReturn:
        where = "in memory" if self.folder is None else self.folder.path
        remedy = _REMEDY
        if self._checkpoints is not None:
            remedy += f"; the checkpoint of step {self._checkpoints.steps()[-1]} is untouched"
        raise NonFiniteError(
            f"{self.trainer.bad_in_a_row} steps in a row not finite, the last at step "
            f"{step.number} in {step.bad_part}",
            where,
            remedy,
        )

    def _evaluate(self, bar: ProgressBar) -> None:
        """Score the averaged weights, draw samples, and save."""
        with self.agenda.aside():
            self._evaluate_now(bar)

    def _evaluate_now(self, bar: ProgressBar) -> None:
        trainer, counters, agenda = self.trainer, self.metrics.counters, self.agenda
        at_end, few = trainer.step == trainer.steps, agenda.evaluations.images
        times = [self.trainer.config.now()]
        flow = trainer.settle()
        times.append(self.trainer.config.now())
        score = self.validation.score(flow, agenda.last_images() if at_end else few, few)
        figure = score.figure
        times.append(self.trainer.config.now())
        # the same images every time, or the best checkpoint would be the one with easy images
        comparable = score.best_by(few)
        best = comparable < counters.best
        counters.best = min(comparable, counters.best)
        record = {"kind": "validation", "step": trainer.step, **figure.as_dict()}
        self.metrics.write(record | score.objective)
        if at_end:
            self.result, self.figures = figure, score.objective
        samples = None
        if self.path is not None:
            if agenda.evaluations.grid:
                samples = self.validation.draw(flow, self.folder)
                times.append(self.trainer.config.now())
            self._save(best=best, settled=True)
        self.metrics.evaluation(flow, figure.per_image, samples)
        agenda.remember(times, figure.images, self._saving)
        bar.say(f"step {trainer.step}: validation {score}")

    def _save(self, *, best: bool, settled: bool = False) -> None:
        if self.path is None:
            return
        begun = self.trainer.config.now()
        if not settled:  # the averaged weights get batch-norm statistics of their own
            self.trainer.settle()
        counters = dataclasses.asdict(self.metrics.counters)
        state = {"trainer": self.trainer.state(), "counters": counters, **self.agenda.state()}
        model, averaged = self.trainer.weights()

        def write() -> None:
            assert self._checkpoints is not None
            self._checkpoints.save(self.trainer.step, model, averaged, state, best=best)

        self.processes.on_main(write)
        self._saving = self.trainer.config.now() - begun

    def restore(self, checkpoint: Checkpoint | None) -> None:
        """Resume from a checkpoint, which process 0 gives to all processes.

        Weights, average, optimiser, random generators and counters are restored; later metrics are
        removed, and later checkpoints set aside.

        Raises:
            CheckpointError: the checkpoint is of another flow or objective.
        """
        self.processes.on_main(lambda: self._require_fit(checkpoint))
        model = ema = state = counters = None
        if checkpoint is not None:
            model, ema = checkpoint.model, checkpoint.ema or checkpoint.model
            state, counters = checkpoint.state["trainer"], checkpoint.state["counters"]
        self.trainer.load_weights(model, ema)
        self.trainer.load_state(state)
        self.metrics.counters = Counters(**(self.processes.from_main(counters) or {}))
        self.agenda.load_state(checkpoint and checkpoint.state)
        self._record_often()
        self.processes.on_main(self._cut_back)

    def _cut_back(self) -> None:
        if self.folder is not None and self._checkpoints is not None:
            self.folder.cut_back(self.trainer.step)
            if self._checkpoints.steps()[-1] > self.trainer.step:
                self._checkpoints.set_aside(self.trainer.step)

    def _require_fit(self, checkpoint: Checkpoint | None) -> None:
        assert checkpoint is not None
        own = self.trainer.task.own
        mine = {} if own is None else own.state_dict()
        theirs = checkpoint.state["trainer"].get("objective", {})
        if _shapes(mine) != _shapes(theirs):
            what = f"the checkpoint does not fit {name_of(self.trainer.task.objective)}"
            remedy = "give the objective that it was saved with"
            raise CheckpointError(what, checkpoint.path, remedy)
        names = _shapes(self.trainer.flow.state_dict())
        groups = self.trainer.optimizer.param_groups
        shapes = [tuple(p.shape) for group in groups for p in group["params"]]
        try:
            for weights in (checkpoint.model, checkpoint.ema or checkpoint.model):
                if _shapes(weights) != names:
                    raise ValueError("other weights")
            for i, values in checkpoint.state["trainer"]["optimizer"]["state"].items():
                for value in values.values():
                    if not isinstance(value, Tensor) or value.shape not in ((), shapes[i]):
                        raise ValueError("another optimiser")
            Counters(**checkpoint.state["counters"])
        except (ValueError, KeyError, IndexError, TypeError) as error:
            what = "the checkpoint does not fit run.json's model"
            raise CheckpointError(what, checkpoint.path, "restore run.json from a copy") from error


def _shapes(state: dict[str, Any]) -> dict[str, Any]:
    return {name: getattr(value, "shape", None) for name, value in state.items()}
