"""`Scorer`: all that a run says of images, as a callable that can be pickled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mixerflow.core import Flow, as_tensor
from mixerflow.data import Reading
from mixerflow.detection import Fitted, Measured, measure, tells_classes
from mixerflow.errors import ConfigError, DataError
from mixerflow.evaluate import class_count, class_names
from mixerflow.runs import device_of, kept_fit, read_weights, reading_of
from mixerflow.runs.weights import Weights, Which
from mixerflow.scoring.images import pixels_of


class Scorer:
    """Scores images ``(N, C, H, W)``: ``Scorer("runs/photos")(images)["bits_per_dim"]``.

    A call returns columns ``(N,)``:
        - `bits_per_dim`: ``-log2 p(x) / D``;
        - `log_base` and `log_det`: ``log p(z)`` and ``log|det dz/dx|``, in nats, whose sum is
          ``log p(x)``;
        - `complexity`: bits/dim of a lossless file of the image (not of floats);
        - `score_NAME` and `outlier_NAME`: outlier scores, and whether they lie beyond their
          thresholds, where `mixerflow outliers` has fitted some for these weights and this seed;
        - `p_NAME`: the probability of each class, where the flow tells classes.

    An image's figures depend on no other image of the call, up to rounding. A class-conditional
    flow that is given no labels is the mixture of its K classes, in K passes. An image that cannot
    be read is an error, whatever `reading` says of bad files.

    Given a mapping of columns, as `datasets.map(..., batched=True)`, Ray's `map_batches` and
    Spark's `mapInPandas` do, it scores the images of one column, see `pixels_of`, and returns the
    other columns with its own. Each process builds the flow at its first call.

    Args:
        run: a run folder or published weights; also a name, ``weights/NAME`` that ships with the
            package, or ``hf://OWNER/NAME[@REVISION]`` of the Hugging Face hub.
        seed: seed of the noise.
        batch: images at a time.
        device: cpu or cuda (experimental).
        labels: whether a class-conditional flow is given the images' labels.
        which: the checkpoint of a run.
        average: take the averaged weights rather than the raw ones.
        reading: how encoded images are read; by default as the run's own were.
        column: the column of a mapping with the images.
        label_column: and the one with their labels, numbers or names of the run's classes.
        threads: CPU threads; by default what torch has.

    Attributes:
        fitted: the outlier scores with their thresholds; None without any.
        note: why there are none, or not all, in a few words; else empty.

    Raises:
        CheckpointError: no weights there, or damaged ones.
        ConfigError: labels for a flow that takes none, a flow conditional on vectors, or a setting
            that cannot be.
    """

    def __init__(
        self,
        run: Path | str,
        *,
        seed: int = 0,
        batch: int = 128,
        device: str = "cpu",
        labels: bool = False,
        which: Which = "best",
        average: bool = True,
        reading: Reading | None = None,
        column: str = "image",
        label_column: str = "label",
        threads: int | None = None,
    ) -> None:
        if reading is not None and not isinstance(reading, Reading):
            raise ConfigError(f"{reading!r}", "reading", "give a mixerflow.data.Reading")
        if not 0 <= seed < 2**63:
            raise ConfigError(f"{seed}", "seed", "give 0 or more, less than 2^63")
        self.run = Path(run)
        self.weights: Weights = read_weights(self.run, which=which, average=average)
        self.seed, self.batch, self.device = seed, batch, device
        self.labels, self.column, self.label_column = labels, column, label_column
        self.reading = reading_of(self.weights.metadata) if reading is None else reading
        self.threads = threads
        self._flow: Flow | None = None
        self._check(self.flow)
        self.fitted, self.note = self._fitted()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_flow": None}

    @property
    def flow(self) -> Flow:
        """The flow, an inference copy; this process builds it at its first use."""
        if self._flow is None:
            if self.threads is not None:
                torch.set_num_threads(self.threads)
            self._flow = self.weights.flow(device_of(self.device)).fused()
        return self._flow

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns that a call returns, in their order."""
        own = ["bits_per_dim", "log_base", "log_det"]
        own += ["complexity"] if self.flow.levels is not None else []
        names = [] if self.fitted is None else [score.name for score in self.fitted.scores]
        own += [f"score_{name}" for name in names if name != "bits"]
        own += [f"outlier_{name}" for name in names]
        return (*own, *(f"p_{name}" for name in self.classes))

    @property
    def levels(self) -> int | None:
        """The number of values of a pixel in the run's images; None for floats."""
        return self.weights.metadata["data"]["levels"]

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Names, or else numbers, of the classes that it tells; empty where it tells none."""
        if not tells_classes(self.flow, given=self.labels):
            return ()
        return class_names(self.weights.metadata["data"]["classes"], class_count(self.flow))

    @property
    def given_classes(self) -> int:
        """The number of classes that labels may name; 0 for a flow that takes none."""
        net = self.flow.context_net
        return net.num_embeddings if isinstance(net, nn.Embedding) else 0

    def __call__(
        self,
        images: np.ndarray | Tensor | Mapping[str, Any],
        labels: np.ndarray | Tensor | None = None,
    ) -> dict[str, Any]:
        """Return the columns of images ``(N, *shape)``, or of a mapping of columns.

        Raises:
            DataError: encoded images that cannot be read, or of another shape.
            ValueError: images of another shape or range, or labels that are no classes.
        """
        if not isinstance(images, Mapping):
            return self._score(images, labels)
        wanted = {"column": self.column}
        wanted |= {"label_column": self.label_column} if self.labels else {}
        for setting, name in wanted.items():
            if name not in images:
                remedy = f"give one of those that there are: {', '.join(map(str, images))}"
                raise ConfigError(f"no column {name!r}", setting, remedy)
        pixels = pixels_of(images[self.column], self.reading, self.flow.shape, self.levels)
        given = self._labels(images[self.label_column]) if self.labels else None
        rest = {name: images[name] for name in images if name != self.column}
        return {**rest, **self._score(pixels, given)}

    def _labels(self, values: Sequence[Any] | np.ndarray) -> np.ndarray:
        """Return numbers of classes ``(N,)`` of a column of numbers or names."""
        names = {name: i for i, name in enumerate(self.weights.metadata["data"]["classes"])}
        numbers = [names.get(each, each) if isinstance(each, str) else each for each in values]
        for row, each in enumerate(numbers):
            if isinstance(each, bool) or not isinstance(each, (int, np.integer)):
                what = f"row {row} has the label {each!r}"
                remedy = f"give numbers of classes, or names: {', '.join([*names][:20])}"
                raise DataError(what, self.label_column, remedy)
        return np.asarray(numbers, np.int64)

    def _score(
        self, images: np.ndarray | Tensor, labels: np.ndarray | Tensor | None
    ) -> dict[str, np.ndarray]:
        if not len(images):
            empty = {name: np.empty(0) for name in self.columns}
            return {k: v.astype(bool) if k.startswith("outlier_") else v for k, v in empty.items()}
        if self.labels != (labels is not None):
            given = "none" if labels is None else "some"
            raise ValueError(f"Scorer: made with labels={self.labels}, and called with {given}")
        needs = set() if self.fitted is None else self.fitted.needs
        measured = measure(
            self.flow,
            as_tensor(images),
            labels=labels if self.labels else None,
            lengths=self.flow.levels is not None,
            places="places" in needs,
            classes=bool(self.classes),
            batch=self.batch,
            seed=self.seed,
        )
        return dict(zip(self.columns, self._values(measured), strict=True))

    def _values(self, measured: Measured) -> list[np.ndarray]:
        """Return the columns of measured images in the order of `columns`."""
        dims, fitted = measured.dims, self.fitted
        own = [-measured.log_prob / (dims * np.log(2)), measured.log_base, measured.log_det]
        own += [] if measured.complexity is None else [measured.complexity / dims]
        if fitted is not None:
            scores = {score.name: score(measured) for score in fitted.scores}
            own += [values for name, values in scores.items() if name != "bits"]
            own += [fitted.threshold(name).flags(values) for name, values in scores.items()]
        if measured.class_log_probs is not None:
            own += list(np.exp(measured.class_log_probs).T)
        return own

    def _check(self, flow: Flow) -> None:
        """Refuse labels for a flow without them, and a flow that needs vectors."""
        mixture = flow.context_net is None or tells_classes(flow)
        if not mixture:
            what, remedy = "a flow conditional on vectors", "use `mixerflow evaluate`"
            raise ConfigError(what, self.run, remedy)
        if self.labels and flow.context_net is None:
            raise ConfigError("the flow takes no labels", "labels", "leave it out")

    def _fitted(self) -> tuple[Fitted | None, str]:
        """Return the scores that the run keeps for these weights and this seed, if any, and a note.

        One that needs a background flow is left out.
        """
        fit = kept_fit(self.run)
        if fit is None:
            return None, "the run keeps no thresholds; `mixerflow outliers` fits them"
        if self.labels:
            return None, "the run's thresholds are of images without labels"
        if fit.key["weights_sha256"] != self.weights.sha256:
            return None, "the run's thresholds are of other weights; `mixerflow outliers` fits them"
        if fit.key["seed"] != self.seed:
            return None, f"the run's thresholds are of noise of seed {fit.key['seed']}"
        fitted = fit.fitted.without("background")
        left_out = [each.name for each in fit.fitted.scores if each not in fitted.scores]
        note = f"{', '.join(left_out)} needs a background flow" if left_out else ""
        return (fitted if fitted.scores else None), note
