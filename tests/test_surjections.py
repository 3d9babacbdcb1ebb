"""Surjections: densities that integrate to one, draws, samples of flows with them, refusals."""

import math
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from cases import signed
from mixerflow import export
from mixerflow.core import (
    Along,
    Base,
    Chain,
    Flow,
    Inverse,
    MultiScale,
    Noise,
    Transform,
    number_streams,
)
from mixerflow.errors import ConfigError
from mixerflow.evaluate import bits
from mixerflow.restoration import LatentSearch, Noisy, restore
from mixerflow.transforms import (
    LU,
    AbsoluteValue,
    Augment,
    Dequantize,
    MaxPool,
    Rescale,
    Reshape,
    Round,
    Sort,
    Squeeze,
)
from mixerflow.transforms.checks import LAWS, check

KEYS = torch.arange(6)
SHAPES = [
    (lambda: MaxPool((2, 4, 6)), (2, 4, 6)),
    (lambda: MaxPool((1, 6), 3), (1, 6)),
    (lambda: MaxPool((1, 2, 4, 2)), (1, 2, 4, 2)),
    (AbsoluteValue, (5,)),
    (lambda: Sort(1), (2, 3)),
    (Round, (4,)),
]


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class Exponential(Base):
    """Independent numbers of at least 0."""

    alike = True

    def log_prob(self, z, context=None):
        return torch.where(z >= 0, -z, -math.inf).sum(1)

    def sample(self, like, generator, context=None):
        return -torch.rand(like.shape, dtype=torch.float64, generator=generator).log().to(like)


class SortedPair(Base):
    """Two sorted standard normal numbers."""

    def log_prob(self, z, context=None):
        log_normal = -0.5 * (z * z + math.log(2 * math.pi)).sum(1) + math.log(2)
        return torch.where(z[:, 0] <= z[:, 1], log_normal, -math.inf)

    def sample(self, like, generator, context=None):
        return torch.randn(like.shape, dtype=like.dtype, generator=generator).sort(1).values


class Poisson(Base):
    """Integers with the probabilities of a Poisson distribution of mean 2."""

    def log_prob(self, z, context=None):
        known = z.clamp(min=0)
        log_mass = known * math.log(2) - 2 - torch.lgamma(known + 1)
        return torch.where(z >= 0, log_mass, -math.inf).sum(1)

    def sample(self, like, generator, context=None):
        return torch.poisson(torch.full_like(like, 2.0), generator=generator)


def grid(low, high, count):
    """Nodes of the midpoint rule, and its weight."""
    step = (high - low) / count
    return torch.arange(count, dtype=torch.float64) * step + low + step / 2, step


@pytest.mark.parametrize(
    ("transform", "base", "ends"),
    [
        (AbsoluteValue(), Exponential(), (-15, 15)),
        (signed(2), Exponential(), (-15, 15)),
        (Sort(), SortedPair(), (-7, 7)),
        (Chain(LU(2), Reshape((2,), (1, 2)), MaxPool((1, 2))), None, (-9, 9)),
        (Round(), Poisson(), (-1, 19)),
    ],
    ids=["sign", "learned sign", "sort", "max pool", "round"],
)
def test_densities_of_the_plane_integrate_to_one(transform, base, ends):
    torch.manual_seed(1)
    for parameter in transform.parameters():
        nn.init.normal_(parameter, std=0.7)
    flow = Flow(transform, (2,), base).double()
    nodes, step = grid(*ends, 1000)
    points = torch.cartesian_prod(nodes, nodes)
    with torch.no_grad():
        mass = (flow.log_prob(points).double().exp().sum() * step**2).item()
    assert mass == pytest.approx(1, abs=2e-4)


@pytest.mark.parametrize(
    ("transform", "base"),
    [
        (signed(2), Exponential()),
        (Sort(), SortedPair()),
        (Chain(LU(2), Reshape((2,), (1, 2)), MaxPool((1, 2))), None),
        (Round(), Poisson()),
    ],
    ids=["learned sign", "sort", "max pool", "round"],
)
def test_samples_have_the_density(transform, base):
    """The mean of ``exp(-log p)`` over samples in a square is the square's area."""
    torch.manual_seed(1)
    for parameter in transform.parameters():
        nn.init.normal_(parameter, std=0.7)
    flow = Flow(transform, (2,), base).double()
    x = flow.draw(100_000, generator=torch.Generator().manual_seed(0), batch=100_000).images
    for low, high in ((torch.tensor([-1.3, -0.4]), 0.8), (torch.tensor([0.1, -1.0]), 1.5)):
        low = low.clamp(min=0) if isinstance(transform, Round) else low
        inside = ((x >= low) & (x < low + high)).all(1)
        weights = torch.zeros(len(x), dtype=torch.float64)
        weights[inside] = (-flow.log_prob(x[inside]).detach().double()).exp()
        error = (weights.mean() - high**2).abs() / (weights.std() * len(x) ** -0.5)
        assert inside.sum() > 300 and error < 4


def test_max_pool_is_its_formula():
    x = normal(3, 2, 4, 4)
    z, log_det = MaxPool((2, 4, 4))(x)
    assert torch.equal(z, nn.functional.max_pool2d(x, 2))
    for image, pooled, got in zip(x.numpy(), z.numpy(), log_det.tolist(), strict=True):
        wanted = 0.0
        for c, i, j in np.ndindex(2, 2, 2):
            cell = image[c, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].flatten()
            wanted -= math.log(4)
            for d in pooled[c, i, j] - np.delete(cell, cell.argmax()):
                wanted += math.log(2) - 0.5 * (d**2 + math.log(2 * math.pi))
        assert got == pytest.approx(wanted, rel=1e-12)


def test_max_pool_draws_places_uniformly_and_half_normal_distances():
    n = 40_000
    z = torch.full((n, 1, 1, 1), 0.7, dtype=torch.float64)
    for noise in (Noise(3, torch.arange(n)), None):
        torch.manual_seed(0)
        x, _ = MaxPool((1, 2, 2)).inverse(z, None, noise)
        cells = x.flatten(1)
        largest = cells.argmax(1)
        assert torch.equal(cells.amax(1), z.flatten())
        shares = torch.bincount(largest, minlength=4) / n
        assert (shares - 0.25).abs().max() < 4 * (0.25 * 0.75 / n) ** 0.5
        distances = 0.7 - cells
        for place in range(4):  # whatever place is the largest, others have one distribution
            others = distances[largest == place]
            others = others[:, [k for k in range(4) if k != place]]
            assert (others > 0).all()
            assert (others.mean(0) - (2 / math.pi) ** 0.5).abs().max() < 4 * 0.61 / 90
            assert (others.square().mean(0) - 1).abs().max() < 4 * 1.5 / 90
            correlation = torch.corrcoef(others.mT) - torch.eye(3)
            assert correlation.abs().max() < 4 / 90


def test_ties_and_zeros_break_nothing():
    x = torch.zeros(2, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    z, log_det = MaxPool((1, 4, 4))(x)
    each = 3 * (math.log(2) - 0.5 * math.log(2 * math.pi)) - math.log(4)
    torch.testing.assert_close(log_det, torch.full((2,), 4 * each, dtype=torch.float64))
    (z.sum() + log_det.sum()).backward()
    assert x.grad.isfinite().all() and x.grad.sum() == pytest.approx(8)
    zero = torch.tensor([[0.0, -0.0]])
    for transform in (AbsoluteValue(), signed(2)):
        y, log_det = transform.inverse(zero)
        assert torch.equal(transform(y)[1], -log_det)
    pair = torch.tensor([[1.0, 1.0, -2.0]])
    assert torch.equal(Sort()(pair)[0], torch.tensor([[-2.0, 1.0, 1.0]]))


def test_logarithms_of_signs_and_orders():
    x = normal(4, 2, 3)
    assert AbsoluteValue()(x)[1].tolist() == pytest.approx([-6 * math.log(2)] * 4)
    assert Sort(1)(x)[1].tolist() == pytest.approx([-2 * math.log(6)] * 4)
    assert Sort(0)(x)[1].tolist() == pytest.approx([-3 * math.log(2)] * 4)
    transform = signed(3).double()
    for parameter in transform.parameters():
        nn.init.normal_(parameter)
    x = x[:, 0]
    positive = torch.sigmoid(transform.net(x.abs()))
    wanted = torch.where(x > 0, positive, 1 - positive).log().sum(1)
    torch.testing.assert_close(transform(x)[1], wanted)


def test_all_orders_are_drawn_equally_often():
    n = 30_000
    z = torch.tensor([[1.0, 2.0, 3.0]]).expand(n, -1)
    x, _ = Sort().inverse(z, None, Noise(0, torch.arange(n)))
    orders, counts = torch.unique(x, dim=0, return_counts=True)
    assert len(orders) == 6
    assert (counts / n - 1 / 6).abs().max() < 4 * (5 / 36 / n) ** 0.5


@pytest.mark.parametrize("z", [0.0, 255.0, -3.0, 65535.0, 2.0**23])
def test_rounding_never_reaches_the_next_integer(z):
    class Last(Noise):
        def uniform(self, like, stream):
            return torch.full_like(like, 1 - 2.0**-24)

    x, _ = Round().inverse(torch.full((1, 1), z), None, Last(0, torch.zeros(1, dtype=torch.int64)))
    assert x.dtype == torch.float32 and x.floor().item() == z


@pytest.mark.parametrize(("make", "shape"), SHAPES)
def test_draws_depend_on_no_other_row(make, shape):
    transform = make().double()
    number_streams(transform)
    assert transform.stream == 3
    z, _ = transform(3 * normal(6, *shape))
    noise = Noise(5, KEYS)
    x, log_det = transform.inverse(z, None, noise)
    part = slice(2, 4)
    alone = transform.inverse(z[part], None, noise[part])
    assert torch.equal(alone[0], x[part]) and torch.equal(alone[1], log_det[part])


def test_existing_flows_keep_their_streams():
    def streams(*steps):
        flow = Flow(Chain(*steps), (1, 4, 4))
        return [m.stream for m in flow.modules() if isinstance(m, Transform) and m.stream]

    before = [Dequantize(), Rescale(1 / 256)]
    assert streams(*before, Augment((1, 4, 4), 1)) == [3, 4]
    assert streams(*before, MaxPool((1, 4, 4)), Chain(AbsoluteValue())) == [3, 4, 5]


def pooled(**settings) -> Flow:
    """Integer images of one channel, of whose latents a quarter of the numbers are left."""
    torch.manual_seed(0)
    mixing = Along(0, LU(4))
    steps = [Rescale(2 / 256, -1.0), Squeeze((1, 8, 8)), mixing, MaxPool((4, 4, 4))]
    flow = Flow(Chain(Dequantize(), *steps), (1, 8, 8), levels=256, **settings)
    nn.init.normal_(mixing.transform.packed, std=0.3)
    return flow.double()


def test_samples_depend_on_the_generator_alone():
    flow = pooled()

    def drawn(seed, **settings):
        generator = torch.Generator().manual_seed(seed)
        torch.manual_seed(settings.pop("other", 0))
        images = flow.draw(7, generator=generator, **settings).images
        return images, generator.get_state()

    images, state = drawn(1)
    for settings in ({"batch": 1}, {"batch": 3}, {"batch": 7, "other": 5}):
        again, left = drawn(1, **settings)
        assert torch.equal(again, images) and torch.equal(left, state)
    assert not torch.equal(drawn(2)[0], images)
    still = drawn(1, temperature=0.0)[0]
    assert not torch.equal(still[0], still[1])  # the latents are the same; the rest is drawn


def test_samples_of_other_flows_draw_what_they_did():
    flow = Flow(Chain(Dequantize(), Rescale(2 / 256, -1.0)), (1, 4, 4), levels=256)
    generator, own = (torch.Generator().manual_seed(3) for _ in range(2))
    images = flow.sample(5, generator=generator)
    z = torch.randn(5, 16, generator=own)
    assert torch.equal(images, flow.decode(z))
    assert torch.equal(generator.get_state(), own.get_state())


def test_images_of_latents_are_a_function_of_them():
    flow = pooled()
    x = torch.randint(256, (5, 1, 8, 8), generator=torch.Generator().manual_seed(0)).byte()
    z = flow.encode(x)
    assert z.shape == (5, 16) and flow.latent_shape == (4, 2, 2)
    images = flow.decode(z)
    torch.manual_seed(9)
    assert torch.equal(flow.decode(z), images)
    assert torch.equal(flow.decode(z[3:4]), images[3:4])
    assert not torch.equal(images, x)
    assert torch.equal(flow.invert(z).x.clamp(0, 255).byte(), images)
    density = flow.continuous()
    real = density.invert(z).x
    assert torch.equal(real.floor(), flow.invert(z).x)
    torch.testing.assert_close(density(real).z, z)


def test_a_pooled_flow_is_exact_and_its_features_shrink():
    flow = pooled()
    assert flow.density == "exact" and not flow.transform.invertible
    x = torch.randint(256, (4, 1, 8, 8), generator=torch.Generator().manual_seed(0)).byte()
    assert [f.shape[1] for f in flow.features_by_layer(x).values()] == [64, 64, 64, 64, 64, 16]
    folded = flow.fused()
    noise = Noise(0, torch.arange(4))
    torch.testing.assert_close(folded.log_prob(x, None, noise), flow.log_prob(x, None, noise))
    state = torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)
    close = (folded.sample(6, generator=state[0]) - flow.sample(6, generator=state[1]).int()).abs()
    assert (close > 0).float().mean() < 0.01


def test_turned_round_a_surjection_bounds_the_density():
    turned = Inverse(Round(), (3,))
    assert turned.density == "bound" and turned.draws and not turned.inverse_draws
    flow = Flow(Chain(turned, LU(3)), (3,)).double()
    x = torch.tensor([[0.0, 2.0, -1.0]], dtype=torch.float64)
    number_streams(flow)
    z, log_det = turned(x, None, Noise(0, torch.zeros(1, dtype=torch.int64)))
    assert torch.equal(z.floor(), x) and not torch.equal(z, x) and log_det.item() == 0
    assert torch.equal(turned.inverse(z)[0], x)
    # the probability of one integer, by many draws and by quadrature
    flow = Flow(Inverse(Round(), (1,)), (1,))
    with torch.no_grad():
        densities = flow.log_prob(torch.ones(20_000, 1), None, Noise(0, torch.arange(20_000))).exp()
    nodes, step = grid(1, 2, 1000)
    mass = (torch.exp(-0.5 * nodes**2) / math.sqrt(2 * math.pi)).sum() * step
    assert densities.mean().item() == pytest.approx(mass.item(), abs=4 * 0.06 / 141)
    weighted = bits(flow, np.ones((2, 1)), importance_samples=64)
    single = bits(flow, np.ones((2, 1)))
    assert weighted.kind.startswith("lower bound") and weighted.bits_per_dim != single.bits_per_dim
    assert weighted.bits_per_dim == pytest.approx(-math.log2(mass), abs=0.1)


def test_random_signs_make_a_symmetric_density_of_magnitudes():
    """``|e|`` with normal e has the density ``2 N(z)``, whatever the signs that are drawn."""
    flow = Flow(Inverse(AbsoluteValue(), (2,)), (2,))
    x = normal(5, 2).abs().float()
    wanted = -0.5 * (x.square() + math.log(2 * math.pi)).sum(1) + 2 * math.log(2)
    torch.testing.assert_close(flow.log_prob(x), wanted)
    assert (flow.sample(50) >= 0).all()


def test_neighbours_that_undo_each_other_fold_in_one_order_only():
    shape = (1, 2, 2)
    surjection = MaxPool(shape)
    there_and_back = Chain(surjection, Inverse(surjection, shape)).fused()
    assert len(there_and_back) == 2
    x = normal(3, *shape).float()
    assert not torch.equal(there_and_back(x)[0], x)


def test_what_else_is_stochastic_cannot_be_turned_round():
    with pytest.raises(ValueError, match="Inverse: a stochastic transform has no inverse density"):
        Inverse(Chain(MaxPool((1, 2, 2)), Augment((1, 1, 1), 1)), (1, 2, 2))
    with pytest.raises(ValueError, match="Inverse: a stochastic transform"):
        Inverse(Inverse(Round(), (2,)), (2,))


def test_slices_among_the_latents_are_slices():
    """`MultiScale` scores what it factors out as slicing off under N(0, I) does."""
    x = normal(3, 4, 2, 2)
    first, second = (Along(0, LU(n)) for n in (4, 1))
    flow = Flow(MultiScale((4, 2, 2), [first, second], kept=[1]), (4, 2, 2)).double()
    h, log_det = first.double()(x)
    z, other = second.double()(h[:, :1])
    sliced = torch.cat([z.flatten(1), h[:, 1:].flatten(1)], 1)
    wanted = -0.5 * (sliced.square() + math.log(2 * math.pi)).sum(1) + log_det + other
    torch.testing.assert_close(flow.log_prob(x), wanted)


def test_what_needs_an_inverse_without_draws_says_so():
    flow = pooled()
    with pytest.raises(ConfigError, match=r"leave a part of an image open.*Flow\.decode"):
        export.decoder(flow)
    y = torch.full((1, 1, 8, 8), 100.0, dtype=torch.float64)
    with pytest.raises(ConfigError, match=r"leave a part of an image open.*space image"):
        restore(flow, y, Noisy(5.0), search=LatentSearch(steps=2))


def test_the_density_of_a_pooled_flow_exports():
    flow = pooled().float()
    program = export.program(export.density(flow)).module()
    x = torch.randint(256, (3, 1, 8, 8), generator=torch.Generator().manual_seed(0)).byte()
    noise = torch.rand(3, 1, 8, 8)
    got = program(images=x, noise=noise)
    torch.testing.assert_close(got, export.density(flow)(x, noise))


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="side 2 does not divide the 3 pixels"):
        MaxPool((1, 4, 3))
    with pytest.raises(ValueError, match="MaxPool: factor must be a whole number from 2; got 1"):
        MaxPool((1, 4, 4), 1)
    with pytest.raises(ValueError, match=r"Sort: no axis 2 in events of shape \(3, 4\)"):
        Sort(2).out_shape((3, 4))
    with pytest.raises(ValueError, match=r"MaxPool: takes events \(1, 2, 2\).*\(1, 4, 4\)"):
        MaxPool((1, 4, 4)).inverse(torch.zeros(1, 1, 4, 4))


def broken(transform, shape=(1, 2, 2)) -> set[str]:
    try:
        graphs = {"compile forward", "compile inverse", "export"}
        check(transform, shape, kind="surjection", laws=LAWS.keys() - graphs)
    except AssertionError as error:
        return {line.split(":")[0] for line in str(error).splitlines()[1:]}
    return set()


class WrongMass(MaxPool):
    def __init__(self, shape):
        super().__init__(shape)
        self._constant += math.log(4 / 3)


class FirstPlace(MaxPool):
    """Largest numbers at place 0 only, stated as uniform."""

    def inverse(self, z, context=None, noise=None):
        x, log_det = super().inverse(z, context, noise)
        members = self.cells(x)[0].unflatten(1, (self.shape[0], self.places))
        members = members.sort(2, descending=True).values
        return self.cells.inverse(members.flatten(1, 2))[0], log_det


class WideDistances(MaxPool):
    """Distances of another scale than stated."""

    def inverse(self, z, context=None, noise=None):
        x, _ = super().inverse(z, context, noise)
        pooled = z.repeat_interleave(2, -1).repeat_interleave(2, -2)
        x = pooled + 1.2 * (x - pooled)
        return x, -self(x)[1]


class WrongSign(MaxPool):
    def inverse(self, z, context=None, noise=None):
        x, log_det = super().inverse(z, context, noise)
        return x, -log_det


class NoisyForward(MaxPool):
    draws = True

    def forward(self, x, context=None, noise=None):
        z, log_det = super().forward(x)
        return z, log_det + (0 if noise is None else 1e-12 * noise.normal(log_det, self.stream))


class Undeclared(MaxPool):
    inverse_draws = False


class SharedNoise(MaxPool):
    """The noise of every row is that of the first."""

    def inverse(self, z, context=None, noise=None):
        keys = torch.zeros(len(z), dtype=torch.int64)
        return super().inverse(z, context, None if noise is None else Noise(noise.seed, keys))


@pytest.mark.parametrize(
    ("fault", "named"),
    [
        (WrongMass, {"mass"}),
        (FirstPlace, {"exchange"}),
        (WideDistances, {"exchange"}),
        (WrongSign, {"opposite log-dets"}),
        (NoisyForward, {"deterministic"}),
        (Undeclared, {"inverse draws"}),
        (SharedNoise, {"exchange"}),
    ],
)
def test_planted_faults_break_the_laws_of_surjections(fault, named):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert named <= broken(fault((1, 2, 2)))
    assert broken(MaxPool((1, 2, 2))) == set()
