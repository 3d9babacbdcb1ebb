"""The verdict on each claim of a table, from its rows' figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from mixerflow.evaluate import kind_of
from mixerflow.experiments import student
from mixerflow.experiments.further import Figure
from mixerflow.experiments.measured import figure_of
from mixerflow.experiments.table import Claim, Table
from mixerflow.means import mean_and_error


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


def judge(table: Table, columns: list[dict[str, Any]]) -> None:
    """Set the claims of each column, with their outcomes.

    Only figures of one kind are compared, unless the claim says otherwise.

    Where rows are compared after equal time, claims are also judged by the curves, at the last step
    that all curves of the table have; only curves of the same images are compared.
    """
    rows = {
        column["column"]: {
            row["row"]: row for row in (*column["rows"], *column.get("references", ()))
        }
        for column in columns
    }
    figures = {each.name: each for each in table.further.figures} if table.further else {}
    timed = any(column.get("minutes") is not None for column in columns)
    runs = [run for column in columns for row in column["rows"] for run in row["runs"]]
    ends = [points[-1][0] for run in runs if (points := comparable_points(run))]
    common = min(ends, default=None) if timed else None
    for column in columns:
        name, column["claims"] = column["column"], []
        for claim in table.claims:
            if claim.column not in ("", name) or claim.against == name:
                continue
            figure = figures[claim.figure] if claim.figure else None
            compared = claim, rows[name], rows.get(claim.against, {}), figure
            paper, result = _outcome_of(*compared)
            judged = asdict(claim) | {"paper_difference": paper} | asdict(result)
            if figure is None:
                del judged["figure"]
            if common is not None and figure is None:  # curves are of bits/dim
                _, early = _outcome_of(*compared, step=common)
                judged["at_equal_steps"] = {"step": common} | asdict(early)
            column["claims"].append(judged)


def _outcome_of(
    claim: Claim,
    rows: Mapping[str, Any],
    reference: Mapping[str, Any],
    figure: Figure | None = None,
    step: int | None = None,
) -> tuple[float | None, Outcome]:
    """Return the paper's difference, and ours with its verdict; both of losses where asked for.

    Differences are positive where the claim is right, of a figure whose higher values are better
    too. Papers' figures of two kinds have no difference.
    """
    figures: list[dict[tuple[Any, ...], float]] = []
    papers: list[float | None] = []
    sides = claim.better, claim.worse
    kinds = set() if figure else {paper_kind(rows[each]) for each in sides}
    for name in sides:
        own = _by_what_compares(rows[name], step, claim.kinds, figure)
        paper = _paper_of(rows[name], figure)
        if claim.against:
            before = _by_what_compares(reference[name], step, claim.kinds, figure)
            own = {key: own[key] - before[key] for key in own.keys() & before.keys()}
            known = _paper_of(reference[name], figure)
            paper = None if paper is None or known is None else paper - known
        figures.append(own)
        papers.append(paper)
    common = figures[0].keys() & figures[1].keys()
    better, worse = ({key[0]: each[key] for key in common} for each in figures)
    first, second = papers
    difference = None
    if first is not None and second is not None and len(kinds) < 2:
        difference = second - first
    return difference, outcome(better, worse)


def _paper_of(row: Mapping[str, Any], figure: Figure | None) -> float | None:
    """Return the paper's figure, its sign such that lower is better."""
    if figure is None:
        return row["paper"]["bits_per_dim"]
    value = row["further"][figure.name]["paper"]
    return -value if value is not None and figure.better == "higher" else value


def paper_kind(row: Mapping[str, Any]) -> str:
    """Return the kind of the paper's figure in words; empty where the table does not say it."""
    return row["paper"].get("note", "").partition(";")[0]


def _by_what_compares(
    row: Mapping[str, Any],
    step: int | None,
    kinds: Literal["same", "any"],
    figure: Figure | None,
) -> dict[tuple[Any, ...], float]:
    """Return the figures, each with all that another must have in common to be compared.

    With a step, they are those of the curves there, on a straight line between evaluations. A
    further figure has the sign by which lower is better; it has one kind.
    """
    names = ("seed", "training_sha256", "images_sha256")
    figures = {}
    for run in row["runs"]:
        if figure is not None:
            if (value := figure_of(run, figure.name)) is not None:
                sign = -1 if figure.better == "higher" else 1
                figures[tuple(run[name] for name in names)] = sign * value
            continue
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
