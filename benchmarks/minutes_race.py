"""Runs that take turns by the processor's clock, for `benchmarks.minutes`."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence

import torch

from benchmarks.minutes_learners import Entrant
from mixerflow.data import Images

_PLANNED_AFTER = 3
"""Steps after which the steps of a run are estimated: they turn the warm-up's into seconds."""


class Run:
    """One entrant's training, in turns; it counts its own CPU seconds and has its own randomness.

    Args:
        entrant: who.
        images: to train on.
        seed: of weights, order and noise.
        rate: learning rate.
        seconds: CPU seconds, which the last step exceeds or leaves by half of its own.

    Attributes:
        used: CPU seconds that count.
        begun: those of them before the first step.
        stepping: those in steps.
        over: whether it has ended.
    """

    def __init__(
        self, entrant: Entrant, images: Images, seed: int, rate: float, seconds: float
    ) -> None:
        self.entrant, self.seed, self.rate, self.seconds = entrant, seed, rate, seconds
        self.used, self.steps, self.over = 0.0, 0, False
        self._random = torch.get_rng_state()
        self._whole, self._latest = 0, 0.0
        with self._counted():
            self.learner = entrant.begin(images, seed, rate, seconds)
        self.begun, self.stepping = self.used, 0.0

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        """Count the time of a ``with`` block, in which torch's generator is this run's."""
        outside = torch.get_rng_state()
        torch.set_rng_state(self._random)
        start = time.process_time()
        try:
            yield
        finally:
            self._latest = time.process_time() - start
            self.used += self._latest
            self._random = torch.get_rng_state()
            torch.set_rng_state(outside)

    def work(self, until: float) -> None:
        """Train until so many seconds are used, or to the end."""
        while not self.over and self.used < until:
            self._step()
            if self.used + self._latest / 2 >= self.seconds - self.learner.settling:
                with self._counted():
                    self.learner.settle()
                self.over = True

    def _step(self) -> None:
        whole, config = self._whole, self.learner.config
        if self.steps < _PLANNED_AFTER:
            place, whole = float(self.steps), max(1000, 10 * config.warmup)
        else:
            left = self.seconds - self.learner.settling - self.begun
            if not whole:
                whole = self._whole = max(self.steps + 1, round(left * self.steps / self.stepping))
            place = min(whole, whole * self.stepping / left)
        with self._counted():
            self.learner.step(place, whole)
        self.stepping += self._latest
        self.steps += 1

    def images_per_second(self) -> float:
        """Training images in a second of steps."""
        return self.steps * self.learner.config.batch / max(self.stepping, 1e-9)


def race(
    runs: Sequence[Run],
    turn: float,
    marks: Sequence[float],
    look: Callable[[Run, bool], object],
) -> None:
    """Train all in turns to their end; call ``look(run, last)`` as each passes each mark.

    Args:
        runs: of equal seconds.
        turn: CPU seconds.
        marks: CPU seconds, rising; the last, a run's end, comes by itself.
        look: what is done at a mark; its time does not count.
    """
    to_come = [[*marks] for _ in runs]
    turns = 0
    while not all(run.over for run in runs):
        turns += 1
        for run, passed in zip(runs, to_come, strict=True):
            while not run.over and run.used < turns * turn:
                run.work(min(turns * turn, *passed[:1]) if passed else turns * turn)
                if run.over:
                    look(run, True)
                elif passed and run.used >= passed[0]:
                    del passed[0]
                    run.learner.settle()
                    look(run, False)
