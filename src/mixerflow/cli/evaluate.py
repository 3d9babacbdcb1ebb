"""``mixerflow evaluate``: score a run's weights on images, print the figures and keep them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import tyro

from mixerflow import runs
from mixerflow.cli.codecs import CodecFlags, as_entries, code_images, larger_sample, print_codecs
from mixerflow.cli.copies import keeping
from mixerflow.cli.figures import advance, bar_of, print_figures
from mixerflow.cli.frechet import FrechetFlags, frechet, print_frechet
from mixerflow.cli.likeness import LikenessFlags, judge_samples, print_likeness
from mixerflow.cli.parse import ComputingArguments, parse
from mixerflow.cli.reading import ReadingFlags, load_run_data
from mixerflow.core import Flow, Shape, is_estimated
from mixerflow.data import Images, Splits
from mixerflow.errors import ConfigError
from mixerflow.evaluate import PROBES, Bits, FileFeatures, require_comparable
from mixerflow.processes import Processes, joined
from mixerflow.runs import Evaluator, KeptDraws
from mixerflow.runs.files import json_text, sealed, write_atomically, writing
from mixerflow.runs.weights import Weights
from mixerflow.signals import Interrupt, Stopped
from mixerflow.terminal import say, tell

_LONGEST = 200  # bytes
_MOST_PROBES = 10**6


@dataclass(frozen=True, kw_only=True)
class CheckpointArguments(ComputingArguments):
    """Which weights of a run."""

    checkpoint: Literal["best", "last"] = "best"
    """Which weights; another run goes on from "last"."""
    raw: bool = False
    """The weights themselves rather than their moving average."""


@dataclass(frozen=True, kw_only=True)
class WeightsArguments(CheckpointArguments):
    """Which weights of a run, and where they compute."""

    device: str = "cpu"
    """Device: cpu or cuda (experimental)."""

    def entry(self, held: Weights) -> dict[str, Any]:
        """Return what results say of the weights that were read by these flags."""
        averaged = held.metadata.get("averaged", not self.raw)
        return {"checkpoint": self.checkpoint, "averaged": averaged, **held.named}


@dataclass(frozen=True, kw_only=True)
class ImagesArguments(CheckpointArguments, ReadingFlags):
    """Which images are given to the weights."""

    data: str | None = None
    """Images: a folder, a file or a set's name; by default the run's own."""
    split: Literal["test", "train", "validation"] = "test"
    """Which part of the data; for "test" all of it, where it has no test part."""
    images: int | None = None
    """The first so many only."""

    def check(self) -> None:
        """Refuse impossible numbers with a ConfigError."""
        if self.images is not None and self.images < 1:
            raise ConfigError(f"{self.images} images", "--images", "give at least 1")

    def load_images(
        self, metadata: dict[str, Any], *, measured: Shape | None = None
    ) -> tuple[Images, str]:
        """Load the images that the run of this ``run.json`` is given, and name their split.

        `measured` is as in `load_run_data`.

        Raises:
            DataError: the images cannot be found, read or used.
        """
        return self.choose(load_run_data(metadata, self.data, self, measured=measured))

    def choose(self, splits: Splits) -> tuple[Images, str]:
        """Return the images of a run's data that are used, and the name of their split."""
        if self.split == "validation":
            if splits.validation is None:
                remedy = "give --split test or train"
                raise ConfigError("no validation images", splits.train.dataset_id, remedy)
            images, name = splits.validation, "validation"
        elif self.split == "test" and splits.test is not None:
            images, name = splits.test, "test"
        else:
            images, name = splits.train, "train" if self.split == "train" else "all"
        if self.images is not None and self.images < len(images):
            return images.first(self.images), f"{name}, first {self.images}"
        return images, name


@dataclass(frozen=True, kw_only=True)
class EvaluationArguments(WeightsArguments, ImagesArguments):
    """Which images score the weights, and how."""

    seed: int = 0
    """Seed of the noise."""
    batch: int = 128
    """Images at a time, in each process."""

    def check(self) -> None:
        """Refuse impossible numbers with a ConfigError."""
        if self.batch < 1:
            raise ConfigError(f"{self.batch} images at a time", "--batch", "give at least 1")
        super().check()
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"{self.seed}", "--seed", "give 0 or more, less than 2^63")


@dataclass(frozen=True, kw_only=True)
class _EvaluateArguments(FrechetFlags, LikenessFlags, CodecFlags, EvaluationArguments):
    """Bits/dim of a run on images, beside PNG and lossless WebP for a sample of them."""

    run: tyro.conf.Positional[Path]
    """The run folder, or published weights."""
    importance_samples: int = 1
    """K noise draws an image: an importance-weighted bound, tighter than the single-sample one, in
    K times its time."""
    probes: int | None = None
    """R estimates of the density an image, where it is an estimate: 2 unless given, which tell the
    estimate's error."""
    exact: bool = False
    """Exact log-dets in place of estimates, for transforms of at most 1,024 numbers."""
    json: bool = False
    """Print JSON rather than a table."""


def evaluate(arguments: list[str]) -> int:
    """Score the weights and codecs, print the figures, and write them into the run folder.

    The exit code is 0, or 130 / 143 after a signal: the same command then goes on. A run folder
    that cannot be written keeps neither figures nor draws, which warnings say.
    """
    given = parse(_EvaluateArguments, arguments, prog="mixerflow evaluate")
    given.check()
    given.check_codecs()
    if given.probes is not None and not 1 <= given.probes <= _MOST_PROBES:
        remedy = f"give at least 1, and at most {_MOST_PROBES:,}"
        raise ConfigError(f"{given.probes:,} probes an image", "--probes", remedy)
    if given.exact and given.probes is not None:
        raise ConfigError("exact log-dets have no probes", "--probes", "leave it or --exact out")
    with joined() as processes:
        return _evaluate(given, processes)


def _evaluate(given: _EvaluateArguments, processes: Processes) -> int:
    device = processes.place(runs.device_of(given.device))
    given.check_likeness(given.split, processes)
    features = given.load_features(device, processes)
    held = runs.read_weights(given.run, which=given.checkpoint, average=not given.raw)
    flow, metadata = held.flow(device), held.metadata
    splits = load_run_data(metadata, given.data, given)
    images, split = given.choose(splits)
    if features:  # before the long work
        require_comparable(flow, images, features, given.fid_samples)
    classes = metadata["data"]["classes"]
    judging = given.parts_of(flow, splits, images, given.split, classes)
    evaluator = Evaluator(
        images,
        split,
        seed=given.seed,
        batch=given.batch,
        importance_samples=given.importance_samples,
        probes=given.probes,
        processes=processes,
    )
    if given.exact:
        flow, evaluator = _exactly(evaluator, flow, metadata)
    kept = evaluator.kept(flow, held, given.run / "evaluations")
    try:
        figure = _score(evaluator, flow, metadata, kept, quiet=given.json)
    except Stopped as stopped:
        return stopped.exit_code

    exit_code = processes.on_main(
        lambda: _finish(given, figure, flow, images, split, features, judging, held)
    )
    if not exit_code:
        kept.finish()
    return exit_code or 0


def _finish(
    given: _EvaluateArguments,
    figure: Bits,
    flow: Flow,
    images: Images,
    split: str,
    features: FileFeatures | None,
    judging: tuple[Images, Images] | None,
    held: Weights,
) -> int:
    """Print the figure, then compare samples and codecs if they are asked for; keep all of it.

    The exit code is 0, or that of a signal, after which the figure is kept.
    """
    keys = ("recipe", "command", "steps", "seconds", "parameters", "versions", "machine")
    metadata = held.metadata
    if not given.json:
        print_figures(figure)  # samples and codecs may take minutes
    result = figure.as_dict() | {
        "codecs": {},
        "images_sha256": images.fingerprint(),
        "weights": given.entry(held),
        "run": {key: metadata.get(key) for key in keys},
    }
    result |= {"log_dets": "exact"} if given.exact else {}
    exit_code, quiet = 0, given.json
    try:
        if features:
            settings = {"samples": given.fid_samples, "seed": given.seed, "split": split}
            compared = frechet(flow, images, features, **settings, batch=given.batch, quiet=quiet)
            result["frechet"] = compared.as_dict()
            if not quiet:
                print_frechet(compared)
        if judging:
            judged = judge_samples(flow, *judging, given, seed=given.seed, split=split, quiet=quiet)
            result["likeness"] = judged.as_dict()
            if not quiet:
                print_likeness(judged)
        if given.codecs:
            rows = code_images(flow, images, count=given.codec_images, quiet=quiet)
            result |= as_entries(rows, len(images))
            if not quiet:
                print_codecs(rows, flow, images)
        if quiet:
            say(*json_text(result).splitlines())
    except Stopped as stopped:
        exit_code = stopped.exit_code
    finally:  # what follows the figure may be lost, and not the figure
        with keeping("the figure"):
            _write_result(given.run, result)
    return exit_code


def _exactly(evaluator: Evaluator, flow: Flow, metadata: dict[str, Any]) -> tuple[Flow, Evaluator]:
    """Return the flow with exact log-dets, and the evaluator with a batch that fits them."""
    main, before = evaluator.processes.main, evaluator.batch
    if not is_estimated(flow.density):
        if main:
            tell("--exact: no log-det of this flow is an estimate, so it changes nothing")
        return flow, evaluator
    flow, evaluator = evaluator.exactly(flow, metadata)
    if main and evaluator.batch < before:
        count = f"{evaluator.batch} image{'' if evaluator.batch == 1 else 's'}"
        tell(f"--exact: {count} at a time, for the memory of their log-dets")
    return flow, evaluator


def _score(
    evaluator: Evaluator, flow: Flow, metadata: dict[str, Any], kept: KeptDraws, *, quiet: bool
) -> Bits:
    """Score the flow, going on with the draws kept; keep them now and then, and at the end.

    Raises:
        Stopped: after a signal to any of the processes.
    """
    processes = evaluator.processes
    done = int(kept.draws.count.sum())
    bar = bar_of(evaluator, flow, quiet=quiet or not processes.main, done=done)
    with bar, Interrupt() as interrupt:

        def on_batch(count: int) -> None:
            advance(bar, count, evaluator.passes(flow))
            kept.save_sometimes()
            if stop := processes.largest(interrupt.requested or 0):  # all after the same batch
                kept.save()
                if processes.main:
                    line = f"stopped after {bar.done:,} of {bar.total:,} {bar.what}s"
                    after = "nothing is kept" if kept.lost else "the same command goes on"
                    tell(f"{line}: {after}")
                raise Stopped(stop)

        figure = replace(evaluator, on_batch=on_batch).score(flow, metadata, kept.draws)
        kept.save()
    return figure


def _write_result(run: Path, result: dict[str, Any]) -> None:
    weights = result["weights"]
    name = f"{result['dataset_id']}-{result['split']}"
    if result["importance_samples"] > 1:
        name += f"-{result['importance_samples']}-draws"
    if (result.get("probes") or PROBES) != PROBES:
        name += f"-{result['probes']}-probes"
    name += "-exact" if "log_dets" in result else ""
    if compared := result.get("frechet"):
        digest = (compared["features_sha256"] or "")[:8]
        name += f"-{compared['name']}-{digest}-{compared['samples']}-samples"
    if judged := result.get("likeness"):
        warmth = "-".join(f"{each:g}" for each in judged["temperatures"])
        name += f"-likeness-{judged['rows'][0]['images']}-temperature-{warmth}"
    name += f"-seed{result['seed']}" if result["seed"] else ""
    name += "-last" if weights["checkpoint"] == "last" else ""
    name += "" if weights["averaged"] else "-raw"
    folder = run / "evaluations"
    path = folder / f"{file_name(name)}.json"
    with writing(folder):
        folder.mkdir(exist_ok=True)
        write_atomically(path, sealed(result | larger_sample(path, result)))


def file_name(words: str) -> str:
    """Return a file's name, without an ending, from words that tell results apart."""
    name = "".join(c if c.isalnum() else "-" for c in words)
    if len(name.encode()) > _LONGEST:  # more than a file's name may have
        name = f"{name[:40]}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"
    return name
