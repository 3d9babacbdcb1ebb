"""Errors for people: one line with the fault, its place, and the remedy.

The command line prints ``error: what: where: remedy`` and ends with the class's exit code; a
program that uses the library catches `MixerFlowError` or one of its kinds.

Whoever raises an error names settings by their flags, ``--importance-samples``. A program reads the
argument's name in their place, ``importance_samples``; a command, the flags that it has itself.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, ClassVar

_FLAG = re.compile(r"(`[^`]*`)|(?<![^\s'\"(,;:])--([a-z][a-z-]*(?:\.[a-z-]+)*)")
_LONGEST = 1000
_ARGUMENTS = {"from": "begin"}  # flags whose argument has another name


class MixerFlowError(Exception):
    """An error that a person can correct.

    Args:
        what: the fault, in a few words.
        where: the file, folder or flag with the fault.
        remedy: the way to correct it.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, what: str, where: object = "", remedy: str = "") -> None:
        what = what if len(what) <= _LONGEST else f"{what[:_LONGEST]}..."  # quotes what was read
        self.what, self.where, self.remedy = what, str(where), remedy
        self._is_path = isinstance(where, Path)
        super().__init__(self._line(()))

    def __reduce__(self) -> tuple[Any, ...]:  # on its way to another process of the run
        where = Path(self.where) if self._is_path else self.where
        return type(self), (self.what, where, self.remedy)

    def for_command(self, flags: Collection[str]) -> str:
        """Return the error's line for a command with these flags.

        Of the remedies between which the error leaves the choice, "..., or ...", those that need a
        flag of another command are left out, unless no other is there.
        """
        return self._line(flags)

    def _line(self, flags: Collection[str]) -> str:
        ways = re.split(r",? or (?!more\b)", self.remedy)
        possible = [way for way in ways if all(f"--{f}" in flags for f in _flags_in(way))]
        choose = flags and len(possible) not in (0, len(ways))
        remedy = " or ".join(possible).rstrip(";") if choose else self.remedy
        where = self.where if self._is_path else _named(self.where, flags)
        parts = (_named(self.what, flags), where, _named(remedy, flags))
        return printable(": ".join(part for part in parts if part))


def _flags_in(text: str) -> list[str]:
    """Return the flags that a text names, but for those of a whole command in backquotes."""
    return [flag for _, flag in _FLAG.findall(text) if flag]


def _named(text: str, flags: Collection[str]) -> str:
    """Name the settings of a text by flags where a command has them, and as arguments elsewhere."""

    def name(match: re.Match[str]) -> str:
        command, flag = match.groups()
        if command or f"--{flag}" in flags:
            return match[0]
        start, dot, last = flag.rpartition(".")
        on = not last.startswith("no-")
        argument = start + dot + (last if on else last.removeprefix("no-"))
        return _ARGUMENTS.get(argument, argument.replace("-", "_")) + ("" if on else "=False")

    return _FLAG.sub(name, text)


class ConfigError(MixerFlowError):
    """A setting is wrong, or two settings do not fit together."""

    exit_code = 2


class DataError(MixerFlowError):
    """Images could not be found, read or used."""

    exit_code = 3


class CheckpointError(MixerFlowError):
    """A checkpoint is missing, damaged or from another model."""

    exit_code = 4


class ResourceError(MixerFlowError):
    """Memory or disk is short, a run folder is in use, or another process has died."""

    exit_code = 5


class InUseError(ResourceError):
    """Another process is writing to a folder."""


class NonFiniteError(MixerFlowError):
    """Training reached NaN or infinity and could not go on."""

    exit_code = 6


_MANY = 20
"""Names beyond which a remedy does not list them all."""


def nearest(name: str, known: Iterable[str], *, cutoff: float = 0.6) -> str:
    """Return the remedy for an unknown name: the most similar known name, or known ones."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=cutoff)
    if near:
        return f"did you mean {near[0]}?"
    few = [*known[:_MANY], "..."] if len(known) > _MANY else known
    return f"choose one of {', '.join(few)}"


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, or its type if it has no text."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def printable(text: str, *, kept: str = "") -> str:
    r"""Return a text as one line that any terminal shows as it is.

    What would act on a terminal, or hide, becomes an escape as in Python and in the shell's
    ``$'...'``: line ends, tabs, control sequences, marks that turn the direction of writing, and
    bytes of a file name that are not UTF-8 (``\xff``). Characters in `kept` stay.
    """
    return "".join(c if c in kept or c.isprintable() else _escape(c) for c in text)


def _escape(character: str) -> str:
    code = ord(character)
    if unicodedata.category(character) == "Zs":  # other spaces than the usual one are harmless
        return character
    if 0xDC80 <= code <= 0xDCFF:  # how Python keeps a byte that it could not decode
        return f"\\x{code - 0xDC00:02x}"
    if 0xD800 <= code <= 0xDFFF:
        return f"\\u{code:04x}"
    return character.encode("unicode_escape").decode()
