"""``mixerflow restore``: images from measurements, with a run's flow as the prior."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from torch import Tensor

from mixerflow import runs
from mixerflow.cli.copies import keeping
from mixerflow.cli.evaluate import EvaluationArguments
from mixerflow.cli.parse import parse
from mixerflow.cli.restored import print_rows, write_copies, write_files
from mixerflow.cli.singles import require_own
from mixerflow.core import Flow, Noise, as_tensor
from mixerflow.data import Images
from mixerflow.errors import ConfigError
from mixerflow.progress import ProgressBar
from mixerflow.registry import choices, describe
from mixerflow.restoration import (
    Blurred,
    Downsampled,
    Masked,
    Measurement,
    Noisy,
    Restored,
    Row,
    Search,
    compare,
    mask_of,
    require_density,
)
from mixerflow.restoration import restore as restore_images
from mixerflow.runs.files import json_text, require_writable
from mixerflow.signals import Interrupt, Stopped
from mixerflow.terminal import say, tell


@dataclass(frozen=True, kw_only=True)
class _RestoreArguments(EvaluationArguments):
    """Restore images that miss pixels, or have noise, blur or too few pixels.

    The images of --data are measured like that first, and compared with what is restored; with
    --measured they are the measurements.
    """

    run: tyro.conf.Positional[Path]
    """The run folder, or published weights."""
    images: int | None = 32
    """Restore the first so many only; none for all."""
    seed: int = 0
    """Seed of the noise, and of a random mask."""
    batch: int = 16
    """Images at a time."""
    mask: str | None = None
    """Pixels that are missing: centre:16 for a box of that side, random:0.5 for a share of them, or
    a picture's file, whose black pixels are."""
    noise: float | None = None
    """Standard deviation of normal noise, in pixel values; alone, or with another measurement. By
    default 1 with --blur, else 0.289, that of rounding."""
    blur: float | None = None
    """A Gaussian blur; its standard deviation in pixels."""
    downsample: int | None = None
    """A mean over blocks of pixels; their side."""
    measured: bool = False
    """The images are measurements already: nothing is added to them, and no truth is known."""
    space: Literal["image", "latent"] = "image"
    """What is varied: the image, under log p(x), or its latent z, under log p(z)."""
    steps: int | None = None
    """Number of steps; by default 200."""
    rate: float | None = None
    """Size of the first steps; by default 2 (pixel values) for images, 0.1 for latents."""
    prior: float | None = None
    """Weight of the flow's log-density; by default 1, that of Bayes' rule."""
    out: Path | None = None
    """A folder for the figures (.json) and the pictures (.png); by default restorations in the run
    folder."""
    files: Path | None = None
    """A folder for the restored images, as PNG files 00000.png and so on; it may hold no others."""
    force: bool = False
    """Remove the files of an earlier restoration, numbers with .png, from that folder."""
    scale: int = 2
    """Side of the square that stands for one pixel of the pictures."""
    json: bool = False
    """Print JSON rather than a table."""

    def measurement(self) -> Measurement:
        """Return the measurement that the flags name, or raise a ConfigError."""
        flags = {"--mask": self.mask, "--blur": self.blur, "--downsample": self.downsample}
        named = [flag for flag, value in flags.items() if value is not None]
        if len(named) > 1:
            raise ConfigError("two measurements", " and ".join(named), "give one of them")
        noise = {} if self.noise is None else {"sigma": self.noise}
        if self.mask is not None:
            return Masked(mask=mask_of(self.mask, seed=self.seed), **noise)
        if self.blur is not None:
            return Blurred(width=self.blur, **noise)
        if self.downsample is not None:
            return Downsampled(factor=self.downsample, **noise)
        if self.noise is None:
            remedy = "give --mask, --noise, --blur or --downsample"
            raise ConfigError("no measurement named", "restore", remedy)
        return Noisy(self.noise)

    def search(self) -> Search:
        """Return the search that the flags name, or raise a ConfigError."""
        given = {name: getattr(self, name) for name in ("steps", "rate", "prior")}
        changed = {name: value for name, value in given.items() if value is not None}
        return replace(choices(Search)[self.space](), **changed)

    def check(self) -> None:
        super().check()
        if self.measured and self.data is None:
            what, remedy = "the run's own images are no measurements", "name some with --data"
            raise ConfigError(what, "--measured", remedy)
        if self.scale < 1:
            raise ConfigError(f"{self.scale}", "--scale", "give at least 1")
        if self.force and self.files is None:
            raise ConfigError("no files are written", "--force", "give --files too")


def restore(arguments: list[str]) -> int:
    """Measure images, restore them, print the scores, and write figures and pictures.

    The exit code is 0, or 130 / 143 after a signal: batches that were done are scored and written.
    """
    given = parse(_RestoreArguments, arguments, prog="mixerflow restore")
    given.check()
    measurement, search = given.measurement(), given.search()
    held = runs.read_weights(given.run, which=given.checkpoint, average=not given.raw)
    flow = held.flow(runs.device_of(given.device))
    levels = _require_restorable(given, flow, measurement)
    shape = measurement.measured_shape(flow.shape) if given.measured else None
    images, split = given.load_images(held.metadata, measured=shape)
    runs.require_levels(flow, images)
    _require_places(given, len(images))
    truth = as_tensor(images.pixels).to(flow.dtype)
    labels = None
    if flow.context_net is not None:
        labels = torch.from_numpy(runs.labels_of(flow, held.metadata, images))
    if given.measured:
        measured = measurement.taken(truth)
    else:
        measured = measurement.measure(truth, Noise.of(given.seed, truth))
    begun = time.monotonic()
    parts, exit_code = _restored(given, flow, measured, measurement, search, labels)
    if not parts:
        return exit_code
    restored = Restored(*(torch.cat(each).cpu() for each in zip(*parts, strict=True)))
    seconds, done = time.monotonic() - begun, len(restored.images)
    measured, labels = measured[:done], None if labels is None else labels[:done]
    known = None if given.measured else truth[:done]
    rows = compare(flow, measurement, measured, restored.images, known, labels=labels)
    entries = {"weights": given.entry(held)}
    entries |= {"split": split, "seconds": seconds, "gain_per_image": restored.gain.tolist()}
    result = _record(given, images.first(done), measurement, search) | entries
    result["rows"] = [row.as_dict() for row in rows]
    strip = measurement.shown(measured, flow.shape, unknown=(levels - 1) / 2)
    _give(given, flow, result, rows, strip)
    return exit_code


def _record(
    given: _RestoreArguments, images: Images, measurement: Measurement, search: Search
) -> dict[str, Any]:
    """Return the entries of the figures' JSON that say what was done to which images."""
    return {
        "dataset_id": images.dataset_id,
        "images": len(images),
        "images_sha256": images.fingerprint(),
        "measured": given.measured,
        "words": str(measurement),
        "measurement": describe(measurement),
        "search": describe(search),
        "seed": given.seed,
        "threads": torch.get_num_threads(),
    }


def _give(
    given: _RestoreArguments, flow: Flow, result: dict[str, Any], rows: list[Row], strip: Tensor
) -> None:
    """Print the scores, and write what is kept of them and of the images."""
    if given.json:
        say(*json_text(result).splitlines())
    else:
        print_rows(result, rows)
    paths: list[Path] = []
    with contextlib.nullcontext() if given.out else keeping("the restoration"):
        folder = given.out or given.run / "restorations"
        paths += write_copies(result, rows, strip, flow, folder, given.scale)
    if given.files is not None:
        write_files(rows[-1].images, flow, given.files, force=given.force)
        paths.append(given.files)
    if not given.json:
        say(*(f"in {path}" for path in paths))


def _require_restorable(given: _RestoreArguments, flow: Flow, measurement: Measurement) -> int:
    """Return the flow's levels; a ConfigError says what fails before images are read."""
    if flow.levels is None:
        what, remedy = "the run's images are floats, without levels", "call mixerflow.restore"
        raise ConfigError(what, given.run, remedy)
    require_density(flow)
    measurement.check(flow.shape)
    if given.files is not None and (len(flow.shape) != 3 or flow.shape[0] not in (1, 3)):
        what = f"PNG has no images of {tuple(flow.shape)}"
        raise ConfigError(what, "--files", "leave it out, and call mixerflow.restore")
    return flow.levels


def _require_places(given: _RestoreArguments, count: int) -> None:
    """Try the places that flags name, before the long work."""
    if given.out is not None:
        require_writable(given.out / "figures.json")
    if given.files is not None:
        if not given.force:
            require_own(given.files, count)
        require_writable(given.files / "00000.png")


def _restored(
    given: _RestoreArguments,
    flow: Flow,
    measured: Tensor,
    measurement: Measurement,
    search: Search,
    labels: Tensor | None,
) -> tuple[list[Restored], int]:
    """Restore, with a bar of the steps; return the batches that are done, and the exit code."""
    count, parts = len(measured), []
    total = search.steps * -(-count // given.batch)
    with ProgressBar("step", total, quiet=given.json) as bar, Interrupt() as interrupt:

        def on_step(_: int) -> None:
            done = min(count, given.batch * len(parts))
            bar.update(bar.done + 1, f"{done:,} of {count:,} images restored")
            if interrupt.requested:
                tell(f"stopped after {done:,} of {count:,} images")
                raise Stopped(interrupt.requested)

        settings: dict[str, Any] = {"search": search, "batch": given.batch, "labels": labels}
        settings |= {"on_step": on_step, "on_batch": parts.append}
        try:
            restore_images(flow, measured, measurement, **settings)
        except Stopped as stopped:
            return parts, stopped.exit_code
    return parts, 0
