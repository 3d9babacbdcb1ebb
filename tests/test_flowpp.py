"""Flow++ and VFlow: published counts, their net against formulas, bounds against quadrature."""

import copy
import dataclasses
import itertools
import math
import warnings

import pytest
import torch
from torch import nn
from torch.nn.functional import conv2d, elu, layer_norm

import mixerflow
from helpers import everything, images, settings, stop_after
from mixerflow.core import Chain, Inverse, Noise
from mixerflow.core.transform import fold_parts
from mixerflow.errors import ConfigError
from mixerflow.models import FlowPP, VFlow
from mixerflow.nets import ColumnEncoder, GatedAttentionNet, LipschitzConvNet
from mixerflow.parts import (
    Classes,
    ColumnChannels,
    ColumnDequantizer,
    GatedAttention,
    LogitPixels,
    NoMap,
    UniformDequantizer,
)
from mixerflow.recipes import RECIPES
from mixerflow.training import train
from mixerflow.training.idle import trained_entries
from mixerflow.transforms import (
    AbsoluteValue,
    AugmentByFlow,
    Coupling,
    EachPart,
    LogisticMixture,
    Residual,
    Round,
    VariationalDequantize,
)
from mixerflow.transforms.checks import perturb
from mixerflow.transforms.logistic import Mixture

COUNTS = {
    "flowpp-cifar10": (31_443_440, [3_466_976]),
    "flowpp-imagenet32": (168_955_724, []),
    "vflow-cifar10": (39_700_096, [3_466_976, 4_491_872]),
}
NET = GatedAttention(8, 1, heads=2, dropout=0.1)
NOISE = {
    "steps": 2,
    "context": 4,
    "blocks": 1,
    "net": dataclasses.replace(NET, width=4),
    "elementwise": LogisticMixture(2),
}
PIXELS = LogitPixels(0.05, dequantizer=ColumnDequantizer(**NOISE))
SMALL = FlowPP(
    steps=("columns", "columns", "squeeze", "channels", "channels"),
    net=NET,
    elementwise=LogisticMixture(3),
    pixels=PIXELS,
)
WIDER = VFlow(
    steps=("columns", "channels", "squeeze", "columns", "channels"),
    net=NET,
    elementwise=LogisticMixture(3),
    pixels=PIXELS,
    added=ColumnChannels(2, **NOISE),
)
NORMED = dataclasses.replace(
    SMALL,
    net=dataclasses.replace(NET, weight_norm=True, last_elu=True),
    linear=NoMap(),
    pixels=LogitPixels(
        0.05, dequantizer=ColumnDequantizer(**NOISE | {"attention": True, "context": 4})
    ),
)
MODELS = {
    "flow++": SMALL,
    "vflow": WIDER,
    "normed": NORMED,
    "vflow, classes": dataclasses.replace(WIDER, classes=Classes(3, 4)),
}


def count(module):
    return sum(p.numel() for p in module.parameters())


def moved(model, shape=(2, 4, 8), size=0.3):
    torch.manual_seed(0)
    flow = model.build(shape).double().eval()
    perturb(flow.transform, size=size)
    return flow


def labels_of(model, n):
    return torch.arange(n) % 3 if model.classes else None


def drawn(n, shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (n, *shape), generator=generator).byte()


@pytest.mark.parametrize("name", COUNTS)
def test_the_published_counts_to_the_last_parameter(name):
    total, noises = COUNTS[name]
    with torch.device("meta"):
        flow = mixerflow.build(name)
    assert count(flow) == total
    found = [count(step) for step in flow.transform if "noise" in str(step) or step.draws]
    assert found[: len(noises)] == noises
    if name != "flowpp-imagenet32":
        assert total - sum(noises) == (27_976_464 if name == "flowpp-cifar10" else 31_741_248)


def test_the_order_of_the_couplings():
    with torch.device("meta"):
        flow = mixerflow.build("flowpp-cifar10")
    splits = [m.split for m in Chain(*list(flow.transform)[1:]).modules() if type(m) is Coupling]
    kinds = [(type(split).__name__, split.flip) for split in splits]
    columns, channels = ([(name, flip) for flip in (False, True)] for name in ("Columns", "Halves"))
    assert kinds == [*columns, *columns, *channels, *columns, columns[0]]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["flowpp-cifar10", "vflow-cifar10"])
def test_the_full_model_runs_both_ways_with_a_gradient_for_every_parameter(name):
    flow = mixerflow.build(name)
    x = drawn(2, flow.shape)
    flow.initialize(x)
    perturb(flow, size=0.02)
    (-flow(x).log_prob.mean()).backward()
    assert all(p.grad is not None and p.grad.any() for p in flow.parameters())
    flow.eval()
    assert torch.equal(flow.decode(flow.encode(x)), x)


@pytest.mark.parametrize("name", MODELS)
def test_it_runs_both_ways_with_a_gradient_for_every_parameter(name):
    model = MODELS[name]
    flow = moved(model)
    x, labels = drawn(6, flow.shape), labels_of(model, 6)
    flow(x, labels).log_prob.sum().backward()
    idle = trained_entries(flow)
    for key, parameter in flow.named_parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.any(), key
        if key in idle:
            rest = parameter.grad[idle[key] == 0].abs().max()
            assert rest < 1e-9 * parameter.grad.abs().max(), key
    assert torch.equal(flow.decode(flow.encode(x, labels), labels), x)
    assert flow.density == ("bound" if "vflow" in name else "exact")
    assert flow.dequantization == "variational"
    noise = Noise.of(0, x)
    scores = [each.log_prob(x, labels, noise) for each in (flow, flow.fused())]
    torch.testing.assert_close(*scores, rtol=1e-10, atol=1e-8)
    assert flow.sample(3, None if labels is None else labels[:3]).shape == (3, *flow.shape)


@pytest.mark.parametrize("name", ["flow++", "vflow"])
def test_no_image_sees_another(name):
    flow = moved(MODELS[name])
    x, keys = drawn(4, flow.shape), torch.arange(4)
    score = flow(x, None, Noise(0, keys)).log_prob
    others = drawn(4, flow.shape, seed=1)
    others[2] = x[2]
    assert torch.equal(flow(others, None, Noise(0, keys)).log_prob[2], score[2])


@pytest.mark.parametrize("weight_norm", [False, True])
def test_the_net_is_its_formula(weight_norm):
    torch.manual_seed(0)
    net = GatedAttentionNet(
        3, 5, sides=(4, 3), width=8, depth=2, heads=2, weight_norm=weight_norm, context=2
    ).double()
    perturb(net)
    x, context = torch.randn(2, 3, 4, 3).double(), torch.randn(2, 2, 4, 3).double()
    wanted = net(x, context)

    def c(h):
        return elu(torch.cat([h, -h], 1))

    def weight(of):
        if not weight_norm:
            return of.weight
        v = of.weight
        return v * (of.gain / v.flatten(1).norm(dim=1)).view(-1, *[1] * (v.dim() - 1))

    def apply(of, h):
        w = weight(of)
        w = w[:, :, None, None] if w.dim() == 2 else w
        return conv2d(h, w, of.bias, padding=w.shape[-1] // 2)

    def gate(h):
        a, b = h.chunk(2, 1)
        return a * b.sigmoid()

    def normed(norm, h):
        last = layer_norm(h.movedim(1, -1), (8,), norm.weight, norm.bias)
        return last.movedim(-1, 1)

    h = apply(net.enter, x)
    position = net.position.T.reshape(8, 4, 3)
    for block in net.blocks:
        inner = apply(block.look.look, c(h)) + apply(block.look.context, c(context))
        h = normed(block.norm1, h + gate(apply(block.look.mix, c(inner))))
        attend = block.attend.attend
        q, k, v = apply(attend.read, h + position).flatten(2).chunk(3, 1)
        heads = [
            v[:, part] @ (q[:, part].mT @ k[:, part] / 2).softmax(-1).mT
            for part in (slice(0, 4), slice(4, 8))
        ]
        mixed = torch.cat(heads, 1).view(h.shape)
        h = normed(block.norm2, h + gate(apply(attend.write, mixed)))
    torch.testing.assert_close(apply(net.leave, h), wanted, rtol=0, atol=1e-12)


def test_a_weight_with_a_norm_starts_at_zero_and_folds():
    net = GatedAttentionNet(1, 2, sides=(2, 2), width=4, depth=1, heads=1, weight_norm=True)
    x = torch.randn(3, 1, 2, 2)
    assert not net(x).any()
    perturb(net)
    wanted = net(x)
    assert wanted.any()
    folded = copy.deepcopy(net)
    fold_parts(folded)
    assert type(folded.leave) is nn.Conv2d and type(net.leave) is not nn.Conv2d
    torch.testing.assert_close(folded(x), wanted, rtol=1e-5, atol=1e-6)
    assert torch.equal(net(x), wanted)


def test_the_encoder_reads_pairs_of_columns():
    encoder = ColumnEncoder((1, 2, 6), width=4, depth=1).double()
    x = torch.randn(1, 1, 2, 6).double().requires_grad_()
    found = encoder(x)
    assert found.shape == (1, 4, 2, 3)
    (by_x,) = torch.autograd.grad(found[0, :, :, 0].sum(), x)
    assert by_x[..., :2].all()


@pytest.mark.parametrize(
    "change",
    [{"heads": 3}, {"dropout": 1.0}],
)
def test_settings_that_do_not_fit(change):
    model = dataclasses.replace(SMALL, net=dataclasses.replace(NET, **change))
    with pytest.raises(ConfigError, match=r"heads must divide|dropout must be"):
        model.build((2, 4, 8))


def test_images_that_do_not_fit():
    with pytest.raises(ConfigError, match=r"even width .*; these are 7 wide: model\.steps"):
        SMALL.build((2, 4, 7))
    for steps, got in ((("rows",), "'rows'"), ((3,), "3"), ((), "none")):
        with pytest.raises(ValueError, match=f"steps must be of columns.*; got {got}"):
            FlowPP(steps=steps)
    with pytest.raises(ValueError, match=r"norm must be one of batch.*; got 'foo'"):
        GatedAttentionNet(1, 2, sides=(2, 2), width=4, depth=1, norm="foo")
    with pytest.raises(ValueError, match="heads must divide the width 4; got 0"):
        GatedAttentionNet(1, 2, sides=(2, 2), width=4, depth=1, heads=0)
    net = GatedAttentionNet(1, 2, sides=(2, 2), width=4, depth=1, heads=1, context=3)
    x = torch.randn(1, 1, 2, 2)
    with pytest.raises(ValueError, match="built for a context"):
        net(x)
    with pytest.raises(ValueError, match="reads contexts of length 3; got 4"):
        net(x, torch.randn(1, 4))
    with pytest.raises(ValueError, match="the context is a map"):
        net(x, torch.randn(1, 3, 2, 1))
    with pytest.raises(ValueError, match=r"reads \(1, 2, 2\); got \(1, 2, 3\)"):
        net(torch.randn(1, 1, 2, 3), torch.randn(1, 3))


def test_an_inverse_evaluates_each_net_once_and_iterates_over_elements(monkeypatch):
    flow = moved(SMALL)
    z = flow.encode(drawn(4, flow.shape)) + 0.1
    nets, iterations = [], []
    for module in flow.modules():
        if isinstance(module, GatedAttentionNet):
            module.register_forward_hook(lambda *_: nets.append(1))
    search = Mixture.search

    def counted(self):
        value = search(self)
        return lambda x: iterations.append(1) or value(x)

    monkeypatch.setattr(Mixture, "search", counted)
    x = flow.continuous().invert(z)[0]
    assert len(nets) == 4
    assert 4 * 2 < len(iterations) < 4 * 60
    again = x
    for step in flow.transform.steps[1:]:
        again, _ = step(again)
    torch.testing.assert_close(again.flatten(1), z, rtol=0, atol=1e-8)


def test_dropout_is_of_training_alone_and_memory_modes_repeat_it():
    flow = moved(dataclasses.replace(SMALL, pixels=LogitPixels())).train()
    x = drawn(3, flow.shape)
    noise = Noise(0, torch.arange(3))
    found = {}
    for memory, seed in itertools.product(("store", "checkpoint", "invert"), (0, 1)):
        flow.memory = memory
        flow.zero_grad()
        torch.manual_seed(seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # inputs of layers with dropout are stored
            score = flow(x, None, noise).log_prob.sum()
        score.backward()
        found[memory, seed] = score, [p.grad.clone() for p in flow.parameters()]
    assert found["store", 0][0] != found["store", 1][0]
    for memory in ("checkpoint", "invert"):
        for seed in (0, 1):
            (a, grads), (b, wanted) = found[memory, seed], found["store", seed]
            assert torch.equal(a, b)
            for left, right in zip(grads, wanted, strict=True):
                torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-9)
    flow.eval()
    assert torch.equal(*(flow(x, None, noise).log_prob for _ in range(2)))


def test_a_run_with_dropout_resumes_bit_for_bit(tmp_path, monkeypatch):
    def run(folder):
        torch.manual_seed(0)
        model = dataclasses.replace(SMALL, steps=("columns", "squeeze", "channels"))
        config = settings(steps=6, evaluate_every=2)
        train(model.build((1, 4, 4)), images(), out=folder, config=config, quiet=True)
        return everything(folder)

    whole = run(tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        run(tmp_path / "run")
    resumed = run(tmp_path / "run")
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


BOX = (0.25, 0.75)
"""Noise outside of it has too small a density for means of weights to converge."""


def grid(n):
    """The middles of n x n cells of the square of `BOX`."""
    low, high = BOX
    points = low + (high - low) * (torch.arange(n, dtype=torch.float64) + 0.5) / n
    return torch.cartesian_prod(points, points).view(-1, 1, 1, 2)


def check_bound(flow, x, log_density, noise_of):
    """Assert that draws are weighted by 1 over their density, and bound the log-density.

    `log_density` is that of x with noise, at each point of the grid; `noise_of` is a batch's noise.
    """
    low, high = BOX
    exact = log_density.logsumexp(0) + 2 * math.log(high - low) - math.log(len(log_density))
    rows, noise = x.expand(20_000, -1, -1, -1), Noise(0, torch.arange(20_000))
    with torch.no_grad():
        draws, n = flow(rows, None, noise).log_prob, noise_of(rows, noise)
    inside = ((n > low) & (n < high)).flatten(1).all(1)
    weight = (draws - exact).exp() * inside
    error = weight.std() / len(weight) ** 0.5
    assert error < 0.04 and abs(weight.mean() - 1) < 4 * error
    assert draws.mean() < draws.logsumexp(0) - math.log(len(draws)) - 1e-4


ONE_HEAD = GatedAttention(4, 1, heads=1)


def test_added_channels_bound_the_density_and_many_draws_reach_it():
    model = VFlow(
        steps=("columns", "channels"),
        net=ONE_HEAD,
        elementwise=LogisticMixture(2),
        pixels=LogitPixels(levels=None),
        added=ColumnChannels(1, **NOISE | {"net": ONE_HEAD}),
    )
    flow = moved(model, (1, 1, 2), size=0.1)
    augment, *rest = flow.transform
    x, n = torch.tensor([[[[0.3, -0.7]]]], dtype=torch.float64), grid(400)
    with torch.no_grad():
        z, log_det = Chain(*rest)(torch.cat([x.expand(len(n), -1, -1, -1), n], 1))
        log_joint = flow.base.log_prob(z.flatten(1)) + log_det
    check_bound(flow, x, log_joint, lambda rows, noise: augment(rows, None, noise)[0][:, 1:])


def test_learned_noise_bounds_the_probability_of_a_pair_of_pixels():
    dequantizer = ColumnDequantizer(**NOISE | {"net": ONE_HEAD})
    pixels = LogitPixels(0.05, levels=4, dequantizer=dequantizer)
    model = dataclasses.replace(SMALL, steps=("columns",) * 2, net=ONE_HEAD, pixels=pixels)
    flow = moved(model, (1, 1, 2), size=0.1)
    x = torch.tensor([[[[2, 1]]]], dtype=torch.uint8)
    with torch.no_grad():
        log_density = flow.continuous()(x + grid(400)).log_prob
    add = flow.transform.steps[0]
    check_bound(flow, x, log_density, lambda rows, noise: add(rows, None, noise)[0] - rows)


def test_the_steps_may_have_any_linear_maps_and_noise():
    uniform = LogitPixels(0.05, dequantizer=UniformDequantizer())
    flow = moved(dataclasses.replace(SMALL, pixels=uniform, linear=NoMap()))
    assert not any(isinstance(m, EachPart) for m in flow.modules())
    assert flow.dequantization == "uniform" and flow.density == "exact"


def test_twins_have_every_mechanism():
    for name in ("flowpp-cifar10", "flowpp-imagenet32", "vflow-cifar10"):
        full, twin = RECIPES[name].model, RECIPES[f"{name}-tiny"].model
        assert set(full.steps) == set(twin.steps)
        assert full.net.weight_norm == twin.net.weight_norm
        assert full.net.last_elu == twin.net.last_elu
        assert type(full.linear) is type(twin.linear)
        assert type(full.added) is type(twin.added)
        assert isinstance(twin.pixels.dequantizer, ColumnDequantizer)
        assert twin.net.heads > 1 and twin.net.dropout >= 0.01 * full.net.dropout


def test_noise_must_come_from_a_flow_with_an_exact_density():
    shape, noise = (3, 4, 4), (2, 4, 4)
    residual = Chain(Residual(LipschitzConvNet(2, (4, 4), width=4), log_det="unbiased"))
    for flow in (residual, Inverse(Round(), noise), AbsoluteValue()):
        with pytest.raises(ValueError, match="must have an exact density"):
            AugmentByFlow(shape, 2, nn.Identity(), flow)
        with pytest.raises(ValueError, match="must have an exact density"):
            VariationalDequantize(noise, nn.Identity(), flow, noise)
