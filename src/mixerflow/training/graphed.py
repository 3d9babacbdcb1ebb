"""A training step that never waits for its device, and so is one CUDA graph, replayed.

A step of a deep flow is thousands of small kernels; a GPU may be done with each sooner than the
host can ask for the next. Captured once as a graph, the whole step (forward, backward, clipping,
Adam, average) is asked for in one call. For that nothing in it may depend on what the host sees:
shapes and addresses stay, and what the host used to decide the device decides for itself.

What must be true of a flow for it: in training mode its `forward` makes the same calls each time,
looks at no value, takes no tensor from the host, and draws from torch's default generator only.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from mixerflow.core import Flow
from mixerflow.errors import ConfigError, first_line
from mixerflow.train_config import TrainConfig
from mixerflow.training.batches import Batches
from mixerflow.training.flat import Flat, FlatAdam
from mixerflow.training.objective import Objective, context_of, likelihood
from mixerflow.training.trainer import Step, Trainer
from mixerflow.transforms import Dequantize

_FLAG = "--train.graph"
_REMEDY = "say --train.no-graph"
_WARM_UP = 3
"""Steps before capture, in which libraries choose algorithms and get their workspaces."""


class GraphedTrainer(Trainer):
    """`Trainer` whose whole step is work for the device alone: on CUDA one graph, replayed.

    It trains like `Trainer`, to rounding, and either goes on from the other's checkpoints. A step
    whose objective or gradient is not finite changes no weight, moment or average: the device sees
    to that, and the host hears of it, as of all figures, every `read_every` steps.

    Args:
        flow: the flow to train, on its device, initialised. Until `leave` its parameters, and their
            gradients, are parts of one tensor each.
        batches: of training images.
        config: settings; ``graph`` is not looked at. Without CUDA the same step runs operator by
            operator.
        steps: the whole run's number of steps.
        objective: the likelihood, of which it is known that a graph can have it.

    Raises:
        ConfigError: settings that the flow or the steps do not allow, or that no graph can have.
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
        _check(flow, batches, config, objective)
        super().__init__(flow, batches, config, steps=steps, objective=objective)
        groups = self.optimizer.param_groups
        self.flat = Flat([p for group in groups for p in group["params"]])
        self.adam = FlatAdam(self.optimizer, self.flat)
        names = {id(p): name for name, p in flow.named_parameters()}
        theirs = dict(self.average.flow.named_parameters())
        self.averaged = Flat([theirs[names[id(p)]] for p in self.flat.parameters])
        device = flow.device
        x, labels = batches.at(0)
        context = context_of(flow, labels)
        self._x = torch.empty_like(x, device=device)
        self._context = None if context is None else _place(flow, context)
        self._share = torch.zeros((), device=device)
        # since the last look: sums of objectives and norms, how many they are, steps skipped;
        # then how many were skipped in a row up to now, and the steps since one was
        self._figures = torch.zeros(6, dtype=torch.float64, device=device)
        self._last = (math.nan, math.nan)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None

    def advance(self) -> Step:
        """Take one step; every `read_every` steps, and after the last, look at the figures.

        Raises:
            ConfigError: what the flow does cannot be captured; in the first step.
        """
        lr = self._load()
        before = self._generators()
        if self._copies is None:
            self._device_step()
        else:
            self._replay()
        self.step += 1
        if self.step % self.read_every and self.step != self.steps:
            return Step(*self._last, lr, self.step, counted=0)
        return self._read(lr, before)

    def _load(self) -> float:
        """Put this step's batch, learning rates and averaging in their places; the rate."""
        x, context = self._fetch()
        self._x.copy_(x)
        if self._context is not None and context is not None:
            self._context.copy_(context)
        lr = self._set_rate()
        self.adam.set_rates()
        self._share.fill_(self.average.share(self.place))
        return lr

    def _fetch(self) -> tuple[Tensor, Tensor | None]:
        """This step's batch, on the device; labels where the flow takes them."""
        if self._copies is None:
            x, labels = self.batches.at(self.place)
            return x, context_of(self.flow, labels)
        with torch.cuda.stream(self._copies):  # here copies from the host wait for no replay
            x, labels = self.batches.at(self.place)
            context = context_of(self.flow, labels)
            context = None if context is None else context.to(x.device)
        main = torch.cuda.current_stream(x.device)
        main.wait_stream(self._copies)
        for tensor in (x, context):
            if tensor is not None:
                tensor.record_stream(main)
        return x, context

    def _device_step(self) -> None:
        """The whole step, on what lies in its places; the host sees nothing of it."""
        with _unseen(self.flow):
            objective, _ = self._backward(self._x, self._context)
        gradient = self.adam.gradient
        self.flat.gather(gradient)
        norm = torch.linalg.vector_norm(gradient)
        bad = ~(objective.isfinite() & norm.isfinite())
        # clips as `clip_grads_with_norm_` does
        self.adam.step(((norm + 1e-6) / self.config.clip).clamp(min=1), bad.float())
        self.averaged.values.lerp_(self.flat.values, self._share * ~bad)
        figures = torch.stack([objective, norm, torch.ones_like(norm)])
        self._figures[:3].add_(figures.masked_fill(bad, 0))
        self._figures[3].add_(bad)
        self._figures[4:].add_(1).mul_(torch.stack([bad, ~bad]))

    def _read(self, lr: float, before: dict[str, Any]) -> Step:
        """What the steps since the last look came to; waits for them."""
        objective, norm, counted, skipped, in_a_row, since = self._figures.tolist()
        self._figures[:4].zero_()
        if counted:
            self._last = (objective / counted, norm / counted)
        self.skipped += int(skipped)
        self.bad_in_a_row = int(in_a_row)
        if not skipped:
            return Step(*self._last, lr, self.step, int(counted))
        bad_part = "the objective or its gradient"  # the weights of that step are gone
        if in_a_row:
            bad_part = self._diagnose(self._x, self._context, None, before)
        return Step(*self._last, lr, self.step - int(since), int(counted), bad_part)

    def _replay(self) -> None:
        with torch.cuda.device(self.flow.device):
            if self._graph is None:
                self._graph = self._capture()
            self._graph.replay()

    def _capture(self) -> torch.cuda.CUDAGraph:
        """The step as a graph, of which nothing has run yet."""
        graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream()
        try:
            with self._unchanged():
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

    @contextlib.contextmanager
    def _unchanged(self) -> Iterator[None]:
        """Whatever steps change is afterwards what it was."""
        changed = [self.flat.values, self.averaged.values, *self.adam.tensors(), self._figures]
        changed += self.flow.buffers()
        kept, generators = [t.clone() for t in changed], self._generators()
        yield
        for tensor, value in zip(changed, kept, strict=True):
            tensor.copy_(value)
        self._restore_generators(generators)

    def state(self) -> dict[str, Any]:
        """All that resuming needs besides the two sets of weights, as `Trainer` has it, and more.

        "figures" are those not looked at yet; what is counted is counted up to now all the same.
        """
        state, figures = super().state(), self._figures.tolist()
        state["optimizer"]["state"] = self.adam.state()
        state["skipped"] += int(figures[3])
        state["bad_in_a_row"] = int(figures[4])
        return state | {"figures": figures}

    def load_state(self, state: dict[str, Any] | None) -> None:
        """Go on from what `state`, or a `Trainer`'s, returned.

        Raises:
            ConfigError: parameters that took different numbers of steps.
        """
        assert state is not None  # there is no other process that could have it
        super().load_state(state)
        figures = state.get("figures", [0, 0, 0, 0, self.bad_in_a_row, 0])
        self._figures.copy_(torch.tensor(figures, dtype=self._figures.dtype))
        self.skipped -= int(figures[3])
        try:
            self.adam.take()
        except ValueError as error:
            raise ConfigError(f"no graph with {error}", _FLAG, _REMEDY) from error

    def leave(self) -> None:
        """Training is over: the parameters get memory of their own again."""
        super().leave()
        self._graph = None
        self.flat.release()
        self.averaged.release()


def trainer_of(
    flow: Flow,
    batches: Batches,
    config: TrainConfig,
    *,
    steps: int,
    objective: Objective = likelihood,
) -> Trainer:
    """The trainer that `config` asks for; arguments as `Trainer` has them.

    Raises:
        ConfigError: settings that the flow, the processes, the steps or the device do not allow.
    """
    if not config.graph:
        return Trainer(flow, batches, config, steps=steps, objective=objective)
    if flow.device.type != "cuda":
        remedy = "train on a GPU (--device cuda), or say --train.no-graph"
        raise ConfigError(f"no CUDA graphs on the {flow.device.type}", _FLAG, remedy)
    return GraphedTrainer(flow, batches, config, steps=steps, objective=objective)


def _check(flow: Flow, batches: Batches, config: TrainConfig, objective: Objective) -> None:
    """Raise a ConfigError for what a graph cannot have."""
    kinds = [module for module in flow.modules() if isinstance(module, Dequantize)]
    promised = batches.images.pixels.dtype == "uint8"
    cannot = {
        "an objective other than the likelihood": objective is not likelihood,
        "several processes": batches.processes.together,
        f"--train.memory {config.memory}": config.memory != "store",
        "parameters other than float32": any(p.dtype != torch.float32 for p in flow.parameters()),
        # or dequantisation looks whether they lie within its levels
        "pixels other than uint8 of 256 levels": any(
            not promised or each.levels < 256 for each in kinds
        ),
    }
    for what, holds in cannot.items():
        if holds:
            raise ConfigError(f"no graph with {what}", _FLAG, _REMEDY)


def _place(flow: Flow, context: Tensor) -> Tensor:
    """Where the likes of a batch's context can lie on the flow's device."""
    dtype = torch.int64 if isinstance(flow.context_net, nn.Embedding) else context.dtype
    return torch.empty_like(context, dtype=dtype, device=flow.device)


@contextlib.contextmanager
def _unseen(flow: Flow) -> Iterator[None]:
    """Labels go to their embedding without a look at them, which would wait for the device."""
    net = flow.context_net
    if isinstance(net, nn.Embedding):
        flow.context_net = nn.Sequential(net)
    try:
        yield
    finally:
        flow.context_net = net
