"""A chain of vector transforms that one hand-written kernel runs where one fits."""

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
    """Transforms of vectors one after another, as `Chain`, run by one kernel where one fits.

    A kernel fits the mixer's own pattern: (ActNorm, LU or RLU, affine coupling with a residual MLP)
    once or more, then an ActNorm, where any ActNorm or linear map may be missing; and the folded
    form of this pattern. The kernel gives the chain's results, to rounding, in a third of the time;
    `path` says whether it runs. ``keep`` says what a GPU's backward pass is left: each step's
    vectors, or with ``"output"`` the last step's, from which the others are computed again.
    """

    _is_folded: bool = False
    _folded_plan: kernels.Plan | None = None
    """The plan of a folded chain, which can be kept because its tensors stay the same."""
    keep: kernels.Keep = "inputs"

    def folded(self) -> Transform:
        chain = super().folded()
        if isinstance(chain, KernelChain):
            chain._is_folded = True
        return chain

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> KernelChain:
        self._folded_plan = None  # another dtype or device: other tensors
        return super()._apply(fn, recurse)

    def path(self, x: Tensor) -> str:
        """``"kernel"``, or why vectors like `x` are transformed operator by operator."""
        plan = self._plan_for_vectors(x.detach())
        return plan if isinstance(plan, str) else "kernel"

    def _plan_for_vectors(self, x: Tensor) -> kernels.Plan | str:
        """The plan for a batch ``(B, n)`` with vectors one after another in memory, or why none."""
        plan = kernels.unsupported_reason(x) or self.plan(x)
        if not isinstance(plan, str) and (x.shape[1:] != (plan.n,) or len(x) < 1 + plan.batch):
            return "rows of another length, or too few of them"
        return plan

    def plan(self, x: Tensor, place: kernels.Place | None = None) -> kernels.Plan | str:
        """The kernels' plan for tensors of x's dtype and device, or why they cannot run the chain.

        `place` says where the vectors lie in x, if not one after another.
        """
        plan = None if self._folded_plan is None or hooked(self) else self._folded_plan
        if plan is None:
            plan = plan_of(self)
            self._folded_plan = plan if self._is_folded and isinstance(plan, kernels.Plan) else None
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
        plan = "context" if context is not None else self._plan_for_vectors(x)
        if isinstance(plan, str):
            return super().forward(x, context, noise)
        return kernels.rows_forward(plan, x, keep=self.keep)

    def inverse(self, z: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        # the kernel's inverse has no gradients
        live = differentiated(z, *self.parameters())
        plan = "context" if context is not None or live else self._plan_for_vectors(z)
        if isinstance(plan, str):
            return super().inverse(z, context, noise)
        return kernels.rows_inverse(plan, z)


def differentiated(*tensors: Tensor) -> bool:
    """Whether autograd records operations on any of the tensors."""
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
