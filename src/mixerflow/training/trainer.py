"""One training run's moving parts: a step forward, and its state to the last bit."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from typing import Any

import torch

from mixerflow.core import Flow
from mixerflow.training.average import Average, batch_norms, recalibrate
from mixerflow.training.batches import Batches
from mixerflow.training.config import TrainConfig
from mixerflow.training.nonfinite import first_part

_RECALIBRATE = 1024
"""Training images that the averaged weights' batch-norm statistics are taken from."""


@dataclass(frozen=True)
class Step:
    """What one step came to: the mean bits/dim of its batch in training mode, and more."""

    objective: float
    gradient_norm: float
    lr: float
    bad_part: str | None = None
    """Where NaN or infinity first appeared, when the step was skipped for it."""


class Trainer:
    """Adam on the mean bits/dim of a flow, with an average of its weights.

    Args:
        flow: the flow to train, on its device, initialised.
        batches: of training images.
        config: settings.
        steps: the whole run's number of steps.
    """

    def __init__(self, flow: Flow, batches: Batches, config: TrainConfig, *, steps: int) -> None:
        self.flow, self.batches, self.config, self.steps = flow, batches, config, steps
        flow.memory = config.memory
        self.parameters = [p for p in flow.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(
            self.parameters, lr=config.lr, betas=config.betas, fused=True
        )
        self.average = Average(flow, config.ema)
        self.step = 0
        self.skipped = 0
        self.bad_in_a_row = 0

    @property
    def is_likelihood(self) -> bool:
        """Whether the training objective is a likelihood: not where batch norm couples images."""
        return not batch_norms(self.flow)

    def advance(self) -> Step:
        """Take one step; a batch whose loss or gradient is not finite changes no weight."""
        lr = self.config.lr_at(self.step, self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        x, context = self.batches.at(self.step)
        before = self._generators()
        objective = self._backward(x, context)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.config.clip)
        figures = torch.stack([objective, norm.to(objective)]).tolist()
        bad_part = None
        if all(map(math.isfinite, figures)):
            self.optimizer.step()
            self.average.update(self.step)
            self.bad_in_a_row = 0
        else:
            self.skipped += 1
            self.bad_in_a_row += 1
            bad_part = self._diagnose(x, context, before)
        self.step += 1
        return Step(figures[0], figures[1], lr, bad_part)

    def _backward(self, x: torch.Tensor, context: torch.Tensor | None) -> torch.Tensor:
        """Gradients of the mean bits/dim of a batch, and its value."""
        self.flow.train()
        self.optimizer.zero_grad()
        parts = self.config.accumulate
        contexts = [None] * parts if context is None else context.chunk(parts)
        value = torch.zeros((), device=x.device)
        for part, given in zip(x.chunk(parts), contexts, strict=True):
            with self._precision():
                nats = -self.flow(part, given).log_prob.mean()
            loss = nats / (self.flow.dims * math.log(2) * parts)
            loss.backward()
            value += loss.detach()
        return value

    def _precision(self) -> contextlib.AbstractContextManager[object]:
        """Conditioners in bfloat16 where asked for; transforms look after their own float32."""
        if self.config.precision == "float32":
            return contextlib.nullcontext()
        return torch.autocast(self.flow.device.type, dtype=torch.bfloat16)

    def _diagnose(
        self, x: torch.Tensor, context: torch.Tensor | None, before: dict[str, Any]
    ) -> str:
        after = self._generators()
        self._restore_generators(before)
        with self._precision():
            part = first_part(self.flow, x, context)
        self._restore_generators(after)
        return part

    def settle(self) -> Flow:
        """The averaged flow, ready to evaluate: batch norm's statistics are its own weights'."""
        rounds = max(1, min(_RECALIBRATE, len(self.batches.images)) // self.batches.batch)
        batches = (self.batches.at(i) for i in range(rounds))
        recalibrate(self.average.flow, batches, seed=self.config.seed)
        return self.average.flow

    def state(self) -> dict[str, Any]:
        """All that resuming needs besides the two sets of weights."""
        return {
            "step": self.step,
            "steps": self.steps,
            "skipped": self.skipped,
            "bad_in_a_row": self.bad_in_a_row,
            "optimizer": self.optimizer.state_dict(),
            "generators": self._generators(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned."""
        self.step, self.skipped = state["step"], state["skipped"]
        self.bad_in_a_row = state["bad_in_a_row"]
        self.optimizer.load_state_dict(state["optimizer"])
        self._restore_generators(state["generators"])

    def _generators(self) -> dict[str, Any]:
        states: dict[str, Any] = {"cpu": torch.get_rng_state()}
        if self.flow.device.type == "cuda":
            states["cuda"] = torch.cuda.get_rng_state(self.flow.device)
        return states

    def _restore_generators(self, states: dict[str, Any]) -> None:
        torch.set_rng_state(states["cpu"])
        if "cuda" in states and self.flow.device.type == "cuda":
            torch.cuda.set_rng_state(states["cuda"], self.flow.device)
