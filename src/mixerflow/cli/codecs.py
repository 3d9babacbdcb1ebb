"""``mixerflow evaluate``: lossless codecs beside the flow, on images as the flow sees them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.table import Column, Table

from mixerflow.core import Flow
from mixerflow.data import Images
from mixerflow.errors import CheckpointError, ConfigError
from mixerflow.evaluate.codecs import SAMPLE, CodecBits, coded_as_seen, shuffle_of, without_files
from mixerflow.pictures import installed
from mixerflow.progress import ProgressBar
from mixerflow.runs.files import read_record
from mixerflow.signals import Interrupt, Stopped
from mixerflow.terminal import say, show, tell


@dataclass(frozen=True, kw_only=True)
class CodecFlags:
    """Whether lossless codecs compress the images too, and how many of them."""

    codecs: bool = True
    """Whether to compress images with PNG, WebP and, where it is installed, JPEG XL too."""
    codec_images: int | None = None
    """How many, drawn from the images, by default 250; 0 for all, which may take minutes."""

    def check_codecs(self) -> None:
        """Refuse an impossible number, or one without an effect, with a ConfigError."""
        if self.codec_images is None:
            return
        if not self.codecs:
            raise ConfigError("nothing is compressed", "--codec-images", "leave out --no-codecs")
        if self.codec_images < 0:
            what = f"{self.codec_images} images"
            raise ConfigError(what, "--codec-images", "give at least 1, or 0 for all")


def code_images(flow: Flow, images: Images, *, count: int | None, quiet: bool) -> list[CodecBits]:
    """Code `count` of the images, by default `SAMPLE`, 0 for all; a bar shows the files done.

    Lengths of files are kept in the user's cache.

    Raises:
        Stopped: after a signal; the same command goes on.
    """
    with ProgressBar("file", 1, quiet=quiet) as bar, Interrupt() as interrupt:

        def on_file(done: int, total: int) -> None:
            bar.expect(total)
            bar.update(done, "PNG, WebP, JPEG XL" if "jxl" in installed() else "PNG and WebP")
            if interrupt.requested:
                tell(f"stopped after {done:,} of {total:,} files: the same command goes on")
                raise Stopped(interrupt.requested)

        number = SAMPLE if count is None else count or len(images)
        return coded_as_seen(flow, images, count=number, on_file=on_file)


def as_entries(rows: list[CodecBits], total: int) -> dict[str, Any]:
    """Return the entries of the evaluation's JSON: the figures, and what they are about."""
    errors = {row.name: row.standard_error for row in rows}
    sample = {"images": rows[0].images, "of": total, "standard_errors": errors}
    return {"codecs": {row.name: row.bits_per_dim for row in rows}, "codec_sample": sample}


def larger_sample(path: Path, result: dict[str, Any]) -> dict[str, Any]:
    """Return the entries of an older evaluation's JSON if it coded more of the same images."""
    try:
        older = read_record(path, "delete this file") or {}
        same = older.get("images_sha256") == result["images_sha256"]
        more = _coded(older) > _coded(result)
    except (CheckpointError, AttributeError, TypeError, ValueError):  # not what `evaluate` writes
        return {}
    return {key: older[key] for key in ("codecs", "codec_sample")} if same and more else {}


def _coded(result: dict[str, Any]) -> int:
    figures = [figure for figure in result.get("codecs", {}).values() if figure is not None]
    return int(result.get("codec_sample", {}).get("images", 0)) if sum(figures) > 0 else 0


def print_codecs(rows: list[CodecBits], flow: Flow, images: Images) -> None:
    """Print a row for each codec that has such images, and which images are coded."""
    coded = [row for row in rows if row.bits_per_dim is not None]
    if words := without_files(rows, images):
        say(words)
    if not coded:
        return
    right = [Column(head, justify="right") for head in ("bits/dim", "± s.e.", "images")]
    table = Table("lossless code, headers included", *right, box=SIMPLE)
    for row in coded:
        figures = [row.bits_per_dim, row.standard_error]
        words = ["" if figure is None else f"{figure:.3f}" for figure in figures]
        table.add_row(row.name, *words, f"{row.images:,}")
    show(table)
    if "jxl" not in installed():
        say("no JPEG XL: pip install 'mixerflow[codec]'")
    if rows[0].images < len(images):
        say(f"a sample of the {len(images):,} images; --codec-images 0 codes all")
    if shuffle_of(flow) is not None:
        say("images are coded as the model sees them, shuffled")
