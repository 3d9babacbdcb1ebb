"""Self-contained HTML pages of text, tables and pictures, for wide and narrow screens."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from mixerflow.errors import printable
from mixerflow.runs.files import write_atomically, writing

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 68rem;
       margin: 2rem auto; padding: 0 1rem; overflow-wrap: anywhere }
h1 { font-size: 1.6rem } h2 { font-size: 1.3rem; margin-top: 2.5rem } h3 { font-size: 1.05rem }
a { color: #0b5394 } nav li { display: inline-block; margin-right: 1rem; line-height: 2 }
nav ul { padding: 0; margin: .5rem 0 } :focus-visible { outline: 3px solid #0b5394 }
img { max-width: 100%; height: auto } img.pixels { image-rendering: pixelated }
figure { display: inline-block; margin: .5rem; width: 15rem; max-width: 100%; vertical-align: top }
figcaption, p.note { color: #595959; font-size: .9rem } .big { font-size: 2rem; font-weight: 600 }
.wide { overflow-x: auto; margin: .8rem 0; overflow-wrap: normal }
table { border-collapse: collapse } th { text-align: left }
td { min-width: 4.5rem; font-variant-numeric: tabular-nums }
td, th { padding: .15rem 1rem .15rem 0; vertical-align: top; font-size: .9rem }
th[scope=row] { white-space: nowrap; font-weight: normal; color: #595959 }
th[scope=row] ~ td { overflow-wrap: anywhere; min-width: 12rem }
.holds { color: #176117 } .fails { color: #a11 } .undecided { color: #666 }
@media (max-width: 40rem) { body { margin: 1rem auto } td, th { padding-right: .6rem } }
"""


def write(path: Path, title: str, body: Iterable[str]) -> Path:
    """Write a page of HTML fragments and return its path."""
    page = (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>"
        f"<body><main>{''.join(body)}</main></body></html>\n"
    )
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, page.encode("utf-8", "backslashreplace"))
    return path


def escape(text: str) -> str:
    """Return a text for a page: no markup, and no sign that hides or that no file can hold."""
    return html.escape(printable(text))


def heading(text: str, level: int = 2) -> str:
    """Return a heading: level 1 for the page, 2 for a section, 3 within a section.

    A section can be reached by a link of `contents`.
    """
    place = f" id='{_anchor(text)}'" if level == 2 else ""
    return f"<h{level}{place}>{escape(text)}</h{level}>"


def contents(sections: Iterable[str]) -> str:
    """Return links to sections, by the texts of their headings."""
    lines = (f"<li><a href='#{_anchor(each)}'>{escape(each)}</a></li>" for each in sections)
    return f"<nav aria-label='Sections'><ul>{''.join(lines)}</ul></nav>"


def _anchor(text: str) -> str:
    return "-".join(re.findall(r"[a-z0-9]+", text.lower()))


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


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, label: str = "Table") -> str:
    """Return a table; an empty head has no line, and without one each row begins with its head.

    On a narrow screen it scrolls by itself, by keys too; `label` names it to screen readers.
    """
    line = "".join(f"<th scope='col'>{escape(cell)}</th>" for cell in head)
    lines = [f"<tr>{line}</tr>"] if head else []
    first = "td" if head else "th scope='row'"
    lines += [f"<tr>{''.join(_cells(row, first))}</tr>" for row in rows]
    frame = f"class='wide' role='region' aria-label='{escape(label)}' tabindex='0'"
    return f"<div {frame}><table>{''.join(lines)}</table></div>"


def _cells(row: Sequence[str], first: str) -> Iterable[str]:
    for tag, cell in zip((first, *["td"] * len(row)), row, strict=False):
        yield f"<{tag}>{escape(cell)}</{tag.split()[0]}>"


def picture(png: bytes, alt: str, kind: str = "pixels", caption: str = "") -> str:
    """Return a PNG file as an image; the kind `pixels` is shown unsmoothed, `plot` smoothed.

    `alt` says in words what there is to see.
    """
    data = base64.b64encode(png).decode()
    image = f"<img class='{kind}' alt='{escape(alt)}' src='data:image/png;base64,{data}'>"
    if not caption:
        return image
    return f"<figure>{image}<figcaption>{escape(caption)}</figcaption></figure>"
