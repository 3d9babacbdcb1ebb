"""What a page shows: a model, the images of a set beside it, and what was computed for both."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mixerflow.core import Flow
from mixerflow.data import Images, Reading, Splits
from mixerflow.detection import OutlierMap, Outliers, is_mixture, second_half
from mixerflow.errors import ConfigError, DataError
from mixerflow.evaluate import class_count, class_names, draw_values
from mixerflow.registry import choices
from mixerflow.runs import kept_fit
from mixerflow.runs.weights import Which
from mixerflow.scoring import Scorer
from mixerflow.view.latents import LatentIndex

MAPS = ("slope", "gradient", "variance")
"""Maps that take a moment, the best first."""
_BESIDE = 16
"""Images whose maps give the colours of a map their scale."""
_MOST_BYTES = 1 << 28
"""Bytes of latents that are kept, of one class at least."""


@dataclass(eq=False)
class Viewed:
    """A model with what a page needs; its functions are called by one thread at a time.

    Attributes:
        scorer: the model, as scorer of images.
        examples: images to choose from; None without any.
        searched: images among which neighbours are sought; None without any.
        split: names of the two parts that they are, for words.
    """

    scorer: Scorer
    examples: Images | None = None
    searched: Images | None = None
    split: tuple[str, str] = ("", "")
    _latents: dict[int | None, LatentIndex] = field(default_factory=dict)
    _beside: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)

    @property
    def flow(self) -> Flow:
        """The model's flow."""
        return self.scorer.flow

    @property
    def levels(self) -> int:
        """The number of values of a pixel."""
        return self.flow.levels or 0

    @cached_property
    def inside(self) -> Outliers | None:
        """Scores of the inside images that gave the thresholds; None where there are none."""
        fitted, fit = self.scorer.fitted, kept_fit(self.scorer.run)
        if fitted is None or fit is None or not fitted.scores:
            return None
        return Outliers.of(second_half(fit.inside), fitted)

    @cached_property
    def drawn_classes(self) -> tuple[str, ...]:
        """Names, or else numbers, of the classes that samples can be drawn of; empty without."""
        gaussians = self.flow.classifies and self.flow.head is None
        if not (is_mixture(self.flow) or gaussians):
            return ()
        return class_names(self.scorer.weights.metadata["data"]["classes"], class_count(self.flow))

    @cached_property
    def maps(self) -> dict[str, OutlierMap]:
        """The maps that there are of this flow's images, the first by default."""
        made = {}
        for word in MAPS:
            each = choices(OutlierMap)[word]()
            try:
                each.check_flow(self.flow)
            except ConfigError:  # a density that is a bound, for example
                continue
            made[word] = each
        return made

    def label(self, image: np.ndarray) -> int | None:
        """Return the likeliest class of an image, of a class-conditional flow; None of another."""
        if not is_mixture(self.flow):
            return None
        columns = self.scorer(image[None])
        return int(np.argmax([columns[f"p_{name}"][0] for name in self.scorer.classes]))

    def latents(self, label: int | None) -> LatentIndex:
        """Return the latents of the images to search as of a class, encoded so far."""
        assert self.searched is not None
        if label not in self._latents:
            index = LatentIndex(self.flow, self.searched.pixels, label)
            while self._latents and (len(self._latents) + 1) * index.latents.nbytes > _MOST_BYTES:
                self._latents.pop(next(iter(self._latents)))
            self._latents[label] = index
        return self._latents[label]

    def beside(self, word: str) -> tuple[np.ndarray, np.ndarray]:
        """Return images ``(n, C, H, W)`` and their maps ``(n, H, W)``, by which colours are set."""
        if word not in self._beside:
            if self.searched is not None:
                pixels = self.searched.pixels[:_BESIDE]
            else:
                drawn = draw_values(self.flow, _BESIDE, seed=0).images
                pixels = drawn.cpu().numpy().astype(np.uint8 if self.levels <= 256 else np.uint16)
            self._beside[word] = pixels, self.maps[word].map(self.flow, pixels.copy()).numpy()
        return self._beside[word]


def view_of(
    run: Path | str,
    splits: Splits | None = None,
    *,
    neighbours: int = 2000,
    which: Which = "best",
    average: bool = True,
    device: str = "cpu",
    reading: Reading | None = None,
) -> Viewed:
    """Return what a page needs of a run folder or published weights.

    Args:
        run: the folder.
        splits: images of the model's kind. Examples are of the test part, if there is one, and
            neighbours are sought in the training part.
        neighbours: the first so many images are searched.
        which: the checkpoint of a run.
        average: take the averaged weights.
        device: cpu or cuda (experimental).
        reading: how images are read; by default as the run's own.

    Raises:
        CheckpointError: no weights there, or damaged ones.
        ConfigError: a model whose images a page cannot show, or no neighbours.
        DataError: images of another kind than the model's.
    """
    if neighbours < 1:
        raise ConfigError(f"{neighbours} images", "--neighbours", "give at least 1")
    fit = kept_fit(run)
    seed = 0 if fit is None else int(fit.key["seed"])
    settings: dict[str, Any] = {"which": which, "average": average, "device": device}
    scorer = Scorer(run, seed=seed, reading=reading, **settings)
    flow = scorer.flow
    if len(flow.shape) != 3 or flow.shape[0] not in (1, 3) or flow.levels not in (256, 65536):
        kind = f"{flow.levels:,} levels" if flow.levels else "floats"
        what = f"the model's images are {' x '.join(map(str, flow.shape))}, {kind}"
        raise ConfigError(what, run, "a page shows grey or RGB images of 8 or 16 bits")
    if flow.shape[0] == 3 and flow.levels > 256:
        what, remedy = "the model's images are colour of 16 bits", "a page shows those of 8"
        raise ConfigError(what, run, remedy)
    if splits is None:
        return Viewed(scorer)
    images, name = (splits.test, "test") if splits.test else (splits.train, "training")
    if (images.shape, images.levels) != (tuple(flow.shape), flow.levels):
        what = f"images are {images.shape} of {images.levels} values"
        own = f"the model's are {tuple(flow.shape)} of {flow.levels}"
        raise DataError(f"{what}, {own}", images.dataset_id, "give images of that kind")
    return Viewed(scorer, images, splits.train.first(neighbours), (name, "training"))
