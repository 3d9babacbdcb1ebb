"""The entry point: it finds the command, and turns an error into one line and an exit code."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
import warnings

from mixerflow.errors import ConfigError, MixerFlowError, ResourceError, first_line, nearest
from mixerflow.version import __version__

_COMMANDS = {
    "train": ("train.main", "train a recipe on images, or resume a run"),
    "evaluate": ("evaluate.evaluate", "bits/dim of a run on images, beside PNG and WebP"),
    "sample": ("sample.sample", "draw images from a run"),
    "report": ("sample.report", "write a run's report.html"),
    "publish": ("evaluate.publish", "write a run's weights as one small file with a card"),
    "reproduce": ("reproduce.main", "run a table of the paper at a budget, and test its claims"),
    "info": ("info.main", "list the recipes, or show one as a chain with shapes and parameters"),
}
"""Command -> its module and function ``(arguments) -> exit code``, and a line of help."""


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit code.

    Codes: 0 done, 2 configuration, 3 data, 4 checkpoint, 5 resources, 6 non-finite training,
    130 and 143 stopped by SIGINT and SIGTERM with everything saved.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0
    if arguments[0] in ("-V", "--version"):
        print(f"mixerflow {__version__}")
        return 0
    warnings.showwarning = _print_warning
    command, *rest = arguments
    try:
        if command not in _COMMANDS:
            raise ConfigError("no such command", command, nearest(command, _COMMANDS))
        module, function = _COMMANDS[command][0].split(".")
        return getattr(importlib.import_module(f"mixerflow.cli.{module}"), function)(rest)
    except MixerFlowError as error:
        problem = error
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of our output has closed it
        sys.stderr.close()
        return 0
    except MemoryError:
        problem = ResourceError("out of memory", "", "use a smaller --train.batch or --batch")
    except Exception as error:
        if debug:
            raise
        problem = _as_one_line(error)
    if debug:
        traceback.print_exception(problem)
    if _is_first_to_report(f"error: {problem}"):
        print(f"error: {problem}", file=sys.stderr)
    return problem.exit_code


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
    if "out of memory" in text or "can't allocate memory" in text:
        return ResourceError("out of memory", "", "use a smaller --train.batch or --batch")
    where = f"{type(error).__name__}: {text}"
    return MixerFlowError("something unforeseen", where, "run again with --debug and report it")


def _print_warning(message: Warning | str, *_place: object, **_file: object) -> None:
    if os.environ.get("RANK", "0") == "0":
        print(f"warning: {message}", file=sys.stderr)
