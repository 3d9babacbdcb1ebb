"""``mixerflow outliers``: the inside images, and the scores that are fitted to them or kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mixerflow import runs
from mixerflow.cli.copies import keeping
from mixerflow.cli.evaluate import EvaluationArguments
from mixerflow.cli.reading import ReadingFlags, load_run_data
from mixerflow.core import Flow, as_tensor
from mixerflow.core.noise import digests
from mixerflow.data import Images, load
from mixerflow.detection import (
    Detection,
    Fitted,
    Measured,
    Score,
    compare_sets,
    compressor_of,
    detection,
    factorises,
    fit_scores,
    is_mixture,
    measure,
    require_needs,
    require_settings,
    scores_for,
    stored,
)
from mixerflow.errors import CheckpointError, ConfigError, DataError, MixerFlowError
from mixerflow.progress import ProgressBar
from mixerflow.runs import InsideFit
from mixerflow.runs.weights import Weights
from mixerflow.signals import Interrupt, Stopped
from mixerflow.terminal import tell

_FALSE_ALARMS, _GROUP = 0.05, 16
_SEEN = 0.1
"""Share of inside images that training may not have seen."""


@dataclass(frozen=True, kw_only=True)
class FitFlags:
    """Which images the scores are fitted to, and how."""

    inside: str | None = None
    """Images of the inside that training has not seen, as --data; their test part, where there is
    one. By default those that the run keeps, or else its validation images."""
    false_alarms: float | None = None
    """Rate of inside images that a threshold flags; 0.05 unless given or kept."""
    group: int | None = None
    """Images of a group, for group typicality; 16 unless given or kept."""

    def check_inside(self) -> None:
        """Refuse impossible numbers with a ConfigError."""
        alarms = _FALSE_ALARMS if self.false_alarms is None else self.false_alarms
        require_settings(alarms, _GROUP if self.group is None else self.group)


@dataclass(frozen=True, kw_only=True)
class InsideFlags(FitFlags):
    """Which images are inside, and what is fitted to them."""

    inside_classes: str = ""
    """Classes of --data that are inside, as in `good,ok`: the others are outliers."""
    background: Path | None = None
    """A run of perturbed or of any images, for the likelihood ratio."""

    def load_background(self, device: torch.device) -> tuple[Flow, str] | None:
        """Return the background flow and the SHA-256 of its weights, if one is named."""
        if self.background is None:
            return None
        held = runs.read_weights(self.background)
        return held.flow(device), held.sha256


class Measurer:
    """Measures images under a run's flow, with a progress bar; a signal ends it with `Stopped`.

    Args:
        flow: the flow.
        weights: its weights, and the run's metadata.
        given: batch and seed.
        background: the background flow and the SHA-256 of its weights.
        quiet: whether there is no bar.
    """

    def __init__(
        self,
        flow: Flow,
        weights: Weights,
        given: EvaluationArguments,
        background: tuple[Flow, str] | None,
        *,
        quiet: bool,
    ) -> None:
        self.flow, self.metadata, self._quiet = flow, weights.metadata, quiet
        self._batch, self._seed = given.batch, given.seed
        self._background, sha256 = background or (None, None)
        self.lengths = flow.levels is not None
        self.places = not is_mixture(flow) and factorises(flow)  # which is no product over them
        self.key = {
            "weights_sha256": weights.sha256,
            "background_sha256": sha256,
            "seed": given.seed,
        }

    def measure(self, images: Images, split: str) -> Measured:
        """Measure images; a flow conditional on vectors is given theirs.

        Raises:
            DataError: images without such vectors, or of more levels than the flow knows.
            Stopped: after a signal.
        """
        flow = self.flow
        runs.require_levels(flow, images)
        labels = runs.vectors_of(flow, self.metadata, images)
        with ProgressBar("image", len(images), quiet=self._quiet) as bar, Interrupt() as interrupt:

            def on_batch(count: int) -> None:
                bar.done += count
                bar.update(bar.done, f"{split}, {bar.rate:.3g} images/s")
                if interrupt.requested:
                    tell(f"stopped after {bar.done:,} of {bar.total:,} images of {split}")
                    raise Stopped(interrupt.requested)

            return measure(
                flow,
                images.pixels,
                labels=labels,
                background=self._background,
                lengths=self.lengths,
                places=self.places,
                batch=self._batch,
                seed=self._seed,
                on_batch=on_batch,
            )

    def require(self, scores: Sequence[Score]) -> None:
        """Raise a ConfigError for a score that cannot be measured; see `require_needs`."""
        given = {"complexity": self.lengths, "background": self._background, "places": self.places}
        require_needs(scores, [name for name, there in given.items() if there])

    def fit(self, inside: Measured, false_alarms: float, group: int) -> Fitted:
        """Fit all scores that there are figures for."""
        given = {"lengths": self.lengths, "background": self._background is not None}
        scores = scores_for(**given, places=self.places)
        settings = {"false_alarms": false_alarms, "group": group, "seed": self._seed}
        return fit_scores(inside, scores, **settings)

    def compare(
        self, fit: InsideFit, measured: Measured, rows: np.ndarray | None
    ) -> dict[str, Detection]:
        """Return how well each score tells outliers, all images, or those that are not `rows`."""
        if rows is None:
            return compare_sets(fit.inside, measured, fit.fitted)
        found = {}
        for score in fit.fitted.scores:
            values = score(measured)
            found[score.name] = detection(values[rows], values[~rows])
        return found


def fit_of(run: Path, measurer: Measurer, given: Any) -> InsideFit:  # noqa: ANN401
    """Return the scores that the run keeps, or fit them to the inside images and keep them.

    A kept fit is replaced by one of `--inside`, by another rate or group, and where the run's
    weights are others by now; not by one of the last checkpoint, raw weights or another seed.

    Raises:
        ConfigError: no inside images, or too few.
        DataError: they cannot be read or used.
        Stopped: after a signal.
    """
    usual = (given.checkpoint, given.raw, given.seed) == ("best", False, 0)
    there, kept = _kept(run, measurer, renew=given.inside is not None, usual=usual)
    if kept is None:
        images, split = _inside_images(measurer.metadata, given)
        names: dict[str, Any] = {"dataset_id": images.dataset_id, "split": split}
        inside = measurer.measure(images, "the inside")
        names["images_sha256"] = images.fingerprint()
        one = stored(images.pixels[:1], measurer.flow.levels) if measurer.lengths else None
        names["compressor"] = None if one is None else compressor_of(one)
        alarms, group = _FALSE_ALARMS, _GROUP
    else:
        names, inside = kept.images, kept.inside
        alarms, group = kept.fitted.thresholds[0].false_alarms, kept.fitted.group
    alarms = alarms if given.false_alarms is None else given.false_alarms
    fitted = measurer.fit(inside, alarms, given.group or group)
    fit = InsideFit(fitted, inside, measurer.key, names)
    new = (
        kept is None
        or alarms != kept.fitted.thresholds[0].false_alarms
        or (fitted.group != kept.fitted.group)
    )
    if new and (there is None or kept is there or (kept is None and usual)):
        with keeping("the threshold"):
            runs.keep_fit(run, fit)
            rate = f"{100 * alarms:g} % false alarms, groups of {fitted.group}"
            tell(f"kept with the run: thresholds at {rate}, from {fitted.images:,} images")
    return fit


def _kept(
    run: Path, measurer: Measurer, *, renew: bool, usual: bool
) -> tuple[InsideFit | None, InsideFit | None]:
    """Return what the run keeps, and the same as far as it is of these weights.

    A kept background is left out where none is given now.
    """
    if renew:
        return None, None
    try:
        there = runs.kept_fit(run)
    except CheckpointError as error:
        tell(f"fitted again: {error}")
        return None, None
    if there is None:
        return None, None
    key, mine = dict(there.key), measurer.key
    if key["background_sha256"] and not mine["background_sha256"]:
        key["background_sha256"] = None
        inside = replace(there.inside, background=None)
        kept = InsideFit(there.fitted, inside, key, there.images)
    else:
        kept = there
    if measurer.places != (kept.inside.places is not None) or key != mine:
        inside = f"inside: {there.images.get('dataset_id')}, {there.images.get('split')}"
        again = "fitted again" if usual else "fitted for this call"
        tell(f"the kept thresholds ({inside}) are of other weights, background or seed: {again}")
        return there, None
    return there, kept


def _inside_images(metadata: dict[str, Any], given: Any) -> tuple[Images, str]:  # noqa: ANN401
    """Return images of the inside, and the name of their part of the data."""
    if given.inside is not None:
        splits = load_run_data(metadata, given.inside, given)
        images, split = (splits.train, "all") if splits.test is None else (splits.test, "test")
        _require_new(metadata, images, given.inside)
        return images, split
    if not (metadata.get("source") or {}).get("data"):
        what = "the run names no images of its own"
        raise ConfigError(what, "--inside", "name images of the inside")
    splits = load_run_data(metadata, None, ReadingFlags())  # flags are for --data
    images = runs.own_parts(metadata, splits).get("validation")
    if images is None:
        what = "the run's own images are no longer those that it was trained on"
        raise DataError(what, splits.train.dataset_id, "give --inside")
    return images, "validation"


def _require_new(metadata: dict[str, Any], images: Images, spec: str) -> None:
    """Raise a DataError if a tenth of the images or more trained the flow; tell of fewer.

    The run's own images are read for it; where they cannot be, nothing is known.
    """
    source = metadata.get("source") or {}
    try:
        own = load(source.get("data") or "", reading=ReadingFlags().reading(metadata))
    except MixerFlowError:
        return
    training = runs.own_parts(metadata, own).get("training")
    if training is None:
        return
    known = digests(as_tensor(training.pixels)).numpy()
    seen = int(np.isin(digests(as_tensor(images.pixels)).numpy(), known).sum())
    what = f"the flow was trained on {seen:,} of these {len(images):,} images"
    if seen >= _SEEN * len(images):
        raise DataError(what, f"--inside {spec}", "give others of the inside")
    if seen:
        tell(f"warning: {what}: they make the thresholds a little too low")


def inside_rows(images: Images, classes: str) -> np.ndarray | None:
    """Return which images ``(N,)`` are of the named classes; None where none is named.

    Raises:
        ConfigError: a class that the images do not have, or no image, or all, of those classes.
        DataError: images without classes.
    """
    names = [name.strip() for name in classes.split(",") if name.strip()]
    if not names:
        return None
    if images.labels is None or images.vector_length is not None:
        raise DataError("images without classes", images.dataset_id, "leave out --inside-classes")
    known = list(images.classes) or [str(n) for n in range(int(images.labels.max()) + 1)]
    if unknown := [name for name in names if name not in known]:
        remedy = f"the images have {', '.join(known[:20])}"
        raise ConfigError(f"no class {unknown[0]}", "--inside-classes", remedy)
    rows = np.isin(images.labels, [known.index(name) for name in names])
    if rows.all() or not rows.any():
        what = f"{'all' if rows.all() else 'none'} of the {len(rows):,} images are inside"
        raise ConfigError(what, "--inside-classes", "name some of the classes that they have")
    return rows
