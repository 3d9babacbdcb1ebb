"""How well flows' scores tell outliers: figures that tables of outliers have beside bits/dim."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from mixerflow.core import Flow
from mixerflow.data import Splits
from mixerflow.detection import (
    GROUPS,
    SCORES,
    Fitted,
    Measured,
    compare,
    fit_scores,
    measure,
    scores_for,
    threshold_of,
)
from mixerflow.detection.corruptions import CORRUPTIONS
from mixerflow.detection.scores import bits_of
from mixerflow.errors import ConfigError
from mixerflow.experiments.further import Figure, Further, Rows
from mixerflow.experiments.images import Budget, SeedImages
from mixerflow.means import mean_and_error
from mixerflow.runs import RunFolder, load

BACKGROUND = "background"
"""The row whose flow is the background of the others' likelihood ratio."""
_NAMES = (*SCORES, GROUPS)
_FALSE_ALARMS, _GROUP, _SPLITS, _STRENGTHS = 0.05, 16, 10, 5
_CORRUPTED = "corrupted"


@dataclass(frozen=True)
class Outlying(Further):
    """AUROC of each score for other sets of images and for corruptions, and the thresholds' check.

    Scores are fitted to the held-out images. The test images are the inside.
    """

    sets: tuple[str, ...] = ()
    """Names of the other sets."""
    corrupted: int = 300
    """Test images of each corruption."""

    name: ClassVar[str] = "outliers"
    about: ClassVar[str] = (
        "AUROC in per cent, 50 is chance: how often an image of the other set scores as more "
        "outlying than a test image. Scores are fitted to half of the held-out images. bits: "
        "bits/dim; typicality: its distance from the mean; complexity: bits/dim less those of a "
        "WebP file; ratio: bits/dim less those of the background flow; mixture: latent density "
        "and file length in a mixture of four Gaussians; groups: typicality of 16 images together. "
        "Corrupted images are test images with noise, blur or less contrast, each of five "
        "strengths, whose AUROC is averaged."
    )

    @property
    def figures(self) -> tuple[Figure, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """AUROC by set and score, and the sets' bits/dim."""
        found = [
            Figure(f"bits/dim of {each}", f"bits/dim of {each}", "lower", 3) for each in self.sets
        ]
        for each in (*self.sets, _CORRUPTED):
            found += [
                Figure(f"{each} {score}", f"{each}, {score}", "higher", 1) for score in _NAMES
            ]
        return tuple(found)

    def settings(self, budget: Budget) -> dict[str, Any]:
        return {"corrupted": self._count(budget), "group": _GROUP, "sets": list(self.sets)}

    def _count(self, budget: Budget) -> int:
        return 8 if budget == "tiny" else self.corrupted

    def require(self, splits: Splits) -> None:
        images = splits.train
        if len(images.shape) != 3 or images.levels is None:
            raise ConfigError("outliers of these images", images.dataset_id, "give 8-bit images")

    def depends(self, folder: Path, images: SeedImages) -> dict[str, Any]:
        others = {name: each.fingerprint() for name, each in sorted(images.others.items())}
        return {"others": others, "background": _background_folder(folder) is not None}

    def measure(
        self, flow: Flow, folder: Path, images: SeedImages, seed: int, budget: Budget
    ) -> dict[str, Any]:
        place = _background_folder(folder)
        background = None if place is None else load(place, which="last", device=flow.device)

        def measured(pixels: np.ndarray) -> Measured:
            return measure(flow, pixels, background=background, seed=seed)

        scores = scores_for(lengths=True, background=background is not None)
        held_out = measured(images.validation.pixels)
        alarms = 0.5 if budget == "tiny" else _FALSE_ALARMS
        fitted = fit_scores(held_out, scores, false_alarms=alarms, group=_GROUP)
        test = images.test if budget == "tiny" else images.every_test
        every = measured(test.pixels)
        inside = every.take(np.arange(len(images.test)))
        record: dict[str, Any] = {"sets": {}, "corruptions": {}, "bits_per_dim": {}}
        for name, other in images.others.items():
            outside = measured(other.pixels[: len(images.test)])
            record["sets"][name] = _told(inside, outside, fitted)
            record["bits_per_dim"][name] = float(bits_of(outside).mean())
        few = images.test.pixels[: self._count(budget)]
        for kind, corrupt in CORRUPTIONS.items():
            record["corruptions"][kind] = [
                _told(inside, measured(corrupt(few, strength, seed)), fitted)
                for strength in range(_STRENGTHS)
            ]
        record["bits_per_dim"]["inside"] = float(bits_of(inside).mean())
        record["thresholds"] = _check(every, fitted, alarms)
        return record | {"figures": self._figures_of(record)}

    def _figures_of(self, record: Mapping[str, Any]) -> dict[str, float | None]:
        bits, figures = record["bits_per_dim"], {}
        for name in self.sets:
            figures[f"bits/dim of {name}"] = bits.get(name)
            for score in _NAMES:
                known = record["sets"].get(name, {}).get(score)
                figures[f"{name} {score}"] = None if known is None else 100 * known["auroc"]
        for score in _NAMES:
            found = [
                100 * each[score]["auroc"]
                for strengths in record["corruptions"].values()
                for each in strengths
                if score in each
            ]
            figures[f"{_CORRUPTED} {score}"] = float(np.mean(found)) if found else None
        return figures

    def tables(self, column: Mapping[str, Any]) -> list[tuple[str, Rows]]:
        tables = [(self.about, self._auroc_table(column))]
        for kind in CORRUPTIONS:
            words = f"AUROC in per cent by the strength of the corruption, 1 to 5: {kind}"
            tables.append((words, _strengths_table(column, kind)))
        words = (
            f"Thresholds at {100 * _FALSE_ALARMS:g} % false alarms (50 % at the budget tiny) on "
            f"{_SPLITS} fresh splits of the test images, half of each for the threshold, half "
            "observed: splits whose observed rate lies in the stated 95 % interval, over all "
            "seeds, and the mean observed rate"
        )
        return [*tables, (words, _threshold_table(column))]

    def _auroc_table(self, column: Mapping[str, Any]) -> Rows:
        head = ["row", "outliers", "bits/dim of these", "of test images", *_NAMES, "seeds"]
        rows = []
        for row in _shown(column):
            runs = [run["further"] for run in row["runs"] if run.get("further")]
            for name in (*self.sets, _CORRUPTED) if runs else ():
                bits = [run["bits_per_dim"].get(name) for run in runs]
                own = [run["bits_per_dim"]["inside"] for run in runs]
                known = [row["further"][f"{name} {score}"] for score in _NAMES]
                cells = [_mean(each["mean"], each["standard_error"]) for each in known]
                words = [
                    _mean(*mean_and_error([b for b in part if b is not None]), 3)
                    for part in (bits, own)
                ]
                rows.append([row["label"], name, *words, *cells, str(len(runs))])
        return head, rows

    def pictures(self, column: dict[str, Any]) -> dict[str, bytes]:
        curves: dict[str, dict[str, list[tuple[float, float, float | None]]]] = {}
        for row in _shown(column):
            runs = [run["further"] for run in row["runs"] if run.get("further")]
            for kind in CORRUPTIONS if runs else ():
                for score in _NAMES:
                    points = _by_strength(runs, kind, score)
                    curves.setdefault(f"{row['row']}-{kind}", {})[score] = points
        if not curves:
            return {}
        from mixerflow import plots  # matplotlib takes a second

        return {
            f"{name}.png": plots.points_plot(
                {score: points for score, points in each.items() if points},
                {"chance": 50.0},
                title=f"{column['column']}: {name}",
                across="strength",
                label="AUROC, %",
            )
            for name, each in curves.items()
        }


def _shown(column: Mapping[str, Any]) -> list[Any]:
    return [row for row in column["rows"] if row["row"] != BACKGROUND]


def _background_folder(folder: Path) -> Path | None:
    """Return the finished run of the background row beside a run, if there is one."""
    place = folder.parent.parent / BACKGROUND / folder.name
    if place == folder or not (place / "run.json").exists():
        return None
    finished = RunFolder(place).read_metadata().get("status") == "finished"
    return place if finished else None


def _told(inside: Measured, outside: Measured, fitted: Fitted) -> dict[str, dict[str, Any]]:
    """Return all figures of each score for one set of outliers."""
    found = compare(inside, outside, fitted)
    return {name: each.as_dict() for name, each in found.items()}


def _check(measured: Measured, fitted: Fitted, alarms: float) -> dict[str, dict[str, Any]]:
    """Return of each score the observed rates on fresh splits, and how many are as stated."""
    parts = np.array_split(np.random.default_rng(0).permutation(len(measured)), _SPLITS)
    found = {}
    for score in fitted.scores:
        values, rates, inside = score(measured), [], 0
        for part in parts:
            first, second = np.array_split(values[part], 2)
            threshold = threshold_of(first, alarms)
            rates.append(float(threshold.flags(second).mean()))
            low, high = threshold.observed_interval(len(second))
            inside += low <= rates[-1] <= high
        found[score.name] = {"splits": len(parts), "as_stated": int(inside), "rates": rates}
    return found


def _by_strength(
    runs: Sequence[Mapping[str, Any]], kind: str, score: str
) -> list[tuple[float, float, float | None]]:
    points = []
    for strength in range(_STRENGTHS):
        every = [run["corruptions"][kind][strength].get(score) for run in runs]
        mean, error = mean_and_error([100 * each["auroc"] for each in every if each is not None])
        if mean is not None:
            points.append((float(strength + 1), mean, error))
    return points


def _strengths_table(column: Mapping[str, Any], kind: str) -> Rows:
    rows = []
    for row in _shown(column):
        runs = [run["further"] for run in row["runs"] if run.get("further")]
        for score in _NAMES if runs else ():
            points = _by_strength(runs, kind, score)
            if points:
                rows.append([row["label"], score, *(_mean(*point[1:]) for point in points)])
    return ["row", "score", *map(str, range(1, _STRENGTHS + 1))], rows


def _threshold_table(column: Mapping[str, Any]) -> Rows:
    rows = []
    for row in _shown(column):
        runs = [run["further"]["thresholds"] for run in row["runs"] if run.get("further")]
        for score in SCORES:
            known = [run[score] for run in runs if score in run]
            if known:
                stated = sum(each["as_stated"] for each in known)
                splits = sum(each["splits"] for each in known)
                rate = float(np.mean([rate for each in known for rate in each["rates"]]))
                rows.append([row["label"], score, f"{stated} of {splits}", f"{100 * rate:.2f} %"])
    return ["row", "score", "as stated", "observed rate"], rows


def _mean(mean: float | None, error: float | None, digits: int = 1) -> str:
    if mean is None or math.isnan(mean):
        return "-"
    return f"{mean:.{digits}f}" + ("" if error is None else f" ± {error:.{digits}f}")
