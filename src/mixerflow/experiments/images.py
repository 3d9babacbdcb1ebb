"""Budgets, and the images that a seed's runs are trained and scored on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np

from mixerflow.data import Images, Splits, hold_out
from mixerflow.errors import ConfigError

Budget = Literal["tiny", "cpu", "time", "gpu"]
"""tiny: seconds a run, tells nothing; cpu: minutes a run, small twins after equal steps; time: the
same after equal processor time; gpu: as in the paper."""
BUDGETS: tuple[Budget, ...] = get_args(Budget)
RUN_TIME: dict[Budget, str] = {
    "tiny": "seconds",
    "cpu": "minutes",
    "time": "minutes",
    "gpu": "days on one GPU",
}
TEST_IMAGES: dict[Budget, int] = {"tiny": 20, "cpu": 2000, "time": 2000, "gpu": 0}
"""The first so many test images give the figures; 0 for all."""


@dataclass(frozen=True)
class SeedImages:
    """The images of one seed's runs: the same for every row."""

    train: Images
    validation: Images
    test: Images
    split: str
    every_test: Images
    """All test images, of which `test` may be the first."""
    others: Mapping[str, Images] = field(default_factory=dict)
    """Images that the table has besides, by name: the test images of a set, or all."""

    @staticmethod
    def of(splits: Splits, seed: int, budget: Budget, count: int | None = None) -> SeedImages:
        """Hold out 4 % for validation, and take the budget's test images for the figures.

        `count` is the number of training images to take at random, of those that are not held out;
        a smaller number takes a part of a larger one's. Data without test images are scored on the
        held-out images.
        """
        train, validation = hold_out(splits.train, seed=seed)
        if count is not None:
            if count > len(train):
                what = f"{count:,} training images of {len(train):,} that are not held out"
                raise ConfigError(what, "the table's column", "choose others with --columns")
            order = np.random.default_rng(seed).permutation(len(train))
            train = train.take(np.sort(order[:count]))
        test, split, limit = splits.test, "test", TEST_IMAGES[budget]
        if test is None:
            test, split = validation, "validation"
        every = test
        if 0 < limit < len(test):
            test, split = test.first(limit), f"{split}, first {limit}"
        return SeedImages(train, validation, test, split, every)
