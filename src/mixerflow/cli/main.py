"""Which command, which exit code, and one line when something is wrong."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
import warnings

from mixerflow.errors import ConfigError, MixerFlowError, ResourceError, first_line, nearest
from mixerflow.version import __version__

COMMANDS = {
    "train": "train a recipe on images, or go on with a run",
    "evaluate": "bits/dim of a run on images, beside PNG and WebP",
    "sample": "draw images from a run",
    "report": "write a run's report.html",
    "publish": "write a run's weights as one small file with a card",
    "reproduce": "run a table of the paper at a budget, and test its claims",
    "info": "list the recipes, or show one as a chain with shapes and parameters",
}
"""Command -> what it does; each is a module here with a function ``main(arguments) -> int``."""


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
    warnings.showwarning = _one_line_warning
    try:
        return _run(arguments[0], arguments[1:])
    except MixerFlowError as error:
        problem = error
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of our output has seen enough
        sys.stderr.close()
        return 0
    except MemoryError:
        problem = ResourceError("out of memory", "", "use a smaller --train.batch or --batch")
    except Exception as error:
        if debug:
            raise
        problem = _unexpected(error)
    if debug:
        traceback.print_exception(problem)
    if _says(f"error: {problem}"):
        print(f"error: {problem}", file=sys.stderr)
    return problem.exit_code


def _says(line: str) -> bool:
    """Whether this process is to say a line that others of the same run may have to say too."""
    processes = sys.modules.get("mixerflow.processes")  # not there: nothing needed torch so far
    if processes is None:
        return os.environ.get("RANK", "0") == "0"
    return processes.first_to_report(line)


def _run(command: str, arguments: list[str]) -> int:
    if command not in COMMANDS:
        raise ConfigError("no such command", command, nearest(command, COMMANDS))
    return importlib.import_module(f"mixerflow.cli.{command}").main(arguments)


def _usage() -> str:
    lines = [f"  {name:<10} {what}" for name, what in COMMANDS.items()]
    return "\n".join(
        [
            "usage: mixerflow COMMAND ... [--debug]",
            "",
            "Image models with exact likelihood: train, score, sample and look.",
            "",
            *lines,
            "",
            "mixerflow COMMAND --help says more; --debug shows where an error comes from.",
            "A first run:  mixerflow train mixerflow-tiny --minutes 3",
        ]
    )


def _unexpected(error: Exception) -> MixerFlowError:
    """An error nobody foresaw, still in one line."""
    text = first_line(error)
    if "out of memory" in text or "can't allocate memory" in text:
        return ResourceError("out of memory", "", "use a smaller --train.batch or --batch")
    where = f"{type(error).__name__}: {text}"
    return MixerFlowError("something unforeseen", where, "run again with --debug and report it")


def _one_line_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: object = None,
    line: str | None = None,
) -> None:
    if os.environ.get("RANK", "0") == "0":
        print(f"warning: {message}", file=sys.stderr)
