"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mixerflow.errors import printable


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table with a line for the head and for each row; a bar in a cell is escaped."""
    lines = [[plain(cell) for cell in cells] for cells in (head, *rows)]
    lines.insert(1, ["---"] * len(head))
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def plain(text: str) -> str:
    """Return a text in one line that shows as it is, and ends no cell."""
    return printable(text).replace("|", "\\|")
