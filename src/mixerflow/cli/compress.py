"""``mixerflow compress``: images to an archive, losslessly, by a run's weights."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro

from mixerflow import runs
from mixerflow.cli.evaluate import ImagesArguments
from mixerflow.cli.parse import parse
from mixerflow.cli.reading import load_run_data, own_data, require_apart
from mixerflow.compression import Codec, Totals
from mixerflow.compression.choice import USUAL
from mixerflow.compression.coded import OnProgress, Progress
from mixerflow.data import Images, Splits
from mixerflow.errors import ConfigError
from mixerflow.named import is_archive
from mixerflow.progress import ProgressBar
from mixerflow.runs.files import json_text, require_writable
from mixerflow.signals import Interrupt, Stopped
from mixerflow.terminal import say, tell


@dataclass(frozen=True, kw_only=True)
class _CompressArguments(ImagesArguments):
    """Write images to one lossless archive, of about as many bits as the model says."""

    run: tyro.conf.Positional[Path]
    """The run folder, or published weights."""
    out: Path
    """The archive's file; an archive that is there is replaced."""
    split: Literal["test", "train", "validation"] | None = None  # pyright: ignore
    """Which part of the data, where it has several."""
    labels: bool = True
    """Whether to keep the images' labels."""
    names: bool = True
    """Whether to keep the names of their files."""
    weights: Literal["name", "embed"] = "name"
    """Name the weights in the archive, or put them inside, rounded to 16 bits."""
    k: int | None = None
    """Bits below a pixel, 1 to 24; by default 4 to 20, chosen on a sample of the images, and 12 for
    less than 2,000 images."""
    block: int | None = None
    """Images of a block, of which damage loses one, and a single image needs one."""
    verify: bool = False
    """Decode each block again after it was coded, and compare all pixels: takes twice the time."""
    json: bool = False
    """Print the summary as JSON."""

    def check(self) -> None:
        """Refuse impossible settings with a ConfigError."""
        super().check()
        if self.out.exists() and not self.out.is_dir() and not is_archive(self.out):
            raise ConfigError("another file is there, no archive", self.out, "name another")
        require_writable(self.out, named=True)

    def of_split(self, splits: Splits) -> Images:
        """Return the images of the part that is named, or the only one."""
        if self.split is None and len(splits.parts()) > 1:
            what = f"several parts: {', '.join(splits.parts())}"
            names = {"training": "train"}
            ways = ", or ".join(f"--split {names.get(each, each)}" for each in splits.parts())
            raise ConfigError(what, splits.train.dataset_id, f"give {ways}")
        return self.choose(splits)[0]


def main(arguments: list[str]) -> int:
    """Compress images, and print what they take.

    The exit code is 0, or 130 / 143 after a signal, which leaves no archive.
    """
    given = parse(_CompressArguments, arguments, prog="mixerflow compress")
    given.check()
    metadata = runs.read_metadata(given.run)
    spec = own_data(metadata) if given.data is None else given.data
    require_apart(given.out, spec)
    codec = Codec(
        given.run,
        k=given.k,
        block=given.block,
        threads=given.threads or None,
        embed=given.weights == "embed",
        which=given.checkpoint,
        average=not given.raw,
        verify=given.verify,
    )
    codec.engine(codec.k or USUAL)  # refuses a model, or a machine, before images are read
    images = given.of_split(load_run_data(metadata, given.data, given))
    runs.require_levels(codec.flow, images)
    labels, begun = images.labels if given.labels else None, time.monotonic()
    try:
        with ProgressBar("image", len(images), quiet=given.json) as bar, Interrupt() as interrupt:
            totals = codec.compress(
                images.pixels,
                given.out,
                labels=labels,
                names=images.files if given.names else (),
                classes=() if labels is None else images.classes,
                context=_context(codec, images),
                on_progress=watching(bar, interrupt, images.pixels[0], "nothing is kept"),
            )
    except Stopped as stopped:
        return stopped.exit_code
    _print(totals, given, time.monotonic() - begun)
    return 0


def watching(bar: ProgressBar, interrupt: Interrupt, image: np.ndarray, after: str) -> OnProgress:
    """Return what shows progress on a bar, and ends the work after a signal.

    Args:
        bar: of images.
        interrupt: tells the signal.
        image: one image, for the figures.
        after: what becomes of the result after a signal.
    """

    def on_progress(progress: Progress) -> None:
        if progress.choosing:
            bar.wait("choosing k on a sample")
        else:
            words = f"{bar.rate:,.0f} images/s, {bar.rate * image.nbytes / 1e6:.2f} MB/s"
            if progress.whole:
                words += f", {8 * progress.payload / (progress.whole * image.size):.3f} bits/dim"
            bar.update(progress.images, words)
        if interrupt.requested:
            done = f"{progress.images:,} of {bar.total:,} images"
            tell(f"stopped after {done}: {after}")
            raise Stopped(interrupt.requested)

    return on_progress


def _context(codec: Codec, images: Images) -> np.ndarray | None:
    """Return the classes that a class-conditional flow is given, -1 for unknown ones; say which."""
    context, words = codec.context_of(images.labels, images.classes)
    if words:
        tell(words)
    if context is None and words:
        return np.full(len(images), -1)
    return context


def _print(totals: Totals, given: _CompressArguments, seconds: float) -> None:
    """Print what the images, and what is kept with them, take."""
    if totals.plain:
        plural = "s are" if totals.plain > 1 else " is"
        tell(f"warning: {totals.plain:,} image{plural} beyond the flow, and coded without it")
    if given.json:
        record = figures_of(totals) | {"out": str(given.out), "seconds": seconds}
        record["verified"] = given.verify
        say(*json_text(record).splitlines())
        return
    say(f"{given.out}: {lines_of(totals)[0]}", *lines_of(totals)[1:])
    if given.verify:
        say("verified: each block was decoded again, to the same pixels")
    rate = totals.images / max(seconds, 1e-9)
    size = totals.pixel_bytes / totals.images / 1e6
    say(f"{seconds:.1f} s, {rate:,.0f} images/s, {rate * size:.2f} MB/s")


def figures_of(totals: Totals) -> dict[str, Any]:
    """Return what an archive's bytes are, for JSON."""
    return {
        "images": totals.images,
        "bytes": totals.size,
        "bytes_for_images": totals.for_images,
        "bytes_for_names": totals.names,
        "bytes_for_labels": totals.labels,
        "bytes_for_weights": totals.weights,
        "bits_per_dim": totals.bits_per_dim,
        "bits_per_dim_by_flow": totals.model_bits_per_dim,
        "ratio": totals.pixel_bytes / max(totals.for_images, 1),
        "plain_images": totals.plain,
        "blocks": totals.blocks,
        "k": totals.k,
        "counted": totals.report,
    }


def lines_of(totals: Totals) -> tuple[str, ...]:
    """Return what an archive's bytes are, in lines."""
    plural = "" if totals.images == 1 else "s"
    share, flow = totals.pixel_bytes / max(totals.for_images, 1), totals.model_bits_per_dim
    by_flow = "" if flow is None else f" ({flow:.3f} of images by the flow)"
    blocks = f"{totals.blocks:,} block{'' if totals.blocks == 1 else 's'}"
    beside = ("names", "labels", "weights")
    apart = ", ".join(f"{name} {getattr(totals, name):,} bytes" for name in beside)
    return (
        f"{totals.images:,} image{plural}, {totals.size:,} bytes, {blocks}, k = {totals.k}",
        f"images {totals.for_images:,} bytes, {totals.bits_per_dim:.3f} bits/dim{by_flow}, "
        f"{share:.2f} times fewer than their pixels",
        apart,
    )
