"""Contractions of images: norms of convolutions, Jacobians beside values, estimates of log-dets."""

import math

import pytest
import torch
from torch import nn

from mixerflow.core import Noise, values_alone
from mixerflow.nets import (
    CLipSwish,
    LipELU,
    LipschitzConvNet,
    LipschitzDense,
    LipschitzDenseConv,
    LipschitzMLP,
    LipSwish,
    SpectralConv,
    spectral_bound,
    spectral_bound_of_convolution,
)
from mixerflow.nets.spectral import applied
from mixerflow.transforms import Monotone, Residual
from mixerflow.transforms.checks import perturb
from mixerflow.transforms.series import GeometricTail, PoissonTail, estimate

DOUBLE = torch.float64


def seeded(*shape, seed=0):
    return torch.randn(*shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


def moved(module, size=2.0):
    module = module.double()
    perturb(module, size=size)
    return module.eval()


def matrix_of(weight, sides):
    """The convolution as a matrix, column by column."""
    n = weight.shape[1] * math.prod(sides)
    units = torch.eye(n, dtype=weight.dtype).reshape(n, weight.shape[1], *sides)
    return applied(weight)(units).reshape(n, -1).mT


SHAPES = [
    ((5, 3, 3, 3), (6, 5)),
    ((3, 5, 3, 3), (6, 6)),
    ((4, 4, 5, 5), (7, 4)),
    ((2, 3, 3), (9,)),
    ((2, 2, 3, 3, 3), (3, 4, 3)),
    ((3, 2, 3, 3), (1, 1)),
    ((4, 4, 7, 7), (2, 3)),  # a kernel larger than the image
    ((4, 3, 1, 1), (3, 3)),
    ((1, 1, 3, 3), (8, 8)),
]


@pytest.mark.parametrize("shape, sides", SHAPES)
def test_the_bound_of_a_convolution_is_above_its_norm(shape, sides):
    for seed in range(3):
        weight = seeded(*shape, seed=seed)
        norm = torch.linalg.matrix_norm(matrix_of(weight, sides), 2)
        for scale in (1e-6, 1.0, 1e6):
            bound = spectral_bound_of_convolution(scale * weight, sides)
            assert bound >= scale * norm * (1 - 1e-12)
            single = spectral_bound_of_convolution((scale * weight).float(), sides)
            assert single >= scale * norm * (1 - 1e-5)
            torch.testing.assert_close(single.double(), bound, rtol=1e-4, atol=0)


def test_taps_that_meet_zeros_alone_do_not_count():
    """On one pixel, a kernel does what its middle does."""
    weight = seeded(3, 2, 5, 5)
    bound = spectral_bound_of_convolution(weight, (1, 1))
    torch.testing.assert_close(bound, spectral_bound(weight[:, :, 2, 2]))
    for sides in ((2, 3), (1, 4), (3, 1)):
        norm = torch.linalg.matrix_norm(matrix_of(weight, sides), 2)
        assert 1 <= spectral_bound_of_convolution(weight, sides) / norm < 3


def test_what_no_bound_covers_is_refused():
    for kernel in (0, 2, -1):
        with pytest.raises(ValueError, match="odd sides"):
            SpectralConv(2, 3, kernel, sides=(4, 4))
    with pytest.raises(ValueError, match="odd sides"):
        spectral_bound_of_convolution(seeded(4, 4, 2, 2), (5, 5))
    with pytest.raises(ValueError, match=r"images of \(4, 4\); got \(9, 9\)"):
        SpectralConv(2, 3, 3, sides=(4, 4))(torch.zeros(1, 2, 9, 9))


def test_on_images_of_usual_size_the_bound_is_close():
    weight = seeded(4, 3, 3, 3)
    norm = torch.linalg.matrix_norm(matrix_of(weight, (16, 16)), 2)
    assert 1 <= spectral_bound_of_convolution(weight, (16, 16)) / norm < 1.03


def test_the_bound_of_an_averaging_kernel_is_its_sum():
    """All ones: the constant image is the most amplified, by the number of taps."""
    weight = torch.ones(1, 1, 3, 3, dtype=DOUBLE)
    bound = spectral_bound_of_convolution(weight, (64, 64), squarings=12)
    assert bound.item() == pytest.approx(9, rel=1e-3)


def test_the_bound_has_the_derivatives_of_finite_differences():
    weight = seeded(3, 2, 3, 3).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda w: spectral_bound_of_convolution(w, (4, 5)), (weight,), atol=1e-6
    )
    nothing = torch.zeros(2, 2, 3, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(spectral_bound_of_convolution(nothing, (4, 4)), nothing)
    assert gradient.isfinite().all()


def convolution(channels=2, sides=(3, 4), **settings):
    return LipschitzConvNet(channels, sides, width=5, **settings)


def dense_convolution(channels=2, sides=(3, 4), **settings):
    return LipschitzDenseConv(channels, sides, width=3, depth=2, **settings)


def flat(n=4, **settings):
    return LipschitzMLP(n, n, width=6, **settings)


def dense_flat(n=4, **settings):
    return LipschitzDense(n, n, width=3, **settings)


NETS = {
    "convolution": (convolution, (2, 3, 4)),
    "convolution, no leading activation": (
        lambda **s: convolution(leading=False, **s),
        (2, 3, 4),
    ),
    "convolution of five": (
        lambda **s: convolution(1, (5,), kernels=(5, 3, 1, 3), **s),
        (1, 5),
    ),
    "dense convolution": (dense_convolution, (2, 3, 4)),
    "vector": (lambda **s: flat(leading=True, **s), (4,)),
    "dense vector": (dense_flat, (4,)),
    "dense vector, narrowed": (lambda **s: dense_flat(enter=3, **s), (4,)),
}
ACTIVATIONS = [LipSwish, CLipSwish, LipELU]


def jacobian_of(net, x, context=None):
    (jacobian,) = [torch.autograd.functional.jacobian(lambda v: net(v[None], context)[0], x)]
    return jacobian.reshape(x.numel(), x.numel())


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_nets_of_images_keep_their_constant_and_fold(name, activation):
    make, shape = NETS[name]
    net = moved(make(coefficient=0.9, activation=activation, context=2), size=6.0)
    x, context = 2 * seeded(*shape), seeded(1, 2)
    norm = torch.linalg.matrix_norm(jacobian_of(net, x, context), 2)
    assert 1e-3 < norm <= 0.9
    wanted = net(x[None], context)
    for place, each in enumerate(net.linears):
        net.linears[place] = each.folded()
    torch.testing.assert_close(net(x[None], context), wanted)
    assert not any(isinstance(each, SpectralConv) for each in net.linears)


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_products_are_those_of_the_jacobian(name, activation):
    make, shape = NETS[name]
    net = moved(make(activation=activation))
    x, t = seeded(*shape), seeded(*shape, seed=1)
    value, push = net.prepare().linearise(x[None])
    torch.testing.assert_close(value, net(x[None]), rtol=1e-12, atol=1e-12)
    wanted = (jacobian_of(net, x) @ t.flatten()).reshape(1, *shape)
    torch.testing.assert_close(push(t[None]), wanted, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_values_and_products_have_autograds_gradients(name, activation):
    """Of ``a . g(x) + b . J t``, with respect to x, t and every parameter."""
    make, shape = NETS[name]
    net = moved(make(activation=activation, context=2))
    x, t = (seeded(2, *shape, seed=s).requires_grad_() for s in (0, 1))
    a, b = (seeded(2, *shape, seed=s) for s in (2, 3))
    context = seeded(2, 2)

    def plain(v):
        return net(v, context)

    value, product = torch.autograd.functional.jvp(plain, x, t, create_graph=True)
    wanted = (a * value).sum() + (b * product).sum()
    value, push = net.prepare(context).linearise(x)
    got = (a * value).sum() + (b * push(t)).sum()
    inputs = [x, t, *net.parameters()]
    gradients = zip(
        torch.autograd.grad(got, inputs), torch.autograd.grad(wanted, inputs), strict=True
    )
    for one, other in gradients:
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)


def test_other_shapes_and_contexts_are_refused():
    net = convolution(context=2)
    with pytest.raises(ValueError, match=r"reads events \(2, 3, 4\)"):
        net(torch.zeros(1, 2, 4, 4), torch.zeros(1, 2))
    with pytest.raises(ValueError, match="reads contexts"):
        net(torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 3, 4))
    with pytest.raises(ValueError, match="built for a context"):
        net(torch.zeros(1, 2, 3, 4))
    with pytest.raises(ValueError, match="at least 1 term"):
        Residual(net, terms=0)


@pytest.mark.parametrize(
    "tail", [GeometricTail(0.3), GeometricTail(), PoissonTail(), PoissonTail(7)]
)
def test_tails_draw_what_their_weights_say(tail):
    """Over every number that a draw can be (of 2^-12, for speed), to one of these numbers."""
    uniform = torch.arange(2**12, dtype=DOUBLE) / 2**12
    drawn = tail.further(uniform)
    for j, probability in enumerate(tail.probabilities()[:5], 1):
        assert (drawn >= j).double().mean().item() == pytest.approx(probability, abs=2**-12)
    assert tail.probabilities()[-1] >= 2**-24 > tail.survival(len(tail.probabilities()) + 1)


def test_a_poisson_tail_survives_as_long_as_it_should():
    for mean in (0.1, 2.0, 30.0):
        tail = PoissonTail(mean)
        for j in (1, 2, 7, 40):
            wanted = 1 - sum(
                math.exp(k * math.log(mean) - mean - math.lgamma(k + 1)) for k in range(j)
            )
            assert tail.survival(j) == pytest.approx(wanted, abs=1e-14)
    with pytest.raises(ValueError, match="mean more than 0"):
        PoissonTail(0.0)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("further", [0, 3])
def test_a_draw_is_the_weighted_series_and_its_gradient_neumanns(shared, further):
    """One draw with given numbers against the sums written out with matrices."""
    matrix = 0.4 * seeded(4, 4)
    matrix.requires_grad_()
    v = torch.tensor([[1.0, -1, -1, 1], [-1, 1, -1, 1]], dtype=DOUBLE)
    tail, terms = PoissonTail(2.0), 2
    number = torch.tensor(further) if shared else torch.tensor([further, 1])
    got = estimate(
        lambda t: t @ matrix.mT,
        v,
        lambda k: (-1) ** (k + 1) / k,
        terms=terms,
        tail=tail,
        further=number,
    )
    rows = []
    for row, n in zip(v, number.expand(2).tolist(), strict=True):
        weights = {
            k: 1 / tail.survival(k - terms) if k > terms else 1.0 for k in range(1, terms + n + 1)
        }
        power = {k: torch.linalg.matrix_power(matrix, k) for k in range(terms + n + 1)}
        value = sum((-1) ** (k + 1) / k * w * row @ power[k] @ row for k, w in weights.items())
        q = sum((-1) ** (k + 1) * w * power[k - 1].detach() @ row for k, w in weights.items())
        rows.append((value, row @ matrix @ q))
    torch.testing.assert_close(got, torch.stack([value for value, _ in rows]), rtol=1e-6, atol=0)
    (gradient,) = torch.autograd.grad(got.sum(), matrix, retain_graph=True)
    (wanted,) = torch.autograd.grad(sum(surrogate for _, surrogate in rows), matrix)
    torch.testing.assert_close(gradient, wanted, rtol=1e-6, atol=1e-12)
    with torch.no_grad():
        again = estimate(
            lambda t: t @ matrix.mT,
            v,
            lambda k: (-1) ** (k + 1) / k,
            terms=terms,
            tail=tail,
            further=number,
        )
    torch.testing.assert_close(again, got)


@pytest.mark.parametrize("kind", [Residual, Monotone])
@pytest.mark.parametrize("make", [convolution, dense_convolution])
def test_gradients_of_estimates_are_unbiased_on_images(kind, make):
    """Means of 4,000 draws: every parameter's gradient, and x's, by their mean square score."""
    net, x = moved(make(1, (2, 2), coefficient=0.6), size=1.0), seeded(1, 1, 2, 2)
    unbiased = kind(net, log_det="unbiased", terms=1, tail=PoissonTail()).train()
    exact = kind(net).train()
    inputs = [p for p in net.parameters() if p is not net.linears[-1].bias]
    wanted = torch.autograd.grad(exact(x)[1].sum(), inputs)
    groups, size, found = 40, 100, []
    for group in range(groups):
        numbers = torch.arange(size) + group * size
        log_det = unbiased(x.expand(size, 1, 2, 2), None, Noise(0, numbers))[1]
        found.append(torch.autograd.grad(log_det.mean(), inputs))
    scores = []
    for place, gradient in enumerate(wanted):
        each = torch.stack([gradients[place] for gradients in found])
        error = each.std(0) * groups**-0.5
        known = error > 1e-9
        scores.append(((each.mean(0) - gradient) / error)[known].square().flatten())
    score = torch.cat(scores)
    assert len(score) > 20 and score.mean() < 2


@pytest.mark.parametrize("kind", [Residual, Monotone])
def test_of_estimates_too_the_inverse_is_differentiable(kind):
    """Implicit derivatives of the solution, against the exact transform's Newton step."""
    net = moved(convolution(1, (2, 2), coefficient=0.8))
    z = seeded(3, 1, 2, 2).requires_grad_()
    weight = seeded(3, 1, 2, 2, seed=1)
    inputs = [z, *net.parameters()]
    ours = kind(net, log_det="unbiased").inverse(z)[0]
    theirs = kind(net).inverse(z)[0]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    found = [torch.autograd.grad((weight * x).sum(), inputs) for x in (ours, theirs)]
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("kind", [Residual, Monotone])
@pytest.mark.parametrize("log_det", ["exact", "unbiased"])
def test_samples_need_no_log_det(kind, log_det):
    transform = moved(kind(convolution(1, (2, 2)), log_det=log_det))
    z = seeded(3, 1, 2, 2)
    with torch.no_grad():
        wanted = transform.inverse(z)
        with values_alone():
            got = transform.inverse(z)
    torch.testing.assert_close(got[0], wanted[0], rtol=0, atol=1e-12)
    assert not got[1].any() and wanted[1].all()


def test_truncated_is_biased_in_training_alone():
    class Scaled(nn.Module):
        def forward(self, x, context=None):
            return 0.6 * x

    transform = Residual(Scaled(), log_det="truncated", terms=2, eval_terms=60)
    x, noise = seeded(5, 1), Noise(0, torch.arange(5))
    biased = transform.train()(x, None, noise)[1]
    torch.testing.assert_close(biased, torch.full_like(biased, 0.6 - 0.18))
    exact = transform.eval()(x, None, noise)[1]
    torch.testing.assert_close(exact, torch.full_like(exact, math.log(1.6)))
