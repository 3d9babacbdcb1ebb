"""All tables so far as one self-contained page."""

from __future__ import annotations

import base64
import html
import json
from pathlib import Path
from typing import Any

from mixerflow.errors import ConfigError
from mixerflow.experiments.outputs import (
    COMPARABLE,
    NOTE,
    claims_of,
    results_name,
    setting,
    table_of,
)
from mixerflow.runs.files import write_atomically, writing

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 68rem; margin: 2rem auto;
       padding: 0 1rem }
h1 { font-size: 1.6rem } h2 { font-size: 1.3rem; margin-top: 3rem } h3 { font-size: 1.05rem }
img { max-width: 100% } figure { display: inline-block; margin: .5rem; width: 15rem }
figure img { image-rendering: pixelated } figcaption, p.note { color: #666; font-size: .9rem }
table { border-collapse: collapse; margin: .8rem 0 } th { text-align: left }
td, th { padding: .15rem 1rem .15rem 0; vertical-align: top; font-size: .9rem }
.holds { color: #176117 } .fails { color: #a11 } .undecided { color: #777 }
"""


def write_page(results: Path) -> Path:
    """Write ``report.html`` beside the tables' folders and return its path.

    Raises:
        ConfigError: no table was run there.
        ResourceError: the page cannot be written.
    """
    found = [(path.parent, json.loads(path.read_bytes())) for path in _tables(results)]
    if not found:
        remedy = "run one: `mixerflow reproduce TABLE`; or name their folder with --out"
        raise ConfigError("no tables so far", results, remedy)
    body = "".join(_table(folder, table) for folder, table in found)
    page = (
        "<!doctype html><html lang='en'><meta charset='utf-8'><title>The paper's tables</title>"
        f"<style>{_STYLE}</style><body><h1>The paper's tables, as run here</h1>"
        f"<p class='note'>{html.escape(NOTE)}</p>{body}</body></html>\n"
    )
    path = results / "report.html"
    with writing(results):
        write_atomically(path, page.encode())
    return path


def _tables(results: Path) -> list[Path]:
    """The JSON files of the tables below a folder, by table, then by budget."""
    return sorted(path for name in COMPARABLE for path in results.glob(f"*/{name}.json"))


def _table(folder: Path, results: dict[str, Any]) -> str:
    budget = results["budget"]
    parts = [
        f"<h2>{html.escape(results['title'])}, budget {budget}</h2>",
        _paragraph(results["caption"]),
        _paragraph(COMPARABLE[budget]),
    ]
    for column in results["columns"]:
        parts += [
            f"<h3>{html.escape(column['column'])}</h3>",
            _paragraph(setting(column)),
            _grid(*table_of(column)),
        ]
        if column["claims"]:
            parts += [_words(column), _grid(*claims_of(column))]
    parts.append(_picture(folder / results_name(budget, "curves.png")))
    for column in results["columns"]:
        for row in column["rows"]:
            if "samples" in row:
                picture = _picture(folder / row["samples"])
                caption = f"<figcaption>Samples: {html.escape(row['label'])}</figcaption>"
                parts.append(f"<figure>{picture}{caption}</figure>")
    if results["left_out"]:
        parts.append(_paragraph(f"Not counted: {'; '.join(results['left_out'])}."))
    return "".join(parts)


def _words(column: dict[str, Any]) -> str:
    """The claims in words."""
    items = "".join(
        f"<li>{html.escape(claim['words'])}: <b class='{claim['verdict']}'>{claim['verdict']}</b>"
        for claim in column["claims"]
    )
    return f"<ul>{items}</ul>"


def _paragraph(text: str) -> str:
    return f"<p>{html.escape(text)}</p>"


def _grid(head: list[str], rows: list[list[str]]) -> str:
    def line(tag: str, cells: list[str]) -> str:
        return f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells)}</tr>"

    return f"<table>{line('th', head)}{''.join(line('td', row) for row in rows)}</table>"


def _picture(path: Path) -> str:
    if not path.exists():
        return ""
    data = base64.b64encode(path.read_bytes()).decode()
    return f"<img alt='' src='data:image/png;base64,{data}'>"
