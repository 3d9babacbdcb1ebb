"""Augmented normalizing flows: counts, quadrature, and the variational autoencoders they are."""

import math
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch.distributions import MultivariateNormal, Normal

import mixerflow
from helpers import everything, images, stop_after
from mixerflow.cli import main
from mixerflow.core import Chain, Flow, Noise
from mixerflow.errors import ConfigError
from mixerflow.models import ANF
from mixerflow.parts import (
    Classes,
    ConditionalChannels,
    ConvolutionPrior,
    GlowConv,
    NoMap,
    NormalChannels,
    PlainConv,
    ResidualDense,
    ScaledPixels,
    VariationalDequantizer,
    Vectors,
    ZeroConvolution,
)
from mixerflow.recipes import RECIPES, build
from mixerflow.train_config import TrainConfig
from mixerflow.transforms import ActNorm, Affine, Augment, Coupling, Leading
from mixerflow.transforms.checks import perturb

LEARNED = VariationalDequantizer(
    steps=1, context=8, growth=4, depth=1, net=ResidualDense(4, growth=4, depth=1)
)
SMALL = ANF(scales=2, steps=2, net=GlowConv(6), pixels=ScaledPixels(-0.5, 0.5))
MODELS = {
    "plain": SMALL,
    "learned noise, one channel": replace(
        SMALL, added=NormalChannels(1), pixels=ScaledPixels(-0.5, 0.5, dequantizer=LEARNED)
    ),
    "conditional noise, decoder first": replace(SMALL, added=ConditionalChannels(2), flip=True),
    "classes": replace(SMALL, classes=Classes(3, 4), prior=ConvolutionPrior()),
}


def moved(model: ANF, shape=(1, 8, 8), size=0.2) -> Flow:
    """In eval mode and float64, all its parameters moved from the identity."""
    torch.manual_seed(0)
    flow = model.build(shape).double().eval()
    perturb(flow.transform, size=size)
    return flow


def labels_of(model: ANF, count: int) -> torch.Tensor | None:
    return torch.arange(count) % 3 if model.classes else None


def drawn(count: int, shape, seed=0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, *shape), generator=generator).byte()


def of_coupling(given: int, changed: int, width: int) -> int:
    """Parameters of an affine coupling by Glow's net."""
    norms, out = 2 * 2 * width, 2 * changed
    return 9 * given * width + width**2 + norms + 9 * width * out + 3 * out


def count_of(name: str) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in build(name).parameters())


@pytest.mark.parametrize("name", ["cifar10", "imagenet64", "mnist", "cifar10-tiny", "mnist-tiny"])
def test_the_counts_are_their_formula(name):
    recipe = RECIPES[f"anf-{name}"]
    model, (channels, side, _) = recipe.model, recipe.shape
    dequantizer = model.pixels.dequantizer.build(recipe.shape, 256)
    total = sum(p.numel() for p in dequantizer.parameters())
    width = model.net.width
    for scale in range(model.scales):
        x, e = (4 * n * 2**scale for n in (channels, model.added.channels))
        step = 2 * (x + e) + x**2 + e**2 + of_coupling(x, e, width) + of_coupling(e, x, width)
        total += model.steps * step
        # half of all channels have a Gaussian given the others; at the end, each number its own
        split = 9 * (x + e) // 2 * (x + e) + 3 * (x + e)
        total += (
            split if scale < model.scales - 1 else 2 * (x + e) * (side // 2 ** (scale + 1)) ** 2
        )
    assert count_of(f"anf-{name}") == total


def test_the_default_has_the_count_that_the_docs_say():
    assert count_of("anf-cifar10") == 33_731_840


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 12, 4), (2, 8), (1, 4, 4, 4)])
def test_it_runs_both_ways_with_a_gradient_for_every_parameter(name, shape):
    model = MODELS[name]
    flow = model.build(shape)
    x, labels = drawn(12, shape), labels_of(model, 12)
    flow.initialize(x, labels)
    flow.double()
    perturb(flow, size=0.1)
    flow(x, labels).log_prob.sum().backward()
    idle = [n for n, p in flow.named_parameters() if p.grad is None or not p.grad.any()]
    # the convolution of zeros, whose weights for the zeros are unused
    assert all(model.prior == ConvolutionPrior() and "enter.weight" in n for n in idle), idle
    flow.eval()
    assert torch.equal(flow.decode(flow.encode(x, labels), labels), x)
    assert flow.density == "bound"
    some = flow.sample(3, None if labels is None else labels[:3], temperature=0.8)
    assert some.shape == (3, *shape) and some.dtype == torch.uint8


@pytest.mark.parametrize("name", ["plain", "conditional noise, decoder first", "classes"])
def test_log_det_of_image_and_noise_is_the_jacobians(name):
    model = MODELS[name]
    flow = moved(model, (1, 4, 4), size=0.3)
    start = next(i for i, step in enumerate(flow.transform) if isinstance(step, Augment))
    rest = Chain(*list(flow.transform)[start + 1 :])
    wide = (1 + model.added.channels, 4, 4)
    x = torch.randn(2, *wide, dtype=torch.float64)
    labels = labels_of(model, 2)
    context = None if labels is None else flow.context_net(labels)
    for row in range(2):
        given = None if context is None else context[row : row + 1]
        jacobian = torch.autograd.functional.jacobian(
            lambda t, given=given: rest(t[None], given)[0][0], x[row]
        )
        n = math.prod(wide)
        exact = torch.linalg.slogdet(jacobian.reshape(n, n))[1]
        got = rest(x[row : row + 1], given)[1][0]
        torch.testing.assert_close(got, exact, rtol=1e-10, atol=1e-8)


def test_an_encoder_step_changes_the_noise_alone_and_a_decoder_step_the_image():
    x = torch.randn(2, 12, 4, 4, dtype=torch.float64)
    for flip in (False, True):
        model = replace(SMALL, added=NormalChannels(1), flip=flip, linear=NoMap())
        step = model.step((12, 4, 4), 0).double()
        perturb(step, size=0.3)
        norm, mixes, *couplings = step
        h = mixes(norm(x)[0])[0]
        image, noise = h[:, :8], h[:, 8:]
        for number, coupling in enumerate(couplings):
            encodes = (number == 0) != flip
            s, t = coupling.net(image if encodes else noise).chunk(2, 1)
            scale = torch.exp(2 * torch.tanh(s / 2))
            if encodes:
                noise = noise * scale + t
            else:
                image = image * scale + t
        torch.testing.assert_close(step(x)[0], torch.cat([image, noise], 1), rtol=0, atol=1e-12)


def test_half_of_the_image_and_half_of_the_noise_go_on_to_the_next_scale():
    """Nets that start at 0 change nothing: each scale sees image and noise unmixed."""
    model = replace(SMALL, scales=3, linear=NoMap(), added=NormalChannels(2))
    scales = model.compose((3, 8, 8)).scales
    h = torch.zeros(1, 3, 8, 8)
    h[:, 1:] = 1.0  # one channel of the image, two of noise
    for number, scale in enumerate(scales):
        for step in scale:
            if isinstance(step, Coupling):  # all are in layers but that of what is factored out
                kept, left = h.chunk(2, 1)
                assert torch.equal(h[0, :, 0, 0].unique(), torch.tensor([0.0, 1.0]))
                assert kept.mean().item() == left.mean().item() == pytest.approx(2 / 3)
            elif isinstance(step, mixerflow.core.Layer):
                of_image = model.of_image(tuple(h.shape[1:]), number)
                assert not h[:, :of_image].any() and h[:, of_image:].all()
            h = step(h)[0]
        h = h.chunk(2, 1)[0]


def autoencoder(scale: float = 1.0) -> tuple[Flow, dict[str, torch.Tensor]]:
    """One step of linear nets: a linear autoencoder of two numbers and two latents, by its tensors.

    The encoder is ``z ~ N(A x + a, diag(s^2))``, the decoder ``x ~ N(B z + b, t^2)``, z ~ N(0, I).
    With `scale` 1 the encoder is the exact posterior, which is diagonal as B's columns are
    orthogonal.
    """
    model = ANF(scales=1, linear=NoMap(), net=ZeroConvolution(second_bias=False))
    model = replace(model, elementwise=Affine(), added=NormalChannels(1))
    step = model.step((4, 1), 0).double()
    flow = Flow(Chain(Augment((2, 1), 2), step), (2, 1)).double()
    turn = torch.tensor([[0.8, -0.6], [0.6, 0.8]]).double()
    b_matrix, b = turn * torch.tensor([1.5, 0.4]).double(), torch.tensor([0.3, -0.7]).double()
    t = torch.tensor(0.5).double()
    variance = 1 / (1 + (b_matrix.square().sum(0) / t**2))
    s = scale * variance.sqrt()
    a_matrix = variance[:, None] * b_matrix.T / t**2
    a = -a_matrix @ b
    _, _, encoder, decoder = step
    with torch.no_grad():
        for coupling, matrix, mean, log_scale in (
            (encoder, a_matrix, a, s.log()),  # e' = s e + A x + a
            (decoder, -b_matrix / t, -b / t, -t.log().expand(2)),  # x' = (x - B e' - b) / t
        ):
            coupling.net.enter.weight[2:, :, 1] = matrix  # the centre of a kernel of 3
            coupling.net.enter.bias.copy_(torch.cat([log_scale, mean]))
    tensors = {"A": a_matrix, "a": a, "s": s, "B": b_matrix, "b": b, "t": t}
    return flow, tensors


def test_one_step_is_a_variational_autoencoder_draw_by_draw():
    flow, of = autoencoder(scale=1.4)
    x = torch.randn(5, 2, dtype=torch.float64)
    noise = Noise(0, torch.arange(5))
    augment = next(iter(flow.transform))
    e = noise.normal(x[..., None], augment.stream)[..., 0]
    mean = x @ of["A"].T + of["a"]
    z = mean + of["s"] * e
    terms = [
        Normal(z @ of["B"].T + of["b"], of["t"]).log_prob(x),  # log p(x | z)
        Normal(torch.zeros_like(z), 1.0).log_prob(z),  # log p(z)
        -Normal(mean, of["s"].expand_as(mean)).log_prob(z),  # -log q(z | x)
    ]
    wanted = sum(term.sum(1) for term in terms)
    got = flow.log_prob(x[..., None], None, noise)
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)


def test_the_mean_bound_is_the_evidence_lower_bound_in_closed_form():
    flow, of = autoencoder(scale=1.4)
    x = torch.tensor([[0.9, -1.2]]).double()
    mean = x[0] @ of["A"].T + of["a"]
    residual = (x[0] - of["B"] @ mean - of["b"]).square().sum()
    spread = (of["B"].square() @ of["s"].square()).sum()
    likelihood = (
        -0.5 * (residual + spread) / of["t"] ** 2 - 2 * of["t"].log() - math.log(2 * math.pi)
    )
    kl = 0.5 * (of["s"].square() + mean.square() - 1 - 2 * of["s"].log()).sum()
    draws = 40_000
    many = x[..., None].expand(draws, -1, -1)
    got = flow.log_prob(many, None, Noise(0, torch.arange(draws)))
    error = got.std() / draws**0.5
    assert 0 < error < 0.02
    assert abs(got.mean() - (likelihood - kl)) < 4 * error


def test_with_the_exact_posterior_every_draw_gives_the_marginal_density():
    flow, of = autoencoder()
    covariance = of["B"] @ of["B"].T + of["t"] ** 2 * torch.eye(2).double()
    x = 2 * torch.randn(50, 2, dtype=torch.float64)
    exact = MultivariateNormal(of["b"], covariance).log_prob(x)
    for seed in (0, 1):
        got = flow.log_prob(x[..., None], None, Noise(seed, torch.arange(50)))
        torch.testing.assert_close(got, exact, rtol=1e-10, atol=1e-10)
    loose, _ = autoencoder(scale=1.4)
    assert (loose.log_prob(x[..., None]).mean() - exact.mean()) < -0.1


def test_a_pixel_and_its_noise_have_a_density_and_the_bound_is_below_the_marginal():
    """One pixel and one number of noise, four couplings: integrals are sums over a grid."""
    model = ANF(net=PlainConv(8))
    torch.manual_seed(1)
    couplings = [model.coupling(Leading(1, flip), (2, 1)) for flip in (False, True) * 2]
    flow = Flow(Chain(Augment((1, 1), 1), *couplings), (1, 1)).double().eval()
    perturb(flow, size=0.3)
    joint = Chain(*couplings)
    values = torch.linspace(-14, 14, 561, dtype=torch.float64)
    cell = values[1] - values[0]
    grid = torch.cartesian_prod(values, values)[..., None]
    with torch.no_grad():
        z, log_det = joint(grid)
        log_joint = (flow.base.log_prob(z.flatten(1), None) + log_det).unflatten(0, (561, 561))
    assert log_joint.logsumexp((0, 1)).exp() * cell**2 == pytest.approx(1, abs=1e-6)
    log_marginal = log_joint.logsumexp(1) + cell.log()
    log_q = Normal(0.0, 1.0).log_prob(values)
    bound = (log_q.exp() * (log_joint - log_q)).sum(1) * cell
    gap = log_marginal - bound
    assert (gap > 0).all() and gap.max() > 0.1
    # the flow's own draws: mean and importance-weighted mean
    row, draws = 270, 20_000
    x = values[row].expand(draws, 1, 1)
    with torch.no_grad():
        got = flow.log_prob(x, None, Noise(0, torch.arange(draws)))
    assert abs(got.mean() - bound[row]) < 4 * got.std() / draws**0.5
    weights = got.exp()
    error = 4 * weights.std() / draws**0.5
    assert abs(weights.mean() - log_marginal[row].exp()) < error
    assert error < 0.1 * weights.mean()


def test_it_starts_from_data_with_unit_variances():
    flow = SMALL.build((3, 16, 16))
    x = drawn(200, (3, 16, 16))
    flow.initialize(x)
    first = next(m for m in flow.modules() if isinstance(m, ActNorm))
    seen = []
    first.register_forward_hook(lambda module, given, out: seen.append(out[0]))
    flow(x)
    mean, std = seen[0].mean((0, 2, 3)), seen[0].std((0, 2, 3))
    assert mean.abs().max() < 0.05 and (std - 1).abs().max() < 0.05


@pytest.mark.parametrize("name", MODELS)
def test_no_image_sees_another_and_the_fused_copy_scores_the_same(name):
    model, shape = MODELS[name], (3, 8, 8)
    flow = moved(model, shape)
    x, labels, keys = drawn(5, shape), labels_of(model, 5), torch.arange(5)
    score = flow(x, labels, Noise(0, keys)).log_prob
    others = drawn(5, shape, seed=1)
    others[2] = x[2]
    again = flow(others, labels, Noise(0, keys)).log_prob
    assert torch.equal(again[2], score[2]) and (again != score).sum() == 4
    fused = flow.fused()
    torch.testing.assert_close(fused(x, labels, Noise(0, keys)).log_prob, score, rtol=1e-9, atol=0)
    z = flow.encode(x, labels)
    assert torch.equal(fused.decode(z, labels), flow.decode(z, labels))


@pytest.mark.parametrize("memory", ["checkpoint", "invert"])
@pytest.mark.parametrize("name", ["plain", "learned noise, one channel"])
def test_memory_modes_give_the_gradients_of_store(memory, name):
    flow = moved(MODELS[name], size=0.1).train()
    x, noise, found = drawn(4, (1, 8, 8)), Noise(0, torch.arange(4)), []
    learned = name != "plain"
    for mode in ("store", memory):
        flow.zero_grad()
        flow.memory = mode
        warned = mode == "invert" and learned
        with pytest.warns(UserWarning, match="Variational") if warned else nullcontext():
            flow(x, None, noise).log_prob.sum().backward()
        found.append([p.grad.clone() for p in flow.parameters()])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_classes_and_vectors_change_the_density():
    x, noise = drawn(1, (1, 8, 8)).expand(3, -1, -1, -1), Noise(0, torch.zeros(3).long())
    by_class = moved(MODELS["classes"])
    assert len(set(by_class(x, torch.arange(3), noise).log_prob.tolist())) == 3
    by_vector = moved(replace(SMALL, vectors=Vectors(2, width=4)))
    vectors = torch.tensor([[0.0, 1.0], [1.0, 0.0], [2.0, 2.0]])
    assert len(set(by_vector(x, vectors, noise).log_prob.tolist())) == 3


def test_a_stopped_run_goes_on_bit_for_bit(tmp_path, monkeypatch):
    def run(name, stop=None):
        torch.manual_seed(0)
        model = replace(MODELS["learned noise, one channel"], steps=1)
        flow = model.build((1, 4, 4))
        config = TrainConfig(steps=6, batch=5, initial=8, warmup=2, evaluate_every=3)
        with monkeypatch.context() as patch:
            if stop:
                stop_after(patch, stop)
            mixerflow.train(flow, images(), out=tmp_path / name, config=config, quiet=True)

    run("whole")
    run("run", stop=4)
    assert not (tmp_path / "run" / "checkpoints" / "000006.pt").exists()
    run("run")
    whole, resumed = everything(tmp_path / "whole"), everything(tmp_path / "run")
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_the_recipes_are_of_that_model_and_say_what_the_paper_reports():
    figures = {"cifar10": 3.05, "imagenet32": 3.92, "imagenet64": 3.66}
    for name, figure in figures.items():
        recipe = RECIPES[f"anf-{name}"]
        assert recipe.published.bits_per_dim == figure
        assert recipe.published.parameters is None
        assert "lower bound" in recipe.published.note and "another size" in recipe.published.note
    assert RECIPES["anf-mnist"].published is None


def test_what_does_not_fit_is_refused_in_one_line():
    with pytest.raises(ConfigError, match=r"multiples of 4; these are.*model\.scales"):
        SMALL.build((1, 14, 14))
    with pytest.raises(ValueError, match="12 channels of scale 1, and 12 of them are added"):
        SMALL.compose((3, 8, 8))
    with pytest.raises(ValueError, match="channels must be at least 1; got 0"):
        NormalChannels(0)


def test_the_command_line_knows_that_it_needs_noise(capsys):
    for given, words in (
        (["--model.added", "none"], "choose one of normal, conditional"),
        (["--model.added.channels", "0"], r"at least 1; got 0: --model.added.channels"),
    ):
        assert main(["info", "anf-cifar10-tiny", *given]) == 2
        told = capsys.readouterr().err
        assert words in told and told.count("\n") == 1
