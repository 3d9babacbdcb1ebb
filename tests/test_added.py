"""Channels of noise in any model: both ways, bounds, kinds of figures, and what refuses them."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import mixerflow
from mixerflow import export
from mixerflow.cli import main
from mixerflow.core import Centre, Noise
from mixerflow.detection.maps import GradientMap
from mixerflow.errors import ConfigError
from mixerflow.evaluate import kind_of
from mixerflow.models import MAF, Glow, MixerFlow, RealNVP, ResidualFlow
from mixerflow.parts import (
    MLP,
    Classes,
    ConditionalChannels,
    GlowConv,
    LogitPixels,
    NormalChannels,
    Patching,
    ResidualConv,
    RowCoupling,
    ScaledPixels,
    WideningConv,
)
from mixerflow.parts.contractions import ConvContraction, VectorContraction
from mixerflow.transforms import Augment
from mixerflow.transforms.checks import perturb
from mixers import DENSEFLOW

SHAPE = (1, 4, 4)
MIXER = MixerFlow(
    layers=2, flow_layers=2, patching=Patching(2, shift=(0,)), flow=RowCoupling(net=MLP(8))
)
GLOW = Glow(scales=1, steps=2, net=GlowConv(6))
MODELS = {
    "mixer": MIXER,
    "glow": GLOW,
    "denseflow": replace(DENSEFLOW, pixels=ScaledPixels()),
    "maf": MAF(layers=2, width=24, batch_norm=False),
    "realnvp": RealNVP(scales=1, net=ResidualConv(4, depth=1)),
    "residual": ResidualFlow(
        scales=1, blocks=1, net=ConvContraction(width=6), dense=VectorContraction(width=6)
    ),
}
NOISE = {"normal": NormalChannels(2), "conditional": ConditionalChannels(3, WideningConv(2))}


def drawn(count, shape=SHAPE, levels=256, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(levels, (count, *shape), generator=generator).byte()


def moved(model, shape=SHAPE, size=0.1):
    """In eval mode and float64, all its parameters moved from the identity."""
    torch.manual_seed(0)
    flow = model.build(shape).double().eval()
    perturb(flow.transform, size=size)
    return flow


def start_of(flow) -> Augment:
    return next(step for step in flow.transform if isinstance(step, Augment))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("added", NOISE)
def test_every_model_runs_both_ways_with_a_gradient_for_every_parameter(name, added):
    shape = (1, 8, 8) if name == "denseflow" else SHAPE
    model = replace(MODELS[name], added=NOISE[added])
    flow, plain = moved(model, shape).train(), MODELS[name].build(shape)
    x = drawn(12, shape)
    flow(x).log_prob.sum().backward()
    idle = [n for n, p in flow.named_parameters() if p.grad is None or not p.grad.any()]
    assert not idle
    flow.eval()
    assert torch.equal(flow.decode(flow.encode(x)), x)
    assert flow.density == {"exact": "bound", "bound": "bound"}.get(
        plain.density, "estimated bound"
    )
    noise = NOISE[added].channels * math.prod(shape[1:])
    assert math.prod(flow.latent_shape) >= math.prod(plain.latent_shape) + noise
    assert flow.dims == math.prod(shape)
    keys = torch.arange(12)
    score = flow(x, None, Noise(0, keys)).log_prob
    torch.testing.assert_close(flow.fused()(x, None, Noise(0, keys)).log_prob, score)
    others = drawn(12, shape, seed=1)
    others[3] = x[3]
    again = flow(others, None, Noise(0, keys)).log_prob
    torch.testing.assert_close(again[3], score[3], rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", ["mixer", "glow"])
def test_classes_and_float_data_take_noise_too(name):
    model = replace(MODELS[name], added=NOISE["conditional"], classes=Classes(3, 4))
    flow = moved(model)
    x = drawn(1).expand(3, -1, -1, -1)
    same = Noise(0, torch.zeros(3).long())
    assert len(set(flow(x, torch.arange(3), same).log_prob.tolist())) == 3
    net, embedding = start_of(flow).net, flow.context_net(torch.arange(3))
    given = torch.zeros(3, 1, 4, 4, dtype=torch.float64)
    assert len(net(given, embedding)[:, 0, 0, 0].unique()) > 1, "the noise reads the class"
    floats = moved(replace(model, classes=None, pixels=ScaledPixels(levels=None)))
    data = torch.randn(5, *SHAPE, dtype=torch.float64)
    assert (floats.density, floats.dequantization) == ("bound", "none")
    torch.testing.assert_close(floats.decode(floats.encode(data)), data, rtol=0, atol=1e-8)
    figures = [mixerflow.bits(floats, data, importance_samples=n) for n in (1, 8)]
    assert figures[0].kind == "lower bound of the density, no dequantisation, single-sample"
    assert "importance-weighted (K = 8)" in figures[1].kind


@pytest.mark.parametrize("added", NOISE)
def test_bounds_of_all_images_of_a_tiny_space_add_up_to_a_distribution(added):
    """Four images of two pixels: the means over noise of p(x, e) / q(e) add up to 1."""
    model = MAF(layers=2, width=8, batch_norm=False, pixels=LogitPixels(1e-6, levels=2))
    flow = moved(replace(model, added=replace(NOISE[added], channels=1)), (1, 1, 2))
    draws, log_p = 6000, []
    for number in range(4):
        x = torch.tensor([number & 1, number >> 1]).byte().reshape(1, 1, 1, 2)
        noise = Noise(0, torch.arange(draws) + draws * number)
        with torch.no_grad():
            log_p.append(flow.log_prob(x.expand(draws, -1, -1, -1), None, noise))
    log_p = torch.stack(log_p)
    assert log_p.mean(1).exp().sum() < 1
    weights = log_p.exp()
    error = (weights.var(1) / draws).sum().sqrt()
    assert error < 0.05
    assert abs(weights.mean(1).sum() - 1) < 4 * error


def test_more_draws_of_the_noise_tighten_the_bound():
    x = drawn(200)
    flow = moved(replace(MIXER, added=NormalChannels(2)), size=0.3)
    one, many = (mixerflow.bits(flow, x, importance_samples=n) for n in (1, 32))
    gain = one.per_image - many.per_image
    assert gain.mean() > 4 * gain.std() / math.sqrt(len(x))


def test_the_noise_is_at_its_centre_in_latents_and_features():
    flow = moved(replace(GLOW, added=NOISE["conditional"]))
    x = drawn(3)
    assert torch.equal(flow.encode(x), flow.encode(x))
    by_layer = flow.features_by_layer(x)
    torch.testing.assert_close(by_layer[len(by_layer) - 1], flow.encode(x))
    start = [placed.layer for placed in flow.layer_shapes()].index(start_of(flow))
    before, after = by_layer[start], by_layer[start + 1]
    assert before.shape[1] == 16 and after.shape[1] == 4 * 16
    assert torch.equal(after[:, :16], before)
    image = before.reshape(3, *SHAPE)
    wanted = start_of(flow)(image, None, Centre())[0].flatten(1)
    torch.testing.assert_close(after, wanted)


def test_the_density_of_real_numbers_is_a_bound_with_the_same_noise():
    flow = moved(replace(GLOW, added=NOISE["normal"]))
    x, noise = drawn(4), Noise(0, torch.arange(4))
    real = flow.continuous()
    assert (real.density, real.levels) == ("bound", None)
    dequantize = next(iter(flow.transform))
    y = x.double() + noise.uniform(x.double(), dequantize.stream)
    torch.testing.assert_close(real.log_prob(y, None, noise), flow.log_prob(x, None, noise))


@pytest.mark.parametrize("memory", ["checkpoint", "invert"])
def test_memory_modes_give_the_gradients_of_store(memory):
    flow = moved(replace(GLOW, added=NOISE["conditional"])).train()
    x, noise, found = drawn(4), Noise(0, torch.arange(4)), []
    for mode in ("store", memory):
        flow.zero_grad()
        flow.memory = mode
        flow(x, None, noise).log_prob.sum().backward()
        found.append([p.grad.clone() for p in flow.parameters()])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_what_needs_an_exact_density_refuses_in_one_line_and_a_decoder_does_not():
    flow = moved(replace(GLOW, added=NOISE["normal"])).float()
    with pytest.raises(ConfigError, match=r"draws other noise than uniform .*Augment"):
        export.density(flow)
    z = torch.randn(2, math.prod(flow.latent_shape))
    assert torch.equal(export.decoder(flow)(z), flow.decode(z))
    with pytest.raises(ConfigError, match=r"log p of this flow is a bound.*search"):
        mixerflow.restore(flow, drawn(1), torch.ones(1, 1, 4, 4, dtype=torch.bool))
    with pytest.raises(ConfigError, match="a bound, whose noise a map would show"):
        GradientMap().map(flow, drawn(1))
    estimated = moved(replace(MODELS["residual"], added=NOISE["normal"]))
    with pytest.raises(ConfigError, match="is an estimated bound, which a search"):
        mixerflow.restore(estimated, drawn(1), torch.ones(1, 1, 4, 4, dtype=torch.bool))


def test_the_figure_of_an_estimated_log_det_says_that_it_is_of_a_bound():
    flow = moved(replace(MODELS["residual"], added=NOISE["normal"]))
    figure = mixerflow.bits(flow, drawn(4), probes=2)
    assert figure.kind.startswith("estimated lower bound of the density, uniform")
    assert figure.probes == 2 and figure.estimator_error > 0
    assert flow.exact().density == "bound"
    with pytest.raises(ConfigError, match="would overstate"):
        mixerflow.bits(flow, drawn(4), importance_samples=4)
    plain = MODELS["residual"].build(SHAPE)
    assert kind_of(mixerflow.bits(plain, drawn(4)).as_dict()).startswith("estimated density")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("data") / "images.npz"

    def ramps(n):
        ramp = rng.integers(0, 200, (n, 1, 1)) + rng.integers(0, 40, (n, 4, 4))
        return np.clip(ramp, 0, 255).astype(np.uint8)

    np.savez(path, train_images=ramps(60), test_images=ramps(20))
    return path


SMALL = ["--model.flow-layers", 2, "--model.flow.net.width", 4, "--model.patching.size", 2]
SMALL += ["--model.patching.shift", 0, 0, 0, 1, "--train.batch", 8, "--threads", 1]
ADDED = ["--model.added", "normal", "--model.added.channels", 3]


def run(*words):
    return main([str(word) for word in words])


@pytest.fixture(scope="module")
def trained(images, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    words = ["--data", images, "--out", out, "--steps", 4, "--model.layers", 1]
    assert run("train", "mixerflow-tiny", *words, *SMALL, *ADDED) == 0
    return out


def test_the_command_line_adds_channels_and_says_what_the_figure_is(trained, capsys):
    header = json.loads((trained / "run.json").read_text())
    assert header["model"]["added"] == {"type": "NormalChannels", "channels": 3}
    assert run("evaluate", trained, "--importance-samples", 4, "--no-codecs") == 0
    assert "lower bound of the density, uniform dequantisation" in capsys.readouterr().out
    assert run("info", trained) == 0
    assert "noise: 3 channels" in capsys.readouterr().out
    assert mixerflow.load(trained).sample(2).shape == (2, *SHAPE)
    assert run("restore", trained, "--mask", "centre:2") == 2
    told = capsys.readouterr().err.splitlines()
    assert "log p of this flow is a bound" in told[-1]


def test_a_mixer_with_noise_grows(trained, images, tmp_path, capsys):
    words = ["--data", images, "--out", tmp_path / "deep", "--steps", 6, "--from", trained]
    assert run("train", "mixerflow-tiny", *words, "--model.layers", 2, *SMALL, *ADDED) == 0
    shallow, deep = mixerflow.load(trained), mixerflow.load(tmp_path / "deep")
    assert len(deep.layers()) == len(shallow.layers()) + 1
    words[3] = tmp_path / "other"
    capsys.readouterr()
    assert run("train", "mixerflow-tiny", *words, "--model.layers", 2, *SMALL) == 2
    assert "model.added" in capsys.readouterr().err


def test_a_run_of_before_there_was_noise_loads(trained):
    flow = MIXER.build(SHAPE)
    spec = json.loads(json.dumps(flow.spec))
    assert spec.pop("added") is None
    model, shape = mixerflow.models.from_spec(spec)
    assert (model, shape) == (MIXER, SHAPE)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--model.added.channels", 3], "--model.added: choose one of normal, conditional"),
        (["--model.added", "normal", "--model.added.channels", 0], "got 0: --model.added.channels"),
        (["--model.added", "uniform"], "--model.added: did you mean normal?"),
    ],
)
def test_mistakes_are_told_in_one_line(words, told, capsys):
    assert run("info", "glow-cifar10-tiny", *words) == 2
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1
