"""Low-rank maps and butterflies of images: their matrices, log-dets, counts and permutations."""

import functools
import itertools
import math
from dataclasses import replace

import pytest
import torch

import mixerflow
from mixerflow.core import Chain
from mixerflow.models import WoodburyGlow
from mixerflow.parts import ButterflyImage, GlowConv, LUMap, NoMap, WoodburyPlanes
from mixerflow.recipes import recipe
from mixerflow.transforms import Butterfly
from mixerflow.transforms.checks import perturb

SHAPES = [(3, 4, 4), (2, 3, 5), (4, 7), (3, 5, 7), (2, 2, 3, 2)]
PARTS = {
    "memory-efficient Woodbury": WoodburyPlanes(2, 2),
    "Woodbury, all pixels": WoodburyPlanes(4, 6, memory_efficient=False),
    "butterfly": ButterflyImage(channels=LUMap()),
    "butterflies, rotated": ButterflyImage(stacks=3, levels=1, rotated=True, channels=NoMap()),
}


def moved(transform, size=0.6):
    transform = transform.double()
    perturb(transform, size=size)
    return transform


def maps(part, shape, size=0.6):
    return moved(Chain(*part.on_image(shape, bias=False)), size)


def matrix(transform, shape):
    """The matrix of a linear transform of events, by autograd."""
    x = torch.zeros(shape, dtype=torch.float64)
    found = torch.autograd.functional.jacobian(lambda t: transform(t[None])[0][0], x)
    return found.reshape(x.numel(), x.numel())


def close(got, wanted, tolerance=1e-10):
    torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", PARTS)
def test_log_det_is_the_jacobians_and_the_inverse_is_exact(name, shape):
    transform = maps(PARTS[name], shape)
    wanted = torch.linalg.slogdet(matrix(transform, shape))[1]
    assert abs(wanted) > 0.01
    x = torch.randn(3, *shape, dtype=torch.float64)
    z, log_det = transform(x)
    close(log_det, wanted.expand(3))
    back, log_det = transform.inverse(z)
    close(log_det, -wanted.expand(3))
    close(back, x)


@torch.no_grad()
@pytest.mark.parametrize("shape", SHAPES)
def test_woodbury_maps_are_kronecker_products_in_any_order(shape):
    def dense(along):
        map = along.transform
        return torch.eye(map.n).double() + map.left @ map.right

    small = maps(WoodburyPlanes(2, 8), shape)
    channels, *others = map(dense, small.steps)
    close(matrix(small, shape), functools.reduce(torch.kron, [channels, *others[::-1]]))
    x = torch.randn(2, *shape, dtype=torch.float64)
    for z, log_det in (Chain(*order)(x) for order in itertools.permutations(small.steps)):
        close(z, small(x)[0])
        close(log_det, small(x)[1])
    full = maps(WoodburyPlanes(5, 4, memory_efficient=False), shape)
    channels, pixels = (dense(full.steps[i]) for i in (0, 2))
    close(matrix(full, shape), torch.kron(channels, pixels))


@torch.no_grad()
def test_woodbury_maps_and_butterflies_start_as_the_identity_or_as_a_rotation():
    x = torch.randn(2, 3, 4, 4)
    for part in (WoodburyPlanes(), ButterflyImage(stacks=2, channels=NoMap())):
        z, log_det = Chain(*part.on_image((3, 4, 4), bias=False))(x)
        assert torch.equal(z, x)
        assert not log_det.any()
    part = ButterflyImage(stacks=10, rotated=True, channels=NoMap())
    turned = Chain(*part.on_image((3, 4, 4))).double()
    found = matrix(turned, (3, 4, 4))
    close(found @ found.mT, torch.eye(48).double())
    assert not turned(x.double())[1].any()
    assert found.abs().max() < 0.999


@torch.no_grad()
def test_a_butterfly_of_an_image_pairs_channels_first_and_neighbours_last():
    def read(levels, out):
        part = ButterflyImage(levels=levels, channels=NoMap())
        return matrix(maps(part, (4, 2, 2)), (4, 2, 2))[out].nonzero().flatten().tolist()

    assert read(1, 5) == [5, 13]  # the same pixel, half of the channels away
    assert read(2, 5) == [1, 5, 9, 13]
    assert read(3, 5) == [1, 3, 5, 7, 9, 11, 13, 15]
    assert len(read(None, 5)) == 16
    part = ButterflyImage(channels=NoMap())
    assert (matrix(maps(part, (3, 2, 2)), (3, 2, 2))[0] != 0).sum() == 4  # 12 has two factors 2
    assert (matrix(maps(part, (3, 5, 1)), (3, 5, 1)) != 0).sum() > 8 * 15  # overlapping ones of 8


@torch.no_grad()
@pytest.mark.parametrize(("n", "levels"), [(12, 2), (24, 3), (6, 1), (80, 4), (96, 5)])
def test_a_whole_butterfly_mixes_pairs_at_halving_distances(n, levels):
    transform = moved(Butterfly(n, bias=False, whole=True))
    assert transform.levels == levels
    wanted = x = torch.randn(3, n, dtype=torch.float64)
    for level in range(levels):
        distance, wanted = n // 2 ** (level + 1), wanted.clone()
        for number, i in enumerate(i for i in range(n) if i // distance % 2 == 0):
            pair = [i, i + distance]
            wanted[:, pair] = wanted[:, pair] @ transform.blocks()[0, level, :, :, number].mT
    transform.grouped = 3
    close(transform(x)[0], wanted)
    transform.grouped = 1
    close(transform(x)[0], wanted)
    close(transform.inverse(wanted)[0], x)


EXCHANGES = {2: [(0, 2), (1, 3), (0, 1), (2, 3)]}
EXCHANGES[3] = [(i, i + d) for d in (4, 2, 1) for i in range(8) if i // d % 2 == 0]


@functools.cache
def reached(levels):
    """Permutations that one butterfly may be, each with the exchanges that make it."""
    made = {tuple(range(2**levels)): ()}
    for number, (i, j) in enumerate(EXCHANGES[levels]):
        for order, used in list(made.items()):
            other = list(order)
            other[i], other[j] = order[j], order[i]
            made[tuple(other)] = (*used, number)
    return made


def butterfly_of(levels, exchanges):
    """A butterfly whose blocks are quarter turns where it exchanges, and else the identity."""
    made = Butterfly(2**levels, bias=False).double()
    made.angle.data.view(-1)[list(exchanges)] = math.pi / 2
    return made


def test_one_butterfly_is_few_permutations():
    assert len(reached(2)) == 2**4 < math.factorial(4)
    assert len(reached(3)) == 2**12 < math.factorial(8)
    bit_reversal = (0, 4, 2, 6, 1, 5, 3, 7)
    assert bit_reversal not in reached(3)


@torch.no_grad()
def test_two_butterflies_are_every_permutation_of_four_or_eight_up_to_signs():
    generator = torch.Generator().manual_seed(0)
    some = [tuple(torch.randperm(8, generator=generator).tolist()) for _ in range(20)]
    for wanted in [*itertools.permutations(range(4)), (0, 4, 2, 6, 1, 5, 3, 7), *some]:
        levels = len(wanted).bit_length() - 1
        made = reached(levels)
        for first in made:  # wanted[i] = first[second[i]]
            second = tuple(first.index(each) for each in wanted)
            if second in made:
                break
        else:
            raise AssertionError(f"{wanted} is not reached")
        both = Chain(butterfly_of(levels, made[first]), butterfly_of(levels, made[second]))
        turned = matrix(both, (2**levels,)).abs()
        close(turned, torch.eye(2**levels).double()[list(wanted)])


SMALL_RANKS = {"channel_ranks": (8, 8, 16), "spatial_ranks": (16, 8, 8)}
FULL = WoodburyPlanes(memory_efficient=False)


@pytest.mark.parametrize(
    ("model", "count"),
    [
        (recipe("woodbury-cifar10").model, 11_021_876),
        (WoodburyGlow(steps=8), 11_029_556),
        (WoodburyGlow(steps=8, linear=FULL), 11_101_236),
        (WoodburyGlow(steps=8, linear=FULL, **SMALL_RANKS), 11_086_388),
    ],
)
def test_woodbury_glows_have_the_published_counts(model, count):
    with torch.device("meta"):
        flow = model.build((3, 32, 32))
    assert sum(p.numel() for p in flow.parameters()) == count


def test_ranks_are_those_of_each_scale_and_the_last_goes_on():
    linear = FULL
    model = WoodburyGlow(linear=linear, channel_ranks=(1, 2), spatial_ranks=(3,))
    got = [model.linear_at(scale) for scale in range(3)]
    assert got == [WoodburyPlanes(c, 3, memory_efficient=False) for c in (1, 2, 2)]
    assert WoodburyGlow(linear=linear).linear_at(1) == linear


@pytest.mark.parametrize(
    "changes",
    [
        ("woodbury-cifar10", {}),
        ("woodbury-cifar10", {"linear": FULL}),
        ("butterfly-cifar10", {}),
        ("butterfly-cifar10", {"linear": ButterflyImage(stacks=10, rotated=True)}),
    ],
)
def test_a_narrow_model_of_a_recipes_depth_runs_both_ways(changes):
    name, settings = changes
    full = recipe(name).model
    model = replace(full, steps=2, net=GlowConv(4), **settings)
    flow = mixerflow.build(model, (3, 16, 8))
    x = torch.randint(0, 256, (4, 3, 16, 8), dtype=torch.uint8)
    flow.initialize(x)
    flow(x).log_prob.sum().backward()
    for key, parameter in flow.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), key
    assert torch.equal(flow.decode(flow.encode(x)), x)
