"""Splits, elementwise maps as values, the nets of Glow, RealNVP and spline flows, their starts."""

import dataclasses
import itertools
import json
import math

import pytest
import torch
from torch import nn

from mixerflow.core import Along, Chain, Flow, Inverse
from mixerflow.nets import (
    ChannelAffine,
    GlowNet,
    PlainConvNet,
    ResidualMLP,
    ResNet,
    TanhScale,
    ZeroConv,
)
from mixerflow.transforms import (
    ActNorm,
    Affine,
    Checkerboard,
    CheckerboardSqueeze,
    Columns,
    Coupling,
    DiagonalAffine,
    EachPart,
    FlooredAffine,
    Halves,
    Leading,
    LogisticMixture,
    Matrix,
    RationalQuadratic,
    SigmoidAffine,
    SpaceToDepth,
    Squeeze,
)
from mixerflow.transforms.checks import perturb

DOUBLE = torch.float64


def moved(module: nn.Module, size: float = 1.0) -> nn.Module:
    module = module.double().eval()
    perturb(module, size=size)
    return module


# ---- splits


class Seen(nn.Module):
    """Remembers what it was given; answers with a constant."""

    def __init__(self, factor=2):
        super().__init__()
        self.factor = factor

    def forward(self, x, context=None):
        self.x = x
        return torch.full_like(x, 0.5).repeat_interleave(self.factor, 1)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("sides", [(5,), (3, 4), (5, 3), (2, 3, 3)])
def test_a_checkerboard_transforms_one_colour(sides, flip):
    net = Seen()
    coupling = Coupling(Checkerboard(flip), net, Affine())
    x = torch.randn(2, 3, *sides, dtype=DOUBLE)
    z, log_det = coupling(x)
    places = sum(torch.meshgrid(*map(torch.arange, sides), indexing="ij"))
    changes = (places % 2 == int(flip)).expand_as(x)
    assert torch.equal(changes.flatten(2)[0, 0, 0], torch.tensor(not flip))
    assert torch.equal(z[~changes], x[~changes]) and not net.x[changes].any()
    assert torch.equal(net.x[~changes], x[~changes])
    torch.testing.assert_close(z[changes], x[changes] * math.exp(0.5) + 0.5)
    torch.testing.assert_close(log_det, 0.5 * changes[:1].sum().double().expand(2))


def test_columns_are_two_images_of_half_the_width():
    x = torch.randn(2, 3, 2, 6, dtype=DOUBLE)
    for flip in (False, True):
        net = Seen()
        z, log_det = Coupling(Columns(flip), net, Affine())(x)
        assert torch.equal(net.x, x[..., int(flip) :: 2])
        assert torch.equal(z[..., int(flip) :: 2], net.x)
        other = x[..., int(not flip) :: 2]
        torch.testing.assert_close(z[..., int(not flip) :: 2], other * math.exp(0.5) + 0.5)
        torch.testing.assert_close(log_det, torch.full((2,), 0.5 * 18, dtype=DOUBLE))


@pytest.mark.parametrize("split", [Checkerboard(), Checkerboard(True), Columns(), Columns(True)])
def test_what_passes_alone_decides_what_the_rest_becomes(split):
    net = moved(PlainConvNet(2, 4, width=6))
    coupling = Coupling(split, net, Affine())
    x = torch.randn(1, 2, 4, 4, dtype=DOUBLE)
    jacobian = torch.autograd.functional.jacobian(lambda x: coupling(x)[0], x).view(32, 32)
    passes = jacobian.diagonal() == 1
    assert passes.sum() == 16
    assert torch.equal(jacobian[passes], torch.eye(32, dtype=DOUBLE)[passes])
    changed = jacobian[~passes][:, ~passes]
    assert torch.equal(changed, torch.diag_embed(changed.diagonal()))


def test_an_unused_infinity_has_no_gradient():
    """At places that pass, a net may say what it likes."""

    class Wild(nn.Module):
        def __init__(self):
            super().__init__()
            self.log_scale = nn.Parameter(torch.tensor([[1e4, 0.1], [0.1, 1e4]]).view(1, 1, 2, 2))

        def forward(self, x, context=None):
            return torch.cat([self.log_scale.expand_as(x), torch.zeros_like(x)], 1)

    net = Wild()
    z, log_det = Coupling(Checkerboard(flip=True), net, Affine())(torch.randn(3, 1, 2, 2))
    (z.sum() + log_det.sum()).backward()
    assert z.isfinite().all() and net.log_scale.grad.isfinite().all() and net.log_scale.grad.any()


@pytest.mark.parametrize("flip", [False, True])
def test_a_number_is_short_for_halves(flip):
    net = ResidualMLP(3 - flip, 2 * (2 + flip), width=4)
    short = Coupling(-1, net, Affine(), flip=flip)
    assert short.split == Halves(-1, flip) and (short.dim, short.flip) == (-1, flip)
    long = moved(Coupling(Halves(-1, flip), net, Affine()))
    x = torch.randn(4, 5, dtype=DOUBLE)
    given, changed = (x[:, 3:], x[:, :3]) if flip else (x[:, :3], x[:, 3:])
    log_scale, shift = net(given).chunk(2, 1)
    wanted = changed * log_scale.exp() + shift
    wanted = torch.cat([wanted, given] if flip else [given, wanted], 1)
    assert torch.equal(short.double()(x)[0], wanted) and torch.equal(long(x)[0], wanted)
    assert torch.equal(long(x)[1], log_scale.sum(1))
    with pytest.raises(ValueError, match="leave out flip"):
        Coupling(Halves(), net, Affine(), flip=True)
    board = Coupling(Checkerboard(flip), net, Affine())
    assert (board.dim, board.flip) == (None, flip)


# ---- values


VALUES = [
    (Affine(1.5), "Affine(bound=1.5)"),
    (FlooredAffine(), "FlooredAffine(floor=0.1)"),
    (SigmoidAffine(1.0), "SigmoidAffine(offset=1.0, shift_last=False)"),
    (RationalQuadratic(8), "RationalQuadratic(bins=8, tail=3.0)"),
    (LogisticMixture(4, floor=-5.0), "LogisticMixture(components=4, floor=-5.0)"),
    (Halves(-1, flip=True), "Halves(dim=-1, flip=True)"),
    (Checkerboard(), "Checkerboard(flip=False)"),
    (Columns(flip=True), "Columns(flip=True)"),
]


@pytest.mark.parametrize(("value", "shown"), VALUES)
def test_elementwise_maps_and_splits_are_values(value, shown):
    stored = json.loads(json.dumps(dataclasses.asdict(value)))
    again = type(value)(**stored)
    assert again == value and hash(again) == hash(value) and repr(value) == shown
    name = next(iter(stored))
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(value, name, stored[name])


def test_the_sigmoid_only_shrinks():
    x = torch.randn(4, dtype=DOUBLE)
    z, log_slope = SigmoidAffine().forward(x, torch.zeros(2, 4, dtype=DOUBLE))
    assert log_slope[0].item() == pytest.approx(-0.126928, abs=1e-6)
    torch.testing.assert_close(z, x / (1 + math.exp(-2)))
    raw = torch.tensor([[-900.0, 40.0]], dtype=DOUBLE).expand(2, 2)
    least = math.log(1e-3)  # the inverse divides by the scale
    assert SigmoidAffine().forward(x[:2], raw)[1][0].item() == pytest.approx(least)
    assert SigmoidAffine().forward(x[:2], raw)[1][1].item() == pytest.approx(0.0, abs=1e-15)


# ---- nets


def parameters(*modules: nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


def skeleton(levels, steps, net, *, top=True, **prior):
    """Parameters of a flow in Glow's form over 3 channels, 4x4 pixels left of each at its end."""
    total, channels = 0, 3
    for level in range(levels):
        channels *= 4
        step = [ActNorm((channels, 1, 1)), Matrix(channels), net(channels // 2, channels)]
        total += steps * parameters(*step)
        if level < levels - 1:
            channels //= 2
            total += parameters(ZeroConv(channels, 2 * channels, **prior))
    return total + top * parameters(DiagonalAffine((channels, 4, 4)))


def test_glows_size():
    def net(half, channels):
        return GlowNet(half, channels, width=512)

    assert skeleton(3, 8, net) == 11_017_908
    assert skeleton(4, 16, net) == 37_042_020


@pytest.mark.parametrize(
    ("levels", "steps", "width", "wanted"), [(3, 8, 256, 10_907_424), (4, 16, 224, 38_307_632)]
)
def test_the_spline_flows_size(levels, steps, width, wanted):
    def net(half, channels):
        return PlainConvNet(half, 11 * half, width=width)

    assert skeleton(levels, steps, net, top=False, second_bias=False) == wanted


def test_zero_convolution_is_its_formula():
    net = moved(ZeroConv(2, 3, factor=3.0, context=2))
    x, context = torch.randn(4, 2, 5, 3, dtype=DOUBLE), torch.randn(4, 2, dtype=DOUBLE)
    inner = net.enter(x) + net.context(context[..., None, None]) + net.bias
    torch.testing.assert_close(net(x, context), inner * (3 * net.log_scale).exp())
    start = ZeroConv(2, 3, context=2)
    assert not any(p.any() for p in start.parameters())
    assert parameters(ZeroConv(2, 3, second_bias=False)) == 9 * 6 + 3 + 3


@pytest.mark.parametrize("zero", [False, True])
def test_plain_net_starts_at_zero_if_told(zero):
    out = PlainConvNet(2, 3, width=4, zero=zero)(torch.randn(2, 2, 3, 3))
    assert bool(out.any()) is not zero


def test_resnet_is_its_formula():
    net = moved(ResNet(2, 3, width=4, depth=2, norm="none"))
    assert parameters(ResNet(2, 3, width=4, depth=0, norm="batch")) == 76 + 20 + 8 + 15
    x = torch.randn(3, 2, 4, 5, dtype=DOUBLE)
    h = [net.enter(x)]
    for block in net.blocks:
        h.append(h[-1] + block.look2(block.look1(h[-1].relu()).relu()))
    total = sum(skip(each) for skip, each in zip(net.skips, h, strict=True))
    torch.testing.assert_close(net(x), net.leave(total.relu()))


@pytest.mark.parametrize("split", [Halves(), Checkerboard()])
def test_tanh_scale_is_the_published_map_of_real_nvp(split):
    """``(x + t) exp(gain tanh(s))``, t being ours divided by the scale."""
    given, changed = split.sizes(3)
    net = moved(ResNet(given, 2 * changed, width=4, depth=1, norm="none"))
    bounded = TanhScale(net, changed).double()
    assert torch.equal(bounded.gain, torch.ones(changed, dtype=DOUBLE))
    with torch.no_grad():
        bounded.gain.uniform_(0.5, 2)
    x = torch.randn(2, 3, 4, 4, dtype=DOUBLE)
    z, log_det = Coupling(split, bounded, Affine())(x)
    reads, moves = split.parts(x)
    s, t = net(reads).chunk(2, 1)
    s = bounded.gain[:, None, None] * s.tanh()
    theirs = split.join(reads, (moves + t * (-s).exp()) * s.exp())
    torch.testing.assert_close(z, theirs)
    torch.testing.assert_close(log_det, split.counted(s).flatten(1).sum(1))


# ---- starts from data


def norms(net):
    return [part for part in net.modules() if isinstance(part, ChannelAffine)]


@pytest.mark.parametrize("context", [0, 2])
def test_glows_norms_start_from_data(context):
    net = GlowNet(2, 4, width=8, context=context).double()
    flow = Flow(
        Chain(
            ActNorm((4, 1, 1), floor=1e-6), Along(0, Matrix(4)), Coupling(0, net, SigmoidAffine())
        ),
        (4, 6, 5),
        context_net=nn.Embedding(3, 2) if context else None,
    ).double()
    x = 5 * torch.randn(32, 4, 6, 5, dtype=DOUBLE) + 3
    labels = torch.randint(0, 3, (32,)) if context else None
    flow.initialize(x, labels)
    read = []
    net.register_forward_pre_hook(lambda net, given: read.append(given))
    flow.log_prob(x, labels)
    given, told = read[0]
    added = net.context(told[:, :, None, None]) if context else 0
    images, first = net.norm1(net.enter(given)), net.norm1(net.enter(given) + added)
    for out in (images, net.norm2(net.mix(first.relu()))):
        variance, mean = torch.var_mean(out, (0, 2, 3), correction=0)
        torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=1e-10)
        torch.testing.assert_close(variance, torch.ones_like(variance))
    assert not any(p.any() for p in net.leave.parameters())


def test_a_start_passes_what_wraps_a_net():
    net = GlowNet(2, 4, width=8).double()
    coupling = Coupling(0, TanhScale(net, 2).double(), Affine())
    x = torch.randn(8, 4, 6, 5, dtype=DOUBLE)
    assert torch.equal(coupling.initialize(x), x)
    assert all(norm.log_scale.any() for norm in norms(net))


def test_a_norm_believes_no_deviation_below_its_floor():
    norm = ChannelAffine(2, floor=1e-2).double()
    x = torch.randn(16, 2, 4, 4, dtype=DOUBLE)
    x[:, 1] = 7
    out = norm.initialize(x)
    assert norm.log_scale[1].item() == pytest.approx(math.log(100)) and not out[:, 1].any()
    with pytest.raises(ValueError, match="empty batch"):
        norm.initialize(x[:0])


# ---- linear maps and squeeze


def test_free_affine_does_not_start_from_data():
    affine = DiagonalAffine((2, 3))
    x = torch.randn(8, 2, 3) + 5
    assert torch.equal(affine.initialize(x), x) and parameters(affine) == 12


def test_a_matrix_starts_as_a_rotation_and_folds():
    matrix = Matrix(6, generator=torch.Generator().manual_seed(1)).double()
    eye = torch.eye(6, dtype=DOUBLE)
    torch.testing.assert_close(matrix.weight @ matrix.weight.mT, eye, rtol=0, atol=1e-6)
    perturb(matrix, size=2.0)
    with torch.no_grad():
        matrix.weight[0] *= -1.0 if matrix.weight.det() > 0 else 1.0
    x = torch.randn(4, 6, dtype=DOUBLE)
    fused = matrix.fused()
    torch.testing.assert_close(fused(x), matrix(x))
    torch.testing.assert_close(fused.inverse(x), matrix.inverse(x))
    assert matrix(x)[1][0].item() == pytest.approx(math.log(-matrix.weight.det().item()))


def test_the_other_squeeze_keeps_colours_together():
    x = torch.arange(32).view(1, 2, 4, 4)
    squeeze = CheckerboardSqueeze((2, 4, 4))
    z = squeeze(x)[0]
    corners = [x[..., dy::2, dx::2] for dy, dx in ((0, 0), (1, 1), (0, 1), (1, 0))]
    assert torch.equal(z, torch.cat(corners, 1))
    assert torch.equal(squeeze.inverse(z)[0], x)
    assert not squeeze.same_as(Squeeze((2, 4, 4))) and not Squeeze((2, 4, 4)).same_as(squeeze)
    assert squeeze.same_as(CheckerboardSqueeze((2, 4, 4)))
    for shape, named in (((2, 4), r"\(C, H, W\).*\(2, 4\)"), ((2, 3, 4), "does not divide")):
        with pytest.raises(ValueError, match=named):
            CheckerboardSqueeze(shape)


def test_the_channels_of_a_squeeze_by_place():
    x = torch.arange(2 * 4 * 6.0).reshape(1, 2, 4, 6)
    z = SpaceToDepth((2, 4, 6))(x)[0]
    assert z.shape == (1, 8, 2, 3)
    for dy, dx, c in itertools.product(range(2), range(2), range(2)):
        assert torch.equal(z[:, 2 * (2 * dy + dx) + c], x[:, c, dy::2, dx::2])


def test_parts_that_are_no_pieces_are_refused():
    with pytest.raises(ValueError, match="no pieces"):
        EachPart(Checkerboard(), ActNorm(1), ActNorm(1))
    with pytest.raises(ValueError, match=r"takes events \(2, 2, 2\)"):
        EachPart(Columns(), SpaceToDepth((2, 2, 2)), ActNorm(1)).out_shape((2, 2, 4))
    with pytest.raises(ValueError, match="no two parts"):
        EachPart(Leading(2), ActNorm(1), ActNorm(1)).out_shape((2, 2, 4))


def test_squeezes_in_other_orders_do_not_cancel():
    shape = (3, 4, 4)
    kinds = (Squeeze, SpaceToDepth, CheckerboardSqueeze)
    x = torch.randn(2, *shape)
    for first, second in itertools.product(kinds, kinds):
        chain = Chain(first(shape), Inverse(second(shape), shape))
        back = Chain(Inverse(first(shape), shape), second(shape))
        z = first(shape)(x)[0]
        assert torch.equal(chain.fused()(x)[0], chain(x)[0]), (first, second)
        assert torch.equal(back.fused()(z)[0], back(z)[0]), (first, second)
        assert (len(chain.fused()) == 0) == (first is second)
