"""The number of steps of a budget."""

from __future__ import annotations

import copy
import dataclasses
import math
import statistics
import time

from mixerflow.core import Flow
from mixerflow.data import Images
from mixerflow.errors import ConfigError
from mixerflow.evaluate import bits
from mixerflow.train_config import TrainConfig
from mixerflow.training.batches import Batches
from mixerflow.training.graphed import trainer_of
from mixerflow.training.objective import Objective, likelihood

EVALUATIONS = 10
"""Evaluations in a run, where `TrainConfig.evaluate_every` does not say."""
GRID = 36
"""Images in a sample grid."""

_TRIAL_SHARE = 0.03
_RESERVE = 0.97


def steps_of(
    config: TrainConfig,
    flow: Flow,
    batches: Batches,
    validation: Images,
    objective: Objective = likelihood,
) -> int:
    """Return the number of steps of a budget.

    Minutes become steps once: copies of the flow and the objective take timed steps and a timed
    evaluation for 3 % of the budget.

    Raises:
        ConfigError: no budget.
    """
    if config.steps is not None:
        return config.steps
    if config.epochs is not None:
        return max(1, math.ceil(config.epochs * len(batches.images) / config.batch))
    if config.minutes is None:
        raise ConfigError("no budget", "--steps, --epochs or --minutes", "set one of them")
    budget = 60 * config.minutes
    # no schedule that could be too short
    unplaced = dataclasses.replace(config, schedule_start=0, schedule_steps=None)
    tried = copy.deepcopy(objective)
    trainer = trainer_of(copy.deepcopy(flow), batches, unplaced, steps=10**6, objective=tried)
    processes = batches.processes

    def now() -> float:
        return processes.from_main(time.monotonic())  # one clock, or processes would disagree

    times: list[float] = []
    begun = last = now()
    while len(times) < 5 or last - begun < _TRIAL_SHARE * budget:
        before = last
        trainer.advance()
        last = now()
        times.append(last - before)
        if last - begun > budget / 3:  # a step is long: three of them are trial enough
            break
    seconds = statistics.median(times[len(times) // 4 :])
    averaged = trainer.settle()
    settling = now() - last
    few = min(64, len(validation))
    labels = validation.labels if flow.context_net is not None else None
    before = now()
    labels = None if labels is None else labels[:few]
    bits(averaged, validation.pixels[:few], labels=labels, processes=processes)
    an_image = (now() - before) / few
    looked_at = min(config.evaluate_images or len(validation), len(validation))
    drawn = GRID * processes.world  # each draws them all
    evaluations = an_image * (EVALUATIONS * (looked_at + drawn) + len(validation))
    evaluations += EVALUATIONS * settling
    left = _RESERVE * budget - (now() - begun) - evaluations
    return max(1, int(left / seconds))
