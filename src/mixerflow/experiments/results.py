"""A table's results, from its run folders: figures, their means, and the verdict on each claim."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from mixerflow.core import Shape
from mixerflow.errors import CheckpointError
from mixerflow.evaluate import kind_of, mean_and_error
from mixerflow.experiments import student
from mixerflow.experiments.cost import read_cost
from mixerflow.experiments.distance import distance_of
from mixerflow.experiments.references import read_yardsticks
from mixerflow.experiments.runs import Run
from mixerflow.experiments.table import Budget, Cell, Claim, Column, Quoted, Table
from mixerflow.parts import Model
from mixerflow.registry import describe, settings_of
from mixerflow.runs import RunFolder
from mixerflow.runs.weights import pieces_of


@dataclass(frozen=True)
class Outcome:
    """The result of the runs on a claim; means and errors are None for too few seeds."""

    difference: float | None
    """Mean of worse minus better, in bits/dim."""
    standard_error: float | None
    """Standard error of that mean over the seeds of both rows."""
    half_width: float | None
    """Half of the mean's 95 % interval, by Student's t."""
    seeds: int
    verdict: Literal["holds", "fails", "undecided"]


def outcome(better: Mapping[int, float], worse: Mapping[int, float]) -> Outcome:
    """Judge the claim that one row has fewer bits/dim than another, given as seed -> bits/dim.

    With ``d_i = worse_i - better_i`` for every seed i of both rows, and t the 97.5 % quantile of
    Student's distribution with one degree of freedom less than there are seeds, the claim holds
    where ``mean(d) > t s.e.``, fails where ``mean(d) < -t s.e.``, and is undecided in between and
    with fewer than two seeds. Equal rows get a verdict in one of twenty cases.
    """
    seeds = sorted(better.keys() & worse.keys())
    mean, error = mean_and_error([worse[seed] - better[seed] for seed in seeds])
    if mean is None or error is None:
        return Outcome(mean, error, None, len(seeds), "undecided")
    half = student.quantile(len(seeds) - 1) * error
    verdict = "undecided" if abs(mean) <= half else "holds" if mean > 0 else "fails"
    return Outcome(mean, error, half, len(seeds), verdict)


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
    return {
        **figures,
        "seed": run.seed,
        "noise_seed": figures["seed"],
        "images_per_second": steps * metadata["train"]["batch"] / seconds,
        "steps": steps,
        "seconds": seconds,
        "training_sha256": metadata["data"]["training_sha256"],
        "curve": curve,
        "curve_images": [record.get("images") for record in scored],
        "command": metadata.get("command"),
        **{key: metadata[key] for key in ("parameters", "machine", "versions")},
    }


def judge(table: Table, columns: list[dict[str, Any]]) -> None:
    """Set the claims of each column, with their outcomes.

    Only figures of one kind are compared, unless the claim says otherwise.

    Where rows are compared after equal time, claims are also judged by the curves, at the last step
    that all curves of the table have; only curves of the same images are compared.
    """
    rows = {column["column"]: {row["row"]: row for row in column["rows"]} for column in columns}
    timed = any(column.get("minutes") is not None for column in columns)
    runs = [run for each in rows.values() for row in each.values() for run in row["runs"]]
    ends = [points[-1][0] for run in runs if (points := comparable_points(run))]
    common = min(ends, default=None) if timed else None
    for column in columns:
        name, column["claims"] = column["column"], []
        for claim in table.claims:
            if claim.column not in ("", name) or claim.against == name:
                continue
            compared = claim, rows[name], rows.get(claim.against, {})
            paper, result = _outcome_of(*compared)
            judged = asdict(claim) | {"paper_difference": paper} | asdict(result)
            if common is not None:
                _, early = _outcome_of(*compared, step=common)
                judged["at_equal_steps"] = {"step": common} | asdict(early)
            column["claims"].append(judged)


def _outcome_of(
    claim: Claim,
    rows: Mapping[str, Any],
    reference: Mapping[str, Any],
    step: int | None = None,
) -> tuple[float | None, Outcome]:
    """Return the paper's difference, and ours with its verdict; both of losses where asked for.

    Papers' figures of two kinds have no difference.
    """
    figures, papers = [], []
    sides = claim.better, claim.worse
    kinds = {paper_kind(rows[each]) for each in sides}
    for name in sides:
        own = _by_what_compares(rows[name], step, claim.kinds)
        paper = rows[name]["paper"]["bits_per_dim"]
        if claim.against:
            before = _by_what_compares(reference[name], step, claim.kinds)
            own = {key: own[key] - before[key] for key in own.keys() & before.keys()}
            known = reference[name]["paper"]["bits_per_dim"]
            paper = None if None in (paper, known) else paper - known
        figures.append(own)
        papers.append(paper)
    common = figures[0].keys() & figures[1].keys()
    better, worse = ({key[0]: each[key] for key in common} for each in figures)
    unknown = None in papers or len(kinds) > 1
    return None if unknown else papers[1] - papers[0], outcome(better, worse)


def paper_kind(row: Mapping[str, Any]) -> str:
    """Return the kind of the paper's figure in words; empty where the table does not say it."""
    return row["paper"].get("note", "").partition(";")[0]


def _by_what_compares(
    row: Mapping[str, Any], step: int | None, kinds: Literal["same", "any"]
) -> dict[tuple[Any, ...], float]:
    """Return the figures, each with all that another must have in common to be compared.

    With a step, the figures are those of the curves there, on a straight line between evaluations.
    """
    names = ("seed", "training_sha256", "images_sha256")
    figures = {}
    for run in row["runs"]:
        key = (*(run[name] for name in names), kind_of(run) if kinds == "same" else kinds)
        if step is None:
            figures[key] = run["bits_per_dim"]
            continue
        if (found := curve_at(run, step)) is not None:
            images, bits = found
            figures[*key, images] = bits
    return figures


def curve_at(run: Mapping[str, Any], step: int) -> tuple[int, float] | None:
    """Return the images and the bits/dim of a run's curve at a step; None where it has none."""
    points = comparable_points(run)
    if not points or not points[0][0] <= step <= points[-1][0]:
        return None
    return run["curve_images"][0], float(np.interp(step, *np.transpose(points)))


def comparable_points(run: Mapping[str, Any]) -> list[tuple[int, float]]:
    """Return the points of a run's curve that are of as many images as its first.

    The last evaluation is of more images, and the first images may be harder than all. There are
    none where the numbers of images are not known.
    """
    images = run.get("curve_images") or []
    pairs = zip(run["curve"], images, strict=False)
    return [(step, bits) for (step, bits), count in pairs if count == images[0]]


@cache
def parameters(model: Model, shape: Shape) -> int:
    """Count a model's parameters without making them."""
    with torch.device("meta"):
        flow = model.build(shape)
    return sum(parameter.numel() for parameter in flow.parameters())
