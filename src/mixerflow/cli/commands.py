"""The commands: each is found by name, and an error becomes one line and an exit code."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
import warnings

from mixerflow.cli import early, known, pages
from mixerflow.errors import ConfigError, MixerFlowError, ResourceError, first_line, nearest
from mixerflow.named import is_name
from mixerflow.signals import end_quietly
from mixerflow.terminal import any_encoding, finish_output, recording, replay, say, tell
from mixerflow.version import __version__

_COMMANDS = {
    "train": ("train.main", "train a recipe on images, or resume a run"),
    "evaluate": ("evaluate.evaluate", "bits/dim of a run on images, beside PNG and WebP"),
    "classify": ("classify.main", "accuracy and calibration of a run that tells classes"),
    "score": ("score.main", "scores of many images, one row an image, as parquet or CSV"),
    "outliers": ("outliers.main", "which images are abnormal, by a threshold, and where"),
    "probe": ("probe.main", "train a linear layer on a run's features, to tell classes"),
    "sample": ("sample.sample", "draw images from a run"),
    "compress": ("compress.main", "images to one archive, losslessly, by a run's weights"),
    "decompress": ("decompress.decompress", "an archive's images to a folder or an array"),
    "restore": ("restore.restore", "restore images from missing pixels, noise or blur"),
    "report": ("report.report", "write a run's report.html"),
    "view": ("view.main", "look at a run in a browser, on a page of this machine"),
    "publish": ("publish.publish", "write a run's weights as one small file with a card"),
    "reproduce": ("reproduce.main", "run a table of the paper at a budget, and test its claims"),
    "info": ("info.main", "list the recipes, or show one as a chain, or what an archive holds"),
}
"""Command -> its module and function ``(arguments) -> exit code``, and a line of help."""
_SIZES = ("--train.batch", "--batch", "--number")
"""Flags that save memory."""


def run(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit code; None stands for the program's own arguments.

    Codes: 0 done, 2 configuration, 3 data, 4 checkpoint, 5 resources, 6 non-finite training,
    130 and 143 stopped by SIGINT and SIGTERM with everything saved. A command prints its result
    before it writes any copy of it. A copy that nobody asked for and that cannot be written is a
    warning, and the code stays 0; a file that a flag names and that cannot be written is code 5.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    known.flags = set()
    pages.active = "mixerflow.registry" not in sys.modules
    with any_encoding():
        try:
            code = _run(words, debug=debug)
        except SystemExit:  # help, or SIGTERM
            _finish(0)
            raise
        finally:
            if arguments is None:
                end_quietly()
        return _finish(code)


def _run(words: list[str], *, debug: bool) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        say(*_usage().splitlines())
        return 0
    if words[0] in ("-V", "--version"):
        say(f"mixerflow {__version__}")
        return 0
    warnings.showwarning = _print_warning
    command, *rest = words
    try:
        if command not in _COMMANDS:
            raise ConfigError("no such command", command, nearest(command, _COMMANDS))
        _refuse_empty(command, rest)
        return _work(command, rest)
    except MixerFlowError as error:
        problem, cause = error, error
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        problem, cause = _as_one_line(error), error
    if debug:
        for part in traceback.format_exception(cause):
            for line in part.splitlines():
                tell(line)
    return _report(problem)


def _work(command: str, words: list[str]) -> int:
    """Do the work of a command, or print the page that it has printed before."""
    page = pages.page_of(command, words) if pages.active else None
    if page and (text := pages.read(*page)) is not None:
        replay(text)
        return 0
    early.refuse(command, words)
    words = _brought(command, words)
    module, function = _COMMANDS[command][0].split(".")
    work = getattr(importlib.import_module(f"mixerflow.cli.{module}"), function)
    if page is None:
        return work(words)
    code = 1
    with recording() as printed:
        try:
            code = work(words)
        except SystemExit as end:
            code = 1 if end.code else 0
            raise
        finally:
            if code == 0:
                pages.keep("".join(printed), *page)
    return code


def _brought(command: str, words: list[str]) -> list[str]:
    """Bring weights that a command names as its run to a local folder, and return its path.

    Of several processes of this machine each may bring them; the first that has them is used.
    """
    if command not in early.BRINGING or not words or {"-h", "--help"} & set(words):
        return words
    if not is_name(words[0]):
        return words
    from mixerflow.runs.located import bring  # which imports torch

    folder, line = bring(words[0])
    if line and os.environ.get("RANK", "0") == "0":
        tell(line)
    return [str(folder), *words[1:]]


def _report(problem: MixerFlowError) -> int:
    """Print an error, in one of the run's processes, and return its exit code."""
    line = f"error: {problem.for_command(known.flags) if known.flags else _with_flags(problem)}"
    if _is_first_to_report(line):
        tell(line)
    return problem.exit_code


def _with_flags(problem: MixerFlowError) -> str:
    """The line of an error before the flags of a command are known: it may name any."""
    return ": ".join(part for part in (problem.what, problem.where, problem.remedy) if part)


def _finish(code: int) -> int:
    """Print what is left of the result; an output that cannot be written is an error."""
    try:
        finish_output()
    except BrokenPipeError:  # the reader of our output has closed it
        return code
    except ResourceError as error:
        return code or _report(error)
    return code


def _refuse_empty(command: str, words: list[str]) -> None:
    """Refuse an empty word: as a path it would be the present folder."""
    before = command
    for word in words:
        flag, equals, value = word.partition("=")
        if not word.strip() or (flag.startswith("--") and equals and not value.strip()):
            where = before if not word.strip() else flag
            raise ConfigError("an empty value", where, "give one, or leave it out")
        before = flag if flag.startswith("-") else command


def _is_first_to_report(line: str) -> bool:
    """Whether this process prints a line that other processes of the run may want to print too."""
    processes = sys.modules.get("mixerflow.processes")  # absent while nothing has needed torch
    if processes is None:
        return os.environ.get("RANK", "0") == "0"
    return processes.first_to_report(line)


def _usage() -> str:
    lines = "\n".join(f"  {name:<10} {words}" for name, (_, words) in _COMMANDS.items())
    return f"""usage: mixerflow COMMAND ... [--debug]

Image models with exact likelihood: train, score, sample and look.

{lines}

mixerflow COMMAND --help says more; --debug shows where an error comes from.
A first run:  mixerflow train mixerflow-tiny --minutes 3"""


def _as_one_line(error: Exception) -> MixerFlowError:
    """Wrap an unforeseen error in one that prints as a single line."""
    text = first_line(error)
    short = "out of memory" in text or "can't allocate memory" in text
    if isinstance(error, MemoryError) or short:
        sizes = [flag for flag in _SIZES if flag in known.flags]
        remedy = f"use a smaller {' or '.join(sizes)}" if sizes else "end other programs"
        return ResourceError("out of memory", "", remedy)
    where = f"{type(error).__name__}: {text}"
    return MixerFlowError("something unforeseen", where, "run again with --debug and report it")


def _print_warning(message: Warning | str, *_place: object, **_file: object) -> None:
    if os.environ.get("RANK", "0") == "0":
        tell(f"warning: {message}")
