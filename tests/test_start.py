"""Signals in the first seconds and the last: a quiet end with the shell's exit code."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}

PROGRAM = """
import atexit, os, signal, sys, time
from mixerflow.signals import Interrupt, end_quietly, take_signals

number, case = int(sys.argv[1]), sys.argv[2]


def send():
    os.kill(os.getpid(), number)
    time.sleep(0.01)


if case == "last":
    atexit.register(send)  # which runs after all that is registered later
take_signals()


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
    assert done.returncode == (7 if case in ("asked", "last") else CODES[number]), done.stderr
    assert done.stderr == "" and done.stdout == ("unwound\n" if case == "work" else "")


def catches_sigterm(pid):
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    return bool(int(status.split("SigCgt:")[1].split()[0], 16) & 1 << signal.SIGTERM - 1)


def ended(command, number, after):
    """Whether it ran, exit code, seconds, stderr of a command with a signal after some seconds."""
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while child.poll() is None and not catches_sigterm(child.pid):
        time.sleep(0.002)  # Python itself starts, with handlers of its own
    time.sleep(after)
    running, begun = child.poll() is None, time.monotonic()
    child.send_signal(number)
    _, errors = child.communicate(timeout=60)
    return running, child.returncode, time.monotonic() - begun, errors


MODULE = [sys.executable, "-m", "mixerflow"]
SCRIPT = [sys.executable, "-c", "import sys; from mixerflow.cli import main; sys.exit(main())"]


@pytest.mark.parametrize("after", [0.0, 0.3, 0.7])
def test_a_signal_while_libraries_load(after):
    command = [*MODULE, "info", "mixerflow-tiny"]
    running, code, seconds, errors = ended(command, signal.SIGINT, after)
    assert errors == "" and code == (130 if running else 0) and seconds < 10


COMMANDS = [["train", "mixerflow-tiny", "--data", "/no/such"], ["--help"], ["sample", "/no/such"]]
COMMANDS += [["publish", "/no/such", "--to", "w"], ["report", "/no/such"], ["evaluate", "/no/such"]]


@pytest.mark.slow
@pytest.mark.parametrize("program", [MODULE, SCRIPT], ids=["module", "script"])
def test_signals_at_many_moments(program):
    for k in range(42):
        number, words = (signal.SIGINT, signal.SIGTERM)[k % 2], COMMANDS[k % len(COMMANDS)]
        running, code, seconds, errors = ended([*program, *words], number, 0.05 * k)
        own = 0 if words == ["--help"] else 3  # of a command that was at its end anyway
        assert code in ((CODES[number], own, 2) if running else (own, 2)), (k, errors)
        assert seconds < 5 and "Traceback" not in errors and errors.count("\n") <= 1, (k, errors)
