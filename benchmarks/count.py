"""What a training step of a MixerFlow costs on a GPU, counted before anything is tuned.

    python -m benchmarks.count [--recipe NAME] [--batch N] [--matrix-tflops T] [--memory-tbs T]
        [--l2-tbs T] [--sms N] [--out FILE]

Needs no GPU: the flow is built on the meta device, and its row flows are found in its module tree.
A row-flow step is (ActNorm, linear map, coupling); figures of a step are means over those of its
kind, so that both directions of a coupling, and an ActNorm at a row flow's end, have their share.

- **Operations** are those of the matrix products, 2 a multiply-add. A backward pass needs twice a
  forward pass, one that recomputes it three times. W = L U is put together once a batch, which is
  told apart and in no total. The padded count is a kernel's that pads each half of a row, and the
  hidden width, to a power of two of at least 16.
- **Layer by layer**: each operator that torch dispatches (products with their biases, squash, batch
  norm, GELU, exp, mul, add, cat; copies) reads its inputs and writes its outputs once, in float32;
  views are free, and nothing stays in the L2 cache from one operator to the next. Counted on the
  CPU for two images and three; bytes are linear in the batch.
- **Fused**: a step is three kernels. "forward" reads and writes the state in float32. "backward"
  reads the state behind the step and its gradient, inverts the step, writes both before it, and
  leaves a part of the weights' gradients, float32, for each multiprocessor. "sum" adds the parts.
  Each multiprocessor reads the step's weights in bfloat16; device memory sees them once, and the
  parts never: they stay in L2. Log-dets and the statistics of batch norm are left out.
- **Elementwise**: float32 lane operations of the GELUs alone, 2 h a row; a backward pass recomputes
  them and their slopes, as much again. "sum" adds. Squash, exp and batch norm come on top.
- **Floors**: work over rate, for the matrix units, device memory, L2, and the lanes (128 of each
  multiprocessor). "overlap" is the largest of these; "serial" adds matrix, bytes (the larger of
  the two) and lanes. Launches, and what is around the row flows (cuts, windows, dequantisation, the
  colour map, the base's density), are in neither. Batch norm in training needs all rows at once:
  that many barriers are counted beside the kernels, and no time for them.

Tables go to standard output, JSON to a file.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any, NamedTuple

import torch

from benchmarks.common import facts, keep
from benchmarks.costs import Tape, operators
from benchmarks.count_parts import Arguments, Count, Kernel, Kind, Launches, Total, Traffic
from benchmarks.ours import Ours
from mixerflow.core import Along, Chain, Flow, Shape, Transform, Window
from mixerflow.models import MixerFlow
from mixerflow.nets import ResidualMLP
from mixerflow.recipes import recipe
from mixerflow.transforms import LU, ActNorm, Coupling, KernelChain, halves

_HALF, _SINGLE = 2, 4
"""Bytes of a bfloat16 and of a float32."""


class Place(NamedTuple):
    """A row flow and the event it is in."""

    name: str
    along: Along
    rows: KernelChain
    shape: Shape


def places(transform: Transform, shape: Shape, prefix: str = "") -> Iterator[Place]:
    """The row flows of a module tree, with the event's shape where each stands."""
    if isinstance(transform, Along) and isinstance(transform.transform, KernelChain):
        name = {-1: "channels", -2: "patches"}.get(transform.dim, f"axis {transform.dim}")
        yield Place(f"{prefix}{name}", transform, transform.transform, shape)
    elif isinstance(transform, Window):
        box = (*shape[: -len(transform.size)], *transform.size)
        yield from places(transform.transform, box, "shift: ")
    elif isinstance(transform, Chain):
        for step in transform:
            yield from places(step, shape, prefix)
            shape = step.out_shape(shape)


def padded(n: int) -> int:
    """The power of two, at least 16, that a kernel's tile has for n numbers."""
    return max(16, 1 << (n - 1).bit_length())


def multiply_adds(rows: KernelChain, pad: Callable[[int], int] = lambda n: n) -> int:
    """Of one row through a row flow, forward.

    Raises:
        ValueError: something else than ActNorm, LU and couplings with residual MLPs.
    """
    found = 0
    for step in rows:
        if isinstance(step, LU):
            found += sum(map(pad, halves(step.n))) ** 2
        elif isinstance(step, Coupling) and isinstance(step.net, ResidualMLP):
            if step.net.context is not None:
                raise ValueError("count: knows no conditioners with a context")
            given, width = map(pad, (step.net.enter.in_features, step.net.enter.out_features))
            out = step.elementwise.params * pad(
                step.net.leave.out_features // step.elementwise.params
            )
            found += width * (given + 2 * width + out)
        elif not isinstance(step, ActNorm):
            raise ValueError(f"count: a {type(step).__name__} is no part it knows")
    return found


def layered(place: Place, batch: int) -> dict[str, Traffic]:
    """A row flow's traffic, operator by operator, from runs with two images and with three."""
    along = copy.deepcopy(place.along).to_empty(device="cpu").train()
    two, three = (_taped(along, place.shape, images) for images in (2, 3))
    found = {}
    for name, tape in two.items():
        each = {op: three[name].bytes[op] - size for op, size in tape.bytes.items()}
        grown = {op: size + (batch - 2) * each[op] for op, size in tape.bytes.items()}
        found[name] = Traffic(grown, dict(tape.calls))
    return found


def _taped(along: Along, shape: Shape, images: int) -> dict[str, Tape]:
    x = torch.zeros(images, *shape, requires_grad=True)
    with Tape() as forward:  # under which kernels do not run
        outputs = along(x)
    slopes = [torch.ones_like(output) for output in outputs]
    with Tape() as backward:
        torch.autograd.grad(outputs, [x, *along.parameters()], slopes)
    return {"forward": forward, "backward": backward}


def timed(
    given: Arguments, name: str, flop: float, memory: float, l2: float, lanes: float
) -> Kernel:
    """A kernel with its floors; bytes go through L2 and device memory at the same time."""
    us = {
        "matrix": flop / given.matrix_tflops * 1e-6,
        "memory": memory / given.memory_tbs * 1e-6,
        "L2": l2 / given.l2_tbs * 1e-6,
        "elementwise": lanes / given.lanes * 1e6,
    }
    bound = max(us, key=lambda term: us[term])
    serial = us["matrix"] + max(us["memory"], us["L2"]) + us["elementwise"]
    us |= {"overlap": us[bound], "serial": serial}
    return Kernel(name, flop, memory, l2, lanes, us, bound)


def kind_of(found: list[Place], given: Arguments) -> Kind:
    """Of row flows alike."""
    place, flow = found[0], found[0].rows
    nets = [module for module in flow.modules() if isinstance(module, ResidualMLP)]
    if not nets:
        raise ValueError("count: a row flow without couplings")
    each, n = len(nets), place.shape[place.along.dim]
    hidden = nets[0].enter.out_features
    norms = sum(isinstance(module, torch.nn.BatchNorm1d) for module in flow.modules())
    products, gelus = multiply_adds(flow) / each, 2 * hidden
    parameters = sum(p.numel() for p in flow.parameters()) / each
    rows = math.prod(place.shape) // n
    return Kind(
        name=place.name,
        rows=rows,
        length=n,
        halves=halves(n),
        hidden=hidden,
        flows=len(found),
        steps=len(found) * each,
        multiply_adds=products,
        padded=multiply_adds(flow, padded) / each,
        parameters=parameters,
        gelus=gelus,
        norms=norms // each,
        assembly_flop=2 * n**3 if any(isinstance(step, LU) for step in flow) else 0,
        layered=layered(place, given.batch),
        kernels=_kernels(given, rows * given.batch, n, products, parameters, gelus),
    )


def _kernels(
    given: Arguments, rows: int, n: int, products: float, parameters: float, gelus: int
) -> tuple[Kernel, ...]:
    flop, lanes, state = 2 * products * rows, given.gelu * gelus * rows, _SINGLE * n * rows
    once, summed = _HALF * parameters, _SINGLE * parameters
    all_read, parts = given.sms * once, given.sms * summed
    back = 4 * state
    return (
        timed(given, "forward", flop, 2 * state + once, 2 * state + all_read, lanes),
        timed(given, "backward", 3 * flop, back + once, back + all_read + parts, 2 * lanes),
        timed(given, "sum", 0, summed, parts + summed, given.sms * parameters),
    )


def count(
    flow: Flow, given: Arguments, *, images: int | None = None, today: int | None = None
) -> Count:
    """All figures of a flow.

    Args:
        flow: on any device, the meta device too.
        given: batch and rates.
        images: of a whole training run.
        today: operators that a training step dispatches.

    Raises:
        ValueError: parts that are not counted here, or no row flows.
    """
    kinds: dict[tuple[object, ...], list[Place]] = {}
    for place in places(flow.transform, flow.shape):
        key = (place.name, place.shape, multiply_adds(place.rows))
        kinds.setdefault(key, []).append(place)
    rows = {module for module in flow.modules() if isinstance(module, KernelChain)}
    if not rows or rows != {place.rows for found in kinds.values() for place in found}:
        raise ValueError("count: no row flows, or row flows in places it does not know")
    found = tuple(kind_of(alike, given) for alike in kinds.values())
    parameters = sum(p.numel() for p in flow.parameters())
    passes = {"Adam": 7, "average": 3, "gradient norm": 1}  # tensors read or written
    bytes_of = {name: _SINGLE * tensors * parameters for name, tensors in passes.items()}
    optimiser = tuple(timed(given, name, 0, size, size, 0) for name, size in bytes_of.items())
    flop = sum(2 * kind.multiply_adds * kind.rows * kind.steps for kind in found)
    return Count(
        parameters=parameters,
        gflop_per_image=flop / 1e9,
        kinds=found,
        optimiser=optimiser,
        totals=totals(found, optimiser, given, images),
        launches=launches(found, given, today),
    )


def totals(
    kinds: tuple[Kind, ...], optimiser: tuple[Kernel, ...], given: Arguments, images: int | None
) -> tuple[Total, ...]:
    """A training step, layer by layer and fused."""
    update = sum(kernel.us["overlap"] for kernel in optimiser) / 1e3
    moved = [
        sum(kind.flows * sum(kind.layered[name].bytes.values()) for kind in kinds)
        for name in ("forward", "backward")
    ]
    passes = {"layer by layer": [size / given.memory_tbs * 1e-9 for size in moved]}
    for how in kinds[0].kernels[0].us:
        each = [[kind.steps * kernel.us[how] / 1e3 for kernel in kind.kernels] for kind in kinds]
        forward = sum(times[0] for times in each)
        passes[f"fused, {how}"] = [forward, sum(map(sum, each)) - forward]
    found = []
    for how, (forward, backward) in passes.items():
        step = forward + backward + update
        speed = given.batch / step * 1e3
        hours = None if images is None else images / speed / 3600
        found.append(Total(how, forward, backward, update, step, speed, hours))
    return tuple(found)


def launches(kinds: tuple[Kind, ...], given: Arguments, today: int | None) -> Launches:
    """Operators and kernels of a training step, now and fused."""
    steps = sum(kind.steps for kind in kinds)
    calls = (kind.flows * sum(t.calls.values()) for kind in kinds for t in kind.layered.values())
    each = given.forward_kernels + given.backward_kernels
    barriers = sum(2 * kind.norms * kind.steps for kind in kinds)
    return Launches(today, sum(calls), steps * each + given.small_kernels, barriers)


def main() -> None:
    """Count and print."""
    import tyro  # what only counts needs neither of them
    from rich.console import Console

    from benchmarks.count_tables import tables

    given = tyro.cli(Arguments)
    if min(given.batch, given.sms) < 1:
        raise SystemExit("benchmarks.count: batch and multiprocessors must be at least 1")
    named = recipe(given.recipe)
    if not isinstance(named.model, MixerFlow):
        raise SystemExit(f"benchmarks.count: {given.recipe} is no MixerFlow")
    real = Ours(given.recipe, named.model, named.shape, kernels=False)
    work = real.work(2)  # how many operators does not depend on the batch
    with real.path():
        work.train()  # the first step makes Adam's moments
        today = operators(work.train)
    with torch.device("meta"):
        flow = named.model.build(named.shape)
    steps = named.train.steps
    images = None if steps is None else steps * named.train.batch
    found = count(flow, given, images=images, today=today)
    result: dict[str, Any] = facts(0)
    result |= {"given": {**asdict(given), "out": None}, "count": asdict(found)}
    keep(result, given.out)
    console = Console(width=160)
    console.print(f"{result['command']}; torch {result['torch']}")
    for table in tables(found, given):
        console.print(table)


if __name__ == "__main__":
    main()
