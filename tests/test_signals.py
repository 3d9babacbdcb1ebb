"""One signal asks, two signals end, and the handlers of before come back."""

import os
import signal
import threading
import time

import pytest

from mixerflow.cli import parse
from mixerflow.signals import Interrupt

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")

SIGNALS = [(signal.SIGTERM, 143), (signal.SIGINT, 130)]
FINISHED, BROKEN = 7, 8


def child(*, heeds):
    """A process that loops until asked to stop, and says when it is ready and when asked."""
    source, sink = os.pipe()
    pid = os.fork()
    if pid:
        os.close(sink)
        return pid, source
    status = BROKEN
    try:
        with Interrupt() as interrupt:
            os.write(sink, b"ready")
            while interrupt.requested is None:
                time.sleep(0.001)
            os.write(sink, b"asked")
            if not heeds:
                time.sleep(20)
        status = 128 + interrupt.requested
    except KeyboardInterrupt:
        status = 130
    finally:
        os._exit(status)


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_one_signal_lets_the_step_finish(number, code):
    pid, source = child(heeds=True)
    assert os.read(source, 5) == b"ready"
    os.kill(pid, number)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == code
    assert os.read(source, 5) == b"asked"
    os.close(source)


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(("second", "status"), [(signal.SIGTERM, -15), (signal.SIGINT, 130)])
def test_a_second_signal_aborts_at_once(first, second, status):
    pid, source = child(heeds=False)
    assert os.read(source, 5) == b"ready"
    os.kill(pid, first)
    assert os.read(source, 5) == b"asked"
    begin = time.monotonic()
    os.kill(pid, second)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == status
    assert time.monotonic() - begin < 5
    os.close(source)


def test_the_handlers_of_before_come_back():
    def handle(number, frame):
        raise AssertionError

    before = signal.signal(signal.SIGTERM, handle), signal.getsignal(signal.SIGINT)
    try:
        with Interrupt() as interrupt:
            signal.raise_signal(signal.SIGTERM)
            assert interrupt.requested == signal.SIGTERM
        assert signal.getsignal(signal.SIGTERM) is handle
        assert signal.getsignal(signal.SIGINT) is before[1]
    finally:
        signal.signal(signal.SIGTERM, before[0])


def test_in_another_thread_nothing_happens():
    found = []

    def work():
        with Interrupt() as interrupt:
            found.append((interrupt.requested, signal.getsignal(signal.SIGTERM)))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [(None, before)]


def test_a_signal_while_flags_are_read_is_no_mistake_in_the_words(monkeypatch):
    def stopped(*_, **__):
        raise SystemExit(143)

    monkeypatch.setattr(parse.tyro, "cli", stopped)
    with pytest.raises(SystemExit) as end:
        parse.parse(parse.ComputingArguments, [], prog="mixerflow report")
    assert end.value.code == 143
