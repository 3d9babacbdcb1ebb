"""Memory modes: training stores everything for the backward pass, layers' inputs, or nothing.

Backward needs what each layer of a flow computed in the forward pass. With ``memory``

- ``"store"``: autograd stores it all; memory grows with depth times a layer's inner width.
- ``"checkpoint"``: a layer stores its input and runs again; memory grows with depth times image.
- ``"invert"``: only the last output is stored; each layer's input is rebuilt from its output by
  `Transform.inverse`, and the layer runs again. Rounding errors grow from layer to layer, so one
  input in `ANCHOR_EVERY` is stored all the same; beyond those, memory does not grow with depth.

A layer is one of `Flow.layers`. It is an ordinary node of autograd with the parameters among its
inputs, so accumulation, DDP, shared parameters and gradients with respect to images and contexts
work as they always do. Layers make a row if each takes the output of the one before; "invert"
stores the first input and the last output of each row. A `MultiScale` has a row for each scale;
autograd stores what a `Composite` computes between rows.

References:
    Chen et al., Training deep nets with sublinear memory cost (2016), arXiv:1604.06174.
    Gomez et al., The reversible residual network (2017), algorithm 1, arXiv:1707.04585.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import math
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mixerflow.core.noise import Noise
from mixerflow.core.transform import Context, Mapped, Transform
from mixerflow.core.views import uncounted
from mixerflow.errors import ConfigError
from mixerflow.moments import Saved

Memory = Literal["store", "checkpoint", "invert"]

ANCHOR_EVERY = 20
"""Layers from one stored input to the next under "invert"."""
DRIFT = 1e-3
"""Relative error of rebuilt activations above which "invert" warns; under autocast at least four
times its dtype's epsilon (3 % in bfloat16)."""


@torch._disable_dynamo  # pyright: ignore  # `torch.compiler.disable` takes seconds to import
def through(
    transform: Transform,
    x: Tensor,
    context: Context = None,
    noise: Noise | None = None,
    *,
    memory: Memory,
) -> Mapped:
    """``transform(x, context, noise)``, whose backward pass stores what `memory` says.

    Values, batch-norm statistics and draws from torch's generator are those of "store" to the bit;
    so are the gradients of "checkpoint" where sums have one order. Those of "invert" carry the
    rounding of the inverses. Where autograd is off, all three are the same.

    Under "invert" a layer stores its input if it cannot rebuild it in training, because it is not
    ``invertible`` or draws from torch's generator; a warning says so once. Another warning says if
    rebuilt activations differ from stored ones by more than `DRIFT`. Parameters whose hooks would
    run twice are a ConfigError.
    """
    if memory == "store" or not torch.is_grad_enabled():
        return transform(x, context, noise)
    if memory not in get_args(Memory):
        raise ValueError(f"memory must be one of {', '.join(get_args(Memory))}; got {memory!r}")
    return transform.walk(_LayerRunner(memory), x, context, noise)


@torch._disable_dynamo  # pyright: ignore
def refuse_sharded(module: nn.Module, memory: Memory) -> None:
    """Raise a ConfigError where parameters are sharded (FSDP2) and `memory` is not "store".

    FSDP2 gathers parameters for a forward pass only: a layer that runs again would meet shards.
    """
    tensors = sys.modules.get("torch.distributed.tensor")
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if memory == "store" or tensors is None or fsdp is None:  # without them nothing is sharded
        return
    wrapped = any(isinstance(m, fsdp.FSDPModule) for m in module.modules())
    if wrapped or any(isinstance(p, tensors.DTensor) for p in module.parameters()):
        what = f"memory {memory!r} runs layers again where FSDP2 has put their weights away"
        raise ConfigError(what, "--train.memory", 'use "store", or DDP')


class _LayerRunner:
    """Runs layers one after another, each as a node of autograd, and groups them in rows."""

    def __init__(self, memory: Memory) -> None:
        self.memory: Memory = memory
        self.number = 0
        self.before: _LayerCall | None = None
        self.output: Tensor | None = None
        """Output of the layer before. In `_LayerCall` its own graph would never be freed."""

    def __call__(
        self, layer: Transform, x: Tensor, context: Context, noise: Noise | None
    ) -> Mapped:
        number, self.number = self.number, self.number + 1
        parameters = [p for p in layer.parameters() if p.requires_grad]
        if any(p._backward_hooks for p in parameters):
            what = f"a parameter's hook would run twice with memory {self.memory!r}"
            remedy = "use register_post_accumulate_grad_hook"
            raise ConfigError(what, "Tensor.register_hook", remedy)
        if not (x.requires_grad or parameters):
            # autograd stores nothing before the first weight (for dequantization, say)
            return layer(x, context, noise)
        before = self.before
        if before is not None and x is self.output and x._version == before.version:
            row, position = before.row, before.position + 1
            before.output = None  # this layer will rebuild it
        else:
            row, position = _RowState(), 0
        call = _LayerCall(layer, noise, self.memory, row, number, position)
        z, log_det = _Recomputed.apply(call, x, context, *parameters)  # pyright: ignore[reportGeneralTypeIssues]
        call.output, call.version = None if call.stores_input else z.detach(), z._version
        self.before, self.output = call, z
        return z, log_det


@dataclass
class _RowState:
    """State that the backward pass carries from layer to layer of a row."""

    output: Tensor | None = None
    """Output of the next layer in backward order: the input, rebuilt or stored, of the last one."""
    drift: Tensor | None = None
    """The largest relative error of such outputs so far, divided by the allowed one."""

    def close(self) -> None:
        """Warn of inexact gradients, if any, after the row's first layer."""
        # training itself detects gradients that are not finite
        if self.drift is not None and 1 < self.drift.item() < math.inf:
            _warn_once(
                f'memory="invert": activations rebuilt over {ANCHOR_EVERY} layers are too far off '
                'for exact gradients: use "checkpoint" (--train.memory)'
            )
        self.output = self.drift = None


@dataclass
class _LayerCall:
    """One layer's call in one forward pass, with all that is needed to run it again."""

    layer: Transform
    noise: Noise | None
    memory: Memory
    row: _RowState
    number: int
    position: int
    """Position of the layer in its row."""
    training: bool = True
    stores_input: bool = True
    output: Tensor | None = None
    """Output of a row's last layer, if that layer does not store its input."""
    version: int = 0
    """Version of the output: to change it before backward is an error, as for any stored tensor."""
    rng_states: list[Tensor] | None = None
    """States of torch's generators before the layer, if it moved them."""
    autocast: dict[str, Any] | None = None
    scope: contextvars.Context = field(default_factory=contextvars.copy_context)
    """Where the layer ran, with `kernels.disabled` for example: on a GPU the backward pass runs in
    another thread."""

    def first(self, x: Tensor, context: Context) -> Mapped:
        """Run the layer in the forward pass."""
        device = x.device.type
        self.autocast = {
            "device_type": device,
            "dtype": torch.get_autocast_dtype(device),
            "enabled": torch.is_autocast_enabled(device),
            # weights cast here, without autograd, must not be reused where gradients are computed
            "cache_enabled": False,
        }
        self.training = self.layer.training
        before = _generator_states(x)
        with torch.autocast(**self.autocast):
            result = self.layer(x, context, self.noise)
        moved = not all(map(torch.equal, before, _generator_states(x)))
        self.rng_states = before if moved else None
        unable = moved or not self.layer.invertible
        anchor = self.position % ANCHOR_EVERY == 0
        self.stores_input = self.memory == "checkpoint" or anchor or unable
        if unable and self.memory == "invert":
            why = "draws from torch's generator" if moved else "does not rebuild its input exactly"
            layer = f"layer {self.number} ({_not_invertible(self.layer)})"
            _warn_once(f'memory="invert": {layer} {why}: its input is stored')
        return result

    def last_output(self) -> Tensor | None:
        """Return the row's last output; None if the next layer rebuilds this layer's output."""
        if self.output is not None and self.output._version != self.version:
            raise RuntimeError("a layer's output was modified by an inplace operation")
        return self.output

    def compare(self, rebuilt: Tensor, exact: Tensor) -> None:
        """Record the error of the layer's rebuilt output, now that the exact one is known again."""
        assert self.autocast is not None
        lowest = 4 * torch.finfo(self.autocast["dtype"]).eps if self.autocast["enabled"] else DRIFT
        drift = (rebuilt - exact).norm() / (exact.norm() * max(DRIFT, lowest))
        self.row.drift = drift if self.row.drift is None else torch.maximum(self.row.drift, drift)

    @contextlib.contextmanager
    def again(self, x: Tensor) -> Iterator[Transform]:
        """Give the layer under the conditions of its first run, which changes no state."""
        if self.layer.training != self.training:
            raise RuntimeError("train() or eval() came between a forward and its backward pass")
        assert self.autocast is not None
        fork = torch.random.fork_rng([x.device] if x.is_cuda else [], self.rng_states is not None)
        with uncounted(self.layer) as layer, torch.autocast(**self.autocast), fork:
            if self.rng_states is not None:
                torch.set_rng_state(self.rng_states[0])
                if x.is_cuda:
                    torch.cuda.set_rng_state(self.rng_states[1], x.device)
            yield layer


class _Recomputed(torch.autograd.Function):
    """A layer whose backward pass runs it again."""

    @staticmethod
    def forward(
        ctx: Saved, call: _LayerCall, x: Tensor, context: Context, *parameters: Tensor
    ) -> Mapped:
        z, log_det = call.first(x, context)
        ctx.call = call
        # parameters are saved so that changing them before backward is an error, as it always is
        ctx.save_for_backward(x if call.stores_input else None, context, *parameters)
        return z, log_det

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Saved, *grads: Tensor
    ) -> tuple[Tensor | None, ...]:
        call: _LayerCall = ctx.call
        stored, context, *parameters = ctx.saved_tensors
        rebuilt, call.row.output = call.row.output, None
        known = stored if call.stores_input else call.last_output()
        known = rebuilt if known is None else known
        assert known is not None
        with call.again(known) as layer:
            run = call.scope.copy().run
            x = known if call.stores_input else run(layer.inverse, known, context)[0]
            del stored, known
            needed = ctx.needs_input_grad[1:]
            leaf = x.detach().requires_grad_(needed[0])
            if context is not None:
                context = context.detach().requires_grad_(needed[1])
            with torch.enable_grad():
                results = run(layer, leaf, context, call.noise)
        if call.memory == "invert":
            if call.stores_input and rebuilt is not None:
                call.compare(rebuilt, results[0].detach())
            call.row.output = x
        if call.position == 0:
            call.row.close()
        pairs = [pair for pair in zip(results, grads, strict=True) if pair[0].requires_grad]
        del results
        inputs = (leaf, context, *parameters)
        wanted = [t for t, need in zip(inputs, needed, strict=True) if need and t is not None]
        found = iter([None] * len(wanted))
        if pairs:
            outputs, grads = zip(*pairs, strict=True)
            found = iter(torch.autograd.grad(outputs, wanted, grads, allow_unused=True))
        return None, *(next(found) if need else None for need in needed)


def _generator_states(x: Tensor) -> list[Tensor]:
    """States of the generators that a layer on x's device can draw from."""
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(x.device)] if x.is_cuda else states


def _not_invertible(layer: Transform) -> str:
    """Name the innermost transforms that are not invertible, or else the layer."""
    parts = [m for m in layer.modules() if isinstance(m, Transform) and not m.invertible]
    inner = [m for m in parts if not any(c is not m and c in parts for c in m.modules())]
    return ", ".join(dict.fromkeys(type(m).__name__ for m in inner or [layer]))


@functools.cache
def _warn_once(text: str) -> None:
    warnings.warn(text, stacklevel=2)
