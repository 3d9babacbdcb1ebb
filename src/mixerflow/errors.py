"""Errors for people: one line with the fault, its place, and the remedy.

The command line prints ``error: what: where: remedy`` and ends with the class's exit code; a
program that uses the library catches `MixerFlowError` or one of its kinds.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import ClassVar


class MixerFlowError(Exception):
    """An error that a person can correct.

    Args:
        what: the fault, in a few words.
        where: the file, folder or flag with the fault.
        remedy: the way to correct it.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, what: str, where: object = "", remedy: str = "") -> None:
        self.what = what
        self.where = str(where)
        self.remedy = remedy
        super().__init__(": ".join(part for part in (what, self.where, remedy) if part))


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


def nearest(name: str, known: Iterable[str], *, cutoff: float = 0.6) -> str:
    """Return the remedy for an unknown name: the most similar known name, or all of them."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=cutoff)
    return f"did you mean {near[0]}?" if near else f"choose one of {', '.join(known)}"


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, or its type if it has no text."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__
