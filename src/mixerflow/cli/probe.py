"""``mixerflow probe``: how well one linear layer tells classes by a run's features."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from rich.box import SIMPLE
from rich.table import Column, Table
from torch import Tensor

from mixerflow import runs
from mixerflow.cli.copies import keeping
from mixerflow.cli.evaluate import WeightsArguments
from mixerflow.cli.parse import parse
from mixerflow.cli.reading import ReadingFlags, load_run_data
from mixerflow.core import Flow, as_tensor
from mixerflow.data import Images, Splits, held_out
from mixerflow.errors import ConfigError, DataError
from mixerflow.evaluate import (
    Labelled,
    ProbeFigure,
    ProbeSettings,
    ProbeSummary,
    Whitening,
    embed,
    passes_of,
    probe,
)
from mixerflow.evaluate.embeddings import LARGEST
from mixerflow.evaluate.probe import DECAYS
from mixerflow.progress import ProgressBar
from mixerflow.runs.files import sealed, write_atomically, writing
from mixerflow.signals import Interrupt, Stopped
from mixerflow.terminal import say, show, tell

RAW, WHITE = "raw pixels", "PCA-whitened pixels"


@dataclass(frozen=True, kw_only=True)
class _ProbeArguments(WeightsArguments, ReadingFlags):
    """Train a linear layer on a run's features, beside the same on pixels: loss and accuracy."""

    run: tyro.conf.Positional[Path]
    """The run folder, or published weights."""
    data: str | None = None
    """Images with classes: a folder, a file or a set's name; by default the run's own."""
    layers: str = "last"
    """Layers whose output is probed: last (the latent), all, or numbers as in 0,10,-1; 0 is the
    pixels, -1 the latent."""
    epochs: int = 30
    """Passes over the training images."""
    seeds: int = 3
    """Probes of each kind of features: other held-out images, and another order."""
    decays: str = ",".join(f"{decay:g}" for decay in DECAYS)
    """Weight decays that are tried; the loss on 4 % of the training images, which are held out,
    chooses one."""
    images: int | None = None
    """Train on the first so many images only."""
    whitened: bool = True
    """Whether to probe PCA-whitened pixels too; images of more than 4,096 values have none."""
    batch: int = 128
    """Images at a time in the flow."""

    def check(self) -> None:
        """Refuse impossible numbers with a ConfigError."""
        for flag, value in (("epochs", self.epochs), ("seeds", self.seeds), ("batch", self.batch)):
            if value < 1:
                raise ConfigError(f"{value} {flag}", f"--{flag}", "give at least 1")
        if self.images is not None and self.images < 3:
            raise ConfigError(f"{self.images} images", "--images", "give at least 3")

    def settings(self) -> ProbeSettings:
        """Return how probes are trained."""
        try:
            decays = tuple(float(word) for word in self.decays.split(","))
        except ValueError:
            decays = (-1.0,)
        if not all(0 <= decay < 1000 for decay in decays):
            remedy = "give numbers from 0 to 1000, as in 0,0.1,1"
            raise ConfigError(f"{self.decays}", "--decays", remedy)
        return ProbeSettings(decays=decays, epochs=self.epochs)

    def layers_of(self, count: int) -> list[int]:
        """Return the numbers of the layers among `count`; 0 is the pixels and is left out."""
        if self.layers in ("last", "all"):
            return list(range(1, count + 1)) if self.layers == "all" else [count]
        try:
            numbers = {range(count + 1)[int(word)] for word in self.layers.split(",")}
        except (ValueError, IndexError):
            remedy = f"give last, all, or numbers from 0 (the pixels) to {count} (the latent)"
            raise ConfigError(f"no layers {self.layers}", "--layers", remedy) from None
        return sorted(numbers - {0})


@dataclass
class _Probed:
    """Features of one kind: their name, their layer if a flow made them, and their figures."""

    name: str
    layer: int | None
    figures: list[ProbeFigure] = field(default_factory=list)


def main(arguments: list[str]) -> int:
    """Probe, print a table, and write it, with a plot of several layers, into the run folder.

    The exit code is 0, or 130 / 143 after a signal, after which what is done is printed.
    """
    given = parse(_ProbeArguments, arguments, prog="mixerflow probe")
    given.check()
    settings = given.settings()
    device = runs.device_of(given.device)
    held = runs.read_weights(given.run, which=given.checkpoint, average=not given.raw)
    flow = held.flow(device)
    if flow.context_net is not None:
        what = "a conditional flow is given the classes that a probe is to tell"
        raise ConfigError(what, given.run, "name a run that is not conditional")
    layers = given.layers_of(len(flow.layer_shapes()))
    train, test, split = _labelled(load_run_data(held.metadata, given.data, given), given.images)
    runs.require_levels(flow, train)
    work = _Work(given, settings, flow, train, test, layers)
    rows, stopped = [], 0
    try:
        rows += work.done()
    except Stopped as signal:
        rows, stopped = work.finished, signal.exit_code
    if rows:
        of = f"{test.dataset_id}, {split}: {len(test):,} images, probes of {len(train):,}"
        say(f"{of}; {given.epochs} epochs, means ± s.e. over {given.seeds} seeds")
        _print(rows)
    if not stopped:
        with keeping("the table"):
            _write(given, rows, train, test, split, settings, given.entry(held))
    return stopped


def _labelled(splits: Splits, count: int | None) -> tuple[Images, Images, str]:
    """Return the training and the test images, which must have classes, and the test's name."""
    train = splits.train if count is None else splits.train.first(count)
    test, split = splits.test, "test"
    if test is None:
        test, split = splits.validation, "validation"
    if test is None:
        what = "no test images, which the figures are of"
        raise ConfigError(what, train.dataset_id, "give --data with a test or validation part")
    train, test = map(_with_labels, (train, test))
    assert train.labels is not None and test.labels is not None
    if test.labels.max() > train.labels.max():
        what = f"class {test.labels.max()} has no training images"
        raise DataError(what, test.dataset_id, "give images of the same classes, or more --images")
    if train.labels.max() == 0:
        raise DataError("one class only", train.dataset_id, "give images of several classes")
    return train, test, split


def _with_labels(images: Images) -> Images:
    """Return the images that have a class; the others (-1) are left out."""
    if images.labels is None or images.vector_length is not None:
        what = "the images have no classes, which a probe is to tell"
        raise ConfigError(what, images.dataset_id, "give --data with class folders or labels")
    known = np.flatnonzero(images.labels >= 0)
    if not len(known):
        raise DataError("no image has a label", images.dataset_id, "give images with labels")
    if len(known) < len(images):
        tell(f"{len(images) - len(known):,} of {len(images):,} images without a label are left out")
    return images if len(known) == len(images) else images.take(known)


class _Work:
    """All features and their probes, with a bar of the images that pass a flow or a probe."""

    def __init__(
        self,
        given: _ProbeArguments,
        settings: ProbeSettings,
        flow: Flow,
        train: Images,
        test: Images,
        layers: list[int],
    ) -> None:
        self.given, self.settings, self.flow = given, settings, flow
        self.train, self.test = train, test
        both = len(train) + len(test)
        self.passes = list(passes_of(flow, both, layers)) if layers else []
        self.white = given.whitened and flow.dims <= LARGEST
        if given.whitened and not self.white:
            tell(f"pixels are not whitened: {flow.dims:,} values, at most {LARGEST:,} can be")
        kinds = 1 + self.white + len(layers)
        probed = kinds * given.seeds * given.epochs * (len(train) - held_out(train).sum())
        self.total = int(probed) + len(self.passes) * both
        self.finished: list[_Probed] = []

    def done(self) -> list[_Probed]:
        """Do all of it.

        Raises:
            Stopped: after a signal; `finished` has the kinds of features that are done.
        """
        with ProgressBar("image", self.total) as bar, Interrupt() as interrupt:

            def step(count: int, what: str) -> None:
                bar.update(bar.done + count, what)
                if interrupt.requested:
                    tell(f"stopped after {bar.done:,} of {bar.total:,} images: nothing is kept")
                    raise Stopped(interrupt.requested)

            for kind, train, test in self._features(lambda n: step(n, "features")):
                for seed in range(self.given.seeds):
                    name = f"{kind.name}, seed {seed}"
                    figure = self._probe(train, test, seed, lambda n, name=name: step(n, name))
                    kind.figures.append(figure)
                self.finished.append(kind)
        return self.finished

    def _features(
        self, on_batch: Callable[[int], None]
    ) -> Iterator[tuple[_Probed, Tensor, Tensor]]:
        """Yield each kind of features, of the training and the test images."""
        train, test = (as_tensor(each.pixels).flatten(1) for each in (self.train, self.test))
        yield _Probed(RAW, None), train, test
        if self.white:
            whitening = Whitening(train)
            yield _Probed(WHITE, None), whitening(train), whitening(test)
        for layers in self.passes:
            found = [
                embed(self.flow, each.pixels, layers, batch=self.given.batch, on_batch=on_batch)
                for each in (self.train, self.test)
            ]
            for layer in layers:
                yield _Probed(f"layer {layer}", layer), found[0].pop(layer), found[1].pop(layer)

    def _probe(
        self, train: Tensor, test: Tensor, seed: int, on_batch: Callable[[int], None]
    ) -> ProbeFigure:
        device, mask = self.flow.device, held_out(self.train, seed=seed)
        labels = [torch.from_numpy(each.labels).to(device) for each in (self.train, self.test)]
        known = Labelled(train.to(device), labels[0])
        parts = [torch.from_numpy(np.flatnonzero(each)).to(device) for each in (~mask, mask)]
        return probe(
            known.take(parts[0]),
            known.take(parts[1]),
            Labelled(test.to(device), labels[1]),
            classes=int(labels[0].max()) + 1,
            settings=self.settings,
            seed=seed,
            on_batch=on_batch,
        )


def _print(rows: list[_Probed]) -> None:
    right = [Column(head, justify="right") for head in ("numbers", "test loss, nats", "accuracy %")]
    table = Table("features", *right, "weight decay", box=SIMPLE)
    for row in rows:
        summary = ProbeSummary.of(row.figures)
        error = summary.accuracy_error
        figures = (
            f"{summary.features:,}",
            _plus_minus(summary.loss, summary.loss_error, 3),
            _plus_minus(100 * summary.accuracy, None if error is None else 100 * error, 2),
        )
        chosen = sorted(set(summary.decays))
        table.add_row(row.name, *figures, ", ".join(f"{decay:g}" for decay in chosen))
    show(table)


def _plus_minus(mean: float, error: float | None, digits: int) -> str:
    return f"{mean:.{digits}f}" + ("" if error is None else f" ± {error:.{digits}f}")


def _write(
    given: _ProbeArguments,
    rows: list[_Probed],
    train: Images,
    test: Images,
    split: str,
    settings: ProbeSettings,
    weights: dict[str, Any],
) -> None:
    """Write the figures as JSON, and a plot of several layers, beside the run's evaluations."""
    name = f"probe-{test.dataset_id}-{split}"
    name += "-last" if given.checkpoint == "last" else ""
    name += "" if weights["averaged"] else "-raw"
    name = "".join(c if c.isalnum() else "-" for c in name)[:120]
    result: dict[str, Any] = {
        "dataset_id": test.dataset_id,
        "split": split,
        "images": len(test),
        "images_sha256": test.fingerprint(),
        "training_images": len(train),
        "training_sha256": train.fingerprint(),
        "weights": weights,
        "epochs": settings.epochs,
        "batch": settings.batch,
        "lr": settings.lr,
        "decays": settings.decays,
        "rows": [
            {"features": row.name, "layer": row.layer, "seeds": [f.as_dict() for f in row.figures]}
            for row in rows
        ],
    }
    folder = given.run / "evaluations"
    with writing(folder):
        folder.mkdir(exist_ok=True)
        write_atomically(folder / f"{name}.json", sealed(result))
        say(f"in {folder / f'{name}.json'}")
        if sum(row.layer is not None for row in rows) > 1:
            write_atomically(folder / f"{name}.png", _plot(rows, f"{test.dataset_id}, {split}"))
            say(f"in {folder / f'{name}.png'}")


def _plot(rows: list[_Probed], title: str) -> bytes:
    from mixerflow import plots  # matplotlib takes a second

    points, levels = [], {}
    for row in rows:
        summary = ProbeSummary.of(row.figures)
        if row.layer is None:
            levels[row.name] = 100 * summary.accuracy
        if row.layer is not None or row.name == RAW:
            error = summary.accuracy_error
            bar = None if error is None else 100 * error
            points.append((row.layer or 0, 100 * summary.accuracy, bar))
    return plots.points_plot({"flow": points}, levels, title=title, label="accuracy of a probe, %")
