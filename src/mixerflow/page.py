"""Self-contained HTML pages of text, tables and pictures, and the plots on them."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mixerflow.errors import printable
from mixerflow.runs.files import write_atomically, writing

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 68rem; margin: 2rem auto;
       padding: 0 1rem }
h1 { font-size: 1.6rem } h2 { font-size: 1.3rem; margin-top: 2.5rem } h3 { font-size: 1.05rem }
img { max-width: 100% } img.pixels { image-rendering: pixelated }
figure { display: inline-block; margin: .5rem; width: 15rem }
figcaption, p.note { color: #666; font-size: .9rem } .big { font-size: 2rem; font-weight: 600 }
table { border-collapse: collapse; margin: .8rem 0 } th { text-align: left }
td, th { padding: .15rem 1rem .15rem 0; vertical-align: top; font-size: .9rem }
.holds { color: #176117 } .fails { color: #a11 } .undecided { color: #777 }
"""


def write(path: Path, title: str, body: Iterable[str]) -> Path:
    """Write a page of HTML fragments and return its path."""
    page = (
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{escape(title)}</title>"
        f"<style>{_STYLE}</style><body>{''.join(body)}</body></html>\n"
    )
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, page.encode("utf-8", "backslashreplace"))
    return path


def escape(text: str) -> str:
    """Return a text for a page: no markup, and no sign that hides or that no file can hold."""
    return html.escape(printable(text))


def heading(text: str, level: int = 2) -> str:
    """Return a heading: level 1 for the page, 2 for a section, 3 within a section."""
    return f"<h{level}>{escape(text)}</h{level}>"


def paragraph(text: str) -> str:
    """Return a paragraph."""
    return f"<p>{escape(text)}</p>"


def note(text: str) -> str:
    """Return a small grey paragraph."""
    return f"<p class='note'>{escape(text)}</p>"


def items(items: Iterable[tuple[str, str]]) -> str:
    """Return a list of texts, each with a word that is printed bold and is its CSS class too."""
    lines = (f"<li>{escape(text)}: <b class='{word}'>{word}</b>" for text, word in items)
    return f"<ul>{''.join(lines)}</ul>"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; an empty head has no line."""
    lines = [("th", head)] if head else []
    lines += [("td", row) for row in rows]
    cells = ("".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in line) for tag, line in lines)
    return f"<table>{''.join(f'<tr>{line}</tr>' for line in cells)}</table>"


def picture(png: bytes, kind: str = "pixels", caption: str = "") -> str:
    """Return a PNG file as an image; the kind `pixels` is shown unsmoothed, `plot` smoothed."""
    data = base64.b64encode(png).decode()
    image = f"<img class='{kind}' alt='' src='data:image/png;base64,{data}'>"
    if not caption:
        return image
    return f"<figure>{image}<figcaption>{escape(caption)}</figcaption></figure>"


def points_plot(
    curves: Mapping[str, Sequence[tuple[float, float, float | None]]],
    levels: Mapping[str, float],
    *,
    title: str,
    label: str,
    across: str = "layer",
) -> bytes:
    """Draw a figure against a number, such as the depth of a layer, as PNG.

    Args:
        curves: name -> points, each the number, the figure, and its standard error or None.
        levels: name -> a figure that has no such number, drawn as a broken line.
        title: of the plot.
        label: what the figure is.
        across: what the number is.
    """
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    axes = figure.subplots()
    for name, points in curves.items():
        depths, values, errors = zip(*points, strict=True)
        bars = [0.0 if error is None else error for error in errors]
        axes.errorbar(depths, values, yerr=bars, fmt="o-", ms=4, lw=1.4, capsize=2, label=name)
    for number, (name, value) in enumerate(levels.items()):
        axes.axhline(value, color="0.4", ls=("--", ":")[number % 2], lw=1, label=name)
    axes.set_xlabel(across)
    axes.set_ylabel(label)
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return png_of(figure)


def finish_plot(axes: Axes, low: float, high: float) -> None:
    """Show `low` to `high` with a margin of 5 %, a grid, and the number of steps below."""
    margin = 0.05 * (high - low) + 0.01
    axes.set_ylim(low - margin, high + margin)
    axes.set_xlabel("step")
    axes.grid(alpha=0.3)


def png_of(figure: Figure) -> bytes:
    """Return a figure as a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
