"""What an evaluation during training consists of: a score, a grid of samples, and their cost."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from mixerflow import pictures
from mixerflow.core import Flow
from mixerflow.data import Images
from mixerflow.evaluate import Bits, bits, draw_pixels
from mixerflow.runs import RunFolder
from mixerflow.runs.files import writing
from mixerflow.training.budget import Costs
from mixerflow.training.trainer import Trainer

GRID = 36
"""Images in a sample grid."""
_TRIAL = 8
"""Images of a first trial of scoring, and of drawing."""


class Validation:
    """Scores the averaged weights of a trainer on validation images, and draws from them.

    Args:
        trainer: the trainer; all its processes must call the methods together.
        images: the validation images.
    """

    def __init__(self, trainer: Trainer, images: Images) -> None:
        self.trainer, self.images = trainer, images

    def score(self, flow: Flow, count: int) -> Bits:
        """Return the bits/dim of a flow on the first `count` validation images."""
        labels = self.images.labels
        return bits(
            flow,
            self.images.pixels[:count],
            labels=labels[:count] if flow.context_net is not None and labels is not None else None,
            seed=self.trainer.config.seed,
            dataset_id=self.images.dataset_id,
            split="validation",
            processes=self.trainer.processes,
        )

    def draw(self, flow: Flow, folder: RunFolder | None) -> None:
        """Draw a grid of samples into a run folder, if there is one."""
        pixels = self._samples(flow, GRID)  # by all: layers may be sharded
        if folder is not None and pixels is not None:
            path = folder.path / "samples" / f"step-{self.trainer.step}.png"
            with writing(folder.path):
                path.parent.mkdir(parents=True, exist_ok=True)
                pictures.save(pictures.grid(pixels, scale=2), path)

    def _samples(self, flow: Flow, count: int) -> np.ndarray | None:
        if len(flow.shape) != 3:
            return None  # volumes and sequences have no grid of pictures
        return draw_pixels(flow, count, seed=0, examples=self.images.labels).pixels

    def trial(self, quick: float, rest: float) -> Costs:
        """Time an evaluation: on few images, and again where that takes less than `quick`.

        Args:
            quick: seconds.
            rest: seconds that batch norms and a checkpoint take.
        """
        flow = self.trainer.average.flow
        scoring = self._timed(lambda count: self.score(flow, count), len(self.images), quick)
        drawing = self._timed(lambda count: self._samples(flow, count), GRID, quick)
        return Costs(scoring, GRID * drawing, rest)

    def _timed(self, work: Callable[[int], object], most: int, quick: float) -> float:
        """Return the seconds an image takes: the first time is slower than the rest."""
        best = math.inf
        for count in (_TRIAL, _TRIAL, GRID):
            begun, count = self.trainer.config.now(), min(count, most)
            work(count)
            seconds = self.trainer.processes.from_main(self.trainer.config.now() - begun)
            best = min(best, seconds / count)
            if seconds > quick:
                break
        return best
