"""Rivals in `benchmarks.minutes`: models of other libraries in a plain training loop.

The loop has what the package's trainer has: a warm-up, then a cosine to 0 by the clock, whose place
in it each step is told; gradients of the mean bits/dim, shortened to a norm of 5; an average of the
weights. A step whose loss or gradient is not finite changes nothing.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.costs import flop
from benchmarks.minutes_learners import BATCH, Learner
from benchmarks.rival_transformer import Transformer
from benchmarks.rivals import LIBRARIES, Glow, Rival, base
from mixerflow import kernels
from mixerflow.core import Noise, as_tensor, number_streams
from mixerflow.data import Images
from mixerflow.errors import ConfigError, nearest
from mixerflow.recipes import build
from mixerflow.train_config import TrainConfig
from mixerflow.training.batches import Batches
from mixerflow.transforms import Dequantize

RIVALS = (*LIBRARIES, "transformer")
_SIZES = 4
"""Numbers that give a transformer's sizes; a Glow has one less."""
RIVAL_TRAINING = TrainConfig(betas=(0.9, 0.99), warmup=20, ema=0.99, initial=256)
"""As the small recipes; batch and rate are arguments."""
_NARROW, _WIDE = (-0.5, 0.5), (-2.0, 2.0)
"""Intervals of the pixels: FrEIA's ActNorm does not start from data, so that these come to it with
a variance of about 1; the others' start makes the interval no matter."""
_DECAY = 1e-4
"""Weight decay of the transformer, whose paper has it, and the second decay rate 0.95."""


@dataclass(frozen=True)
class Other:
    """A model that is not the package's, on images scaled to an interval."""

    name: str
    about: str
    package: str
    build: Callable[[], Rival]
    config: TrainConfig
    low: float
    high: float
    decay: float = 0.0
    """Weight decay; Adam becomes AdamW."""
    rates: tuple[float, ...] = field(default=())

    def begin(self, images: Images, seed: int, rate: float, seconds: float) -> Learner:
        """Seed, build, and see a first batch."""
        return _Loop(self, images, seed, replace(self.config, lr=rate, seed=seed))


class _Scaled(nn.Module):
    """Bits/dim ``(B,)`` of integer images under a rival's density, dequantised uniformly."""

    def __init__(self, entrant: Other, levels: int) -> None:
        super().__init__()
        self.rival, self.dequantize = entrant.build(), Dequantize(levels)
        number_streams(self)  # the noise of an image is that of the package's models
        self.low, self.scale = entrant.low, (entrant.high - entrant.low) / levels

    def forward(self, x: Tensor, noise: Noise | None = None) -> Tensor:
        y = self.dequantize(x, noise=noise)[0] * self.scale + self.low
        return -self.rival.log_prob(y) / (y[0].numel() * math.log(2)) - math.log2(self.scale)


class _Loop:
    """A plain training loop in torch."""

    settling = 0.0

    def __init__(self, entrant: Other, images: Images, seed: int, config: TrainConfig) -> None:
        if images.levels is None:
            raise ConfigError("images of floats", images.dataset_id, "give integers")
        self.config = config
        torch.manual_seed(seed)
        self.model = _Scaled(entrant, images.levels)
        self.batches = Batches(
            images, config.batch, seed=seed, device=torch.device("cpu"), conditional=False
        )
        with torch.no_grad():
            self.model(self.batches.first(config.initial)[0])  # an ActNorm's start
        self.averaged = copy.deepcopy(self.model).eval().requires_grad_(False)
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.parameters = sum(p.numel() for p in self.trained)
        settings = {"lr": config.lr, "betas": config.betas, "fused": True}
        self.optimizer: torch.optim.Optimizer
        if entrant.decay:
            self.optimizer = torch.optim.AdamW(self.trained, weight_decay=entrant.decay, **settings)
        else:
            self.optimizer = torch.optim.Adam(self.trained, **settings)
        self.number, self.skipped = 0, 0

    def step(self, place: float, whole: int) -> None:
        self.optimizer.param_groups[0]["lr"] = self.config.lr_at(place, whole)
        self.optimizer.zero_grad()
        loss = self.model(self.batches.at(self.number)[0]).mean()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.trained, self.config.clip)
        self.number += 1
        if not math.isfinite(loss.item()) or not math.isfinite(norm.item()):
            self.skipped += 1
            return
        self.optimizer.step()
        self._average()

    @torch.no_grad()
    def _average(self) -> None:
        """Average in all numbers, those of buffers too, as the package averages its weights."""
        n = self.number - 1
        share = 1 - min(self.config.ema, (1 + n) / (10 + n))
        mine, theirs = (
            [t for t in module.state_dict().values() if t.is_floating_point()]
            for module in (self.averaged, self.model)
        )
        torch._foreach_lerp_(mine, theirs, share)

    def settle(self) -> None:
        """Nothing: the averaged numbers are all that there is."""

    @torch.no_grad()
    def score(self, images: Images) -> np.ndarray:
        found = []
        for start in range(0, len(images), BATCH):
            x = as_tensor(images.pixels[start : start + BATCH])
            found.append(self.averaged(x, Noise.of(0, x)).double().numpy())
        return np.concatenate(found)


def operations(name: str, shape: tuple[int, ...], batch: int = 32) -> float:
    """Floating-point operations of a recipe's forward pass on an image."""
    flow = build(name, shape).eval()
    x = torch.zeros(batch, *shape, dtype=torch.uint8)
    with kernels.disabled(), torch.no_grad():
        return flop(lambda: flow.log_prob(x)) / batch


def rival(name: str, shape: tuple[int, ...], like: str, batch: int) -> Other:
    """The rival of that name for images ``(C, H, W)``.

    Args:
        name: a library, whose Glow it is, or ``LIBRARY-LEVELS-STEPS-WIDTH``; ``transformer``, or
            ``transformer-PATCH-WIDTH-BLOCKS-LAYERS``.
        shape: of the images.
        like: the recipe whose operations a Glow without stated sizes has.
        batch: images of a step.

    Raises:
        ConfigError: no such rival, or images that it cannot take.
    """
    kind, *sizes = name.split("-")
    numbers = [int(size) for size in sizes if size.isdecimal()]
    count = _SIZES if kind == "transformer" else _SIZES - 1
    if kind not in RIVALS or len(sizes) not in (0, count) or len(numbers) != len(sizes):
        raise ConfigError("no such rival", name, nearest(name, RIVALS))
    if len(shape) != 3 or any(side % 2 for side in shape[1:]):
        what = f"rivals take pictures of even sides, these are {shape}"
        raise ConfigError(what, name, "leave them out with --rivals")
    shape = (shape[0], shape[1], shape[2])
    config = replace(RIVAL_TRAINING, batch=batch)
    if kind == "transformer":
        model = Transformer(shape, *numbers)
        config = replace(config, betas=(0.9, 0.95))
        made = (name, model.name, model.package, model.build, config)
        return Other(*made, -1.0, 1.0, _DECAY)
    library = next(each for each in LIBRARIES if each == kind)
    if numbers:
        glow = Glow(library, shape, *numbers)
        if min(numbers) < 1 or any(side % 2**glow.levels for side in shape[1:]):
            what = f"images {shape} have no {glow.levels} levels of {glow.steps} steps"
            raise ConfigError(what, name, "name other sizes")
    else:
        glow = base(library, shape).like(operations(like, shape), by="flop")
    interval = _WIDE if library == "FrEIA" else _NARROW
    return Other(name, glow.name, library, glow.build, config, *interval)
