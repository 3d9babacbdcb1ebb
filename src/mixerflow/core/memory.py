"""What training keeps of a forward pass: everything, each layer's input, or nothing.

Backward needs what each layer of a flow computed on the way. ``memory`` says where it comes from:

- ``"store"``: autograd keeps it all; memory grows with depth times a layer's inner width.
- ``"checkpoint"``: a layer keeps its input and runs again; memory grows with depth times the image.
- ``"invert"``: only the last output is kept; each layer's input is rebuilt from its output by
  `Transform.inverse`, and the layer runs again. Rounding errors grow from layer to layer, so one
  input in `ANCHOR_EVERY` is kept all the same; beyond those, memory does not grow with depth.

A layer is one of `Flow.layers`. It is an ordinary node of autograd with the parameters among its
inputs, so accumulation, DDP, shared parameters and gradients with respect to images and contexts
see what they always see. Layers make a row where each takes what the one before gave; "invert"
keeps the first input and the last output of each row. A `MultiScale` has a row for each scale; what
a `Composite` does between rows, autograd stores.

References:
    Chen, Xu, Zhang, Guestrin: Training deep nets with sublinear memory cost (2016).
    https://arxiv.org/abs/1604.06174
    Gomez, Ren, Urtasun, Grosse: The reversible residual network (2017), algorithm 1.
    https://arxiv.org/abs/1707.04585
"""

from __future__ import annotations

import contextlib
import functools
import math
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mixerflow.core.noise import Noise
from mixerflow.core.transform import Transform
from mixerflow.errors import ConfigError

Memory = Literal["store", "checkpoint", "invert"]

ANCHOR_EVERY = 20
"""Layers from one kept input to the next under "invert"; a row's first input is always kept."""
DRIFT = 1e-3
"""Relative error of rebuilt activations above which "invert" warns; under autocast at least four
times its dtype's epsilon (3 % in bfloat16)."""


_F = TypeVar("_F", bound=Callable[..., Any])


def _untraced(function: _F) -> _F:
    """Compilation steps around it; `torch.compiler.disable` would take seconds to import."""
    return torch._disable_dynamo(function)  # pyright: ignore


def through(
    transform: Transform,
    x: Tensor,
    context: Tensor | None = None,
    noise: Noise | None = None,
    *,
    memory: Memory = "store",
) -> tuple[Tensor, Tensor]:
    """``transform(x, context, noise)``, whose backward pass keeps what `memory` says.

    Values, batch-norm statistics and draws from torch's generator are those of "store" to the bit;
    so are the gradients of "checkpoint" where sums have one order. Those of "invert" carry the
    rounding of the inverses. Where autograd is off, all three are the same.

    Args:
        transform: taken layer by layer, as `Transform.walk` goes.
        x: ``(B, *event)``.
        context: ``(B, K)``, or None.
        noise: as `Transform.forward` takes it.
        memory: a layer that cannot rebuild its input in training, because it is not ``invertible``
            or draws from torch's generator, keeps it under "invert"; a warning says so once. So
            does one where rebuilt activations, met at a kept one, are off by more than `DRIFT`.

    Raises:
        ConfigError: parameters have hooks that would run twice.
    """
    if memory == "store" or not torch.is_grad_enabled():
        return transform(x, context, noise)
    if memory not in get_args(Memory):
        raise ValueError(f"memory must be one of {', '.join(get_args(Memory))}; got {memory!r}")
    return _layerwise(transform, x, context, noise, memory)


@_untraced
def refuse_sharded(module: nn.Module, memory: Memory) -> None:
    """Raise a ConfigError where parameters are sharded (FSDP2) and `memory` is not "store".

    FSDP2 gathers parameters around a forward pass and only there: a layer that runs again in
    backward, or backwards, would meet shards, or weights that autograd knows by another name.
    """
    if memory == "store":
        return
    tensors = sys.modules.get("torch.distributed.tensor")
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if tensors is None or fsdp is None:  # nothing can be sharded without them
        return
    wrapped = any(isinstance(m, fsdp.FSDPModule) for m in module.modules())
    if wrapped or any(isinstance(p, tensors.DTensor) for p in module.parameters()):
        what = f"memory {memory!r} runs layers again where FSDP2 has put their weights away"
        raise ConfigError(what, "--train.memory", 'use "store", or DDP')


@_untraced
def _layerwise(
    transform: Transform, x: Tensor, context: Tensor | None, noise: Noise | None, memory: Memory
) -> tuple[Tensor, Tensor]:
    return transform.walk(_Walk(memory), x, context, noise)


class _Walk:
    """Runs layers one after another, each as a node of autograd, and tells where a row begins."""

    def __init__(self, memory: Memory) -> None:
        self.memory: Memory = memory
        self.number = 0
        self.before: _Run | None = None
        self.output: Tensor | None = None
        """What the layer before gave; not in `_Run`, which its own graph would then never free."""

    def __call__(
        self, layer: Transform, x: Tensor, context: Tensor | None, noise: Noise | None
    ) -> tuple[Tensor, Tensor]:
        number, self.number = self.number, self.number + 1
        parameters = [p for p in layer.parameters() if p.requires_grad]
        if any(p._backward_hooks for p in parameters):
            what = f"a parameter's hook would run twice with memory {self.memory!r}"
            remedy = "use register_post_accumulate_grad_hook"
            raise ConfigError(what, "Tensor.register_hook", remedy)
        if not (x.requires_grad or parameters):
            # what comes before the first weight (dequantisation, say) keeps nothing anyhow
            return layer(x, context, noise)
        before = self.before
        if before is not None and x is self.output and x._version == before.version:
            handed, position = before.handed, before.position + 1
            before.output = None  # this layer will rebuild it
        else:
            handed, position = _Handed(), 0
        run = _Run(layer, noise, self.memory, handed, number, position)
        z, log_det = _Recomputed.apply(run, x, context, *parameters)  # pyright: ignore[reportGeneralTypeIssues]
        run.output, run.version = None if run.keeps_input else z.detach(), z._version
        self.before, self.output = run, z
        return z, log_det


@dataclass
class _Handed:
    """What backward takes from layer to layer of a row."""

    output: Tensor | None = None
    """Of the layer whose turn is next: the input of the one that was last, rebuilt or kept."""
    drift: Tensor | None = None
    """The largest relative error found in such an output, divided by what is allowed."""

    def compare(self, rebuilt: Tensor, exact: Tensor, allowed: float) -> None:
        """Take note of the rebuilt output of a layer whose exact one is known again."""
        drift = (rebuilt - exact).norm() / (exact.norm() * allowed)
        self.drift = drift if self.drift is None else torch.maximum(self.drift, drift)

    def close(self) -> None:
        """The row's first layer is done: say so if gradients are not what they should be."""
        # what is not finite makes gradients that are not, which training sees for itself
        if self.drift is not None and 1 < self.drift.item() < math.inf:
            _say(
                f'memory="invert": activations rebuilt over {ANCHOR_EVERY} layers are too far off '
                'for exact gradients: use "checkpoint" (--train.memory)'
            )
        self.output = self.drift = None


@dataclass
class _Run:
    """One layer of one forward pass, and what it takes to run it again."""

    layer: Transform
    noise: Noise | None
    memory: Memory
    handed: _Handed
    number: int
    position: int
    """In its row."""
    training: bool = True
    keeps_input: bool = True
    output: Tensor | None = None
    """Of a row's last layer that does not keep its input."""
    version: int = 0
    """Of its output: changing it before backward is an error, as with any tensor that is kept."""
    drew_from: list[Tensor] | None = None
    """States of torch's generators before the layer, if it moved them."""
    autocast: dict[str, Any] | None = None

    def first(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        device = x.device.type
        self.autocast = {
            "device_type": device,
            "dtype": torch.get_autocast_dtype(device),
            "enabled": torch.is_autocast_enabled(device),
            # or weights that were cast here, without autograd, would be taken for those to train
            "cache_enabled": False,
        }
        self.training = self.layer.training
        before = _generators(x)
        with torch.autocast(**self.autocast):
            result = self.layer(x, context, self.noise)
        moved = not all(map(torch.equal, before, _generators(x)))
        self.drew_from = before if moved else None
        unable = moved or not self.layer.invertible
        anchor = self.position % ANCHOR_EVERY == 0
        self.keeps_input = self.memory == "checkpoint" or anchor or unable
        if unable and self.memory == "invert":
            why = "draws from torch's generator" if moved else "does not rebuild its input exactly"
            _say(f'memory="invert": layer {self.number} ({_names(self.layer)}) {why}: it is kept')
        return result

    def last_output(self) -> Tensor | None:
        """The row's last output; None where it is for the next layer to rebuild this one's."""
        if self.output is not None and self.output._version != self.version:
            raise RuntimeError("a layer's output was modified by an inplace operation")
        return self.output

    def allowed(self) -> float:
        """The relative error that rebuilt activations may have."""
        if self.autocast is None or not self.autocast["enabled"]:
            return DRIFT
        return max(DRIFT, 4 * torch.finfo(self.autocast["dtype"]).eps)

    @contextlib.contextmanager
    def again(self, x: Tensor) -> Iterator[None]:
        """As it was the first time, and without a trace."""
        if self.layer.training != self.training:
            raise RuntimeError("train() or eval() came between a forward and its backward pass")
        assert self.autocast is not None
        with uncounted(self.layer), torch.autocast(**self.autocast), _drawing(x, self.drew_from):
            yield


@contextlib.contextmanager
def _drawing(x: Tensor, states: list[Tensor] | None) -> Iterator[None]:
    """Draw from torch's generators as from `states`; afterwards they are where they were."""
    if states is None:
        yield
        return
    with torch.random.fork_rng([x.device] if x.is_cuda else []):
        torch.set_rng_state(states[0])
        if x.is_cuda:
            torch.cuda.set_rng_state(states[1], x.device)
        yield


class _Recomputed(torch.autograd.Function):
    """A layer whose backward pass runs it again."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        run: _Run,
        x: Tensor,
        context: Tensor | None,
        *parameters: Tensor,
    ) -> tuple[Tensor, Tensor]:
        z, log_det = run.first(x, context)
        ctx.run = run
        # parameters are saved so that changing them before backward is an error, as it always is
        ctx.save_for_backward(x if run.keeps_input else None, context, *parameters)
        return z, log_det

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,  # noqa: ANN401
        *grads: Tensor,
    ) -> tuple[Tensor | None, ...]:
        run: _Run = ctx.run
        held, context, *parameters = ctx.saved_tensors
        rebuilt, run.handed.output = run.handed.output, None
        known = held if run.keeps_input else run.last_output()
        known = rebuilt if known is None else known
        assert known is not None
        with run.again(known):
            x = known if run.keeps_input else run.layer.inverse(known, context)[0]
            del held, known
            needed = ctx.needs_input_grad[1:]
            leaf = x.detach().requires_grad_(needed[0])
            if context is not None:
                context = context.detach().requires_grad_(needed[1])
            with torch.enable_grad():
                results = run.layer(leaf, context, run.noise)
        if run.memory == "invert":
            if run.keeps_input and rebuilt is not None:
                run.handed.compare(rebuilt, results[0].detach(), run.allowed())
            run.handed.output = x
        if run.position == 0:
            run.handed.close()
        pairs = [pair for pair in zip(results, grads, strict=True) if pair[0].requires_grad]
        del results
        inputs = (leaf, context, *parameters)
        wanted = [t for t, need in zip(inputs, needed, strict=True) if need and t is not None]
        found = iter(_gradients(pairs, wanted))
        return None, *(next(found) if need else None for need in needed)


def _gradients(
    pairs: list[tuple[Tensor, Tensor]], inputs: list[Tensor]
) -> tuple[Tensor | None, ...]:
    if not pairs:
        return (None,) * len(inputs)
    outputs, grads = zip(*pairs, strict=True)
    return torch.autograd.grad(outputs, inputs, grads, allow_unused=True)


@contextlib.contextmanager
def uncounted(module: nn.Module) -> Iterator[None]:
    """No batch norm in `module` moves its running statistics meanwhile."""
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    # ours has a switch of its own; torch's, in a user's net, normalises in the same way without
    switches = ["update" if hasattr(m, "update") else "track_running_stats" for m in norms]
    before = [getattr(m, name) for m, name in zip(norms, switches, strict=True)]
    try:
        for norm, name in zip(norms, switches, strict=True):
            setattr(norm, name, False)
        yield
    finally:
        for norm, name, value in zip(norms, switches, before, strict=True):
            setattr(norm, name, value)


def _generators(x: Tensor) -> list[Tensor]:
    """States of the generators that a layer on x's device can draw from."""
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(x.device)] if x.is_cuda else states


def _names(layer: Transform) -> str:
    """The innermost transforms that are to blame, or else the layer."""
    parts = [m for m in layer.modules() if isinstance(m, Transform) and not m.invertible]
    inner = [m for m in parts if not any(c is not m and c in parts for c in m.modules())]
    return ", ".join(dict.fromkeys(type(m).__name__ for m in inner or [layer]))


@functools.cache
def _say(text: str) -> None:
    """Warn, once a process for each text."""
    warnings.warn(text, stacklevel=2)
