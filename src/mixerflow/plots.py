"""Plots of results, as PNG files."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from mixerflow.evaluate import Classification
from mixerflow.page import png_of

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
    words = list(names) if len(names) == count else [str(n) for n in range(count)]
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
