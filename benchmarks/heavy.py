"""The floor of any model: its matrix products, convolutions and attention, and nothing else.

`recorded` runs a job once, notes each of these operators with the shapes and strides of what it
reads, forward and backward, and returns a function that runs them again, in order, on numbers of
its own. What is between them (norms, gates, mixtures, log-dets, the optimiser) is left out: no
implementation with the same products and the same operators can be faster.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

_WORDS = ("convolution", "mm", "addmm", "bmm", "baddbmm", "scaled_dot_product", "linear")


def is_heavy(name: str) -> bool:
    """Whether an operator, such as ``aten::addmm``, is one of those that count."""
    operator = name.rpartition("::")[2].strip("_")
    return any(operator == word or (len(word) > 5 and word in operator) for word in _WORDS)


def _like(tensor: Tensor) -> Tensor:
    """Other small numbers in the same layout, of which some may be expanded ones."""
    reach = 1 + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
    numbers = torch.zeros(reach if tensor.numel() else 0, dtype=tensor.dtype)
    if numbers.is_floating_point():
        numbers.normal_(std=0.1)
    return numbers.as_strided(tensor.shape, tensor.stride())


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Callable[..., Any], Any, Any]] = []

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401
        types: Any,  # noqa: ANN401
        args: Any = (),  # noqa: ANN401
        kwargs: Any = None,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        kwargs = kwargs or {}
        if is_heavy(func.name().partition(".")[0]):
            own = tree_map_only(Tensor, _like, (args, kwargs))
            self.calls.append((func, *own))
        return func(*args, **kwargs)


def recorded(run: Callable[[], object]) -> tuple[Callable[[], None], int]:
    """Run a job once; return a function that runs its heavy operators alone, and their number."""
    with _Recorder() as recorder:
        run()
    calls = recorder.calls

    @torch.no_grad()
    def again() -> None:
        for func, args, kwargs in calls:
            func(*args, **kwargs)

    return again, len(calls)
