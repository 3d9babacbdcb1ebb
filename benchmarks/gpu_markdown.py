"""The page of `benchmarks.gpu`: its JSON as tables.

python -m benchmarks.gpu_markdown OUT/gpu.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.gpu_sections import SECTIONS, Cell, Row

Found = list[tuple[str, Row]]
"""Rows, each with the name of its part."""


def page(result: Row, titles: Sequence[str] = ("",)) -> str:
    """The tables that have rows, and which parts have none and why.

    Args:
        result: what `benchmarks.gpu` wrote.
        titles: how those tables' titles begin that are wanted.
    """
    try:
        return "\n".join([*_tables(result, tuple(titles)), *_missing(result["parts"])]) + "\n"
    except Exception as error:  # the figures are in the JSON, and more are to come
        return f"no page: {type(error).__name__}: {error}\n"


def _tables(result: Row, titles: tuple[str, ...]) -> Iterator[str]:
    yield f"# {result['given']['recipe']} on one GPU\n"
    yield from _about(result)
    rows: dict[str, Found] = {title: [] for title, _, _ in SECTIONS}
    for part in result["parts"]:
        for row in part["rows"]:
            title = _home(part["name"], row)
            if title is not None:
                rows[title].append((part["name"], row))
    for title, _, columns in SECTIONS:
        if rows[title] and title.startswith(titles):
            yield f"## {title}\n\n{_table(columns, rows[title])}"
    yield from _compiled(result["parts"])


def _home(name: str, row: Row) -> str | None:
    """The section that has a cell for all of a row; what failed is in its part's first."""
    sections = [each for each in SECTIONS if name.startswith(each[1])]
    for title, _, columns in sections:
        if all(_cell(cell, row) is not None for cell in columns.values()):
            return title
    return sections[0][0] if sections and "error" in row else None


def _about(result: Row) -> Iterator[str]:
    yield f"`{result['command']}`, {result['seconds']:.0f} s\n"
    machines = [part["machine"] for part in result["parts"] if part["machine"].get("device")]
    for each in {json.dumps(machine, sort_keys=True): machine for machine in machines}.values():
        facts = ", ".join(f"{name} {value}" for name, value in each.items() if name != "device")
        yield f"{each['device']}; {facts}\n"


def _table(columns: dict[str, Cell], found: Found) -> str:
    lines = [["part", *columns], ["---"] * (1 + len(columns))]
    for name, row in found:
        lines.append([name, *(_cell(cell, row) or "" for cell in columns.values())])
        if "error" in row:
            lines[-1][-1] = ": ".join(filter(None, [row.get("what"), row["error"]]))
    clean = ([cell.replace("|", "/") for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in clean) + "\n"


def _cell(cell: Cell, row: Row) -> str | None:
    """None where the row has no such figure."""
    try:
        return cell(row)
    except KeyError:
        return None


def _compiled(parts: list[Row]) -> Iterator[str]:
    """What compiling came to, in a line."""
    rows = [row for part in parts for row in part["rows"] if "errors" in row]
    if rows:
        seconds = max(row["seconds"] for row in rows)
        yield f"{sum(row['compiled'] for row in rows)} kernels compiled, in {seconds:.0f} s at most"
        yield from (f"- {error}" for row in rows for error in row["errors"])
        yield ""


def _missing(parts: list[Row]) -> Iterator[str]:
    """Parts that were not measured, or not to their end."""
    wrong = [part for part in parts if part["status"] != "measured"]
    if wrong:
        yield "## Not measured, or not to the end\n"
    for part in wrong:
        error = f": {part['error']}" if part["error"] else ""
        yield f"- {part['name']}: {part['status']}{error}"
    for part in wrong:
        if part["log"]:
            log = "\n".join(part["log"])
            yield f"\n{part['name']} said last:\n\n```\n{log}\n```"


def main() -> None:
    """Print the page of a file."""
    print(page(json.loads(Path(sys.argv[1]).read_text())))


if __name__ == "__main__":
    main()
