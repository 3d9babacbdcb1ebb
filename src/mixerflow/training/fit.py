"""`train`: trains a flow on images for a budget, in a run folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from mixerflow.core import Flow
from mixerflow.data import Images, hold_out
from mixerflow.errors import ConfigError
from mixerflow.evaluate import Bits
from mixerflow.objectives import Frozen, Objective
from mixerflow.processes import Processes, joined
from mixerflow.runs import (
    Checkpoint,
    Checkpoints,
    RunFolder,
    begin_from,
    existing_run,
)
from mixerflow.runs.located import spelled
from mixerflow.runs.metadata import make_metadata, require_same_run
from mixerflow.train_config import TrainConfig
from mixerflow.training.batches import Batches
from mixerflow.training.budget import Clock, limit_of
from mixerflow.training.given import (
    as_images,
    check_fit,
    check_kinds,
    require_class_labels,
    require_labels,
)
from mixerflow.training.graphed import trainer_of
from mixerflow.training.growth import Stage, grow_from
from mixerflow.training.loop import Loop
from mixerflow.training.metrics import OnRecord
from mixerflow.training.objective import name_of

_PROVISIONAL = 1000
"""Steps of a budget in minutes before its first plan, which comes within its first steps."""


@dataclass(frozen=True)
class Trained:
    """Result of a run.

    Attributes:
        status: "finished", or "interrupted" by a signal or by `on_record`.
        step: steps done.
        validation: bits/dim of the averaged weights on the validation images, when finished.
        figures: the objective there, over D ln 2, and its figures; empty for the likelihood.
        folder: the run folder, if one was named.
        exit_code: 0, or 143 / 130 after SIGTERM / SIGINT.
    """

    status: Literal["finished", "interrupted"]
    step: int
    validation: Bits | None
    folder: Path | None
    exit_code: int
    figures: dict[str, float] = field(default_factory=dict)


def train(
    flow: Flow,
    images: Images | np.ndarray | Tensor,
    *,
    labels: np.ndarray | Tensor | None = None,
    objective: Objective | None = None,
    validation: Images | np.ndarray | Tensor | None = None,
    validation_labels: np.ndarray | Tensor | None = None,
    out: Path | str | None = None,
    config: TrainConfig | None = None,
    begin: Path | str | None = None,
    steps: int | None = None,
    epochs: float | None = None,
    minutes: float | None = None,
    from_step: int | None = None,
    metadata: dict[str, Any] | None = None,
    on_record: OnRecord | None = None,
    quiet: bool = False,
) -> Trained:
    """Train a flow on images, in place; it ends with the averaged weights, in eval mode.

    An initialised flow, such as `mixerflow.load` returns, trains on from its weights. A folder that
    holds the same run unfinished is resumed from its last checkpoint. Started by ``torchrun``, in
    every process alike, the processes share the work: docs/processes.md.

    Args:
        flow: from `mixerflow.build`, or any other `Flow`.
        images: ``(N, C, *spatial)`` uint8 or uint16, floats for a flow without levels, or an
            `Images`.
        labels: class numbers ``(N,)`` or vectors ``(N, K)`` of plain arrays, for a conditional flow
            or the objective.
        objective: the loss, a function of flow, images and labels, or a module that learns too:
            docs/objectives.md; None is that of `config`, the likelihood by default.
        validation: validation images, of plain arrays too; the classes are those of `images` where
            these are named. Without them 4 % of `images` are held out.
        validation_labels: labels of validation images that are plain arrays.
        out: the run folder; None keeps everything in memory.
        config: settings.
        begin: a run folder or published weights to begin from: averaged weights of the same model,
            or a run of a model with fewer layers, which continues with its moments and its place in
            the schedule, the new layers at the identity.
        steps: budget in optimiser steps; overrides that of `config`, as the next two do.
        epochs: budget in passes over the images.
        minutes: budget in time on this machine, from the call to the last evaluation. Of several
            budgets the one counts that ends first.
        from_step: resume from the checkpoint of this step rather than the last.
        metadata: more entries of ``run.json``, such as the command.
        on_record: is called with each record, a dict as in ``metrics.jsonl``, in order, with a run
            folder or without: the means of training steps ("kind" is "train"), validations
            ("validation") and, of minutes, plans ("plan"). True from it stops training after a
            checkpoint, as a signal does. What it raises ends training: the run's status is then
            "failed", and the same call resumes from the last checkpoint. A run that resumes gives
            no record again that its checkpoint has. Process 0 alone calls it; all processes stop.
        quiet: show no progress.

    Raises:
        Exception: what `on_record` raises.
        ConfigError: settings or images that do not fit, or a folder that holds another run.
        DataError: images, labels or validation images that cannot be used.
        CheckpointError: the folder's checkpoint is damaged.
        ResourceError: the folder is in use or cannot be written, or another process was lost.
        NonFiniteError: training reached NaN or infinity and did not recover.
    """
    config = TrainConfig() if config is None else config
    check_kinds(flow, config)
    if on_record is not None and not callable(on_record):
        what = f"{type(on_record).__name__} cannot be called"
        raise ConfigError(what, "on_record", "give a function of a record")
    for name, path in (("out", out), ("begin", begin)):
        if isinstance(path, str) and not path.strip():
            raise ConfigError("an empty path", name, "give a folder, or leave it out")
    if (steps, epochs, minutes) != (None, None, None):
        config = replace(config, steps=steps, epochs=epochs, minutes=minutes)
    clock = None if config.minutes is None else Clock(config)
    given = as_images(images, labels, "images")
    check_fit(flow, given)
    if validation is None:
        if validation_labels is not None:
            what = "labels of validation images, and no such images"
            raise ConfigError(what, "validation_labels", "give validation=... too")
        given, validation = hold_out(given, seed=config.seed)
    else:
        validation = as_images(validation, validation_labels, "validation")
        validation = validation.with_classes(given.classes)
        check_fit(flow, validation, "validation images of ")
        require_labels(flow, validation, f"validation images of {validation.dataset_id}")
    with joined() as processes, ExitStack() as held:
        held.enter_context(torch.inference_mode(False))
        held.enter_context(torch.enable_grad())
        folder = RunFolder(Path(out)) if out is not None and processes.main else None
        processes.on_main(lambda: folder and held.enter_context(folder.lock()))
        existing = processes.from_main(processes.on_main(lambda: folder and existing_run(folder)))
        if existing is not None:
            given, validation = _as_before(existing, given), _as_before(existing, validation)
        if existing is None:
            origin, stage = _begin(flow, begin, config, processes)
        else:
            origin, stage = _known_origin(existing, begin, out), None
        config, planned = _placed(config, origin), None
        held.enter_context(_seeded(flow, config))
        labelled = None
        if objective is None:
            config.objective.check(flow)
            if existing is None and isinstance(config.objective, Frozen) and not flow.initialized:
                what = "a frozen flow that has learned nothing"
                raise ConfigError(what, "--objective frozen", "name trained weights with --from")
            if config.objective.classifies:
                labelled = config.labelled
                require_class_labels(flow, given, "images")
                require_class_labels(flow, validation, "validation images")
            elif config.labels_per_class is not None:
                what = "few labels, and an objective that learns from none"
                remedy = "give --objective hybrid, or leave it out"
                raise ConfigError(what, "--train.labels-per-class", remedy)
            held.enter_context(config.objective.on(flow))
            objective = config.objective.build()
        batches = Batches(
            given,
            config.batch,
            seed=config.seed,
            device=flow.device,
            conditional=flow.context_net is not None,
            parts=config.accumulate,
            processes=processes,
            augmentation=config.augmentation,
            labels_per_class=config.labels_per_class,
            labelled=labelled,
        )
        made = make_metadata(flow, given, validation, name_of(objective), config, processes)
        made = {**(metadata or {}), **made} | ({} if origin is None else {"origin": origin})
        if existing is None and not flow.initialized:
            flow.initialize(*batches.first(config.initial))
        if existing is not None:
            processes.on_main(lambda: folder and require_same_run(existing, made, folder))
            planned = existing["steps"]
        limit = limit_of(config, len(given))
        number = planned or limit or max(_PROVISIONAL, 10 * config.warmup)
        trainer = trainer_of(flow, batches, config, steps=number, objective=objective)
        trainer.moments = bool(origin and origin.get("moments"))
        loop = Loop(
            trainer,
            validation,
            folder,
            clock=clock,
            limit=limit,
            on_record=on_record,
            quiet=quiet,
        )
        if existing is not None:
            loop.restore(_checkpoint(folder, from_step, processes))
        elif trainer.moments:
            trainer.begin(stage)
        with _status(folder, made | {"steps": planned or limit}, processes, fresh=existing is None):
            exit_code = loop.run()
        return _finish(flow, loop, exit_code)


def _finish(flow: Flow, loop: Loop, exit_code: int) -> Trained:
    """Record the result in ``run.json``; give the flow the averaged weights, in eval mode."""
    trainer = loop.trainer
    status = "finished" if trainer.step == trainer.steps else "interrupted"
    if loop.folder is not None:
        result = None if loop.result is None else loop.result.as_dict() | loop.figures
        seconds = loop.metrics.counters.seconds
        steps = trainer.steps
        changes = {"status": status, "steps": steps, "seconds": seconds, "result": result}
        loop.folder.update(changes)
    trainer.leave()
    flow.load_state_dict(trainer.average.flow.state_dict())
    trainer.task.eval()
    return Trained(status, trainer.step, loop.result, loop.path, exit_code, loop.figures)


@contextmanager
def _status(
    folder: RunFolder | None, metadata: dict[str, Any], processes: Processes, *, fresh: bool
) -> Iterator[None]:
    """Write ``run.json`` with the status "running"; record an error, or a second Ctrl-C, in it."""

    def write() -> None:
        if folder is not None:
            if fresh:
                folder.cut_back(0)  # records of a run that was killed before its first checkpoint
            folder.write_metadata(metadata | {"status": "running"})

    processes.on_main(write)
    try:
        yield
    except BaseException as error:
        if folder is not None:
            failed = {"status": "failed", "error": f"{type(error).__name__}: {error}"}
            stopped = isinstance(error, KeyboardInterrupt)
            folder.update({"status": "interrupted"} if stopped else failed)
        raise


def _begin(
    flow: Flow, begin: Path | str | None, config: TrainConfig, processes: Processes
) -> tuple[dict[str, Any] | None, Stage | None]:
    """Load the weights that a new run begins from; return its origin, and a shallower run's state.

    Process 0 alone reads, and alone has the state and the weights: a trainer shares them.

    Raises:
        ConfigError: no such weights, or a place in a schedule without weights.
    """
    if begin is None:
        if config.schedule_start and not flow.initialized:
            what = f"step {config.schedule_start} of a schedule, and new weights"
            remedy = "name the weights that were trained so far with --from"
            raise ConfigError(what, "--train.schedule-start", remedy)
        return None, None
    path = Path(begin)

    def read() -> tuple[dict[str, Any], Stage | None]:
        stage = grow_from(flow, path, config.optimizer)
        return (stage.origin, stage) if stage is not None else (begin_from(flow, path), None)

    origin, stage = processes.on_main(read) or (None, None)
    flow.initialized.fill_(processes.from_main(bool(flow.initialized)))
    return processes.from_main(origin), stage


def _known_origin(
    existing: dict[str, Any], begin: Path | str | None, out: Path | str | None
) -> dict[str, Any] | None:
    """Return the origin of a run that resumes; its weights need not be there any more.

    Raises:
        ConfigError: the run began from other weights than `begin`.
    """
    origin = existing.get("origin")
    path = None if origin is None else origin["path"]
    if begin is not None and spelled(begin) != path:
        what = f"another run is here: it began from {path or 'weights of its own'}"
        remedy = "leave --from out to resume it, or use another --out"
        raise ConfigError(what, out, remedy)
    return origin


def _as_before(existing: dict[str, Any], images: Images) -> Images:
    """Number the same classes as the run that resumes has them: their order was once another."""
    classes = tuple(existing["data"]["classes"])
    return images.with_classes(classes) if set(classes) == set(images.classes) else images


def _placed(config: TrainConfig, origin: dict[str, Any] | None) -> TrainConfig:
    """Return the settings with the place in the schedule that a shallower run left off at."""
    if origin is None or "schedule_start" not in origin:
        return config
    start, steps = origin["schedule_start"], config.schedule_steps or origin["schedule_steps"]
    return replace(config, schedule_start=start, schedule_steps=steps)


def _checkpoint(
    folder: RunFolder | None, from_step: int | None, processes: Processes
) -> Checkpoint | None:
    """Load, in process 0 only, the checkpoint to resume from."""
    loaded = []

    def load() -> None:
        assert folder is not None
        checkpoints = Checkpoints(folder.path / "checkpoints")
        loaded.append(checkpoints.load("last" if from_step is None else from_step))

    processes.on_main(load)
    return loaded[0] if loaded else None


@contextmanager
def _seeded(flow: Flow, config: TrainConfig) -> Iterator[None]:
    """Seed torch's generators for the run, and restore them afterwards."""
    devices = [flow.device] if flow.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        # pieces of one schedule draw different noise
        torch.manual_seed(config.seed + config.schedule_start)
        yield
