"""Parts of `benchmarks.gpu` that look at the kernels one by one.

A launch of any Triton kernel is caught on its way: so what a training step of a layer launches can
be compiled beforehand by many processes, and timed by itself, whatever the package calls it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.gpu_check import excess_of
from benchmarks.gpu_flow import Way, keep_of, kinds_of, layers_of, shallow
from benchmarks.gpu_process import Row, said
from mixerflow.core import Flow

_LARGE = 2**20
"""Bytes of a tensor that counts for the cache."""
FEW = 16
"""Images to compile for: their rows are a multiple of 16, as those of a real batch."""


class Launch(NamedTuple):
    """A kernel's launch, not yet done or done before."""

    kernel: Any
    grid: Any
    args: tuple[Any, ...]
    constants: dict[str, Any]

    @property
    def name(self) -> str:
        """The kernel's."""
        return self.kernel.fn.__name__

    def named(self) -> dict[str, Any]:
        """All that it was given, by name."""
        return dict(zip(self.kernel.arg_names, self.args, strict=False)) | self.constants

    def key(self) -> tuple[object, ...]:
        """What it is compiled for: constants, types, and of numbers what the compiler looks at."""
        names = zip(self.kernel.arg_names, self.args, strict=False)
        fixed = {each.name for each in getattr(self.kernel, "params", ()) if each.do_not_specialize}
        kinds = [_kind(value, looked_at=name not in fixed) for name, value in names]
        return self.name, *kinds, *sorted(self.constants.items())

    def run(self) -> None:
        """Launch it."""
        self.kernel[self.grid](*self.args, **self.constants)

    def compile(self) -> None:
        """Compile it, and leave that on the disk for other processes."""
        self.kernel.warmup(*self.args, grid=self.grid, **self.constants)

    def afresh(self) -> Launch:
        """The same with large tensors of its own, of random numbers and no two of them one."""
        return self._replace(args=tuple(map(_fresh, self.args)))


def _kind(value: object, *, looked_at: bool) -> tuple[object, ...]:
    """Type; whether a multiple of 16, as addresses too; whether 1, which is then a constant."""
    if isinstance(value, Tensor):
        return value.dtype, looked_at and value.data_ptr() % 16 == 0
    if isinstance(value, int) and looked_at:
        return int, value % 16 == 0, value == 1
    return (type(value),)


def _fresh(value: object) -> object:
    if not isinstance(value, Tensor) or value.nbytes < _LARGE:
        return value
    return torch.randn_like(value) if value.is_floating_point() else value.clone()


@contextlib.contextmanager
def recorded(runs: Callable[[str], bool]) -> Iterator[list[Launch]]:
    """The launches meanwhile; those kernels run whose name `runs` says so of."""
    from triton.runtime.interpreter import InterpretedFunction
    from triton.runtime.jit import JITFunction

    found: list[Launch] = []

    def caught(original: Callable[..., Any]) -> Callable[..., Any]:
        def run(self: Any, *args: Any, grid: Any, warmup: bool, **constants: Any) -> Any:  # noqa: ANN401
            launch = Launch(self, grid, args, dict(constants))
            found.append(launch)
            if runs(launch.name):
                return original(self, *args, grid=grid, warmup=warmup, **constants)
            return None

        return run

    with contextlib.ExitStack() as stack:
        for kind in (JITFunction, InterpretedFunction):
            stack.enter_context(patch.object(kind, "run", caught(kind.run)))
        yield found


@contextlib.contextmanager
def unproved() -> Iterator[None]:
    """Take kernels at their word: a proof would want to see them run."""
    with patch("mixerflow.transforms.kernel_chain.failed_check", lambda *args, **more: None):
        yield


def step_of(
    flow: Flow, way: Way, batch: int, *, inverse: bool = False, layers: int | None = None
) -> None:
    """Forward and back through a layer of each kind, or the first of them; and the other way."""
    keep_of(flow, way)
    x = torch.randn(batch, *flow.shape, device=flow.device, requires_grad=True)
    total = torch.zeros((), device=flow.device)
    with way.autocast():
        for layer in layers_of(flow)[:layers]:
            z, log_det = layer(x)
            total = total + z.sum() + log_det.sum()
            if inverse:
                with torch.no_grad():
                    layer.inverse(z.detach())
    total.backward()


def unlike(launches: list[Launch]) -> list[Launch]:
    """One launch of each that is compiled by itself, in the same order in each process.

    Those with the most arguments come first: they take the longest.
    """
    found: dict[tuple[object, ...], Launch] = {}
    for launch in launches:
        found.setdefault(launch.key(), launch)
    return sorted(found.values(), key=lambda launch: -len(launch.args))


def compiling(given: dict[str, Any]) -> Iterator[Row]:
    """Compile this process's share of all that layers and proofs launch on some ways."""
    flow = shallow(given)
    with recorded(lambda name: False) as found, unproved():
        for settings in given["ways"]:
            way = Way(**settings)
            with way.holds():
                step_of(flow, way, FEW, inverse=way.keep == "inputs")
                for place in kinds_of(flow).values():
                    excess_of(place.rows, way)
    yield compiled(unlike(found)[given["share"] :: given["of"]])


def compiled(launches: list[Launch]) -> Row:
    """How many were, and what the others say."""
    begun, errors = time.perf_counter(), []
    for launch in launches:
        try:
            launch.compile()
        except Exception as error:
            errors.append(f"{launch.name}: {said(error)}")
    seconds = round(time.perf_counter() - begun, 1)
    return {"compiled": len(launches) - len(errors), "seconds": seconds, "errors": errors}
