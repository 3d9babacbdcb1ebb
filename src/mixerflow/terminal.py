"""What the commands print: lines on stdout and stderr, and tables, safe for any terminal.

No other file prints: a line passes through `printable`, so that no file name or class name can move
the cursor, add a line or hide one, and a stream whose encoding lacks a sign shows another one.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from mixerflow.errors import ResourceError, printable

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

_ASCII = {
    **dict.fromkeys("─━═╌╍┄┅╴╶╸╺", "-"),
    **dict.fromkeys("│┃║╎╏", "|"),
    **dict.fromkeys("╭╮╰╯┌┐└┘├┤┬┴┼╔╗╚╝╠╣╦╩╬╞╡╪┏┓┗┛┡┩╇", "+"),
    **{"±": "+-", "×": "x", "→": "->", "←": "<-", "…": "...", "−": "-", "–": "-", "—": "-"},
    **{"‘": "'", "’": "'", "“": '"', "”": '"', "•": "*", "≤": "<=", "≥": ">=", "\xa0": " "},
}
_lost: list[OSError] = []
_record: list[str] | None = None


def _spell(error: UnicodeError) -> tuple[str, int]:
    """Spell out what a stream's encoding lacks."""
    assert isinstance(error, UnicodeEncodeError)
    lacking = error.object[error.start : error.end]
    spelled = "".join(_ASCII.get(c) or printable(c) for c in lacking)
    return spelled.encode("ascii", "backslashreplace").decode(), error.end


codecs.register_error("mixerflow.spell", _spell)


@contextlib.contextmanager
def any_encoding() -> Iterator[None]:
    """Let stdout and stderr show every text, in a ``with`` block: ``+-`` for a missing ``±``."""
    streams = [s for s in (sys.stdout, sys.stderr) if hasattr(s, "reconfigure")]
    before = [s.errors for s in streams]
    for stream in streams:
        stream.reconfigure(errors="mixerflow.spell")  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        for stream, errors in zip(streams, before, strict=True):
            with contextlib.suppress(ValueError, OSError):  # closed, or its reader is gone
                stream.reconfigure(errors=errors)  # pyright: ignore[reportAttributeAccessIssue]


def say(*lines: str, at_once: bool = False) -> None:
    """Print each text as one line of the command's result, on stdout.

    A stdout that cannot be written stops no work: `finish_output` reports it at the end. `at_once`
    is for a command that goes on for long: a pipe has the lines now.
    """
    _write(sys.stdout, "".join(f"{printable(line)}\n" for line in lines), flush=at_once)


def tell(line: str) -> None:
    """Print one line beside the result, on stderr: progress, a warning, an error."""
    with contextlib.suppress(OSError, ValueError):  # nobody is left to tell
        print(printable(line), file=sys.stderr, flush=True)


@contextlib.contextmanager
def recording() -> Iterator[list[str]]:
    """Collect what is printed on stdout too, in a ``with`` block."""
    global _record
    _record = printed = []
    try:
        yield printed
    finally:
        _record = None


def replay(text: str) -> None:
    """Print on stdout what `recording` has collected."""
    _write(sys.stdout, text)


def pour(text: str) -> None:
    """Print lines of data on stdout: as they are into a file or a pipe, safe on a terminal."""
    if sys.stdout.isatty():
        say(*text.removesuffix("\n").split("\n"))
    else:
        _write(sys.stdout, text)


def show(table: RenderableType) -> None:
    """Print a table on stdout."""
    console().print(table)


def finish_output() -> None:
    """Flush stdout, once, at the end of a command.

    Raises:
        BrokenPipeError: its reader is gone.
        ResourceError: it could not be written otherwise, on a full disk for example.
    """
    _write(sys.stdout, "", flush=True)
    if not _lost:
        return
    error = _lost[0]
    _lost.clear()
    with contextlib.suppress(OSError, ValueError, AttributeError):  # what is still in the buffer
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if isinstance(error, BrokenPipeError):
        raise error
    what = f"the result could not be printed ({error.strerror})"
    raise ResourceError(what, "stdout", "free some space, or print elsewhere") from error


def console(*, stderr: bool = False) -> Console:
    """Return a console for tables and bars whose texts are shown as they are: no markup."""
    from rich.console import Console
    from rich.text import Text

    class Plain(Console):
        def render_str(self, text: str, **style: object) -> Text:
            return super().render_str(printable(text, kept="\n"), **style)  # pyright: ignore

    file: Any = None if stderr else _Stdout()
    return Plain(file=file, stderr=stderr, markup=False, emoji=False, highlight=False)


class _Stdout:
    """Stdout for a console; a failure to write it is left to `finish_output`."""

    def write(self, text: str) -> int:
        _write(sys.stdout, text)
        return len(text)

    def flush(self) -> None:
        _write(sys.stdout, "", flush=True)

    def __getattr__(self, name: str) -> object:
        return getattr(sys.stdout, name)


def quoted(*words: str | Path) -> str:
    """Return words as a shell reads them back, in one line."""
    return " ".join(_quote(str(word)) for word in words)


def _quote(word: str) -> str:
    if word == printable(word):
        return shlex.quote(word)
    return "$'" + printable(word.replace("\\", "\\\\").replace("'", "\\'")) + "'"


def _write(stream: TextIO | None, text: str, *, flush: bool = False) -> None:
    if _record is not None:
        _record.append(text)
    if stream is None or _lost:
        return
    try:
        stream.write(text)
        if flush or stream.isatty():
            stream.flush()
    except OSError as error:
        _lost.append(error)
    except ValueError:  # closed
        _lost.append(OSError(errno.EBADF, os.strerror(errno.EBADF)))
