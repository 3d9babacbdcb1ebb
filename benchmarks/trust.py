"""Bits/dim after equal steps: our Glow, RealNVP and NSF beside other libraries' own.

    python -m benchmarks.trust cifar10.npz [--models NAME ...] [--steps N] [--seeds N] [--out FILE]

For each seed a model of ours starts from a first batch, and its counterpart is built from another
library's parts, with the same weights. Both then take the same steps with torch's Adam: the same
images and the same noise. As the libraries have their parts, some parametrisations differ
(an ActNorm's shift, a spline's derivatives), and training amplifies rounding, so runs drift apart.
With ``--exact`` the parametrisations are the same, and with ``--double`` rounding plays no part.
The interval is the 95 % interval, by Student's t, of the difference of test bits/dim, paired by
seed. It should lie within 0.03.
"""

from __future__ import annotations

import math
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from torch import Tensor, nn

from benchmarks.common import emit, facts, keep, pin
from benchmarks.counterparts import counterpart, split_pixels
from mixerflow.core import Flow, Noise
from mixerflow.data import load
from mixerflow.experiments.student import quantile
from mixerflow.models import NSF, Glow, RealNVP
from mixerflow.parts import LUMap, PlainConv, PreactivationConv, ResidualConv

MODELS = {
    "Glow, normflows": Glow(2, 2, net=PlainConv(32, zero=True), split=None),
    "NSF, nflows": NSF(
        2, 2, LUMap(), net=PreactivationConv(32, depth=1), split=None, bias=True, last_map=True
    ),
    "RealNVP, normflows": RealNVP(2, ResidualConv(8, depth=1, norm="none")),
}
LIMIT = 0.03
"""Bits/dim within which the interval of the difference must lie."""


@dataclass(frozen=True)
class Arguments:
    """What to train."""

    data: tyro.conf.Positional[str]
    models: tuple[str, ...] = field(default_factory=lambda: tuple(MODELS))
    steps: int = 300
    seeds: int = 3
    batch: int = 32
    lr: float = 2e-3
    images: int = 500
    """Test images."""
    size: int = 32
    """Side of the middle of each image, which is all that the models see."""
    exact: bool = False
    """Whether counterparts have our parametrisations, see `counterpart`."""
    double: bool = False
    """Whether to train in float64: rounding, which training amplifies, is then no difference."""
    threads: int = 1
    out: Path | None = None


@torch.no_grad()
def real_numbers(flow: Flow, images: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """What comes behind the pixels' transforms, and their log-det: the same for both models."""
    y, log_det = images.to(flow.dtype), torch.zeros(len(images))
    for step in split_pixels(flow)[0]:
        y, each = step(y, noise=Noise(seed, torch.arange(len(images))))
        log_det = log_det + each
    return y, log_det


class Ours(nn.Module):
    """The flow behind its pixels' transforms."""

    def __init__(self, flow: Flow) -> None:
        super().__init__()
        self.scales, self.base = split_pixels(flow)[1], flow.base

    def log_prob(self, y: Tensor) -> Tensor:
        """Log-probabilities of real numbers ``(B, C, H, W)``."""
        z, log_det = self.scales(y)
        return self.base.log_prob(z) + log_det


def trained(flow: Flow, density: nn.Module, pixels: Tensor, given: Arguments, seed: int) -> None:
    """Take the steps; the images and the noise are functions of the seed and the step."""
    optimizer = torch.optim.Adam(density.parameters(), given.lr, betas=(0.9, 0.99))
    density.train()
    for step in range(given.steps):
        chosen = torch.Generator().manual_seed(1000 * seed + step)
        rows = torch.randint(len(pixels), (given.batch,), generator=chosen)
        y, _ = real_numbers(flow, pixels[rows], 1000 * seed + step)
        for group in optimizer.param_groups:
            # the rate falls to 0: the last steps' noise would hide a difference of 0.03
            falling = 0.5 + 0.5 * math.cos(math.pi * step / given.steps)
            group["lr"] = given.lr * min(1.0, (step + 1) / 50) * falling
        loss = -density.log_prob(y).mean() / y[0].numel()  # pyright: ignore[reportCallIssue]
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(density.parameters(), 1.0)
        optimizer.step()


@torch.no_grad()
def scored(flow: Flow, density: nn.Module, pixels: Tensor) -> float:
    """Test bits/dim in eval mode."""
    density.eval()
    y, log_det = real_numbers(flow, pixels, 0)
    log_prob = [density.log_prob(part) for part in y.split(100)]  # pyright: ignore[reportCallIssue]
    return -(torch.cat(log_prob) + log_det).mean().item() / (y[0].numel() * math.log(2))


def middle(pixels: np.ndarray, size: int) -> Tensor:
    """The middle of images ``(N, C, H, W)``, `size` pixels a side."""
    top, left = ((side - size) // 2 for side in pixels.shape[2:])
    return torch.from_numpy(pixels[:, :, top : top + size, left : left + size].copy())


def pair(name: str, train: Tensor, test: Tensor, given: Arguments, seed: int) -> dict[str, float]:
    """Test bits/dim of both after their steps, and at the start; CPU seconds of each."""
    torch.manual_seed(seed)
    flow = MODELS[name].build(tuple(train.shape[1:]))
    flow = flow.double() if given.double else flow
    flow.initialize(train[torch.randperm(len(train))[:256]])
    both = {"ours": Ours(flow), "theirs": counterpart(MODELS[name], flow, exact=given.exact)}
    found: dict[str, float] = {}
    for who, density in both.items():
        found[f"{who}_start"] = scored(flow, density, test[:100])
        begun = time.process_time()
        trained(flow, density, train, given, seed)
        found[f"{who}_seconds"] = time.process_time() - begun
        found[who] = scored(flow, density, test)
    return {key: round(value, 5) for key, value in found.items()}


def verdict(pairs: list[dict[str, float]]) -> dict[str, Any]:
    """Mean difference, ours less theirs, and half of its interval; two seeds at least."""
    gaps = [each["ours"] - each["theirs"] for each in pairs]
    if len(gaps) < 2:
        return {}
    mean, error = statistics.mean(gaps), statistics.stdev(gaps) / len(gaps) ** 0.5
    half = quantile(len(gaps) - 1) * error
    found = {"difference": round(mean, 5), "half_interval": round(half, 5)}
    return found | {"within": abs(mean) + half <= LIMIT, "not_worse": mean + half <= LIMIT}


def main() -> None:
    """Train every model at every seed, and print."""
    given = tyro.cli(Arguments)
    pin(given.threads, 0)
    splits = load(given.data)
    held_out = splits.train if splits.test is None else splits.test
    train = middle(splits.train.pixels[:], given.size)
    test = middle(held_out.pixels[: given.images], given.size)
    report: dict[str, Any] = facts(0, ("nflows", "normflows"))
    report |= {
        "steps": given.steps,
        "batch": given.batch,
        "lr": given.lr,
        "exact": given.exact,
        "double": given.double,
    }
    report |= {"images": len(test), "size": given.size, "dataset_id": splits.train.dataset_id}
    report |= {"limit": LIMIT, "results": {}}
    for name in given.models:
        pairs = []
        for seed in range(given.seeds):
            pairs.append(pair(name, train, test, given, seed))
            report["results"][name] = {
                "model": repr(MODELS[name]),
                "seeds": pairs,
                **verdict(pairs),
            }
            keep(report, given.out)
    emit(report, given.out)


if __name__ == "__main__":
    main()
