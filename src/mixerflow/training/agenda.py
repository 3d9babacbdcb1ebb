"""What falls on which step of a run: evaluations, checkpoints, and the plans of a clock."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from mixerflow.training.budget import EVALUATIONS, Clock, Costs, Evaluations, Pace
from mixerflow.training.optimizer import batch_norms
from mixerflow.training.trainer import Trainer
from mixerflow.training.validation import Validation

_SETTLE = 0.01
"""Share of a budget in minutes for the batch-norm statistics of one evaluation."""
_QUICK = 0.01
"""Share of a budget in minutes below which a trial is repeated with more images."""


class Agenda:
    """Decides what falls on a step; without a clock, from the steps alone.

    Args:
        trainer: the trainer; all its processes must call the methods together.
        validation: the evaluations' scores and samples.
        clock: the time of a budget in minutes; None without one.
        limit: largest number of steps; None where only time limits them.

    Attributes:
        evaluations: those wanted, or those that the minutes allow.
    """

    def __init__(
        self, trainer: Trainer, validation: Validation, clock: Clock | None, limit: int | None
    ) -> None:
        self.trainer, self.validation, self.clock, self.limit = trainer, validation, clock, limit
        everything = len(validation.images)
        few = min(trainer.config.evaluate_images or everything, everything)
        self.evaluations = Evaluations(EVALUATIONS, few, everything)
        self._wanted = self.evaluations
        self._place = trainer.schedule_place
        self._last_place = self._place
        self.notes: list[str] = []

    @property
    def planned(self) -> bool:
        """Whether the number of steps is known."""
        return self.clock is None or self.clock.evaluations is not None

    @property
    def due(self) -> bool:
        """Whether process 0's clock asks for a plan."""
        trainer, clock = self.trainer, self.clock
        if clock is None or trainer.step == trainer.steps or not trainer.processes.main:
            return False
        return clock.due(trainer.step, trainer.steps)

    def begin(self) -> None:
        """Note that steps begin, and a budget that is spent by then."""
        clock = self.clock
        if clock is None:
            return
        if clock.spent > clock.seconds:
            spent = f"{clock.spent:.1f} s of {clock.seconds:.1f} s were spent before the first step"
            self.notes.append(f"step {self.trainer.step}: {spent}; the budget is too short")
        clock.begin(self.trainer.step)

    def limit_settling(self) -> None:
        """Let batch-norm statistics take a small part of the minutes, by a trial on one batch."""
        trainer, clock = self.trainer, self.clock
        if clock is None or not batch_norms(trainer.flow):
            return
        batch, trainer.settle_images = trainer.batches.batch, trainer.batches.batch
        with clock.aside():
            begun = trainer.config.now()
            trainer.settle()
            seconds = trainer.processes.from_main(trainer.config.now() - begun)
        most = int(_SETTLE * clock.seconds / max(seconds, 1e-9)) * batch
        trainer.settle_images = min(max(batch, most), Trainer.settle_images)

    def aside(self, *, saving: bool = False) -> AbstractContextManager[None]:
        """Count the time of a ``with`` block as an evaluation's or a save's, not a step's."""
        return nullcontext() if self.clock is None else self.clock.aside(saving=saving)

    def step_done(self) -> None:
        """Note the place in the schedule after a step."""
        self._last_place, self._place = self._place, self.trainer.schedule_place

    def evaluates(self) -> bool:
        """Whether an evaluation falls on the last step; the last step of all always has one."""
        at_end = self.trainer.step == self.trainer.steps
        every = self.trainer.config.evaluate_every
        falls = self._falls(self.evaluations.times, every)
        return at_end or (falls and self._affordable())

    def saves(self) -> bool:
        """Whether a checkpoint falls on the last step."""
        config = self.trainer.config
        if not self._falls(EVALUATIONS, config.save_every or config.evaluate_every):
            return False
        if self.clock is None:
            return True
        cheap = self.planned and self.clock.save_is_cheap()
        if not self.trainer.processes.from_main(cheap):
            self.notes.append(f"step {self.trainer.step}: checkpoints take too long for the time")
            return False
        return True

    def _falls(self, times: int, every: int) -> bool:
        """Whether the last step ended one of so many equal parts of the run, or every so many."""
        trainer = self.trainer
        if every:
            return trainer.step % every == 0
        part = trainer.pace.whole / times if self.clock else math.ceil(trainer.steps / times)
        return self._place // part > self._last_place // part

    def _affordable(self) -> bool:
        """Whether another evaluation fits in the evaluations' share of the minutes."""
        clock = self.clock
        if clock is None:
            return True
        if not self.planned:
            return False
        seconds, then = (clock.evaluations_cost(last=last) for last in (False, True))
        fits = self.trainer.processes.from_main(seconds + then <= clock.share)
        if not fits:
            self.notes.append(f"step {self.trainer.step}: no time for evaluations before the end")
        return fits

    def plan(self, saving: float) -> dict[str, Any]:
        """Decide, by the clock, how many steps the run has; return a record of it.

        Args:
            saving: seconds that the last checkpoint took.
        """
        trainer, clock, shared = self.trainer, self.clock, self.trainer.processes.from_main
        assert clock is not None
        first = not self.planned
        if first:
            with clock.aside():
                clock.measured(shared(self.validation.trial(_QUICK * clock.seconds, saving)))
        done = 0.0 if first else self._place / trainer.pace.whole
        asked = shared(clock.steps(trainer.step, done, self._wanted))
        self.evaluations = shared(clock.evaluations) or self._wanted
        if first:
            self._say_what_fits()
        steps = max(trainer.step, min(asked, self.limit or asked))
        if first and steps != self.limit:
            trainer.pace = Pace(steps, steps, trainer.step, float(trainer.step))
        else:
            trainer.pace = trainer.pace.until(steps, trainer.step)
        self._place = trainer.schedule_place
        share = self._place / trainer.pace.whole
        figures = {"steps": steps, "place": share, "elapsed": clock.spent}
        return {"kind": "plan", "step": trainer.step, **figures}

    def _say_what_fits(self) -> None:
        planned, wanted = self.evaluations, self._wanted
        if planned == wanted:
            return
        words = [f"{planned.last:,} of {wanted.last:,} images at the end"]
        if planned.times > 1:
            others = "evaluation" if planned.times == 2 else "evaluations"
            words.insert(0, f"{planned.times - 1} {others} of {planned.images:,} images")
        words += [] if planned.grid else ["no sample grids"]
        self.notes.append(f"evaluations within a tenth of the time: {', '.join(words)}")

    def last_images(self) -> int:
        """Return the validation images of the last evaluation."""
        if self.clock is None or not self.planned:
            return self.evaluations.last
        return self.trainer.processes.from_main(self.clock.last_images())

    def remember(self, times: Sequence[float], images: int, saving: float) -> None:
        """Keep what an evaluation took: later ones, and plans, reckon with it.

        Args:
            times: clock readings before and after batch norms, scores and, if any, samples.
            images: images scored.
            saving: seconds that the checkpoint took.
        """
        if self.clock is None or not self.planned:
            return
        settling, scoring, *drawing = (
            after - before for before, after in itertools.pairwise(times)
        )
        drawn = drawing[0] if drawing and self.evaluations.grid else self.clock.costs.grid
        costs = Costs(scoring / images, drawn, settling + saving)
        self.clock.evaluated(self.trainer.processes.from_main(costs))
        if self.trainer.step < self.trainer.steps:
            self._say_what_fits()

    def state(self) -> dict[str, Any]:
        """Return entries of a checkpoint: time spent, and what was decided."""
        return {} if self.clock is None else {"clock": self.clock.state()}

    def load_state(self, state: dict[str, Any] | None) -> None:
        """Go on from entries that `state` returned; process 0 gives them.

        A run of minutes without them was turned into steps by an older version: steps it stays.
        """
        known = self.trainer.processes.from_main(state and state.get("clock"))
        if self.clock is not None and known is not None:
            self.clock.load_state(known)
            self.evaluations = self.clock.evaluations or self._wanted
        else:
            self.clock = None
        self._place = self._last_place = self.trainer.schedule_place
