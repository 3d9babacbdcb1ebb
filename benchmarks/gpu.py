"""Are the GPU kernels right, how fast are they, in how much memory, and against which rival?

    PYTHONPATH=src python -m benchmarks.gpu --minutes 9 --out OUT     # needs a GPU
    PYTHONPATH=src python -m benchmarks.gpu --only "train kernels"    # sections by their names
    PYTHONPATH=src python -m benchmarks.gpu --quick --minutes 5       # a tiny model; on a CPU too

Experimental: it has never run on a GPU here. ``--list`` names the sections and runs none.

Each section runs in a process of its own, in order of importance: a section that crashes, hangs or
runs out of memory says so and costs no other. ``OUT/gpu.json`` and ``OUT/gpu.md`` are written after
each section; sections that an earlier run measured, and this one does not, stay.

- **proof**: kernels beside operators in float64, for each kind of row flow where its rows lie: the
  largest error over the allowed one, with all unwritten memory full of NaN.
- **whole**: bits/dim and gradients of a whole flow by kernels and by operators; gradients twice.
- **ceilings**: rates of a copy and of matrix products.
- **floors**: times of a training step that `benchmarks.count` computes from these rates.
- **train**: steps of the package's own trainer on noise, from step to step by the GPU's clock, so
  that host time counts where the GPU waits. "operators" has kernels switched off; "graph" is
  ``--train.graph``.
- **profile**: time of each kernel in such a step; of the row flows' kernels, beside their floors.
- **infer**: log-probabilities and samples. **memory**: peak of a training step by depth.
- **rival**: Glow of as many operations in other libraries, where these are installed.

On a CPU kernels run in Triton's interpreter, and no time means anything.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import itertools
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, profiler

from benchmarks.common import facts, figure, keep, processor, spread, version
from benchmarks.count import count
from benchmarks.count_parts import Arguments, Count
from benchmarks.markdown import table
from benchmarks.rivals import LIBRARIES, Glow, Library, base, installed
from mixerflow import kernels
from mixerflow.core import Chain, Flow, Noise, Shape, Transform, Window
from mixerflow.data import Images, make_images
from mixerflow.models import MixerFlow
from mixerflow.nets import ResidualMLP
from mixerflow.parts import MLP, Patching, RowCoupling
from mixerflow.recipes import recipe
from mixerflow.registry import evolve
from mixerflow.training import TrainConfig, Trainer
from mixerflow.training.batches import Batches
from mixerflow.training.graphed import GraphedTrainer
from mixerflow.transforms import KernelChain, kernel_check

Row = dict[str, Any]
"""One line of figures, as JSON."""
Job = Callable[[], object]
ROOT = Path(__file__).resolve().parent.parent
_RESERVE = 4.0
"""Seconds left for the end of the run."""
_SHORTEST = 3.0
"""Seconds that a section needs at least."""
_LOG_LINES, _LINE_LENGTH = 15, 300
_WARM_UP = 3
"""Training steps before timed ones: compilation and capture happen in the first."""
_UNREAD = 10**9
_QUICK_MODEL = MixerFlow(
    layers=2, flow_layers=1, patching=Patching(2, shift=(0, 1)), flow=RowCoupling(net=MLP(16))
)
_QUICK_SHAPE = (1, 6, 6)


# Sections in processes of their own


@dataclass(frozen=True)
class Options:
    """Options of a run that all sections share."""

    recipe: str = "mixerflow-cifar10"
    batches: tuple[int, ...] = (512, 256)
    """Images a step; the first is used wherever one batch size is enough."""
    seconds: float = 3.0
    """Time of one measurement, about."""
    norm: str = "layer"
    """Norm of the conditioners: one that the kernels support."""
    quick: bool = False
    results: str = ""
    """File of this run's results so far."""


@dataclass(frozen=True)
class Setup:
    """How a flow runs and trains."""

    kernels: bool = True
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    graph: bool = False
    tf32: bool = False
    """Whether the operators' float32 products may be tf32 products."""
    compiled: bool = False
    """Whether torch.compile compiles each conditioner."""
    keep: kernels.Keep = "inputs"
    memory: Literal["store", "checkpoint", "invert"] = "store"
    norm: str | None = None
    """Norm of the conditioners, in place of the options' norm."""

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Run flows in this way for the time of a ``with``."""
        with contextlib.ExitStack() as stack:
            if not self.kernels:
                stack.enter_context(kernels.disabled())
            elif current_device().type == "cpu":
                stack.enter_context(kernels.interpreted())
            before = torch.backends.cuda.matmul.allow_tf32
            torch.backends.cuda.matmul.allow_tf32 = self.tf32
            try:
                yield
            finally:
                torch.backends.cuda.matmul.allow_tf32 = before

    def autocast(self) -> torch.autocast:
        """Return the context of the conditioners' precision outside of a trainer."""
        low = self.precision == "bfloat16"
        return torch.autocast(current_device().type, torch.bfloat16, enabled=low)


@dataclass(frozen=True)
class Section:
    """A measurement: ``run``, "module:function", yields rows from options, setup and `more`."""

    name: str
    run: str
    setup: Setup = field(default_factory=Setup)
    limit: float = 60
    """Seconds that it may take."""
    more: dict[str, Any] = field(default_factory=dict)


@dataclass
class Outcome:
    """The rows of a section, and how it ended."""

    name: str
    status: Literal["measured", "failed", "timed out", "no time"] = "no time"
    seconds: float = 0.0
    rows: list[Row] = field(default_factory=list)
    error: str | None = None
    command: str = ""
    machine: dict[str, Any] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)
    """Last lines of output, if it failed."""


def error_line(error: BaseException) -> str:
    """Return the root cause of an error in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # Triton's messages begin with a place and the source; the cause is in the last line
    lines = lines[-1:] if lines and lines[0].startswith("at ") else lines[:2]
    return f"{type(error).__name__}: {' '.join(lines)}"[:_LINE_LENGTH]


def attempt(labels: Row, measure: Callable[[], Row]) -> Row:
    """Return the row, or its labels with the error, so that the section goes on."""
    try:
        return labels | measure()
    except Exception as error:
        return labels | {"error": error_line(error)}


def run_group(group: Sequence[Section], options: Options, seconds: float) -> list[Outcome]:
    """Run sections at the same time, each up to its limit and at most `seconds`."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        begin = time.monotonic()
        running: list[tuple[Section, subprocess.Popen[bytes], Path]] = []
        for number, section in enumerate(group):
            path = Path(folder) / str(number)
            process = stack.enter_context(_process(section, options, path))
            running.append((section, process, path))
        return [_outcome(*each, begin, seconds) for each in running]


@contextlib.contextmanager
def _process(section: Section, options: Options, path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Start a section; it and the processes that it started end with the ``with``."""
    paths = [str(ROOT), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    path.write_text(json.dumps({"section": asdict(section), "options": asdict(options)}))
    with open(f"{path}.log", "wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.gpu", "--section", str(path)],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, paths))},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # one process group, which can be killed at once
        )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _outcome(
    section: Section, process: subprocess.Popen[bytes], path: Path, begin: float, seconds: float
) -> Outcome:
    """Wait for a section, and read the rows that it wrote before it ended, in whatever way."""
    limit = min(section.limit, seconds)
    outcome, code = Outcome(section.name, "measured"), 0
    try:
        code = process.wait(max(0.0, begin + limit - time.monotonic()))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        outcome.status, outcome.error = "timed out", f"not done after {limit:.0f} s"
    outcome.seconds = round(time.monotonic() - begin, 1)
    rows = Path(f"{path}.rows")
    for line in rows.read_text().splitlines() if rows.exists() else []:
        with contextlib.suppress(json.JSONDecodeError):  # cut off in the middle
            record = json.loads(line)
            outcome.error = record.get("failed", outcome.error)
            outcome.rows += [record["row"]] if "row" in record else []
    text = Path(f"{path}.log").read_text(errors="replace")
    lines = [line[:_LINE_LENGTH] for line in text.splitlines() if line.strip()][-_LOG_LINES:]
    if outcome.status == "measured" and (code or outcome.error):
        how = f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"
        outcome.status = "failed"
        outcome.error = outcome.error or f"{how}: {lines[-1] if lines else 'no output'}"
    outcome.log = [] if outcome.status == "measured" else lines
    return outcome


def run_section(path: str) -> None:
    """Run one section in this process, and write each row to a file at once."""
    given = json.loads(Path(path).read_text())
    section, options = Section(**given["section"]), Options(**given["options"])
    with open(f"{path}.rows", "w") as file:

        def write(record: Row) -> None:
            print(json.dumps(record), file=file, flush=True)

        try:
            module, _, function = section.run.partition(":")
            run = getattr(importlib.import_module(module), function)
            for row in run(options, Setup(**given["section"]["setup"]), **section.more):
                write({"row": row})
        except Exception as error:
            write({"failed": error_line(error)})
            raise


def machine() -> dict[str, Any]:
    """Return the device and the versions of what sections run on."""
    gpu = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if gpu else processor()
    versions = {"torch": torch.__version__, "triton": version("triton")}
    return {"device": device, "cuda": torch.version.cuda, **versions}


# Timing


def current_device() -> torch.device:
    """Return the GPU if there is one, else the CPU, where kernels are interpreted."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def synchronize() -> None:
    """Wait until the GPU is idle."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def time_calls(job: Job, *, seconds: float, least: int = 3, most: int = 300) -> list[float]:
    """Return seconds from the end of each call to the end of the next, by the device's clock.

    A GPU's events are marked as it reaches them: host time between calls counts only where the GPU
    waits for the host. One more call, before the others, is not counted. There are as many calls as
    take about `seconds`, but at least `least` and at most `most`.
    """
    synchronize()
    begin = time.perf_counter()
    job()
    synchronize()
    once = time.perf_counter() - begin
    calls = max(least, min(most, int(seconds / max(once, 1e-9))))
    if not torch.cuda.is_available():
        marks = [time.perf_counter()]
        for _ in range(calls):
            job()
            marks.append(time.perf_counter())
        return [after - before for before, after in itertools.pairwise(marks)]
    events = [torch.cuda.Event(enable_timing=True) for _ in range(calls + 1)]
    events[0].record()
    for event in events[1:]:
        job()
        event.record()
    synchronize()
    return [before.elapsed_time(after) / 1e3 for before, after in itertools.pairwise(events)]


def summary(seconds: Sequence[float], unit: float = 1e3) -> dict[str, float]:
    """Return median, least and most; by default in milliseconds."""
    return spread([unit * each for each in seconds])


def graphed(job: Job) -> Job:
    """Return a call that does `job`: on a GPU as one CUDA graph."""
    if not torch.cuda.is_available():
        return job
    side, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # libraries allocate their workspaces before capture
        job()
    torch.cuda.current_stream().wait_stream(side)
    with torch.cuda.graph(graph):
        job()
    return graph.replay


def reset_peak() -> None:
    """Free cached memory, and begin to measure `peak` anew."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak() -> dict[str, float]:
    """Return GiB that tensors, and torch's allocator, held at most since `reset_peak`."""
    if not torch.cuda.is_available():
        return {}
    held = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    return dict(zip(("peak_gib", "reserved_gib"), (b / 2**30 for b in held), strict=True))


def timed(options: Options, job: Job, batch: int, *, graph: bool = False) -> Row:
    """Return speed and memory of a job that handles a batch."""
    job()
    reset_peak()
    least = 1 if options.quick else 3
    again = graphed(job) if graph else job
    taken = summary(time_calls(again, seconds=options.seconds, least=least))
    speed = float(f"{1e3 * batch / taken['median']:.4g}")
    return {"images_per_second": speed, "ms": taken, **peak()}


# The flow


def model_of(
    options: Options, *, layers: int | None = None, norm: str | None = None
) -> tuple[MixerFlow, Shape]:
    """Return the recipe's model with a norm that the kernels support, and the images' shape.

    Raises:
        ValueError: the recipe is of another model.
    """
    model, shape = _QUICK_MODEL, _QUICK_SHAPE
    if not options.quick:
        named = recipe(options.recipe)
        model, shape = named.model, named.shape
    if not isinstance(model, MixerFlow):
        raise ValueError(f"{options.recipe} is no MixerFlow")
    changes = {"layers": layers or model.layers, "flow.net.norm": norm or options.norm}
    return evolve(model, changes), shape


def noise_images(shape: Shape, n: int) -> Images:
    """Return n images of noise, the same each time."""
    pixels = np.random.default_rng(0).integers(0, 256, (n, *shape), dtype=np.uint8)
    return make_images(pixels, None, dataset_id="noise")


def flow_of(options: Options) -> Flow:
    """Return a flow far from the identity, whose ActNorms keep its activations in bounds."""
    torch.manual_seed(0)
    model, shape = model_of(options)
    flow = model.build(shape).to(current_device())
    with torch.no_grad():  # a fault is invisible behind weights that are 0
        for parameter in flow.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter) / parameter.shape[-1] ** 0.5)
    with kernels.disabled():
        flow.initialize(torch.from_numpy(noise_images(shape, 64).pixels).to(flow.device))
    return flow


def trainer_of(options: Options, setup: Setup, batch: int, *, layers: int | None = None) -> Trainer:
    """Return the package's own trainer with the recipe's settings, on noise."""
    torch.manual_seed(0)
    model, shape = model_of(options, layers=layers, norm=setup.norm)
    flow = model.build(shape).to(current_device())
    images = noise_images(shape, 4 * batch)
    batches = Batches(images, batch, seed=0, device=flow.device, conditional=False)
    with kernels.disabled():
        flow.initialize(*batches.first(min(batch, 512)))
    train = TrainConfig() if options.quick else recipe(options.recipe).train
    config = replace(train, batch=batch, precision=setup.precision, memory=setup.memory)
    kind = GraphedTrainer if setup.graph else Trainer
    trainer = kind(flow, batches, config, steps=10**6)
    if setup.compiled:
        torch._dynamo.config.recompile_limit = 64  # modules of one kind share a program
    for module in flow.modules():
        if isinstance(module, KernelChain):
            module.keep = setup.keep
        if setup.compiled and isinstance(module, ResidualMLP):
            module.compile(dynamic=False)
    return trainer


def kernel_layers(transform: Transform, shape: Shape) -> Iterator[tuple[Any, Shape]]:
    """Yield the layers that kernels may run whole, with the shape of their events."""
    if isinstance(transform, Window):
        inner = (*shape[: -len(transform.size)], *transform.size)
        yield from kernel_layers(transform.transform, inner)
    elif hasattr(transform, "path"):
        yield transform, shape
    elif isinstance(transform, Chain):
        for step in transform:
            yield from kernel_layers(step, shape)
            shape = step.out_shape(shape)


def paths_of(flow: Flow) -> dict[str, int]:
    """Return how many layers run by kernels, or why they do not."""
    layers = kernel_layers(flow.transform, flow.shape)
    return dict(
        Counter(layer.path(torch.zeros(2, *shape, device=flow.device)) for layer, shape in layers)
    )


def row_flows(flow: Flow) -> list[tuple[KernelChain, kernels.Place]]:
    """Return one row flow of each kind, and where the rows lie that kernels run it for."""
    found: dict[tuple[int, ...], tuple[KernelChain, kernels.Place]] = {}

    def record(chain: KernelChain, plan: kernels.Plan, x: Tensor, place: kernels.Place) -> None:
        found.setdefault((plan.n, place.within, place.stride), (chain, place))

    with patch("mixerflow.transforms.kernel_chain.failed_check", record):
        paths_of(flow)
    return list(found.values())


# What each section measures


def proof(options: Options, setup: Setup, *, share: int = 0, shares: int = 1) -> Iterator[Row]:
    """Prove kernels for each kind of row flow in this share: an error below 1 is right."""
    torch.use_deterministic_algorithms(True, warn_only=True)  # unwritten memory holds NaN
    forward = partial(kernels.rows_forward, keep=setup.keep)
    with setup.active(), patch.object(kernels, "rows_forward", forward):
        for chain, place in row_flows(flow_of(options))[share::shares]:

            def measure(chain: KernelChain = chain, place: kernels.Place = place) -> Row:
                low = setup.precision == "bfloat16"
                error = kernel_check.worst_error(chain, current_device(), low=low, place=place)
                return {"worst_error": error if math.isfinite(error) else None, "right": error < 1}

            labels = {"rows": place.within, "length": len(place.column_table)}
            yield attempt(labels | {"precision": setup.precision, "keep": setup.keep}, measure)


def whole(options: Options, setup: Setup) -> Iterator[Row]:
    """Compare a whole flow by kernels and by operators with operators in float32."""
    images = 4 if options.quick else 64
    torch.use_deterministic_algorithms(True, warn_only=True)  # unwritten memory holds NaN
    flow = flow_of(options)
    x = torch.from_numpy(noise_images(flow.shape, images).pixels).to(flow.device)

    def bits() -> Row:
        with setup.autocast():
            paths, mine = paths_of(flow), flow.bits_per_dim(x)
        with kernels.disabled():
            exact = flow.bits_per_dim(x)
            with setup.autocast():
                operators = flow.bits_per_dim(x)
        found = {"kernels": mine.mean(), "operators": operators.mean(), "float32": exact.mean()}
        found["kernels_error"] = (mine - exact).abs().max()
        found["operators_error"] = (operators - exact).abs().max()
        return {name: float(value) for name, value in found.items()} | {"paths": paths}

    def gradients() -> Row:
        with setup.autocast():
            first, second = _gradient(flow, x), _gradient(flow, x)
        with kernels.disabled():
            exact = _gradient(flow, x).double()
            with setup.autocast():
                operators = _gradient(flow, x)
        errors = {"kernels_error": first, "operators_error": operators}
        relative = {k: float((v.double() - exact).norm() / exact.norm()) for k, v in errors.items()}
        return relative | {"twice_the_same": torch.equal(first, second)}

    with setup.active():
        yield attempt({"of": "bits/dim", "images": images}, bits)
        yield attempt({"of": "gradients, relative", "images": images}, gradients)


def _gradient(flow: Flow, x: Tensor) -> Tensor:
    """Return all gradients as one vector, from the same noise each time."""
    flow.train().zero_grad()
    noise = Noise(0, torch.arange(len(x), device=x.device))
    (-flow(x, None, noise).log_prob.mean() / flow.dims).backward()
    return torch.cat([p.grad.flatten() for p in flow.parameters() if p.grad is not None])


def ceilings(options: Options, _: Setup) -> Iterator[Row]:
    """Measure TB/s of a copy, read and written, and TFLOP/s of products of random numbers."""
    quick, device = options.quick, current_device()
    seconds, side = (0.01, 64) if quick else (0.5, 8192)

    def copy() -> Row:
        source = torch.randn(2**10 if quick else 2**29, device=device)
        target = torch.empty_like(source)
        taken = summary(time_calls(lambda: target.copy_(source), seconds=seconds), 1.0)
        return {"tbs": 2 * source.nbytes / taken["median"] / 1e12, "seconds": taken}

    def product(dtype: torch.dtype) -> Row:
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        out = torch.empty_like(a)
        torch.mm(a, b, out=out)
        taken = summary(time_calls(lambda: torch.mm(a, b, out=out), seconds=seconds), 1.0)
        return {"tflops": 2 * side**3 / taken["median"] / 1e12, "side": side, "seconds": taken}

    yield attempt({"what": "copy"}, copy)
    for name, dtype in (("bfloat16", torch.bfloat16), ("tf32", torch.float32)):
        with Setup(kernels=False, tf32=True).active():
            yield attempt({"what": name}, partial(product, dtype))
    yield attempt({"what": "float32"}, partial(product, torch.float32))
    if device.type == "cuda":
        sms = torch.cuda.get_device_properties(device).multi_processor_count
        yield {"what": "chip", "sms": sms}


def counted(options: Options, batch: int, precision: str = "bfloat16") -> Count:
    """Return the floors at the rates that "ceilings" measured, as far as it did."""
    path = Path(options.results)
    sections = json.loads(path.read_text())["sections"] if path.is_file() else []
    found = {row["what"]: row for each in sections for row in each["rows"] if "what" in row}
    rates = Arguments(recipe=options.recipe, batch=batch)
    if found.get("copy", {}).get("tbs"):
        rates = replace(rates, memory_tbs=found["copy"]["tbs"])
    if found.get("chip", {}).get("sms"):
        rates = replace(rates, sms=found["chip"]["sms"])
    if found.get("bfloat16", {}).get("tflops"):
        rates = replace(rates, matrix_tflops=found["bfloat16"]["tflops"])
    if precision == "float32":  # three products of tf32, which is half as fast, for each
        tf32 = found.get("tf32", {}).get("tflops") or rates.matrix_tflops / 2
        rates = replace(rates, matrix_tflops=tf32 / 3)
    model, shape = model_of(options)
    with torch.device("meta"):
        flow = model.build(shape)
    return count(flow, rates)


def floors(options: Options, _: Setup) -> Iterator[Row]:
    """Count how long a training step takes at the measured rates."""
    for precision, batch in itertools.product(("bfloat16", "float32"), options.batches):
        for total in counted(options, batch, precision).totals:
            labels = {"precision": precision, "batch": batch, "how": total.how}
            yield labels | {"ms": total.step_ms, "images_per_second": total.images_per_second}


def warmed_up(options: Options, trainer: Trainer) -> float:
    """Take the first steps, and return the seconds that they took."""
    begin = time.perf_counter()
    for _ in range(1 if options.quick else _WARM_UP):
        trainer.advance()
    synchronize()
    return time.perf_counter() - begin


def train(options: Options, setup: Setup) -> Iterator[Row]:
    """Time training steps, a row a batch: small ones first, as large ones may not fit."""
    for batch in sorted(options.batches):
        with setup.active():
            yield attempt({"batch": batch}, partial(train_batch, options, setup, batch))


def train_batch(options: Options, setup: Setup, batch: int) -> Row:
    """Return speed and memory of training steps at a batch."""
    reset_peak()
    trainer = trainer_of(options, setup, batch)
    first = warmed_up(options, trainer)
    with setup.autocast():
        paths = paths_of(trainer.flow)
    trainer.read_every = _UNREAD  # a graph's steps follow each other without a read
    row = timed(options, trainer.advance, batch)
    trainer.read_every = 1
    step = trainer.advance()
    finite = math.isfinite(step.objective) and trainer.skipped == 0
    return row | {"finite": finite, "paths": paths, "first_seconds": round(first, 2)}


def profile(options: Options, setup: Setup) -> Iterator[Row]:
    """Measure which kernels keep the device busy in training steps, and for how long."""
    batch, steps = options.batches[0], 1 if options.quick else 5
    gpu = torch.cuda.is_available()
    with setup.active():
        trainer = trainer_of(options, setup, batch)
        warmed_up(options, trainer)
        trainer.read_every = _UNREAD
        activity = profiler.ProfilerActivity.CUDA if gpu else profiler.ProfilerActivity.CPU
        with profiler.profile(activities=[activity]) as events:
            begin = time.perf_counter()
            for _ in range(steps):
                trainer.advance()
            synchronize()
            wall = 1e6 * (time.perf_counter() - begin)
    us, calls = Counter[str](), Counter[str]()
    for event in events.key_averages():
        if event.device_type.name == ("CUDA" if gpu else "CPU"):
            taken = event.self_device_time_total if gpu else event.self_cpu_time_total
            us[event.key] += taken / steps
            calls[event.key] += event.count / steps
    busy = us.total()
    yield {"batch": batch, "busy_us": busy, "wall_us": wall / steps, "kernels": calls.total()}
    for name, each in us.most_common(25):
        yield {"kernel": name, "calls": calls[name], "us": each, "share": each / busy}
    known = counted(options, batch, setup.precision)
    parts = {"forward": ("step_kernel",), "backward": ("gradient_kernel", "hidden_kernel")}
    for number, (part, names) in enumerate(parts.items()):
        each = sum(time for key, time in us.items() if key.startswith(names))
        floor = sum(kind.steps * kind.kernels[number].us["overlap"] for kind in known.kinds)
        labels = {"part": part, "us": each, "floor_us": floor}
        yield labels | {"of_floor": floor / each if each else None}


def infer(options: Options, setup: Setup) -> Iterator[Row]:
    """Time log-probabilities and samples of a flow in eval mode, as it is and fused."""
    batch = options.batches[0]
    live = flow_of(options).eval()
    x = torch.from_numpy(noise_images(live.shape, batch).pixels).to(live.device)
    with setup.active(), setup.autocast(), torch.no_grad():
        for name, flow in (("live", live), ("fused", live.fused())):
            log_prob, sample = partial(flow.log_prob, x), partial(flow.sample, batch)
            jobs = (("log_prob", log_prob, False), ("log_prob", log_prob, True))
            for job, run, graph in (*jobs, ("sample", sample, False)):
                labels = {"flow": name, "job": job, "batch": batch, "graph": graph}
                row = attempt(labels, partial(timed, options, run, batch, graph=graph))
                yield row | {"paths": paths_of(flow)}


def memory(options: Options, setup: Setup) -> Iterator[Row]:
    """Measure the peak memory of a training step by depth."""
    batch = 4 if options.quick else 256

    def measure(layers: int) -> Row:
        trainer = trainer_of(options, setup, batch, layers=layers)
        trainer.advance()  # makes the gradients and Adam's moments
        synchronize()
        reset_peak()
        step = trainer.advance()
        return {**peak(), "finite": math.isfinite(step.objective)}

    for layers in (2, 4) if options.quick else (30, 60, 120):
        with setup.active():
            yield attempt({"layers": layers, "batch": batch}, partial(measure, layers))
        reset_peak()


def rival(options: Options, setup: Setup, *, library: Library) -> Iterator[Row]:
    """Time Glow of as many operations in another library, as it comes and by torch.compile."""
    if not installed(library):
        yield {"model": f"Glow, {library}", "error": f"{library} is not installed"}
        return
    batch, glow = options.batches[0], Glow(library, (1, 8, 8), levels=1, steps=1, hidden=8)
    if not options.quick:
        channels, *sides = model_of(options)[1]
        operations = 1e9 * counted(options, batch).gflop_per_image
        glow = base(library, (channels, sides[0], sides[1])).like(operations, by="flop")
    torch.set_default_device(current_device())

    def measure(job: str, *, compiled: bool) -> Row:
        work = glow.work(batch)
        model: Any = work.model
        if compiled:
            model.log_prob = torch.compile(model.log_prob, dynamic=False)
        return timed(options, getattr(work, job), batch)

    jobs = (("train", False), ("train", True), ("log_prob", False), ("sample", False))
    for job, compiled in jobs:
        labels = {"model": glow.name, "job": job, "compiled": compiled, "batch": batch}
        labels["precision"] = "tf32" if setup.tf32 else setup.precision
        with setup.active(), setup.autocast():
            yield attempt(labels, partial(measure, job, compiled=compiled))
        reset_peak()


# The run


def sections(options: Options) -> list[list[Section]]:
    """Return all sections by groups that run at the same time, in order of importance.

    Proofs in bfloat16 come first, and fill Triton's cache for the timed sections; the kernels in
    float32, which compile longest, come after all sections that do without them.
    """
    low, high, flagship = Setup(), Setup(precision="float32"), Setup(graph=True)
    operators = replace(low, kernels=False)
    single = replace(high, kernels=False)

    def made(
        run: str, name: str = "", setup: Setup = low, limit: float = 75, **more: object
    ) -> Section:
        return Section(f"{run} {name}".strip(), f"benchmarks.gpu:{run}", setup, limit, more)

    def proofs(setup: Setup) -> list[Section]:
        name, shares = f"{setup.precision} {setup.keep}", 1 if options.quick else 4
        return [
            made("proof", f"{name} {i + 1}/{shares}", setup, 150, share=i, shares=shares)
            for i in range(shares)
        ]

    output, tf32 = replace(low, keep="output"), replace(single, tf32=True)
    alone = [
        made("floors"),
        made("train", "kernels bfloat16 graph", flagship),
        made("train", "operators bfloat16 graph", replace(operators, graph=True)),
        made("train", "operators float32", single),
        made("train", "operators bfloat16", operators),
        made("train", "kernels bfloat16", low),
        made("train", "kernels bfloat16 graph, keep output", replace(output, graph=True)),
        made("train", "operators tf32", tf32),
        made("profile", "kernels bfloat16 graph", flagship),
        made("infer", "kernels bfloat16", low),
        made("infer", "operators bfloat16", operators),
        made("infer", "operators float32", single),
    ]
    batch_norm = replace(operators, graph=True, norm="batch")
    last = [
        made("train", "kernels float32 graph", replace(high, graph=True)),
        made("infer", "kernels float32", high),
        made("train", "operators bfloat16 graph, batch norm", batch_norm),
        made("train", "operators bfloat16, compiled", replace(operators, compiled=True), 150),
        made("memory", "inputs", low),
        made("memory", "output", output),
        made("memory", "inputs invert", replace(low, memory="invert")),
        made("memory", "output invert", replace(output, memory="invert")),
        *(
            made("rival", f"{library} {name}", setup, 120, library=library)
            for library in LIBRARIES
            for name, setup in (("tf32", tf32), ("bfloat16", operators))
        ),
    ]
    return [
        [made("ceilings")],
        [*proofs(low), *proofs(output), made("whole", "bfloat16", low, 150)],
        *([section] for section in alone),
        [*proofs(high), made("whole", "float32", high, 150)],
        *([section] for section in last),
    ]


def measure(
    groups: list[list[Section]],
    options: Options,
    seconds: float,
    write: Callable[[list[Outcome]], None],
) -> list[Outcome]:
    """Run groups one after another while there is time.

    Args:
        groups: of sections.
        options: of all sections.
        seconds: for all groups.
        write: called with the outcomes of all sections, before each group.
    """
    begin, outcomes = time.monotonic(), list[Outcome]()
    for number, group in enumerate(groups):
        rest = [Outcome(section.name) for later in groups[number:] for section in later]
        write([*outcomes, *rest])
        left = begin + seconds - time.monotonic()
        if left < _SHORTEST:
            return [*outcomes, *rest]
        for outcome in run_group(group, options, left):
            outcome.machine, outcome.command = machine(), str(facts(0)["command"])
            outcomes.append(outcome)
            line = f"[{time.monotonic() - begin:4.0f} s] {outcome.name}: {outcome.status}"
            print(line, f"{len(outcome.rows)} rows", outcome.error or "", flush=True)
    return outcomes


def page(result: Row) -> str:
    """Return the results as Markdown tables, and the sections without results with the reason."""
    lines = [f"# {result['options']['recipe']} on one GPU\n", f"`{result['command']}`\n"]
    machines = {json.dumps(s["machine"]): s["machine"] for s in result["sections"]}
    for each in filter(None, machines.values()):
        lines.append(", ".join(f"{name} {value}" for name, value in each.items()) + "\n")
    tables: dict[tuple[str, ...], list[list[str]]] = {}
    for section in result["sections"]:
        for row in section["rows"]:
            kind = section["name"].partition(" ")[0]
            rows = tables.setdefault((kind, *row), [])
            rows.append([section["name"], *map(_cell, row.values())])
    for (kind, *columns), rows in tables.items():
        lines += [f"## {kind}\n", table(["section", *columns], rows) + "\n"]
    for section in result["sections"]:
        if section["status"] != "measured":
            lines.append(f"- {section['name']}: {section['status']}: {section['error'] or '-'}")
            lines += [f"      {line}" for line in section["log"]]
    return "\n".join(lines) + "\n"


def _cell(value: object) -> str:
    if isinstance(value, dict) and "median" in value:
        median, least, most = (figure(value[name]) for name in ("median", "least", "most"))
        return f"**{median}** ({least}-{most})"
    if isinstance(value, dict):
        return "; ".join(f"{n} {name}" for name, n in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace("|", "/")[:200]


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu")
    parser.add_argument("--recipe", default="mixerflow-cifar10")
    parser.add_argument("--minutes", type=float, default=9.0, help="of the whole run")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="a folder")
    parser.add_argument("--batches", type=int, nargs="+", default=None, help="images a step")
    parser.add_argument("--seconds", type=float, default=None, help="of each measurement, about")
    parser.add_argument("--norm", default="layer", help="of the nets: one that kernels support")
    parser.add_argument("--only", nargs="+", default=[], help="beginnings of sections' names")
    parser.add_argument("--skip", nargs="+", default=[], help="beginnings of sections' names")
    parser.add_argument("--quick", action="store_true", help="a tiny model; on a CPU too")
    parser.add_argument("--list", action="store_true", help="name the sections, and run none")
    parser.add_argument("--section", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; return 0 if there is any row without an error."""
    begin, given = time.monotonic(), parse(arguments)
    if given.section:
        run_section(given.section)
        return 0
    if not torch.cuda.is_available():
        os.environ.setdefault("TRITON_INTERPRET", "1")
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    file = given.out.resolve() / "gpu.json"
    batches = tuple(given.batches or ((4,) if given.quick else (512, 256)))
    seconds = given.seconds or (0.01 if given.quick else 3.0)
    options = Options(given.recipe, batches, seconds, given.norm, given.quick, str(file))
    only, skip = tuple(given.only) or ("",), tuple(given.skip)
    groups = [
        [s for s in group if s.name.startswith(only) and not s.name.startswith(skip)]
        for group in sections(options)
    ]
    groups = [group for group in groups if group]
    names = {section.name for group in groups for section in group}
    if given.list:
        print("\n".join(f"{s.name}  ({s.limit:.0f} s)" for group in groups for s in group))
        return 0
    if not names:
        sys.exit("no section of that name: see --list")
    if not given.quick and not torch.cuda.is_available():
        sys.exit("there is no GPU here: --quick tries everything on the CPU")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    earlier = json.loads(file.read_text())["sections"] if file.exists() else []
    earlier = [each for each in earlier if each["name"] not in names and each["rows"]]

    def write(outcomes: list[Outcome]) -> None:
        result: dict[str, Any] = facts(0) | {"options": asdict(options), "minutes": given.minutes}
        result["seconds"] = round(time.monotonic() - begin, 1)
        result["sections"] = [*map(asdict, outcomes), *earlier]
        keep(result, file)
        file.with_suffix(".md").write_text(page(result))

    left = 60 * given.minutes - _RESERVE - (time.monotonic() - begin)
    outcomes = measure(groups, options, left, write)
    write(outcomes)
    print(file.with_suffix(".md").read_text())
    rows = [row for outcome in outcomes for row in outcome.rows]
    return 0 if any("error" not in row for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
