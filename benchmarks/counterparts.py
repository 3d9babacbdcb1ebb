"""Glow, RealNVP and NSF in other libraries' own parts, with the weights of a flow of ours.

A counterpart maps what comes behind the pixels' transforms, real numbers ``(B, C, H, W)``, to their
log-probability. Where a library orders things differently, weights are permuted when they are
copied:
    - normflows: shifts and scales alternate in a net's output; affine maps are those of sampling;
    - nflows: a spline's parameters of one channel are neighbours; the second half of the channels
      goes on to the next scale, not the first. Its division of the logits of widths and heights by
      the root of the net's width is switched off, as ours learns the factor.

References:
    Stimper et al.: normflows: a PyTorch package for normalizing flows (2023), arXiv:2302.12014.
    Durkan et al.: nflows: normalizing flows in PyTorch (2020), github.com/bayesiains/nflows.
"""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from mixerflow.core import Flow, Layer, MultiScale, Transform
from mixerflow.models import NSF, Glow, RealNVP
from mixerflow.nets import PlainConvNet, ZeroConv
from mixerflow.transforms import (
    PLU,
    ActNorm,
    Coupling,
    DiagonalAffine,
    Squeeze,
)


def split_pixels(flow: Flow) -> tuple[list[Transform], MultiScale]:
    """The transforms of the pixels, and the multi-scale flow behind them."""
    *pixels, scales = flow.transform.steps
    assert isinstance(scales, MultiScale)
    return pixels, scales


def counterpart(model: Glow | RealNVP, flow: Flow, *, exact: bool = True) -> nn.Module:
    """Another library's module with a `log_prob` of ``(B, C, H, W)``, and the weights of `flow`.

    Without `exact` the parts are as the library has them. With `exact` some have our
    parametrisation: normflows' ActNorm stands in the other direction, and in nflows the diagonal
    of LU and a spline's derivatives are read as ours. Without, splines are equal only nearly.
    """
    warnings.filterwarnings("ignore", "Inputs to the softmax are not scaled down")
    warnings.filterwarnings("ignore", r"torch\.(lu|triangular_solve) is deprecated")
    _, scales = split_pixels(flow)
    before = torch.get_default_dtype()
    torch.set_default_dtype(next(flow.parameters()).dtype)  # the libraries' parts have no dtype
    try:
        if isinstance(model, NSF):
            from benchmarks.counterparts_nflows import nsf

            made: nn.Module = nsf(scales, exact=exact)
        elif isinstance(model, Glow):
            made = _GlowOfNormflows(scales, exact=exact)
        else:
            made = _NormflowsModel(_real_nvp_of_normflows(scales))
    finally:
        torch.set_default_dtype(before)
    return made.train(flow.training)


def set_values(target: Tensor, value: Tensor) -> None:
    """Copy numbers into a parameter or buffer of another shape."""
    with torch.no_grad():
        target.copy_(value.reshape(target.shape))


def copy_convolution(target: Any, source: Any) -> None:  # noqa: ANN401
    """Weight and bias of a convolution."""
    set_values(target.weight, source.weight)
    set_values(target.bias, source.bias)


# ---- Glow in normflows


def _glow_block(layer: Layer, *, exact: bool) -> nn.Module:
    """A step: ActNorm, 1x1 convolution, coupling; in normflows the coupling comes first."""
    import normflows as nf

    norm, along, couple = layer.steps
    mix: Any = along.transform
    net, channels = couple.net, norm.log_scale.numel()
    assert isinstance(norm, ActNorm) and isinstance(net, PlainConvNet)
    hidden = net.enter.out_channels
    block = nf.flows.GlowBlock(channels, hidden, use_lu=isinstance(mix, PLU))
    parts: Any = block.flows
    coupling, convolution, act = parts
    if exact:
        set_values(act.s, norm.log_scale)
        set_values(act.t, norm.shift)
        parts[2] = nf.flows.Reverse(act)
    else:  # x exp(a) + b is (x - t) exp(-s)
        set_values(act.s, -norm.log_scale)
        set_values(act.t, -norm.shift * (-norm.log_scale).exp())
    act.data_dep_init_done.fill_(1.0)
    if isinstance(mix, PLU):
        lower, upper = mix.triangles()
        set_values(convolution.P, torch.eye(channels)[mix.permutation])
        set_values(convolution.L, lower)
        set_values(convolution.U, upper.triu(1))
        set_values(convolution.log_S, upper.diagonal().abs().log())
        set_values(convolution.sign_S, upper.diagonal().sign())
    else:
        set_values(convolution.W, mix.weight)
    enter, middle, leave = (m for m in coupling.flows[1].param_map.net if isinstance(m, nn.Conv2d))
    copy_convolution(enter, net.enter)
    copy_convolution(middle, net.mix)
    for theirs, ours in ((leave.weight, net.leave.weight), (leave.bias, net.leave.bias)):
        scale, shift = ours.detach().chunk(2)
        set_values(theirs, torch.stack([-shift, scale], 1))  # (x - shift) sigmoid(scale + 2)
    return block


class _ConditionalGaussian(nn.Module):
    """The normal density of the factored-out channels given the others, by torch's own classes."""

    def __init__(self, net: ZeroConv) -> None:
        super().__init__()
        self.convolution = copy.deepcopy(net.enter)
        self.bias, self.log_scale = copy.deepcopy(net.bias), copy.deepcopy(net.log_scale)
        self.factor = net.factor

    def log_prob(self, y: Tensor, kept: Tensor) -> Tensor:
        raw = self.convolution(kept) + (0.0 if self.bias is None else self.bias)
        s, t = (raw * (self.factor * self.log_scale).exp()).chunk(2, 1)
        # y exp(s) + t is standard normal
        return torch.distributions.Normal(-t * (-s).exp(), (-s).exp()).log_prob(y).flatten(1).sum(1)


class _NormflowsModel(nn.Module):
    """A `normflows.MultiscaleFlow`, with normflows' density unless there are priors at splits."""

    def __init__(self, inner: Any, priors: list[_ConditionalGaussian] | None = None) -> None:  # noqa: ANN401
        super().__init__()
        self.inner, self.priors = inner, nn.ModuleList(priors or [])

    def log_prob(self, x: Tensor) -> Tensor:
        if not self.priors:
            return self.inner.log_prob(x, None)
        log_prob = torch.zeros(len(x), dtype=x.dtype)
        for i in reversed(range(len(self.inner.flows))):  # the library counts from the latents
            for part in reversed(self.inner.flows[i]):
                x, log_det = part.inverse(x)
                log_prob = log_prob + log_det
            if i:
                (x, y), _ = self.inner.merges[i - 1].inverse(x)
                prior: Any = self.priors[i - 1]
                log_prob = log_prob + prior.log_prob(y, x)
        return log_prob + self.inner.q0[0].log_prob(x)


def _multiscale(scales: MultiScale, flows: list[list[Any]], top: DiagonalAffine | None) -> Any:  # noqa: ANN401
    """Levels of normflows parts, each in the direction of sampling, nearest the data first."""
    import normflows as nf

    bases = []
    for shape in scales._factored_shapes:
        bases.append(nf.distributions.DiagGaussian(shape, trainable=False))
    if top is not None:
        bases[-1] = nf.distributions.DiagGaussian(scales._factored_shapes[-1])
        set_values(bases[-1].loc, -top.shift * (-top.log_scale).exp())
        set_values(bases[-1].log_scale, -top.log_scale)
    merges = [nf.flows.Merge() for _ in flows[1:]]
    return nf.MultiscaleFlow(bases[::-1], flows[::-1], merges, class_cond=False)


class _GlowOfNormflows(_NormflowsModel):
    def __init__(self, scales: MultiScale, *, exact: bool) -> None:
        import normflows as nf

        flows, priors, top = [], [], None
        for scale in scales.parts():
            blocks: list[Any] = []
            for part in scale.steps:
                if isinstance(part, Layer):
                    blocks.append(_glow_block(part, exact=exact))
                elif isinstance(part, DiagonalAffine):
                    top = part
                elif isinstance(part, Coupling):
                    priors.append(_ConditionalGaussian(part.net))
                else:
                    assert isinstance(part, Squeeze)
                    blocks.append(nf.flows.Squeeze())
            flows.append(blocks[::-1])
        super().__init__(_multiscale(scales, flows, top), priors[::-1])


# ---- RealNVP in normflows


class _Read(nn.Module):
    """One output of our net, as normflows' masked flow reads it: from the image with zeros in it.

    normflows samples by ``z exp(s) + t``, so its s is our -s, and its t our ``-t exp(-s)``.
    """

    def __init__(self, coupling: Coupling, net: nn.Module, what: str) -> None:
        super().__init__()
        self.split, self.net, self.what = coupling.split, net, what

    def forward(self, masked: Tensor) -> Tensor:
        given = self.split.parts(masked)[0]
        s, t = self.net(given).chunk(2, 1)
        out = -s if self.what == "s" else -t * (-s).exp()
        return self.split.join(torch.zeros_like(given), out)


def _board(shape: tuple[int, ...], *, odd: bool) -> Tensor:
    """1 at the pixels whose coordinates have an odd sum, or an even one; 0 at the others."""
    _, height, width = shape
    coordinate_sum = torch.arange(height)[:, None] + torch.arange(width)
    return torch.ones(shape) * (coordinate_sum % 2 == int(odd))


def _half(shape: tuple[int, ...], *, second: bool) -> Tensor:
    """1 at the second half of the channels, or the first; 0 at the others."""
    mask = torch.zeros(shape)
    mask.chunk(2)[int(second)].fill_(1.0)
    return mask


def _masked(coupling: Coupling, kept: Tensor) -> Any:  # noqa: ANN401
    import normflows as nf

    net = copy.deepcopy(coupling.net)
    s, t = _Read(coupling, net, "s"), _Read(coupling, net, "t")
    return nf.flows.MaskedAffineFlow(kept, t, s)


def _real_nvp_of_normflows(scales: MultiScale) -> Any:  # noqa: ANN401
    import normflows as nf

    flows = []
    for scale, shape in zip(scales.parts(), scales._scale_shapes, strict=True):
        channels, *sides = shape
        squeezed = (4 * channels, *(side // 2 for side in sides))
        couplings = iter([part for part in scale.steps if isinstance(part, Coupling)])
        last = len(flows) == len(scales.scales) - 1
        # the top left pixel is transformed first, and the first half of the channels
        boards = [_board(shape, odd=number % 2 == 0) for number in range(4 if last else 3)]
        parts: list[Any] = [_masked(next(couplings), board) for board in boards]
        if not last:
            halves = [_half(squeezed, second=number % 2 == 0) for number in range(3)]
            order = torch.arange(4 * channels).view(-1, 4)[:, [0, 3, 1, 2]].mT.reshape(-1)
            colours = nf.flows.Permute(4 * channels)  # one colour first: top left, bottom right
            colours.inv_perm, colours.perm = order, order.argsort()
            parts += [nf.flows.Squeeze(), *(_masked(next(couplings), half) for half in halves)]
            parts += [nf.flows.Reverse(nf.flows.Squeeze()), nf.flows.Squeeze(), colours]
        assert next(couplings, None) is None
        flows.append(parts[::-1])
    return _multiscale(scales, flows, None)
