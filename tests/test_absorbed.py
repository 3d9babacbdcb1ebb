"""What goes into weights: a net's norms into convolutions, ActNorm into a 1x1 convolution."""

import pytest
import torch

from mixerflow.core import Along, Chain
from mixerflow.nets import GlowNet, PlainConvNet, ZeroConv
from mixerflow.nets.conv import absorb, convolution
from mixerflow.transforms import (
    LU,
    PLU,
    RLU,
    ActNorm,
    BatchNorm,
    DiagonalAffine,
    Linear,
    Matrix,
    UnpackedPLU,
)
from mixerflow.transforms.checks import perturb

DOUBLE = torch.float64


def by_definition(net, x, context):
    """Glow's net, module by module."""
    h = net.enter(x)
    if context is not None:
        h = h + net.context(context[(...,) + (None,) * net.axes])
    h = net.mix(net.norm1(h).relu())
    last = net.leave
    h = last.enter(net.norm2(h).relu()) + (0 if last.bias is None else last.bias)
    return h * (last.factor * last.log_scale).exp()


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("context", [0, 2])
@pytest.mark.parametrize("second_bias", [True, False])
def test_glows_net_is_what_its_modules_say(axes, context, second_bias):
    net = GlowNet(
        3, 4, width=5, context=context, axes=axes, factor=3.0, second_bias=second_bias
    ).double()
    perturb(net, size=0.3)
    x = torch.randn(2, 3, *(4, 5, 3)[:axes], dtype=DOUBLE)
    told = torch.randn(2, context, dtype=DOUBLE) if context else None
    wanted = by_definition(net, x, told)
    torch.testing.assert_close(net(x, told), wanted)
    with torch.no_grad():
        folded = [net.folded() for _ in range(2)]  # a net that two couplings share folds twice
    assert type(folded[1]) is PlainConvNet
    torch.testing.assert_close(folded[1](x, told), wanted)
    grads = torch.autograd.grad(net(x, told).square().sum(), list(net.parameters()))
    theirs = torch.autograd.grad(wanted.square().sum(), list(net.parameters()))
    for mine, other in zip(grads, theirs, strict=True):
        torch.testing.assert_close(mine, other)


def test_a_convolution_of_zeros_scales_its_context_too():
    net = ZeroConv(2, 3, context=4, factor=3.0).double()
    perturb(net, size=0.3)
    x, told = torch.randn(2, 2, 5, 4, dtype=DOUBLE), torch.randn(2, 4, 5, 4, dtype=DOUBLE)
    wanted = net.enter(x) + net.context(told) + net.bias
    torch.testing.assert_close(net(x, told), wanted * (3 * net.log_scale).exp())


def test_absorbing_needs_no_bias_and_no_shift():
    by = convolution(2, 2, 3, 3, bias=False).double()
    scale = torch.rand(3, 1, 1, dtype=DOUBLE)
    weight, bias = absorb(by, scale, None)
    assert bias is None
    torch.testing.assert_close(weight, by.weight * scale[:, None])


@pytest.mark.parametrize("kind", [LU, RLU, PLU, UnpackedPLU, Matrix])
def test_columns_are_vectors(kind):
    linear = kind(3).double()
    perturb(linear, size=0.3)
    for each in (linear, Linear(linear, 3)):
        x = torch.randn(2, 3, 4, dtype=DOUBLE)
        z, log_det = each(x)
        rows, row_log_det = each(x.mT.reshape(-1, 3))
        torch.testing.assert_close(z.mT.reshape(-1, 3), rows)
        torch.testing.assert_close(log_det, row_log_det.view(2, 4).sum(1))
        back, back_log_det = each.inverse(z)
        torch.testing.assert_close(back, x)
        torch.testing.assert_close(back_log_det, -log_det)
        with pytest.raises(ValueError, match="3"):
            each(torch.randn(2, 4, 3, dtype=DOUBLE))


@pytest.mark.parametrize("norm", [ActNorm, BatchNorm])
@pytest.mark.parametrize("first", [True, False])
def test_a_map_of_channels_is_in_the_linear_map_beside_it(norm, first):
    pair = (norm((3, 1, 1)), Along(0, PLU(3)))
    chain = Chain(*(pair if first else pair[::-1])).double().eval()
    perturb(chain, size=0.3)
    x = torch.randn(2, 3, 4, 5, dtype=DOUBLE)
    fused = chain.fused()
    assert [type(step.transform) for step in fused] == [Linear]
    for mine, wanted in zip(fused(x), chain(x), strict=True):
        torch.testing.assert_close(mine, wanted)
    torch.testing.assert_close(fused.inverse(fused(x)[0])[0], x)


@pytest.mark.parametrize(
    "norm,dim", [(DiagonalAffine((3,)), 0), (DiagonalAffine((3, 1)), -1), (DiagonalAffine(1), 0)]
)
def test_a_map_along_another_axis_stays(norm, dim):
    chain = Chain(norm, Along(dim, LU(3))).double()
    perturb(chain, size=0.3)
    x = torch.randn(2, 3, 3, dtype=DOUBLE)
    fused = chain.fused()
    assert len(fused) == 2
    torch.testing.assert_close(fused(x)[0], chain(x)[0])
