"""``mixerflow report RUN``: the run as one page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from mixerflow.cli.evaluation import options_of
from mixerflow.cli.parse import data_of, parse
from mixerflow.data import load as load_data
from mixerflow.runs import RunFolder


@dataclass(frozen=True)
class Arguments:
    """Write report.html into a run folder."""

    run: tyro.conf.Positional[Path]
    """The run folder."""
    data: str | None = None
    """Images to show; by default what the run was trained on."""


def main(arguments: list[str]) -> int:
    """Write the page and say where it is."""
    given = parse(Arguments, arguments, prog="mixerflow report")
    header = RunFolder(given.run).read_metadata()
    from mixerflow.report import write_report  # matplotlib takes a second that --help need not

    splits = load_data(data_of(header, given.data), **options_of(header))
    print(write_report(given.run, splits.train if splits.test is None else splits.test))
    return 0
