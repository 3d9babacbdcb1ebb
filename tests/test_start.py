"""Signals in the first seconds and the last: a quiet end with the shell's exit code."""

import os
import signal
import subprocess
import sys
import time

import pytest

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}

PROGRAM = """
import os, signal, sys, time
from mixerflow.signals import Interrupt, end_quietly, take_signals

take_signals()
number, case = int(sys.argv[1]), sys.argv[2]


def send():
    os.kill(os.getpid(), number)
    time.sleep(0.01)


class Dying:
    def __del__(self):
        send()


try:
    if case == "import":
        sys.path.insert(0, sys.argv[3])
        import swallows
    elif case == "finaliser":
        Dying()
    elif case == "work":
        try:
            send()
        finally:
            print("unwound")
    elif case == "asked":
        with Interrupt() as interrupt:
            send()
            assert interrupt.requested == number
        sys.exit(7)
    elif case == "asked twice":
        with Interrupt():
            send()
            send()
    elif case == "unwinding":
        try:
            send()
        finally:
            send()
    elif case == "end":
        end_quietly()
        send()
    elif case == "last":
        import atexit
        atexit.register(send)
        end_quietly()
        sys.exit(7)
    print("went on")
except KeyboardInterrupt:
    sys.exit(130)
"""

SWALLOWS = """
import os, sys, time
try:
    os.kill(os.getpid(), int(sys.argv[1]))
    time.sleep(0.01)
except BaseException:
    pass
print("swallowed")
"""

CASES = ["import", "finaliser", "work", "asked", "asked twice", "unwinding", "end", "last"]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("number", CODES)
def test_a_signal_ends_a_command_quietly(case, number, tmp_path):
    (tmp_path / "swallows.py").write_text(SWALLOWS)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(int(number)), case, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert done.returncode == (7 if case == "asked" else CODES[number]), done.stderr
    assert done.stderr == "" and done.stdout == ("unwound\n" if case == "work" else "")


def ended(command, number, after):
    """Exit code, seconds and stderr of a command that gets a signal after some seconds."""
    child = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ
    )
    time.sleep(after)
    running, begun = child.poll() is None, time.monotonic()
    child.send_signal(number)
    _, errors = child.communicate(timeout=60)
    return running, child.returncode, time.monotonic() - begun, errors


MODULE = [sys.executable, "-m", "mixerflow"]
SCRIPT = [sys.executable, "-c", "import sys; from mixerflow.cli import main; sys.exit(main())"]
BEFORE = 0.15  # Python itself starts, with handlers of its own


@pytest.mark.parametrize("after", [0.2, 0.5, 0.9])
def test_a_signal_while_libraries_load(after):
    running, code, seconds, errors = ended(
        [*MODULE, "info", "mixerflow-tiny"], signal.SIGINT, after
    )
    assert errors == "" and code == (130 if running else 0) and seconds < 10


@pytest.mark.slow
@pytest.mark.parametrize("program", [MODULE, SCRIPT], ids=["module", "script"])
@pytest.mark.parametrize("command", ["train", "evaluate", "sample", "report", "publish", "--help"])
def test_signals_at_many_moments(program, command):
    words = {
        "train": ["mixerflow-tiny", "--data", "/no/such"],
        "--help": [],
        "publish": ["x", "--to"],
    }
    for k in range(40):
        number = (signal.SIGINT, signal.SIGTERM)[k % 2]
        given = [*program, command, *words.get(command, ["/no/such"])]
        running, code, seconds, errors = ended(given, number, BEFORE + 0.05 * k)
        assert code in ((CODES[number],) if running else (0, 2, 3, 4)), (k, errors)
        assert seconds < 5 and "Traceback" not in errors and errors.count("\n") <= 1, (k, errors)
