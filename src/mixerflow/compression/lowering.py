"""A built flow as a program of operations on integers, or why it has none.

The flow's transforms run on the positions of an image's numbers in place of the numbers: what
rearranges them runs as it is, and what computes becomes an operation at the positions that it is
given. So no transform's order is written down a second time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mixerflow.compression.assembly import Assembly, Positions
from mixerflow.compression.constants import factorise, normalisation
from mixerflow.compression.lowered_convolutions import add_convolution
from mixerflow.compression.lowered_couplings import add_coupling, map_of
from mixerflow.compression.lowered_nets import values
from mixerflow.compression.program import Base, Operation, Program
from mixerflow.compression.refusal import refused
from mixerflow.core import (
    Along,
    Cauchy,
    Chain,
    Composite,
    Context,
    Flow,
    GaussianMixture,
    Inverse,
    Layer,
    Mapped,
    MultiScale,
    Noise,
    Shape,
    SpikeAndSlab,
    StandardNormal,
    StudentT,
    Transform,
    Window,
    constant,
)
from mixerflow.core.bases import LEAST_DOF
from mixerflow.nets import ResidualConvNet, ResidualMLP
from mixerflow.transforms import (
    LU,
    PLU,
    RLU,
    ActNorm,
    BatchNorm,
    Coupling,
    Dequantize,
    DiagonalAffine,
    Halves,
    KernelChain,
    Linear,
    Matrix,
    MixerLayer,
    NormalScores,
    Rescale,
    Reshape,
    Standardize,
    SwapHalves,
    UnpackedPLU,
    Whiten,
)
from mixerflow.transforms.layout import _Rearrangement
from mixerflow.transforms.plans import hooked

_MADE_OF_PARTS = {Chain, Layer, KernelChain, MixerLayer, Along, Window, MultiScale}
_ORDERS = {Reshape, SwapHalves}
_MIXTURES = {GaussianMixture, SpikeAndSlab}
_COMPUTED = {
    *(Rescale, DiagonalAffine, ActNorm, BatchNorm, Standardize),
    *(NormalScores, LU, RLU, PLU, UnpackedPLU, Whiten, Matrix, Linear, Coupling),
}
"""Transforms that compute, each of exactly that class: a subclass may compute otherwise."""


@torch.no_grad()
def program_of(flow: Flow) -> Program:
    """Return the program of a flow in eval mode, whatever mode it is in; its weights are float32.

    Raises:
        ConfigError: the flow has a part that the codec does not take; names it, and what it takes.
    """
    if flow.levels is None or len(flow.shape) < 2:
        raise refused("no integer images (C, *spatial)")
    if hooked(flow.transform):
        raise refused("hooks, or a replaced `forward`")
    lowering = _Lowering(flow)
    base, components, numbers = _base(flow)
    classes = 0 if lowering.classes is None else len(lowering.classes)
    lowering.lower(flow.transform)
    program = lowering.assembly.program(flow.levels, classes, base, components, numbers)
    if not np.isfinite(program.numbers).all():
        raise refused("weights that are not finite, or too large")
    return program


class _Lowering:
    """Runs a flow's transforms on positions, and adds operations."""

    def __init__(self, flow: Flow) -> None:
        self.flow, self.assembly = flow, Assembly(flow.shape)
        self.classes: Tensor | None = None
        self._real = False
        net = flow.context_net
        if net is not None:
            if type(net) is not nn.Embedding or net.max_norm is not None:
                raise refused(f"contexts by {type(net).__name__}; classes it takes")
            self.classes = net.weight

    def lower(self, transform: Transform) -> None:
        """Add the operations of a transform of images."""
        size = math.prod(self.flow.shape)
        positions = torch.arange(size, device=self.flow.device).reshape(1, *self.flow.shape)
        context = None if self.classes is None else torch.zeros_like(self.classes[:1])
        latent = self._run(transform, positions, context)[0]
        _require_permutation(latent, positions, transform)
        if not self._real:
            raise refused("no uniform noise on its pixels")

    def _run(
        self, step: Transform, at: Tensor, context: Context = None, noise: Noise | None = None
    ) -> Mapped:
        """Run a transform on positions ``(rows, *event)``: see `mixerflow.core.Runner`."""
        kind = type(step)
        if kind in _MADE_OF_PARTS:
            assert isinstance(step, Composite)
            return step.compose(self._run, at, context, noise)
        if _rearranges(step.transform if isinstance(step, Inverse) else step):
            moved = step(at)[0]
            _require_permutation(moved, at, step)
            return moved, constant(0.0, at)
        if isinstance(step, Dequantize) and kind is Dequantize:
            self._dequantize(step, at)
            return at, constant(0.0, at)
        if kind not in _COMPUTED:
            raise refused(_name(step))
        if not self._real:
            raise refused(f"{_name(step)} before the noise that makes real numbers of pixels")
        if isinstance(step, LU):
            at = _vectors(self._triangles, step, at)
        elif isinstance(step, Matrix | Linear):
            at = _vectors(self._matrix, step, at)
        elif isinstance(step, Coupling):
            self._coupling(step, at, context)
        elif isinstance(step, NormalScores):
            self._scores(step, at)
        elif isinstance(step, Rescale):
            numbers = np.full(1, step.scale), np.zeros(1), np.full(1, step.shift)
            self.assembly.affine(at.reshape(-1, 1).cpu().numpy(), *numbers)
        else:
            assert isinstance(step, DiagonalAffine)
            self._one_a_feature(step, at)
        return at, constant(0.0, at)

    def _dequantize(self, step: Dequantize, at: Tensor) -> None:
        if self._real or at.numel() != math.prod(self.flow.shape):
            raise refused("more than one dequantiser, or one of a part of the image")
        if step.levels != self.flow.levels:
            raise refused(f"{self.flow.levels} levels, and a dequantiser of {step.levels}")
        self._real = True

    def _scores(self, step: NormalScores, at: Tensor) -> None:
        """Add the normal scores of all pixels ``(1, C, *spatial)``."""
        if self.assembly.operations or len(at) != 1:
            raise refused("normal scores of what other transforms changed")
        channels = at[0].flatten(1).T.cpu().numpy()
        shares = step.shares.detach().cpu().double().numpy()
        self.assembly.add(Operation.SCORES, channels, numbers=[shares])

    def _one_a_feature(self, step: DiagonalAffine, at: Tensor) -> None:
        """Add an affine map of each number; a batch norm's is that of its running averages."""
        rows, n = _shared(step.shape, at), step.log_scale.numel()
        if isinstance(step, BatchNorm):
            moments = step.moments
            assert moments.running_mean is not None and moments.running_var is not None
            mean, variance = values(moments.running_mean), values(moments.running_var)
            scale, shift = normalisation(mean, variance, moments.eps, np.ones(n), np.zeros(n))
            self.assembly.affine(rows, scale, np.zeros(n), shift)
        self.assembly.affine(rows, np.ones(n), values(step.log_scale), values(step.shift))

    def _triangles(self, step: LU, at: Tensor) -> Tensor:
        """Add L U of vectors ``(rows, n)``, with the signs and the permutation of a `PLU`."""
        packed, bias = values(step.packed_triangles()), values(step.bias, step.n)
        at = step._reordered(at)
        if not isinstance(step, PLU):
            self.assembly.triangles(_table(at), packed, bias)
            return at
        signs, order = values(step.signs), step.permutation.cpu().numpy()
        if not np.abs(signs).min() > 0:
            raise refused("a matrix without an inverse")
        zeros = np.zeros(step.n)
        self.assembly.affine(_table(at), signs, zeros, zeros)  # U = U' diag(signs)
        upper = np.triu(packed, 1) * signs[None, :]
        packed = np.tril(packed) + upper
        moved = zeros.copy()
        moved[order] = bias  # which comes after the permutation
        self.assembly.triangles(_table(at), packed, moved)
        return at[:, step.permutation]

    def _matrix(self, step: Matrix | Linear, at: Tensor) -> Tensor:
        """Add a matrix of vectors ``(rows, n)``: its pivots, triangles, and a permutation."""
        factors = factorise(values(step.weight))
        if factors is None:
            raise refused("a matrix without an inverse")
        order, triangles, pivots = factors
        zeros = np.zeros(step.n)
        self.assembly.affine(_table(at), pivots, zeros, zeros)
        self.assembly.triangles(_table(at), triangles, values(step.bias, step.n)[order])
        moved = torch.empty_like(at)
        moved[:, torch.from_numpy(order).to(at.device)] = at
        return moved

    def _coupling(self, step: Coupling, at: Tensor, context: Context) -> None:
        net, split, classes = step.net, step.split, self.classes
        map_of(step.elementwise)  # is refused first, if it is
        if type(net) not in (ResidualMLP, ResidualConvNet):
            raise refused(f"couplings by {type(net).__name__}")
        vectors = at.dim() == 2
        if type(split) is not Halves or split.axis % at.dim() != 1:
            raise refused(f"couplings of {split!r}")
        if isinstance(net, ResidualMLP) and vectors:
            given, changed = map(_table, split.parts(at))
            add_coupling(self.assembly, (given, changed), net, step.elementwise, context, classes)
        elif isinstance(net, ResidualConvNet) and not vectors and len(at) == 1:
            given, changed = (_table(part.flatten(2)[0].mT) for part in split.parts(at))
            parts, sides = (given, changed), tuple(at.shape[2:])
            add_convolution(self.assembly, parts, sides, net, step.elementwise, classes)
        else:
            what = f"couplings of events {tuple(at.shape[1:])} by {type(net).__name__}"
            raise refused(what)


def _base(flow: Flow) -> tuple[Base, int, list[np.ndarray]]:
    """Return the base's kind, components and numbers."""
    base = flow.base
    if type(base) is StandardNormal:
        return Base.NORMAL, 0, []
    if isinstance(base, StudentT) and type(base) in (StudentT, Cauchy):
        raw = base.raw_dof
        dof = [base.fixed, 0.0, 0.0] if raw is None else [LEAST_DOF, 1.0, *values(raw)]
        return Base.STUDENT, 0, [np.array(dof)]
    if isinstance(base, GaussianMixture | SpikeAndSlab) and type(base) in _MIXTURES:
        numbers = [values(each) for each in (base.logits, base.means, base.log_scales)]
        return Base.MIXTURE, len(base.logits), numbers
    raise refused(f"latents of {type(base).__name__}")


def _rearranges(step: Transform) -> bool:
    """Whether a transform only puts its numbers in another order."""
    return step.rearranges or isinstance(step, _Rearrangement) or type(step) in _ORDERS


def _require_permutation(moved: Tensor, at: Tensor, step: Transform) -> None:
    if not torch.equal(moved.flatten().sort()[0], at.flatten().sort()[0]):
        raise refused(f"{_name(step)} that loses or repeats numbers")


def _vectors(add: Callable[[Any, Tensor], Tensor], step: Transform, at: Tensor) -> Tensor:
    """Add a linear map of vectors ``(rows, n)``, or of the columns of ``(rows, n, columns)``."""
    if at.dim() == 2:
        return add(step, at)
    if at.dim() != 3:
        raise refused(f"{_name(step)} of more than vectors")
    columns = at.movedim(1, -1)
    return add(step, columns.flatten(0, 1)).reshape(columns.shape).movedim(-1, 1)


def _shared(shape: Shape, at: Tensor) -> Positions:
    """Return positions ``(rows, features)``: those of a feature share parameters of that shape."""
    trailing = (1,) * (at.dim() - len(shape)) + shape
    own = [axis for axis, n in enumerate(trailing) if n > 1]
    shared = [axis for axis, n in enumerate(trailing) if n == 1]
    return _table(at.permute(*shared, *own).reshape(-1, math.prod(shape)))


def _table(at: Tensor) -> Positions:
    return at.cpu().numpy()


def _name(step: Transform) -> str:
    name = type(step).__name__
    return f"{name} of {_name(step.transform)}" if isinstance(step, Inverse) else name
