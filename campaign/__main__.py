"""``python -m campaign``: attack the package, and print one table of what broke."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from campaign.base import Row

_COMMANDS = (
    "train",
    "evaluate",
    "sample",
    "report",
    "publish",
    "reproduce",
    "info",
    "score",
    "compress",
)
_WARM = ("matplotlib.figure", "mixerflow.report", *(f"mixerflow.cli.{each}" for each in _COMMANDS))
"""What the commands import: once, before the forks."""


def main(arguments: list[str] | None = None, rows: Sequence[Row] | None = None) -> int:
    """Run the rows; 1 if any trial found a fault. The same words go on after a stop."""
    os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: a fork needs a single thread
    if rows is None:
        from campaign.rows import ROWS

        rows = tuple(ROWS.values())
    known = {row.name: row for row in rows}
    parser = argparse.ArgumentParser(prog="python -m campaign", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="rows; all unless given")
    parser.add_argument("--list", action="store_true", help="list the rows")
    parser.add_argument("--trials", type=int, help="at most so many of each row")
    parser.add_argument("--jobs", type=int, default=1, help="trials at a time")
    parser.add_argument("--runs", type=Path, default=Path("runs/campaign"), help="where they are")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="put the table into this page")
    parser.add_argument("--results", type=Path, default=Path("results/campaign"), help="for JSON")
    given = parser.parse_args(arguments)
    if unknown := sorted(set(given.names) - set(known)):
        parser.error(f"no such row: {', '.join(unknown)}")
    chosen = [known[name] for name in given.names or known]
    trials = {row.name: min(row.trials, given.trials or row.trials) for row in chosen}
    seconds = {row.name: row.seconds * trials[row.name] / given.jobs for row in chosen}
    if given.list:
        for row in chosen:
            print(f"{row.name:<12} {row.trials:>5} trials {seconds[row.name]:>5.0f} s  {row.words}")
        return 0
    return _run(chosen, trials, sum(seconds.values()), rows, given)


def _run(
    chosen: Sequence[Row],
    trials: dict[str, int],
    seconds: float,
    known: Sequence[Row],
    given: argparse.Namespace,
) -> int:
    import torch

    from campaign import runner, table

    for module in _WARM:
        importlib.import_module(module)
    torch.set_num_threads(1)
    print(f"about {seconds / 60:.0f} minutes where nothing is done yet", file=sys.stderr)
    root = given.runs.resolve()
    root.mkdir(parents=True, exist_ok=True)
    os.environ["XDG_CACHE_HOME"] = str(root / "cache")
    results = []
    for row in chosen:
        outcomes = runner.run(row, root, trials=trials[row.name], jobs=given.jobs)
        results.append(table.result_of(row, outcomes))
    print(table.markdown_of(results))
    if given.write:
        table.write_results(results, given.results)
        table.write_page(given.write, table.markdown_of(table.read_results(given.results, known)))
    return int(any(result["faults"] for result in results))


if __name__ == "__main__":
    sys.exit(main())
