"""What residual and continuous flows of images cost beside Glow and MixerFlow; prints tables.

    python -m benchmarks.field --runs runs/field --data cifar10.npz --seconds 180
        --out results/field/cost.json

Weights at their start would cost too little: the contractions and velocities are 0 there, and no
iteration takes a second step. So each of `--models` has a run folder in `--runs`, of its name. A
model without one is trained first, as the recipe of its name, for `--seconds` of processor time;
another call takes what is there.

Images/s are those of a step of the package's trainer, of scores by ``flow.fused()`` with one draw of
the noise, and of samples. All models take turns; time is the processor time of one thread, which
other programs change little. `benchmarks.passes` says what a pass is. Memory is what a step allocates
beyond weights, gradients and Adam's state, see `benchmarks.memory`, in fresh processes: of each
model, and of `--deep` with other numbers of blocks at the start of training.

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

from benchmarks.common import Work, facts, figure, interleaved, keep, pin, spread
from benchmarks.costs import fresh
from benchmarks.kept import require_positive, told_in_a_line
from benchmarks.memory import MODES, peaks_of
from benchmarks.ours import jobs
from benchmarks.passes import nets, passes
from mixerflow.core import Flow, Noise
from mixerflow.data import Images, load
from mixerflow.errors import ConfigError
from mixerflow.markdown import table
from mixerflow.recipes import build, recipe
from mixerflow.runs.weights import read_metadata, read_weights
from mixerflow.training import TrainConfig, Trainer, train
from mixerflow.training.batches import Batches
from mixerflow.training.given import check_fit

_NAMES = "residual iresnet idensenet monotone ffjord attention-glow glow mixerflow"
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
    deep: str = "residual-cifar10-tiny"
    """Recipe whose memory is measured by depth."""
    blocks: tuple[int, ...] = (2, 4, 8)
    """Numbers of its blocks."""
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


def counted(flow: Flow, work: Work, x: torch.Tensor, given: Arguments) -> dict[str, Any]:
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


def of_model(flow: Flow) -> dict[str, Any]:
    """Size of a flow."""
    return {
        "parameters": sum(p.numel() for p in flow.parameters()),
        "nets": len(nets(flow)),
        "density": flow.density,
    }
