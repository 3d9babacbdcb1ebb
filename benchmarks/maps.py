"""How well maps find patches of foreign images that were pasted into held-out images.

    python -m benchmarks.maps RUN --foreign svhn.npz cifar100.npz [--images N] [--out FILE]

Into each test image of the run's set a square of a foreign image is pasted, at a random place. The
figure is the AUROC over the pixels of an image, pasted pixels positive: its mean over images and
seeds of the pasting, and the standard error over images. `the same set` takes patches from other
test images, and `noise` is uniform. The maps' settings were chosen on the first 100 test images, so
begin after them.
"""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from torch import Tensor

from benchmarks.common import emit, facts, keep, pin
from mixerflow import runs
from mixerflow.core import Flow
from mixerflow.data import load
from mixerflow.detection import (
    GradientMap,
    OcclusionMap,
    OutlierMap,
    SlopeMap,
    VarianceMap,
    map_auroc,
    paste,
)
from mixerflow.means import mean_and_error
from mixerflow.registry import describe

MAPS: dict[str, OutlierMap] = {
    "slope": SlopeMap(),
    "occlusion": OcclusionMap(),
    "gradient": GradientMap(),
    "variance": VarianceMap(),
}
BASELINE = "variance"


@dataclass(frozen=True)
class Arguments:
    """Which run, and what is pasted."""

    run: tyro.conf.Positional[Path]
    data: str
    """The run's set, whose test images are pasted into."""
    foreign: tuple[str, ...] = ()
    """Sets of foreign images; their test part, where there is one."""
    sides: tuple[int, ...] = (8, 12)
    """Sides of the squares in pixels."""
    images: int = 150
    """Images that are pasted into."""
    skip: int = 200
    """Test images before the first of them."""
    seeds: int = 3
    """Seeds of the pasting."""
    threads: int = 1
    out: Path | None = None


def held_out(spec: str) -> np.ndarray:
    """Pixels of the test images of a set; of all, where it has no test part."""
    splits = load(spec)
    return np.asarray((splits.train if splits.test is None else splits.test).pixels[:])


def figures(scores: dict[str, list[Tensor]]) -> dict[str, Any]:
    """AUROC of each map, mean over seeds and images; and less that of the baseline, paired."""
    means = {name: torch.stack(each).mean(0) for name, each in scores.items()}
    found = {}
    for name, each in means.items():
        auroc, error = mean_and_error(each)
        difference, difference_error = mean_and_error(each - means[BASELINE])
        found[name] = {
            "auroc": auroc,
            "auroc_error": error,
            "seeds": [seed.mean().item() for seed in scores[name]],
            "above_variance": difference,
            "above_variance_error": difference_error,
        }
    return found


def one(
    flow: Flow,
    images: np.ndarray,
    foreign: np.ndarray,
    side: int,
    seeds: int,
    seconds: dict[str, float],
) -> dict[str, Any]:
    """Paste, map and score at every seed."""
    scores: dict[str, list[Tensor]] = {name: [] for name in MAPS}
    for seed in range(seeds):
        pasted = paste(images, foreign, side=side, seed=seed)
        for name, each in MAPS.items():
            begun = time.process_time()
            maps = each.map(flow, pasted.images)
            seconds[name] += time.process_time() - begun
            scores[name].append(map_auroc(maps, pasted.masks))
    return figures(scores)


def main() -> None:
    """Measure all, and print."""
    given = tyro.cli(Arguments)
    pin(given.threads, 0)
    held = runs.read_weights(given.run)
    flow, test = held.flow(torch.device("cpu")), held_out(given.data)
    images = test[given.skip : given.skip + given.images]
    foreign = {Path(spec).stem: held_out(spec) for spec in given.foreign}
    foreign["the same set"] = test[given.skip + given.images :]
    noise = np.random.default_rng(0).integers(0, flow.levels or 256, (1000, *flow.shape))
    foreign["noise"] = noise.astype(test.dtype)
    report: dict[str, Any] = facts(0) | {
        "steps": held.metadata.get("steps"),
        "recipe": held.metadata.get("recipe"),
        "images": len(images),
        "first_image": given.skip,
        "seeds": given.seeds,
        "maps": {name: describe(each) for name, each in MAPS.items()},
        "evaluations": {name: each.evaluations(flow.shape) for name, each in MAPS.items()},
        "results": [],
    }
    seconds: dict[str, float] = defaultdict(float)
    for side in given.sides:
        for name, each in foreign.items():
            found = one(flow, images, each, side, given.seeds, seconds)
            report["results"].append({"side": side, "foreign": name, "maps": found})
            keep(report, given.out)
    count = len(images) * given.seeds * len(report["results"])
    report["images_per_cpu_second"] = {name: count / total for name, total in seconds.items()}
    emit(report, given.out)


if __name__ == "__main__":
    main()
