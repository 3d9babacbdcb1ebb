"""What the kernels are to be given: this file alone reads modules for them, from outside."""

from __future__ import annotations

from typing import NamedTuple, TypeVar

from torch import Tensor, nn

from mixerflow import kernels
from mixerflow.core import Chain, Transform, submodules
from mixerflow.nets import ResidualMLP, Scale, SyncedBatchNorm
from mixerflow.transforms.actnorm import ActNorm
from mixerflow.transforms.coupling import Coupling
from mixerflow.transforms.elementwise import Affine
from mixerflow.transforms.linear import LU, RLU, Linear

_LONGEST = 512
"""Of rows that a kernel takes; at 1024 it is slower than the operators."""

_NORMS = {
    (SyncedBatchNorm, SyncedBatchNorm),
    (nn.LayerNorm, nn.LayerNorm),
    (nn.RMSNorm, nn.RMSNorm),
    (nn.Identity, nn.Identity),
    (Scale, nn.Identity),
}
"""What the kernels know in the two places of a net; the last is batch norm, folded."""

_T = TypeVar("_T", bound=Transform)


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
    return plan.shape_error() or plan


def _take(steps: list[Transform]) -> _Part | str:
    """The next part off the front of `steps`."""
    norm = _pop(steps, ActNorm)
    linear = _pop(steps, LU) or _pop(steps, RLU) or _pop(steps, Linear)
    coupling = _pop(steps, Coupling)
    if coupling is None:
        return "not a chain of ActNorm, LU and coupling"
    mlp, rows = coupling.net, coupling.dim in (0, -1)
    if not isinstance(mlp, ResidualMLP) or type(coupling.elementwise) is not Affine or not rows:
        return "the kernel knows affine couplings with residual MLPs only"
    net = _net(mlp)
    return net if isinstance(net, str) else _Part(norm, linear, coupling, net)


def _net(net: ResidualMLP) -> kernels.Net | str:
    """The tensors of a net, or in a few words why the kernels cannot take them."""
    if type(net) is not ResidualMLP:
        return "a net of another kind"  # which may compute something else
    if net.context is not None:
        return "the kernel takes no context"
    parts = (net.enter, net.norm1, net.linear1, net.norm2, net.linear2, net.leave)
    enter, norm1, linear1, norm2, linear2, leave = parts
    if not type(enter) is type(linear1) is type(linear2) is type(leave) is nn.Linear:
        return "the kernel knows plain linear maps only"
    kind = type(norm1)
    if (kind, type(norm2)) not in _NORMS:
        return "the kernels know other norms"
    norms, width = (norm1, norm2), linear1.in_features
    by_row = norm = None
    if kind is nn.LayerNorm or kind is nn.RMSNorm:
        by_row, other = (_row_norm(each, width) for each in norms)
        if by_row is None or other is None:
            return "the kernels know row norms as `norm_of` makes them"
        if by_row != other:
            return "its norms are not alike"
    if kind is SyncedBatchNorm:
        norm, other = map(_batch_norm, norms)
        if norm is None or norm != other:
            return "its batch norms are not alike"
    counts = [each._buffers["num_batches_tracked"] for each in norms if norm]
    return kernels.Net(
        given=enter.in_features,
        out=leave.out_features,
        hidden=width,
        squash=net.squash,
        parameters=tuple(t for part in parts for t in _held(part, "weight", "bias")),
        statistics=tuple(t for each in norms for t in _held(each, "running_mean", "running_var")),
        norm=norm,
        counts=tuple(count for count in counts if count is not None),
        by_row=by_row,
    )


def _row_norm(norm: nn.Module, width: int) -> kernels.RowNorm | None:
    """A norm of each row ``(width,)`` by itself; None if `norm_of` makes none like it."""
    if isinstance(norm, nn.LayerNorm):
        known, kind = norm.weight is not None and norm.bias is not None, "layer"
    else:
        assert isinstance(norm, nn.RMSNorm)
        known, kind = norm.weight is None and norm.eps is not None, "rms"
    known = known and norm.normalized_shape == (width,)
    return kernels.RowNorm(kind, norm.eps) if known and norm.eps is not None else None


def _batch_norm(norm: nn.Module) -> kernels.Norm | None:
    """Batch norm's state; None where it keeps no statistics or has no weights."""
    assert isinstance(norm, SyncedBatchNorm)
    if not norm.track_running_stats or not norm.affine:
        return None
    return kernels.Norm(norm.training, norm.update, norm.momentum, norm.eps, norm.processes)


def _held(module: nn.Module, *names: str) -> list[Tensor | None]:
    """Parameters or buffers of those names, None where there is none; quicker than getattr."""
    parameters, buffers = module._parameters, module._buffers
    return [parameters.get(name, buffers.get(name)) for name in names]


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
        for module in submodules(chain)
    )


def _tail(norm: Transform | None) -> kernels.Step:
    """The last ActNorm, as a step without a coupling."""
    scale = (norm.log_scale, norm.shift) if isinstance(norm, ActNorm) else ()
    return kernels.Step(scale, (), flip=False)
