"""Cheap linear maps are the dense matrices that their formulas say, and train in a model."""

import math

import numpy as np
import pytest
import torch

import mixerflow
from mixerflow.errors import ConfigError
from mixerflow.recipes import build
from mixerflow.training import TrainConfig
from mixerflow.training.idle import trained_entries
from mixerflow.transforms import Butterfly, Woodbury
from mixerflow.transforms.checks import perturb
from mixers import mixer

MAPS = {
    "Woodbury": lambda n: Woodbury(n, min(n, 16)),
    "Butterfly": lambda n: Butterfly(n),
}


def moved(transform, size=1.0):
    transform = transform.double()
    perturb(transform, size=size)
    return transform


def close(got, wanted):
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)


def dense(transform, n, direction="forward"):
    """The matrix A of ``A x + b``, found by applying the map to the unit vectors."""
    rows = torch.cat([torch.eye(n), torch.zeros(1, n)]).double()
    values = getattr(transform, direction)(rows)[0]
    return (values[:-1] - values[-1]).mT


@torch.no_grad()
@pytest.mark.parametrize("n", [2, 3, 8, 13, 48, 64, 100])
@pytest.mark.parametrize("name", MAPS)
def test_both_directions_are_a_dense_matrix_and_its_inverse(name, n):
    transform = moved(MAPS[name](n))
    matrix = dense(transform, n)
    close(dense(transform, n, "inverse"), torch.linalg.inv(matrix))
    wanted = torch.linalg.slogdet(matrix)[1]
    assert abs(wanted) > 1e-3
    x = torch.randn(2, n, dtype=torch.float64)
    close(transform(x)[1], wanted.expand(2))
    close(transform.inverse(x)[1], -wanted.expand(2))


@torch.no_grad()
def test_woodbury_is_the_identity_plus_a_product():
    transform = moved(Woodbury(6, 2))
    close(dense(transform, 6), torch.eye(6).double() + transform.left @ transform.right)


@torch.no_grad()
@pytest.mark.parametrize(("n", "levels"), [(2, 1), (8, 3), (8, 2), (13, 3), (64, 6), (100, 5)])
def test_a_butterfly_mixes_pairs_at_halving_distances(n, levels):
    transform = moved(Butterfly(n, levels, bias=False))
    p = 2 ** int(math.log2(n))
    wanted = x = torch.randn(3, n, dtype=torch.float64)
    for window, start in enumerate([0] if n == p else [0, n - p]):
        for level in range(levels):
            wanted, distance = wanted.clone(), p // 2 ** (level + 1)
            lower = [i for i in range(p) if i // distance % 2 == 0]
            for number, i in enumerate(lower):
                block = transform.blocks()[window, level, :, :, number]
                pair = [start + i, start + i + distance]
                wanted[:, pair] = wanted[:, pair] @ block.mT
    close(transform(x)[0], wanted)


@torch.no_grad()
def test_after_all_levels_each_output_of_a_butterfly_depends_on_each_input():
    assert (dense(moved(Butterfly(32)), 32) != 0).all()
    assert (dense(moved(Butterfly(32, 2)), 32) != 0).sum() == 32 * 4


@torch.no_grad()
def test_a_butterfly_reaches_a_quarter_turn():
    transform = Butterfly(2).double()
    transform.angle.fill_(math.pi / 2)
    close(dense(transform, 2), torch.tensor([[0.0, -1.0], [1.0, 0.0]]).double())


@torch.no_grad()
def test_woodbury_may_reverse_the_orientation_but_not_be_singular():
    transform = Woodbury(3, 1).double()
    transform.right.copy_(torch.tensor([[1.0, 0.0, 0.0]]))
    x = torch.randn(4, 3, dtype=torch.float64)
    transform.left.copy_(torch.tensor([[-3.0], [0.0], [1.0]]))  # the determinant is 1 - 3
    close(transform(x)[1], torch.tensor(math.log(2), dtype=torch.float64).expand(4))
    close(transform.inverse(transform(x)[0])[0], x)
    transform.left.copy_(torch.tensor([[-1.0], [0.0], [1.0]]))
    assert (transform(x)[1] == -torch.inf).all()
    with pytest.raises(torch.linalg.LinAlgError):
        transform.inverse(x)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Woodbury(9, 0), r"rank must be at least 1; got 0"),
        (lambda: Butterfly(1), r"at least 2 entries to mix; got 1"),
        (lambda: Butterfly(12, 4), r"levels must be 1 to 3 for length 12; got 4"),
        (lambda: Butterfly(12, 3, whole=True), r"levels must be 1 to 2 for length 12; got 3"),
        (lambda: Butterfly(9, whole=True), r"whole of an odd length; got 9"),
        (lambda: Butterfly(12, 0), r"levels must be 1 to 3 for length 12; got 0"),
        (lambda: build(mixer(rank=0), (3, 32, 32)), r"rank must be at least 1; got 0"),
        (
            lambda: build(mixer(patch_linear="RLU", flow_layers=3), (3, 32, 32)),
            r"odd number of order reversals",
        ),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises((ValueError, ConfigError), match=message):
        make()


@pytest.mark.parametrize(
    "settings",
    [
        {"linear": "Woodbury"},
        {"linear": "Butterfly"},
        {"patch_linear": "Woodbury", "rank": 3},
        {"patch_linear": "Butterfly"},
        {"patch_linear": "none"},
        {"linear": "Butterfly", "patch": 1, "shift": 0, "colour": False},
    ],
)
def test_a_mixerflow_of_them_starts_as_the_identity_trains_and_comes_back(settings):
    shape = (1, 8, 12)
    small = {"layers": 2, "shift_every": 2, "flow_layers": 2, "patch": 4, "hidden": 8, **settings}
    flow = mixerflow.build(mixer(**small), shape)
    images = np.random.default_rng(0).integers(0, 256, (64, *shape), dtype=np.uint8)
    x = torch.from_numpy(images[:4])
    assert torch.equal(flow.encode(x), ((x + 0.5) / 128 - 1).flatten(1))
    before = {name: p.clone() for name, p in flow.named_parameters()}
    config = TrainConfig(batch=16, lr=1e-2, ema=0.0, initial=16)
    mixerflow.train(flow, images, config=config, steps=4, quiet=True)
    still = {name for name, p in flow.named_parameters() if torch.equal(p, before[name])}
    assert still == {name for name, trained in trained_entries(flow).items() if not trained.any()}
    assert torch.equal(flow.decode(flow.encode(x)), x)
