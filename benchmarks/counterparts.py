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
import math
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from mixerflow.core import Flow, Layer, MultiScale, Transform
from mixerflow.models import NSF, Glow, RealNVP
from mixerflow.nets import PlainConvNet, PreactivationNet, ZeroConv
from mixerflow.transforms import (
    PLU,
    ActNorm,
    Coupling,
    DiagonalAffine,
    RationalQuadratic,
    Squeeze,
)


def split_pixels(flow: Flow) -> tuple[list[Transform], MultiScale]:
    """The transforms of the pixels, and the multi-scale flow behind them."""
    *pixels, scales = flow.transform.steps
    assert isinstance(scales, MultiScale)
    return pixels, scales


def counterpart(model: Glow | RealNVP, flow: Flow, *, exact: bool = True) -> nn.Module:
    """Another library's module with a `log_prob` of ``(B, C, H, W)``, and the weights of `flow`.

    `exact` says whether a part is changed where the library has none for the same map, see
    `_Splines`; without, the counterpart is the library's own, and equal at the start only nearly.
    """
    warnings.filterwarnings("ignore", "Inputs to the softmax are not scaled down")
    warnings.filterwarnings("ignore", r"torch\.(lu|triangular_solve) is deprecated")
    _, scales = split_pixels(flow)
    before = torch.get_default_dtype()
    torch.set_default_dtype(next(flow.parameters()).dtype)  # the libraries' parts have no dtype
    try:
        if isinstance(model, NSF):
            made: nn.Module = _nsf_of_nflows(scales, exact=exact)
        elif isinstance(model, Glow):
            made = _GlowOfNormflows(scales)
        else:
            made = _NormflowsModel(_real_nvp_of_normflows(scales))
    finally:
        torch.set_default_dtype(before)
    return made.train(flow.training)


def _set(target: Tensor, value: Tensor) -> None:
    with torch.no_grad():
        target.copy_(value.reshape(target.shape))


def _copy(target: Any, source: Any) -> None:  # noqa: ANN401
    """Weight and bias of a convolution."""
    _set(target.weight, source.weight)
    _set(target.bias, source.bias)


# ---- Glow in normflows


def _glow_block(layer: Layer) -> nn.Module:
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
    _set(act.s, -norm.log_scale)  # x exp(a) + b is (x - t) exp(-s)
    _set(act.t, -norm.shift * (-norm.log_scale).exp())
    act.data_dep_init_done.fill_(1.0)
    if isinstance(mix, PLU):
        lower, upper = mix.triangles()
        _set(convolution.P, torch.eye(channels)[mix.permutation])
        _set(convolution.L, lower)
        _set(convolution.U, upper.triu(1))
        _set(convolution.log_S, upper.diagonal().abs().log())
        _set(convolution.sign_S, upper.diagonal().sign())
    else:
        _set(convolution.W, mix.weight)
    enter, middle, leave = (m for m in coupling.flows[1].param_map.net if isinstance(m, nn.Conv2d))
    _copy(enter, net.enter)
    _copy(middle, net.mix)
    for theirs, ours in ((leave.weight, net.leave.weight), (leave.bias, net.leave.bias)):
        scale, shift = ours.detach().chunk(2)
        _set(theirs, torch.stack([-shift, scale], 1))  # (x - shift) sigmoid(scale + 2)
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
        _set(bases[-1].loc, -top.shift * (-top.log_scale).exp())
        _set(bases[-1].log_scale, -top.log_scale)
    merges = [nf.flows.Merge() for _ in flows[1:]]
    return nf.MultiscaleFlow(bases[::-1], flows[::-1], merges, class_cond=False)


class _GlowOfNormflows(_NormflowsModel):
    def __init__(self, scales: MultiScale) -> None:
        import normflows as nf

        flows, priors, top = [], [], None
        for scale in scales.parts():
            blocks: list[Any] = []
            for part in scale.steps:
                if isinstance(part, Layer):
                    blocks.append(_glow_block(part))
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


def _masked(coupling: Coupling, shape: tuple[int, ...]) -> Any:  # noqa: ANN401
    import normflows as nf

    given, changed = coupling.split.parts(torch.ones(1, *shape))
    if given.shape[1] == shape[0]:  # a board: both parts are whole images, with zeros
        kept = given
    else:
        kept = coupling.split.join(torch.ones_like(given), torch.zeros_like(changed))
    net = copy.deepcopy(coupling.net)
    s, t = _Read(coupling, net, "s"), _Read(coupling, net, "t")
    return nf.flows.MaskedAffineFlow(kept[0], t, s)


def _real_nvp_of_normflows(scales: MultiScale) -> Any:  # noqa: ANN401
    import normflows as nf

    flows = []
    for scale, shape in zip(scales.parts(), scales._scale_shapes, strict=True):
        parts: list[Any] = []
        channels, *sides = shape
        squeezed = (4 * channels, *(side // 2 for side in sides))
        couplings = [part for part in scale.steps if isinstance(part, Coupling)]
        if len(couplings) == 6:
            order = torch.arange(4 * channels).view(-1, 4)[:, [0, 3, 1, 2]].mT.reshape(-1)
            colours = nf.flows.Permute(4 * channels)  # one colour first: top left, bottom right
            colours.inv_perm, colours.perm = order, order.argsort()
            parts += [_masked(part, shape) for part in couplings[:3]]
            parts += [nf.flows.Squeeze(), *(_masked(part, squeezed) for part in couplings[3:])]
            parts += [nf.flows.Reverse(nf.flows.Squeeze()), nf.flows.Squeeze(), colours]
        else:
            parts += [_masked(part, shape) for part in couplings]
        flows.append(parts[::-1])
    return _multiscale(scales, flows, None)


# ---- NSF in nflows


def _one_by_one(mix: Any) -> nn.Module:  # noqa: ANN401
    """``L U x + b``; the library's permutation is set to the identity."""
    from nflows.transforms import OneByOneConvolution

    n = len(mix.bias)
    theirs: Any = OneByOneConvolution(n)
    theirs.permutation._permutation.copy_(torch.arange(n))
    rows = torch.tril_indices(n, n, -1)
    _set(theirs.lower_entries, mix.packed[rows[0], rows[1]])
    rows = torch.triu_indices(n, n, 1)
    _set(theirs.upper_entries, mix.packed[rows[0], rows[1]])
    _set(theirs.unconstrained_upper_diag, (mix.packed.diagonal().exp() - theirs.eps).expm1().log())
    _set(theirs.bias, mix.bias)
    return theirs


def _spline_coupling(couple: Coupling, *, exact: bool) -> nn.Module:
    from nflows.nn.nets import ConvResidualNet
    from nflows.transforms import PiecewiseRationalQuadraticCouplingTransform

    net, law = couple.net, couple.elementwise
    assert isinstance(net, PreactivationNet) and isinstance(law, RationalQuadratic) and couple.flip
    width, changed = net.enter.out_channels, net.leave.out_channels // law.params
    has_norm = len(list(net.blocks[0].norm1.parameters())) > 0

    class _Splines(PiecewiseRationalQuadraticCouplingTransform):
        """nflows' derivatives are 1e-3 + softplus(raw), ours 1e-3 + 0.999 log2(1 + 2^raw)."""

        def _piecewise_cdf(self, inputs: Tensor, params: Tensor, inverse: bool = False) -> Any:  # noqa: ANN401
            if exact:
                wanted = 0.999 * nn.functional.softplus(params[..., 2 * law.bins :], math.log(2))
                params = torch.cat([params[..., : 2 * law.bins], wanted.expm1().log()], -1)
            return super()._piecewise_cdf(inputs, params, inverse)

    def make(given: int, out: int) -> nn.Module:
        depth = len(net.blocks)
        theirs: Any = ConvResidualNet(given, out, width, num_blocks=depth, use_batch_norm=has_norm)
        _copy(theirs.initial_layer, net.enter)
        for block, ours in zip(theirs.blocks, net.blocks, strict=True):
            _copy(block.conv_layers[0], ours.look1)
            _copy(block.conv_layers[1], ours.look2)
            for norm, source in zip(block.batch_norm_layers, (ours.norm1, ours.norm2), strict=True):
                norm.load_state_dict(source.module.state_dict())
                norm.eps, norm.momentum = source.module.eps, source.module.momentum
        del theirs.hidden_channels  # by which the logits would be divided
        for target, source in (
            (theirs.final_layer.weight, net.leave.weight),
            (theirs.final_layer.bias, net.leave.bias),
        ):
            _set(target, source.detach().unflatten(0, (law.params, changed)).transpose(0, 1))
        if not exact:  # where raw is 0 a derivative is 1
            shift = math.log(math.expm1(0.999))
            theirs.final_layer.bias.data.view(changed, -1)[:, 2 * law.bins :] += shift
        return theirs

    mask = torch.tensor([1] * changed + [0] * net.enter.in_channels)  # 1 is transformed
    return _Splines(mask, make, num_bins=law.bins, tails="linear", tail_bound=law.tail)


def _nsf_of_nflows(scales: MultiScale, *, exact: bool) -> nn.Module:
    from nflows import transforms
    from nflows.distributions import StandardNormal
    from nflows.flows import Flow as NFlow

    levels = list(scales.parts())
    multi: Any = transforms.MultiscaleCompositeTransform(len(levels))
    for number, scale in enumerate(levels, 1):
        squeeze, *layers = scale.steps
        assert isinstance(squeeze, Squeeze)
        parts: list[nn.Module] = [transforms.SqueezeTransform()]
        for layer in layers:
            if not isinstance(layer, Layer):  # the last linear map
                parts.append(_one_by_one(layer.transform))
                continue
            norm, along, couple = layer.steps
            act: Any = transforms.ActNorm(norm.log_scale.numel())
            _set(act.log_scale, norm.log_scale)
            _set(act.shift, norm.shift)
            act.initialized.fill_(True)
            parts += [act, _one_by_one(along.transform), _spline_coupling(couple, exact=exact)]
        if number < len(levels):  # the library goes on with the second half
            half = torch.arange(squeeze.latent_shape[0]).chunk(2)
            parts.append(transforms.Permutation(torch.cat(half[::-1])))
        multi.add_transform(transforms.CompositeTransform(parts), squeeze.latent_shape)
    return NFlow(multi, StandardNormal([math.prod(scales.shape)]))
