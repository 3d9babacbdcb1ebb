"""Squeezed, multi-scale and positional: where numbers go, and what of an event is told apart."""

import math

import pytest
import torch

from mixerflow.core import Along, Chain, Flatten, Flow, Inverse, Tail
from mixerflow.nets import LearnedPositions, ResidualMLP, SinusoidalPositions
from mixerflow.transforms import LU, Affine, Coupling, Patches, Squeeze
from mixerflow.transforms.checks import perturb


def test_squeeze_puts_each_pixel_where_its_docstring_says():
    x = torch.arange(2 * 4 * 6.0).reshape(1, 2, 4, 6)
    z = Squeeze((2, 4, 6))(x)[0]
    assert z.shape == (1, 8, 2, 3)
    for c in range(2):
        for dy in range(2):
            for dx in range(2):
                assert torch.equal(z[:, (c * 2 + dy) * 2 + dx], x[:, c, dy::2, dx::2])


def test_squeeze_agrees_with_pixel_unshuffle():
    x = torch.randn(2, 3, 6, 9)
    z = Squeeze((3, 6, 9), 3)(x)[0]
    assert torch.equal(z, torch.nn.functional.pixel_unshuffle(x, 3))


def test_only_the_same_rearrangement_cancels():
    squeeze, cut = Squeeze((1, 4, 4)), Patches((1, 4, 4), (2, 2))
    back = Inverse(squeeze, (1, 4, 4))
    assert len(list(Chain(Squeeze((1, 4, 4)), back).fused())) == 0
    assert not squeeze.same_as(cut)
    assert not squeeze.same_as(Squeeze((1, 4, 8)))


@pytest.mark.parametrize("make", [lambda: Squeeze((1, 4, 5)), lambda: Squeeze((1, 4, 4), 3)])
def test_sides_that_do_not_divide_are_named(make):
    with pytest.raises(ValueError, match=r"does not divide the [45] pixels .* these do: 1"):
        make()


def test_what_is_factored_out_is_left_as_it_was():
    x = torch.randn(3, 10)
    tail = Tail((2, 3), Along(-1, LU(3)))
    perturb(tail)
    z, log_det = tail(x)
    assert torch.equal(z[:, :4], x[:, :4])
    inner, inner_log_det = tail.transform(x[:, 4:].reshape(3, 2, 3))
    assert torch.equal(z[:, 4:], inner.flatten(1))
    assert torch.equal(log_det, inner_log_det)


def test_a_multi_scale_density_integrates_to_one():
    shape = (1, 2, 2)  # squeezed to 4 channels of a pixel; two of them go on
    net = ResidualMLP(2, 4, width=8)
    chain = Chain(
        Squeeze(shape),
        Along(0, LU(4)),
        Flatten((4, 1, 1)),
        Tail((2,), Coupling(-1, ResidualMLP(1, 2, width=8), Affine(1.0))),
    )
    flow = Flow(Chain(chain, Coupling(-1, net, Affine(0.5), flip=True)), shape).double().eval()
    perturb(flow, size=0.2)
    side = torch.linspace(-9, 9, 41, dtype=torch.float64)
    grid = torch.cartesian_prod(side, side, side, side).reshape(-1, *shape)
    with torch.no_grad():
        mass = sum(flow.log_prob(part).exp().sum() for part in grid.split(200_000))
    assert math.isclose(mass.item() * (18 / 40) ** 4, 1, abs_tol=1e-4)


def test_tails_and_flatten_refuse_other_events():
    with pytest.raises(ValueError, match=r"at least \(6,\); got \(5,\)"):
        Tail((2, 3), Along(-1, LU(3))).out_shape((5,))
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(3, 2\)"):
        Flatten((2, 3)).out_shape((3, 2))


def rows_of(positions, context=0):
    """A flow of rows of 3 that reads where they stand."""
    net = ResidualMLP(2, 2, width=8, context=positions.width + context)
    along = Along(-1, Coupling(-1, net, Affine()), rows=positions)
    perturb(along)
    return along


@pytest.mark.parametrize("kind", [LearnedPositions, SinusoidalPositions])
def test_equal_rows_at_different_places_become_different(kind):
    along = rows_of(kind(4, 6))
    z = along(torch.ones(2, 4, 3))[0]
    assert len(z[0, :, -1].unique()) == 4
    assert torch.equal(z[0], z[1])  # but images do not differ


def test_each_row_sees_its_own_place_and_its_images_context():
    along = rows_of(LearnedPositions(4, 6), context=2)
    x, context = torch.randn(3, 4, 3), torch.randn(3, 2)
    z = along(x, context)[0]
    for image in range(3):
        for row in range(4):
            seen = torch.cat([context[image], along.rows.table[row]])[None]
            alone = along.transform(x[image, row][None], seen)[0]
            torch.testing.assert_close(z[image, row], alone[0])


def test_places_must_be_as_many_as_rows():
    with pytest.raises(ValueError, match="5 rows in an event; got vectors for 4"):
        rows_of(LearnedPositions(4, 6))(torch.ones(1, 5, 3))


def test_sinusoids_are_those_of_the_paper():
    table = SinusoidalPositions(7, 5)()
    assert table.shape == (7, 5)
    for i in range(7):
        for k in range(5):
            angle = i / 10_000 ** (2 * (k // 2) / 5)
            wanted = math.cos(angle) if k % 2 else math.sin(angle)
            assert math.isclose(table[i, k].item(), wanted, abs_tol=1e-6)
    assert not list(SinusoidalPositions(7, 5).state_dict())
