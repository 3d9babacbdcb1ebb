"""Mistakes that are known before a command's module, and with it torch, is imported."""

from __future__ import annotations

import difflib
import itertools
import os
from collections.abc import Iterable
from pathlib import Path

from mixerflow.cli import pages
from mixerflow.cli.paths import check_run_name, is_run, require_run
from mixerflow.errors import ConfigError, nearest
from mixerflow.named import is_archive

_OF_RECIPES = ("train", "info")
BRINGING = ("evaluate", "classify", "outliers", "probe", "sample", "restore", "publish")
"""Commands whose first word is a run or weights, and which write results into its folder."""
_OF_RUNS = (*BRINGING, "report", "score", "view", "compress")
_OF_IMAGES = (*_OF_RUNS, "train")


def refuse(command: str, words: list[str]) -> None:
    """Raise what the command would raise for an unknown recipe or flag, or for a missing path.

    What is not kept yet is left to the command.
    """
    if {"-h", "--help"} & set(words):
        return
    name = words[0] if words and not words[0].startswith("-") else ""
    names = pages.read("recipes")
    if command in _OF_RECIPES and name and names and name not in names and not is_archive(name):
        check_run_name(name)
        if not is_run(Path(name)):
            raise ConfigError("no such recipe", name, nearest(name, names, cutoff=0.4))
    prog = f"mixerflow {command} {name}" if command in _OF_RECIPES else f"mixerflow {command}"
    _refuse_flags(words, prog)
    if command in _OF_RUNS and name:
        require_run(Path(name), "run")
    images = value_of("--data", words) if command in _OF_IMAGES else ""
    if images and not os.path.lexists(images):
        from mixerflow.data.sources import require_data  # takes a fifth of a second

        require_data(images)


def _refuse_flags(words: list[str], prog: str) -> None:
    known = pages.read("flags", prog) or {}
    for flag in unknown_flags(words, known["flags"]) if known else ():
        last = flag.rpartition(".")[2].removeprefix("--").removeprefix("no-").replace("-", "_")
        if "." not in flag or last not in known["settings"]:  # of no part that may be chosen
            raise no_such_flag(flag, known["flags"], prog)


def value_of(flag: str, words: list[str]) -> str:
    """Return the last value of a flag, as the parser does; empty without one."""
    value = ""
    for word, after in itertools.pairwise([*words, ""]):
        if word == flag:
            value = after
        elif word.startswith(f"{flag}="):
            value = word.partition("=")[2]
    return value


def unknown_flags(words: Iterable[str], flags: Iterable[str]) -> list[str]:
    """Return the words that look like flags, and are none of `flags`."""
    known = {"--help", *flags}
    given = [word.split("=", 1)[0] for word in words]
    return [w for w in given if w.startswith("--") and w.replace("_", "-") not in known]


def no_such_flag(flag: str, flags: Iterable[str], prog: str, choice: str = "") -> ConfigError:
    """Return the error for an unknown flag, with the nearest one, or with a given remedy."""
    spelled = flag.replace("_", "-")
    if spelled.startswith("--no-"):  # of a part's setting, "no" stands after the part
        part, dot, setting = spelled.removeprefix("--no-").rpartition(".")
        spelled = f"--{part}{dot}no-{setting}"
    near = [spelled] if spelled in flags else _nearest(spelled, [*flags, "--help"])
    remedy = f"did you mean {near[0]}?" if near else f"see {prog} --help"
    return ConfigError("no such flag", flag, choice or remedy)


def _nearest(flag: str, flags: list[str]) -> list[str]:
    """Return the flags whose last word is like that of an unknown one."""
    last_words = {each: each.rpartition(".")[2] for each in flags}
    last_word = flag.rpartition(".")[2]
    like = difflib.get_close_matches(last_word, last_words.values(), n=1, cutoff=0.75)
    return [each for each in flags if last_words[each] in like]
