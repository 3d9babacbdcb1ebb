"""Autoregressive nets and transforms: who reads whom, inverses, densities, and other people's."""

import itertools
import math

import pytest
import safetensors.torch
import torch
from torch import nn

from mixerflow.core import Chain, Inverse
from mixerflow.nets import MADE, MaskedMLP
from mixerflow.recipes import build
from mixerflow.transforms import Affine, Autoregressive, Coupling
from mixerflow.transforms.checks import perturb
from mixers import mixer

ORDERS = {"0 to n - 1": None, "reversed": range(5, -1, -1), "drawn": [3, 0, 5, 1, 4, 2]}


def moved(net: nn.Module, size: float = 0.5):
    net = net.double().eval()
    perturb(net, size=size)
    return net


def reads(net, n, context=None):
    """Whether parameter k of feature j reads feature i: ``(params, n, n)``, by autograd."""

    def function(x):
        return net(x, context)

    found = torch.zeros(net.params, n, n, dtype=torch.bool)
    for x in torch.randn(30, 1, n, dtype=torch.float64):  # a ReLU may be shut for some
        jacobian = torch.autograd.functional.jacobian(function, x)
        found |= jacobian[0, :, 0].unflatten(0, (net.params, n)) != 0
    return found


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
@pytest.mark.parametrize(
    "make",
    [
        lambda **s: MADE(6, 3, width=13, **s),
        lambda **s: MADE(6, 3, width=13, blocks=3, norm="batch", **s),
        lambda **s: MaskedMLP(6, 3, width=43, layers=3, **s),
        lambda **s: MaskedMLP(6, 3, width=200, **s),
    ],
)
def test_a_feature_reads_all_features_before_it_and_no_others(make, order):
    found = reads(moved(make(order=order)), 6)
    place = {feature: i for i, feature in enumerate(order or range(6))}
    wanted = torch.tensor([[place[i] < place[j] for i in range(6)] for j in range(6)])
    assert torch.equal(found.any(0), wanted)
    assert not (found & ~wanted).any()


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("width", [1, 2, 3, 7, 8, 12, 64])
@pytest.mark.parametrize("context", [0, 2])
def test_every_hidden_unit_is_of_use_whatever_the_width(n, width, context):
    net = moved(MaskedMLP(n, 2, width=width, context=context))
    x = torch.randn(5, n, dtype=torch.float64)
    given = torch.randn(5, context, dtype=torch.float64) if context else None
    if n > 1 or context:
        assert net.leave.mask.any(0).all(), "a unit that nothing reads"
    if n > 1 and not context:
        assert net.enter.mask.any(1).all(), "a unit that reads nothing"
    if n > 1 and width > 1:
        assert net.enter.mask[:, : n - 1].any(0).all(), "a feature that nothing reads"
    levels = n if context or n == 1 else n - 1
    counts = [b - a for a, b in itertools.pairwise(net._boundaries)][-levels:]
    if width >= levels:
        assert max(counts) - min(counts) <= 1
    assert net(x, given).shape == (5, 2 * n)


def test_the_first_feature_reads_the_context_and_one_alone_nothing_else():
    for n, order in ((1, None), (4, [2, 0, 3, 1])):
        net = moved(MADE(n, 2, width=9, context=3, order=order))
        x, c = torch.randn(2, n).double(), torch.randn(1, 3).double().requires_grad_()
        first = 0 if order is None else order[0]
        out = net(x[:1], c).unflatten(1, (2, n))[0, :, first]
        assert torch.autograd.grad(out.sum(), c)[0].all()
        other = net(x[1:], c).unflatten(1, (2, n))[0, :, first]
        assert torch.equal(out, other)


def test_a_fresh_net_gives_zeros_and_its_layer_is_the_identity():
    x = torch.randn(3, 6)
    for net in (MADE(6, 2, width=9), MaskedMLP(6, 2, width=9, order=ORDERS["drawn"])):
        z, log_det = Autoregressive(net, Affine())(x)
        assert torch.equal(z, x)
        assert not log_det.any()


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("norm", ["none", "batch"])
def test_the_quick_way_back_is_that_of_whole_passes(norm, training):
    net = moved(MADE(6, 2, width=13, norm=norm, blocks=2, context=2, order=ORDERS["drawn"]))
    transform = Autoregressive(net, Affine()).train(training)
    x, context = torch.randn(8, 6).double(), torch.randn(8, 2).double()
    z, log_det = transform(x, context)
    state = {k: v.clone() for k, v in transform.state_dict().items()}
    quick = transform.inverse(z, context)

    class Opaque(nn.Module):
        n, order = net.n, net.order

        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x, context):
            return self.net(x, context)

    slow = Autoregressive(Opaque(), Affine()).train(training).inverse(z, context)
    for a, b, wanted in zip(quick, slow, (x, -log_det), strict=True):
        torch.testing.assert_close(a, wanted, rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(b, wanted, rtol=1e-11, atol=1e-11)
    for name, tensor in transform.state_dict().items():
        assert torch.equal(tensor, state[name]), f"going back moved {name}"


def test_going_back_under_autocast_uses_forwards_own_parameters():
    transform = Autoregressive(moved(MADE(6, 2, width=64)), Affine()).float()
    x = torch.randn(50, 6)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        z, log_det = transform(x)
        back, other = transform.inverse(z)
    torch.testing.assert_close(back, x, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(other, -log_det, rtol=1e-5, atol=1e-5)


def test_going_back_survives_features_that_would_overflow():
    """Where whole passes put garbage in what is not known yet, infinity times a mask is NaN."""
    transform = Autoregressive(moved(MADE(5, 2, width=8, squash=False)), Affine())
    with torch.no_grad():
        transform.net.leave.bias[:5] = -800.0  # exp(800) is infinite
        transform.net.leave.bias[0] = 0.0
        transform.net.leave.weight[:5] = 0.0
        z = torch.zeros(2, 5, dtype=torch.float64)
        x, _ = transform.inverse(z)
    assert x[:, :1].isfinite().all()


def test_the_way_back_takes_no_whole_pass():
    net, calls = MADE(40, 2, width=64), []
    for module in (net, net.enter, *net.linears, net.leave):
        module.register_forward_hook(lambda *_: calls.append(1))
    Autoregressive(net, Affine()).inverse(torch.randn(16, 40))
    assert not calls


@pytest.mark.parametrize("turned", [False, True])
def test_densities_integrate_to_one(turned):
    """Of two features, by quadrature over the plane; IAF's too."""
    transform = Autoregressive(moved(MADE(2, 2, width=8, order=[1, 0])), Affine())
    if turned:
        transform = Inverse(transform, (2,))
    axis = torch.linspace(-12, 12, 601, dtype=torch.float64)
    x = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        z, log_det = transform(x)
    log_prob = log_det - 0.5 * (z.square() + math.log(2 * math.pi)).sum(1)
    mass = log_prob.exp().sum() * (axis[1] - axis[0]) ** 2
    assert abs(mass.item() - 1) < 1e-6


def test_a_loaded_net_is_the_same_net_though_its_order_was_drawn_anew():
    one, two = (
        MADE(7, 2, width=9, order=torch.randperm(7, generator=g).tolist())
        for g in map(torch.Generator().manual_seed, (1, 2))
    )
    perturb(one)
    assert not torch.equal(one.order, two.order)
    two.load_state_dict(safetensors.torch.load(safetensors.torch.save(one.state_dict())))
    x = torch.randn(4, 7)
    assert torch.equal(one(x), two(x))
    assert not any("mask" in name for name in one.state_dict())
    assert "order" not in MADE(7, 2, width=9).state_dict(), "what follows from sizes is not stored"


def test_folding_multiplies_the_masks_in():
    transform = Autoregressive(moved(MADE(5, 2, width=9, norm="batch")), Affine())
    fused, x = transform.fused(), torch.randn(4, 5).double()
    assert all(m.mask is None for m in (fused.net.enter, *fused.net.linears, fused.net.leave))
    torch.testing.assert_close(fused(x), transform(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: MADE(4, 2, width=8, norm="layer"), "layer"),
        (lambda: MADE(4, 2, width=8, order=[0, 1, 2, 2]), r"0\.\.3.*\[0, 1, 2, 2\]"),
        (lambda: MADE(0, 2, width=8), "sizes 0, 2, 8"),
        (lambda: MADE(4, 2, width=8)(torch.zeros(2, 5)), r"\(4,\).*\(5,\)"),
        (lambda: MADE(4, 2, width=8, context=2)(torch.zeros(2, 4)), "context"),
        (lambda: Autoregressive(MADE(4, 3, width=8), Affine())(torch.zeros(2, 4)), r"8 .*12"),
        (lambda: Autoregressive(MADE(4, 2, width=8), Affine()).out_shape((5,)), r"\(4,\).*\(5,\)"),
    ],
)
def test_what_cannot_be_is_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_a_mixerflow_of_these_has_as_many_parameters_as_the_paper_says():
    """Every coupling's net replaced by a masked one of the same width: 3.83M."""
    settings = {"linear": "RLU", "shift": 0, "hidden": 64, "norm": "none"}
    with torch.device("meta"):
        flow = build(mixer(**settings), (1, 28, 28))
        for chain in [m for m in flow.modules() if isinstance(m, Chain)]:
            for i, step in enumerate(chain.steps):
                if isinstance(step, Coupling):
                    n = step.net.enter.in_features + step.net.leave.out_features // 2
                    net = MADE(n, 2, width=64)
                    chain.steps[i] = Autoregressive(net, Affine())
    count = sum(p.numel() for p in flow.parameters())
    assert count == pytest.approx(3.83e6, rel=0.025)


def test_it_is_that_of_nflows():
    module = pytest.importorskip("nflows.transforms.autoregressive")
    ours = Autoregressive(moved(MADE(5, 2, width=12, squash=False, order=None)), Affine())
    theirs = module.MaskedAffineAutoregressiveTransform(
        5, 12, num_blocks=1, activation=nn.functional.gelu
    ).double()
    made, net = theirs.autoregressive_net, ours.net
    # nflows deals degrees out in turn, ours are sorted: unit i of theirs is unit rank[i] of ours
    degrees = made.initial_layer.degrees
    rank = degrees.argsort(stable=True).argsort()
    with torch.no_grad():
        copies = [(made.initial_layer, net.enter.weight[rank], net.enter.bias[rank])]
        for layer, masked in zip(made.blocks[0].linear_layers, net.linears, strict=True):
            copies.append((layer, masked.weight[rank][:, rank], masked.bias[rank]))
        for layer, weight, bias in copies:
            layer.weight.copy_(weight)
            layer.bias.copy_(bias)
        # a feature's (scale, shift) lie side by side there
        weight = net.leave.weight.unflatten(0, (2, 5)).transpose(0, 1).flatten(0, 1)
        made.final_layer.weight.copy_(weight[:, rank])
        made.final_layer.bias.copy_(net.leave.bias.unflatten(0, (2, 5)).mT.flatten())
        assert torch.equal(made.final_layer.mask.bool()[::2], net.leave.mask[:5, rank])

    class Softplus(Affine):
        """Our raw numbers read as nflows does: the scale is softplus(raw) + 1e-3."""

        def _read(self, raw):
            return (nn.functional.softplus(raw[0]) + 1e-3).log(), raw[1]

    ours.elementwise = Softplus()
    x = torch.randn(7, 5, dtype=torch.float64)
    for mine, other in ((ours(x), theirs(x)), (ours.inverse(x), theirs.inverse(x))):
        torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_it_is_that_of_zuko(order):
    transforms = pytest.importorskip("zuko.transforms")
    ours, slope = Autoregressive(moved(MADE(6, 2, width=12, order=order)), Affine()), 1e-3

    def meta(x):
        """zuko softclips: log-scale = raw / (1 + |raw / log slope|), here solved for raw."""
        log_scale, shift = ours.net(x).chunk(2, 1)
        raw = log_scale / (1 - (log_scale / math.log(slope)).abs())
        return transforms.DependentTransform(
            transforms.MonotonicAffineTransform(shift, raw, slope=slope), 1
        )

    theirs = transforms.AutoregressiveTransform(meta, passes=6)
    x = torch.randn(7, 6, dtype=torch.float64)
    with torch.no_grad():
        z, log_det = theirs.call_and_ladj(x)
        torch.testing.assert_close(ours(x), (z, log_det), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(ours.inverse(x)[0], theirs.inv(x), rtol=1e-10, atol=1e-10)
