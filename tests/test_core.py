"""What a flow does with a transform and a base: densities, drawing, errors, initialisation."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from mixerflow.core import Along, Base, Chain, Encoded, Flow, Inverse, Noise, StandardNormal
from mixerflow.core.transform import constant, total
from mixerflow.nets import LipschitzMLP, ResidualMLP, Velocity
from mixerflow.recipes import build
from mixerflow.transforms import (
    LU,
    ActNorm,
    Affine,
    Continuous,
    Coupling,
    Dequantize,
    Patchify,
    Rescale,
    Residual,
)
from mixerflow.transforms.checks import perturb
from mixers import maf, mixer

SHAPE = (2, 4, 6)


def vectors(n=2, *, size=0.3, **settings) -> Flow:
    """A perturbed flow over real vectors."""
    net = ResidualMLP((n + 1) // 2, 2 * (n // 2), width=8)
    flip = ResidualMLP(n // 2, 2 * ((n + 1) // 2), width=8)
    steps = [
        LU(n),
        Coupling(-1, net, Affine()),
        ActNorm(n),
        Coupling(-1, flip, Affine(), flip=True),
    ]
    flow = Flow(Chain(*steps), (n,), **settings)
    perturb(flow, size=size)
    return flow


def pictures(*, size=0.1, **settings) -> Flow:
    """A small perturbed MixerFlow over 8-bit images."""
    small = {"layers": 2, "shift_every": 2, "patch": 2, "hidden": 8, "norm": "none", **settings}
    flow = build(mixer(**small), SHAPE)
    perturb(flow, size=size)
    return flow


def pixels(n, shape=SHAPE):
    return torch.randint(0, 256, (n, *shape), dtype=torch.uint8)


def test_the_density_integrates_to_one():
    flow = vectors(2).double()
    line = torch.linspace(-12, 12, 601, dtype=torch.float64)
    grid = torch.cartesian_prod(line, line)
    mass = flow.log_prob(grid).exp().sum() * (line[1] - line[0]) ** 2
    assert mass.item() == pytest.approx(1, abs=1e-6)


def test_forward_is_the_base_plus_the_log_det():
    flow, x = vectors(3), torch.randn(5, 3)
    encoded = flow(x)
    assert isinstance(encoded, Encoded)
    z, log_det = flow.transform(x)
    assert torch.equal(encoded.z, z) and torch.equal(encoded.log_det, log_det)
    wanted = -0.5 * (z.square().sum(1) + 3 * math.log(2 * math.pi)) + log_det
    torch.testing.assert_close(encoded.log_prob, wanted)
    torch.testing.assert_close(flow.log_prob(x), wanted)
    torch.testing.assert_close(flow.encode(x), z)


def test_bits_per_dim_are_the_log_probability_in_other_units():
    flow, x = pictures(), pixels(5)
    noise = Noise(4, torch.arange(5))
    wanted = -flow.eval().log_prob(x, noise=noise) / (math.prod(SHAPE) * math.log(2))
    torch.testing.assert_close(flow.bits_per_dim(x, noise=noise), wanted)
    torch.testing.assert_close(flow.bits_per_dim(x), flow.bits_per_dim(x, noise=Noise.of(0, x)))


def test_an_identity_flow_has_the_bits_of_its_base():
    flow = Flow(Chain(Dequantize(), Rescale(2 / 256, -1.0)), (1, 8, 8), levels=256)
    x = pixels(3, (1, 8, 8))
    u = Noise.of(0, x).uniform(torch.empty(3, 1, 8, 8), flow.transform.steps[0].stream)
    z = (x + u) / 128 - 1
    nats = 0.5 * z.square().mean((1, 2, 3)) + 0.5 * math.log(2 * math.pi) - math.log(2 / 256)
    torch.testing.assert_close(flow.bits_per_dim(x), nats / math.log(2), atol=1e-4, rtol=0)


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_bits_per_dim_do_not_depend_on_batch_size_or_order(norm):
    flow, x = pictures(norm=norm).train(), pixels(11)
    whole = flow.bits_per_dim(x)
    for batch in (1, 4, 11):
        torch.testing.assert_close(flow.bits_per_dim(x, batch=batch), whole, rtol=1e-5, atol=0)
    order = torch.randperm(11)
    shuffled = flow.bits_per_dim(x[order], batch=3)
    torch.testing.assert_close(shuffled, whole[order], rtol=1e-5, atol=0)
    torch.testing.assert_close(flow.bits_per_dim(x.float()), whole)
    same = flow.bits_per_dim(x[[3, 1, 3]])
    assert same[0] == same[2]
    torch.testing.assert_close(same[0], whole[3], rtol=1e-5, atol=0)
    torch.testing.assert_close(flow.bits_per_dim(x.numpy()), whole)
    assert flow.bits_per_dim(x[:0]).shape == (0,)


def test_log_probabilities_are_float32_under_autocast():
    flow, x = pictures(), pixels(3)
    with torch.autocast("cpu", torch.bfloat16):
        encoded = flow(x)
    assert all(part.dtype == torch.float32 for part in encoded)


def test_decode_undoes_encode():
    flow, x = pictures(), pixels(6)
    z = flow.encode(x)
    assert z.shape == (6, math.prod(SHAPE))
    assert torch.equal(flow.decode(z), x) and flow.decode(z).dtype == torch.uint8
    assert torch.equal(z, flow.encode(x)), "encoding draws no noise"


def test_sums_are_float32_or_wider():
    half, double = torch.full((2, 3072), 0.01, dtype=torch.bfloat16), torch.ones(2, 3).double()
    assert total(half).dtype == constant(0.0, half).dtype == torch.float32
    assert total(half)[0].item() == pytest.approx(3072 * half[0, 0].item(), rel=1e-5)
    assert total(double).dtype == constant(0.0, double).dtype == torch.float64
    assert constant(torch.tensor(1.0).double(), half).dtype == torch.float64


def test_many_levels_come_back_as_wide_integers():
    flow = Flow(Chain(Dequantize(2**16), Rescale(2**-15, -1.0)), (1, 2, 2), levels=2**16)
    x = torch.tensor([0, 1, 256, 2**16 - 1], dtype=torch.int32).reshape(1, 1, 2, 2)
    assert torch.equal(flow.decode(flow.encode(x)), x)


def test_sampling_follows_the_base():
    flow = vectors(2, size=0.2).double()
    assert flow.sample(0).shape == (0, 2)
    # the samples' latents are the base's own
    z = flow.encode(flow.sample(4000, generator=torch.Generator().manual_seed(0)))
    assert z.mean(0).abs().max() < 4 * 4000**-0.5
    assert (z.T.cov() - torch.eye(2)).abs().max() < 4 * (2 / 4000) ** 0.5


def test_temperature_scales_every_latent():
    flow = pictures()
    cold = flow.sample(3, temperature=0.0)
    assert torch.equal(cold, flow.decode(torch.zeros(3, math.prod(SHAPE))))
    real = vectors(3).double()
    z = [real.encode(real.sample(4, temperature=t, generator=seed())) for t in (1.0, 0.5)]
    torch.testing.assert_close(z[1], z[0] / 2)
    with pytest.raises(ValueError, match=r"temperature=-1"):
        flow.sample(1, temperature=-1.0)
    with pytest.raises(ValueError, match=r"temperature=nan"):
        flow.sample(1, temperature=math.nan)


def seed(number=0):
    return torch.Generator().manual_seed(number)


def test_a_generator_makes_samples_reproducible():
    flow = pictures()
    one = flow.sample(5, generator=seed(1))
    assert torch.equal(one, flow.sample(5, generator=seed(1)))
    assert torch.equal(one, flow.draw(5, generator=seed(1), batch=2).images)
    assert not torch.equal(one, flow.sample(5, generator=seed(2)))


class Fixed(Base):
    """Gives out the latents it was built with."""

    def __init__(self, z):
        super().__init__()
        self.z = z

    def log_prob(self, z, context=None):
        return StandardNormal().log_prob(z)

    def sample(self, like, generator, context=None):
        assert like.shape == self.z.shape
        return self.z


def test_draws_count_what_they_clamp():
    z = torch.tensor([[-0.5, 0.0, 3.99, 4.0], [1.5, 2.0, math.nan, math.inf]])
    flow = Flow(Dequantize(4), (4,), Fixed(z), levels=4)
    for batch in (1, 256):
        images, clamped, nonfinite = drawn = flow.draw(2, batch=batch)
        assert images.tolist() == [[0, 0, 3, 3], [1, 2, 0, 0]] and images.dtype == torch.uint8
        assert clamped == 2  # -1 and 4
        assert nonfinite.nonzero().tolist() == [[1, 2], [1, 3]]
        assert (drawn.nonfinite_values, drawn.nonfinite_images) == (2, 1)
    assert vectors(2).draw(3).clamped == 0


def conditional() -> Flow:
    net = ResidualMLP(1, 2, width=8, context=3)
    flow = Flow(Coupling(-1, net, Affine()), (2,), context_net=nn.Embedding(4, 3))
    perturb(flow)
    return flow


def test_context_reaches_the_transforms():
    flow, x = conditional(), torch.randn(4, 2)
    labels = torch.tensor([0, 1, 2, 3])
    bits = flow.bits_per_dim(x, labels, batch=3)
    for i in range(4):
        torch.testing.assert_close(flow.bits_per_dim(x[[i]], labels[[i]]), bits[[i]])
    assert not torch.allclose(flow.bits_per_dim(x, labels.flip(0)), bits)
    torch.testing.assert_close(flow.decode(flow.encode(x, labels), labels), x)
    one = flow.sample(3, 2, generator=seed())
    assert torch.equal(one, flow.sample(3, torch.tensor([2, 2, 2]), generator=seed()))


def test_errors_say_what_was_wanted_and_what_came():
    flow, labelled = pictures(), conditional()
    with pytest.raises(ValueError, match=r"\(B, 2, 4, 6\); got \(3, 2, 6, 4\)"):
        flow.log_prob(pixels(3, (2, 6, 4)))
    with pytest.raises(ValueError, match=r"\(B, 2, 4, 6\); got \(2, 4, 6\)"):
        flow.log_prob(pixels(3)[0])
    with pytest.raises(ValueError, match=r"\(B, 48\); got \(3, 47\)"):
        flow.decode(torch.zeros(3, 47))
    with pytest.raises(ValueError, match=r"integers 0\.\.255; got torch.float32"):
        flow.log_prob(torch.rand(3, *SHAPE))
    with pytest.raises(ValueError, match=r"0\.\.255; got 0 to 256"):
        flow.log_prob(torch.tensor([0, 256]).repeat(24).reshape(1, *SHAPE))
    with pytest.raises(ValueError, match="without context, and got some"):
        flow.log_prob(pixels(1), torch.tensor([0]))
    with pytest.raises(ValueError, match="pass a context"):
        labelled.log_prob(torch.zeros(2, 2))
    with pytest.raises(ValueError, match="context for 3 images, a batch of 2"):
        labelled.log_prob(torch.zeros(2, 2), torch.tensor([0, 1, 2]))
    with pytest.raises(ValueError, match=r"\(3, 4, 4\).*\(3, 4, 6\)"):
        Flow(Patchify((3, 4, 4), (2, 2)), (3, 4, 6))
    with pytest.raises(ValueError, match="n=-1"):
        flow.sample(-1)
    with pytest.raises(ValueError, match="stochastic"):
        Inverse(Noisy(), (3,))


class Noisy(Dequantize):
    density = "bound"


def test_a_flow_is_as_exact_as_its_weakest_step():
    class Estimated(LU):
        density = "estimate"

    assert vectors().density == "exact"
    assert Flow(Chain(Noisy(), LU(3)), (3,)).density == "bound"
    assert Flow(Chain(LU(3), Along(0, Estimated(3))), (3,)).density == "estimate"
    both = Chain(Noisy(), Along(0, Estimated(3)))
    assert Flow(both, (3,)).density == "estimated bound"
    assert Flow(Chain(both, LU(3)), (3,)).density == "estimated bound"


def test_initialisation_standardises_what_varies_and_amplifies_nothing():
    flow = Flow(Chain(ActNorm((3, 1, 1)), ActNorm((3, 4, 5))), (3, 4, 5))
    x = torch.randn(64, 3, 4, 5) * torch.tensor([5.0, 0.1, 0.0])[:, None, None] + 7
    flow.initialize(x)
    z = flow.encode(x).reshape(x.shape)
    assert z.mean(0).abs().max() < 1e-5
    assert z[:, 0].std((0,)).sub(1).abs().max() < 0.3
    torch.testing.assert_close(z[:, 1].std(), torch.tensor(0.1), rtol=0.1, atol=0)
    assert z[:, 2].abs().max() < 1e-5
    assert all(step.log_scale.max() <= 0 for step in flow.transform)


def test_initialisation_sees_what_forward_gives():
    flow, x = pictures(size=0.0), pixels(64)
    flow.initialize(x)
    for module in flow.modules():
        if isinstance(module, ActNorm):
            last = module
    z = flow.encode(x)
    assert z.isfinite().all() and last.shift.any()
    assert z.std(0).max() < 1.3


def test_a_flow_is_initialised_once():
    flow, x = pictures(size=0.0), pixels(8)
    assert not flow.initialized
    flow.initialize(x)
    assert flow.initialized and flow.state_dict()["initialized"]
    with pytest.raises(RuntimeError, match="initialised already"):
        flow.initialize(x)
    copy = pictures(size=0.0)
    copy.load_state_dict(flow.state_dict())
    with pytest.raises(RuntimeError, match="initialised already"):
        copy.initialize(x)
    with pytest.raises(ValueError, match="empty batch"):
        pictures(size=0.0).initialize(x[:0])


def test_modes_are_restored():
    flow, x = pictures(norm="batch").train(), pixels(4)
    frozen = next(m for m in flow.modules() if isinstance(m, nn.BatchNorm1d)).eval()
    statistics = frozen.running_mean.clone()
    before = {name: module.training for name, module in flow.named_modules()}
    flow.decode(flow.encode(x))
    flow.sample(2)
    flow.bits_per_dim(x)
    with pytest.raises(ValueError, match=r"\(B, 2, 4, 6\)"):
        flow.encode(x[:, :1])
    assert {name: module.training for name, module in flow.named_modules()} == before
    assert sorted(set(before.values())) == [False, True]
    assert torch.equal(frozen.running_mean, statistics)
    assert not any(m.running_mean.isnan().any() for m in [frozen])


def test_streams_are_numbered():
    flow = Flow(Chain(Dequantize(), Chain(Dequantize()), Along(0, LU(3))), (3,))
    first, second = flow.transform.steps[0], flow.transform.steps[1].steps[0]
    assert (first.stream, second.stream) == (3, 4)
    deeper = Flow(Chain(LU(3), Chain(LU(3), Along(0, Dequantize())), Dequantize()), (3,))
    drawing = [m for m in deeper.modules() if isinstance(m, Dequantize)]
    assert [m.stream for m in drawing] == [3, 4]  # whatever stands between and around them
    noise, x = Noise(0, torch.arange(2)), torch.zeros(2, 3, dtype=torch.uint8)
    assert not torch.equal(first(x, noise=noise)[0], second(x, noise=noise)[0])


def test_only_what_draws_has_a_stream():
    net = LipschitzMLP(3, 3, width=4)
    parts = [Residual(net), Residual(net, log_det="unbiased"), Dequantize()]
    Flow(Chain(*parts), (3,))
    assert [part.draws for part in parts] == [False, True, True]
    assert [part.stream for part in parts] == [0, 3, 4]
    velocity = Velocity(3, width=4)
    kinds = [Continuous(velocity, trace=trace).draws for trace in ("exact", "hutchinson")]
    assert kinds == [False, True]


@pytest.mark.parametrize("config", [mixer(layers=2, patch=2, hidden=4), maf()])
def test_a_models_dequantisation_keeps_its_stream(config):
    flow = build(config, (1, 4, 4))
    assert isinstance(flow.transform.steps[0], Dequantize) and flow.transform.steps[0].stream == 3
    assert flow.dequantization == "uniform" and flow.fused().dequantization == "uniform"
    assert vectors().dequantization == "none"


def test_noise_from_torch_differs_from_call_to_call_and_obeys_its_seed():
    flow, x = pictures(), pixels(2)
    assert not torch.equal(flow.log_prob(x), flow.log_prob(x))
    torch.manual_seed(5)
    one = flow.log_prob(x)
    torch.manual_seed(5)
    assert torch.equal(one, flow.log_prob(x))


def test_numpy_images_are_scored_too():
    flow = pictures()
    images = np.zeros((2, *SHAPE), np.uint8)
    assert flow.bits_per_dim(images).shape == (2,)
