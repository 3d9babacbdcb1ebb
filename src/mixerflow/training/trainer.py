"""Training steps, and the state from which a run resumes bit for bit."""

from __future__ import annotations

import contextlib
import itertools
import math
import warnings
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from mixerflow.core import Flow, Noise, refuse_sharded
from mixerflow.errors import ConfigError
from mixerflow.objectives import Objective, context_of, likelihood
from mixerflow.optimizers import Muon
from mixerflow.processes import SINGLE
from mixerflow.train_config import TrainConfig
from mixerflow.training.batches import Batches
from mixerflow.training.budget import Pace
from mixerflow.training.growth import Stage
from mixerflow.training.idle import trained_entries
from mixerflow.training.objective import Task, first_nonfinite, name_of
from mixerflow.training.optimizer import (
    Average,
    batch_norms,
    late_parameters,
    make_optimizer,
    parameter_groups,
    recalibrate,
)
from mixerflow.training.parallel import (
    load_flow,
    load_optimizer,
    local,
    parallel,
    shard,
    sharded_as,
    share_batch_norms,
    unsharded,
    until_last,
)
from mixerflow.training.update import KernelUpdate, Update


@dataclass(frozen=True)
class Step:
    """Figures of one step, in training mode."""

    objective: float
    """Mean loss of an image over D ln 2; for the likelihood, bits/dim."""
    gradient_norm: float
    lr: float
    number: int
    """Steps done, a skipped one included."""
    counted: int
    """Steps that the first two figures are the mean of; 0 where they are old."""
    bad_part: str | None = None
    """Module in which NaN or infinity first appeared, if the step was skipped."""
    figures: dict[str, float] = field(default_factory=dict)
    """The objective's own figures, means over the batch."""


class Trainer:
    """The optimiser on the mean loss of a flow, in bits/dim, with an average of its weights.

    Args:
        flow: the flow to train, on its device, initialised; process 0's weights go to all.
        batches: batches of training images, shared between the processes.
        config: settings.
        steps: number of steps of the run.
        objective: the loss; see `mixerflow.training.objective`.

    Raises:
        ConfigError: settings that the flow, the objective, the processes or the steps do not allow.
    """

    read_every: int = 1
    """Steps between two readings of the figures, for a trainer that reads them from its device."""
    settle_images: int = 1024
    """Training images that the averaged weights' batch-norm statistics are taken from."""
    moments: bool = False
    """Whether the optimiser's moments came with the weights that the run began from."""

    def __init__(
        self,
        flow: Flow,
        batches: Batches,
        config: TrainConfig,
        *,
        steps: int,
        objective: Objective = likelihood,
    ) -> None:
        self.flow, self.batches, self.config = flow, batches, config
        self.pace = Pace(steps, steps)
        flow.memory = config.memory
        self.processes = batches.processes
        self.task = Task(flow, objective)
        self.processes.align(itertools.chain(self.task.parameters(), self.task.buffers()))
        self.average = Average(flow, config.ema)
        end = config.schedule_start + steps
        if config.schedule_steps is not None and end > config.schedule_steps:
            what = f"steps {config.schedule_start} to {end} of {config.schedule_steps}"
            raise ConfigError(what, "--train.schedule-steps", f"give at least {end}")
        trained = trained_entries(flow, likelihood=objective is likelihood)
        self.module = parallel(self.task, flow, self.processes, config.parallel)
        if config.memory != "store":
            refuse_sharded(flow, config.memory)
        self.sharded = self.processes.together and config.parallel == "fsdp"
        if self.sharded:
            if isinstance(config.optimizer, Muon):
                what = "steps of sharded matrices cannot be made orthogonal"
                raise ConfigError(what, "--train.optimizer muon", "use --train.parallel ddp")
            shard(self.average.flow, self.processes)
        self._share_batch_norms()
        mine = dict(flow.named_parameters())
        self._trained = [(mine[name], sharded_as(mine[name], m)) for name, m in trained.items()]
        self.parameters = [p for p in flow.parameters() if p.requires_grad]
        groups, self.rates = parameter_groups(flow, config)
        own = [] if self.task.own is None else self.task.own.parameters()
        if own := [p for p in own if p.requires_grad]:
            groups, self.rates = [*groups, {"params": own}], [*self.rates, 1.0]
            self.parameters = [*self.parameters, *own]
        self.optimizer = make_optimizer(groups, config)
        kind = Update if self.sharded or flow.device.type != "cpu" else KernelUpdate
        self.update = kind(self.parameters, self.optimizer, self.average, config.clip)
        self._late = late_parameters(flow) if config.late_epochs else []
        self._parts = list(self.task.modules())
        self.step = 0
        self.skipped = 0
        self.bad_in_a_row = 0

    @property
    def steps(self) -> int:
        """Steps of the run, as planned now."""
        return self.pace.steps

    @property
    def schedule_place(self) -> float:
        """The next step's place among those of this run's schedule, ``pace.whole``."""
        return self.pace.at(self.step)

    @property
    def is_likelihood(self) -> bool:
        """Whether a step's figure is a likelihood; batch norm couples images, so it is none."""
        return self.task.objective is likelihood and not batch_norms(self.flow)

    @property
    def place(self) -> int:
        """The next step's number in the whole schedule."""
        return self.config.schedule_start + self.step

    def advance(self) -> Step:
        """Take one step; a batch whose loss or gradient is not finite changes no weight."""
        lr = self._set_rate()
        x, labels = self.batches.at(self.place)
        before = self._generators()
        noise = self._noise()
        objective, means = self._backward(x, labels, noise)
        norm = self.update.norm()
        figures = torch.stack([objective, norm.to(objective), *means.values()]).tolist()
        bad_part = None
        if all(map(math.isfinite, figures[:2])):
            self.update.apply(norm, self.place)
            self.bad_in_a_row = 0
        else:
            self.skipped += 1
            self.bad_in_a_row += 1
            bad_part = self._diagnose(x, labels, noise, before)
        self.step += 1
        own = dict(zip(means, figures[2:], strict=True))
        return Step(figures[0], figures[1], lr, self.step, int(bad_part is None), bad_part, own)

    def _set_rate(self) -> float:
        """Set and return this step's learning rate."""
        lr = self.config.lr_at(self.schedule_place, self.pace.whole, moments=self.moments)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = lr * rate
        return lr

    @property
    def _late_from(self) -> float:
        """Images after which late parameters learn."""
        return self.config.late_epochs * len(self.batches.images)

    def _noise(self) -> Noise | None:
        """Return this step's noise for several processes: a function of the images' numbers."""
        if not self.processes.together:
            return None
        # evaluation has seeds of at least 0: no image is trained on with its evaluation noise
        return Noise(~self.config.seed, self.batches.index(self.place))

    def _backward(
        self, x: torch.Tensor, labels: torch.Tensor | None, noise: Noise | None = None
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Compute gradients; return the mean loss and the figures' means, over all processes."""
        if not all(module.training for module in self._parts):
            self.task.train()
        for parameter in self.parameters:
            parameter.grad = None
        parts = self.config.accumulate
        value, size = torch.zeros((), device=x.device), len(x) // parts
        means: dict[str, torch.Tensor] = {}
        for number in range(parts):
            rows = slice(number * size, (number + 1) * size)
            given = (part if part is None else part[rows] for part in (labels, noise))
            with until_last(self.module, number + 1 == parts):
                with self._precision():
                    each, figures = self.module(x[rows], *given)
                    nats = each.mean()
                loss = nats / (self.flow.dims * math.log(2) * parts)
                loss.backward()
            value += loss.detach()
            for name, figure in figures.items():
                means[name] = means.get(name, 0) + figure.to(value) / parts
        for parameter, trained in self._trained:
            if parameter.grad is not None:
                local(parameter.grad).mul_(trained)
        if self._late and self.place * self.config.batch < self._late_from:
            for parameter in self._late:
                if parameter.grad is not None:
                    parameter.grad.zero_()
        if means:
            shared = self.processes.sum(torch.stack([*means.values()])) / self.processes.world
            means = dict(zip(means, shared, strict=True))
        return self.processes.sum(value) / self.processes.world, means

    def _precision(self) -> contextlib.AbstractContextManager[object]:
        """Run conditioners in bfloat16 if `config` says so; transforms keep to float32."""
        if self.config.precision == "float32":
            return contextlib.nullcontext()
        return torch.autocast(self.flow.device.type, dtype=torch.bfloat16)

    def _diagnose(
        self,
        x: torch.Tensor,
        labels: torch.Tensor | None,
        noise: Noise | None,
        before: dict[str, Any],
    ) -> str:
        after = self._generators()
        self._restore_generators(before)
        context = context_of(self.flow, labels)
        with self._precision():
            part = first_nonfinite(self.flow, x, context, noise, self.processes)
        if part is None:  # the flow is finite, the sum or the objective is not
            known = self.task.objective is likelihood
            part = "the sum of the log-probabilities" if known else name_of(self.task.objective)
        self._restore_generators(after)
        return part

    def settle(self) -> Flow:
        """Return the averaged flow with batch-norm statistics of its own weights."""
        if not any(p.requires_grad for p in self.flow.transform.parameters()):
            return self.average.flow  # nothing that a batch norm sees has changed
        rounds = max(1, min(self.settle_images, len(self.batches.images)) // self.batches.batch)
        noises = (Noise(self.config.seed, self.batches.index(i)) for i in range(rounds))
        batches = (
            (x, context_of(self.flow, labels), noise)
            for (x, labels), noise in zip(map(self.batches.at, range(rounds)), noises, strict=True)
        )
        recalibrate(self.average.flow, batches)
        return self.average.flow

    def leave(self) -> None:
        """Continue without the other processes, to save the state that this one holds."""
        self.processes = self.batches.processes = SINGLE
        self.module = self.task
        self._share_batch_norms()

    def _share_batch_norms(self) -> None:
        for module in (self.average.flow, self.task):
            others = share_batch_norms(module, self.processes)
        if others and self.processes.together and self.processes.main:
            warnings.warn(f"{others} batch norms see their own process's images only", stacklevel=3)

    def weights(self) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Return the flow's state dict and the average's, unsharded."""
        return unsharded(self.flow.state_dict()), unsharded(self.average.flow.state_dict())

    def state(self) -> dict[str, Any]:
        """Return the state that resuming needs besides the two sets of weights, unsharded."""
        own = {} if self.task.own is None else {"objective": self.task.own.state_dict()}
        return {
            "step": self.step,
            "steps": self.steps,
            "pace": asdict(self.pace),
            "skipped": self.skipped,
            "bad_in_a_row": self.bad_in_a_row,
            "optimizer": unsharded(self.optimizer.state_dict()),
            "generators": self._generators(),
            **own,
        }

    def load_weights(
        self, model: dict[str, torch.Tensor] | None, ema: dict[str, torch.Tensor] | None
    ) -> None:
        """Load state dicts as `weights` returns them; process 0 gives them."""
        load_flow(self.flow, model, self.processes)
        load_flow(self.average.flow, ema, self.processes)

    def load_state(self, state: dict[str, Any] | None) -> None:
        """Resume from a state as `state` returns it; process 0 gives it."""
        load_optimizer(self.optimizer, state and state["optimizer"], self.processes)
        counts = state and {k: v for k, v in state.items() if k != "optimizer"}
        state = self.processes.from_main(counts) or {}
        self.step, self.skipped = state["step"], state["skipped"]
        self.bad_in_a_row = state["bad_in_a_row"]
        if "pace" in state:  # older runs have one number of steps
            self.pace = Pace(**state["pace"])
        if self.task.own is not None:
            self.task.own.load_state_dict(state["objective"])
        self._restore_generators(state["generators"])

    def begin(self, stage: Stage | None) -> None:
        """Begin from a run of a shallower flow; process 0 gives it."""
        self.load_weights(*((stage.model, stage.ema) if stage else (None, None)))
        names = {id(p): name for name, p in self.flow.named_parameters()}
        every = [p for group in self.optimizer.param_groups for p in group["params"]]
        held = self.optimizer.state_dict() if stage else None
        if stage and held:
            found = {i: stage.moments.get(names.get(id(p), "")) for i, p in enumerate(every)}
            held["state"] = {i: values for i, values in found.items() if values is not None}
        load_optimizer(self.optimizer, held, self.processes)
        objective = self.processes.from_main(stage and stage.objective)
        if self.task.own is not None and objective is not None:
            self.task.own.load_state_dict(objective)

    def _generators(self) -> dict[str, Any]:
        states: dict[str, Any] = {"cpu": torch.get_rng_state()}
        if self.flow.device.type == "cuda":
            states["cuda"] = torch.cuda.get_rng_state(self.flow.device)
        return states

    def _restore_generators(self, states: dict[str, Any]) -> None:
        torch.set_rng_state(states["cpu"])
        if "cuda" in states and self.flow.device.type == "cuda":
            torch.cuda.set_rng_state(states["cuda"], self.flow.device)
