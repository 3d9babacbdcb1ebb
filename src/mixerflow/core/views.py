"""Views of modules: the same tensors in another mode, for code that must change no module.

`nn.Module.eval` writes to the module. While one thread scores a flow in training mode, another one
would meet modules in the wrong mode, and batch norm would count a batch. A view is a copy of the
modules alone, so that its mode is its own.
"""

from __future__ import annotations

import copy
import functools
import operator
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any, TypeVar

from torch import nn

from mixerflow.registry import ARGUMENTS

M = TypeVar("M", bound=nn.Module)

_TREE = ("_modules", "_parameters", "_buffers")
_OWN = frozenset(nn.Module().__dict__) | {ARGUMENTS}
"""Attributes without references to parts, besides the tree: torch's own, and the registry's."""
_MODELESS = {nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Identity, nn.LayerNorm, nn.RMSNorm}
"""Classes whose modules compute the same in all modes; without hooks they need no copy."""
_PLAIN = (nn.Module.__getstate__, nn.Module.__setstate__)


def submodules(module: nn.Module) -> Iterator[nn.Module]:
    """Iterate over a module and all in it, much faster than `modules`; shared ones come again."""
    left: list[nn.Module] = [module]
    while left:
        module = left.pop()
        yield module
        left.extend(part for part in module._modules.values() if part is not None)


@contextmanager
def evaluating(module: M) -> Iterator[M]:
    """Give, in a ``with``, the module in eval mode: itself, or a view if a part of it trains.

    The module itself does not change. Two kinds of modules cannot have a view, and are switched to
    eval mode and back, so that no other thread may use them meanwhile: modules that FSDP2 shards,
    and modules with a `forward` of their own that is not a method of a module.
    """
    if not any(part.training for part in submodules(module)):
        yield module
    elif all(map(_has_view, submodules(module))):
        yield view(module, lambda part: part.__dict__.update(training=False))
    else:
        training = [part for part in submodules(module) if part.training]
        try:
            for part in training:
                part.__dict__["training"] = False  # `__setattr__` is slow for thousands of modules
            yield module
        finally:
            for part in training:
                part.__dict__["training"] = True


@contextmanager
def uncounted(module: M) -> Iterator[M]:
    """Give, in a ``with``, the module, or a view of it, whose batch norms move no statistics."""
    norms = [m for m in submodules(module) if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if not any(norm.training for norm in norms):
        yield module
        return

    def fix(part: nn.Module) -> None:
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            # mixerflow's own has the switch `update`; torch's normalises alike without statistics
            part.__dict__["update" if hasattr(part, "update") else "track_running_stats"] = False

    yield view(module, fix)


def view(module: M, change: Callable[[nn.Module], None]) -> M:
    """Return a copy of the modules that has the module's own tensors; `change` is called for each.

    Parts that are also held elsewhere than among the children (in a list, or as a bound method) are
    the view's own there too.
    """
    made: dict[int, nn.Module] = {}

    def copied(part: nn.Module) -> nn.Module:
        kind = type(part)
        if kind in _MODELESS and not (part._forward_hooks or part._forward_pre_hooks):
            return part
        if id(part) in made:
            return made[id(part)]
        if _is_plain(kind):
            new = kind.__new__(kind)
            object.__setattr__(new, "__dict__", part.__dict__.copy())
            new.__dict__.pop("_compiled_call_impl", None)  # it would call the module itself
        else:
            new = copy.copy(part)
        made[id(part)], state = new, new.__dict__
        for name in _TREE:
            state[name] = state[name].copy()
        children = state["_modules"]
        for name, child in children.items():
            children[name] = None if child is None else copied(child)
        change(new)
        return new

    result = copied(module)
    for new in made.values():
        state = new.__dict__
        for name in state.keys() - _OWN:
            value = state[name]
            replaced = _replaced(value, made)
            if replaced is not value:
                state[name] = replaced
    return result  # pyright: ignore[reportReturnType]


@functools.cache
def _is_plain(kind: type[nn.Module]) -> bool:
    """Whether a copy of such a module is a copy of its attributes."""
    return (kind.__getstate__, kind.__setstate__) == _PLAIN and not hasattr(kind, "__copy__")


def _replaced(value: Any, made: dict[int, nn.Module]) -> Any:  # noqa: ANN401
    """Return `value` with views for the modules that it holds; itself where it holds none."""
    kind = type(value)
    if kind is dict:
        new = {key: _replaced(each, made) for key, each in value.items()}
        return value if all(new[key] is each for key, each in value.items()) else new
    if kind is list or kind is tuple:
        new = [_replaced(each, made) for each in value]
        return value if all(map(operator.is_, new, value)) else kind(new)
    if kind is MethodType:
        owner = made.get(id(value.__self__))
        return value if owner is None else MethodType(value.__func__, owner)
    return made.get(id(value), value) if isinstance(value, nn.Module) else value


def _has_view(part: nn.Module) -> bool:
    own = part.__dict__.get("forward")
    fsdp = sys.modules.get("torch.distributed.fsdp")  # without it nothing is sharded
    sharded = fsdp is not None and isinstance(part, fsdp.FSDPModule)
    return not sharded and (own is None or isinstance(own, MethodType))
