"""A training step that never waits for its device, captured as one CUDA graph and replayed.

Experimental: it has never run on a GPU here.

A step of a deep flow is thousands of small kernels, and a GPU may finish each of them before the
host can start the next. A graph of the whole step (forward, backward, clipping, Adam, average)
starts with one call. Nothing in a captured step may depend on the host: shapes and addresses stay
the same, and the device itself decides whether a step is skipped.

A flow has a graph if its `forward` in training mode makes the same calls each time, reads no value
on the host, copies no tensor from the host, and draws from torch's default generator only.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from mixerflow.core import Flow, VectorNet
from mixerflow.errors import ConfigError, first_line
from mixerflow.objectives import Objective, context_of, likelihood
from mixerflow.optimizers import Adam, AdamW
from mixerflow.registry import word_of
from mixerflow.train_config import TrainConfig
from mixerflow.training.batches import Batches
from mixerflow.training.trainer import Step, Trainer
from mixerflow.transforms import Dequantize

_FLAG = "--train.graph"
_REMEDY = "say --train.no-graph"
_WARM_UP = 3
"""Steps before capture, in which libraries choose algorithms and allocate workspaces."""


class GraphedTrainer(Trainer):
    """`Trainer` whose whole step is work for the device alone: on CUDA one graph, replayed.

    It trains like `Trainer`, to rounding, and either continues from the other's checkpoints. A step
    whose objective or gradient is not finite changes no weight, moment or average: the device
    skips the step, and the host reads all figures every `read_every` steps.

    Arguments are those of `Trainer`; ``config.graph`` is ignored, and the objective is the
    likelihood. Without CUDA the same step runs operator by operator. Settings that the flow or the
    steps do not allow, or that have no graph, are a ConfigError.
    """

    def __init__(
        self,
        flow: Flow,
        batches: Batches,
        config: TrainConfig,
        *,
        steps: int,
        objective: Objective = likelihood,
    ) -> None:
        _refuse_ungraphable(flow, batches, config, objective)
        super().__init__(flow, batches, config, steps=steps, objective=objective)
        device = flow.device
        x, labels = batches.at(0)
        context = context_of(flow, labels)
        self._x = torch.empty_like(x, device=device)
        self._context: Tensor | None = None
        if context is not None:
            dtype = torch.int64 if isinstance(flow.context_net, nn.Embedding) else context.dtype
            self._context = torch.empty_like(context, dtype=dtype, device=device)
        self._rates = [torch.zeros((), device=device) for _ in self.optimizer.param_groups]
        self._share = torch.zeros((), device=device)
        # since the last read: sums of objectives and norms, their number, steps skipped; then the
        # skipped steps in a row up to now, and the steps since the last skipped one
        self._figures = torch.zeros(6, dtype=torch.float64, device=device)
        self._last_means = (math.nan, math.nan)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._copy_stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def advance(self) -> Step:
        """Take one step; read the figures every `read_every` steps, and after the last.

        A flow whose step cannot be captured is a ConfigError, in the first step.
        """
        lr = self._load()
        generators = self._generators()
        if self._copy_stream is None:
            self._device_step()
        else:
            with torch.cuda.device(self.flow.device):
                if self._graph is None:
                    self._graph = self._capture()
                self._graph.replay()
        self.step += 1
        if self.step % self.read_every and self.step != self.steps:
            return Step(*self._last_means, lr, self.step, counted=0)
        return self._read(lr, generators)

    def _load(self) -> float:
        """Copy this step's batch, rates and average weight to the device; return the rate."""
        x, context = self._fetch()
        self._x.copy_(x)
        if self._context is not None and context is not None:
            self._context.copy_(context)
        lr = self._set_rate()
        for rate, group in zip(self._rates, self.optimizer.param_groups, strict=True):
            rate.fill_(group["lr"])
        self._share.fill_(self.average.share(self.place))
        return lr

    def _fetch(self) -> tuple[Tensor, Tensor | None]:
        """Return this step's batch on the device, with labels where the flow takes them."""
        if self._copy_stream is None:
            x, labels = self.batches.at(self.place)
            return x, context_of(self.flow, labels)
        with torch.cuda.stream(self._copy_stream):  # copies from the host need no replay to end
            x, labels = self.batches.at(self.place)
            context = context_of(self.flow, labels)
            context = None if context is None else context.to(x.device)
        main = torch.cuda.current_stream(x.device)
        main.wait_stream(self._copy_stream)
        for tensor in (x, context):
            if tensor is not None:
                tensor.record_stream(main)
        return x, context

    @torch.no_grad()
    def _device_step(self) -> None:
        """Take the whole step from the buffers that `_load` filled, without the host."""
        with torch.enable_grad(), _labels_unchecked(self.flow):
            objective, _ = self._backward(self._x, self._context)
        grads = [p.grad for p in self.parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(grads)
        bad = ~(objective.isfinite() & norm.isfinite())
        # clips as `clip_grads_with_norm_` does
        self._step_adam(((norm + 1e-6) / self.config.clip).clamp(min=1), bad.float())
        self._update_average(self._share * ~bad)
        figures = torch.stack([objective, norm, torch.ones_like(norm)])
        self._figures[:3].add_(figures.masked_fill(bad, 0))
        self._figures[3].add_(bad)
        self._figures[4:].add_(1).mul_(torch.stack([bad, ~bad]))

    def _step_adam(self, divisor: Tensor, bad: Tensor) -> None:
        """Divide the gradients by `divisor` and step, or change nothing where `bad` is 1.

        The optimiser reads rates from the device meanwhile. Afterwards its settings are again those
        of a `Trainer`, so that checkpoints are too.
        """
        optimizer: Any = self.optimizer
        groups = optimizer.param_groups
        plain = [(group["lr"], group["capturable"]) for group in groups]
        capturing = bad.is_cuda and torch.cuda.is_current_stream_capturing()
        for group, rate in zip(groups, self._rates, strict=True):
            group.update(lr=rate, capturable=capturing)
        optimizer.grad_scale, optimizer.found_inf = divisor, bad
        try:
            optimizer.step()
        finally:
            del optimizer.grad_scale, optimizer.found_inf
            for group, (lr, capturable) in zip(groups, plain, strict=True):
                group.update(lr=lr, capturable=capturable)

    def _update_average(self, share: Tensor) -> None:
        """Set each averaged weight to ``(1 - share) average + share weight``; `share` is ``()``.

        `torch._foreach_lerp_` takes no weight from the device in its fast form.
        """
        averaged: list[Tensor] = list(self.average.flow.parameters())
        weights: list[Tensor] = list(self.flow.parameters())
        torch._foreach_mul_(averaged, 1 - share)  # pyright: ignore[reportPrivateImportUsage]
        parts = torch._foreach_mul(weights, share)  # pyright: ignore[reportPrivateImportUsage]
        torch._foreach_add_(averaged, parts)  # pyright: ignore[reportPrivateImportUsage]

    def _read(self, lr: float, generators: dict[str, Any]) -> Step:
        """Return the mean figures of the steps since the last read; waits for them."""
        objective, norm, counted, skipped, in_a_row, since = self._figures.tolist()
        self._figures[:4].zero_()
        if counted:
            self._last_means = (objective / counted, norm / counted)
        self.skipped += int(skipped)
        self.bad_in_a_row = int(in_a_row)
        if not skipped:
            return Step(*self._last_means, lr, self.step, int(counted))
        bad_part = "the objective or its gradient"  # the weights of that step are gone
        if in_a_row:
            bad_part = self._diagnose(self._x, self._context, None, generators)
        return Step(*self._last_means, lr, self.step - int(since), int(counted), bad_part)

    def _capture(self) -> torch.cuda.CUDAGraph:
        """Capture the step after some warm-up steps, all of whose changes are undone."""
        graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream()
        try:
            with self._state_preserved():
                side.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(side):
                    for _ in range(_WARM_UP):
                        self._device_step()
                torch.cuda.current_stream().wait_stream(side)
                with torch.cuda.graph(graph):
                    self._device_step()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            what = f"a step of this flow has no graph ({first_line(error)})"
            raise ConfigError(what, _FLAG, _REMEDY) from error
        return graph

    def _step_tensors(self) -> list[Tensor]:
        """Return all tensors that a step changes, but for the gradients."""
        moments = [t for values in self.optimizer.state.values() for t in values.values()]
        flows = [*self.flow.parameters(), *self.flow.buffers(), *self.average.flow.parameters()]
        return [*flows, *moments, self._figures]

    @contextlib.contextmanager
    def _state_preserved(self) -> Iterator[None]:
        """Restore in place, afterwards, all that steps change; new moments become 0."""
        saved = {id(t): t.detach().clone() for t in self._step_tensors()}
        generators = self._generators()
        yield
        with torch.no_grad():
            for tensor in self._step_tensors():
                before = saved.get(id(tensor))
                tensor.zero_() if before is None else tensor.copy_(before)
        self._restore_generators(generators)

    def state(self) -> dict[str, Any]:
        """Return `Trainer.state` and, under "figures", the figures not yet read.

        The numbers of skipped steps count all steps up to now.
        """
        state, figures = super().state(), self._figures.tolist()
        state["skipped"] += int(figures[3])
        state["bad_in_a_row"] = int(figures[4])
        return state | {"figures": figures}

    def load_state(self, state: dict[str, Any] | None) -> None:
        """Continue from a state that this class's or `Trainer`'s `state` returned."""
        assert state is not None  # there is no other process that could have it
        super().load_state(state)
        figures = state.get("figures", [0, 0, 0, 0, self.bad_in_a_row, 0])
        self._figures.copy_(torch.tensor(figures, dtype=self._figures.dtype))
        self.skipped -= int(figures[3])
        self._graph = None  # it knows the moments before

    def leave(self) -> None:
        """End training, and free the graph's memory."""
        super().leave()
        self._graph = None


def trainer_of(
    flow: Flow,
    batches: Batches,
    config: TrainConfig,
    *,
    steps: int,
    objective: Objective = likelihood,
) -> Trainer:
    """Return the trainer that `config` asks for; arguments and errors as `Trainer` has them."""
    if not config.graph:
        return Trainer(flow, batches, config, steps=steps, objective=objective)
    if flow.device.type != "cuda":
        remedy = "train on a GPU (--device cuda), or say --train.no-graph"
        raise ConfigError(f"no CUDA graphs on the {flow.device.type}", _FLAG, remedy)
    return GraphedTrainer(flow, batches, config, steps=steps, objective=objective)


def _refuse_ungraphable(
    flow: Flow, batches: Batches, config: TrainConfig, objective: Objective
) -> None:
    """Raise a ConfigError for flows, images and settings that have no graph."""
    dequantizers = [module for module in flow.modules() if isinstance(module, Dequantize)]
    uint8 = batches.images.pixels.dtype == "uint8"
    refused = {
        "an objective other than the likelihood": objective is not likelihood,
        "several processes": batches.processes.together,
        f"--train.memory {config.memory}": config.memory != "store",
        # only Adam and AdamW can skip a step on the device
        f"--train.optimizer {word_of(type(config.optimizer))}": not isinstance(
            config.optimizer, (Adam, AdamW)
        ),
        "parameters other than float32": any(p.dtype != torch.float32 for p in flow.parameters()),
        # dequantisation would read on the host whether these lie within its levels
        "pixels other than uint8 of 256 levels": any(
            not uint8 or each.levels < 256 for each in dequantizers
        ),
    }
    for what, holds in refused.items():
        if holds:
            raise ConfigError(f"no graph with {what}", _FLAG, _REMEDY)


@contextlib.contextmanager
def _labels_unchecked(flow: Flow) -> Iterator[None]:
    """Let labels and vectors reach their net without the check that would wait for the device."""
    net = flow.context_net
    if isinstance(net, (nn.Embedding, VectorNet)):
        flow.context_net = nn.Sequential(net)
    try:
        yield
    finally:
        flow.context_net = net
