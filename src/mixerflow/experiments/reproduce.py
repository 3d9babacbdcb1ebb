"""Run a table: every row and seed without results, with the outputs rewritten after each run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

import torch
from filelock import FileLock

from mixerflow.core import Shape
from mixerflow.data import Images, Splits
from mixerflow.errors import DataError, InUseError, NonFiniteError, ResourceError
from mixerflow.evaluate import Features
from mixerflow.experiments import outputs
from mixerflow.experiments.cost import keep_cost
from mixerflow.experiments.distance import keep_distance
from mixerflow.experiments.images import Budget, SeedImages
from mixerflow.experiments.measured import keep_further
from mixerflow.experiments.references import keep_yardsticks
from mixerflow.experiments.results import collect
from mixerflow.experiments.runs import Run
from mixerflow.experiments.table import Cell, Table
from mixerflow.runs.files import writing
from mixerflow.terminal import say, tell


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
    command: str,
    features: Features | None = None,
) -> int:
    """Train and score cells, seed 0 of all first, then seed 1, and so on.

    A run that another process works on is left to that process: several processes share a table.
    Runs are in folders below `runs`, the table's outputs in `out`; `load` loads what `data` has for
    each name of images, and every run records `command`. A run that another table has finished is
    copied from there. With `features`, samples are compared with the test images, in a table of
    distances.

    The table is printed in the end, and written after each run; one that could not be written
    stops no run.

    Returns 0; 143 / 130 after SIGTERM / SIGINT; 6 where a row's training did not stay finite.

    Raises:
        ConfigError: a run folder holds a run of other settings.
        DataError: no such images.
        ResourceError: a folder cannot be written, tried before the first run; or the table in the
            end.
    """
    root = runs / table.name / budget
    splits = {name: load(spec) for name, spec in data.items()}
    others = _others(table, splits, splits[cells[0].column.source].train.shape)
    if table.further is not None:
        for name, each in splits.items():
            if name not in others:
                table.further.require(each)
    queue = [Run(cell, budget, seed, root) for seed in range(seeds) for cell in cells]
    exit_code, stopped, lost = 0, 0, None
    _write_outputs(table, budget, root, out)
    images: dict[tuple[str, int], SeedImages] = {}
    for number, run in enumerate(queue, start=1):
        column = run.cell.column
        if (column.name, run.seed) not in images:
            images = {key: value for key, value in images.items() if key[1] == run.seed}
            mine = SeedImages.of(splits[column.source], run.seed, budget, column.images)
            images[column.name, run.seed] = replace(mine, others=others)
        name = f"{run.cell.name}, seed {run.seed}"
        tell(f"{name} ({number} of {len(queue)})")
        metadata = {
            "recipe": f"{table.name}/{budget}/{run.cell.name}",
            "command": command,
            "source": {
                "data": data[column.source],
                "transparency": "refuse",
                "on_bad_image": "stop",
            },
        }
        try:
            stopped = run.train_and_score(
                images[column.name, run.seed], device=device, metadata=metadata
            )
            if not stopped:
                _measure_further(run, images[column.name, run.seed], device, features)
        except NonFiniteError as error:  # one row failed, the other rows go on
            tell(f"{name}: {error}")
            exit_code = error.exit_code
        except InUseError as error:
            tell(f"{name}: {error.what}: left to it")
        if budget != "tiny" and run.seed == 0:
            keep_yardsticks(root, images[column.name, 0])
        lost = _try_outputs(table, budget, root, out)
        if stopped:
            break
    say(*outputs.markdown_text(collect(table, budget, root)).splitlines())
    if lost is not None:
        raise lost
    return stopped or exit_code


def _others(table: Table, splits: Mapping[str, Splits], shape: Shape) -> dict[str, Images]:
    """Return the images that the table's further figures need besides, of the columns' shape."""
    found = {}
    for name in table.further.sets if table.further is not None else ():
        given = splits[name]
        images = given.test or given.train
        if images.shape != shape:
            what = f"the images {name} are {images.shape}, the table's are {shape}"
            raise DataError(what, images.dataset_id, "give images of that shape")
        found[name] = images
    return found


def _measure_further(
    run: Run, images: SeedImages, device: torch.device, features: Features | None
) -> None:
    """Measure what the table of a finished run has beside the figures of all tables."""
    table = run.cell.table
    if table.costs and run.seed == 0:
        keep_cost(run.root, run.cell, run.budget, images.train, device)
    if table.distances and features is not None:
        keep_distance(run, images, features, device)
    if table.further is not None:
        keep_further(run, images, device)


def _try_outputs(table: Table, budget: Budget, root: Path, out: Path) -> ResourceError | None:
    """Write the outputs, and warn if that fails: further runs are worth more than this table."""
    try:
        _write_outputs(table, budget, root, out)
    except ResourceError as error:
        tell(f"warning: the table is not kept: {error}")
        return error
    return None


def _write_outputs(table: Table, budget: Budget, root: Path, out: Path) -> None:
    """Write the outputs, one process at a time: the last to write has read the most."""
    lock = FileLock(root / ".lock", fallback_to_soft=False)
    with writing(root), ExitStack() as held:
        root.mkdir(parents=True, exist_ok=True)
        with suppress(OSError):  # some file systems have no locks
            held.enter_context(lock)
        outputs.write(table, budget, root, out)
