"""Blocks by several threads: results in order, and few in memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")
_POLL = 0.1  # seconds


def in_order(
    work: Callable[[T], R],
    items: Iterable[T],
    threads: int,
    while_waiting: Callable[[], object],
    stop: Callable[[], object],
) -> Iterator[R]:
    """Yield the results of work on items, in their order; the work should need no lock of Python's.

    Of the items, and of the results, `threads` and one more are in memory.

    Args:
        work: is called in a thread.
        items: are taken in the caller's thread, when one is needed.
        threads: their number.
        while_waiting: is called in the caller's thread ten times a second, and may raise.
        stop: is called before the end if something was raised; it makes work under way end soon.
    """
    left, waiting = iter(items), deque[Future[R]]()
    pool = ThreadPoolExecutor(threads, "codec")
    try:
        while True:
            while len(waiting) <= threads:
                try:
                    waiting.append(pool.submit(work, next(left)))
                except StopIteration:
                    break
            if not waiting:
                return
            while_waiting()
            while not wait([waiting[0]], _POLL).done:
                while_waiting()
            yield waiting.popleft().result()
    except BaseException:
        stop()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
