"""Attention Glow: counts, density by autograd, what a token is, and what a step reads."""

import dataclasses

import pytest
import torch

import mixerflow
from mixerflow.core import Noise
from mixerflow.errors import ConfigError
from mixerflow.models import AttentionGlow, Glow
from mixerflow.models.attention_glow import square_of
from mixerflow.parts import Classes, GlowConv, NoMap
from mixerflow.training.idle import trained_entries
from mixerflow.transforms import MapAttention, TokenAttention
from mixerflow.transforms.checks import perturb

COUNTS = {"attention-glow-cifar10": 11_034_060, "attention-glow-cifar10-tiny": 185_284}
SMALL = AttentionGlow(scales=2, steps=1, net=GlowConv(6), tokens=4, width=3)
MODELS = {
    "both": dataclasses.replace(SMALL, attention="both"),
    "map": dataclasses.replace(SMALL, attention="map", tokens=16),
    "token, heads, flipped": dataclasses.replace(SMALL, attention="token", heads=2, flip=True),
    "classes": dataclasses.replace(SMALL, classes=Classes(3, width=4)),
}


def moved(model, shape=(1, 8, 8), size=0.5):
    """In eval mode and float64, all its parameters moved from the identity."""
    torch.manual_seed(0)
    flow = model.build(shape).double().eval()
    perturb(flow.transform, size=size)
    return flow


def labels_of(model, count):
    return torch.arange(count) % 3 if model.classes else None


def drawn(count, shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, *shape), generator=generator).byte()


@pytest.mark.parametrize("name", COUNTS)
def test_the_recipes_have_their_counts(name):
    with torch.device("meta"):
        flow = mixerflow.build(name)
    assert sum(p.numel() for p in flow.parameters()) == COUNTS[name]


@pytest.mark.parametrize("name", MODELS)
def test_log_det_is_the_jacobians(name):
    model = MODELS[name]
    flow = moved(model)
    x = torch.rand(2, *flow.shape, dtype=torch.float64) * 255
    labels = labels_of(model, 2)
    context = None if labels is None else flow.context_net(labels)

    def forward(image, row):
        z, log_det = image[None], 0.0
        for step in flow.transform.steps[1:]:  # behind dequantisation
            z, each = step(z, None if context is None else context[row : row + 1])
            log_det = log_det + each
        return z[0], log_det

    for row in range(2):
        jacobian = torch.autograd.functional.jacobian(lambda t, r=row: forward(t, r)[0], x[row])
        exact = torch.linalg.slogdet(jacobian.reshape(64, 64))[1]
        torch.testing.assert_close(forward(x[row], row)[1][0], exact, rtol=1e-10, atol=1e-8)


@pytest.mark.parametrize("name", MODELS)
def test_images_come_back_and_no_image_sees_another(name):
    model, shape = MODELS[name], (3, 16, 8)
    flow = moved(dataclasses.replace(model, tokens=8), shape, size=0.2)
    x, labels, keys = drawn(5, shape), labels_of(model, 5), torch.arange(5)
    assert torch.equal(flow.decode(flow.encode(x, labels), labels), x)
    score = flow(x, labels, Noise(0, keys)).log_prob
    others = drawn(5, shape, seed=1)
    others[2] = x[2]
    assert torch.equal(flow(others, labels, Noise(0, keys)).log_prob[2], score[2])
    alone = None if labels is None else labels[2:3]
    torch.testing.assert_close(
        flow(x[2:3], alone, Noise(0, keys[2:3])).log_prob, score[2:3], rtol=1e-12, atol=0
    )


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_has_a_gradient_but_the_bias_of_keys(name):
    model = MODELS[name]
    flow = moved(model, (3, 8, 8))
    flow(drawn(6, (3, 8, 8)), labels_of(model, 6)).log_prob.sum().backward()
    idle = trained_entries(flow)
    assert len(idle) == (0 if name == "map" else 2)
    for key, parameter in flow.named_parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.any(), key
        if key in idle:
            largest = parameter.grad.abs().max()
            assert parameter.grad[idle[key] == 0].abs().max() < 1e-10 * largest


def test_a_step_mixes_squares_by_a_matrix_of_the_half_that_the_coupling_changed():
    model = dataclasses.replace(SMALL, attention="token", linear=NoMap())
    flow = moved(model)
    step = flow.transform.steps[-1].scales[0].steps[1]
    *before, cut, attention, _ = step
    assert cut.patch == (2, 2) and isinstance(attention, TokenAttention)
    x = torch.randn(2, 4, 4, 4, dtype=torch.float64)
    y = x
    for each in before:
        y, _ = each(y)
    kept, coupled = y.chunk(2, 1)
    squares = [(slice(2 * i, 2 * i + 2), slice(2 * j, 2 * j + 2)) for i in (0, 1) for j in (0, 1)]

    def tokens(half):
        return torch.stack([half[:, :, rows, columns].flatten(1) for rows, columns in squares], 1)

    q, k = attention.read(tokens(coupled)).split(3, -1)
    pattern = (q @ k.mT / 3**0.5).softmax(-1)
    gate = 0.45 * torch.tanh(attention.gate / 0.45)
    wanted = (1 - gate) * tokens(kept) + gate * pattern @ tokens(kept)
    z = step(x)[0]
    torch.testing.assert_close(tokens(z[:, :2]), wanted, rtol=1e-12, atol=1e-12)
    assert torch.equal(z[:, 2:], coupled)
    assert (wanted - tokens(kept)).abs().max() > 0.01


def test_it_starts_as_the_glow_around_it():
    torch.manual_seed(0)
    flow = SMALL.build((3, 8, 8)).double()
    glow = Glow(scales=2, steps=1, net=GlowConv(6)).build((3, 8, 8)).double()
    given = {k: v for k, v in flow.state_dict().items() if k in glow.state_dict()}
    glow.load_state_dict(given)
    x, noise = drawn(3, (3, 8, 8)), Noise(0, torch.arange(3))
    torch.testing.assert_close(flow(x, None, noise).log_prob, glow(x, None, noise).log_prob)


@pytest.mark.parametrize(("kind", "found"), [("map", [1, 0]), ("token", [0, 1]), ("both", [1, 1])])
def test_each_step_has_the_attention_that_is_asked_for(kind, found):
    flow = dataclasses.replace(SMALL, steps=3, attention=kind).build((1, 8, 8))
    counts = [sum(isinstance(m, c) for m in flow.modules()) for c in (MapAttention, TokenAttention)]
    assert counts == [6 * each for each in found]


@pytest.mark.parametrize(
    ("shape", "tokens", "side"),
    [
        ((12, 16, 16), 64, 2),
        ((12, 16, 16), 256, 1),
        ((12, 16, 16), 1, 16),
        ((4, 14, 14), 64, 2),
        ((8, 7, 7), 49, 1),
        ((4, 6, 9), 6, 3),
        ((2, 12), 5, 3),
        ((8, 4, 4, 4), 8, 2),
    ],
)
def test_squares_are_as_small_as_the_tokens_allow(shape, tokens, side):
    assert square_of(shape, tokens) == side


def test_what_does_not_fit_is_refused_in_one_line():
    with pytest.raises(ConfigError, match=r"tokens must be at least 2 .*got 1.*model.tokens"):
        dataclasses.replace(SMALL, tokens=1).build((1, 8, 16))
    with pytest.raises(ConfigError, match=r"heads must divide the 8 .*model.heads"):
        dataclasses.replace(SMALL, heads=3).build((1, 8, 8))
    with pytest.raises(ValueError, match="AttentionGlow: tokens must be at least 1; got 0"):
        dataclasses.replace(SMALL, tokens=0)
