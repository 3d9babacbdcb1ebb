"""What the linear maps cost at each length of vectors, and what they do to bits/dim.

    python benchmarks/linear.py [--lengths N ...] [--rows N] [--rounds N]
    python benchmarks/linear.py --step RECIPE [--pairs ...] [--patch N] [--batch N] [--rounds N]
    python benchmarks/linear.py --train RECIPE=PATH [--pairs LU/LU LU/Woodbury ...] [--steps N]
        [--seeds N ...] [--patch N]

The first times a forward and backward pass, and the inverse, of each map on the same vectors, the
maps interleaved round by round; figures are milliseconds: median, least, most. `matmul_flops` are
those of forward and backward in matrix products, as torch counts them (2 a multiply-add).

The second times a whole training step of a recipe's model with each pair of linear blocks, of
channel flows and of patch flows. The third trains it for equal steps at equal seeds and gives
bits/dim of held-out images. JSON goes to standard output, a table to standard error.
"""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

import mixerflow
from mixerflow.core import Transform
from mixerflow.data import load, make_images
from mixerflow.models import MixerFlow
from mixerflow.parts import LinearMap
from mixerflow.recipes import recipe
from mixerflow.registry import choices, evolve
from mixerflow.training import TrainConfig, Trainer
from mixerflow.training.batches import Batches
from mixerflow.transforms import LU, Butterfly, Woodbury

MAPS: dict[str, Callable[[int], Transform]] = {
    "LU": LU,
    "Woodbury": lambda n: Woodbury(n, min(n, 16)),
    "Butterfly": Butterfly,
}


@dataclass(frozen=True)
class Arguments:
    """What to run."""

    lengths: tuple[int, ...] = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
    rows: int = 384
    """Vectors a pass: 8 images of 48 channels."""
    rounds: int = 5
    step: str | None = None
    """A recipe whose training step to time instead."""
    train: str | None = None
    """RECIPE=PATH: train instead."""
    pairs: tuple[str, ...] = ("LU/LU", "LU/Woodbury", "LU/Butterfly", "LU/none")
    """Linear blocks of the channel flows / of the patch flows, as `--model.linear` has them."""
    steps: int = 300
    seeds: tuple[int, ...] = (0, 1)
    patch: int | None = None
    """Instead of the recipe's: 4 makes 256 patches of 64-pixel images; layers that shift do so by
    half of it."""
    batch: int = 8
    """Images of a training step that is timed."""
    threads: int = 1


def passes(transform: Transform, x: torch.Tensor) -> dict[str, Callable[[], object]]:
    """Forward with backward, and the inverse without."""

    def both() -> None:
        transform.zero_grad()
        z, log_det = transform(x)
        (0.5 * z.square().sum() - log_det.sum()).backward()

    return {"forward_backward": both, "inverse": torch.no_grad()(lambda: transform.inverse(x))}


def milliseconds(run: Callable[[], object], least: float = 0.02) -> float:
    """Of one run: the mean over as many as fill `least` seconds."""
    begun, runs = time.perf_counter(), 0
    while not runs or time.perf_counter() - begun < least:
        run()
        runs += 1
    return (time.perf_counter() - begun) / runs * 1e3


def cost(n: int, rows: int, rounds: int) -> dict[str, dict[str, Any]]:
    """Each map's times, FLOPs and numbers at one length."""
    torch.manual_seed(0)
    x = torch.randn(rows, n, requires_grad=True)
    maps = {name: make(n) for name, make in MAPS.items()}
    jobs = {
        (name, job): run
        for name, transform in maps.items()
        for job, run in passes(transform, x).items()
    }
    times: dict[tuple[str, str], list[float]] = {key: [] for key in jobs}
    for number in range(rounds + 1):
        for key, run in jobs.items():
            taken = milliseconds(run)
            if number:  # the first round warms up
                times[key].append(taken)
    result: dict[str, dict[str, Any]] = {}
    for name, transform in maps.items():
        with FlopCounterMode(display=False) as counter:
            jobs[name, "forward_backward"]()
        result[name] = {"matmul_flops": counter.get_total_flops()}
        result[name]["parameters"] = sum(p.numel() for p in transform.parameters())
        for job in ("forward_backward", "inverse"):
            result[name][job] = summary(times[name, job])
    return result


def summary(values: list[float]) -> dict[str, float]:
    """Median, least and most."""
    found = {"median": statistics.median(values), "least": min(values), "most": max(values)}
    return {key: round(value, 4) for key, value in found.items()}


def model_of(name: str, pair: str, patch: int | None) -> MixerFlow:
    """A recipe's model with other linear blocks, and perhaps another patch."""
    model, maps = recipe(name).model, choices(LinearMap)
    words = pair.lower().split("/")
    if not isinstance(model, MixerFlow) or len(words) != 2 or not {*words} <= maps.keys():
        raise SystemExit(f"benchmarks.linear: {name} {pair}: a MixerFlow, and two of {[*maps]}")
    changes: dict[str, Any] = {"linear": maps[words[0]], "patch_linear": maps[words[1]]}
    if patch is not None:
        shift = tuple(patch // 2 if each else 0 for each in model.patching.shift)
        changes |= {"patching.size": patch, "patching.shift": shift}
    return evolve(model, changes)


def model_steps(given: Arguments) -> dict[str, dict[str, Any]]:
    """Milliseconds of a training step with each pair, interleaved, on noise."""
    assert given.step is not None
    shape = recipe(given.step).shape
    pixels = np.random.default_rng(0).integers(0, 256, (4 * given.batch, *shape), dtype=np.uint8)
    images = make_images(pixels, None, dataset_id="noise")
    trainers = {}
    for pair in given.pairs:
        torch.manual_seed(0)
        flow = model_of(given.step, pair, given.patch).build(shape)
        batches = Batches(images, given.batch, seed=0, device=flow.device, conditional=False)
        config = TrainConfig(batch=given.batch, ema=0.0)
        trainers[pair] = Trainer(flow, batches, config, steps=10**6)
    times: dict[str, list[float]] = {pair: [] for pair in given.pairs}
    for number in range(given.rounds + 1):
        for pair, trainer in trainers.items():
            taken = milliseconds(trainer.advance)
            if number:
                times[pair].append(taken)
    return {
        pair: {
            "step": summary(times[pair]),
            "parameters": sum(p.numel() for p in trainer.flow.parameters()),
        }
        for pair, trainer in trainers.items()
    }


def trainings(given: Arguments) -> list[dict[str, Any]]:
    """One training a pair and seed."""
    assert given.train is not None
    name, _, path = given.train.partition("=")
    images = load(path).train
    results = []
    for pair in given.pairs:
        model = model_of(name, pair, given.patch)
        for seed in given.seeds:
            torch.manual_seed(seed)
            flow = model.build(images.shape)
            settings = replace(recipe(name).train, seed=seed, evaluate_every=given.steps)
            done = mixerflow.train(flow, images, config=settings, steps=given.steps, quiet=True)
            assert done.validation is not None
            results.append(
                {
                    "recipe": name,
                    "patch": model.patching.size,
                    "channel_linear": pair.split("/")[0],
                    "patch_linear": pair.split("/")[1],
                    "seed": seed,
                    "steps": done.step,
                    "batch": settings.batch,
                    "parameters": sum(p.numel() for p in flow.parameters()),
                    "bits_per_dim": done.validation.bits_per_dim,
                    "standard_error": done.validation.standard_error,
                    "images": done.validation.images,
                    "dataset_id": done.validation.dataset_id,
                }
            )
    return results


def main() -> None:
    """Time or train, and print."""
    given = tyro.cli(Arguments)
    torch.set_num_threads(given.threads)
    result: dict[str, Any] = {
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "platform": platform.platform(),
    }
    if given.train is not None:
        table = Table("channels / patches", "seed", "bits/dim", title=given.train)
        result["runs"] = trainings(given)
        for run in result["runs"]:
            pair = f"{run['channel_linear']}/{run['patch_linear']}"
            table.add_row(pair, str(run["seed"]), f"{run['bits_per_dim']:.3f}")
    elif given.step is not None:
        table = Table(
            "channels / patches", "ms a step", title=f"{given.step}, {given.batch} images"
        )
        result |= {"recipe": given.step, "patch": given.patch, "batch": given.batch}
        result["milliseconds"] = model_steps(given)
        for pair, figures in result["milliseconds"].items():
            table.add_row(pair, f"{figures['step']['median']:.0f}")
    else:
        table = Table("n", *MAPS, title=f"ms forward and backward of {given.rows} vectors")
        result["rows"] = given.rows
        result["milliseconds"] = {n: cost(n, given.rows, given.rounds) for n in given.lengths}
        for n, maps in result["milliseconds"].items():
            medians = (figures["forward_backward"]["median"] for figures in maps.values())
            table.add_row(str(n), *(f"{median:.2f}" for median in medians))
    print(json.dumps(result, indent=2))
    Console(stderr=True).print(table)


if __name__ == "__main__":
    main()
