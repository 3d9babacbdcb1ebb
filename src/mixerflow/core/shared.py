"""Transforms of one kind that occur many times in a flow: `torch.export` traces the kind once."""

from __future__ import annotations

import hashlib
import io
import pickle
from collections import Counter
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from mixerflow.core.combine import _Wrapper
from mixerflow.core.noise import Noise
from mixerflow.core.transform import Context, Mapped, PlacedLayer, Shape, Transform

try:  # not public; other releases of torch may lack them, and all is traced as it stands
    from torch._higher_order_ops.invoke_subgraph import invoke_subgraph
    from torch._higher_order_ops.passes.inline_invoke_subgraph import inline_invoke_subgraph
except ImportError:
    invoke_subgraph = inline_invoke_subgraph = None

_OFTEN = 4
"""Transforms of one kind from which on a function of their weights is faster to trace."""
_LARGE = 8
"""Modules of a transform from which on a call is shorter than its operators: a coupling's."""

_Module = TypeVar("_Module", bound=nn.Module)


def share(module: _Module) -> _Module:
    """Let `torch.export` trace each kind of transform in an inference copy once; return the copy.

    Two transforms are of one kind if they differ by the values of their weights only. Each kind
    becomes one function of input and weights, and is called. Without an export all is as before.
    """
    if invoke_subgraph is None:
        return module
    found = [(*place, _kind(place[2])) for place in _large(module)]
    count = Counter(kind for *_, kind in found if kind is not None)
    calls: dict[str, _Calls] = {}
    done: set[int] = set()
    for parent, name, part, kind in found:  # parents come before their parts
        if kind is not None and count[kind] >= _OFTEN and id(part) not in done:
            done.update(map(id, part.modules()))
            setattr(parent, name, _Shared(part, kind, calls.setdefault(kind, _calls(part))))
    return module


def put_in_place(traced: torch.fx.GraphModule) -> None:
    """Replace the calls in a traced module by the functions' operators, which run faster."""
    if inline_invoke_subgraph is not None:
        inline_invoke_subgraph(traced)
        traced.delete_all_unused_submodules()
        traced.graph.lint()
        traced.recompile()


def _large(module: nn.Module) -> Iterator[tuple[nn.Module, str, Transform]]:
    """Large transforms that draw no noise, each with its parent and its name there."""
    for parent in module.modules():
        for name, part in parent.named_children():
            parts = list(part.modules())
            transforms = [each for each in parts if isinstance(each, Transform)]
            drawing = any(each.draws or each.inverse_draws for each in transforms)
            if isinstance(part, Transform) and len(parts) >= _LARGE and not drawing:
                yield parent, name, part


def _weights(module: nn.Module) -> dict[str, Tensor]:
    return dict(module.named_parameters()) | dict(module.named_buffers())


class _Pickler(pickle.Pickler):
    """Writes of each weight its name, shape and dtype only."""

    def __init__(self, file: io.BytesIO, weights: dict[str, Tensor]) -> None:
        super().__init__(file)
        self._names = {id(value): name for name, value in weights.items()}

    def persistent_id(self, obj: object) -> object:
        if isinstance(obj, Tensor) and id(obj) in self._names:
            return self._names[id(obj)], tuple(obj.shape), str(obj.dtype)
        return None


def _kind(part: nn.Module) -> str | None:
    """Digest of all that a module is but for its weights' values; None if it has no such form."""
    file = io.BytesIO()
    try:
        _Pickler(file, _weights(part)).dump(part)
    except (pickle.PicklingError, AttributeError, TypeError):  # a lambda, a local class
        return None
    return hashlib.sha256(file.getvalue()).hexdigest()[:16]


class _Body(nn.Module):
    """The function of one kind: input, context and weights to the result of either direction."""

    def __init__(self, transform: Transform) -> None:
        super().__init__()
        self.transform = transform

    def forward(self, x: Tensor, context: Context, inverse: bool) -> Mapped:
        return (self.transform.inverse if inverse else self.transform)(x, context)


class _Call:
    """A direction of a `_Body`. torch knows by the object which calls are of one function."""

    def __init__(self, body: _Body, *, inverse: bool, conditional: bool) -> None:
        self._body, self._inverse, self._conditional = body, inverse, conditional
        self._names = list(_weights(body))

    def __call__(self, x: Tensor, *rest: Tensor) -> Mapped:
        context, weights = (rest[0], rest[1:]) if self._conditional else (None, rest)
        named = dict(zip(self._names, weights, strict=True))
        return torch.func.functional_call(self._body, named, (x, context, self._inverse))


_Calls = dict[tuple[bool, bool], _Call]
"""By direction (whether inverse), and whether there is a context."""


def _calls(transform: Transform) -> _Calls:
    body, both = _Body(transform), (False, True)
    return {(i, c): _Call(body, inverse=i, conditional=c) for i in both for c in both}


class _Shared(_Wrapper):
    """A transform that an export calls as a function of its weights."""

    def __init__(self, transform: Transform, kind: str, calls: _Calls) -> None:
        super().__init__()
        self.transform = transform
        self.takes_columns = transform.takes_columns
        self._kind = kind
        self._calls = calls
        self.eval()  # as all of the inference copy is; or a view would be made of it

    def _run(self, x: Tensor, context: Context, *, inverse: bool) -> Mapped:
        if not torch.compiler.is_exporting():
            return (self.transform.inverse if inverse else self.transform)(x, context)
        given = (x,) if context is None else (x, context)
        shapes = "_".join(str(n) for each in given for n in each.shape)  # with the batch's symbol
        name = f"{self._kind}_{'inverse' if inverse else 'forward'}_{shapes}"
        name = "".join(letter if letter.isalnum() else "_" for letter in name)
        call = self._calls[inverse, context is not None]
        function: Any = invoke_subgraph  # it takes any callable
        return function(call, name, *given, *_weights(self.transform).values())

    def forward(self, x: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        return self._run(x, context, inverse=False)

    def inverse(self, z: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        return self._run(z, context, inverse=True)

    def out_shape(self, shape: Shape) -> Shape:
        return self.transform.out_shape(shape)

    def layer_shapes(self, shape: Shape) -> list[PlacedLayer]:
        return self.transform.layer_shapes(shape)
