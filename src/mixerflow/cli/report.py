"""``mixerflow report``: a run as one page."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import tyro

from mixerflow.cli.codecs import CodecFlags, code_images
from mixerflow.cli.parse import ComputingArguments, parse
from mixerflow.cli.reading import ReadingFlags, load_run_data
from mixerflow.data import Images, Splits
from mixerflow.runs import RunFolder, own_parts
from mixerflow.runs.files import require_writable
from mixerflow.signals import Stopped
from mixerflow.terminal import say


@dataclass(frozen=True, kw_only=True)
class _ReportArguments(CodecFlags, ComputingArguments, ReadingFlags):
    """Write report.html into a run folder, or elsewhere."""

    run: tyro.conf.Positional[Path]
    """The run folder."""
    data: str | None = None
    """Images to show; by default the run's own."""
    out: Path | None = None
    """The page's file; by default report.html in the run folder."""


def report(arguments: list[str]) -> int:
    """Print the bits/dim of the page's images, write the page and print its path.

    The exit code is 0, or 130 / 143 after a signal.
    """
    given = parse(_ReportArguments, arguments, prog="mixerflow report")
    given.check_codecs()
    metadata = RunFolder(given.run).read_started()
    out = given.out or given.run / "report.html"
    require_writable(out, "" if given.out else "name a file elsewhere with --out")
    from mixerflow.report import make_report  # matplotlib takes a second, which --help saves

    splits = load_run_data(metadata, given.data, given)
    images, parts = images_of(metadata, splits)
    count = given.codec_images
    code = partial(code_images, count=count, quiet=False) if given.codecs else None
    try:
        made = make_report(given.run, images, parts, code=code)
    except Stopped as stopped:
        return stopped.exit_code
    say(str(made.figure))
    say(str(made.write(out)))
    return 0


def images_of(metadata: dict[str, Any], splits: Splits) -> tuple[Images, dict[str, Images]]:
    """Return the images of a run's page, and the sets whose bits/dim it compares.

    They are the test images, beside those of training; without test images the page is about all
    images, and compares those of validation and training.
    """
    own = own_parts(metadata, splits)
    if splits.test is None:
        return splits.train, dict(sorted(own.items(), reverse=True)) or {"": splits.train}
    training = {name: each for name, each in own.items() if name == "training"}
    return splits.test, {"test": splits.test, **training}
