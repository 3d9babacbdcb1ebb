"""What follows the gradients of a step: their norm, the clip, the optimiser and the average."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mixerflow import kernels
from mixerflow.training.optimizer import Average
from mixerflow.training.orthogonal import OrthogonalAdam
from mixerflow.training.parallel import unsharded
from mixerflow.waits import one_thread_if_small

_BY_KERNEL = (torch.optim.Adam, torch.optim.AdamW, OrthogonalAdam)
_CLIP_EPS = 1e-6
"""What torch adds to a norm that it divides by."""


class Update:
    """The update, operator by operator.

    Args:
        parameters: those that train.
        optimizer: the optimiser of all of them.
        average: the average of the flow that they are from.
        clip: largest norm of all gradients together; longer ones are shortened to it.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        optimizer: torch.optim.Optimizer,
        average: Average,
        clip: float,
    ) -> None:
        self.parameters, self.optimizer = parameters, optimizer
        self.average, self.clip = average, clip

    def norm(self) -> Tensor:
        """Return the norm of all gradients together, ``()``."""
        grads = [p.grad for p in self.parameters if p.grad is not None]
        return unsharded(torch.nn.utils.get_total_norm(grads))

    def apply(self, norm: Tensor, step: int) -> None:
        """Change the parameters, and their average after step `step` (from 0).

        `norm` is that of `norm`, and is finite.
        """
        if norm > self.clip:  # most steps need no pass over the gradients
            torch.nn.utils.clip_grads_with_norm_(self.parameters, self.clip, norm)
        with one_thread_if_small(self.parameters):
            self.optimizer.step()
            self.average.update(step)


class KernelUpdate(Update):
    """The update in two passes over memory: the norm, then Adam and the average together.

    It is for parameters on the CPU that no process shards, and for other optimisers than Adam and
    AdamW it does but their norm and average. Parameters that the kernels cannot take, and kernels
    that are switched off, leave it operator by operator. The optimiser's state is torch's.
    """

    _table: _Table | None = None
    _runs: bool = False

    def norm(self) -> Tensor:
        self._runs = False
        if kernels.unsupported_reason(self.parameters[0]) is not None:
            return super().norm()
        if self._table is None or not self._table.holds():
            self._table = _Table(self.parameters, self.optimizer, self.average)
        norm = self._table.norm()
        if norm is None:
            return super().norm()
        self._runs = True
        return torch.tensor(norm)

    def apply(self, norm: Tensor, step: int) -> None:
        if not self._runs or self._table is None:
            return super().apply(norm, step)
        length = norm.item()
        scale = self.clip / (length + _CLIP_EPS) if length > self.clip else 1.0
        self._table.step(scale, self.average.share(step))
        return None


class _Table:
    """The tensors of an update in the kernel's order, as they lie in memory now."""

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        optimizer: torch.optim.Optimizer,
        average: Average,
    ) -> None:
        pairs = {id(p): (p, e) for p, e in average.pairs()}
        pairs |= {id(p): (p, None) for p in parameters if id(p) not in pairs}
        self.optimizer, self.state = optimizer, optimizer.state
        self.rows: list[Tensor] = [p for p, _ in pairs.values()]
        self.averages: list[Tensor | None] = [e for _, e in pairs.values()]
        kind, muon = type(optimizer), isinstance(optimizer, OrthogonalAdam)
        self.by_kernel = [
            kind in _BY_KERNEL and not (muon and group["matrices"])
            for group in optimizer.param_groups
        ]
        every = [p for group in optimizer.param_groups for p in group["params"]]
        self.order = {id(p): place for place, p in enumerate(every)}
        group_of = {
            id(p): number
            for number, group in enumerate(optimizer.param_groups)
            for p in group["params"]
        }
        self.trained = [(p, id(p) in group_of) for p in self.rows]
        self.group = np.array([group_of.get(id(p), -1) for p in self.rows])
        self.adam = np.array([number >= 0 and self.by_kernel[number] for number in self.group])
        self.fits = all(map(_fits, self.rows)) and all(e is None or _fits(e) for e in self.averages)
        copies = [e for e in self.averages if e is not None]
        self.checked = [*self.rows, copies[0], copies[-1]]
        """What `holds` looks at: a copy moves as a whole, and looking at a tensor is not free."""
        self.places = kernels.addresses(self.checked)
        self._fill()

    def _fill(self) -> None:
        """Take the moments that there are."""
        found = [
            self.state.get(p) if a else None for p, a in zip(self.rows, self.adam, strict=True)
        ]
        moments = [
            kernels.Moments(s["exp_avg"], s["exp_avg_sq"], s["step"]) if s else None for s in found
        ]
        self.fits = self.fits and all(
            m is None or all(map(_fits, (m.first, m.second, m.step))) for m in moments
        )
        fresh = [i for i, m in enumerate(moments) if m is None and self.adam[i]]
        self.fresh = sorted(fresh, key=lambda i: self.order[id(self.rows[i])])  # as torch's are
        self.update = kernels.Update(self.rows, self.averages, moments) if self.fits else None

    def holds(self) -> bool:
        """Whether the tensors are where they were, and the optimiser's state is the same."""
        same = np.array_equal(kernels.addresses(self.checked), self.places)
        return self.state is self.optimizer.state and same

    def norm(self) -> float | None:
        """Return the norm of all gradients; None where the kernel cannot take them."""
        grads = [p.grad if trains else None for p, trains in self.trained]
        whole = (  # torch has seen to it that they are on the CPU, and float32
            g is None or (g.layout is torch.strided and g.is_contiguous()) for g in grads
        )
        if self.update is None or not all(whole):
            return None
        fresh = [number for number in self.fresh if grads[number] is not None]
        if fresh:
            for number in fresh:
                p = self.rows[number]
                if self.state.get(p):  # a step by operators has made them
                    continue
                self.state[p] = {
                    "step": torch.zeros((), dtype=torch.float32),
                    "exp_avg": torch.zeros_like(p, requires_grad=False),
                    "exp_avg_sq": torch.zeros_like(p, requires_grad=False),
                }
            self._fill()
        self.grads = grads
        return self.update.norm(grads) if self.update else None

    @torch.no_grad()
    def step(self, scale: float, share: float) -> None:
        """Change the parameters, then the averages."""
        groups, others = self.optimizer.param_groups, not all(self.by_kernel)
        if others:
            left = [
                g for g, a in zip(self.grads, self.adam, strict=True) if g is not None and not a
            ]
            if scale != 1 and left:
                torch._foreach_mul_(left, scale)  # pyright: ignore[reportPrivateImportUsage]
            if isinstance(self.optimizer, OrthogonalAdam):
                self.optimizer.step_matrices()
            else:
                self.optimizer.step()
        adam = next((g for g, a in zip(groups, self.by_kernel, strict=True) if a), {})
        assert self.update is not None
        self.update.step(
            lr=self._of_groups("lr"),
            decay=self._of_groups("weight_decay"),
            betas=adam.get("betas", (0.0, 0.0)),
            eps=adam.get("eps", 0.0),
            scale=scale,
            share=share,
        )
        torch.autograd.graph.increment_version(self.rows)
        del self.grads

    def _of_groups(self, name: str) -> np.ndarray:
        """A setting of each row's group ``(rows,)``."""
        values: list[Any] = [group.get(name, 0.0) for group in self.optimizer.param_groups]
        return np.array(values, np.float64)[self.group]


def _fits(tensor: Tensor) -> bool:
    """Whether the kernel can read and write a tensor as it is."""
    kind = tensor.dtype is torch.float32 and tensor.device.type == "cpu"
    return kind and tensor.numel() > 0 and tensor.layout is torch.strided and tensor.is_contiguous()
