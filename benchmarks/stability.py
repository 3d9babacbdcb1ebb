"""Does training stay finite? Recipes on their data at several seeds, and the cures taken away.

    python benchmarks/stability.py --data mixerflow-mnist-tiny=mnist.npz ... [--seeds 5] [--steps N]
    python benchmarks/stability.py --cures mnist.npz        # the table of docs/stability.md

Prints JSON. A run is the recipe's own model, batch, learning rate and start, for a number of steps;
it ends at the first step whose loss or gradient is not finite.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import tyro

from mixerflow.data import Images, load
from mixerflow.models import MixerFlow, Model
from mixerflow.parts import MLP, RowCoupling
from mixerflow.recipes import recipe
from mixerflow.registry import evolve
from mixerflow.training import TrainConfig, Trainer
from mixerflow.training.batches import Batches
from mixerflow.transforms import ActNorm


@dataclass(frozen=True)
class Arguments:
    """What to run."""

    data: tuple[str, ...] = ()
    """RECIPE=PATH pairs."""
    cures: Path | None = None
    """Images on which to take the cures away one by one."""
    seeds: int = 5
    steps: int = 100
    batch: int | None = None
    """Instead of the recipe's."""
    warmup: int | None = None
    """Instead of the recipe's: 0 begins at the full learning rate."""
    threads: int = 1


def run(
    model: Model, config: TrainConfig, images: Images, *, steps: int, floor: float = 1.0
) -> dict[str, Any]:
    """Train for some steps; how it went."""
    torch.manual_seed(config.seed)
    flow = model.build(images.shape)
    for module in flow.modules():
        if isinstance(module, ActNorm):
            module.floor = floor
    batches = Batches(images, config.batch, seed=config.seed, device=flow.device, conditional=False)
    flow.initialize(batches.first(config.initial)[0])
    trainer = Trainer(flow, batches, config, steps=max(steps, 10 * config.warmup))
    begun, taken = time.monotonic(), []
    for _ in range(steps):
        taken.append(trainer.advance())
        if taken[-1].bad_part is not None:
            break
    good = [step for step in taken if step.bad_part is None]
    x = torch.from_numpy(images.pixels[:64].copy())
    averaged = trainer.settle()
    wrong = int((averaged.decode(averaged.encode(x)) != x).sum())
    return {
        "seed": config.seed,
        "steps": len(taken),
        "not_finite": None if taken[-1].bad_part is None else [len(taken), taken[-1].bad_part],
        "largest_objective": max((step.objective for step in good), default=None),
        "last_objective": good[-1].objective if good else None,
        "largest_gradient_norm": max((step.gradient_norm for step in good), default=None),
        "pixels_not_decoded": wrong,
        "of_pixels": x.numel(),
        "seconds": round(time.monotonic() - begun, 1),
    }


def cures(images: Images, seeds: int, steps: int) -> list[dict[str, Any]]:
    """8 layers of width 64, batch 32, learning rate 1e-3, from a start that saw one batch."""
    config = TrainConfig(batch=32, lr=1e-3, warmup=0, initial=32)
    base = MixerFlow(layers=8, flow=RowCoupling(net=MLP(64)))
    plain = evolve(base, {"flow.net.squash": False})
    settings = {
        "none": (0.1, plain),
        "bounded log-scale": (0.1, evolve(plain, {"flow.elementwise.bound": 2.0})),
        "nets read logarithms": (0.1, base),
        "start never amplifies": (1.0, plain),
        "both of the last two": (1.0, base),
    }
    return [
        {"cure": name, "norm": norm}
        | run(
            evolve(model, {"flow.net.norm": norm}),
            replace(config, seed=seed),
            images,
            steps=steps,
            floor=floor,
        )
        for name, (floor, model) in settings.items()
        for norm in ("none", "batch")
        for seed in range(seeds)
    ]


def main() -> None:
    """Run and print."""
    given = tyro.cli(Arguments)
    torch.set_num_threads(given.threads)
    result: dict[str, Any] = {"torch": torch.__version__, "threads": given.threads}
    if given.cures is not None:
        result["cures"] = cures(load(str(given.cures)).train, given.seeds, given.steps)
    for pair in given.data:
        name, _, path = pair.partition("=")
        named, images = recipe(name), load(path).train
        config = named.train
        if given.batch is not None:
            config = replace(config, batch=given.batch)
        if given.warmup is not None:
            config = replace(config, warmup=given.warmup)
        result[name] = [
            run(named.model, replace(config, seed=seed), images, steps=given.steps)
            for seed in range(given.seeds)
        ]
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
