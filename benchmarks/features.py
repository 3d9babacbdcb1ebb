"""Flows of feature maps: made-up defects beside Gaussians, and what linear maps cost.

    python -m benchmarks.features [--kinds gaussian bent] [--seeds N ...] [--steps N]
        [--channels C] [--side N] [--images N] [--settings "" "linear=lu;layers=3" ...]
    python -m benchmarks.features --speed [--lengths 384 768 1024] [--maps lu woodbury]
        [--threads N]

The first trains flows on made-up feature maps of good parts, and scores good ones and ones with a
defect, a square of 5 x 5 places: AUROC of images by each pooling of the places' scores, and of
places. Beside them are Gaussians of the channels: one for each place, one for all places, and one
covariance with a mean for each place.

The second measures a training step, and scoring with `fused`, of the default model with each linear
map, in milliseconds an image of 28 x 28 places: on the clock, and of all threads' processor time,
which other processes do not use up. JSON goes to standard output.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor

import mixerflow
from benchmarks.common import emit, facts, spread
from mixerflow.core import Flow
from mixerflow.detection import POOLINGS, detection, place_scores
from mixerflow.models import FeatureFlow
from mixerflow.parts import LinearMap
from mixerflow.registry import choices, evolve
from mixerflow.train_config import TrainConfig

PAIRS = 12
"""Pairs of factors that a made-up feature vector is made of."""
SQUARE = 5
"""Side of a made-up defect, in places."""


@dataclass(frozen=True)
class Arguments:
    """What to run."""

    kinds: tuple[str, ...] = ("gaussian", "bent")
    """Made-up features: of correlated normal factors, or of pairs on parabolas."""
    seeds: tuple[int, ...] = (0,)
    steps: int = 1000
    batch: int = 8
    lr: float = 2e-3
    channels: int = 64
    side: int = 14
    images: int = 200
    """Maps of good parts to train on; as many good and as many others are scored."""
    noise: float = 0.05
    """Standard deviation of the noise that all channels have; with 0 they are of rank 2 PAIRS."""
    settings: tuple[str, ...] = ("",)
    """Settings of FeatureFlow, each as PATH=VALUE;PATH=VALUE, as in linear=lu;layers=8."""
    speed: bool = False
    """Measure times instead."""
    lengths: tuple[int, ...] = (384, 768, 1024)
    maps: tuple[str, ...] = ("lu", "woodbury", "none")
    places: int = 28
    """Side of the feature maps that are timed."""
    rounds: int = 7
    threads: int = 2
    out: Path | None = None
    """A file for the JSON too."""


def smooth(n: int, factors: int, side: int, generator: torch.Generator) -> Tensor:
    """Normal random fields ``(n, factors, side, side)`` of variance 1, smooth over the places."""
    noise = torch.randn(n, factors, side + 4, side + 4, generator=generator)
    fields = torch.nn.functional.avg_pool2d(noise, 5, 1)
    return fields * 5


def factors(kind: str, n: int, side: int, generator: torch.Generator, *, broken: bool) -> Tensor:
    """Pairs of factors at each place, ``(n, 2 PAIRS, side, side)``; of good parts or broken ones.

    Of good parts the second of a pair is correlated with the first by 0.9, or is a parabola of it
    and not correlated; of broken ones the second is independent of the first in every fourth pair,
    and each by itself has the same distribution as in good ones.
    """
    a, b, other = smooth(n, 3 * PAIRS, side, generator).chunk(3, 1)
    wrong = torch.arange(PAIRS)[:, None, None] % 4 == 0 if broken else torch.tensor(False)
    read = torch.where(wrong, other, a)
    if kind == "bent":
        read = (read.square() - 1) / 2**0.5
    return torch.cat([a, 0.9 * read + (1 - 0.9**2) ** 0.5 * b], 1)


@dataclass(frozen=True)
class Parts:
    """Made-up features: good ones to train on, good ones and broken ones to score.

    `masks` says which places of the broken ones are defects, ``(n, side, side)``.
    """

    train: Tensor
    good: Tensor
    broken: Tensor
    masks: Tensor


def made_up(
    kind: str, n: int, channels: int, side: int, *, noise: float = 0.05, seed: int = 0
) -> Parts:
    """Features ``(n, channels, side, side)``: factors, mixed, on a mean that depends on the place.

    The channels' scales go from 0.1 to 10, and the last channel is constant.
    """
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(channels, 2 * PAIRS, generator=generator) / (2 * PAIRS) ** 0.5
    scales = 10 ** (2 * torch.rand(channels, 1, 1, generator=generator) - 1)
    mean = 2 * smooth(1, channels, side, generator)[0]

    def observed(values: Tensor) -> Tensor:
        x = torch.einsum("cf,nfhw->nchw", mixing, values) + mean
        x = scales * (x + noise * torch.randn(x.shape, generator=generator))
        x[:, -1] = 3.0
        return x

    masks = torch.zeros(n, side, side, dtype=torch.bool)
    corners = torch.randint(side - SQUARE + 1, (n, 2), generator=generator).tolist()
    for mask, (top, left) in zip(masks, corners, strict=True):
        mask[top : top + SQUARE, left : left + SQUARE] = True
    good = [factors(kind, n, side, generator, broken=False) for _ in range(3)]
    broken = torch.where(masks[:, None], factors(kind, n, side, generator, broken=True), good[2])
    return Parts(observed(good[0]), observed(good[1]), observed(broken), masks)


def gaussian_scores(train: Tensor, *, by_place: bool) -> Callable[[Tensor], Tensor]:
    """``(x - m)' C^-1 (x - m)`` of each place: a Gaussian of its own, or one for all places.

    Each channel is divided by its standard deviation first, and 0.01 is added to C's diagonal.
    """
    deviation = train.std((0, 2, 3), keepdim=True).clamp(min=1e-6)

    def rows(x: Tensor) -> Tensor:
        vectors = (x / deviation).flatten(2).permute(2, 0, 1).double()
        return vectors if by_place else vectors.reshape(1, -1, x.shape[1])

    vectors = rows(train)
    mean = vectors.mean(1, keepdim=True)
    covariance = (vectors - mean).mT @ (vectors - mean) / vectors.shape[1]
    covariance.diagonal(dim1=1, dim2=2).add_(0.01)
    factor = torch.linalg.cholesky(covariance)

    def scores(x: Tensor) -> Tensor:
        white = torch.linalg.solve_triangular(factor, (rows(x) - mean).mT, upper=False)
        distance = white.square().sum(1)
        places = distance.mT if by_place else distance.reshape(-1, len(x)).mT
        return places.reshape(len(x), *x.shape[2:])

    return scores


def pooled_scores(train: Tensor) -> Callable[[Tensor], Tensor]:
    """The same with a mean of each place's own and one covariance: the flow before training."""
    mean = train.mean(0)
    scores = gaussian_scores(train - mean, by_place=False)
    return lambda x: scores(x - mean)


def figures(scores: Callable[[Tensor], Tensor], parts: Parts) -> dict[str, float]:
    """AUROC of images by each score of a map, and of places."""
    good, broken = scores(parts.good), scores(parts.broken)

    def auroc(inside: Tensor, outside: Tensor) -> float:
        return round(detection(inside.numpy(), outside.numpy(), resamples=0).auroc, 4)

    result = {
        name: auroc(*(pooling.pool(maps.flatten(1)) for maps in (good, broken)))
        for name, pooling in POOLINGS.items()
    }
    inside = torch.cat([good.flatten(), broken[~parts.masks]])
    return result | {"places": auroc(inside, broken[parts.masks])}


def trained(model: FeatureFlow, train: Tensor, given: Arguments, seed: int) -> Flow:
    """Return a flow that has been trained on maps of good parts."""
    torch.manual_seed(seed)
    flow = model.build(tuple(train.shape[1:]))
    config = TrainConfig(
        steps=given.steps,
        batch=given.batch,
        lr=given.lr,
        betas=(0.9, 0.99),
        warmup=20,
        ema=0.99,
        initial=64,
        seed=seed,
    )
    mixerflow.train(flow, train, config=config, quiet=True)
    return flow.fused()


def model_of(settings: str) -> FeatureFlow:
    """FeatureFlow with settings ``PATH=VALUE;...`` in JSON; the word of a linear map is the map."""
    changes: dict[str, Any] = {}
    for pair in filter(None, settings.split(";")):
        path, value = pair.split("=", 1)
        maps = choices(LinearMap) if path in ("linear", "first") else {}
        changes[path] = maps[value] if value in maps else json.loads(value)
    return evolve(FeatureFlow(), changes)


def compare(given: Arguments) -> list[dict[str, Any]]:
    """AUROC of the flows and of the Gaussians, by kind and seed."""
    rows = []
    for kind in given.kinds:
        for seed in given.seeds:
            parts = made_up(
                kind, given.images, given.channels, given.side, noise=given.noise, seed=seed
            )
            about = {"kind": kind, "seed": seed}
            for name, by_place in (("a Gaussian for each place", True), ("one Gaussian", False)):
                scores = gaussian_scores(parts.train, by_place=by_place)
                rows.append(about | {"model": name} | figures(scores, parts))
            name = "one covariance, a mean for each place"
            rows.append(about | {"model": name} | figures(pooled_scores(parts.train), parts))
            for settings in given.settings:
                begun = time.perf_counter()
                flow = trained(model_of(settings), parts.train, given, seed)
                seconds = time.perf_counter() - begun

                def scores(x: Tensor, flow: Flow = flow) -> Tensor:
                    return torch.from_numpy(place_scores(flow, x))

                row = about | {"model": f"flow {settings}"} | figures(scores, parts)
                rows.append(row | {"seconds": round(seconds)})
                print(rows[-1], flush=True, file=sys.stderr)
    return rows


def jobs_of(channels: int, word: str, given: Arguments) -> dict[str, Callable[[], object]]:
    """A training step, and scoring, of a batch of maps by the default model with a linear map."""
    torch.manual_seed(0)
    flow = evolve(FeatureFlow(), {"linear": choices(LinearMap)[word]}).build(
        (channels, given.places, given.places)
    )
    x = torch.randn(given.batch, *flow.shape)
    flow.initialize(x)
    fused, optimizer = flow.fused(), torch.optim.Adam(flow.parameters(), 1e-3)

    def step() -> None:
        optimizer.zero_grad()
        (-flow.log_prob(x).mean() / flow.dims).backward()
        optimizer.step()

    return {"step": step, "score": lambda: place_scores(fused, x, batch=given.batch)}


def speed(given: Arguments) -> list[dict[str, Any]]:
    """Milliseconds an image, on the clock and of all threads' processor time, by model and job."""
    rows = []
    for channels in given.lengths:
        for word in given.maps:
            for job, run in jobs_of(channels, word, given).items():
                wall, cpu = [], []
                for number in range(given.rounds + 1):
                    clock, processor = time.perf_counter(), time.process_time()
                    run()
                    if number:  # the first round warms up
                        wall.append((time.perf_counter() - clock) / given.batch * 1e3)
                        cpu.append((time.process_time() - processor) / given.batch * 1e3)
                row = {"channels": channels, "linear": word, "job": job}
                rows.append(row | {"clock": spread(wall), "processor": spread(cpu)})
                print(rows[-1], flush=True, file=sys.stderr)
    return rows


def main() -> None:
    """Run what the arguments say, and print JSON."""
    given = tyro.cli(Arguments, description=__doc__)
    torch.set_num_threads(given.threads)
    load = os.getloadavg()[0]
    rows = speed(given) if given.speed else compare(given)
    emit(facts(0) | {"load": load, "rows": rows}, given.out)


if __name__ == "__main__":
    main()
