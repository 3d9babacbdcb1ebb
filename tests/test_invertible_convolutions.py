"""Autoregressive and periodic convolutions are the dense matrices that their formulas say."""

import itertools
import json
from dataclasses import replace

import pytest
import torch

from mixerflow import export
from mixerflow.errors import CheckpointError
from mixerflow.models import MixerFlow, flow_from, spec_of
from mixerflow.parts import EmergingMap, GlowConv, MatrixMap, PeriodicMap
from mixerflow.recipes import RECIPES
from mixerflow.transforms import AutoregressiveConvolution, PeriodicConvolution
from mixerflow.transforms.checks import check, perturb

SIDES = [(1, 1), (1, 5), (4, 1), (2, 2), (3, 4), (4, 3), (3, 2)]
"""Odd and even; kernels of 5 and 7 are larger than most of them."""
MAPS = {
    "autoregressive": AutoregressiveConvolution,
    "reversed": lambda *sizes, **options: AutoregressiveConvolution(
        *sizes, reverse=True, **options
    ),
    "periodic": PeriodicConvolution,
}
MODELS = ("emerging", "periodic")


def moved(name, *sizes, size=1.0, **options):
    transform = MAPS[name](*sizes, generator=torch.Generator().manual_seed(0), **options).double()
    perturb(transform, size=size)
    return transform


def close(got, wanted, limit=1e-10):
    torch.testing.assert_close(got, wanted, rtol=limit, atol=limit)


@torch.no_grad()
def dense(transform, shape, direction="forward"):
    """The matrix of the map on images ``(C, H, W)``, as ``(C, H, W, C, H, W)``: output, input."""
    unit = torch.eye(torch.Size(shape).numel()).double().unflatten(1, shape)
    return getattr(transform, direction)(unit)[0].movedim(0, -1).unflatten(-1, shape)


@torch.no_grad()
@pytest.mark.parametrize("kernel", [1, 3, 5, 7])
@pytest.mark.parametrize("name", MAPS)
def test_both_directions_and_the_log_det_are_those_of_a_dense_matrix(name, kernel):
    for sides in SIDES:
        transform, shape = moved(name, 3, kernel), (3, *sides)
        n = torch.Size(shape).numel()
        matrix = dense(transform, shape).reshape(n, n)
        close(dense(transform, shape, "inverse").reshape(n, n), torch.linalg.inv(matrix))
        wanted = torch.linalg.slogdet(matrix)[1].expand(2)
        assert wanted.abs().min() > 1e-3
        x = torch.randn(2, *shape, dtype=torch.float64)
        close(transform(x)[1], wanted)
        close(transform.inverse(x)[1], -wanted)


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("sides", [(3, 4), (1, 4), (2, 1)])
def test_a_periodic_convolution_adds_the_taps_that_meet(kernel, sides):
    transform, (height, width) = moved("periodic", 2, kernel), sides
    wanted, reach = torch.zeros(2, *sides, 2, *sides).double(), kernel // 2
    for y, x, a, b in itertools.product(*map(range, (height, width, kernel, kernel))):
        read = (y + a - reach) % height, (x + b - reach) % width
        wanted[:, y, x, :, read[0], read[1]] += transform.weight.detach()[:, :, a, b]
    close(dense(transform, (2, *sides)), wanted)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_each_number_reads_exactly_its_corner(kernel, reverse):
    shape, reach = (3, 4, 3), kernel // 2
    name = "reversed" if reverse else "autoregressive"
    matrix = dense(moved(name, 3, kernel), shape)
    for place in itertools.product(*map(range, shape), *map(range, shape)):
        o, y, x, i, v, u = place
        back = -1 if reverse else 1
        a, b, c = back * (v - y), back * (u - x), back * (i - o)
        read = 0 <= a <= reach and 0 <= b <= reach and (a + b > 0 or c <= 0)
        assert (matrix[place] != 0) == read, place


class CountedOnce(PeriodicConvolution):
    """Forgets that the half of the frequencies stands for all."""

    def _log_det(self, sides):
        return torch.linalg.slogdet(self._frequencies(sides))[1].sum()


class CountedTwice(PeriodicConvolution):
    """Counts the middle column of an even side twice."""

    def _log_det(self, sides):
        logs = torch.linalg.slogdet(self._frequencies(sides))[1]
        return logs.sum() + logs[..., 1:].sum()


class NotTurned(PeriodicConvolution):
    """Convolves one way and solves for the other."""

    def _frequencies(self, sides):
        return super()._frequencies(sides).conj()


class NotReversed(AutoregressiveConvolution):
    """Goes back as if the pattern were not reversed."""

    def _solve(self, y):
        reverse, self.reverse = self.reverse, False
        try:
            return super()._solve(y)
        finally:
            self.reverse = reverse


@pytest.mark.parametrize(
    ("transform", "sides", "broken"),
    [
        (CountedOnce(2), (2, 3), "forward log-det"),
        (CountedTwice(2), (2, 4), "forward log-det"),
        (NotTurned(2), (3, 3), "left inverse"),
        (NotReversed(2, reverse=True), (3, 3), "left inverse"),
    ],
)
def test_planted_faults_break_the_law_that_should_see_them(transform, sides, broken):
    with pytest.raises(AssertionError, match=f"^1 laws broken\n{broken}"):
        check(transform, (2, *sides), laws={broken})


@torch.no_grad()
def test_a_diagonal_may_be_negative_but_not_zero():
    transform = AutoregressiveConvolution(2).double()
    diagonal = transform.weight[..., 1, 1].diagonal()
    diagonal.copy_(torch.tensor([-2.0, 0.5]))
    x = torch.randn(3, 2, 4, 4).double()
    z, log_det = transform(x)
    close(log_det, torch.zeros(3).double())
    close(transform.inverse(z)[0], x)
    diagonal[0] = 0
    assert (transform(x)[1] == -torch.inf).all()
    assert not transform.inverse(z)[0].isfinite().all()


@torch.no_grad()
def test_a_singular_periodic_convolution_has_no_density_and_no_inverse():
    transform, x = PeriodicConvolution(1, 3, axes=1), torch.ones(2, 1, 4)
    transform.weight.copy_(torch.tensor([[[1.0, 0.0, -1.0]]]))  # forgets the mean
    assert (transform(x)[1] == -torch.inf).all()
    with pytest.raises(torch.linalg.LinAlgError):
        transform.inverse(x)


@torch.no_grad()
def test_starts():
    emerging, periodic = AutoregressiveConvolution(24), PeriodicConvolution(24)
    for transform, centre in (
        (emerging, torch.eye(24)),
        (periodic, torch.linalg.qr(periodic.weight[..., 1, 1])[0]),
    ):
        values = transform.weight.clone()
        assert (values[..., 1, 1].abs() - centre.abs()).abs().max() < 0.15
        values[..., 1, 1] = values[..., 0, 0]
        assert values.std() == pytest.approx(0.02, rel=0.05)
        assert values.mean().abs() < 0.002


def count(model):
    with torch.device("meta"):
        return sum(p.numel() for p in model.build((3, 32, 32)).parameters())


def test_counts():
    """Of Table 1, which prints 11.43M and 11.21M, and of a step of the published code."""
    emerging, periodic = (RECIPES[f"{name}-cifar10"].model for name in MODELS)
    assert (count(emerging), count(periodic)) == (11_429_172, 11_211_444)
    published = [
        (EmergingMap(first=MatrixMap()).on_image((5, 4, 4)), 19 * 25 + 5),
        (PeriodicMap(bias=True).on_image((5, 4, 4), bias=False), 9 * 25 + 5),
    ]
    for transforms, wanted in published:
        assert sum(p.numel() for each in transforms for p in each.parameters()) == wanted


@pytest.mark.parametrize("name", MODELS)
def test_a_deep_model_runs_and_images_come_back_in_float32(name):
    torch.manual_seed(0)
    recipe = RECIPES[f"{name}-cifar10"]
    flow = replace(recipe.model, net=GlowConv(8)).build(recipe.shape)
    x = torch.randint(0, 256, (2, *recipe.shape), dtype=torch.uint8)
    flow.initialize(x)
    perturb(flow, size=0.1)
    flow(x).log_prob.sum().backward()
    for key, parameter in flow.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), key
    assert torch.equal(flow.decode(flow.encode(x)), x)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AutoregressiveConvolution(3, 2), "Autoreg.*odd kernel; got 2 axes, kernel 2"),
        (lambda: PeriodicConvolution(3, -1), "Periodic.*odd kernel; got 2 axes, kernel -1"),
        (lambda: PeriodicConvolution(3, axes=4), "1 to 3 spatial axes.*got 4 axes"),
        (lambda: PeriodicConvolution(3).out_shape((4, 2, 2)), r"\(3, 2, 2\).*\(4, 2, 2\)"),
        (lambda: PeriodicConvolution(3).out_shape((3, 4)), r"\(3, 3, 4\).*\(3, 4\)"),
        (lambda: EmergingMap(kernel=0), "kernel must be at least 1; got 0"),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_the_exported_decoder_takes_any_batch(name):
    model = replace(RECIPES[f"{name}-cifar10"].model, scales=2, steps=1, net=GlowConv(4))
    flow = model.build((3, 8, 8)).double().eval()
    perturb(flow, size=0.1)
    program = export.program(export.decoder(flow)).module()
    for batch in (1, 2, 7):
        z = torch.randn(batch, 192, dtype=torch.float64)
        assert torch.equal(program(z=z), flow.decode(z))


def test_they_are_no_maps_of_vectors():
    spec = json.loads(json.dumps(spec_of(MixerFlow(), (3, 32, 32))))
    for kind in ("EmergingMap", "PeriodicMap"):
        with pytest.raises(CheckpointError, match=f"linear cannot be a {kind}"):
            flow_from(spec | {"linear": {"type": kind}})
