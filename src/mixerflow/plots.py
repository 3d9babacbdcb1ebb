"""All plots, as PNG files: of a run, of a classifier, of a table."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mixerflow.core import is_estimated
from mixerflow.evaluate import Classification, class_names

_PAGE, _PAGE_DPI = (6, 3.2), 130
"""Inches, and pixels an inch, of a plot of a run's page: its words are read on a phone too."""
_NUMBERS_UP_TO = 20
"""Classes of a confusion matrix whose counts are written into it."""


def calibration_plot(result: Classification) -> bytes:
    """Return the accuracy in bins of confidence, and the number of images in each."""
    bins = result.reliability()
    edges = np.arange(len(bins.counts)) / len(bins.counts)
    width, filled = 1 / len(bins.counts), bins.counts > 0
    figure = Figure(figsize=(5, 5.6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    above.bar(edges[filled], bins.accuracy[filled], width, align="edge", edgecolor="white")
    above.plot([0, 1], [0, 1], "--", color="grey", label="calibrated")
    above.plot(bins.confidence[filled], bins.accuracy[filled], "o", color="black", markersize=4)
    above.set(ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
    above.set_title(f"expected calibration error {100 * bins.error:.2f} %")
    above.legend(loc="upper left")
    below.bar(edges, bins.counts, width, align="edge", edgecolor="white")
    below.set(xlabel="confidence: the largest p(y | x)", ylabel="images")
    return png_of(figure)


def confusion_plot(result: Classification, names: Sequence[str]) -> bytes:
    """Return the confusion matrix: of each true class, the shares that are said to be each."""
    counts = result.confusion()
    count = len(counts)
    shares = counts / counts.sum(1, keepdims=True).clip(1)
    words = class_names(names, count)
    side = min(10.0, 2.5 + 0.45 * count)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="said", ylabel="true", title=f"accuracy {100 * result.accuracy:.2f} %")
    if count <= _NUMBERS_UP_TO:
        axes.set_xticks(range(count), words, rotation=90)
        axes.set_yticks(range(count), words)
        for row, column in np.argwhere(counts):
            light = shares[row, column] > 0.5
            colour = "white" if light else "black"
            text = str(counts[row, column])
            axes.text(column, row, text, ha="center", va="center", fontsize=7, color=colour)
    return png_of(figure)


def points_plot(
    curves: Mapping[str, Sequence[tuple[float, float, float | None]]],
    levels: Mapping[str, float],
    *,
    title: str,
    label: str,
    across: str = "layer",
) -> bytes:
    """Draw a figure against a number, such as the depth of a layer, as PNG.

    Args:
        curves: name -> points, each the number, the figure, and its standard error or None.
        levels: name -> a figure that has no such number, drawn as a broken line.
        title: of the plot.
        label: what the figure is.
        across: what the number is.
    """
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    axes = figure.subplots()
    for name, points in curves.items():
        depths, values, errors = zip(*points, strict=True)
        bars = [0.0 if error is None else error for error in errors]
        axes.errorbar(depths, values, yerr=bars, fmt="o-", ms=4, lw=1.4, capsize=2, label=name)
    for number, (name, value) in enumerate(levels.items()):
        axes.axhline(value, color="0.4", ls=("--", ":")[number % 2], lw=1, label=name)
    axes.set_xlabel(across)
    axes.set_ylabel(label)
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return png_of(figure)


def training_plot(records: Sequence[Mapping[str, Any]]) -> bytes:
    """Draw the bits/dim of a run's metrics against steps; a figure that is not finite is a gap.

    Args:
        records: the lines of ``metrics.jsonl``.
    """
    figure = Figure(figsize=_PAGE, layout="constrained")
    axes = figure.subplots()
    train = [record for record in records if record["kind"] == "train"]
    validation = [record for record in records if record["kind"] == "validation"]
    names = {"bits_per_dim": "training", "image_bits_per_dim": "training (of images)"}
    names["objective"] = "training objective"
    name = next(each for each in names if not train or each in train[-1])
    values = [_number(record.get(name)) for record in train]
    label = names[name] + _estimated(train)
    axes.plot([record["step"] for record in train], values, lw=0.8, label=label)
    validated = [_number(record["bits_per_dim"]) for record in validation]
    steps = [record["step"] for record in validation]
    axes.plot(steps, validated, "o-", ms=4, label=f"validation{_estimated(validation)}")
    if values := [value for value in values + validated if not math.isnan(value)]:
        finish_plot(axes, min(values), float(np.quantile(values, 0.98)))
    axes.set_ylabel("bits/dim")
    axes.legend()
    return png_of(figure, _PAGE_DPI)


def _estimated(records: Sequence[Mapping[str, Any]]) -> str:
    """Return what the label of a curve says besides where the figures are estimates."""
    return " (estimate)" if records and is_estimated(records[-1].get("density")) else ""


def accuracy_plot(records: Sequence[Mapping[str, Any]]) -> bytes:
    """Draw a head's accuracy against steps; nothing, ``b""``, for a run without a head."""
    found = [record for record in records if record.get("accuracy") is not None]
    if not found:
        return b""
    figure = Figure(figsize=_PAGE, layout="constrained")
    axes = figure.subplots()
    for kind, marks in (("train", "-"), ("validation", "o-")):
        points = [(r["step"], 100 * r["accuracy"]) for r in found if r["kind"] == kind]
        if points:
            axes.plot(*zip(*points, strict=True), marks, ms=4, lw=0.8, label=kind)
    finish_plot(axes, 0, 100)
    axes.set_ylabel("accuracy, %")
    axes.legend()
    return png_of(figure, _PAGE_DPI)


def _number(value: float | None) -> float:
    """Return a recorded figure; NaN, a gap in the curve, for one that is not finite."""
    return value if value is not None and math.isfinite(value) else math.nan


@dataclass(frozen=True)
class Histogram:
    """A histogram of several sets of figures, and what it does not show.

    Attributes:
        png: the plot.
        medians: name -> median of the set's finite figures, NaN where there is none.
        beyond: number of finite figures left and right of the plot.
        nonfinite: number of figures that are NaN or infinite.
    """

    png: bytes
    medians: dict[str, float]
    beyond: int
    nonfinite: int

    def __str__(self) -> str:
        medians = (f"{name} {median:.4g}" for name, median in self.medians.items())
        words = [f"Medians, the broken lines: {', '.join(medians)}."]
        for count, where in ((self.beyond, "beyond the plot"), (self.nonfinite, "not finite")):
            if count:
                words.append(f"{count:,} value{' is' if count == 1 else 's are'} {where}.")
        return " ".join(words)


def histogram(
    sets: Mapping[str, np.ndarray],
    *,
    label: str,
    threshold: float | None = None,
    around: str | None = None,
) -> Histogram:
    """Draw the densities of sets of figures over common bins, with their medians.

    The plot goes from the 0.5 % to the 99.5 % quantile of all figures and 20 % further, and at
    least to the threshold, but not further than 8 times the spread of the set `around`, from its 5
    % to its 95 % quantile. Each set's area is the share of its figures within the plot.

    Args:
        sets: name -> figures ``(n,)``.
        label: what the figures are, and their unit.
        threshold: a figure at which a line is drawn.
        around: name of a set that the plot must resolve.
    """
    kept = {name: values[np.isfinite(values)] for name, values in sets.items()}
    every = np.concatenate([np.asarray(each, np.float64) for each in kept.values()])
    medians = {k: float(np.median(v)) if len(v) else math.nan for k, v in kept.items()}
    figure = Figure(figsize=_PAGE, layout="constrained")
    axes = figure.subplots()
    edges = _edges(every, threshold, None if around is None else kept[around])
    for number, (name, values) in enumerate(kept.items()):
        if not len(values):
            continue
        share = np.histogram(values, edges)[0] / len(values) / np.diff(edges)
        colour = f"C{number % 10}"
        axes.stairs(share, edges, fill=True, alpha=0.25, color=colour)
        axes.stairs(share, edges, color=colour, lw=1.2, label=f"{name} ({len(values):,})")
        axes.axvline(medians[name], color=colour, ls="--", lw=1)
    if threshold is not None:
        axes.axvline(threshold, color="black", lw=1.4, label=f"threshold {threshold:.4g}")
    axes.set(xlabel=label, ylabel="density", xlim=(edges[0], edges[-1]))
    axes.grid(alpha=0.3)
    if len(every) or threshold is not None:
        axes.legend(fontsize=9)
    beyond = int(((every < edges[0]) | (every > edges[-1])).sum())
    total = sum(len(values) for values in sets.values())
    return Histogram(png_of(figure, _PAGE_DPI), medians, beyond, total - len(every))


def _edges(
    values: np.ndarray, threshold: float | None, around: np.ndarray | None = None
) -> np.ndarray:
    """Return the edges of a histogram's bins, about as many as the root of the number of values."""
    if not len(values):
        values = np.zeros(1)
    low, high = np.quantile(values, (0.005, 0.995))
    margin = 0.2 * (high - low)
    low, high = max(low - margin, values.min()), min(high + margin, values.max())
    if around is not None and len(around):
        least, most = np.quantile(around, (0.05, 0.95))
        low, high = max(low, most - 9 * (most - least)), min(high, least + 9 * (most - least))
    if threshold is not None and math.isfinite(threshold):
        low, high = min(low, threshold), max(high, threshold)
    if high - low <= 1e-9 * max(abs(low), abs(high)):  # one value only
        low, high = low - 0.5, high + 0.5
    return np.linspace(low, high, 1 + int(np.clip(2 * len(values) ** 0.5, 10, 60)))


def finish_plot(axes: Axes, low: float, high: float) -> None:
    """Show `low` to `high` with a margin of 5 %, a grid, and the number of steps below."""
    margin = 0.05 * (high - low) + 0.01
    axes.set_ylim(low - margin, high + margin)
    axes.set_xlabel("step")
    axes.grid(alpha=0.3)


def png_of(figure: Figure, dpi: int = 110) -> bytes:
    """Return a figure as a PNG file, of `dpi` pixels an inch."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()
