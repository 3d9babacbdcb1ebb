"""Numbers far from those of training: scales, densities and norms stay right and finite."""

import math

import pytest
import torch
from torch import nn

from mixerflow import kernels
from mixerflow.core import Cauchy, Chain, GaussianMixture, SpikeAndSlab, StandardNormal, StudentT
from mixerflow.errors import ConfigError
from mixerflow.models import MixerFlow
from mixerflow.nets import (
    MADE,
    LipschitzDense,
    ResidualMLP,
    SpectralLinear,
    SplineNet,
    squash,
)
from mixerflow.parts import LogitPixels, VariationalDequantizer
from mixerflow.recipes import build
from mixerflow.transforms import (
    ActNorm,
    Affine,
    Augment,
    Autoregressive,
    Coupling,
    FlooredAffine,
    Gaussianize,
    Householder,
    KernelChain,
    LogisticMixture,
    Logit,
    MapAttention,
    RationalQuadratic,
    SigmoidAffine,
    TokenAttention,
    VariationalDequantize,
)
from mixerflow.transforms.attention import _TokenHalves
from mixerflow.units import unit_rows
from mixers import mixer

BOUNDED = {
    "affine": Affine(2.0),
    "floored": FlooredAffine(),
    "sigmoid": SigmoidAffine(),
    "spline": RationalQuadratic(4),
    "logistic": LogisticMixture(3),
}
"""Every elementwise map whose scales do not grow without bound."""


def shaken(module, size):
    """The module with weights far from any that training gives."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        parameter.data = size * torch.randn_like(parameter)
    return module.eval()


def net(out):
    return nn.Sequential(nn.Linear(4, 16), nn.GELU(), nn.Linear(16, out))


class Read(nn.Module):
    """A net of vectors that ignores its context."""

    def __init__(self, out):
        super().__init__()
        self.net = net(out)

    def forward(self, x, context=None):
        return self.net(x)


def scaled_transforms():
    """Every transform whose scale a net gives, and the shape of its events."""
    made = {
        "map attention": (MapAttention(8), (3, 8)),
        "token attention": (TokenAttention(8), (3, 8)),
    }
    made["flipped map attention"] = MapAttention(8, flip=True), (3, 8)
    made["two heads"] = TokenAttention(8, heads=2, flip=True), (3, 8)
    made["gaussianize"] = Gaussianize(8), (8,)
    for name, each in BOUNDED.items():
        made[f"coupling, {name}"] = Coupling(0, Read(4 * each.params), each), (8,)
        autoregression = MADE(8, each.params, width=8), each
        made[f"autoregression, {name}"] = Autoregressive(*autoregression), (8,)
    return made


@pytest.mark.parametrize("size", [1.0, 1e3])
@pytest.mark.parametrize("far", [1.0, 1e4, 1e15])
@pytest.mark.parametrize("name", scaled_transforms())
@pytest.mark.filterwarnings("ignore::mixerflow.core.ConvergenceWarning")
def test_scales_that_nets_give_are_finite_in_both_directions(name, far, size):
    transform, shape = scaled_transforms()[name]
    if name == "gaussianize":
        size = min(size, 1.0)  # its bandwidths are parameters, which no net gives
    shaken(transform, size)
    x = far * torch.randn(16, *shape)
    with torch.no_grad():
        for direction in (transform.forward, transform.inverse):
            out, log_det = direction(x)
            assert out.isfinite().all() and log_det.isfinite().all()
        if isinstance(transform, _TokenHalves):
            z, log_det = transform(x)
            back, inverse_log_det = transform.inverse(z)
            torch.testing.assert_close(back, x, rtol=1e-4, atol=1e-5 * far)
            torch.testing.assert_close(log_det, -inverse_log_det)


@pytest.mark.parametrize("size", [1.0, 1e3])
def test_noise_that_nets_scale_is_finite(size):
    x = torch.randint(0, 256, (5, 4, 2, 2))
    noise = Augment((4, 2, 2), 2, nn.Flatten(), None)
    noise.net = Conv(4, 4)
    z, log_det = shaken(noise, size)(1e4 * torch.randn(5, 4, 2, 2))
    assert z.isfinite().all() and log_det.isfinite().all()
    inner = Coupling(0, Conv(2, 4), Affine(2.0))
    learned = VariationalDequantize((4, 2, 2), nn.Identity(), inner, (4, 2, 2))
    z, log_det = shaken(learned, size)(x)
    assert z.isfinite().all() and log_det.isfinite().all() and torch.equal(z.floor(), x.float())


class Conv(nn.Module):
    def __init__(self, given, out):
        super().__init__()
        self.conv = nn.Conv2d(given, out, 1)

    def forward(self, x, context=None):
        return self.conv(x)


@pytest.mark.parametrize("size", [0.3, 3.0])
def test_samples_of_a_mixer_with_invertible_attention_are_finite(size):
    torch.manual_seed(0)
    settings = {"layers": 4, "flow_layers": 2, "hidden": 8, "patch": 4, "scale_bound": 2.0}
    model = mixer(**settings, extra="invertible-attention", norm="none")
    flow = build(model, (1, 16, 16)).eval()
    for name, parameter in flow.named_parameters():
        if ".read." in name or "gate" in name:
            parameter.data += size * torch.randn_like(parameter)
    assert flow.draw(64).nonfinite_values == 0


def test_a_map_of_tokens_keeps_small_weights_what_they_were():
    torch.manual_seed(0)
    transform = MapAttention(6)
    x = torch.randn(4, 5, 6)
    assert torch.equal(transform(x)[0], x) and not transform(x)[1].any(), "the identity at 0"
    transform.read.bias.data.fill_(-100.0)
    assert torch.allclose(transform(x)[0][..., 3:], 0.1 * x[..., 3:])
    wanted = torch.full((4,), 5 * 3 * math.log(0.1))
    torch.testing.assert_close(transform(x)[1], wanted)
    x[1, 2, 0] = math.nan
    z, log_det = transform(x)
    assert z.isnan().flatten(1).any(1).tolist() == log_det.isnan().tolist()
    assert log_det.isnan().tolist() == [False, True, False, False]


BASES = {
    "normal": StandardNormal(),
    "student": StudentT(),
    "student, fixed": StudentT(3.0, learned=False),
    "student, thin": StudentT(1e9, learned=False),
    "cauchy": Cauchy(),
    "mixture": GaussianMixture(),
    "mixture of one": GaussianMixture(1),
    "spike and slab": SpikeAndSlab(),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", BASES)
def test_bases_are_right_far_out(name, dtype):
    base = BASES[name]
    z = torch.tensor(
        [0.0, 1e-30, 0.3, -7.0, 1e4, -3e8, 3e9, 1e15, -1.8e19, 1e25, 8e37], dtype=dtype
    )
    z = z[:, None].requires_grad_()
    log_prob = base.log_prob(z)
    (slope,) = torch.autograd.grad(log_prob[log_prob.isfinite()].sum(), z)
    wide = z.detach().double().requires_grad_()
    exact = wide_log_prob(base, wide)
    exact_slope = wide_slope(base, wide.detach())
    within = exact > -3e38 if dtype == torch.float32 else exact > -math.inf
    assert log_prob.isfinite().tolist() == within.tolist(), "only what no float holds is infinite"
    torch.testing.assert_close(log_prob.double()[within], exact[within], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(slope.double()[within], exact_slope[within], rtol=1e-4, atol=1e-6)
    everything = torch.autograd.grad(base.log_prob(z).sum(), [z, *base.parameters()])
    assert everything[0].isfinite().all(), "gradients are finite where values overflow, too"


def wide_log_prob(base, z):
    """The log-density in float64, by the textbook's formula; z is at most 1e38."""
    if isinstance(base, StudentT):
        dof = base.dof().detach()
        peak = torch.lgamma((dof + 1) / 2) - torch.lgamma(dof / 2) - 0.5 * (math.pi * dof).log()
        return (peak - (dof + 1) / 2 * (z.square() / dof).log1p()).sum(1)
    if isinstance(base, StandardNormal):
        return (-0.5 * z.square() - 0.5 * math.log(2 * math.pi)).sum(1)
    weights = base.logits.detach().double().log_softmax(0)
    scales = base.log_scales.detach().double()
    u = (z[..., None] - base.means.double()) / scales.exp()
    each = weights - scales - 0.5 * math.log(2 * math.pi) - 0.5 * u.square()
    return each.logsumexp(-1).sum(1)


def wide_slope(base, z):
    """Its derivative by z."""
    if isinstance(base, StudentT):
        dof = base.dof().detach()
        return -(dof + 1) * z / (dof + z.square())
    if isinstance(base, StandardNormal):
        return -z
    scales = base.log_scales.detach().double()
    u = (z[..., None] - base.means.detach().double()) / scales.exp()
    share = (base.logits.detach().double().log_softmax(0) - scales - 0.5 * u.square()).softmax(-1)
    return (share * -u / scales.exp()).sum(-1)


LENGTHS = [1e-45, 1e-38, 1e-20, 1e-13, 1.0, 1e10, 1e20, 1e38]


@pytest.mark.parametrize("length", LENGTHS)
def test_directions_do_not_depend_on_the_length_of_a_vector(length):
    torch.manual_seed(0)
    signs = torch.randint(0, 2, (4, 9)) * 2.0 - 1
    vectors = (length * signs).requires_grad_()
    torch.testing.assert_close(unit_rows(vectors), signs / 3)
    assert torch.autograd.grad(unit_rows(vectors).sum(), vectors)[0].isnan().sum() == 0
    assert not unit_rows(torch.zeros(2, 3)).any()
    map_, same = Householder(9, 4), Householder(9, 4)
    map_.vectors.data, same.vectors.data = length * signs, signs
    x = torch.randn(5, 9)
    for made in (map_, map_.fused()):
        torch.testing.assert_close(made(x)[0], same(x)[0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(made(x)[0].norm(dim=1), x.norm(dim=1))
        torch.testing.assert_close(made.inverse(made(x)[0])[0], x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("length", LENGTHS)
def test_lipschitz_maps_are_bounded_for_weights_of_any_size(length):
    torch.manual_seed(0)
    map_ = SpectralLinear(6, 5, coefficient=0.9)
    map_.weight.data = torch.randn(5, 6).sign() * length
    weight = map_.bounded()
    norm = torch.linalg.matrix_norm(weight.double(), 2).item()
    assert norm <= 0.9 * (1 + 1e-5)
    if length >= 1:
        assert norm > 0.88
    else:
        torch.testing.assert_close(weight, map_.weight.data, rtol=1e-5, atol=0)
    weight.sum().backward()
    assert map_.weight.grad.isfinite().all()
    dense = LipschitzDense(4, 4, width=4)
    dense.eta.data *= length
    torch.testing.assert_close(dense.shares().norm(dim=1), torch.ones(3))


def test_a_row_of_nan_is_a_bad_row_of_a_kan():
    for bad in (math.nan, math.inf, -math.inf):
        kan = shaken(SplineNet(3, 2, width=4, squash=False), 1.0)
        x = torch.randn(5, 3)
        wanted = kan(x)
        x[2, 1] = bad
        out = kan(x)
        assert not out[2].isfinite().all()
        torch.testing.assert_close(out[[0, 1, 3, 4]], wanted[[0, 1, 3, 4]])


@pytest.mark.parametrize("alpha", [0.0, 1e-9, 2.0**-25, 0.5, -0.1, math.nan])
def test_a_margin_that_cannot_keep_the_logit_finite_is_refused(alpha):
    with pytest.raises(ValueError, match="alpha must lie in \\[2\\^-24, 1/2\\)"):
        Logit(alpha)
    with pytest.raises(ConfigError, match="alpha"):
        build(MixerFlow(layers=1, pixels=LogitPixels(alpha)), (3, 8, 8))


@pytest.mark.parametrize("alpha", [0.0, 1e-9, 0.05])
def test_learned_noise_is_never_0_and_needs_no_margin(alpha):
    pixels = LogitPixels(alpha, dequantizer=VariationalDequantizer(steps=1))
    steps = shaken(Chain(*pixels.steps((3, 2, 2))), 3.0)
    z, log_det = steps(torch.tensor([0, 255]).repeat_interleave(12).reshape(2, 3, 2, 2))
    assert z.isfinite().all() and log_det.isfinite().all()


@pytest.mark.parametrize("alpha", [2.0**-24, 1e-6, 0.05, 0.49])
def test_a_margin_keeps_the_logit_finite_at_both_ends(alpha):
    z, log_det = Logit(alpha)(torch.tensor([[0.0, 1.0]]))
    assert z.isfinite().all() and log_det.isfinite().all()


@pytest.mark.parametrize("norm", ["none", "layer", "rms", "batch"])
@pytest.mark.parametrize("far", [1e10, 1e30, 2.9e38, 3.0e38, 3.1e38, 3.4e38])
def test_kernels_agree_with_torch_at_extreme_values(norm, far):
    net = ResidualMLP(4, 8, width=16, norm=norm)
    chain = shaken(KernelChain(Coupling(0, net, Affine(2.0)), ActNorm(8)), 0.3)
    chain.steps[1].log_scale.data.zero_()
    x = torch.randn(70, 8)
    x[:, :4] = far * x[:, :4].sign()
    with torch.no_grad():
        found = chain(x)
        assert chain.path(x) == "kernel"
        with kernels.disabled():
            wanted = chain(x)
    assert found[1].isfinite().all()
    torch.testing.assert_close(found[1], wanted[1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[0], wanted[0], rtol=1e-4, atol=1e-4)
    assert squash(torch.tensor(far)).isfinite()
