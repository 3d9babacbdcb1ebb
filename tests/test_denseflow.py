"""DenseFlow: published counts, its noise and its attention against formulas written out."""

import math
from contextlib import nullcontext

import pytest
import torch
from torch import nn

import mixerflow
from mixerflow import export
from mixerflow.augmentation import Augmentation
from mixerflow.core import Along, Chain, Flow, Noise
from mixerflow.errors import ConfigError
from mixerflow.models import DenseFlow
from mixerflow.nets import NystromAttention
from mixerflow.nets.nystrom import iterated_inverse, landmarks, nystrom_attention
from mixerflow.parts import (
    Classes,
    DenseAttention,
    LogitPixels,
    ResidualDense,
    VariationalDequantizer,
)
from mixerflow.recipes import RECIPES, build
from mixerflow.registry import evolve
from mixerflow.train_config import TrainConfig
from mixerflow.transforms import LU, Affine, Augment, CrossUnits, Squeeze
from mixerflow.transforms.checks import perturb
from mixers import DENSEFLOW as SMALL


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def of_type(module: nn.Module, kind: type) -> list:
    return [m for m in module.modules() if isinstance(m, kind)]


@pytest.fixture(scope="module")
def published() -> Flow:
    with torch.device("meta"):
        return build("denseflow-cifar10")


def test_the_published_count_to_the_last_parameter(published):
    flow = published
    assert count(flow) == 130_647_294
    dequantizer, *_, scales = flow.transform
    first, second, (block, base) = scales.scales
    counts = [count(each) for each in (dequantizer, first, second, block, base)]
    assert counts == [2_395_784, 48_061_410, 46_453_404, 33_736_080, 616]


def test_widths_and_what_the_noise_reads(published):
    flow = published
    blocks = of_type(flow, CrossUnits)
    widths = [[tuple(a.shape) for a in block.augments] for block in blocks]
    assert widths == [
        [(n, 16, 16) for n in (12, 22, 32, 42, 52)],
        [(n, 8, 8) for n in (124, 134, 144)],
        [],
    ]
    reads = [[augment.net.in_channels for augment in block.augments] for block in blocks]
    assert reads == [[12, 24, 46, 78, 120], [124, 248, 382], []]
    assert [block.latent_shape for block in blocks] == [(62, 16, 16), (154, 8, 8), (308, 4, 4)]
    assert flow.latent_shape == (124 * 64 + 308 * 16 + 308 * 16,)
    assert len(of_type(flow, NystromAttention)) == 74


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cifar10", "mnist"])
def test_the_full_model_runs_both_ways_with_a_gradient_for_every_parameter(name):
    flow = build(f"denseflow-{name}")
    x = torch.randint(0, 256, (2, *flow.shape), dtype=torch.uint8)
    flow.initialize(x)
    perturb(flow, size=0.05)
    (-flow(x).log_prob.mean()).backward()
    idle = [n for n, p in flow.named_parameters() if p.grad is None or not p.grad.any()]
    assert not idle
    flow.eval()
    assert torch.equal(flow.decode(flow.encode(x)), x)


def test_all_published_runs_are_of_that_model():
    for name in ("cifar10", "imagenet32", "imagenet64", "celeba64"):
        assert RECIPES[f"denseflow-{name}"].model == DenseFlow()


def test_mnist_has_two_blocks_and_no_padding():
    with torch.device("meta"):
        flow = build("denseflow-mnist")
    assert [block.shape[1:] for block in of_type(flow, CrossUnits)] == [(14, 14), (7, 7)]


@pytest.mark.parametrize("shape", [(3, 8, 8), (3, 12, 4), (2, 8), (3, 4, 4, 4)])
@pytest.mark.parametrize("classes", [None, 3])
def test_it_runs_both_ways_with_a_gradient_for_every_parameter(shape, classes):
    model = evolve(SMALL, {"pixels.levels": 32})
    if classes:
        model = evolve(model, {"classes": Classes(classes, 4)})
    flow = model.build(shape)
    x = torch.randint(0, 32, (16, *shape), dtype=torch.uint8)
    labels = torch.arange(16) % classes if classes else None
    flow.initialize(x, labels)
    flow.double()
    perturb(flow, size=0.2)
    flow(x, labels).log_prob.sum().backward()
    idle = [n for n, p in flow.named_parameters() if p.grad is None or not p.grad.any()]
    assert not idle
    flow.eval()
    assert torch.equal(flow.decode(flow.encode(x, labels), labels), x)
    assert flow.density == "bound" and flow.dequantization == "variational"
    noise = Noise.of(0, x)
    scores = [each.log_prob(x, labels, noise) for each in (flow, flow.fused())]
    torch.testing.assert_close(*scores, rtol=1e-9, atol=1e-9)
    some = flow.sample(3, labels[:3] if classes else None, temperature=0.8)
    assert some.shape == (3, *shape) and some.dtype == torch.uint8


def cross_terms(block: CrossUnits, x: torch.Tensor, noise: Noise):
    """The block written out: each unit's output, what its noise reads, and the bound's terms."""
    seen, log_det = [x], 0.0
    for number, unit in enumerate(block.units):
        y, d = unit(x)
        log_det = log_det + d
        if number == len(block.augments):
            return y, log_det
        augment = block.augments[number]
        # everything that came before, but not y, which the noise is put beside
        s, t = augment.net(torch.cat(seen, 1)).chunk(2, 1)
        log_sigma = 2 * torch.tanh(s / 2)
        e = noise.normal(y.new_empty(len(y), augment.channels, *y.shape[2:]), augment.stream)
        normal = -0.5 * e.square() - 0.5 * math.log(2 * math.pi)
        log_det = log_det + (log_sigma - normal).flatten(1).sum(1)
        seen.append(y)
        x = torch.cat([y, log_sigma.exp() * e + t], 1)
    raise AssertionError


def test_cross_unit_coupling_is_its_formula():
    flow = SMALL.build((1, 8, 8)).double()
    perturb(flow)
    block = of_type(flow, CrossUnits)[0].eval()
    x = torch.randn(3, *block.shape, dtype=torch.float64)
    noise = Noise(0, torch.arange(3))
    wanted, wanted_log_det = cross_terms(block, x, noise)
    z, log_det = block(x, None, noise)
    torch.testing.assert_close(z, wanted, rtol=0, atol=1e-12)
    torch.testing.assert_close(log_det, wanted_log_det, rtol=1e-12, atol=1e-9)


def test_what_the_noise_reads_is_not_what_it_is_put_beside():
    flow = SMALL.build((1, 8, 8))
    perturb(flow)
    block = of_type(flow, CrossUnits)[0].eval()
    last = block.augments[-1]
    read = []
    last.net.register_forward_pre_hook(lambda net, given: read.append(given[0]))
    beside = []
    last.register_forward_pre_hook(lambda module, given: beside.append(given[0]))
    block(torch.randn(2, *block.shape))
    assert read[0].shape[1] == last.net.in_channels
    windows = read[0].unfold(1, beside[0].shape[1], 1).movedim(-1, 2)
    same = (windows == beside[0][:, None]).flatten(2).all(-1)
    assert not same.any()


def exact_attention(q, k, v):
    return (q @ k.mT).softmax(-1) @ v


def tokens(n: int, width: int = 5) -> list[torch.Tensor]:
    return [torch.randn(2, n, width, dtype=torch.float64) for _ in range(3)]


@pytest.mark.parametrize("count", [7, 100])
def test_with_a_landmark_for_each_token_it_is_exact_attention(count):
    q, k, v = tokens(7)
    got = nystrom_attention(q, k, v, count=count, inverse=torch.linalg.pinv)
    torch.testing.assert_close(got, exact_attention(q, k, v), rtol=0, atol=1e-8)


def test_constants_map_to_constants():
    q, k, v = tokens(12)
    v = torch.ones_like(v)
    got = nystrom_attention(q, k, v, count=4, inverse=torch.linalg.pinv)
    torch.testing.assert_close(got, v, rtol=0, atol=1e-9)


def test_the_iteration_converges_to_the_inverse_and_has_not_after_six_steps():
    k = torch.randn(3, 6, 6, dtype=torch.float64).softmax(-1)
    wanted = torch.linalg.inv(k)
    torch.testing.assert_close(iterated_inverse(k, 40), wanted, rtol=1e-8, atol=1e-8)
    v = k.mT / (k.sum(-2).amax(-1) * k.sum(-1).amax(-1))[:, None, None]
    unit = torch.eye(6, dtype=torch.float64)
    for _ in range(6):
        kv = k @ v
        v = v @ (13 * unit - kv @ (15 * unit - kv @ (7 * unit - kv))) / 4
    torch.testing.assert_close(iterated_inverse(k), v, rtol=1e-9, atol=1e-9)
    assert (v - wanted).abs().max() > 1e-3


def test_landmarks_are_means_of_neighbours():
    x = torch.arange(14.0).reshape(1, 7, 2)
    assert torch.equal(landmarks(x[:, :6], 3), x[:, :6].reshape(1, 3, 2, 2).mean(2))
    means = [part.mean(1) for part in (x[:, :3], x[:, 3:5], x[:, 5:])]
    assert torch.equal(landmarks(x, 3), torch.stack(means, 1))


def test_pixels_are_tokens():
    """Shuffled pixels within a landmark's run give the shuffled output: pixels are a set there."""
    net = NystromAttention(4, width=3, count=2).double()
    x = torch.randn(2, 4, 2, 6, dtype=torch.float64)
    order = torch.cat([torch.randperm(6), 6 + torch.randperm(6)])
    shuffled = x.flatten(2)[..., order].unflatten(2, (2, 6))
    got, wanted = net(shuffled), net(x).flatten(2)[..., order].unflatten(2, (2, 6))
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)
    released = NystromAttention(4, width=3, count=2, transposed=True).double()
    released.load_state_dict(net.state_dict())
    assert not torch.allclose(released(x), net(x))


def test_the_transposed_attention_is_the_released_formula():
    net = NystromAttention(4, width=3, count=2, transposed=True).double()
    x = torch.randn(2, 4, 2, 6, dtype=torch.float64)
    q, k, v = net.read(x).reshape(2, 12, 9).chunk(3, -1)
    ql, kl = (t.unflatten(1, (2, 6)).mean(2) / 12**0.5 for t in (q, k))
    parts = [(a @ b.mT).softmax(-2) for a, b in ((q, kl), (ql, kl), (ql, k))]
    out = parts[0] @ iterated_inverse(parts[1]) @ parts[2] @ v + v
    torch.testing.assert_close(net(x), net.write(out.reshape(2, 3, 2, 6)), rtol=0, atol=1e-12)


class LinearNet(nn.Module):
    """A mean that is linear in two numbers, and a scale that is the same for all."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.zeros(2))
        self.log_sigma = nn.Parameter(torch.zeros(()))

    def forward(self, x, context=None):
        mean = (x * self.slope[:, None]).sum(1, keepdim=True)
        return torch.cat([self.log_sigma.expand_as(mean), mean], 1)


def linear_gaussian() -> tuple[Flow, torch.Tensor, torch.distributions.MultivariateNormal]:
    """A flow of two numbers and one of noise, jointly Gaussian; its KL term, and p(x) exactly."""
    net = LinearNet()
    flow = Flow(Chain(Augment((2, 1), 1, net, Affine()), Along(0, LU(3, bias=False))), (2, 1))
    flow.double()
    perturb(flow, size=0.5)
    matrix = flow.transform.steps[1].transform
    lower, upper = matrix.triangles()
    covariance = torch.linalg.inv((lower @ upper).T @ (lower @ upper)).detach()
    exact = torch.distributions.MultivariateNormal(torch.zeros(2).double(), covariance[:2, :2])
    # q(n | x) against the exact posterior p(n | x), both Gaussian with means linear in x
    regression = torch.linalg.solve(covariance[:2, :2], covariance[:2, 2])
    variance = covariance[2, 2] - covariance[2, :2] @ regression
    drift, sigma2 = torch.tensor([0.6, -0.5]).double() * variance.sqrt(), 1.5 * variance
    with torch.no_grad():
        net.slope.copy_(regression + drift)
        net.log_sigma.copy_(0.5 * sigma2.log())
    spread = drift @ covariance[:2, :2] @ drift
    kl = 0.5 * ((sigma2 + spread) / variance - 1 - (sigma2 / variance).log())
    return flow, kl, exact


def test_the_bound_of_a_linear_gaussian_rises_to_the_known_likelihood():
    flow, kl, exact = linear_gaussian()
    x = exact.sample((4000,))
    nats = {}
    for draws in (1, 8, 64):
        figure = mixerflow.bits(flow, x[..., None], importance_samples=draws, batch=4000)
        nats[draws] = torch.from_numpy(-figure.per_image) * 2 * math.log(2)
    gap = exact.log_prob(x) - nats[1]
    assert kl > 0.2, "the noise's distribution should not be the posterior here"
    assert abs(gap.mean() - kl) < 4 * gap.std() / len(x) ** 0.5
    for few, more in ((1, 8), (8, 64)):
        rise = nats[more] - nats[few]
        assert rise.mean() > 4 * rise.std() / len(x) ** 0.5
    left = exact.log_prob(x) - nats[64]
    assert 0 < left.mean() < kl / 4


def test_bounds_of_all_images_of_a_tiny_space_add_up_to_a_distribution():
    model = DenseFlow(
        units=(2,),
        modules=(1,),
        growth=1,
        net=DenseAttention(4, growth=4, depth=1, norm="none"),
        pixels=LogitPixels(
            0.0,
            levels=2,
            dequantizer=VariationalDequantizer(
                steps=1, context=4, growth=4, depth=1, net=ResidualDense(4, growth=4, depth=1)
            ),
        ),
    )
    flow = model.build((1, 2, 2)).double().eval()
    perturb(flow, size=0.1)
    with torch.no_grad():  # noise about as wide as the uniform: a narrow one has wild weights
        flow.transform.steps[0].transform.steps[0].log_scale += math.log(1.8)
    images = torch.tensor([[i >> b & 1 for b in range(4)] for i in range(16)])
    x = images.reshape(16, 1, 2, 2).to(torch.uint8)
    draws, bounds = 4000, []
    for i in range(16):
        noise = Noise(0, torch.arange(draws) + draws * i)
        with torch.no_grad():
            bounds.append(flow.log_prob(x[i : i + 1].expand(draws, -1, -1, -1), None, noise))
    log_p = torch.stack(bounds)
    assert log_p.mean(1).exp().sum() < 1
    weights = log_p.exp()
    error = (weights.var(1) / draws).sum().sqrt()
    assert error < 0.02
    assert abs(weights.mean(1).sum() - 1) < 3 * error


def test_sampling_drops_the_noise_and_takes_a_temperature():
    flow = SMALL.build((1, 8, 8)).eval()
    perturb(flow, size=0.2)
    z = torch.randn(4, math.prod(flow.latent_shape), generator=torch.Generator().manual_seed(0))
    cold = flow.sample(4, temperature=0.5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(cold, flow.decode(0.5 * z))


@pytest.mark.parametrize("memory", ["checkpoint", "invert"])
def test_memory_modes_give_the_gradients_of_store(memory):
    flow = SMALL.build((1, 8, 8)).double()
    perturb(flow, size=0.1)
    x = torch.randint(0, 256, (4, 1, 8, 8), dtype=torch.uint8)
    noise = Noise(0, torch.arange(4))
    found = []
    for mode in ("store", memory):
        flow.zero_grad()
        flow.memory = mode
        with pytest.warns(UserWarning, match="Variational") if mode == "invert" else nullcontext():
            flow(x, None, noise).log_prob.sum().backward()
        found.append([p.grad.clone() for p in flow.parameters()])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"units": (2, 0)}, ["units", "at least 1"]),
        ({"growth": -1}, ["growth", "-1"]),
    ],
)
def test_impossible_settings_name_themselves(change, words):
    with pytest.raises(ValueError, match=".*".join(words)):
        evolve(SMALL, change)


def test_units_and_modules_of_other_numbers_of_blocks_name_the_flag():
    with pytest.raises(ConfigError, match=r"modules.*units.*model\.(modules|units)"):
        evolve(SMALL, {"modules": (1,)}).build((1, 8, 8))


@pytest.mark.parametrize(
    ("model", "flag"),
    [
        (SMALL, "units"),
        (mixerflow.Glow(scales=2), "scales"),
        (mixerflow.NSF(scales=2), "scales"),
        (mixerflow.RealNVP(scales=3), "scales"),
    ],
)
def test_sides_that_cannot_be_halved_name_the_flag_and_the_sides_that_can(model, flag):
    words = rf"multiples of 4; these are 14 x 14.* model\.{flag}"
    with pytest.raises(ConfigError, match=words):
        model.build((1, 14, 14))


def test_units_that_change_the_spatial_axes_are_refused():
    squeeze = Squeeze((2, 4, 4))
    with pytest.raises(ValueError, match=r"\(2, 4, 4\) become \(8, 2, 2\)"):
        CrossUnits((2, 4, 4), [squeeze], [])


def test_its_density_is_not_exported_but_its_decoder_is():
    flow = SMALL.build((1, 8, 8)).eval()
    with pytest.raises(ConfigError, match="VariationalDequantize, Augment"):
        export.density(flow)
    z = torch.randn(2, math.prod(flow.latent_shape))
    assert torch.equal(export.decoder(flow)(z), flow.decode(z))


def test_every_model_can_learn_its_noise():
    for name in ("mixerflow-tiny", "glow-cifar10-tiny", "realnvp-cifar10-tiny"):
        model = evolve(RECIPES[name].model, {"pixels.dequantizer": VariationalDequantizer})
        small = {"steps": 1, "context": 4, "growth": 2, "depth": 1}
        model = evolve(model, {f"pixels.dequantizer.{k}": v for k, v in small.items()})
        flow = model.build(RECIPES[name].shape)
        assert (flow.density, flow.dequantization) == ("exact", "variational")
        x = torch.randint(0, 256, (4, *flow.shape), dtype=torch.uint8)
        flow.initialize(x)
        assert flow.bits_per_dim(x).isfinite().all()
        assert torch.equal(flow.decode(flow.encode(x)), x)


def trained(images, **settings) -> Flow:
    torch.manual_seed(0)
    flow = SMALL.build((1, 8, 8))
    config = TrainConfig(
        steps=3,
        batch=8,
        initial=16,
        evaluate_every=10,
        optimizer="adamax",
        augmentation=Augmentation(flip=True, shift=1),
        **settings,
    )
    done = mixerflow.train(flow, images, config=config, quiet=True)
    assert done.validation is not None
    assert done.validation.density == "bound"
    assert math.isfinite(done.validation.bits_per_dim)
    return flow


def test_it_trains_with_recomputation_and_with_bfloat16_nets():
    images = torch.randint(0, 256, (64, 1, 8, 8), dtype=torch.uint8)
    stored, recomputed = trained(images), trained(images, memory="checkpoint")
    found = recomputed.state_dict()
    for name, tensor in stored.state_dict().items():
        assert torch.equal(tensor, found[name]), name
    half = trained(images, precision="bfloat16", memory="checkpoint")
    changed = half.state_dict()["transform.steps.2.scales.0.steps.1.steps.0.steps.0.steps.0.shift"]
    assert changed.dtype == torch.float32 and changed.isfinite().all()
