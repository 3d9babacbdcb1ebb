"""``mixerflow classify``: what a run says of images' classes, and how far it can be trusted."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from rich.box import SIMPLE
from rich.table import Table

from mixerflow import pictures, runs
from mixerflow.cli.copies import keeping
from mixerflow.cli.evaluate import EvaluationArguments
from mixerflow.cli.image_rows import csv_of_images
from mixerflow.cli.parse import parse
from mixerflow.core import Flow, Samples, as_tensor
from mixerflow.data import Images
from mixerflow.errors import DataError
from mixerflow.evaluate import Classification, class_count, class_names, classify, to_pixels
from mixerflow.progress import ProgressBar
from mixerflow.runs.files import json_text, require_writable, sealed, write_atomically, writing
from mixerflow.signals import Interrupt, Stopped
from mixerflow.terminal import say, show, tell

_LEAST_SURE = 32
_CLASSES_SHOWN = 12  # columns of a confusion matrix in a terminal


@dataclass(frozen=True, kw_only=True)
class _ClassifyArguments(EvaluationArguments):
    """Accuracy, loss, confusion and calibration of a run that tells classes."""

    run: tyro.conf.Positional[Path]
    """The run folder, or published weights."""
    predictions: Path | None = None
    """A CSV file to write: each image's likeliest class, and the probability of every class."""
    json: bool = False
    """Print JSON rather than tables."""


def main(arguments: list[str]) -> int:
    """Classify images, print the figures, and keep them with their plots in the run folder.

    Images without labels are classified too: they have predictions, and no figures.
    """
    given = parse(_ClassifyArguments, arguments, prog="mixerflow classify")
    given.check()
    if given.predictions is not None:
        require_writable(given.predictions, named=True)
    held = runs.read_weights(given.run, which=given.checkpoint, average=not given.raw)
    flow, metadata = held.flow(runs.device_of(given.device)), held.metadata
    class_count(flow)  # refuses a flow without classes, before the images are read
    images, split = given.load_images(metadata)
    runs.require_levels(flow, images)
    names = tuple(metadata["data"]["classes"])
    if images.vector_length is not None:
        remedy = "give images with class labels"
        raise DataError("vectors, not classes", images.dataset_id, remedy)
    labels = None if images.labels is None else runs.numbered(metadata, images)
    if labels is None and given.predictions is None:
        remedy = "give images with labels, or a file for the --predictions"
        raise DataError("no labels to compare with", images.dataset_id, remedy)
    if labels is not None and labels.max() >= (count := class_count(flow)):
        what = f"a label is {labels.max()}, and the run tells {count} classes"
        raise DataError(what, images.dataset_id, "give images of the run's classes")
    try:
        log_probs = _classify(flow, images, given)
    except Stopped as stopped:
        return stopped.exit_code
    if labels is not None:
        _show(log_probs, labels, flow, images, split, names, given, given.entry(held))
    if given.predictions is not None:
        _write_predictions(given.predictions, log_probs, names, images.files)
        say(f"in {given.predictions}")
    return 0


def _classify(flow: Flow, images: Images, given: _ClassifyArguments) -> np.ndarray:
    """Return log-probabilities ``(N, K)``; a signal ends the work with `Stopped`."""
    bar = ProgressBar("image", len(images), quiet=given.json)
    with bar, Interrupt() as interrupt:

        def on_batch(count: int) -> None:
            bar.done += count
            bar.update(bar.done, f"{bar.rate:.3g} images/s")
            if interrupt.requested:
                tell(f"stopped after {bar.done:,} of {bar.total:,} images")
                raise Stopped(interrupt.requested)

        pixels, batch, seed = images.pixels, given.batch, given.seed
        return classify(flow, pixels, batch=batch, seed=seed, on_batch=on_batch)


def _show(
    log_probs: np.ndarray,
    labels: np.ndarray,
    flow: Flow,
    images: Images,
    split: str,
    names: tuple[str, ...],
    given: _ClassifyArguments,
    weights: dict[str, Any],
) -> None:
    """Print the figures of the images that have a label; keep them, and the plots."""
    known = np.flatnonzero(labels >= 0)
    if not len(known):
        raise DataError("no image has a label", images.dataset_id, "give images with labels")
    result = Classification(log_probs[known], labels[known])
    entry: dict[str, Any] = {
        "dataset_id": images.dataset_id,
        "split": split,
        "images_sha256": images.fingerprint(),
        "seed": given.seed,
        "weights": weights,
        "class_names": list(names),
        **result.as_dict(),
    }
    if given.json:
        say(*json_text(entry).splitlines())
    else:
        what = f"{images.dataset_id}, {split}"
        _print(result, what, names, known, images, without=len(labels) - len(known))
    name = "".join(c if c.isalnum() else "-" for c in f"{images.dataset_id}-{split}"[:100])
    name += ("-last" if given.checkpoint == "last" else "") + ("-raw" if given.raw else "")
    folder = given.run / "classifications"
    with keeping("the result"), writing(folder):
        from mixerflow.plots import calibration_plot, confusion_plot  # matplotlib takes a second

        folder.mkdir(exist_ok=True)
        write_atomically(folder / f"{name}.json", sealed(entry))
        write_atomically(folder / f"{name}-calibration.png", calibration_plot(result))
        write_atomically(folder / f"{name}-confusion.png", confusion_plot(result, names))
        if len(flow.shape) == 3:
            least = known[result.least_sure(_LEAST_SURE)]
            tensor = as_tensor(images.pixels[least])
            shown = to_pixels(flow, Samples(tensor, 0, tensor != tensor))
            pictures.save(pictures.grid(shown, scale=2), folder / f"{name}-least-sure.png")
        if not given.json:
            say(f"plots, and the images that it is least sure of, in {folder}")


def _print(
    result: Classification,
    what: str,
    names: tuple[str, ...],
    numbers: np.ndarray,
    images: Images,
    *,
    without: int,
) -> None:
    """Print the figures of those of the images that have these numbers."""
    left = f"; {without:,} without a label left out" if without else ""
    count = len(result.labels)
    say(f"{what}: {count:,} image{'' if count == 1 else 's'}{left}")
    table = Table("accuracy", "-log p(y|x), nats", "calibration error", box=SIMPLE)
    error = f" ± {100 * result.accuracy_error:.2f}" if count > 1 else ""
    calibration = f"{100 * result.reliability().error:.2f} %"
    table.add_row(f"{100 * result.accuracy:.2f}{error} %", f"{result.loss:.3f}", calibration)
    show(table)
    confusion = result.confusion()
    if len(confusion) > _CLASSES_SHOWN:
        say(f"{len(confusion)} classes: the confusion matrix is in the plot")
        return
    words = class_names(names, len(confusion))
    table = Table("true \\ said", *(word[:5] for word in words), box=SIMPLE)
    for word, row in zip(words, confusion, strict=True):
        table.add_row(word, *(str(n) if n else "." for n in row))
    show(table)
    sure, least = result.confidence, result.least_sure(3)
    files = {n: f" ({images.files[numbers[n]]})" if images.files else "" for n in least}
    say(
        "least sure: "
        + "; ".join(
            f"image {numbers[n]}{files[n]} is {words[result.labels[n]]}, "
            f"said {words[result.predicted[n]]} ({100 * sure[n]:.0f} %)"
            for n in least
        )
    )


def _write_predictions(
    path: Path, log_probs: np.ndarray, names: tuple[str, ...], files: tuple[str, ...]
) -> None:
    """Write a line for each image: number, file if any, likeliest class, all probabilities."""
    words = class_names(names, log_probs.shape[1])
    rows = [
        [words[int(row.argmax())], *(f"{share:.6g}" for share in np.exp(row))] for row in log_probs
    ]
    data = csv_of_images(["class", *(f"p({word})" for word in words)], rows, files)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, data, named=True)
