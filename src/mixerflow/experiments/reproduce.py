"""Run a table: every row and seed that is not there yet, with the outputs rewritten after each."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import torch
from filelock import FileLock

from mixerflow.data import Splits
from mixerflow.errors import InUseError, NonFiniteError
from mixerflow.experiments import outputs
from mixerflow.experiments.runs import Parts, Run
from mixerflow.experiments.table import Budget, Cell, Table
from mixerflow.runs.files import writing


def reproduce(
    table: Table,
    cells: Sequence[Cell],
    data: Mapping[str, str],
    *,
    budget: Budget,
    seeds: int,
    runs: Path,
    out: Path,
    device: torch.device,
    load: Callable[[str], Splits],
    command: str = "",
    quiet: bool = False,
) -> int:
    """Train and judge cells, seed 0 of all first, then seed 1, and so on.

    What another process is at is left to it: started several times, the same work is shared.

    Args:
        table: whose outputs are written.
        cells: what to run of it.
        data: column -> what `load` takes.
        budget: at which.
        seeds: how many.
        runs: the folder of all tables' runs.
        out: the folder of this table's outputs.
        device: where to train.
        load: gives the images.
        command: recorded with each run.
        quiet: show no progress.

    Returns:
        0; 143 / 130 after SIGTERM / SIGINT; 6 where a row's training did not stay finite.

    Raises:
        ConfigError: a run folder holds a run of other settings.
        DataError: no such images.
        ResourceError: a folder cannot be written.
    """
    root = runs / table.name / budget
    splits = {name: load(spec) for name, spec in data.items()}
    todo = [Run(cell, budget, seed, root) for seed in range(seeds) for cell in cells]
    exit_code = 0
    _write(table, budget, root, out)
    parts: dict[tuple[str, int], Parts] = {}
    for number, run in enumerate(todo, start=1):
        column = run.cell.column
        key = (column.name, run.seed)
        if key not in parts:  # one seed's images at a time
            parts = {other: kept for other, kept in parts.items() if other[1] == run.seed}
            images = column.setups[budget].images
            parts[key] = Parts.of(splits[column.name], run.seed, images)
        if not quiet:
            print(f"{run.cell.name}, seed {run.seed} ({number} of {len(todo)})", file=sys.stderr)
        spec = data[column.name]
        about = {
            "recipe": f"{table.name}/{budget}/{run.cell.name}",
            "command": command,
            "source": {"data": spec, "transparency": "refuse", "on_bad_image": "stop"},
        }
        try:
            stopped = run.perform(parts[key], device=device, about=about, quiet=quiet)
        except NonFiniteError as error:  # of one row: the others still say something
            print(f"{run.cell.name}, seed {run.seed}: {error}", file=sys.stderr)
            exit_code, stopped = error.exit_code, 0
        except InUseError as error:
            print(f"{run.cell.name}, seed {run.seed}: {error.what}: left to it", file=sys.stderr)
            stopped = 0
        _write(table, budget, root, out)
        if stopped:
            return stopped
    return exit_code


def _write(table: Table, budget: Budget, root: Path, out: Path) -> None:
    with _in_turn(root):
        outputs.write(table, budget, root, out)


@contextmanager
def _in_turn(root: Path) -> Iterator[None]:
    """Wait for others that write the same outputs: the last to write has read the most."""
    lock = FileLock(root / ".lock", fallback_to_soft=False)
    with writing(root), ExitStack() as held:
        root.mkdir(parents=True, exist_ok=True)
        with suppress(OSError):  # a file system without locks: then without
            held.enter_context(lock)
        yield
