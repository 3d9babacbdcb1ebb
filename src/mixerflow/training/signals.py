"""A request to stop: the loop finishes its step and saves; a second request stops at once."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

_DEFAULTS = {signal.SIGTERM: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}


class Interrupt:
    """Note SIGTERM and SIGINT instead of dying from them.

    The first of either sets `requested`, for the loop to look at between steps. It also puts
    Python's own handlers in place, so that a second one acts at once: SIGTERM ends the process,
    SIGINT raises `KeyboardInterrupt`. On exit the handlers are those of before.

    Python takes signals in the main thread only: in another thread nothing is ever requested.

    Example:
        >>> with Interrupt() as interrupt:
        ...     while interrupt.requested is None:
        ...         break  # a training step
        >>> interrupt.exit_code
        0
    """

    requested: int | None = None
    """The signal's number, or None."""

    def __init__(self) -> None:
        self._previous: dict[int, Any] = {}

    @property
    def exit_code(self) -> int:
        """What the process should end with: 143 (SIGTERM), 130 (SIGINT), or 0 without either."""
        return 0 if self.requested is None else 128 + self.requested

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
        """Leave the handlers of now in place for good: the process is about to end by itself."""
        self._previous = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.requested = number
        for each, handler in _DEFAULTS.items():
            signal.signal(each, handler)
