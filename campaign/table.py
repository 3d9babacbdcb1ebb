"""The table of the campaign: results as JSON, and Markdown between two markers of a page."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from campaign.base import FAULTS, Outcome, Row
from campaign.runner import code_of, counts
from mixerflow.markdown import table
from mixerflow.runs.files import write_atomically

BEGIN, END = "<!-- campaign: begin -->", "<!-- campaign: end -->"


def result_of(row: Row, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Return a row's result, for JSON."""
    figures = [each.figure for each in outcomes if each.figure is not None]
    return {
        "name": row.name,
        "words": row.words,
        "command": f"python -m campaign {row.name}",
        "trials": len(outcomes),
        **counts(list(outcomes)),
        "figure": row.figure,
        "value": float(f"{max(figures):.3g}") if figures else None,
        "faults": [asdict_of(n, each) for n, each in enumerate(outcomes) if each.fault],
        "code": code_of(row),
    }


def asdict_of(number: int, outcome: Outcome) -> dict[str, Any]:
    """Return a fault, for JSON."""
    return {"trial": number, "fault": outcome.fault, "text": outcome.text}


def write_results(results: Iterable[dict[str, Any]], folder: Path) -> None:
    """Write each row's result as a file of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    for result in results:
        data = json.dumps(result, indent=2) + "\n"
        write_atomically(folder / f"{result['name']}.json", data.encode())


def read_results(folder: Path, rows: Iterable[Row]) -> list[dict[str, Any]]:
    """Read the results of the rows that have any, in the rows' order."""
    paths = [folder / f"{row.name}.json" for row in rows]
    return [json.loads(path.read_bytes()) for path in paths if path.exists()]


def markdown_of(results: Iterable[dict[str, Any]]) -> str:
    """Return the table of results as Markdown."""
    head = ["what is done", "command", "trials", "tracebacks", "lost", "wrong", "figure"]
    return table(head, map(_cells, results))


def _cells(result: dict[str, Any]) -> list[str]:
    figure = "" if result["value"] is None else f"{result['figure']}: {result['value']:g}"
    numbers = [f"{result[key]:,}" for key in ("trials", *FAULTS)]
    return [result["words"], f"`{result['command']}`", *numbers, figure]


def write_page(page: Path, text: str) -> None:
    """Put a table between the two markers of a page.

    Raises:
        SystemExit: the page has no such markers.
    """
    before, begin, rest = page.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"{page} lacks the lines {BEGIN} and {END}")
    write_atomically(page, f"{before}{begin}\n{text.strip()}\n{end}{after}".encode())
