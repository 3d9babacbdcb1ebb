"""A model as its users run it: the package's own trainer, `log_prob` and `sample`."""

from __future__ import annotations

import contextlib
import copy
import importlib
import importlib.util
from dataclasses import dataclass, replace

import numpy as np
import torch

from benchmarks.common import Contender, Work
from mixerflow.core import Flow, Shape
from mixerflow.data import Images, make_images
from mixerflow.models import Model
from mixerflow.training import TrainConfig, Trainer
from mixerflow.training.batches import Batches

HAS_KERNELS = importlib.util.find_spec("mixerflow.kernels") is not None


@dataclass(frozen=True)
class Ours:
    """A model over integer images, on one of the ways it can run here."""

    name: str
    model: Model
    shape: Shape
    kernels: bool = HAS_KERNELS
    """Whether to run on the package's compiled kernels, where it has them."""
    package: str = "mixerflow"

    def work(self, batch: int) -> Work:
        """A trainer without weight averaging, which the rivals do not have, and an eval copy."""
        levels = self.model.pixels.levels or 256
        pixels = np.random.default_rng(0).integers(0, levels, (2 * batch, *self.shape))
        images = make_images(pixels.astype(np.uint8), None, dataset_id="noise")
        flow = self.model.build(self.shape)
        flow.initialize(*_batches(flow, images, batch).first(batch))
        return jobs(flow, images, batch, fused=self.kernels and HAS_KERNELS)

    def path(self) -> contextlib.AbstractContextManager[object]:
        """Kernels switched off, unless they are wanted."""
        if self.kernels or not HAS_KERNELS:
            return contextlib.nullcontext()
        return importlib.import_module("mixerflow.kernels").disabled()


def jobs(flow: Flow, images: Images, batch: int, *, fused: bool) -> Work:
    """Return what an initialised flow does: steps of it, and scores and samples of an eval copy.

    Args:
        flow: the flow.
        images: images to train on; the first `batch` are scored.
        batch: images of a job.
        fused: whether scores and samples are those of ``flow.fused()``.
    """
    scored = flow.fused() if fused else copy.deepcopy(flow).eval()
    config = TrainConfig(batch=batch, ema=0.0)
    trainer = Trainer(flow, _batches(flow, images, batch), config, steps=10**6)
    x = torch.from_numpy(images.pixels[:batch].copy())
    return Work(flow, trainer.advance, lambda: _log_prob(scored, x), lambda: scored.sample(batch))


def kernels_here() -> str:
    """Whether MixerFlow runs on compiled kernels here, or why it does not."""
    if not HAS_KERNELS:
        return "none in this version"
    unsupported_reason = importlib.import_module("mixerflow.kernels").unsupported_reason
    return unsupported_reason(torch.zeros(1, 2)) or "in use"


def variants(name: str, model: Model, shape: Shape) -> list[Ours]:
    """The ways a model can run here: as it comes, and, where it has kernels, without."""
    ours = Ours(name, model, shape)
    return [ours, replace(ours, name=f"{name}, no kernels", kernels=False)][: 1 + HAS_KERNELS]


def plain(contender: Contender) -> Contender:
    """The same without kernels: operations inside of those cannot be counted."""
    return replace(contender, kernels=False) if isinstance(contender, Ours) else contender


def _batches(flow: Flow, images: Images, batch: int) -> Batches:
    return Batches(images, batch, seed=0, device=flow.device, conditional=False)


@torch.no_grad()
def _log_prob(flow: Flow, x: torch.Tensor) -> torch.Tensor:
    return flow.log_prob(x)
