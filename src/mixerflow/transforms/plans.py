"""Plans for the kernels: this file alone reads modules on the kernels' behalf."""

from __future__ import annotations

from typing import NamedTuple, TypeVar

from torch import Tensor, nn

from mixerflow import kernels
from mixerflow.core import Chain, Transform, submodules
from mixerflow.nets import ResidualMLP, Scale, SyncedBatchNorm
from mixerflow.transforms.coupling import Coupling, halves
from mixerflow.transforms.elementwise import Affine, Elementwise, FlooredAffine
from mixerflow.transforms.linear import Linear
from mixerflow.transforms.logistic import LogisticMixture
from mixerflow.transforms.lu import LU, RLU
from mixerflow.transforms.norms import ActNorm
from mixerflow.transforms.spline import RationalQuadratic

_LONGEST = 512
"""Length of the longest rows that a kernel takes; at 1024 it is slower than the operators."""

_MOST_PARTS = 64
"""Components of a mixture, or bins of a spline, for which the kernels have room."""

_NORMS = {
    (SyncedBatchNorm, SyncedBatchNorm),
    (nn.LayerNorm, nn.LayerNorm),
    (nn.RMSNorm, nn.RMSNorm),
    (nn.Identity, nn.Identity),
    (Scale, nn.Identity),
}
"""The pairs of norms that the kernels support in a net; the last is batch norm, folded."""

_T = TypeVar("_T", bound=Transform)


class _Step(NamedTuple):
    """One step of a row flow: ActNorm, linear map and coupling, and the coupling's net."""

    norm: ActNorm | None
    linear: LU | Linear | None
    coupling: Coupling
    net: kernels.Net
    elementwise: kernels.Map

    @property
    def n(self) -> int:
        return self.net.given + self.net.out // self.elementwise.params

    def kind(self) -> tuple[object, ...]:
        """The settings that the kernel needs alike in all steps."""
        net = self.net
        context = None if net.context is None else net.context.shape
        common = (self.n, net.hidden, net.squash, net.squares, net.norm, net.by_row, context)
        return *common, self.elementwise, type(self.linear)

    def for_kernel(self) -> kernels.Step:
        norm, linear = self.norm, self.linear
        scale = (None, None) if norm is None else (norm.log_scale, norm.shift)
        matrix, dense = (None, None), ()
        if isinstance(linear, Linear):
            matrix, dense = (None, linear.bias), (linear.weight, linear.inverted, linear.log_det)
        elif linear is not None:
            matrix = (linear.packed, linear.bias)
        parameters = (*scale, *matrix, *self.net.parameters)
        net = self.net
        return kernels.Step(parameters, net.statistics, self.coupling.flip, dense, net.context)


def plan_of(chain: Chain) -> kernels.Plan | str:
    """The kernels' plan for a chain, or in a few words why they cannot run it."""
    left, steps = list(chain), []
    while left and not (len(left) == 1 and type(left[0]) is ActNorm):
        step = _take(left)
        if isinstance(step, str):
            return step
        steps.append(step)
    if not steps:
        return "no coupling"
    if hooked(chain):
        return "hooks look inside"
    first = steps[0]
    if first.n > _LONGEST:
        return f"rows of more than {_LONGEST} numbers: long products are quick as they are"
    last = left[0] if left else None
    misshapen = isinstance(last, ActNorm) and last.shape != (first.n,)
    if len({step.kind() for step in steps}) > 1 or not all(map(_fits, steps)) or misshapen:
        return "the steps are not alike"
    scale = (last.log_scale, last.shift) if isinstance(last, ActNorm) else ()
    plan = kernels.Plan(
        n=first.n,
        hidden=first.net.hidden,
        steps=(*(step.for_kernel() for step in steps), kernels.Step(scale, (), flip=False)),
        norm=first.net.norm,
        counts=tuple(count for step in steps for count in step.net.counts),
        squash=first.net.squash,
        squares=first.net.squares,
        reverse=type(first.linear) is RLU,
        elementwise=first.elementwise,
        by_row=first.net.by_row,
        context=0 if first.net.context is None else first.net.context.shape[-1],
    )
    if any(type(p) not in (Tensor, nn.Parameter) for p in plan.parameters()):
        return "its parameters are not plain tensors"
    return plan.shape_error() or plan


def _take(left: list[Transform]) -> _Step | str:
    """Take the next step off the front of `left`, or say why there is none."""
    norm = _pop(left, ActNorm)
    linear = _pop(left, LU) or _pop(left, RLU) or _pop(left, Linear)
    coupling = _pop(left, Coupling)
    if coupling is None:
        return "not a chain of ActNorm, LU and coupling"
    mlp, rows = coupling.net, coupling.dim in (0, -1)
    if not isinstance(mlp, ResidualMLP) or not rows:
        return "the kernel knows couplings of rows with residual MLPs only"
    elementwise = _map(coupling.elementwise)
    if elementwise is None:
        return f"the kernel does not know the map {type(coupling.elementwise).__name__}"
    net = _net(mlp)
    return net if isinstance(net, str) else _Step(norm, linear, coupling, net, elementwise)


def _map(elementwise: Elementwise) -> kernels.Map | None:
    """The elementwise map as the kernels know it; None if they do not, as a subclass of one."""
    params = elementwise.params
    if type(elementwise) is Affine:
        return kernels.Map("affine", params, 1, limit=elementwise.bound or 0.0)
    if type(elementwise) is FlooredAffine:
        return kernels.Map("floored", params, 1, limit=elementwise.floor)
    if type(elementwise) is LogisticMixture and elementwise.components <= _MOST_PARTS:
        k = elementwise.components
        return kernels.Map("logistic", params, 0, limit=elementwise.floor, parts=k)
    if type(elementwise) is RationalQuadratic and elementwise.bins <= _MOST_PARTS:
        k = elementwise.bins
        return kernels.Map("spline", params, 0, limit=elementwise.tail, parts=k)
    return None


def _net(net: ResidualMLP) -> kernels.Net | str:
    """The tensors of a net, or in a few words why the kernels cannot take them."""
    if type(net) is not ResidualMLP:
        return "a net of another kind"  # which may compute something else
    layers = (net.enter, net.norm1, net.linear1, net.norm2, net.linear2, net.leave)
    enter, norm1, linear1, norm2, linear2, leave = layers
    if not type(enter) is type(linear1) is type(linear2) is type(leave) is nn.Linear:
        return "the kernel knows plain linear maps only"
    of_context = net.context
    if of_context is not None and (
        type(of_context) is not nn.Linear or of_context.bias is not None
    ):
        return "the kernel knows plain linear maps of contexts only"
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
        given=net.in_features,
        out=leave.out_features,
        hidden=width,
        squash=net.squash,
        squares=net.squares,
        parameters=tuple(t for layer in layers for t in _tensors(layer, "weight", "bias")),
        statistics=tuple(t for m in norms for t in _tensors(m, "running_mean", "running_var")),
        norm=norm,
        counts=tuple(count for count in counts if count is not None),
        by_row=by_row,
        context=None if of_context is None else of_context.weight,
    )


def _row_norm(norm: nn.Module, width: int) -> kernels.RowNorm | None:
    """A norm of each row ``(width,)`` by itself; None if `norm_of` makes none like it."""
    if isinstance(norm, nn.LayerNorm):
        supported, kind = norm.weight is not None and norm.bias is not None, "layer"
    else:
        assert isinstance(norm, nn.RMSNorm)
        supported, kind = norm.weight is None, "rms"
    supported = supported and norm.normalized_shape == (width,)
    return kernels.RowNorm(kind, norm.eps) if supported and norm.eps is not None else None


def _batch_norm(norm: nn.Module) -> kernels.Norm | None:
    """Batch norm's state; None where it keeps no statistics or has no weights."""
    assert isinstance(norm, SyncedBatchNorm)
    if not norm.track_running_stats or not norm.affine:
        return None
    return kernels.Norm(norm.training, norm.update, norm.momentum, norm.eps, norm.processes)


def _tensors(module: nn.Module, *names: str) -> list[Tensor | None]:
    """The module's parameters or buffers by name, None where there is none; faster than getattr."""
    parameters, buffers = module._parameters, module._buffers
    return [parameters.get(name, buffers.get(name)) for name in names]


def _pop(left: list[Transform], kind: type[_T]) -> _T | None:
    """Take off the first transform if `kind` is its class; a subclass may compute otherwise."""
    if not left or type(left[0]) is not kind:
        return None
    return left.pop(0)  # pyright: ignore[reportReturnType]


def _fits(step: _Step) -> bool:
    """Whether all lengths agree, and the net reads and changes the coupling's halves."""
    given, changed = halves(step.n, flip=step.coupling.flip)
    params = step.elementwise.params
    norm_fits = step.norm is None or step.norm.shape == (step.n,)
    linear_fits = step.linear is None or step.linear.n == step.n
    return (step.net.given, step.net.out) == (given, params * changed) and norm_fits and linear_fits


def hooked(chain: nn.Module) -> bool:
    """Whether a hook, or a replaced `forward`, sees or changes a module's input or output."""
    return bool(nn.modules.module._has_any_global_hook()) or any(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or "forward" in module.__dict__  # replaced on the instance
        for module in submodules(chain)
    )
