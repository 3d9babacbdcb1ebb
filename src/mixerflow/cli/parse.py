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

from mixerflow.cli.flags import choose, concrete, real
from mixerflow.errors import ConfigError

T = TypeVar("T")


def parse(
    kind: type[T],
    arguments: list[str],
    *,
    prog: str,
    default: T | Any = tyro.MISSING_NONPROP,  # noqa: ANN401
) -> T:
    """An instance of the dataclass `kind` from command-line flags.

    Args:
        kind: whose fields are the flags; nested dataclasses give ``--part.field``, parts as
            `mixerflow.cli.flags` has them.
        arguments: what follows the command.
        prog: the command, for the help text.
        default: where values that are not given come from.

    Raises:
        ConfigError: an unknown flag (names the nearest) or a value of the wrong kind.
    """
    shown: Any = default
    if default is not tyro.MISSING_NONPROP:
        default, arguments = choose(default, arguments)
        kind, shown = concrete(default)
    known = ["--help", *_flags(kind)]
    for argument in arguments:
        flag = argument.split("=", 1)[0]
        if flag.startswith("--") and flag.replace("_", "-") not in known:
            near = _nearest(flag.replace("_", "-"), known)
            remedy = f"did you mean {near[0]}?" if near else f"see {prog} --help"
            raise ConfigError("no such flag", flag, remedy)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            parsed = tyro.cli(kind, args=arguments, prog=prog, default=shown)
    except SystemExit as end:
        if not end.code:
            raise
        raise ConfigError(_plain(said.getvalue()), prog, f"see {prog} --help") from None
    return parsed if default is tyro.MISSING_NONPROP else real(parsed, default)


def _nearest(flag: str, known: list[str]) -> list[str]:
    """Known flags that may be meant: by the last word, so that none is near for its part alone."""
    leaves = {each: each.rpartition(".")[2] for each in known}
    leaf = flag.rpartition(".")[2]
    like = difflib.get_close_matches(leaf, leaves.values(), n=1, cutoff=0.6)
    return [each for each in known if like and leaves[each] == like[0]]


def _flags(kind: type, prefix: str = "--") -> Iterator[str]:
    """Every long flag that tyro makes of a dataclass."""
    hints, notes = get_type_hints(kind), get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        named = [getattr(n, "name", None) for n in getattr(notes[field.name], "__metadata__", ())]
        name, hint = next(filter(None, named), field.name).replace("_", "-"), hints[field.name]
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            yield from _flags(hint, f"{prefix}{name}.")
            continue
        yield f"{prefix}{name}"
        if hint is bool:
            yield f"{prefix}no-{name}"


def _plain(boxed: str) -> str:
    """Tyro's boxed message as words in a row: of a wrong value, its flag and what was given."""
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


def data_of(header: dict[str, Any], named: str | None) -> str:
    """What `mixerflow.data.load` takes: as named, or what the run of this ``run.json`` was given.

    Raises:
        ConfigError: neither says.
    """
    spec = named or (header.get("source") or {}).get("data")
    if spec is None:
        raise ConfigError("no images named", "--data", "name a folder, a file or a set")
    return spec
