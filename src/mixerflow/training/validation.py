"""What an evaluation during training consists of: a score, a grid of samples, and their cost."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from PIL.Image import Image

from mixerflow import pictures
from mixerflow.core import Flow, Noise, as_tensor, evaluating
from mixerflow.data import Images
from mixerflow.evaluate import Bits, bits, draw_pixels, has_pictures
from mixerflow.objectives import OF_LABELS, Classifying
from mixerflow.runs import RunFolder
from mixerflow.runs.files import writing
from mixerflow.training.budget import Costs
from mixerflow.training.trainer import Trainer

GRID = 36
"""Images in a sample grid."""
_BATCH = 128
"""Images at a time."""
_TRIAL = 8
"""Images of a first trial of scoring, and of drawing."""


@dataclass(frozen=True)
class Score:
    """The result of an evaluation."""

    figure: Bits
    objective: dict[str, float]
    """The mean objective, over D ln 2, as "objective", and its figures; empty for the likelihood.
    """

    def best_by(self, few: int) -> float:
        """Return what the best checkpoint is the smallest of, on the first `few` images."""
        own = self.objective.get("objective")
        return float(self.figure.per_image[:few].mean()) if own is None else own

    def __str__(self) -> str:
        return ", ".join([str(self.figure), *told(self.objective, self.figure.images)])


def told(objective: dict[str, float], images: int) -> list[str]:
    """Return words for a classifier's figures on the first of so many images; none without one."""
    words = [f"{name} {objective[name]:.3g}" for name in OF_LABELS if name in objective]
    count = int(objective.get("labelled_images", images))
    if words and count < images:
        words[-1] += f" on {count:,} with a label"
    return words


class Validation:
    """Scores the averaged weights of a trainer on validation images, and draws from them.

    Args:
        trainer: the trainer; all its processes must call the methods together.
        images: the validation images.
    """

    def __init__(self, trainer: Trainer, images: Images) -> None:
        self.trainer, self.images = trainer, images

    def score(self, flow: Flow, count: int, few: int | None = None) -> Score:
        """Return the bits/dim of a flow on the first `count` validation images.

        An objective that is a setting is taken of the first `few` of them, all by default.
        """
        labels = self.images.labels
        figure = bits(
            flow,
            self.images.pixels[:count],
            labels=labels[:count] if flow.context_net is not None and labels is not None else None,
            probes=1,  # of many evaluations, each costs time
            seed=self.trainer.config.seed,
            dataset_id=self.images.dataset_id,
            split="validation",
            processes=self.trainer.processes,
        )
        return Score(figure, self._objective(flow, count if few is None else min(few, count)))

    @torch.no_grad()
    def _objective(self, flow: Flow, count: int) -> dict[str, float]:
        """Return the means of the objective and its figures over the first images."""
        objective = self.trainer.task.objective
        if not isinstance(objective, Classifying):
            return {}
        sums: dict[str, float] = {}
        labelled = 0
        for start in range(0, count, _BATCH):
            images = as_tensor(self.images.pixels[start : min(start + _BATCH, count)])
            labels = self.images.labels
            labels = None if labels is None else as_tensor(labels[start : start + len(images)])
            noise = Noise.of(self.trainer.config.seed, images)
            with evaluating(flow) as still, still.drawing(noise):
                loss, figures = objective(still, images.to(flow.device), labels)
            figures = {"objective": loss / (flow.dims * math.log(2)), **figures}
            known = 0 if labels is None else int((labels >= 0).sum())
            for name, value in figures.items():
                weight = known if name in OF_LABELS else len(images)
                sums[name] = sums.get(name, 0.0) + float(value.float().mean()) * weight
            labelled += known
        if not labelled:  # their means are of nothing
            sums = {name: value for name, value in sums.items() if name not in OF_LABELS}
        means = {n: value / (labelled if n in OF_LABELS else count) for n, value in sums.items()}
        return means | {"labelled_images": labelled}

    def draw(self, flow: Flow, folder: RunFolder | None) -> Image | None:
        """Draw a grid of samples into a run folder, if there is one, and return it."""
        pixels = self._samples(flow, GRID)  # by all: layers may be sharded
        if folder is None or pixels is None:
            return None
        grid, path = pictures.grid(pixels, scale=2), folder.path / "samples"
        with writing(folder.path):
            path.mkdir(parents=True, exist_ok=True)
            pictures.save(grid, path / f"step-{self.trainer.step}.png")
        return grid

    def _samples(self, flow: Flow, count: int) -> np.ndarray | None:
        if len(flow.shape) != 3 or not has_pictures(flow):
            return None  # volumes, sequences and features have no grid of pictures
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
