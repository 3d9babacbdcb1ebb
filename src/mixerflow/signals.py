"""SIGTERM and SIGINT: stopping between two steps of long work, and ending a command quietly."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any

_DEFAULTS = {signal.SIGTERM: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}


def take_signals() -> None:
    """Let SIGINT end this program with code 130 and SIGTERM with 143, without a word.

    Both unwind the program's work, so that it leaves no temporary files; the second of them ends it
    at once. So does the first one while a module is imported, as libraries are for the first
    seconds: an exception there may be swallowed, or abort the process inside of C++.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    _handle_both(_unwind)
    sys.unraisablehook = _end_after_unraisable
    atexit.register(_handle_both, signal.SIG_IGN)  # runs last: nothing is left to stop


def end_quietly() -> None:
    """Let a further signal end the program at once: its work is done, and it closes down."""
    if signal.getsignal(signal.SIGINT) in (_unwind, _end, signal.default_int_handler):
        _handle_both(_end)


def _handle_both(handler: Any) -> None:  # noqa: ANN401
    for number in _DEFAULTS:
        signal.signal(number, handler)


def _unwind(number: int, frame: FrameType | None) -> None:
    if _is_importing(frame):
        os._exit(128 + number)
    _handle_both(_end)
    raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)


def _end(number: int, frame: FrameType | None) -> None:
    os._exit(128 + number)


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


def _end_after_unraisable(unraisable: sys.UnraisableHookArgs) -> None:
    """End after a signal whose exception Python can only print, in a finaliser for example."""
    if isinstance(unraisable.exc_value, KeyboardInterrupt):
        os._exit(128 + signal.SIGINT)
    if isinstance(unraisable.exc_value, SystemExit):
        os._exit(128 + signal.SIGTERM)
    sys.__unraisablehook__(unraisable)


class Interrupt:
    """Note SIGTERM and SIGINT instead of ending the process, in a ``with`` block.

    The first signal sets `requested`, which a loop reads between steps, and puts Python's own
    handlers back, or those of `take_signals`: a second SIGTERM ends the process, a second SIGINT
    raises `KeyboardInterrupt`. In a thread other than the main one Python takes no signals, and
    nothing is ever requested.
    """

    requested: int | None = None
    """The signal's number, or None."""

    def __init__(self) -> None:
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._note) for number in _DEFAULTS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            if handler is not None:  # None: not Python's, so Python cannot put it back
                signal.signal(number, handler)
        self._previous = {}

    def keep(self) -> None:
        """Leave the present handlers in place after the block: the process is about to end."""
        self._previous = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.requested = number
        taken = self._previous.get(signal.SIGINT) is _unwind
        for each, handler in _DEFAULTS.items():
            signal.signal(each, handler)
        if taken:
            signal.signal(signal.SIGINT, _unwind)
            signal.signal(signal.SIGTERM, _end)


class Stopped(Exception):
    """Work that a signal stopped between two steps, with everything saved.

    Args:
        number: the signal's number.
    """

    def __init__(self, number: int) -> None:
        self.exit_code = 128 + number
        super().__init__(f"stopped by signal {number}")
