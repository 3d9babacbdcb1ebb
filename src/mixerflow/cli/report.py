"""``mixerflow report``: a run as one page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from mixerflow.cli.parse import ComputingArguments, parse
from mixerflow.cli.reading import ReadingFlags, load_run_data
from mixerflow.runs import RunFolder
from mixerflow.runs.files import require_writable
from mixerflow.terminal import say


@dataclass(frozen=True, kw_only=True)
class _ReportArguments(ComputingArguments, ReadingFlags):
    """Write report.html into a run folder, or elsewhere."""

    run: tyro.conf.Positional[Path]
    """The run folder."""
    data: str | None = None
    """Images to show; by default the run's own."""
    out: Path | None = None
    """The page's file; by default report.html in the run folder."""


def report(arguments: list[str]) -> int:
    """Print the bits/dim of the page's images, write the page and print its path."""
    given = parse(_ReportArguments, arguments, prog="mixerflow report")
    metadata = RunFolder(given.run).read_started()
    out = given.out or given.run / "report.html"
    require_writable(out, "" if given.out else "name a file elsewhere with --out")
    from mixerflow.report import make_report  # matplotlib takes a second, which --help saves

    splits = load_run_data(metadata, given.data, given)
    made = make_report(given.run, splits.train if splits.test is None else splits.test)
    say(str(made.figure))
    say(str(made.write(out)))
    return 0
