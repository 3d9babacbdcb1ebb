"""``mixerflow decompress``: the images of an archive as files, or as one array."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from mixerflow.cli.compress import watching
from mixerflow.cli.parse import ComputingArguments, parse
from mixerflow.cli.unpacked import open_output, require_output
from mixerflow.compression import Archive, Codec, Lost
from mixerflow.errors import ConfigError, DataError
from mixerflow.progress import ProgressBar
from mixerflow.signals import Interrupt, Stopped
from mixerflow.terminal import say, tell

_SHOWN = 20  # lost blocks that have a line


@dataclass(frozen=True, kw_only=True)
class _DecompressArguments(ComputingArguments):
    """Write the images of an archive to a folder of PNG files, or to one .npy or .npz file."""

    archive: tyro.conf.Positional[Path]
    """The archive."""
    out: Path
    """A new folder for PNG files; FILE.npz for images, labels and names; FILE.npy for images. A
    file that is there is never replaced."""
    weights: Path | None = None
    """The run folder, or published weights, that the archive was made with; by default those
    inside, or those that it names."""
    start: int = 0
    """Number of the first image."""
    stop: int | None = None
    """Number after the last image; by default all."""
    rescue: bool = False
    """Find blocks without the index: what is left of an archive that was cut short."""


def decompress(arguments: list[str]) -> int:
    """Decode an archive, and say what is lost.

    The exit code is 0; 3 if images are lost, of which the others are written; or 130 / 143 after a
    signal, which leaves no output.
    """
    given = parse(_DecompressArguments, arguments, prog="mixerflow decompress")
    begun = time.monotonic()
    with Archive(given.archive, rescue=given.rescue) as archive:
        header = archive.header
        stop = archive.images if given.stop is None else given.stop
        if not 0 <= given.start < stop <= archive.images:
            what = f"no images from {given.start:,} to before {stop:,}"
            flag = "--start" if given.stop is None else "--stop"
            raise ConfigError(what, flag, f"the archive has {archive.images:,}, from 0 on")
        require_output(given.out, header, given.archive)
        if given.rescue:
            count, last = len(archive.index.blocks), archive.images - 1
            blocks = f"{count:,} block{'' if count == 1 else 's'}"
            tell(f"rescued: {blocks}, up to image {last:,}; what followed is not known")
        codec = Codec.of(archive, given.weights, threads=given.threads or None)
        image, count = np.empty(header.shape, header.dtype), stop - given.start
        lost: list[Lost] = []
        try:
            with (
                ProgressBar("image", count) as bar,
                Interrupt() as interrupt,
                open_output(given.out, header, count) as output,
            ):
                on_progress = watching(bar, interrupt, image, "nothing is kept")
                for part in codec.parts(archive, given.start, stop, on_progress):
                    if isinstance(part, Lost):
                        lost.append(part)
                    else:
                        output.add(part)
                if not output.images:
                    raise DataError(f"damaged: {lost[0]}", archive.where, "fetch it again")
        except Stopped as stopped:
            return stopped.exit_code
    for each in lost[:_SHOWN]:
        tell(f"lost: {each}")
    if len(lost) > _SHOWN:
        tell(f"lost: {len(lost) - _SHOWN:,} blocks more")
    seconds = time.monotonic() - begun
    plural = "" if output.images == 1 else "s"
    say(f"{output.images:,} image{plural} in {given.out}, {seconds:.1f} s")
    if not lost:
        return 0
    gone = sum(min(each.stop, stop) - max(each.first, given.start) for each in lost)
    what = f"{gone:,} of {count:,} images are lost, the others are in {given.out}"
    raise DataError(what, archive.where, "fetch the archive again")
