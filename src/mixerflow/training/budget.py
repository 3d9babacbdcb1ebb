"""How many steps a budget buys."""

from __future__ import annotations

import copy
import math
import statistics
import time

from mixerflow.core import Flow
from mixerflow.data import Images
from mixerflow.errors import ConfigError
from mixerflow.evaluate import bits
from mixerflow.training.batches import Batches
from mixerflow.training.config import TrainConfig
from mixerflow.training.trainer import Trainer

EVALUATIONS = 10
"""Evaluations in a run, where `TrainConfig.evaluate_every` does not say."""
GRID = 36
"""Images in a sample grid."""

_TRIAL_SHARE = 0.03
_RESERVE = 0.97


def steps_of(config: TrainConfig, flow: Flow, batches: Batches, validation: Images) -> int:
    """The number of steps that the budget of `config` is.

    Minutes are counted in steps once, on a copy of the flow that is then thrown away: timed steps
    and a timed evaluation, for 3 % of the budget, tell what the rest will buy.

    Raises:
        ConfigError: no budget, or one that does not buy a step.
    """
    if config.steps is not None:
        return config.steps
    if config.epochs is not None:
        return max(1, math.ceil(config.epochs * len(batches.images) / config.batch))
    if config.minutes is None:
        raise ConfigError("no budget", "--steps, --epochs or --minutes", "set one of them")
    budget = 60 * config.minutes
    trainer = Trainer(copy.deepcopy(flow), batches, config, steps=10**6)
    times: list[float] = []
    begun = time.monotonic()
    while len(times) < 5 or time.monotonic() - begun < _TRIAL_SHARE * budget:
        before = time.monotonic()
        trainer.advance()
        times.append(time.monotonic() - before)
        if time.monotonic() - begun > budget / 3:  # a step is long: three of them are trial enough
            break
    seconds = statistics.median(times[len(times) // 4 :])
    before = time.monotonic()
    averaged = trainer.settle()
    settling = time.monotonic() - before
    few = min(64, len(validation))
    labels = validation.labels if flow.context_net is not None else None
    before = time.monotonic()
    bits(averaged, validation.pixels[:few], labels=None if labels is None else labels[:few])
    an_image = (time.monotonic() - before) / few
    looked_at = min(config.evaluate_images or len(validation), len(validation))
    evaluations = an_image * (EVALUATIONS * (looked_at + GRID) + len(validation))
    evaluations += EVALUATIONS * settling
    left = _RESERVE * budget - (time.monotonic() - begun) - evaluations
    return max(1, int(left / seconds))
