"""Tables that stand below a column's rows: quoted figures, and the cost of the full models."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

TableText = tuple[list[str], list[list[str]]]
"""The cells of a table's head, and of each row."""

def further_tables(column: dict[str, Any]) -> Iterator[tuple[str, TableText]]:
    """Yield the tables of a column's results that it has, each below a paragraph."""
    if costs := [row for row in column["rows"] if row.get("cost")]:
        first = costs[0]["cost"]
        text = (
            f"Computed: the hours that the published schedule would take here, its images over the "
            f"full model's images/s. That speed is of {first['steps']} training steps of "
            f"{first['batch']} images after one to warm up, by the clock: a rough figure."
        )
        yield text, _cost_table(costs)
    if column.get("quoted"):
        yield "Quoted from publications, not of runs here:", _quoted_table(column["quoted"])


def _cost_table(rows: list[dict[str, Any]]) -> TableText:
    head = ["row", "parameters measured", "images/s of these", "images of the schedule"]
    head += ["hours here, computed", "machine"]
    cells = []
    for row in rows:
        cost, machine = row["cost"], row["cost"]["machine"]
        threads = f"{machine['threads']} of {machine['cores']} cores"
        figures = (f"{cost['parameters']:,}", f"{cost['images_per_second']:.3g}")
        work = (f"{cost['scheduled_images']:,.0f}", f"{cost['hours']:,.0f}")
        cells.append([row["label"], *figures, *work, f"{machine['device']}, {threads}"])
    return head, cells


def _quoted_table(models: list[dict[str, Any]]) -> TableText:
    names = list(dict.fromkeys(name for model in models for name in model["figures"]))
    head = ["group", "model", *(f"quoted: {name}" for name in names)]
    rows = []
    for model in models:
        figures = [_shown(model["figures"].get(name)) for name in names]
        rows.append([model["group"], model["label"], *figures])
    return head, rows


def _shown(figure: float | str | None) -> str:
    if figure is None:
        return "-"
    return f"{figure:.2f}" if isinstance(figure, float) else str(figure)
