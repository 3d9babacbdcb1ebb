"""A chain over rows that a kernel can run whole."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mixerflow import kernels
from mixerflow.core import Context, Layer, Mapped, Noise, Transform
from mixerflow.registry import register
from mixerflow.transforms.kernel_check import failed_check
from mixerflow.transforms.plans import hooked, plan_of


@register
class KernelChain(Layer):
    """Transforms of vectors one after another, as `Chain`, by one kernel where one fits.

    The kernel takes the mixer's own pattern: (ActNorm, LU or RLU, affine coupling with a residual
    MLP) once or more, then an ActNorm, any of the ActNorms and linear maps missing; and what that
    is folded into. It gives what the chain gives, to rounding, in a third of the time; `path` says
    which of the two runs. ``keep`` says what a GPU's backward pass is left: each step's rows, or
    with ``"output"`` the last ones, from which it rebuilds the others.
    """

    _folded: bool = False
    _known: kernels.Plan | None = None
    """The plan of a folded chain, whose tensors stay what they are."""
    keep: kernels.Keep = "inputs"

    def folded(self) -> Transform:
        mine = super().folded()
        if isinstance(mine, KernelChain):
            mine._folded = True
        return mine

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> KernelChain:
        self._known = None  # another dtype or device: other tensors
        return super()._apply(fn, recurse)

    def path(self, x: Tensor) -> str:
        """``"kernel"``, or why rows like `x` run operator by operator."""
        plan = kernels.unsupported_reason(x) or self._plan(x.detach())
        return plan if isinstance(plan, str) else "kernel"

    def _plan(self, x: Tensor) -> kernels.Plan | str:
        """As `plan`, of rows `x`."""
        plan = self.plan(x)
        if not isinstance(plan, str) and (x.shape[1:] != (plan.n,) or len(x) < 1 + plan.batch):
            return "rows of another length, or too few of them"
        return plan

    def plan(self, x: Tensor, place: kernels.Place | None = None) -> kernels.Plan | str:
        """What the kernels are to run for tensors of x's kind, or why they cannot.

        `place` says where rows lie in x, if not one after another.
        """
        plan = None if self._known is None or hooked(self) else self._known
        if plan is None:
            plan = plan_of(self)
            self._known = plan if self._folded and isinstance(plan, kernels.Plan) else None
        if isinstance(plan, str):
            return plan
        if plan.kind != (x.dtype, x.device):
            return "its parameters are of another dtype than the rows, or on another device"
        if plan.steps[0].dense and differentiated(x):
            return "the kernel differentiates triangles only"
        where = kernels.where(x)
        live = where == "gpu" and differentiated(x, *plan.parameters())
        return (
            plan.refused(where, differentiated=live) or failed_check(self, plan, x, place) or plan
        )

    def forward(self, x: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        plan = "context" if context is not None else kernels.unsupported_reason(x) or self._plan(x)
        if isinstance(plan, str):
            return super().forward(x, context, noise)
        return kernels.rows_forward(plan, x, keep=self.keep)

    def inverse(self, z: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        # the kernel's inverse has no gradients
        live = differentiated(z, *self.parameters())
        plan = (
            "context"
            if context is not None or live
            else kernels.unsupported_reason(z) or self._plan(z)
        )
        if isinstance(plan, str):
            return super().inverse(z, context, noise)
        return kernels.rows_inverse(plan, z)


def differentiated(*tensors: Tensor) -> bool:
    """Whether autograd is to know of what becomes of them."""
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
