"""A chain over rows that a kernel can run whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from mixerflow import kernels
from mixerflow.core import Chain, Layer, Noise, Transform, inside
from mixerflow.transforms.actnorm import ActNorm
from mixerflow.transforms.coupling import Coupling
from mixerflow.transforms.elementwise import Affine
from mixerflow.transforms.linear import LU, RLU, Linear
from mixerflow.transforms.proof import doubt

_LONGEST = 512
"""Of rows that a kernel takes; at 1024 it is slower than the operators."""

_T = TypeVar("_T", bound=Transform)


class Rows(Layer):
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
        if isinstance(mine, Rows):
            mine._folded = True
        return mine

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Rows:
        self._known = None  # another dtype or device: other tensors
        return super()._apply(fn, recurse)

    def path(self, x: Tensor) -> str:
        """``"kernel"``, or why rows like `x` run operator by operator."""
        plan = kernels.why_not(x) or self._plan(x.detach())
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
        return plan.refused(where, differentiated=live) or doubt(self, plan, x, place) or plan

    def forward(
        self, x: Tensor, context: Tensor | None = None, noise: Noise | None = None
    ) -> tuple[Tensor, Tensor]:
        plan = "context" if context is not None else kernels.why_not(x) or self._plan(x)
        if isinstance(plan, str):
            return super().forward(x, context, noise)
        return kernels.rows_forward(plan, x, keep=self.keep)

    def inverse(
        self, z: Tensor, context: Tensor | None = None, noise: Noise | None = None
    ) -> tuple[Tensor, Tensor]:
        # the kernel's inverse has no gradients
        live = differentiated(z, *self.parameters())
        plan = "context" if context is not None or live else kernels.why_not(z) or self._plan(z)
        if isinstance(plan, str):
            return super().inverse(z, context, noise)
        return kernels.rows_inverse(plan, z)


def differentiated(*tensors: Tensor) -> bool:
    """Whether autograd is to know of what becomes of them."""
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)


class _Part(NamedTuple):
    norm: ActNorm | None
    linear: LU | Linear | None
    coupling: Coupling
    net: kernels.Net

    @property
    def n(self) -> int:
        """Length of the rows."""
        return self.net.given + self.net.out // 2

    def kind(self) -> tuple[object, ...]:
        """What the kernel wants alike in all steps."""
        affine, net = self.coupling.elementwise, self.net
        assert isinstance(affine, Affine)
        common = (self.n, net.hidden, net.squash, net.norm, net.by_row)
        return *common, affine.bound, type(self.linear)

    def step(self) -> kernels.Step:
        """As the kernel takes it."""
        norm, linear = self.norm, self.linear
        scale = (None, None) if norm is None else (norm.log_scale, norm.shift)
        matrix, dense = (None, None), ()
        if isinstance(linear, Linear):
            matrix, dense = (None, linear.bias), (linear.weight, linear.inverted, linear.log_det)
        elif linear is not None:
            matrix = (linear.packed, linear.bias)
        parameters = (*scale, *matrix, *self.net.parameters)
        return kernels.Step(parameters, self.net.statistics, self.coupling.flip, dense)


def plan_of(chain: Chain) -> kernels.Plan | str:
    """The kernel's view of a chain, or in a few words why it has none."""
    steps, parts = list(chain), []
    while steps and not (len(steps) == 1 and type(steps[0]) is ActNorm):
        part = _take(steps)
        if isinstance(part, str):
            return part
        parts.append(part)
    if not parts:
        return "no coupling"
    if hooked(chain):
        return "hooks look inside"
    first = parts[0]
    if first.n > _LONGEST:
        return f"rows of more than {_LONGEST} numbers: long products are quick as they are"
    tail = steps[0] if steps else None
    odd = isinstance(tail, ActNorm) and tail.shape != (first.n,)
    if len({part.kind() for part in parts}) > 1 or not all(map(_fits, parts)) or odd:
        return "the steps are not alike"
    plan = kernels.Plan(
        n=first.n,
        hidden=first.net.hidden,
        steps=(*(part.step() for part in parts), _tail(tail)),
        norm=first.net.norm,
        counts=tuple(count for part in parts for count in part.net.counts),
        squash=first.net.squash,
        reverse=type(first.linear) is RLU,
        bound=first.coupling.elementwise.bound or 0.0,
        by_row=first.net.by_row,
    )
    if any(type(p) not in (Tensor, nn.Parameter) for p in plan.parameters()):
        return "its parameters are not plain tensors"
    return plan.misfit() or plan


def _take(steps: list[Transform]) -> _Part | str:
    """The next part off the front of `steps`."""
    norm = _pop(steps, ActNorm)
    linear = _pop(steps, LU) or _pop(steps, RLU) or _pop(steps, Linear)
    coupling = _pop(steps, Coupling)
    if coupling is None:
        return "not a chain of ActNorm, LU and coupling"
    plan = getattr(coupling.net, "plan", None)
    if plan is None or type(coupling.elementwise) is not Affine or coupling.dim not in (0, -1):
        return "the kernel knows affine couplings with residual MLPs only"
    net = plan()
    return net if isinstance(net, str) else _Part(norm, linear, coupling, net)


def _pop(steps: list[Transform], kind: type[_T]) -> _T | None:
    """The first of `steps`, taken off, if it is of that kind: its subclasses may do otherwise."""
    if not steps or type(steps[0]) is not kind:
        return None
    return steps.pop(0)  # pyright: ignore[reportReturnType]


def _fits(part: _Part) -> bool:
    """Whether the lengths agree, and the halves are the coupling's."""
    given = part.n // 2 if part.coupling.flip else (part.n + 1) // 2
    return (
        part.net.given == given
        and part.net.out == 2 * (part.n - given)
        and (part.norm is None or part.norm.shape == (part.n,))
        and (part.linear is None or part.linear.n == part.n)
    )


def hooked(chain: nn.Module) -> bool:
    """Whether someone wants to see, or to change, what passes a module."""
    if nn.modules.module._has_any_global_hook():
        return True
    return any(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or "forward" in module.__dict__  # replaced on the instance
        for module in inside(chain)
    )


def _tail(norm: Transform | None) -> kernels.Step:
    """The last ActNorm, as a step without a coupling."""
    scale = (norm.log_scale, norm.shift) if isinstance(norm, ActNorm) else ()
    return kernels.Step(scale, (), flip=False)
