"""Squeezed, multi-scale and positional: where numbers go, and what of an event is told apart."""

import functools
import math

import pytest
import torch

from mixerflow.core import (
    Along,
    Chain,
    Composite,
    Flow,
    Inverse,
    Layer,
    MultiScale,
    Noise,
    Window,
)
from mixerflow.core.memory import through
from mixerflow.nets import (
    LearnedPositionalEncoding,
    ResidualConvNet,
    ResidualMLP,
    SinusoidalPositionalEncoding,
)
from mixerflow.recipes import build
from mixerflow.train_config import TrainConfig
from mixerflow.training.optimizer import parameter_groups
from mixerflow.transforms import (
    LU,
    ActNorm,
    Affine,
    Coupling,
    Dequantize,
    Patchify,
    Rescale,
    Squeeze,
    halves,
)
from mixerflow.transforms.checks import perturb
from mixers import maf, mixer


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
    squeeze, cut = Squeeze((1, 4, 4)), Patchify((1, 4, 4), (2, 2))
    back = Inverse(squeeze, (1, 4, 4))
    assert len(list(Chain(Squeeze((1, 4, 4)), back).fused())) == 0
    assert not squeeze.same_as(cut)
    assert not squeeze.same_as(Squeeze((1, 4, 8)))


@pytest.mark.parametrize("make", [lambda: Squeeze((1, 4, 5)), lambda: Squeeze((1, 4, 4), 3)])
def test_sides_that_do_not_divide_are_named(make):
    with pytest.raises(ValueError, match=r"does not divide the [45] pixels .* these do: 1"):
        make()


def steps(shape, *, context=0):
    """Squeezes, then two layers and a coupling that leaves what goes on as it is."""
    squeeze = Squeeze(shape)
    n, axes = squeeze.latent_shape[0], len(shape) - 1
    layers = [
        Layer(ActNorm((n, *(1,) * axes)), Along(0, LU(n)), image_coupling(n, axes, flip, context))
        for flip in (False, True)
    ]
    return Chain(squeeze, *layers, image_coupling(n, axes, True, context))


def image_coupling(n, axes, flip, context):
    given, changed = halves(n, flip=flip)
    net = ResidualConvNet(given, 2 * changed, width=4, axes=axes, context=context)
    return Coupling(0, net, Affine(2.0), flip=flip)


def multi_scale(*, context=0, **settings):
    """Three scales: 8 channels of 4 x 2 pixels, of which 3 go on, as 12, of which 5 do."""
    layers = [steps((2, 8, 4), context=context), steps((3, 4, 2), context=context), Rescale(2.0)]
    transform = MultiScale((2, 8, 4), layers, kept=(3, 5), **settings).double().eval()
    perturb(transform)
    return transform


@pytest.mark.parametrize("keep", ["first", "last"])
def test_each_scale_leaves_its_share_behind_and_the_latent_has_them_in_order(keep):
    transform = multi_scale(keep=keep)
    x = torch.randn(3, 2, 8, 4).double()
    first, second, third = transform.scales
    h1, det1 = first(x)
    on1, done1 = (h1[:, :3], h1[:, 3:]) if keep == "first" else (h1[:, 5:], h1[:, :5])
    h2, det2 = second(on1)
    on2, done2 = (h2[:, :5], h2[:, 5:]) if keep == "first" else (h2[:, 7:], h2[:, :7])
    h3, det3 = third(on2)
    z, log_det = transform(x)
    assert torch.equal(z, torch.cat([done1.flatten(1), done2.flatten(1), h3.flatten(1)], 1))
    assert torch.equal(log_det, det1 + det2 + det3)
    assert transform.out_shape((2, 8, 4)) == z.shape[1:] == (64,)


@pytest.mark.parametrize("keep", ["first", "last"])
def test_log_dets_are_those_of_the_whole_jacobian_in_both_directions(keep):
    transform = multi_scale(context=2, keep=keep)
    x, context = torch.randn(1, 2, 8, 4).double(), torch.randn(1, 2).double()
    for name, given in (("forward", x), ("inverse", transform(x, context)[0])):
        function = functools.partial(getattr(transform, name), context=context)
        jacobian = torch.func.jacrev(lambda v, function=function: function(v)[0])(given)
        wanted = torch.linalg.slogdet(jacobian.reshape(64, 64))[1]
        log_det = function(given)[1]
        assert log_det.abs() > 0.1
        torch.testing.assert_close(log_det[0], wanted, rtol=1e-8, atol=1e-8)


def test_half_goes_on_unless_it_is_said():
    transform = MultiScale((5, 2), [Along(0, LU(5)), Along(0, LU(2)), Rescale(3.0)])
    assert transform.kept == [2, 1, 0]
    assert [placed.taken for placed in transform.layer_shapes((5, 2))] == [(5, 2), (2, 2), (1, 2)]
    assert math.isclose(transform(torch.randn(1, 5, 2))[1].item(), 2 * math.log(3), rel_tol=1e-6)


class Told(Rescale):
    """Remembers what it was given besides."""

    def forward(self, x, context=None, noise=None):
        self.there = context, noise
        return super().forward(x, context, noise)

    def inverse(self, z, context=None, noise=None):
        self.back = context, noise
        return super().inverse(z, context, noise)


class Vague(Rescale):
    """Something less than exact."""

    density, invertible = "bound", False


def test_scales_are_told_context_and_noise_in_both_directions():
    scales = [Told(2.0), Chain(Told(2.0))]
    transform = MultiScale((2, 3), scales)
    context, noise = torch.randn(4, 1), Noise(0, torch.arange(4))
    transform.inverse(transform(torch.randn(4, 2, 3), context, noise)[0], context, noise)
    for told in (scales[0], scales[1].steps[0]):
        assert told.there == told.back == (context, noise)


def test_it_is_as_exact_and_invertible_as_its_weakest_scale():
    exact = MultiScale((2, 3), [Rescale(2.0), Rescale(2.0)])
    vague = MultiScale((2, 3), [Rescale(2.0), Chain(Vague(2.0))])
    assert (exact.density, exact.invertible) == ("exact", True)
    assert (vague.density, vague.invertible) == ("bound", False)


def test_initialisation_goes_through_all_scales():
    transform = MultiScale((4, 6), [ActNorm((4, 1)), ActNorm((2, 1))], keep="last")
    x = torch.randn(50, 4, 6) * torch.tensor([9.0, 8.0, 7.0, 6.0])[:, None] + 3
    z = transform.initialize(x)
    assert torch.equal(z, transform(x)[0])
    for channel in z.unflatten(1, (4, 6)).unbind(1):
        assert abs(channel.mean()) < 1e-4 and abs(channel.std() - 1) < 1e-2


def test_a_multi_scale_density_integrates_to_one():
    shape = (1, 2, 2)  # squeezed to 4 channels of a pixel; two of them go on
    net, other = ResidualMLP(2, 4, width=8), ResidualMLP(1, 2, width=8)
    scales = [
        Chain(Squeeze(shape), Along(0, LU(4)), Along(0, Coupling(-1, net, Affine(0.5)))),
        Along(0, Coupling(-1, other, Affine(1.0), flip=True)),
    ]
    flow = Flow(MultiScale(shape, scales), shape).double().eval()
    perturb(flow, size=0.2)
    side = torch.linspace(-9, 9, 41, dtype=torch.float64)
    grid = torch.cartesian_prod(side, side, side, side).reshape(-1, *shape)
    with torch.no_grad():
        mass = sum(flow.log_prob(part).exp().sum() for part in grid.split(200_000))
    assert math.isclose(mass.item() * (18 / 40) ** 4, 1, abs_tol=1e-4)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: MultiScale((2, 3), []), r"0 scales of events \(2, 3\)"),
        (lambda: MultiScale((2, 3), [Rescale(2.0)] * 2, kept=(1, 1)), r"2 scales.*kept=\(1, 1\)"),
        (lambda: MultiScale((1, 3), [Rescale(2.0)] * 2), r"scale 1 0 channels.*\(1, 3\)"),
        (
            lambda: MultiScale((1, 4, 4), [Squeeze((1, 4, 4)), Rescale(2.0)], kept=[4]),
            r"scale 1 4 channels.*\(4, 2, 2\)",
        ),
        (lambda: MultiScale((3, 4), [Along(0, LU(3)), Along(0, LU(2))]), r"\(2,\).*\(1,\)"),
        (lambda: MultiScale((3, 4), [Along(0, LU(3))]).out_shape((4, 3)), r"\(3, 4\).*\(4, 3\)"),
        (lambda: multi_scale()(torch.ones(1, 2, 4, 8)), r"\(2, 8, 4\).*\(2, 4, 8\)"),
        (lambda: multi_scale().inverse(torch.ones(1, 63)), r"\(64,\).*\(63,\)"),
    ],
)
def test_what_does_not_fit_is_named(make, named):
    with pytest.raises(ValueError, match=named):
        make()


def nested():
    """A flow with chains in chains, scales in scales, a composite of a user's, and layers."""
    shape = (4, 4, 4)
    inner = MultiScale((2, 4, 4), [Along(0, LU(2)), Layer(Rescale(2.0), ActNorm((1, 1, 1)))])
    window = Window((1,), (2,), Chain(Along(-1, LU(2)), Along(-1, LU(2))))
    scales = [Chain(Chain(window, Chain()), Twice(Along(0, LU(4)))), inner]
    return Flow(Chain(Dequantize(), Chain(Rescale(0.1)), MultiScale(shape, scales)), shape)


class Twice(Composite):
    """A transform, twice."""

    def __init__(self, transform):
        super().__init__()
        self.transform = transform

    def parts(self):
        return [self.transform]

    def compose(self, run, x, context=None, noise=None):
        z, once = run(self.transform, x, context, noise)
        z, again = run(self.transform, z, context, noise)
        return z, once + again

    def inverse(self, z, context=None, noise=None):
        z, once = self.transform.inverse(z, context, noise)
        x, again = self.transform.inverse(z, context, noise)
        return x, once + again

    def layer_shapes(self, shape):
        return self.transform.layer_shapes(shape)


def test_layers_are_found_through_chains_scales_and_whatever_declares_them():
    flow = nested()
    _, (rescale,), scales = flow.transform
    (window, _), twice = scales.scales[0]
    channels, last = scales.scales[1].scales
    wanted = [flow.transform.steps[0], rescale, window, twice.transform, channels, last]
    assert flow.layers() == wanted
    shapes = [(taken, given) for _, taken, given in flow.layer_shapes()]
    ends = [(2, 4, 4), (1, 4, 4)]
    assert shapes == [((4, 4, 4), (4, 4, 4))] * 4 + [(shape, shape) for shape in ends]
    alone = Layer(LU(3), ActNorm(3))
    assert Flow(alone, (3,)).layers() == [alone] and Flow(Chain(), (3,)).layers() == []


def test_a_walk_comes_by_the_layers_in_their_order_and_gives_what_forward_gives():
    flow = nested()
    perturb(flow)
    seen = []

    def run(layer, x, context, noise):
        seen.append(layer)
        return layer(x, context, noise)

    x, noise = torch.randint(0, 256, (3, 4, 4, 4)), Noise(0, torch.arange(3))
    walked = flow.transform.walk(run, x, None, noise)
    assert all(map(torch.equal, walked, flow.transform(x, None, noise)))
    layers = flow.layers()
    assert seen == [*layers[:4], *layers[3:]]  # the composite runs its layer twice


@pytest.mark.parametrize("memory", ["checkpoint", "invert"])
def test_memory_modes_see_layers_wherever_they_are(memory):
    flow = nested().double()
    perturb(flow)
    x, noise = torch.randint(0, 256, (3, 4, 4, 4)), Noise(0, torch.arange(3))
    found = []
    for flow.memory in ("store", memory):
        loss = flow(x, noise=noise).log_prob.mean()
        found.append([loss, *torch.autograd.grad(loss, list(flow.parameters()))])
    assert torch.equal(found[0][0], found[1][0])
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)


class Careless(Twice):
    """Writes into what a layer gave."""

    def compose(self, run, x, context=None, noise=None):
        z, once = run(self.transform, x, context, noise)
        z, again = run(self.transform, z, context, noise)
        z, last = run(self.transform, z.add_(1.0), context, noise)
        return z, once + again + last


def test_what_would_be_rebuilt_wrong_is_an_error():
    z, log_det = through(Careless(ActNorm(3)), torch.randn(5, 3), memory="invert")
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        (z.sum() + log_det.sum()).backward()


def test_layers_without_scales_are_the_steps_of_the_outer_chain():
    mixed = build(mixer(layers=4, glow=1, patch=2, flow_layers=1, hidden=4), (1, 8, 8))
    masked = build(maf(layers=3, hidden=8, classes=2), (1, 3, 3))
    for flow in (mixed, masked):
        assert flow.layers() == list(flow.transform)
        shapes = [placed.taken for placed in flow.layer_shapes()]
        assert shapes[0] == flow.shape and flow.layer_shapes()[-1].given == flow.latent_shape


def test_rates_run_from_data_to_latent_through_scales():
    flow = nested()
    groups, rates = parameter_groups(flow, TrainConfig(layer_lr=1 / 8))
    trained = [list(layer.parameters()) for layer in flow.layers()[2:]]
    assert [group["params"] for group in groups] == trained
    assert rates == pytest.approx([1, 1 / 2, 1 / 4, 1 / 8])


def rows_of(positions, context=0):
    """A flow of rows of 3 that reads where they stand."""
    net = ResidualMLP(2, 2, width=8, context=positions.width + context)
    along = Along(-1, Coupling(-1, net, Affine()), rows=positions)
    perturb(along)
    return along


@pytest.mark.parametrize("kind", [LearnedPositionalEncoding, SinusoidalPositionalEncoding])
def test_equal_rows_at_different_places_become_different(kind):
    along = rows_of(kind(4, 6))
    z = along(torch.ones(2, 4, 3))[0]
    assert len(z[0, :, -1].unique()) == 4
    assert torch.equal(z[0], z[1])  # but images do not differ


def test_each_row_sees_its_own_place_and_its_images_context():
    along = rows_of(LearnedPositionalEncoding(4, 6), context=2)
    x, context = torch.randn(3, 4, 3), torch.randn(3, 2)
    z = along(x, context)[0]
    for image in range(3):
        for row in range(4):
            seen = torch.cat([context[image], along.rows.table[row]])[None]
            alone = along.transform(x[image, row][None], seen)[0]
            torch.testing.assert_close(z[image, row], alone[0])


def test_places_must_be_as_many_as_rows():
    with pytest.raises(ValueError, match="5 rows in an event; got vectors for 4"):
        rows_of(LearnedPositionalEncoding(4, 6))(torch.ones(1, 5, 3))


def test_sinusoids_are_those_of_the_paper():
    table = SinusoidalPositionalEncoding(7, 5)()
    assert table.shape == (7, 5)
    for i in range(7):
        for k in range(5):
            angle = i / 10_000 ** (2 * (k // 2) / 5)
            wanted = math.cos(angle) if k % 2 else math.sin(angle)
            assert math.isclose(table[i, k].item(), wanted, abs_tol=1e-6)
    assert not list(SinusoidalPositionalEncoding(7, 5).state_dict())
