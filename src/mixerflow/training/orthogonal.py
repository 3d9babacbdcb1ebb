"""Muon: steps of matrices with singular values near 1, for all matrices of one shape together.

torch.optim.Muon takes one matrix after the other, in bfloat16. A flow has hundreds of small
matrices, so that one batched product of all of them is several times faster, and float32 costs
nothing more on a CPU.
"""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

from mixerflow.optimizers import Muon

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic ``a s + b s^3 + c s^5`` of a singular value s: steep at 0, 0.7 to 1.2 near 1
(Jordan et al., 2024)."""
_TINY = 1e-12
"""Smallest norm that a matrix is divided by."""
_AT_ONCE = 1 << 17
"""Numbers of the matrices in one batched product: what a core keeps near it."""


def orthogonalized(matrices: Tensor, iterations: int) -> Tensor:
    """Return matrices with the singular vectors of `matrices`, and singular values near 1.

    Each iteration is ``X <- a X + (b A + c A^2) X`` with ``A = X X^T``; X begins as the matrix
    over its Frobenius norm. A matrix of zeros stays as it is.

    Args:
        matrices: ``(n, rows, columns)``.
        iterations: number of iterations.
    """
    a, b, c = _COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True).clamp(min=_TINY)
    for _ in range(iterations):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class OrthogonalAdam(torch.optim.Adam):
    """Muon for groups with ``matrices=True``, Adam for the others.

    State of a matrix: ``momentum_buffer``, of its shape; of other parameters, as Adam has it.

    Args:
        groups: groups of parameters.
        lr: learning rate of groups that have none of their own.
        betas: Adam's decay rates.
        settings: Muon's settings.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        *,
        lr: float,
        betas: tuple[float, float],
        settings: Muon,
    ) -> None:
        self.settings = settings
        super().__init__([{"matrices": False} | g for g in groups], lr=lr, betas=betas, fused=True)

    def __setstate__(self, state: dict[str, Any]) -> None:
        torch.optim.Optimizer.__setstate__(self, state)  # Adam's asks every state for its steps

    @torch.no_grad()
    def step(self) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Change all parameters that have a gradient."""
        groups = self.param_groups
        self.param_groups = [group for group in groups if not group["matrices"]]
        try:
            super().step()
        finally:
            self.param_groups = groups
        self.step_matrices()

    @torch.no_grad()
    def step_matrices(self) -> None:
        """Change the matrices alone."""
        for group in self.param_groups:
            if group["matrices"]:
                self._step_group(group)

    def _step_group(self, group: dict[str, Any]) -> None:
        alike: dict[tuple[object, ...], list[Tensor]] = defaultdict(list)
        for parameter in group["params"]:
            if parameter.grad is not None:
                key = (*parameter.flatten(1).shape, parameter.dtype, parameter.device)
                alike[key].append(parameter)
        for each in alike.values():
            count = max(1, _AT_ONCE // each[0].numel())
            for start in range(0, len(each), count):
                self._step_alike(each[start : start + count], group["lr"])

    def _step_alike(self, parameters: list[Tensor], lr: float) -> None:
        """Change matrices of one shape."""
        given, momentum = self.settings, self.settings.momentum
        grads = [p.grad.flatten(1) for p in parameters if p.grad is not None]
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state["momentum_buffer"] = torch.zeros_like(parameter)
        held = [self.state[p]["momentum_buffer"].flatten(1) for p in parameters]
        torch._foreach_lerp_(held, grads, 1 - momentum)  # pyright: ignore[reportPrivateImportUsage]
        ahead = torch.stack(grads).lerp_(torch.stack(held), momentum)
        steps = orthogonalized(ahead, given.iterations)
        matrices = [p.flatten(1) for p in parameters]
        if given.decay:
            torch._foreach_mul_(matrices, 1 - lr * given.decay)  # pyright: ignore[reportPrivateImportUsage]
        scale = math.sqrt(max(1.0, steps.shape[1] / steps.shape[2]))
        torch._foreach_add_(matrices, steps.unbind(), alpha=-lr * scale)  # pyright: ignore[reportPrivateImportUsage]
