"""``mixerflow reproduce TABLE``: a table of the paper, at a budget, with its claims tested."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.box import SIMPLE
from rich.table import Column, Table

from mixerflow import experiments
from mixerflow.cli.copies import keeping
from mixerflow.cli.parse import ComputingArguments, parse
from mixerflow.data import load as load_data
from mixerflow.errors import ConfigError
from mixerflow.evaluate import load_features
from mixerflow.experiments import BUDGETS, RUN_TIME, Budget, Cell
from mixerflow.runs import device_of
from mixerflow.terminal import quoted, say, show
from mixerflow.train_config import TrainConfig


@dataclass(frozen=True)
class Arguments(ComputingArguments):
    """Run a table of the paper; the same command resumes. Without TABLE: list them."""

    table: tyro.conf.Positional[str]
    """A table's name, or `report` to write the page of all tables."""
    budget: Budget = "cpu"
    """tiny: seconds a run; cpu: small twins, minutes, equal steps; time: the same after equal
    processor time; gpu: as in the paper."""
    rows: str = ""
    """Only these rows, as in `basic,linear`."""
    columns: str = ""
    """Only these columns, as in `cifar10`."""
    seeds: int = 3
    """Runs of each row; seed 0 of all rows first."""
    data: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Images in place of the table's, as `train --data`; NAME=IMAGES where the table has several
    sets, once for each."""
    out: Path | None = None
    """Folder of the outputs, results/TABLE unless given; the page of all tables is beside it."""
    runs: Path = Path("runs")
    """Folder of the run folders, runs/TABLE/BUDGET/ROW/seed-K."""
    features: Path | None = None
    """For denseflow-table-3: weights of FID's Inception net, or a .pt2 file of torch.export."""
    trust: bool = False
    """Run the program that a .pt2 file of --features is: only if you trust who wrote it."""
    device: str = "auto"
    """Device: auto, cpu or cuda (experimental)."""


def main(arguments: list[str]) -> int:
    """List the tables, or run one; the exit code is 0, or 130 / 143 after a signal."""
    if not arguments or arguments[0] in ("--list", "list"):
        _print_tables()
        return 0
    given = parse(Arguments, arguments, prog="mixerflow reproduce")
    if given.table == "report":
        from mixerflow.experiments.outputs import write_page  # matplotlib takes a second

        say(str(write_page(given.out or Path("results"))))
        return 0
    table = experiments.table(given.table)
    cells = table.choose(_names(given.rows), _names(given.columns))  # refuses an empty name
    if given.seeds < 1:
        raise ConfigError(f"{given.seeds} seeds", "--seeds", "give at least 1")
    device = device_of(given.device)
    features = None
    if given.features is not None:
        if not table.distances:
            raise ConfigError(f"{table.name} compares no samples", "--features", "leave it out")
        features = load_features(given.features, device, trust=given.trust)
    out = given.out or Path("results") / table.name
    from mixerflow.experiments.outputs import write_page
    from mixerflow.experiments.reproduce import reproduce  # matplotlib takes a second

    exit_code = reproduce(
        table,
        cells,
        _data_of_columns(given.data, cells),
        budget=given.budget,
        seeds=given.seeds,
        runs=given.runs,
        out=out,
        device=device,
        load=load_data,
        command=quoted("mixerflow", "reproduce", *arguments),
        features=features,
    )
    stopped = "stopped; the same command goes on; so far: " if exit_code else ""
    say(f"{stopped}{out / f'{given.budget}.md'}")
    with keeping("the page of all tables"):
        say(str(write_page(out.parent)))
    return exit_code


def _names(given: str) -> list[str]:
    return [name.strip() for name in given.split(",")] if given else []


def _data_of_columns(given: Sequence[str], cells: Sequence[Cell]) -> dict[str, str]:
    """Return the argument of `mixerflow.data.load` for each name of images."""
    chosen = {cell.column.source: cell.column.source for cell in cells}
    further = cells[0].table.further
    others = {name: name for name in (further.sets if further is not None else ())}
    for each in given:
        name, equals, spec = each.partition("=")
        if equals and name in others:
            others[name] = spec
        elif equals and any(name == column.source for column in cells[0].table.columns):
            chosen |= {name: spec} if name in chosen else {}  # a column that is not run has no data
        elif len(chosen) == 1:
            chosen = dict.fromkeys(chosen, each)
        else:
            remedy = f"give {' '.join(f'--data {name}=IMAGES' for name in chosen)}"
            raise ConfigError(f"which column is {each} for", "--data", remedy)
    return chosen | others


def _print_tables() -> None:
    names, sources = Column("table", no_wrap=True), Column("data", min_width=15)
    tables = Table(names, "what", sources, "rows", "claims", box=SIMPLE)
    for name, each in experiments.TABLES.items():
        data = ", ".join(dict.fromkeys(column.source for column in each.columns))
        rows = ", ".join(row.name for row in each.rows)
        rows += f"; {len(each.quoted)} quoted" if each.quoted else ""
        tables.add_row(name, each.title, data, rows, str(len(each.claims)))
    show(tables)
    budgets = Table("table", *(f"{budget}, a run" for budget in BUDGETS), box=SIMPLE)
    for name, each in experiments.TABLES.items():
        setups = each.columns[0].setups
        budgets.add_row(name, *(f"{_length(setups[b].train)}: {RUN_TIME[b]}" for b in BUDGETS))
    show(budgets)


def _length(train: TrainConfig) -> str:
    """Return how long a run trains."""
    if train.minutes is not None:
        return f"{train.minutes:g} min" + (" of processor time" if train.clock == "cpu" else "")
    return f"{train.steps:,} steps of {train.batch}"
