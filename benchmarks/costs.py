"""What a model costs besides time: operations, operator calls, memory, import."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TypeVar
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common import Contender
from mixerflow.kernels import switch

Kwargs = dict[str, object] | None
Result = TypeVar("Result")
_BLANK = ("empty", "_unsafe_view")
"""Operators that neither read nor write, besides views."""
ROOT = Path(__file__).resolve().parent.parent


def flop(run: Callable[[], object]) -> int:
    """Floating-point operations of the matrix products and convolutions of a call."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


class _Count(TorchDispatchMode):
    calls = 0

    def __torch_dispatch__(
        self, func: Callable[..., object], types: object, args: tuple = (), kwargs: Kwargs = None
    ) -> object:
        self.calls += 1
        return func(*args, **(kwargs or {}))


def operators(run: Callable[[], object]) -> int:
    """Operators that torch dispatches in a call, the backward pass's and views among them.

    Kernels step aside for whoever watches operators; here they are to run, and count as one.
    """
    unseen = mock.patch.object(switch, "_get_current_dispatch_mode", return_value=None)
    with unseen, _Count() as count:
        run()
    return count.calls


class Tape(TorchDispatchMode):
    """What operators read and write while it holds, and how often each runs; views are free."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(
        self,
        func: torch._ops.OpOverload,
        types: object,
        args: tuple = (),
        kwargs: Kwargs = None,
    ) -> object:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if not func.is_view and not name.startswith(_BLANK):
            self.calls[name] += 1
            self.bytes[name] += sum(map(_bytes, tree_leaves((args, kwargs, result))))
        return result


def _bytes(leaf: object) -> int:
    """Of a tensor's distinct numbers: what is broadcast is read once."""
    if not isinstance(leaf, Tensor):
        return 0
    sides = zip(leaf.shape, leaf.stride(), strict=True)
    return leaf.element_size() * math.prod(n for n, stride in sides if stride)


def peak_memory(contender: Contender, batch: int, *, steps: int = 2) -> float | None:
    """MiB that a fresh process came to hold for a model and `steps` training steps.

    The highest resident memory of the process, less what it held before the model was built: so
    weights, gradients, Adam's moments, activations, and whatever the libraries take for scratch.
    None where the system has no ``/proc``.
    """
    return fresh(_peak_memory, contender, batch, steps, torch.get_num_threads())


def _peak_memory(contender: Contender, batch: int, steps: int, threads: int) -> float | None:
    torch.set_num_threads(threads)
    __import__(contender.package)
    _load_lazily_loaded()
    before = resident("VmRSS")
    if before is None:
        return None
    work = contender.work(batch)
    with contender.path():
        for _ in range(steps):
            work.train()
    highest = resident("VmHWM")
    return None if highest is None else highest - before


def _load_lazily_loaded() -> None:
    """What torch imports with its first optimiser is the program's, not a model's."""
    layer = torch.nn.Linear(1, 1)
    layer(torch.zeros(1, 1)).sum().backward()
    torch.optim.Adam(layer.parameters()).step()


def resident(field: str) -> float | None:
    """MiB of this process: now (VmRSS) or at its highest (VmHWM).

    Not getrusage's ru_maxrss, which a child takes over from its parent.
    """
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    line = next(line for line in status.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def fresh(function: Callable[..., Result], *args: object) -> Result:
    """Call a function in a process of its own that begins from nothing."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        return pool.submit(function, *args).result()


_TIMED = """
import json, sys, time
begun = time.perf_counter()
exec(sys.argv[1])
print(json.dumps(time.perf_counter() - begun))
"""


def import_seconds(statements: dict[str, str], rounds: int) -> dict[str, list[float]]:
    """Seconds that Python statements take in fresh processes, in turns."""
    seconds: dict[str, list[float]] = {name: [] for name in statements}
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    for number in range(rounds + 1):
        for name, statement in statements.items():
            done = subprocess.run(
                [sys.executable, "-W", "ignore", "-c", _TIMED, statement],
                env=os.environ | {"PYTHONPATH": path},
                capture_output=True,
                text=True,
                check=True,
            )
            if number:  # the first round fills the disk cache and writes bytecode
                seconds[name].append(json.loads(done.stdout))
    return seconds
