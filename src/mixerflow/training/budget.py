"""Budgets: steps, epochs and minutes, and what the evaluations of a run may take of its minutes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

from mixerflow.errors import ConfigError
from mixerflow.train_config import TrainConfig

EVALUATIONS = 10
"""Evaluations in a run, where `TrainConfig.evaluate_every` does not say."""

_SHARE = 0.1
"""Largest share of a budget in minutes for evaluations, samples and checkpoints."""
_INTERVAL = 0.02
"""Share of a budget in minutes between two plans."""
_FEW, _FIRST = 3, 0.1
"""Steps before the first plan, unless they take this share of a budget in minutes."""
_SMOOTHING = 0.3
"""Weight of the latest steps in the estimate of how slow the machine is for evaluations."""
_SAVE = 0.01
"""Share of a budget in minutes that a checkpoint between evaluations may take."""
_SPARE = 0.01
"""Share of a budget in minutes that no plan uses."""
_LEAST = 64
"""Images that an evaluation has at least, unless time is too short for even one of these."""


def limit_of(config: TrainConfig, images: int) -> int | None:
    """Return the steps that a budget allows, however quick they are; None if time alone limits it.

    Raises:
        ConfigError: no budget.
    """
    limits = [] if config.steps is None else [config.steps]
    if config.epochs is not None:
        limits.append(max(1, math.ceil(config.epochs * images / config.batch)))
    if config.minutes is not None and config.schedule_steps is not None:
        limits.append(config.schedule_steps - config.schedule_start)
    if not limits and config.minutes is None:
        raise ConfigError("no budget", "--steps, --epochs or --minutes", "set one of them")
    return min(limits, default=None)


@dataclass(frozen=True)
class Pace:
    """Where in the schedule each step is: a straight line from the present place to the end.

    Steps of a budget in minutes become more or fewer as the machine's speed changes, and the
    schedule's places lie closer or wider. In a budget of steps, step and place are equal.

    Attributes:
        whole: places of the schedule, the steps that were planned first.
        steps: steps of the run.
        step: the step at which this was planned.
        place: its place.
    """

    whole: int
    steps: int
    step: int = 0
    place: float = 0.0

    def at(self, step: int) -> float:
        """Return the place of a step."""
        if step <= self.step:
            return self.place
        return self.place + (step - self.step) * (
            (self.whole - self.place) / (self.steps - self.step)
        )

    def until(self, steps: int, step: int) -> Pace:
        """Return the pace that leads from the place of `step` to the end after `steps` steps."""
        return self if steps == self.steps else Pace(self.whole, steps, step, self.at(step))


@dataclass(frozen=True)
class Costs:
    """Seconds of the parts of an evaluation.

    Attributes:
        image: to score an image.
        grid: to draw a grid of samples.
        rest: to average batch norms, and to save.
    """

    image: float
    grid: float
    rest: float

    def times(self, factor: float) -> Costs:
        """Return the costs on a machine that is slower by a factor."""
        return Costs(factor * self.image, factor * self.grid, factor * self.rest)


@dataclass(frozen=True)
class Evaluations:
    """The evaluations of a run.

    Attributes:
        times: their number, the last among them.
        images: validation images of each but the last.
        last: validation images of the last.
        grid: whether each draws a grid of samples.
    """

    times: int
    images: int
    last: int
    grid: bool = True

    def cost(self, costs: Costs, *, last: bool) -> float:
        """Return the seconds of one evaluation."""
        images = self.last if last else self.images
        return costs.rest + costs.grid * self.grid + costs.image * images

    def within(self, seconds: float, costs: Costs, least: float = 0.0) -> Evaluations:
        """Return these, with so much less that they take `seconds`: fewer times, fewer images.

        The last evaluation gets at least half of the images. Where even one evaluation of a few
        images takes longer, that one is left, of as many as are scored in `least` seconds.
        """
        images, last = min(self.images, _LEAST), min(self.last, _LEAST)
        for times, grid in ((10, True), (5, True), (3, True), (3, False), (1, True), (1, False)):
            times, grid = min(times, self.times), grid and self.grid
            left = (seconds - times * (costs.rest + costs.grid * grid)) / costs.image
            if left < last + (times - 1) * images:
                continue
            others = left / 2 / (times - 1) if times > 1 else 0
            others = min(self.images, max(images, int(others)))
            return Evaluations(
                times, others, min(self.last, int(left) - (times - 1) * others), grid
            )
        few = max(1, min(last, int(max(least, seconds - costs.rest) / costs.image)))
        return Evaluations(1, few, few, grid=False)


class Clock:
    """The time of a run with a budget in minutes, pieces before a stop included.

    Args:
        config: settings with a budget in minutes.

    Attributes:
        seconds: the budget.
        evaluating: seconds of evaluations, with their samples and checkpoints, among those spent.
        saving: seconds of other checkpoints.
        evaluations: the evaluations that were decided on; None before the first plan.
    """

    def __init__(self, config: TrainConfig) -> None:
        assert config.minutes is not None
        self.seconds, self._now = 60 * config.minutes, config.now
        self.evaluating = self.saving = 0.0
        self.evaluations: Evaluations | None = None
        self._costs: Costs | None = None
        self._fixed = False  # later evaluations score the images of the first
        self._before, self._begun = 0.0, self._now()
        self._step_seconds: float | None = None
        self._planned_at, self._mark = 0.0, (0, 0.0)

    @property
    def spent(self) -> float:
        """Seconds since the run began, without the time between its pieces."""
        return self._before + self._now() - self._begun

    @property
    def costs(self) -> Costs:
        """What an evaluation takes, as last measured."""
        assert self._costs is not None
        return self._costs

    @property
    def share(self) -> float:
        """Seconds that are left for evaluations."""
        return _SHARE * self.seconds - self.evaluating

    @property
    def working(self) -> float:
        """Seconds spent on steps."""
        return self.spent - self.evaluating - self.saving

    @contextmanager
    def aside(self, *, saving: bool = False) -> Iterator[None]:
        """Count the time of a ``with`` block as that of an evaluation, or of a checkpoint."""
        begun = self.spent
        try:
            yield
        finally:
            seconds = self.spent - begun
            self.saving += seconds * saving
            self.evaluating += seconds * (not saving)

    def save_is_cheap(self) -> bool:
        """Whether a checkpoint takes little of the budget."""
        return self.costs.rest <= _SAVE * self.seconds

    def begin(self, step: int) -> None:
        """Note that steps begin, after `step` steps of earlier pieces."""
        self._planned_at, self._mark = self.spent, (step, self.working)

    def due(self, step: int, steps: int) -> bool:
        """Whether to plan anew after `step` of `steps` steps."""
        since, done = self.spent - self._planned_at, step - self._mark[0]
        if self.evaluations is None and done < _FEW:
            return since >= _FIRST * self.seconds
        # halfway to a near end: it may have been planned in a slow moment
        near = 2 * done >= steps - self._mark[0] and self.evaluations is not None
        early = self.spent + self.share < (1 - _INTERVAL) * self.seconds
        return since >= _INTERVAL * self.seconds or (near and early)

    def measured(self, costs: Costs) -> None:
        """Keep what an evaluation took."""
        self._costs = costs

    def evaluated(self, costs: Costs) -> None:
        """Keep what an evaluation took; from the first on all score the same images."""
        self._costs, self._fixed = costs, True

    def steps(self, step: int, done: float, wanted: Evaluations) -> int:
        """Return the steps that the run has in all, as it looks after `step` steps.

        Args:
            step: steps done; more than at the last call.
            done: the part of the schedule that is done, in [0, 1].
            wanted: the evaluations of a run without a clock.
        """
        working, (before, begun) = self.working, self._mark
        latest, past = (working - begun) / (step - before), self._step_seconds
        smooth = latest if past is None else past + _SMOOTHING * (latest - past)
        if past is not None:  # what slows steps down slows evaluations down
            self._costs = self.costs.times(smooth / past)
        self._step_seconds = smooth
        self.begin(step)
        reserved = self._decide(done, wanted) + self.evaluations_cost(last=True)
        reserved = min(reserved, _SHARE * self.seconds)  # measured in a slow moment, it may be more
        left = (1 - _SPARE) * self.seconds - self.spent - reserved
        least = int(step == 1 and left > 0)  # the first step of all is slower than the others
        return step + max(least, int(left / max(latest, 1e-9)))

    def _decide(self, done: float, wanted: Evaluations) -> float:
        """Decide on the evaluations to come; return the seconds of all but the last."""
        if self.evaluations is None or not self._fixed:
            least = _SPARE * self.seconds
            self.evaluations = wanted.within(self.share, self.costs, least)
        planned, costs = self.evaluations, self.costs
        to_come = max(0, planned.times - 1 - math.floor(done * planned.times))
        alone = self.share - costs.rest - costs.grid * planned.grid
        fits = max(min(planned.images, _LEAST), int(alone / costs.image))
        # the last one comes first: what it leaves is for the others, and what they leave is its
        last = min(planned.last if to_come else wanted.last, fits)
        self.evaluations = replace(planned, last=last)
        others = to_come * planned.cost(costs, last=False)
        return max(0.0, min(others, self.share - self.evaluations_cost(last=True)))

    def evaluations_cost(self, *, last: bool) -> float:
        """Return the seconds of an evaluation as decided on."""
        assert self.evaluations is not None
        return self.evaluations.cost(self.costs, last=last)

    def last_images(self) -> int:
        """Return the images of the last evaluation: fewer than decided on, if time is short."""
        asked, costs = self.evaluations, self.costs
        assert asked is not None
        left = self.seconds - self.spent - costs.rest - costs.grid * asked.grid
        return min(asked.last, max(_LEAST, int(left / costs.image)))

    def state(self) -> dict[str, Any]:
        """Return what was spent and decided, for a checkpoint."""
        return {
            "spent": self.spent,
            "evaluating": self.evaluating,
            "saving": self.saving,
            "step_seconds": self._step_seconds,
            "fixed": self._fixed,
            "costs": self._costs and asdict(self._costs),
            "evaluations": self.evaluations and asdict(self.evaluations),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from a state that `state` returned."""
        self._before += state["spent"]
        self.evaluating, self._fixed = state["evaluating"], state["fixed"]
        self.saving = state["saving"]
        self._step_seconds = state["step_seconds"]
        self._costs = state["costs"] and Costs(**state["costs"])
        self.evaluations = state["evaluations"] and Evaluations(**state["evaluations"])
