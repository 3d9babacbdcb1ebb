"""One program in several processes: their numbers, collectives, and the loss of a process.

``torchrun`` starts the processes and numbers them in the environment, which `joined` reads. Without
it there is one process, `SINGLE`, for which every collective is the identity: the rest of the code
is written once.
"""

from __future__ import annotations

import datetime
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import Store
from torch.distributed.rendezvous import rendezvous

from mixerflow.errors import ConfigError, ResourceError, first_line
from mixerflow.terminal import tell

T = TypeVar("T")

START = datetime.timedelta(minutes=5)
"""Longest wait of the processes for each other at the start."""
PATIENCE = datetime.timedelta(hours=2)
"""Longest wait for a process that is alive: a save or an evaluation may take long."""
BEAT, SILENCE, GRACE = 2.0, 25.0, 10.0
"""Seconds between two heartbeats; without one until a process counts as lost; and from then until a
process that waits for it ends: less than a minute in all."""


def cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass(frozen=True)
class Processes:
    """This process among the processes of the run; all must call the methods below together.

    Attributes:
        rank: number of this process.
        world: number of processes.
        local: number of this process, and so of its GPU, on this machine.
        together: whether a launcher started the processes; False only for `SINGLE`.
    """

    rank: int = 0
    world: int = 1
    local: int = 0
    together: bool = False

    @property
    def main(self) -> bool:
        """Whether this process writes and prints."""
        return self.rank == 0

    def place(self, device: torch.device) -> torch.device:
        """Return the device for this process: each has a GPU of its own.

        Raises:
            ConfigError: there are more processes on this machine than GPUs.
        """
        if not self.together or device.type != "cuda" or device.index is not None:
            return device
        if self.local >= torch.cuda.device_count():
            what = f"{torch.cuda.device_count()} GPUs for process {self.local} of this machine"
            raise ConfigError(
                what, "`torchrun --nproc-per-node`", "start as many processes as GPUs"
            )
        own = torch.device("cuda", self.local)
        torch.cuda.set_device(own)
        return own

    def share(self, n: int) -> slice:
        """Return this process's part of `n` items in a row; parts differ in size by one at most."""
        return slice(n * self.rank // self.world, n * (self.rank + 1) // self.world)

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum of all processes' tensors."""
        if self.together:
            tensor = tensor.clone()
            dist.all_reduce(tensor)
        return tensor

    def gather(self, tensor: Tensor) -> Tensor:
        """Return all processes' tensors, of one shape, as ``(world, ...)``."""
        if not self.together:
            return tensor[None]
        parts = [torch.empty_like(tensor) for _ in range(self.world)]
        dist.all_gather(parts, tensor.contiguous())
        return torch.stack(parts)

    def collect(self, value: T) -> list[T]:
        """Return all processes' values, small and of any type."""
        if not self.together:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def largest(self, number: int) -> int:
        """Return the largest of all processes' numbers; cheap enough for every step."""
        if not self.together:
            return number
        each = torch.tensor([number])
        dist.all_reduce(each, op=dist.ReduceOp.MAX)
        return int(each)

    def from_main(self, value: T) -> T:
        """Return process 0's value, small and of any type, in every process."""
        if not self.together:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def on_main(self, work: Callable[[], T]) -> T | None:
        """Run `work` in process 0; the others wait, return None, or raise its error."""
        if not self.together:
            return work()
        result, error = None, None
        if self.main:
            try:
                result = work()
            except Exception as raised:
                error = raised
        told = self.from_main(error)
        if told is not None:
            raise told if error is None else error
        return result

    def counter(self, name: str) -> Callable[[int], int]:
        """Return a function that adds to a number of all processes, and returns the sum.

        It begins with 0. No process waits for another. Two counters have two names.
        """
        if self.together:
            store = dist.distributed_c10d._get_default_store()
            return lambda amount: store.add(f"counter/{name}", amount)
        total = 0

        def add(amount: int) -> int:
            nonlocal total
            total += amount
            return total

        return add

    def align(self, tensors: Iterator[Tensor]) -> None:
        """Overwrite `tensors` with process 0's tensors."""
        if self.together:
            for tensor in tensors:
                dist.broadcast(tensor.detach(), src=0)


SINGLE = Processes()
"""The process of a program that no launcher started."""

_current = SINGLE
_watch: _Watch | None = None


@contextmanager
def joined() -> Iterator[Processes]:
    """Join the processes that were launched with this one; yield them, or `SINGLE`.

    Collectives on CPU tensors use gloo, on CUDA tensors NCCL. Inside another `joined`, or a process
    group of your own, those processes are yielded.

    Raises:
        ResourceError: another process was lost; raised in place of the collective's own error.
    """
    global _current, _watch
    if _current.together:
        yield _current
        return
    if dist.is_initialized():
        local = int(os.environ.get("LOCAL_RANK", dist.get_rank()))
        yield Processes(dist.get_rank(), dist.get_world_size(), local, True)
        return
    if not {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
        yield SINGLE
        return
    try:
        store, rank, world = next(iter(rendezvous("env://", timeout=START)))
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        what = f"the processes did not find each other ({first_line(error)})"
        raise ResourceError(what, where, "start all of them, with free and equal ports") from error
    _current = Processes(rank, world, int(os.environ.get("LOCAL_RANK", rank)), True)
    _watch = _Watch(store.clone(), rank, world)  # pyright: ignore[reportAttributeAccessIssue]
    dist.barrier()  # from here on every process has sent a first heartbeat
    _watch.start()
    try:
        yield _current
    except RuntimeError as error:
        if not is_lost_process(error):
            raise
        raise ResourceError(f"a process was lost ({cause(error)})", _name(), _REMEDY) from error
    finally:
        _watch.leave()
        _current = SINGLE
        dist.destroy_process_group()


_REMEDY = "start the same command again: it resumes from the last checkpoint"


def is_lost_process(error: BaseException) -> bool:
    """Whether a collective raised this error because another process is gone.

    After True the caller handles the error: the watch no longer ends this process.
    """
    text = str(error).lower()
    lost = isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and ("gloo" in text or "nccl" in text)
    )
    if lost and _watch is not None:
        _watch.leave()
    return lost


def cause(error: BaseException) -> str:
    """Return the cause in a collective's error message, without source lines and advice."""
    text = first_line(error).rpartition("] ")[2] if "/gloo/" in str(error) else first_line(error)
    return text.split(". This is typically")[0].strip()


def first_to_report(line: str) -> bool:
    """Whether no other process has reported this line: an error of all is reported once."""
    if _watch is None:
        return os.environ.get("RANK", "0") == "0"
    return _watch.first(f"said/{line}")


def _name() -> str:
    rank, world = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    return f"process {rank} of {world} on {socket.gethostname()}"


class _Watch(threading.Thread):
    """Exchanges heartbeats, and ends this process if another one has stopped.

    The collective that waits for a killed process usually raises an error at once. For a process
    that is stopped, or whose machine is, it does not.
    """

    def __init__(self, store: Store, rank: int, world: int) -> None:
        super().__init__(name="watch", daemon=True)
        self.store, self.rank, self.world = store, rank, world
        self.store.set_timeout(datetime.timedelta(seconds=BEAT))
        self.over = threading.Event()
        self.store.set(f"alive/{rank}", "0")

    def leave(self) -> None:
        """Announce that this process leaves, and stop watching."""
        if not self.over.is_set():
            self.over.set()
            self._try(lambda: self.store.set(f"alive/{self.rank}", "left"))

    def first(self, key: str) -> bool:
        """Whether this is the first process to ask for `key`."""
        return self._try(lambda: self.store.add(key, 1)) in (None, 1)

    def run(self) -> None:
        beat, others = 0, [r for r in range(self.world) if r != self.rank]
        signs, heard = [b""] * len(others), [time.monotonic()] * len(others)
        while not self.over.wait(BEAT):
            beat += 1
            self._try(lambda beat=beat: self.store.set(f"alive/{self.rank}", str(beat)))
            now = self._try(lambda: self.store.multi_get([f"alive/{r}" for r in others]))
            for i, sign in enumerate(now or ()):
                if sign != signs[i] or sign == b"left":
                    signs[i], heard[i] = sign, time.monotonic()
            silent = [r for r, at in zip(others, heard, strict=True) if self._late(at)]
            if silent and not self.over.wait(GRACE):  # unless the collective's error came meanwhile
                self._end(silent[0])

    def _late(self, heard: float) -> bool:
        return time.monotonic() - heard > SILENCE

    def _end(self, lost: int) -> None:
        what = f"process {lost} of {self.world} has not answered for {SILENCE + GRACE:.0f} s"
        error = ResourceError(what, _name(), _REMEDY)
        if self.first(f"said/{what}"):
            tell(f"error: {error}")
        os._exit(error.exit_code)

    def _try(self, request: Callable[[], T]) -> T | None:
        """Return the store's answer, or None where the process that holds it is gone."""
        try:
            return request()
        except RuntimeError:
            return None
