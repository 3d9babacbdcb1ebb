"""A table's results, from what the run folders hold."""

from __future__ import annotations

import dataclasses
from functools import cache
from pathlib import Path
from typing import Any

import torch

from mixerflow.core import Shape
from mixerflow.errors import CheckpointError
from mixerflow.experiments.claims import mean_and_error, outcome
from mixerflow.experiments.runs import Run
from mixerflow.experiments.table import Budget, Cell, Column, Table
from mixerflow.parts import Model
from mixerflow.registry import describe, settings_of
from mixerflow.runs import RunFolder
from mixerflow.runs.weights import pieces_of


def collect(table: Table, budget: Budget, root: Path) -> dict[str, Any]:
    """Everything that is known of a table at a budget, for JSON.

    Runs of other settings than the table's, and unfinished ones, are listed but not counted.

    Args:
        table: the table.
        budget: at which its rows were run.
        root: the folder of those runs.
    """
    columns, left_out = [], []
    for column in table.columns:
        rows = []
        for cell in (each for each in table.cells if each.column is column):
            row, others = _row(cell, budget, root)
            rows.append(row)
            left_out += others
        columns.append(_column(column, budget, rows) | {"claims": _claims(table, rows)})
    return {
        "format": 1,
        "table": table.name,
        "title": table.title,
        "caption": table.caption,
        "budget": budget,
        "columns": columns,
        "left_out": left_out,
    }


def _column(column: Column, budget: Budget, rows: list[dict[str, Any]]) -> dict[str, Any]:
    setup = column.setups[budget]
    runs = [run for row in rows for run in row["runs"]]
    return {
        "column": column.name,
        "data": sorted({run["dataset_id"] for run in runs}),
        "steps": setup.train.steps,
        "batch": setup.train.batch,
        "base": settings_of(setup.model),
        "images": sorted({f"{run['split']}: {run['images']}" for run in runs}),
        "rows": rows,
    }


def _row(cell: Cell, budget: Budget, root: Path) -> tuple[dict[str, Any], list[str]]:
    runs, left_out = [], []
    for seed in _seeds(root / cell.name):
        found = _run(Run(cell, budget, seed, root))
        if isinstance(found, str):
            left_out.append(f"{cell.name}, seed {seed}: {found}")
        else:
            runs.append(found)
    mean, error = mean_and_error([run["bits_per_dim"] for run in runs])
    column, published = cell.column, cell.published
    full = parameters(cell.model("gpu"), column.shape)
    paper = published.parameters
    row = {
        "row": cell.row.name,
        "label": cell.row.label,
        "paper": dataclasses.asdict(published),
        "parameters_full": full,
        "parameters_deviation_percent": None if paper is None else 100 * (full / 1e6 / paper - 1),
        "model": describe(cell.model(budget)),
        "bits_per_dim": mean,
        "standard_error": error,
        "runs": runs,
    }
    return row, left_out


def _seeds(folder: Path) -> list[int]:
    names = [path.name.removeprefix("seed-") for path in folder.glob("seed-*")]
    return sorted(int(name) for name in names if name.isdecimal())


def _run(run: Run) -> dict[str, Any] | str:
    """What is known of a run, or why it does not count."""
    try:
        header = run.header()
        if header is None:
            return "not begun"
        if difference := run.difference(header):
            return difference
        figures = run.figures()
        if header.get("status") != "finished" or figures is None:
            status = str(header.get("status"))
            return header.get("error", status) if status == "failed" else "not finished"
        metrics = RunFolder(run.path).read_metrics()
    except CheckpointError as error:
        return str(error)
    pieces = pieces_of(header, header["steps"])  # the stages, of a run that grew
    steps, seconds = (sum(piece[name] for piece in pieces) for name in ("steps", "seconds"))
    start = steps - header["steps"]
    curve = [[start + r["step"], r["bits_per_dim"]] for r in metrics if r["kind"] == "validation"]
    return {
        **figures,
        "seed": run.seed,  # the run's; that of the noise it is judged with is another
        "noise_seed": figures["seed"],
        "parameters": header["parameters"],
        "images_per_second": steps * header["train"]["batch"] / seconds,
        "steps": steps,
        "seconds": seconds,
        "training_sha256": header["data"]["training_sha256"],
        "curve": curve,
        "machine": header["machine"],
        "versions": header["versions"],
        "command": header.get("command"),
    }


def _claims(table: Table, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    by_name = {row["row"]: row for row in rows}
    found = []
    for claim in table.claims:
        better, worse = (_by_images(by_name[name]) for name in (claim.better, claim.worse))
        common = better.keys() & worse.keys()  # the same seed and the same images
        result = outcome(
            {key[0]: better[key] for key in common}, {key[0]: worse[key] for key in common}
        )
        papers = [by_name[name]["paper"]["bits_per_dim"] for name in (claim.worse, claim.better)]
        paper = None if None in papers else papers[0] - papers[1]
        found.append(
            dataclasses.asdict(claim) | {"paper_difference": paper} | dataclasses.asdict(result)
        )
    return found


def _by_images(row: dict[str, Any]) -> dict[tuple[int, str, str], float]:
    return {
        (run["seed"], run["training_sha256"], run["images_sha256"]): run["bits_per_dim"]
        for run in row["runs"]
    }


@cache
def parameters(model: Model, shape: Shape) -> int:
    """How many a model has, without making them."""
    with torch.device("meta"):
        flow = model.build(shape)
    return sum(parameter.numel() for parameter in flow.parameters())
