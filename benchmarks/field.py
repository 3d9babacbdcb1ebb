"""What flows of images cost: residual and continuous ones, and any others; prints tables.

    python -m benchmarks.field --runs runs/field --data cifar10.npz --seconds 180
        --out results/field/cost.json

Weights at their start would cost too little: contractions and velocities are 0 there, and no
iteration takes a second step. So each of `--models` has a run folder in `--runs`, of its name. A
model without one is trained first, as the recipe of its name, for `--seconds` of processor time;
another call takes what is there.

Images/s are those of a step of the package's trainer, of scores by ``flow.fused()`` with one draw
of the noise, and of samples. All models take turns; time is the processor time of one thread, which
other programs change little. Beside them stands the share of the time that the model's products,
convolutions and attention take alone, the floor of `benchmarks.heavy`. `benchmarks.passes` says
what a pass is. Memory is what a step
allocates beyond weights, gradients and Adam's state, see `benchmarks.memory`, in fresh processes:
of each model, and of each of `--deep` with other depths at the start of training. What depth is
differs by model: the first of its settings among `DEPTHS`; of a setting with a number for each
block, all of these; of Flow++'s and VFlow's list of steps, how often each coupling is repeated.

JSON goes to `--out`, tables in Markdown to standard output.
"""

from __future__ import annotations

import copy
import functools
import os
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
import tyro

from benchmarks.common import facts, figure, interleaved, keep, pin, ratio, spread
from benchmarks.costs import fresh
from benchmarks.heavy import recorded
from benchmarks.kept import require_positive, told_in_a_line
from benchmarks.memory import MODES, peaks_of
from benchmarks.ours import jobs
from benchmarks.passes import nets, passes
from mixerflow.core import Flow, Noise
from mixerflow.data import Images, load
from mixerflow.errors import ConfigError
from mixerflow.markdown import table
from mixerflow.models import Model
from mixerflow.recipes import build, recipe
from mixerflow.runs.weights import read_metadata, read_weights
from mixerflow.training import TrainConfig, Trainer, train
from mixerflow.training.batches import Batches
from mixerflow.training.given import check_fit

_NAMES = "residual iresnet idensenet monotone ffjord attention-glow glow mixerflow"
DEPTHS = ("blocks", "layers", "modules", "steps", "couplings")
"""Names of settings that say how deep a model is: residual and continuous blocks of a scale, mixer
layers, DenseFlow's modules of a unit, steps of a scale, couplings."""
JOBS = {"train": "train", "score": "log_prob", "sample": "sample"}
"""Words for what is timed and counted, and the names of these in `Work`."""


@dataclass(frozen=True)
class Arguments:
    """What to measure."""

    runs: Path
    """Folder of the run folders."""
    models: tuple[str, ...] = tuple(f"{name}-cifar10-tiny" for name in _NAMES.split())
    """Names of run folders, and of the recipes to train where there is none."""
    data: str | None = None
    """Images, as `mixerflow train --data` takes them; the recipe's own by default."""
    seconds: float = 60.0
    """Processor seconds of training."""
    batch: int = 32
    rounds: int = 5
    draws: int = 10
    """Training steps, and scores of a batch, in which passes are counted; of samples one batch."""
    deep: tuple[str, ...] = ("residual-cifar10-tiny",)
    """Recipes whose memory is measured by depth."""
    depths: tuple[int, ...] = (2, 4, 8)
    """Depths: numbers of blocks, layers or steps of these."""
    seed: int = 0
    note: str = ""
    """Words about the machine for the JSON, such as who else was at work on it."""
    out: Path | None = None
    """Where to write the JSON."""

    def __post_init__(self) -> None:
        require_positive(self, "batch", "rounds", "draws")
        if not self.seconds > 0:
            raise ConfigError(f"{self.seconds} cannot be", "--seconds", "give a positive number")
        if not self.models:
            raise ConfigError("nothing named", "--models", "name at least one")


@functools.cache
def images_of(spec: str) -> Images:
    """Training images."""
    return load(spec).train


def given_images(name: str, given: Arguments) -> Images:
    """The images for a model: `--data`, or those of the recipe of its name."""
    return images_of(given.data or recipe(name).data)


def trained(name: str, given: Arguments) -> tuple[Flow, dict[str, Any]]:
    """Return the flow of a run, and how it was trained; train the recipe first if there is none."""
    folder, images = given.runs / name, given_images(name, given)
    if not (folder / "run.json").exists() or read_metadata(folder).get("status") != "finished":
        named = recipe(name)
        torch.manual_seed(given.seed)
        settings = {"clock": "cpu", "minutes": given.seconds / 60, "seed": given.seed}
        config = replace(named.train, steps=None, epochs=None, **settings)
        flow = build(name, images.shape)
        train(flow, images, out=folder, config=config, metadata={"recipe": name}, quiet=True)
    weights = read_weights(folder)
    flow = weights.flow(torch.device("cpu"))
    check_fit(flow, images)
    about = weights.metadata
    return flow, {
        "recipe": about.get("recipe"),
        "steps": weights.steps,
        "seconds": about.get("seconds"),
        "clock": about["train"].get("clock"),
        "batch": about["train"]["batch"],
        "result": about.get("result"),
    }


def counted(flow: Flow, x: torch.Tensor, given: Arguments) -> dict[str, Any]:
    """Passes of a training step, of scoring and of sampling, for `x`."""
    flow = copy.deepcopy(flow)
    noise = Noise.of(given.seed, x)

    def step() -> torch.Tensor:
        flow.train().zero_grad()
        return -flow(x).log_prob.mean()

    @torch.no_grad()
    def score(noise: Noise | None = None) -> None:
        flow.eval().log_prob(x, None, noise)

    torch.manual_seed(given.seed)
    runs: dict[str, tuple[Callable[[], object], int]] = {
        "train": (step, given.draws),
        "score": (score, given.draws),
        "evaluate": (lambda: score(noise), 1),
        "sample": (lambda: flow.eval().sample(len(x)), 1),
    }
    return {name: passes(flow, *run) for name, run in runs.items()}


def depth_of(name: str) -> str:
    """The setting of a recipe's model that says how deep it is."""
    named = {field.name for field in fields(recipe(name).model)}
    found = [setting for setting in DEPTHS if setting in named]
    if not found:
        what = f"{name} has none of the settings {', '.join(DEPTHS)}"
        raise ConfigError(what, "--deep", "name another recipe, or give no --depths")
    return found[0]


def deeper(name: str, depth: int) -> Model:
    """The model of a recipe at another depth."""
    model, setting = recipe(name).model, depth_of(name)
    before = getattr(model, setting)
    if isinstance(before, tuple) and isinstance(before[0], str):  # a squeeze is done once
        each = [step for step in before for _ in range(1 if step == "squeeze" else depth)]
        return replace(model, **{setting: tuple(each)})
    each = (depth,) * len(before) if isinstance(before, tuple) else depth
    return replace(model, **{setting: each})


def memory_of(name: str, given: Arguments, depth: int | None) -> dict[str, Any]:
    """Bytes of a training step beyond weights and their like, in this process, by memory mode.

    Args:
        name: a model of the runs; or a recipe, of which a flow of this depth is built.
        given: the arguments.
        depth: the depth; None for the run.
    """
    pin(1, given.seed)
    images = given_images(name, given)
    if depth is None:
        flow = read_weights(given.runs / name).flow(torch.device("cpu"))
    else:
        flow = deeper(name, depth).build(images.shape)
    batches = Batches(images, given.batch, seed=given.seed, device=flow.device, conditional=False)
    if depth is not None:
        flow.initialize(*batches.first(given.batch))
    trainer = Trainer(flow, batches, TrainConfig(batch=given.batch, ema=0.0), steps=10**6)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        trainer.advance()  # after it, gradients and Adam's state are there
        peaks = peaks_of(trainer, "operators")
    return {"peak_bytes": peaks, "warnings": sorted({str(each.message) for each in said})}


def beside_floor(run: Callable[[], object], rounds: int) -> dict[str, Any]:
    """Time of a job's products alone over that of the job, see `benchmarks.heavy`."""
    again, operators = recorded(run)
    taken = interleaved({"all": run, "products": again}, rounds, "cpu")
    return {"operators": operators, "share": ratio(taken["products"], taken["all"])}


def measure(given: Arguments) -> dict[str, Any]:
    """Train what is not trained, and measure."""
    begun = {"load": os.getloadavg(), "wall": time.perf_counter(), "cpu": time.process_time()}
    settings_of = {name: depth_of(name) for name in given.deep if given.depths}
    free = ("models", "out", "note")
    settings = {k: str(v) if k == "runs" else v for k, v in asdict(given).items() if k not in free}
    result: dict[str, Any] = {**facts(given.seed), "note": given.note, "settings": settings}
    result |= {"machine": {}, "models": {}, "depths": {}, "depth_settings": settings_of}
    flows = {}
    for name in given.models:
        flows[name], how = trained(name, given)
        size = sum(p.numel() for p in flows[name].parameters())
        result["models"][name] = {"parameters": size, "training": how}
        result["models"][name] |= {"nets": len(nets(flows[name])), "density": flows[name].density}
    works = {}
    for name, flow in flows.items():
        images = given_images(name, given)
        works[name] = jobs(copy.deepcopy(flow), images, given.batch, fused=True)
        x = torch.from_numpy(images.pixels[: given.batch].copy())
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            result["models"][name]["passes"] = counted(flow, x, given)
        result["models"][name]["warnings"] = sorted({str(each.message) for each in said})
        keep(result, given.out)
    runs = {(n, job): getattr(w, JOBS[job]) for n, w in works.items() for job in JOBS}
    for (name, job), taken in interleaved(runs, given.rounds, "cpu").items():
        speeds = result["models"][name].setdefault("images_per_second", {})
        speeds[job] = spread([given.batch / seconds for seconds in taken])
    keep(result, given.out)
    for name, work in works.items():
        result["models"][name]["floor"] = {
            job: beside_floor(getattr(work, JOBS[job]), given.rounds) for job in JOBS
        }
        keep(result, given.out)
    for name in given.models:
        result["models"][name]["memory"] = fresh(memory_of, name, given, None)
        keep(result, given.out)
    for name in settings_of:
        for depth in given.depths:
            found = fresh(memory_of, name, given, depth)
            result["depths"].setdefault(name, {})[depth] = found
            keep(result, given.out)
    wall, cpu = time.perf_counter() - begun["wall"], time.process_time() - begun["cpu"]
    load = {"before": begun["load"], "after": os.getloadavg()}
    result["machine"] = {"load_averages": load, "wall_seconds": wall, "cpu_seconds": cpu}
    keep(result, given.out)
    return result


def tables(result: dict[str, Any]) -> str:
    """The measurements as tables: speed and passes, memory."""
    speed, lines = [], []
    for name, row in result["models"].items():
        cells = [name.removesuffix("-cifar10-tiny"), f"{row['parameters'] / 1e3:,.0f}k"]
        for job in JOBS:
            least, median, most = (
                figure(row["images_per_second"][job][key]) for key in ("least", "median", "most")
            )
            share = row["floor"][job]["share"]["median"]
            cells.append(f"**{median}** ({least}-{most}), {share:.0%}")
        speed.append([*cells, *(passes_told(row["passes"][job]) for job in JOBS)])
        lines.append([cells[0], *megabytes(row)])
    for name, setting in result["depth_settings"].items():
        for depth, row in result["depths"][name].items():
            deep = f"{name.removesuffix('-cifar10-tiny')}, {depth} {setting}"
            lines.append([deep, *megabytes(row)])
    heads = ["model", "par.", *(f"{job}, images/s, floor" for job in JOBS)]
    first = table([*heads, *(f"passes, {job}" for job in JOBS)], speed)
    second = table(["MB of a training step", *MODES], lines)
    return f"{first}\n\n{second}"


def passes_told(row: dict[str, Any]) -> str:
    """Passes of a net, and the most that one took."""
    solves = row.get("solves")
    return figure(row["total"]) + (f" (most {solves['most']})" if solves else "")


def megabytes(row: dict[str, Any]) -> list[str]:
    """Memory in each mode."""
    peaks = row.get("memory", row)["peak_bytes"]
    return [figure(peaks[mode] / 1e6) for mode in MODES]


def main() -> None:
    """Measure and print."""
    with told_in_a_line(Arguments):
        given = tyro.cli(Arguments, description=__doc__)
        pin(1, given.seed, "cpu")
        print(tables(measure(given)))


if __name__ == "__main__":
    main()
