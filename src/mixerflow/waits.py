"""How OpenMP's threads wait: they spin while the cores are free, and sleep while others want them.

A thread spins at a barrier for some milliseconds, because waking it would cost more than most
waits. Beside a busy process the thread that it waits for may not be running at all, and spinning
then keeps a core from it. GNU's OpenMP, which torch and our kernels share on Linux, spins for
microseconds only while it has more threads than there are cores. So `adapt_waits` looks how long
this thread has waited for a core, and starts idle threads while that is much.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import threading
import time
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

_PERIOD = 0.1
"""Seconds from one look to the next."""
_CROWDED = 0.1
"""Share of the time for which a thread could run, but had no core: 0.01 to 0.04 alone on a machine,
0.3 and more beside one busy process on two cores, whichever way the threads wait."""
_HOLD = 1.0
"""Seconds without a crowded look after which threads spin again."""
_LEAST = 2e7
"""Nanoseconds of running and waiting from which on a share of them says something."""

_GRAIN = 2**15
"""Numbers of a tensor for which torch's own operators use a second thread."""


class _Crowd(threading.Thread):
    """Idle threads, so many that OpenMP has more threads than cores, until `end`."""

    def __init__(self, openmp: ctypes.CDLL) -> None:
        super().__init__(name="mixerflow-crowd", daemon=True)
        self.openmp = openmp
        self.own = max(0, openmp.omp_get_num_procs() - torch.get_num_threads()) + 2
        self.over = threading.Event()

    def run(self) -> None:
        """Run an empty parallel region, whose threads then sleep for as long as this one lives."""
        nothing = ctypes.cast(ctypes.CDLL(None).getpid, ctypes.c_void_p)  # it has no effect
        self.openmp.GOMP_parallel(nothing, None, ctypes.c_uint(self.own), ctypes.c_uint(0))
        self.over.wait()

    def end(self) -> None:
        """Let the threads go."""
        self.over.set()


class _Look(threading.local):
    """When a thread looks again, and its nanoseconds of running and waiting at the last look."""

    due: float = 0.0
    ran: int = 0
    waited: int = 0


_look = _Look()
_lock = threading.Lock()
_crowd: _Crowd | None = None
_crowded_at = 0.0


@functools.cache
def _openmp() -> ctypes.CDLL | None:
    """Return GNU's OpenMP if torch has loaded it and the system counts waits, else None."""
    try:
        found = ctypes.CDLL("libgomp.so.1", mode=os.RTLD_NOLOAD)
        usable = found.GOMP_parallel and found.omp_get_num_procs and _times()
        return found if usable else None
    except (OSError, AttributeError):  # another system, another OpenMP
        return None


def _times() -> tuple[int, int] | None:
    """Return nanoseconds that this thread ran, and waited for a core; None if unknown."""
    try:
        with open("/proc/thread-self/schedstat", encoding="ascii") as file:
            ran, waited, _ = map(int, file.read().split())
    except (OSError, ValueError):
        return None
    return (ran, waited) if ran else None


def adapt_waits() -> None:
    """Let threads sleep at barriers if this thread lacks a core for much of its time, else spin.

    Call it often; it looks ten times a second at most. It does nothing on one thread, and where
    OpenMP is not GNU's or the system (all but Linux) does not count how long threads wait.
    """
    if torch.compiler.is_compiling():
        return
    now = time.monotonic()
    if now < _look.due or torch.get_num_threads() == 1 or _openmp() is None:
        return
    times = _times()
    if times is None:
        return
    first = not _look.due
    ran, waited = times[0] - _look.ran, times[1] - _look.waited
    if not first and ran + waited < _LEAST:
        return
    _look.due, (_look.ran, _look.waited) = now + _PERIOD, times
    if not first:
        _decide(now, waited / (ran + waited))


@contextlib.contextmanager
def one_thread_if_small(tensors: Sequence[Tensor]) -> Iterator[None]:
    """Run torch's operators on one thread in a ``with`` if CPU `tensors` are small on average.

    An optimiser's step ends each tensor with a barrier: it costs more than a second thread saves.
    """
    threads = torch.get_num_threads()
    small = threads > 1 and sum(each.numel() for each in tensors) < _GRAIN * len(tensors)
    if small:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if small:
            torch.set_num_threads(threads)


def _decide(now: float, share: float) -> None:
    """Start idle threads, or end them, by the share of its time that a thread has waited."""
    global _crowd, _crowded_at
    with _lock:
        if share > _CROWDED:
            _crowded_at = now
            if _crowd is None or not _crowd.is_alive():  # it is not alive in a forked process
                openmp = _openmp()
                assert openmp is not None
                _crowd = _Crowd(openmp)
                _crowd.start()
        elif _crowd is not None and now > _crowded_at + _HOLD:
            _crowd.end()
            _crowd = None
