"""`train`: a flow, images and a budget in; a run folder and a trained flow out."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from mixerflow.core import Flow
from mixerflow.data import Images, hold_out, make_images
from mixerflow.errors import ConfigError
from mixerflow.evaluate import Bits
from mixerflow.processes import Processes, joined
from mixerflow.runs.checkpoint import Checkpoint, Checkpoints
from mixerflow.runs.folder import RunFolder
from mixerflow.runs.metadata import begun_alike, header_of
from mixerflow.train_config import TrainConfig
from mixerflow.training.batches import Batches
from mixerflow.training.budget import steps_of
from mixerflow.training.graphed import trainer_of
from mixerflow.training.growth import Growth, check, wake
from mixerflow.training.loop import Session
from mixerflow.training.objective import Objective, likelihood, name_of


@dataclass(frozen=True)
class Trained:
    """How a run ended.

    Attributes:
        status: "finished", or "interrupted" by a signal.
        step: steps done.
        validation: bits/dim of the averaged weights on the validation images, when finished.
        folder: the run folder, if one was named.
        exit_code: 0, or 143 / 130 after SIGTERM / SIGINT.
    """

    status: Literal["finished", "interrupted"]
    step: int
    validation: Bits | None
    folder: Path | None
    exit_code: int


def train(
    flow: Flow,
    images: Images | np.ndarray | Tensor,
    *,
    labels: np.ndarray | Tensor | None = None,
    objective: Objective | None = None,
    validation: Images | None = None,
    out: Path | str | None = None,
    config: TrainConfig | None = None,
    steps: int | None = None,
    epochs: float | None = None,
    minutes: float | None = None,
    from_step: int | None = None,
    about: dict[str, Any] | None = None,
    quiet: bool = False,
) -> Trained:
    """Train a flow on images, in place; it ends with the averaged weights, in eval mode.

    A flow that is initialised, such as `mixerflow.load` gives, trains on from the weights it has.

    A folder that holds the same run unfinished is gone on with, from its last checkpoint. Started
    by ``torchrun``, in every process alike, the processes share the work: docs/processes.md.

    Args:
        flow: from `mixerflow.build`, or any other `Flow`.
        images: ``(N, C, *spatial)`` uint8 or uint16, floats for a flow without levels, or an
            `Images`.
        labels: ``(N,)`` class numbers of plain arrays, for a conditional flow or the objective.
        objective: what to make smaller, a function of flow, images and labels, or a module that
            learns too: docs/objectives.md; None is `mixerflow.training.likelihood`.
        validation: images to validate on; without them 4 % of `images` are held out.
        out: the run folder; None keeps everything in memory.
        config: settings.
        steps: budget in optimiser steps; overrides that of `config`, as the next two do.
        epochs: budget in passes over the images.
        minutes: budget in time on this machine.
        from_step: go on from this checkpoint rather than the last.
        about: recorded in ``run.json`` as it is; "origin" is what `begin_from` returned.
        quiet: show no progress.

    Raises:
        ConfigError: settings that cannot be, or a folder that holds another run.
        CheckpointError: the folder's checkpoint is damaged.
        ResourceError: the folder is in use or cannot be written, or another process was lost.
        NonFiniteError: training reached NaN or infinity and did not recover.
    """
    config = _with_budget(config or TrainConfig(), steps, epochs, minutes)
    given = _as_images(images, labels)
    _check_fit(flow, given)
    if validation is None:
        given, validation = hold_out(given, seed=config.seed)
    with joined() as processes, ExitStack() as held:
        folder = RunFolder(Path(out)) if out is not None and processes.main else None
        held.enter_context(_own_generators(flow, config))
        held.callback(wake, flow)
        processes.on_main(lambda: folder and held.enter_context(folder.lock()))
        objective = likelihood if objective is None else objective
        return _run(
            flow,
            given,
            validation,
            objective,
            folder,
            config,
            from_step,
            about or {},
            quiet,
            processes,
        )


def _check_fit(flow: Flow, images: Images) -> None:
    """Raise a ConfigError unless the images are such as the flow was built for."""
    if flow.inference:
        raise ConfigError("an inference copy cannot train", "flow.fused()", "train the flow itself")
    where = images.dataset_id
    if images.shape != flow.shape:
        what = f"the flow takes images {flow.shape}, these are {images.shape}"
        raise ConfigError(what, where, "build the flow for their shape")
    if flow.levels is None and images.levels is not None:
        raise ConfigError("the flow takes floats, these are integers", where, "convert them")
    if flow.levels is not None and images.levels is None:
        remedy = "multiply by 255, round, and convert to uint8, or build the flow with levels=None"
        raise ConfigError(f"the flow takes {flow.levels} levels, these are floats", where, remedy)
    mine, theirs = flow.levels or 0, images.levels or 0
    if theirs > mine > 0 and images.pixels.max() >= mine:  # only then is every pixel worth a look
        what = f"the flow takes values 0 to {mine - 1}, these reach {images.pixels.max()}"
        raise ConfigError(what, where, "build the flow with their levels")
    if isinstance(flow.context_net, torch.nn.Embedding) and images.labels is not None:
        classes, most = flow.context_net.num_embeddings, int(images.labels.max())
        if most >= classes or images.labels.min() < 0:
            what = f"the flow has {classes} classes, a label is {most}"
            raise ConfigError(what, where, "build it with more classes")


def _run(
    flow: Flow,
    images: Images,
    validation: Images,
    objective: Objective,
    folder: RunFolder | None,
    config: TrainConfig,
    from_step: int | None,
    about: dict[str, Any],
    quiet: bool,
    processes: Processes,
) -> Trained:
    batches = Batches(
        images,
        config.batch,
        seed=config.seed,
        device=flow.device,
        conditional=flow.context_net is not None,
        parts=config.accumulate,
        processes=processes,
    )
    header = header_of(flow, images, validation, name_of(objective), config, about, processes)
    old = processes.from_main(processes.on_main(lambda: folder and begun_alike(folder, header)))
    if old is not None and "origin" in old:  # where a run began does not change as it goes on
        header["origin"] = old["origin"]

    growth = Growth(flow, config.grow, processes)
    if old is None and not flow.initialized:
        growth.at(0, 1)  # what sleeps stays the identity
        flow.initialize(*batches.first(config.initial))
        wake(flow)
    if old is None and config.grow > 1:
        check(flow, config.grow, *batches.first(2))
    with _own_generators(flow, config):
        steps = old["steps"] if old else steps_of(config, flow, batches, validation, objective)
        steps = processes.from_main(steps)
    trainer = trainer_of(flow, batches, config, steps=steps, objective=objective)
    session = Session(trainer, validation, folder, quiet=quiet)
    if old is not None:
        session.restore(_last(folder, from_step, processes))

    def begin() -> None:
        if folder is not None:
            if old is None:
                folder.cut_back(0)  # of a run that was killed before its first checkpoint
            folder.write_config(header | {"steps": steps, "status": "running"})

    processes.on_main(begin)
    try:
        exit_code = session.run()
    except KeyboardInterrupt:  # the second Ctrl-C: at once, without saving
        if folder is not None:
            folder.update({"status": "interrupted"})
        raise
    except BaseException as error:
        if folder is not None:
            folder.update({"status": "failed", "error": f"{type(error).__name__}: {error}"})
        raise
    status = "finished" if exit_code == 0 else "interrupted"
    if folder is not None:
        result = None if session.result is None else session.result.as_dict()
        folder.update({"status": status, "seconds": session.tally.seconds, "result": result})
    trainer.leave()
    flow.load_state_dict(trainer.average.flow.state_dict())
    trainer.task.eval()
    return Trained(status, trainer.step, session.result, session.path, exit_code)


def _last(
    folder: RunFolder | None, from_step: int | None, processes: Processes
) -> Checkpoint | None:
    """The checkpoint to go on from, in process 0."""
    loaded = []

    def load() -> None:
        assert folder is not None
        checkpoints = Checkpoints(folder.path / "checkpoints")
        loaded.append(checkpoints.load("last" if from_step is None else from_step))

    processes.on_main(load)
    return loaded[0] if loaded else None


def _with_budget(
    config: TrainConfig, steps: int | None, epochs: float | None, minutes: float | None
) -> TrainConfig:
    if steps is epochs is minutes is None:
        return config
    return dataclasses.replace(config, steps=steps, epochs=epochs, minutes=minutes)


def _as_images(images: Images | np.ndarray | Tensor, labels: np.ndarray | Tensor | None) -> Images:
    if isinstance(images, Images):
        return images
    pixels = np.asarray(images.cpu() if isinstance(images, Tensor) else images)
    if np.issubdtype(pixels.dtype, np.floating):
        pixels = pixels.astype(np.float32)
    numbers = None if labels is None else np.asarray(labels)
    return make_images(pixels, numbers, dataset_id="array")


@contextmanager
def _own_generators(flow: Flow, config: TrainConfig) -> Iterator[None]:
    """Torch's generators seeded for the run, and given back as they were."""
    devices = [flow.device] if flow.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(config.seed + config.start)  # no piece sees the noise of another
        yield
