"""One training run's moving parts: a step forward, and its state to the last bit."""

from __future__ import annotations

import contextlib
import itertools
import math
import warnings
from dataclasses import dataclass, field
from typing import Any

import torch

from mixerflow.core import Flow, Noise, refuse_sharded
from mixerflow.errors import ConfigError
from mixerflow.processes import SINGLE
from mixerflow.train_config import TrainConfig
from mixerflow.training.average import Average, batch_norms, recalibrate
from mixerflow.training.batches import Batches
from mixerflow.training.growth import Growth
from mixerflow.training.nonfinite import first_part
from mixerflow.training.objective import Objective, Task, context_of, likelihood, name_of
from mixerflow.training.parallel import (
    load_flow,
    load_optimizer,
    parallel,
    shard,
    share_batch_norms,
    until_last,
    whole,
)

_RECALIBRATE = 1024
"""Training images that the averaged weights' batch-norm statistics are taken from."""


@dataclass(frozen=True)
class Step:
    """What one step came to: the objective of its batch in training mode, and more."""

    objective: float
    """The mean loss of an image over D ln 2: of the likelihood, bits/dim."""
    gradient_norm: float
    lr: float
    number: int
    """The steps done; where one is skipped, up to and with that one."""
    counted: int
    """Steps that the first two figures are the mean of: 0 where they tell nothing new."""
    bad_part: str | None = None
    """Where NaN or infinity first appeared, when the step was skipped for it."""
    figures: dict[str, float] = field(default_factory=dict)
    """The objective's own figures, means over the batch."""


class Trainer:
    """Adam on the mean loss of a flow, in bits/dim, with an average of its weights.

    Args:
        flow: the flow to train, on its device, initialised; process 0's is every process's.
        batches: of training images, shared between the processes that train.
        config: settings.
        steps: the whole run's number of steps.
        objective: what a step makes smaller; see `mixerflow.training.objective`.

    Raises:
        ConfigError: settings that the flow, the objective, the processes or the steps do not allow.
    """

    read_every: int = 1
    """Steps from one look at the figures to the next, for a trainer whose steps need none."""

    def __init__(
        self,
        flow: Flow,
        batches: Batches,
        config: TrainConfig,
        *,
        steps: int,
        objective: Objective = likelihood,
    ) -> None:
        self.flow, self.batches, self.config, self.steps = flow, batches, config, steps
        flow.memory = config.memory
        self.processes = batches.processes
        self.task = Task(flow, objective)
        self.processes.align(itertools.chain(self.task.parameters(), self.task.buffers()))
        self.average = Average(flow, config.ema)
        copies = (flow, self.average.flow)
        self.growths = [Growth(each, config.grow, self.processes) for each in copies]
        if config.grow > steps:
            what = f"{config.grow} stages in {steps} steps"
            raise ConfigError(what, "--train.grow", "use fewer, or train longer")
        if config.whole is not None and config.start + steps > config.whole:
            what = f"steps {config.start} to {config.start + steps} of {config.whole}"
            raise ConfigError(what, "--train.whole", f"give at least {config.start + steps}")
        self.module = parallel(self.task, self.processes, config.parallel)
        if config.memory != "store":
            refuse_sharded(flow, config.memory)
        self.sharded = self.processes.together and config.parallel == "fsdp"
        if self.sharded:
            shard(self.average.flow, self.processes)
        self._share_batch_norms()
        self.parameters = [p for p in flow.parameters() if p.requires_grad]
        groups, self.rates = _by_layer(flow, self.parameters, config.layer_lr)
        own = [] if self.task.own is None else self.task.own.parameters()
        if own := [p for p in own if p.requires_grad]:
            groups, self.rates = [*groups, {"params": own}], [*self.rates, 1.0]
            self.parameters = [*self.parameters, *own]
        self.optimizer = torch.optim.Adam(groups, lr=config.lr, betas=config.betas, fused=True)
        self.step = 0
        self.skipped = 0
        self.bad_in_a_row = 0
        self._grow()

    @property
    def is_likelihood(self) -> bool:
        """Whether a step's figure is a likelihood: not where batch norm couples images."""
        return self.task.objective is likelihood and not batch_norms(self.flow)

    @property
    def place(self) -> int:
        """The step to take next, as the whole schedule counts, in which no images come twice."""
        return self.config.start + self.step

    def advance(self) -> Step:
        """Take one step; a batch whose loss or gradient is not finite changes no weight."""
        self._grow()
        lr = self._set_rate()
        x, labels = self.batches.at(self.place)
        before = self._generators()
        noise = self._noise()
        objective, means = self._backward(x, labels, noise)
        grads = [p.grad for p in self.parameters if p.grad is not None]
        norm = whole(torch.nn.utils.get_total_norm(grads))
        figures = torch.stack([objective, norm.to(objective), *means.values()]).tolist()
        bad_part = None
        if all(map(math.isfinite, figures[:2])):
            if figures[1] > self.config.clip:  # most steps need no pass over the gradients
                torch.nn.utils.clip_grads_with_norm_(self.parameters, self.config.clip, norm)
            self.optimizer.step()
            self.average.update(self.place)
            self.bad_in_a_row = 0
        else:
            self.skipped += 1
            self.bad_in_a_row += 1
            bad_part = self._diagnose(x, labels, noise, before)
        self.step += 1
        own = dict(zip(means, figures[2:], strict=True))
        return Step(figures[0], figures[1], lr, self.step, int(bad_part is None), bad_part, own)

    def _set_rate(self) -> float:
        """Give the optimiser this step's learning rate, which is returned."""
        lr = self.config.lr_at(self.step, self.steps)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = lr * rate
        return lr

    def _grow(self) -> None:
        """Wake the layers that are due, in the flow and its average."""
        for growth in self.growths:
            growth.at(self.step, self.steps)

    def _noise(self) -> Noise | None:
        """This step's noise: of several processes, the same for any number of them."""
        if not self.processes.together:
            return None
        # evaluation's seeds are at least 0: no image is trained on with the noise it is judged with
        return Noise(~self.config.seed, self.batches.index(self.place))

    def _backward(
        self, x: torch.Tensor, labels: torch.Tensor | None, noise: Noise | None = None
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Gradients of a batch's mean loss; it and the figures' means, over all processes."""
        self.task.train()
        self.optimizer.zero_grad()
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
        if means:
            shared = self.processes.sum(torch.stack([*means.values()])) / self.processes.world
            means = dict(zip(means, shared, strict=True))
        return self.processes.sum(value) / self.processes.world, means

    def _precision(self) -> contextlib.AbstractContextManager[object]:
        """Conditioners in bfloat16 where asked for; transforms look after their own float32."""
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
            part = first_part(self.flow, x, context, noise, self.processes)
        if part is None:  # it is in what was made of the flow's outputs
            known = self.task.objective is likelihood
            part = "the sum of the log-probabilities" if known else name_of(self.task.objective)
        self._restore_generators(after)
        return part

    def settle(self) -> Flow:
        """The averaged flow, ready to evaluate: batch norm's statistics are its own weights'."""
        rounds = max(1, min(_RECALIBRATE, len(self.batches.images)) // self.batches.batch)
        noises = (Noise(self.config.seed, self.batches.index(i)) for i in range(rounds))
        batches = (
            (x, context_of(self.flow, labels), noise)
            for (x, labels), noise in zip(map(self.batches.at, range(rounds)), noises, strict=True)
        )
        recalibrate(self.average.flow, batches)
        return self.average.flow

    def leave(self) -> None:
        """Go on without the other processes: what is whole in each, this one can still save."""
        self.processes = self.batches.processes = SINGLE
        self.module = self.task
        self._share_batch_norms()

    def _share_batch_norms(self) -> None:
        for module in (self.average.flow, self.task):
            others = share_batch_norms(module, self.processes)
        if others and self.processes.together and self.processes.main:
            warnings.warn(f"{others} batch norms see their own process's images only", stacklevel=3)

    def weights(self) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """The flow's state dict and the average's, whole."""
        return whole(self.flow.state_dict()), whole(self.average.flow.state_dict())

    def state(self) -> dict[str, Any]:
        """All that resuming needs besides the two sets of weights, whole."""
        own = {} if self.task.own is None else {"objective": self.task.own.state_dict()}
        return {
            "step": self.step,
            "steps": self.steps,
            "skipped": self.skipped,
            "bad_in_a_row": self.bad_in_a_row,
            "optimizer": whole(self.optimizer.state_dict()),
            "generators": self._generators(),
            **own,
        }

    def load_weights(
        self, model: dict[str, torch.Tensor] | None, ema: dict[str, torch.Tensor] | None
    ) -> None:
        """Go on with what `weights` returned; given by process 0 alone."""
        load_flow(self.flow, model, self.processes)
        load_flow(self.average.flow, ema, self.processes)

    def load_state(self, state: dict[str, Any] | None) -> None:
        """Go on from what `state` returned; given by process 0 alone."""
        load_optimizer(self.optimizer, state and state["optimizer"], self.processes)
        counts = state and {k: v for k, v in state.items() if k != "optimizer"}
        state = self.processes.from_main(counts) or {}
        self.step, self.skipped = state["step"], state["skipped"]
        self.bad_in_a_row = state["bad_in_a_row"]
        if self.task.own is not None:
            self.task.own.load_state_dict(state["objective"])
        self._restore_generators(state["generators"])
        self._grow()

    def _generators(self) -> dict[str, Any]:
        states: dict[str, Any] = {"cpu": torch.get_rng_state()}
        if self.flow.device.type == "cuda":
            states["cuda"] = torch.cuda.get_rng_state(self.flow.device)
        return states

    def _restore_generators(self, states: dict[str, Any]) -> None:
        torch.set_rng_state(states["cpu"])
        if "cuda" in states and self.flow.device.type == "cuda":
            torch.cuda.set_rng_state(states["cuda"], self.flow.device)


def _by_layer(
    flow: Flow, parameters: list[torch.nn.Parameter], last: float
) -> tuple[list[dict[str, Any]], list[float]]:
    """The optimiser's groups and what each multiplies the learning rate with.

    Layer i of L, from 0, has ``last^(i / (L - 1))``; layers are those of the flow that train. What
    is in none of them has the first's rate; parameters that layers share have that of the first
    that holds them.
    """
    if last == 1:
        return [{"params": parameters}], [1.0]
    left = {id(p): p for p in parameters}
    layers = [
        [p for p in layer.parameters() if left.pop(id(p), None) is not None]
        for layer in flow.layers()
    ]
    layers = [layer for layer in layers if layer]
    rates = [last ** (i / max(1, len(layers) - 1)) for i in range(len(layers))]
    rest = list(left.values())
    if rest:
        layers, rates = [*layers, rest], [*rates, 1.0]
    return [{"params": layer} for layer in layers], rates
