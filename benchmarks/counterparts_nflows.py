"""NSF in nflows' own parts, with the weights of a flow of ours; see `benchmarks.counterparts`.

Reference:
    Durkan et al.: nflows: normalizing flows in PyTorch (2020), github.com/bayesiains/nflows.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from nflows import transforms
from nflows.distributions import StandardNormal
from nflows.flows import Flow as NFlow
from nflows.nn.nets import ConvResidualNet
from nflows.transforms import OneByOneConvolution, PiecewiseRationalQuadraticCouplingTransform
from torch import Tensor, nn

from benchmarks.counterparts import copy_convolution, set_values
from mixerflow.core import Layer, MultiScale
from mixerflow.nets import PreactivationNet
from mixerflow.transforms import Coupling, RationalQuadratic, Squeeze


class _ExponentialLU(OneByOneConvolution):
    """nflows' diagonal is softplus(raw) + 1e-3, ours exp(raw)."""

    @property
    def upper_diag(self) -> Tensor:
        return self.unconstrained_upper_diag.exp()


def _one_by_one(mix: Any, *, exact: bool) -> nn.Module:  # noqa: ANN401
    """``L U x + b``; the library's permutation is set to the identity."""
    n = len(mix.bias)
    theirs: Any = (_ExponentialLU if exact else OneByOneConvolution)(n)
    theirs.permutation._permutation.copy_(torch.arange(n))
    rows = torch.tril_indices(n, n, -1)
    set_values(theirs.lower_entries, mix.packed[rows[0], rows[1]])
    rows = torch.triu_indices(n, n, 1)
    set_values(theirs.upper_entries, mix.packed[rows[0], rows[1]])
    raw = mix.packed.diagonal()
    raw = raw if exact else (raw.exp() - theirs.eps).expm1().log()
    set_values(theirs.unconstrained_upper_diag, raw)
    set_values(theirs.bias, mix.bias)
    return theirs


def _spline_coupling(couple: Coupling, *, exact: bool) -> nn.Module:
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
        copy_convolution(theirs.initial_layer, net.enter)
        for block, ours in zip(theirs.blocks, net.blocks, strict=True):
            copy_convolution(block.conv_layers[0], ours.look1)
            copy_convolution(block.conv_layers[1], ours.look2)
            for norm, source in zip(block.batch_norm_layers, (ours.norm1, ours.norm2), strict=True):
                norm.load_state_dict(source.module.state_dict())
                norm.eps, norm.momentum = source.module.eps, source.module.momentum
        del theirs.hidden_channels  # by which the logits would be divided
        for target, source in (
            (theirs.final_layer.weight, net.leave.weight),
            (theirs.final_layer.bias, net.leave.bias),
        ):
            set_values(target, source.detach().unflatten(0, (law.params, changed)).transpose(0, 1))
        if not exact:  # where raw is 0 a derivative is 1
            shift = math.log(math.expm1(0.999))
            theirs.final_layer.bias.data.view(changed, -1)[:, 2 * law.bins :] += shift
        return theirs

    mask = torch.tensor([1] * changed + [0] * net.enter.in_channels)  # 1 is transformed
    return _Splines(mask, make, num_bins=law.bins, tails="linear", tail_bound=law.tail)


def nsf(scales: MultiScale, *, exact: bool) -> nn.Module:
    """Return the nflows flow with the weights of an `NSF` of `LUMap` and `PreactivationConv`."""
    levels = list(scales.parts())
    multi: Any = transforms.MultiscaleCompositeTransform(len(levels))
    for number, scale in enumerate(levels, 1):
        squeeze, *layers = scale.steps
        assert isinstance(squeeze, Squeeze)
        parts: list[nn.Module] = [transforms.SqueezeTransform()]
        for layer in layers:
            if not isinstance(layer, Layer):  # the last linear map
                parts.append(_one_by_one(layer.transform, exact=exact))
                continue
            norm, along, couple = layer.steps
            act: Any = transforms.ActNorm(norm.log_scale.numel())
            set_values(act.log_scale, norm.log_scale)
            set_values(act.shift, norm.shift)
            act.initialized.fill_(True)
            parts += [
                act,
                _one_by_one(along.transform, exact=exact),
                _spline_coupling(couple, exact=exact),
            ]
        if number < len(levels):  # the library goes on with the second half
            half = torch.arange(squeeze.latent_shape[0]).chunk(2)
            parts.append(transforms.Permutation(torch.cat(half[::-1])))
        multi.add_transform(transforms.CompositeTransform(parts), squeeze.latent_shape)
    return NFlow(multi, StandardNormal([math.prod(scales.shape)]))
