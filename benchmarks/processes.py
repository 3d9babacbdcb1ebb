"""Training speed of one process beside two processes, with threads stated; prints JSON.

Each way is started afresh; images are noise of CIFAR-10's shape, which costs what CIFAR-10 costs.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time

import numpy as np
import torch

from mixerflow.data import make_images
from mixerflow.processes import joined
from mixerflow.recipes import recipe
from mixerflow.registry import evolve
from mixerflow.training import Trainer
from mixerflow.training.batches import Batches
from mixerflow.training.parallel import local

WAYS = {
    "one process, 1 thread": (1, 1, "ddp"),
    "one process, 2 threads": (1, 2, "ddp"),
    "DDP, 2 x 1 thread": (2, 1, "ddp"),
    "FSDP2, 2 x 1 thread": (2, 1, "fsdp"),
}
"""Name -> processes, threads in each, how they share the flow."""


def measure(name: str, way: str, steps: int, norm: str | None) -> None:
    """Time steps in this process, among those that were launched with it."""
    torch.set_num_threads(WAYS[way][1])
    named = recipe(name)
    rng = np.random.default_rng(0)
    images = make_images(rng.integers(0, 256, (512, *named.shape), np.uint8), None, dataset_id="-")
    torch.manual_seed(0)
    config = dataclasses.replace(named.train, parallel=WAYS[way][2])
    changes = {"flow.net.norm": norm} if norm else {}
    flow = evolve(named.model, changes).build(named.shape)
    with joined() as processes:
        batches = Batches(
            images, config.batch, seed=0, device=flow.device, conditional=False, processes=processes
        )
        flow.initialize(*batches.first(64))
        trainer = Trainer(flow, batches, config, steps=10**6)
        times = []
        for _ in range(steps):
            begun = time.perf_counter()
            trainer.advance()
            times.append(time.perf_counter() - begun)
        held = [*flow.parameters(), *trainer.average.flow.parameters()]
        held += [v for values in trainer.optimizer.state.values() for v in values.values()]
        size = sum(local(tensor).nbytes for tensor in held)
        if processes.main:
            seconds = statistics.median(times[len(times) // 4 :])
            figures = {"images_per_second": config.batch / seconds, "state_megabytes": size / 1e6}
            print(json.dumps(figures))


def main() -> None:
    """Run each way in turn, a few times, and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", default="mixerflow-cifar10-tiny")
    parser.add_argument("--norm", help="of the flows' nets, instead of the recipe's")
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--way", choices=WAYS, help="measure this one here")
    given = parser.parse_args()
    if given.way:
        measure(given.recipe, given.way, given.steps, given.norm)
        return
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for _ in range(given.rounds):
        for way, (processes, threads, _) in WAYS.items():
            command = [sys.executable]
            if processes > 1:
                command += ["-m", "torch.distributed.run", "--standalone"]
                command += [f"--nproc-per-node={processes}"]
            command += [__file__, "--way", way, "--recipe", given.recipe]
            command += ["--steps", str(given.steps)]
            command += ["--norm", given.norm] if given.norm else []
            environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, check=True
            )
            found[way].append(json.loads(done.stdout))
    report = {
        way: {key: [round(each[key], 2) for each in figures] for key in figures[0]}
        for way, figures in found.items()
    }
    setting = {"recipe": given.recipe, "norm": given.norm, "torch": torch.__version__}
    print(json.dumps(setting | {"ways": report}, indent=2))


if __name__ == "__main__":
    main()
