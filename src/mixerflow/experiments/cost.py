"""What the training of full models costs here: their measured speed, and the hours computed."""

from __future__ import annotations

import os
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from mixerflow.core import Flow
from mixerflow.data import Images
from mixerflow.data.published_sets import SETS
from mixerflow.experiments.images import Budget
from mixerflow.experiments.table import Cell
from mixerflow.registry import describe
from mixerflow.runs.files import read_record, sealed, write_atomically, writing
from mixerflow.runs.metadata import device_name
from mixerflow.train_config import TrainConfig
from mixerflow.training.batches import Batches
from mixerflow.training.trainer import Trainer

BATCH, STEPS = 8, 3
"""Images of a step, and the steps that are timed."""
_CELEBA = 162_770
"""CelebA's training images, by its own partition."""


@dataclass(frozen=True)
class Speed:
    """Speed of training steps."""

    images_per_second: float
    batch: int
    steps: int
    parameters: int


def training_speed(
    flow: Flow, images: Images, config: TrainConfig, *, batch: int = BATCH, steps: int = STEPS
) -> Speed:
    """Time `steps` training steps of a flow after a first one, which warms up; it learns by them.

    On one thread of a CPU it is processor time, which other processes do not use up; else what
    passes on the clock.
    """
    alone = flow.device.type == "cpu" and torch.get_num_threads() == 1
    clock = time.process_time if alone else time.perf_counter
    given = Batches(
        images,
        batch,
        seed=0,
        device=flow.device,
        conditional=flow.context_net is not None,
        augmentation=config.augmentation,
    )
    flow.initialize(*given.first(batch))
    timed = replace(config, batch=batch, accumulate=1, steps=steps + 1, minutes=None, graph=False)
    trainer = Trainer(flow, given, timed, steps=steps + 1)
    trainer.advance()
    start = clock()
    for _ in range(steps):
        trainer.advance()  # reads the loss, so waits for the device
    seconds = clock() - start
    parameters = sum(parameter.numel() for parameter in flow.parameters())
    return Speed(batch * steps / seconds, batch, steps, parameters)


def scheduled_images(config: TrainConfig, training_images: int) -> float:
    """Return the images that a schedule trains on, each as often as it comes.

    Of a budget in steps and one in epochs, the one that ends first counts.
    """
    budgets = []
    if config.steps is not None:
        budgets.append(float(config.steps * config.batch))
    if config.epochs is not None:
        budgets.append(config.epochs * training_images)
    return min(budgets)


def hours(images: float, images_per_second: float) -> float:
    """Return the hours of training on so many images at a speed."""
    return images / images_per_second / 3600


def keep_cost(root: Path, cell: Cell, budget: Budget, images: Images, device: torch.device) -> None:
    """Measure a row's full model, unless that is done; at the budget `tiny` its small model.

    The images are those of the run; the schedule counts those of the published set.
    """
    machine = {
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
    }
    model = cell.model("tiny" if budget == "tiny" else "gpu")
    spec, known = describe(model), read_cost(root, cell)
    if known is not None and (known["model"], known["machine"]) == (spec, machine):
        return
    config = cell.train("gpu", 0)
    torch.manual_seed(0)
    speed = training_speed(model.build(images.shape).to(device), images, config)
    published = SETS[cell.column.source].counts[0] or _CELEBA
    scheduled = scheduled_images(config, published)
    record = asdict(speed) | {
        "scheduled_images": scheduled,
        "hours": hours(scheduled, speed.images_per_second),
        "machine": machine,
        "model": spec,
    }
    path = _path(root, cell)
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, sealed(record))


def read_cost(root: Path, cell: Cell) -> dict[str, Any] | None:
    """Return what is kept of a row's cost, or None."""
    return read_record(_path(root, cell), "delete this file")


def _path(root: Path, cell: Cell) -> Path:
    return root / cell.name / "cost.json"
