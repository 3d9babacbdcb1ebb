"""A table's results, from its run folders: figures, their means, and the verdict on each claim."""

from __future__ import annotations

import math
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import torch

from mixerflow.core import Shape
from mixerflow.errors import CheckpointError
from mixerflow.experiments.claims import judge
from mixerflow.experiments.cost import read_cost
from mixerflow.experiments.distance import distance_of
from mixerflow.experiments.images import Budget
from mixerflow.experiments.measured import further_of, reference_rows, summary
from mixerflow.experiments.references import read_yardsticks
from mixerflow.experiments.runs import Run
from mixerflow.experiments.table import Cell, Column, Quoted, Table
from mixerflow.means import mean_and_error
from mixerflow.parts import Model
from mixerflow.registry import describe, settings_of
from mixerflow.runs import RunFolder
from mixerflow.runs.weights import pieces_of


def collect(table: Table, budget: Budget, root: Path) -> dict[str, Any]:
    """Collect all results of a table at a budget, for JSON.

    Runs of other settings than the table's, and unfinished ones, are listed but not counted.
    """
    rows: dict[str, list[dict[str, Any]]] = {}
    left_out: list[str] = []
    for column in table.columns:
        rows[column.name] = []
        for cell in (each for each in table.cells if each.column is column):
            row, not_counted = _row(cell, budget, root)
            rows[column.name].append(row)
            left_out += not_counted
    columns = [
        _column(each, budget, root, rows[each.name])
        | _further_of_column(table, budget, root, rows[each.name])
        | {"quoted": [_quoted(model, each) for model in table.quoted if each.name in model.figures]}
        for each in table.columns
    ]
    judge(table, columns)
    return {
        "format": 1,
        "table": table.name,
        "title": table.title,
        "caption": table.caption,
        "budget": budget,
        "columns": columns,
        "left_out": left_out,
    }


def _column(
    column: Column, budget: Budget, root: Path, rows: list[dict[str, Any]]
) -> dict[str, Any]:
    setup = column.setups[budget]
    runs = [run for row in rows for run in row["runs"]]
    return {
        "column": column.name,
        "data": sorted({run["dataset_id"] for run in runs}),
        "steps": setup.train.steps,
        "minutes": setup.train.minutes,
        "batch": setup.train.batch,
        "base": settings_of(setup.model),
        "shuffle": None if column.shuffle is None else describe(column.shuffle),
        "training_images": column.images,
        "weights": column.which,
        "weighted": column.weighted,
        "images": sorted({f"{run['split']}: {run['images']}" for run in runs}),
        "yardsticks": read_yardsticks(root, runs),
        "rows": rows,
    }


def _further_of_column(
    table: Table, budget: Budget, root: Path, rows: list[dict[str, Any]]
) -> dict[str, Any]:
    """Return what a column has of further figures, in a table that measures them."""
    if table.further is None:
        return {}
    runs = [run for row in rows for run in row["runs"]]
    return {
        "figures": [asdict(figure) for figure in table.further.figures],
        "about": table.further.about,
        "references": reference_rows(root, table.further, budget, runs),
        "tables": table.further.tables({"rows": rows}),
    }


def _quoted(model: Quoted, column: Column) -> dict[str, Any]:
    words = {"name": model.name, "label": model.label, "group": model.group, "quoted": True}
    return words | {"figures": dict(model.figures[column.name])}


def _row(cell: Cell, budget: Budget, root: Path) -> tuple[dict[str, Any], list[str]]:
    runs, left_out = [], []
    names = [path.name.removeprefix("seed-") for path in (root / cell.name).glob("seed-*")]
    for seed in sorted(int(name) for name in names if name.isdecimal()):
        found = _run_results(Run(cell, budget, seed, root))
        if isinstance(found, str):
            left_out.append(f"{cell.name}, seed {seed}: {found}")
        else:
            runs.append(found)
    mean, error = mean_and_error([run["bits_per_dim"] for run in runs])
    full = None if budget == "tiny" else parameters(cell.model("gpu"), cell.column.shape)
    paper = cell.published.parameters
    deviation = None if full is None or paper is None else 100 * (full / 1e6 / paper - 1)
    row = {
        "row": cell.row.name,
        "label": cell.row.label,
        "paper": asdict(cell.published),
        "parameters_full": full,
        "parameters_deviation_percent": deviation,
        "model": describe(cell.model(budget)),
        "bits_per_dim": mean,
        "standard_error": error,
        "runs": runs,
        "cost": read_cost(root, cell),
    }
    if cell.table.further is not None:
        paper = cell.row.further.get(cell.column.name, {})
        row["further"] = summary(cell.table.further, runs, paper)
    return row, left_out


def _run_results(run: Run) -> dict[str, Any] | str:
    """Return the results of a finished run, or the reason why a run is not counted."""
    try:
        metadata = run.read_metadata()
        if metadata is None:
            return "not begun"
        if difference := run.difference(metadata):
            return difference
        figures = run.figures()
        if metadata.get("status") != "finished" or figures is None:
            status = str(metadata.get("status"))
            return metadata.get("error", status) if status == "failed" else "not finished"
        if figures["bits_per_dim"] is None or not math.isfinite(figures["bits_per_dim"]):
            return "its bits/dim are not finite"
        metrics = RunFolder(run.path).read_metrics()
    except CheckpointError as error:
        return str(error)
    last = max((r["step"] for r in metrics if r["kind"] == "validation"), default=0)
    if last != metadata["steps"]:  # cut
        return f"its metrics.jsonl ends at step {last} of {metadata['steps']}"
    pieces = pieces_of(metadata, metadata["steps"])  # one for each stage of a run that grew
    steps, seconds = (sum(piece[name] for piece in pieces) for name in ("steps", "seconds"))
    start = steps - metadata["steps"]
    scored = [r for r in metrics if r["kind"] == "validation" and r["bits_per_dim"] is not None]
    curve = [[start + r["step"], r["bits_per_dim"]] for r in scored]
    if run.cell.table.distances:
        figures |= distance_of(run, figures["measures"])
    training = metadata["data"]["training_sha256"]
    if run.cell.table.further is not None:
        figures["further"] = further_of(run, training, figures["images_sha256"])
    return {
        **figures,
        "seed": run.seed,
        "noise_seed": figures["seed"],
        "images_per_second": steps * metadata["train"]["batch"] / seconds,
        "steps": steps,
        "seconds": seconds,
        "training_sha256": training,
        "curve": curve,
        "curve_images": [record.get("images") for record in scored],
        "command": metadata.get("command"),
        **{key: metadata[key] for key in ("parameters", "machine", "versions")},
    }


@cache
def parameters(model: Model, shape: Shape) -> int:
    """Count a model's parameters without making them."""
    with torch.device("meta"):
        flow = model.build(shape)
    return sum(parameter.numel() for parameter in flow.parameters())
