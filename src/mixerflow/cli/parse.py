"""Flags from dataclasses, with errors in one line."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_type_hints

import tyro

from mixerflow.cli import known, pages
from mixerflow.cli.early import no_such_flag, unknown_flags
from mixerflow.cli.flags import choose_parts, first_choice, for_tyro, from_tyro
from mixerflow.cli.paths import check_path, check_run_path, require_run
from mixerflow.errors import ConfigError
from mixerflow.registry import setting_names
from mixerflow.terminal import say

T = TypeVar("T")
_POSITIONAL = get_args(tyro.conf.Positional[int])[1]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComputingArguments:
    """What every command has that computes."""

    threads: Annotated[int, tyro.conf.arg(aliases=["-j"])] = 0
    """CPU threads of each process; 0 for all. A run with one thread repeats to the last bit."""


def parse(
    kind: type[T],
    arguments: list[str],
    *,
    prog: str,
    default: T | Any = tyro.MISSING_NONPROP,  # noqa: ANN401
) -> T:
    """Make an instance of the dataclass `kind` from the words after the command `prog`.

    The fields of `kind` are the flags, and `default` gives the values of absent flags. Nested
    dataclasses give ``--part.field``; parts have the flags of `mixerflow.cli.flags`. The word
    ``none`` is the value None of a setting that may be None. Paths are checked, and torch gets the
    number of threads of `ComputingArguments`.

    Raises:
        ConfigError: an unknown flag (names the nearest), a value of the wrong kind, or a path that
            cannot be one.
    """
    shown: Any = default
    given = default
    if default is not tyro.MISSING_NONPROP:
        default, arguments = choose_parts(default, arguments)
        kind, shown = for_tyro(default)
    arguments = _spelled_out(kind, arguments)
    flags = dict(_flags(kind))
    if default is given or default == given:  # without other parts, which have other flags
        pages.keep({"flags": [*flags], "settings": setting_names()}, "flags", prog)
    for flag in unknown_flags(arguments, flags):
        choice = first_choice(given, flag.removeprefix("--").replace("-", "_"))
        raise no_such_flag(flag, flags, prog, choice)
    parsed = _by_tyro(kind, _with_none(arguments, flags), prog, shown)
    known.flags = {*flags, "--help", "--debug"}
    _check_paths(parsed, flags)
    if isinstance(parsed, ComputingArguments):
        set_threads(parsed.threads)
    made: Any = parsed
    return made if default is tyro.MISSING_NONPROP else from_tyro(made, default)


def _by_tyro(kind: type[T], arguments: list[str], prog: str, default: object) -> T:
    printed, helped = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stderr(printed), contextlib.redirect_stdout(helped):
            return tyro.cli(kind, args=arguments, prog=prog, default=default)  # pyright: ignore
    except SystemExit as end:
        if end.code != 2:  # the help, or a signal while flags are read
            say(*helped.getvalue().splitlines())
            raise
        raise ConfigError(_one_line(printed.getvalue()), prog, f"see {prog} --help") from None


def _with_none(arguments: list[str], flags: dict[str, Any]) -> list[str]:
    """Spell the value None as tyro does; where a text may stand, `none` is a text."""
    words, before = [], ""

    def may_be_none(flag: str) -> bool:
        kinds = get_args(flags.get(flag))
        return type(None) in kinds and str not in kinds

    for argument in arguments:
        flag, equals, value = argument.partition("=")
        if argument.lower() == "none" and may_be_none(before):
            argument = "None"
        elif equals and value.lower() == "none" and may_be_none(flag):
            argument = f"{flag}=None"
        words.append(argument)
        before = argument.replace("_", "-")
    return words


def set_threads(count: int) -> None:
    """Let torch use `count` CPU threads; 0 leaves the number as torch has chosen it."""
    if not 0 <= count <= 1024:
        raise ConfigError(f"{count} threads", "--threads", "give 1 to 1024, or 0 for all")
    if count:
        import torch

        torch.set_num_threads(count)


def _check_paths(parsed: object, flags: dict[str, Any]) -> None:
    """Refuse what can be no path; a run must exist."""
    fields = dataclasses.fields(parsed)  # pyright: ignore[reportArgumentType]
    for field in fields:
        value = getattr(parsed, field.name)
        if isinstance(value, Path):
            flag = f"--{field.name}"
            where = flag if flag in flags else field.name
            check_path(value, where)
            if field.name == "run":
                require_run(value, where)
            elif field.name == "weights":  # of a run that resumes they may be gone
                check_run_path(value)


def _flags(kind: type, prefix: str = "--") -> Iterator[tuple[str, Any]]:
    """Yield every long flag that tyro makes of a dataclass, with its type."""
    hints, notes = get_type_hints(kind), get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        marks = getattr(notes[field.name], "__metadata__", ())
        if _POSITIONAL in marks:
            continue
        named = [getattr(mark, "name", None) for mark in marks]
        name, hint = next(filter(None, named), field.name).replace("_", "-"), hints[field.name]
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            yield from _flags(hint, f"{prefix}{name}.")
            continue
        yield f"{prefix}{name}", hint
        if hint in (bool, bool | None):
            yield f"{prefix}no-{name}", hint


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
    _title, *lines = [line for line in lines if line.strip("-")] or [""]
    absent = [
        "run" if line == "PATH" else line
        for before, line in itertools.pairwise(lines)
        if before.startswith("Missing from ") or before.endswith("(required)")
    ]
    if absent:  # the line after the last one says where the help is
        return f"no {' and no '.join(line for line in absent if 'help' not in line)} given"
    words = " ".join(line for line in lines if "help" not in line)
    choice = re.search(r"invalid choice '([^']*)' for argument '([^']*)'.*?\((.*?)\)", words)
    if choice:
        names = choice[3].replace("'", "")
        words = choice[1].split(",")  # of a list the first that is wrong
        word = next((word for word in words if word not in names.split(", ")), choice[1])
        which = "whose words are" if len(words) > 1 else "which is one of"
        return f"{word!r} does not fit {choice[2]}, {which} {names}"
    wrong = re.search(r"Error parsing (\S+?):.*?'([^']*)'", words)
    if wrong:
        return f"{wrong[2]!r} does not fit {wrong[1]}"
    return words.rstrip(".") or "a flag has a value that does not fit"
