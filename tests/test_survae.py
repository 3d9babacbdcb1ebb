"""SurVAE flows: published counts, the density written out, samples, memory, runs, commands."""

import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

import mixerflow
from helpers import everything, stop_after
from mixerflow.cli import main
from mixerflow.core import Chain, MultiScale, Noise
from mixerflow.core.memory import _warn_once
from mixerflow.data import make_images
from mixerflow.errors import ConfigError
from mixerflow.evaluate import bits
from mixerflow.models import SurVAE
from mixerflow.models.survae_recipes import TWIN
from mixerflow.parts import (
    Classes,
    NormalChannels,
    ResidualDense,
    ScaledPixels,
    VariationalDequantizer,
    Vectors,
)
from mixerflow.recipes import RECIPES, build
from mixerflow.registry import evolve
from mixerflow.runs import RunFolder, load
from mixerflow.training import TrainConfig, train
from mixerflow.transforms import DiagonalAffine, MaxPool, Squeeze
from mixerflow.transforms.checks import perturb

_NET = ResidualDense(4, growth=4, depth=1)
SMALL = SurVAE(
    steps=2,
    net=_NET,
    pixels=ScaledPixels(
        -0.5,
        0.5,
        dequantizer=VariationalDequantizer(
            steps=1, context=3, width=5, growth=4, depth=1, net=_NET
        ),
    ),
)
SLICED = replace(SMALL, pooling="slice")
_WIDE_NET = ResidualDense(12, growth=12, depth=1)
WIDE = evolve(
    SMALL,
    {
        "net": _WIDE_NET,
        "pixels.dequantizer.net": _WIDE_NET,
        "pixels.dequantizer.width": 12,
        "pixels.dequantizer.growth": 12,
    },
)
"""A ReLU layer of fewer channels may be 0 everywhere, and give no gradient."""
COUNTS = {
    "survae-cifar10": 105_023_968,
    "survae-slice-cifar10": 105_023_968,
    "survae-imagenet32": 105_023_968,
    "survae-imagenet64": 105_023_968,
    "survae-mnist": 104_996_536,
}


def drawn(n, shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (n, *shape), generator=generator).byte()


def moved(model, shape=(3, 8, 8), size=0.3):
    """In eval mode and float64, all its parameters moved from the start."""
    torch.manual_seed(0)
    flow = model.build(shape).double().eval()
    perturb(flow, size=size)
    return flow


@pytest.mark.parametrize("name", COUNTS)
def test_the_published_counts_to_the_last_parameter(name):
    with torch.device("meta"):
        flow = build(name)
    assert sum(p.numel() for p in flow.parameters()) == COUNTS[name]
    if name != "survae-mnist":
        dequantizer = flow.transform.steps[0]
        assert sum(p.numel() for p in dequantizer.parameters()) == 15_135_016


def test_all_published_runs_are_of_that_model():
    assert {RECIPES[name].model.pooling for name in COUNTS} == {"max", "slice"}
    settings = [(name, RECIPES[name].model.scales, RECIPES[name].model.steps) for name in COUNTS]
    assert [(s, k) for name, s, k in settings if "64" in name] == [(3, 8)]
    assert {(s, k) for name, s, k in settings if "64" not in name} == {(2, 12)}
    figures = [RECIPES[name].published for name in COUNTS]
    assert [f and f.bits_per_dim for f in figures] == [3.09, 3.08, 4.01, 3.74, None]
    assert {f"{name}-tiny" for name in COUNTS} <= RECIPES.keys()


@pytest.mark.parametrize("shape", [(3, 8, 8), (4, 12, 4), (3, 16), (3, 4, 4, 8)])
@pytest.mark.parametrize("condition", [None, "classes", "vectors", "added"])
def test_it_runs_both_ways_with_a_gradient_for_every_parameter(shape, condition):
    model, context = WIDE, None
    if condition == "classes":
        model, context = replace(WIDE, classes=Classes(3, 4)), torch.arange(8) % 3
    elif condition == "vectors":
        model, context = replace(WIDE, vectors=Vectors(2, 4)), torch.randn(8, 2)
    elif condition == "added":
        model = replace(WIDE, added=NormalChannels(1))
    for pooling in ("max", "slice"):
        torch.manual_seed(1)
        flow, x = replace(model, pooling=pooling).build(shape), drawn(8, shape)
        flow.initialize(x, context)
        perturb(flow, size=0.2)
        flow(x, context).log_prob.sum().backward()
        for key, parameter in flow.named_parameters():
            assert parameter.grad.isfinite().all() and parameter.grad.any(), key
        flow.double().eval()
        assert flow.density == ("bound" if condition == "added" else "exact")
        assert flow.dequantization == "variational"
        z = flow.encode(x, context)
        assert torch.equal(flow.decode(z, context), x) == (pooling == "slice")
        some = flow.sample(3, None if context is None else context[:3], temperature=0.8)
        assert some.shape == (3, *shape) and some.dtype == torch.uint8


def test_a_quarter_of_the_numbers_is_left_of_each_pooling():
    assert moved(SMALL).latent_shape == (12, 2, 2)
    flow = moved(replace(SMALL, scales=3), (3, 16, 8))
    assert flow.latent_shape == (12, 2, 1) and len(flow.layers()) == 2 + 1 + 2 * 3 + 2 + 1
    assert moved(SLICED).latent_shape == (192,)


@pytest.mark.parametrize("model", [SMALL, SLICED])
def test_the_density_is_its_formula(model):
    """Couplings, 1x1 convolutions and what pooling leaves open, written out from the pixels on."""
    flow = moved(model)
    x, noise = drawn(4, (3, 8, 8)), Noise(0, torch.arange(4))
    dequantizer, rescale, *main = flow.transform
    y, wanted = dequantizer(x, None, noise)
    h = y / 256 - 0.5
    torch.testing.assert_close(rescale(y)[0], h)
    wanted = wanted - 192 * math.log(256)
    if model is SLICED:
        (multi,) = main
        assert isinstance(multi, MultiScale) and multi.kept == [12, 0] and multi.keep == "first"
        main = [*multi.scales[0], *multi.scales[1]]
    assert isinstance(main[0], Squeeze)
    h = squeezed(h)
    for step in main[1:]:
        if isinstance(step, MaxPool):
            cells = squeezed(h).unflatten(1, (12, 4))
            h = cells.max(2).values
            distances = (h[:, :, None] - cells).flatten(1)
            # three half-normal distances of each four numbers, and a place of four
            each = 1.5 * math.log(2 / math.pi) - math.log(4)
            wanted = wanted - 0.5 * distances.square().sum(1) + 12 * 4 * each
        elif isinstance(step, Squeeze):
            h = squeezed(h)
            h, sliced = h[:, :12], h[:, 12:].flatten(1)
            wanted = wanted - 0.5 * (sliced.square() + math.log(2 * math.pi)).sum(1)
        elif isinstance(step, DiagonalAffine):
            h = h * step.log_scale.exp() + step.shift
            wanted = wanted + 4 * step.log_scale.sum()
        else:
            convolution, coupling = step
            weight = convolution.transform.weight
            h = torch.einsum("ij,bjkl->bikl", weight, h)
            wanted = wanted + h.shape[2] * h.shape[3] * torch.linalg.slogdet(weight)[1]
            raw, shift = coupling.net(h[:, :6]).chunk(2, 1)
            log_scale = 2 * torch.tanh(raw / 2)
            h = torch.cat([h[:, :6], h[:, 6:] * log_scale.exp() + shift], 1)
            wanted = wanted + log_scale.flatten(1).sum(1)
    wanted = wanted - 0.5 * (h.square() + math.log(2 * math.pi)).flatten(1).sum(1)
    torch.testing.assert_close(flow.log_prob(x, None, noise), wanted, rtol=1e-10, atol=1e-8)


def squeezed(h):
    """``(C, H, W)`` to ``(4 C, H / 2, W / 2)``: channel 4 c + 2 dy + dx."""
    b, c, rows, columns = h.shape
    cells = h.reshape(b, c, rows // 2, 2, columns // 2, 2)
    return cells.permute(0, 1, 3, 5, 2, 4).reshape(b, 4 * c, rows // 2, columns // 2)


def test_samples_depend_on_the_seed_alone():
    flow = moved(SMALL)

    def samples(seed, **settings):
        generator = torch.Generator().manual_seed(seed)
        return flow.draw(9, generator=generator, **settings).images

    images = samples(4)
    for batch in (1, 4):
        assert torch.equal(samples(4, batch=batch), images)
    assert not torch.equal(samples(5), images)
    assert len(torch.unique(images.flatten(1), dim=0)) == 9


def test_forward_of_what_the_inverse_draws_is_the_latent():
    flow = moved(SMALL).continuous()
    z = torch.randn(5, 48, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    noise = Noise(2, torch.arange(5))
    x, log_det = flow.transform.inverse(z.unflatten(1, (12, 2, 2)), None, noise)
    back, forward_log_det = flow.transform(x)
    torch.testing.assert_close(back.flatten(1), z, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(forward_log_det, -log_det, rtol=1e-9, atol=1e-9)
    other, _ = flow.transform.inverse(z.unflatten(1, (12, 2, 2)), None, Noise(3, noise.keys))
    assert (other - x).abs().max() > 0.1


@pytest.mark.parametrize("model", [SMALL, SLICED])
@pytest.mark.parametrize("memory", ["checkpoint", "invert"])
def test_memory_modes_give_the_gradients_of_store(memory, model):
    flow = replace(model, scales=3).build((1, 16, 16)).double()
    perturb(flow, size=0.1)
    x, noise = drawn(4, (1, 16, 16)), Noise(0, torch.arange(4))
    _warn_once.cache_clear()
    found = []
    for mode in ("store", memory):
        flow.zero_grad()
        flow.memory = mode
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            flow(x, None, noise).log_prob.sum().backward()
        pools = [str(w.message) for w in told if "(MaxPool)" in str(w.message)]
        assert len(pools) == (2 if mode == "invert" and model is SMALL else 0)
        found.append([p.grad.clone() for p in flow.parameters()])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("model", [SMALL, SLICED])
def test_its_inference_copy_is_the_same(model):
    flow = moved(model)
    folded, x, noise = flow.fused(), drawn(5, (3, 8, 8)), Noise(0, torch.arange(5))
    scores = [each.log_prob(x, None, noise) for each in (flow, folded)]
    torch.testing.assert_close(*scores, rtol=1e-9, atol=1e-9)
    z = flow.encode(x)
    torch.testing.assert_close(folded.encode(x), z, rtol=1e-9, atol=1e-9)
    assert torch.equal(folded.decode(z), flow.decode(z))


def test_importance_weighting_lowers_the_figure_of_learned_noise():
    flow, x = moved(SMALL), drawn(24, (3, 8, 8))
    single, weighted = (bits(flow, x.numpy(), importance_samples=k) for k in (1, 16))
    assert weighted.bits_per_dim < single.bits_per_dim
    assert weighted.kind == (
        "exact density, variational dequantisation, importance-weighted (K = 16)"
    )


def pictures(n=30, seed=0):
    rng = np.random.default_rng(seed)
    ramp = rng.integers(0, 120, (n, 1, 1, 1)) + 12 * np.arange(8).reshape(1, 1, 8, 1)
    pixels = np.clip(ramp + rng.integers(0, 20, (n, 3, 8, 8)), 0, 255).astype(np.uint8)
    return make_images(pixels, rng.integers(0, 2, n), dataset_id="ramps")


def test_a_stopped_run_resumes_to_the_bit(tmp_path, monkeypatch):
    torch.set_num_threads(1)
    config = TrainConfig(
        steps=8, batch=5, lr=1e-2, warmup=2, initial=8, evaluate_every=4, minutes=None
    )
    config = replace(config, optimizer=RECIPES["survae-cifar10-tiny"].train.optimizer)

    def go(folder):
        torch.manual_seed(0)
        train(SMALL.build((3, 8, 8)), pictures(), out=folder, config=config, quiet=True)

    go(tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        go(tmp_path / "run")
    go(tmp_path / "run")
    whole, resumed = everything(tmp_path / "whole"), everything(tmp_path / "run")
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    loaded = load(tmp_path / "run")
    x = pictures(4, seed=1).pixels
    assert isinstance(loaded.transform, Chain) and loaded.latent_shape == (12, 2, 2)
    assert loaded.bits_per_dim(x).isfinite().all()
    assert RunFolder(tmp_path / "run").read_metrics()[-1]["step"] == 8


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of the twin's model, made narrow, by the command."""
    folder = tmp_path_factory.mktemp("survae")
    images = pictures(40)
    pixels = np.moveaxis(images.pixels, 1, -1)
    np.savez(
        folder / "images.npz",
        train_images=pixels[:30],
        test_images=pixels[30:],
        train_labels=images.labels[:30],
        test_labels=images.labels[30:],
    )
    narrow = ["--model.steps", 1, "--model.net.width", 4, "--model.net.growth", 4]
    command = ["train", "survae-cifar10-tiny", "--data", folder / "images.npz", *narrow]
    command += ["--out", folder / "run", "--steps", 3, "--train.batch", 8, "--threads", 1]
    assert main([str(word) for word in command]) == 0
    return folder / "run"


def test_commands_read_such_a_run(run, capsys):
    for words in (
        ["evaluate", run, "--images", 6, "--importance-samples", 3],
        ["sample", run, "--number", 4],
        ["outliers", run, "--inside", run.parent / "images.npz", "--false-alarms", 0.3],
        ["restore", run, "--noise", 20, "--steps", 2, "--images", 2],
        ["report", run],
        ["publish", run, "--to", run.parent / "published"],
        ["sample", run.parent / "published", "--number", 2],
    ):
        assert main([str(word) for word in words]) == 0, words
    printed = capsys.readouterr().out
    assert "exact density, variational dequantisation" in printed and "(K = 3)" in printed
    latent = ["restore", run, "--noise", 20, "--space", "latent", "--images", 2]
    assert main([str(word) for word in latent]) == 2
    assert "leave a part of an image open" in capsys.readouterr().err


def test_settings_that_do_not_fit_name_themselves():
    with pytest.raises(ValueError, match="SurVAE: pooling must be one of max, slice; got 'mean'"):
        SurVAE(pooling="mean")
    with pytest.raises(ValueError, match="SurVAE: steps must be at least 1; got 0"):
        SurVAE(steps=0)
    with pytest.raises(ConfigError, match=r"3 scales .* multiples of 8.*model\.scales"):
        replace(SMALL, scales=3).build((3, 12, 12))


def test_the_twin_has_every_mechanism():
    kinds = [{type(m) for m in build(f"survae-cifar10{end}").modules()} for end in ("-tiny",)]
    with torch.device("meta"):
        full = {type(m) for m in SurVAE().build((3, 32, 32)).modules()}
    assert kinds == [full]
    assert evolve(TWIN, {"pooling": "slice"}) == RECIPES["survae-slice-cifar10-tiny"].model
    assert mixerflow.SurVAE is SurVAE
