"""Flags from dataclasses, with errors in one line."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import io
import re
from collections.abc import Iterator
from typing import Any, TypeVar, get_type_hints

import tyro

from mixerflow.cli.flags import choose_parts, for_tyro, from_tyro
from mixerflow.errors import ConfigError

T = TypeVar("T")


def parse(
    kind: type[T],
    arguments: list[str],
    *,
    prog: str,
    default: T | Any = tyro.MISSING_NONPROP,  # noqa: ANN401
) -> T:
    """Make an instance of the dataclass `kind` from the words after the command `prog`.

    The fields of `kind` are the flags, and `default` gives the values of absent flags. Nested
    dataclasses give ``--part.field``; parts have the flags of `mixerflow.cli.flags`.

    Raises:
        ConfigError: an unknown flag (names the nearest) or a value of the wrong kind.
    """
    shown: Any = default
    if default is not tyro.MISSING_NONPROP:
        default, arguments = choose_parts(default, arguments)
        kind, shown = for_tyro(default)
    known = ["--help", *_flags(kind)]
    arguments = _spelled_out(kind, arguments)
    for argument in arguments:
        flag = argument.split("=", 1)[0]
        if flag.startswith("--") and flag.replace("_", "-") not in known:
            near = _nearest(flag.replace("_", "-"), known)
            remedy = f"did you mean {near[0]}?" if near else f"see {prog} --help"
            raise ConfigError("no such flag", flag, remedy)
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            parsed = tyro.cli(kind, args=arguments, prog=prog, default=shown)
    except SystemExit as end:
        if not end.code:
            raise
        raise ConfigError(_one_line(printed.getvalue()), prog, f"see {prog} --help") from None
    return parsed if default is tyro.MISSING_NONPROP else from_tyro(parsed, default)


def _nearest(flag: str, known: list[str]) -> list[str]:
    """Return the known flags whose last word is like that of an unknown one."""
    last_words = {each: each.rpartition(".")[2] for each in known}
    last_word = flag.rpartition(".")[2]
    like = difflib.get_close_matches(last_word, last_words.values(), n=1, cutoff=0.6)
    return [each for each in known if last_words[each] in like]


def _flags(kind: type, prefix: str = "--") -> Iterator[str]:
    """Yield every long flag that tyro makes of a dataclass."""
    hints, notes = get_type_hints(kind), get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        named = [getattr(n, "name", None) for n in getattr(notes[field.name], "__metadata__", ())]
        name, hint = next(filter(None, named), field.name).replace("_", "-"), hints[field.name]
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            yield from _flags(hint, f"{prefix}{name}.")
            continue
        yield f"{prefix}{name}"
        if hint in (bool, bool | None):
            yield f"{prefix}no-{name}"


def _spelled_out(kind: type, arguments: list[str]) -> list[str]:
    """Give ``--flag`` and ``--no-flag`` of a setting that may be absent the value tyro wants."""
    words = {}
    for name, hint in get_type_hints(kind).items():
        if hint == bool | None:
            flag = name.replace("_", "-")
            words |= {f"--{flag}": [f"--{flag}", "True"], f"--no-{flag}": [f"--{flag}", "False"]}
    return [word for each in arguments for word in words.get(each, [each])]


def _one_line(boxed: str) -> str:
    """Put tyro's boxed message in one line; for a wrong value, the flag and the value."""
    lines = [line.strip(" │╭╮╰╯─") for line in boxed.splitlines()]
    words = " ".join(line for line in lines if line and "help" not in line)
    choice = re.search(r"invalid choice '([^']*)' for argument '([^']*)'.*?\((.*?)\)", words)
    if choice:
        names = choice[3].replace("'", "")
        return f"{choice[1]!r} does not fit {choice[2]}, which is one of {names}"
    wrong = re.search(r"Error parsing (\S+?):.*?'([^']*)'", words)
    if wrong:
        return f"{wrong[2]!r} does not fit {wrong[1]}"
    return words.removeprefix("Parsing error ") or "a flag has a value that does not fit"
