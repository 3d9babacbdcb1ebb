"""Stopping between two steps of long work, after SIGTERM or SIGINT."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

_DEFAULTS = {signal.SIGTERM: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}


class Interrupt:
    """Note SIGTERM and SIGINT instead of ending the process, in a ``with`` block.

    The first signal sets `requested`, which a loop reads between steps, and puts Python's own
    handlers back: a second SIGTERM ends the process, a second SIGINT raises `KeyboardInterrupt`. In
    a thread other than the main one Python takes no signals, and nothing is ever requested.
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
        for each, handler in _DEFAULTS.items():
            signal.signal(each, handler)


class Stopped(Exception):
    """Work that a signal stopped between two steps, with everything saved.

    Args:
        number: the signal's number.
    """

    def __init__(self, number: int) -> None:
        self.exit_code = 128 + number
        super().__init__(f"stopped by signal {number}")
