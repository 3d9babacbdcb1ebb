"""``python -m mixerflow.launch``: torchrun for a command of mixerflow, with the command's end.

    python -m mixerflow.launch --nproc-per-node=4 train RECIPE

`torchrun` prints a traceback of its own and exits with 1, whatever the processes' own codes were.
This exits with the code of the process that failed first, after at most one line.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import signal
import sys

from mixerflow.errors import ConfigError, MixerFlowError, ResourceError, first_line
from mixerflow.terminal import tell

_REMEDY = "start the same command again: it resumes from the last checkpoint"
_HELP = "see `python -m mixerflow.launch --help`"


def main(arguments: list[str] | None = None) -> int:
    """Run torchrun's flags, and then a command with its flags; return the command's exit code.

    A process that a signal killed is exit code 5; SIGTERM and SIGINT to this program are passed on,
    and are 143 and 130.
    """
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # or a lost store is pages of C++ frames
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    for name in ("agent.server.api", "multiprocessing.api"):  # they log what is said below
        logging.getLogger(f"torch.distributed.elastic.{name}").setLevel(logging.CRITICAL)
    words = sys.argv[1:] if arguments is None else arguments
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            given = run.parse_args(words)
    except SystemExit as end:
        if end.code != 2:  # the help
            raise
        return _report(_mistake(printed.getvalue()))
    given.training_script_args = [given.training_script, *given.training_script_args]
    given.training_script, given.module = "mixerflow", True
    try:
        run.run(given)
    except SignalException as error:
        return 128 + error.sigval
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode >= 0:
            return failure.exitcode
        name = signal.Signals(-failure.exitcode).name
        lost = ResourceError(f"{name} ended a process", f"process {rank}", _REMEDY)
        return _report(lost)
    except (ValueError, AssertionError) as error:  # a flag's value, before a process starts
        what = str(error) and first_line(error)
        return _report(ConfigError(what or "a value that does not fit", "torchrun's flags", _HELP))
    return 0


def _mistake(printed: str) -> ConfigError:
    """Return the error for what torchrun's parser prints: its usage, and a last line."""
    what = (printed.strip().splitlines() or [""])[-1].rpartition("error: ")[2]
    if "training_script" in what:
        remedy = "name one after torchrun's flags, `train RECIPE` for example"
        return ConfigError("no command", "mixerflow.launch", remedy)
    return ConfigError(what, "torchrun's flags", _HELP)


def _report(error: MixerFlowError) -> int:
    tell(f"error: {error.what}: {error.where}: {error.remedy}")  # torchrun's flags as they are
    return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
