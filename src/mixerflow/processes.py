"""One program in several processes: which one this is, what they agree on, and who is lost.

``torchrun`` starts the processes and says in the environment who is who; `joined` reads it. Outside
of it there is one process, `SINGLE`, for which everything here is the identity, so that the rest of
the code is written once.
"""

from __future__ import annotations

import datetime
import os
import socket
import sys
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

T = TypeVar("T")

START = datetime.timedelta(minutes=5)
"""How long processes wait for each other to start."""
PATIENCE = datetime.timedelta(hours=2)
"""How long one waits for a living one: a save or an evaluation may take long."""
BEAT, SILENCE, GRACE = 2.0, 25.0, 10.0
"""Seconds between signs of life; without one before a process counts as lost; and from then until
a process that is stuck waiting for the lost one ends: in all less than a minute."""


@dataclass(frozen=True)
class Processes:
    """This process among those of the run; all must call the methods below together.

    Attributes:
        rank: its number.
        world: how many there are.
        local: its number on this machine, and so that of its GPU.
        together: whether a launcher started them; False only for `SINGLE`.
    """

    rank: int = 0
    world: int = 1
    local: int = 0
    together: bool = False

    @property
    def main(self) -> bool:
        """Whether this is the one that writes and prints."""
        return self.rank == 0

    def place(self, device: torch.device) -> torch.device:
        """The device for this process: each has a GPU of its own.

        Raises:
            ConfigError: there are more processes on this machine than GPUs.
        """
        if not self.together or device.type != "cuda" or device.index is not None:
            return device
        if self.local >= torch.cuda.device_count():
            what = f"{torch.cuda.device_count()} GPUs for process {self.local} of this machine"
            raise ConfigError(what, "--nproc-per-node", "start as many processes as GPUs")
        own = torch.device("cuda", self.local)
        torch.cuda.set_device(own)
        return own

    def share(self, n: int) -> slice:
        """This process's part of `n` things in a row; parts differ by one at most."""
        return slice(n * self.rank // self.world, n * (self.rank + 1) // self.world)

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of every process's tensor."""
        if self.together:
            tensor = tensor.clone()
            dist.all_reduce(tensor)
        return tensor

    def gather(self, tensor: Tensor) -> Tensor:
        """Every process's tensor, all of one shape, as ``(world, ...)``."""
        if not self.together:
            return tensor[None]
        parts = [torch.empty_like(tensor) for _ in range(self.world)]
        dist.all_gather(parts, tensor.contiguous())
        return torch.stack(parts)

    def collect(self, value: T) -> list[T]:
        """Every process's value, small and of any kind."""
        if not self.together:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def largest(self, number: int) -> int:
        """The largest of every process's number: cheap enough for every step."""
        if not self.together:
            return number
        each = torch.tensor([number])
        dist.all_reduce(each, op=dist.ReduceOp.MAX)
        return int(each)

    def from_main(self, value: T) -> T:
        """Process 0's value, small and of any kind, for all."""
        if not self.together:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def on_main(self, work: Callable[[], T]) -> T | None:
        """Process 0's own work: the others wait for it, get None, and raise what it raises."""
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

    def align(self, tensors: Iterator[Tensor]) -> None:
        """Overwrite `tensors` with process 0's."""
        if self.together:
            for tensor in tensors:
                dist.broadcast(tensor.detach(), src=0)


SINGLE = Processes()
"""One process that nobody launched among others."""

_current = SINGLE
_watch: _Watch | None = None


@contextmanager
def joined() -> Iterator[Processes]:
    """The processes that were launched with this one, or `SINGLE`.

    Collectives on CPU tensors go over gloo, on CUDA tensors over NCCL. Inside another `joined`, or
    a process group of your own, this gives those processes.

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
    dist.barrier()  # from here on every process has shown a first sign of life
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


_REMEDY = "start the same command again: it goes on from the last checkpoint"


def is_lost_process(error: BaseException) -> bool:
    """Whether an error is that of a collective whose other end is gone.

    Whoever gets True deals with it from then on: the watch no longer ends this process.
    """
    text = str(error).lower()
    lost = isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and ("gloo" in text or "nccl" in text)
    )
    if lost and _watch is not None:
        _watch.leave()
    return lost


def cause(error: BaseException) -> str:
    """What a collective's error says, without where in its source and good wishes."""
    text = first_line(error).rpartition("] ")[2] if "/gloo/" in str(error) else first_line(error)
    return text.split(". This is typically")[0].strip()


def first_to_report(line: str) -> bool:
    """Whether no other process has said this line: what ends all of them is told once."""
    if _watch is None:
        return os.environ.get("RANK", "0") == "0"
    return _watch.first(f"said/{line}")


def _name() -> str:
    rank, world = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    return f"process {rank} of {world} on {socket.gethostname()}"


class _Watch(threading.Thread):
    """Signs of life, so that a process that is gone, or stopped, is not waited for.

    A killed process usually shows at once, as an error of the collective that waits for it. One
    that is stopped, or whose machine is, does not: then the others end themselves.
    """

    def __init__(self, store: Store, rank: int, world: int) -> None:
        super().__init__(name="watch", daemon=True)
        self.store, self.rank, self.world = store, rank, world
        self.store.set_timeout(datetime.timedelta(seconds=BEAT))
        self.over = threading.Event()
        self.store.set(f"alive/{rank}", "0")

    def leave(self) -> None:
        """Say that this process is not to be waited for, and watch no more."""
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
            print(f"error: {error}", file=sys.stderr, flush=True)
        os._exit(error.exit_code)

    def _try(self, request: Callable[[], T]) -> T | None:
        """The store's answer, or None where its keeper is gone: silence like any other."""
        try:
            return request()
        except RuntimeError:
            return None
