"""Batch norm as a transform, and MADE and MAF over whole images."""

import math

import numpy as np
import pytest
import torch

from mixerflow.core import Chain, Noise
from mixerflow.data import make_images
from mixerflow.models import MAF, from_spec, spec_of
from mixerflow.recipes import RECIPES, build
from mixerflow.runs import load
from mixerflow.training import TrainConfig, train
from mixerflow.transforms import LU, BatchNorm
from mixerflow.transforms.checks import perturb
from mixerflow.transforms.linear import Linear
from mixers import maf

SHAPE = (1, 4, 4)
SMALL = {"layers": 2, "hidden": 16, "scale_bound": 2.0}


@pytest.mark.parametrize(
    ("shape", "event", "shared"), [((3, 1, 1), (3, 2, 4), (0, 2, 3)), (5, (5,), (0,))]
)
def test_in_training_it_is_the_batch_that_standardises(shape, event, shared):
    norm = BatchNorm(shape).double()
    perturb(norm)
    x = 3 * torch.randn(7, *event, dtype=torch.float64) + 2
    before = norm.moments.running_mean.clone()
    z, log_det = norm.train()(x)
    variance, mean = torch.var_mean(x, shared, correction=0, keepdim=True)
    scale = norm.log_scale.exp() / (variance + 1e-5).sqrt()
    torch.testing.assert_close(z, (x - mean) * scale + norm.shift)
    torch.testing.assert_close(log_det, scale[0].expand(event).log().sum().expand(7))
    torch.testing.assert_close(norm.moments.running_mean, before.lerp(mean.flatten(), 0.1))
    assert not norm.invertible
    assert norm.eval().invertible


def test_its_gradients_go_through_the_batchs_moments():
    norm = BatchNorm(3).double().train()
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: norm(x), x)


def test_it_starts_from_a_first_batch_and_one_value_has_no_variance():
    norm, x = BatchNorm(4).double(), 3 * torch.randn(50, 4).double() + 1
    z = norm.initialize(x)
    torch.testing.assert_close(norm.eval()(x)[0], z)
    torch.testing.assert_close(z.var(0), torch.ones(4).double(), rtol=1e-4, atol=0)
    with pytest.raises(ValueError, match="2 or more"):
        norm.train()(x[:1])


def test_it_folds_into_the_linear_map_next_to_it():
    chain = Chain(LU(4), BatchNorm(4), LU(4)).double()
    perturb(chain)
    fused, x = chain.eval().fused(), torch.randn(3, 4).double()
    assert [type(step) for step in fused] == [Linear]
    torch.testing.assert_close(fused(x), chain(x))


@pytest.mark.parametrize("settings", [{}, {"order": "random", "depth": 2}, {"batch_norm": False}])
def test_pixels_come_back_and_specs_rebuild(settings):
    config = maf(**SMALL, **settings)
    flow = build(config, SHAPE)
    assert from_spec(spec_of(config, SHAPE)) == (config, SHAPE)
    x = torch.randint(0, 256, (50, *SHAPE), dtype=torch.uint8)
    flow.initialize(x)
    perturb(flow, size=0.2)
    flow.double().eval()
    assert torch.equal(flow.decode(flow.encode(x)), x)


def test_a_fresh_mades_bits_are_those_of_the_logit_alone():
    flow = build(maf(layers=1, hidden=8, batch_norm=False, alpha=0.05), SHAPE).double()
    x = torch.randint(0, 256, (6, *SHAPE), dtype=torch.uint8)
    noise = Noise(0, torch.arange(6))
    u = flow.transform.steps[0](x, None, noise)[0].flatten(1) / 256
    p = 0.05 + 0.9 * u
    z = p.logit()
    log_prob = torch.distributions.Normal(0.0, 1.0).log_prob(z) + (0.9 / (p * (1 - p))).log()
    wanted = -(log_prob - math.log(256)).mean(1) / math.log(2)
    torch.testing.assert_close(flow.bits_per_dim(x, noise=noise), wanted)


def test_a_run_folder_gives_the_same_model_back(tmp_path):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 180, (80, 1, 1, 1)) + rng.integers(0, 40, (80, *SHAPE))
    images = make_images(pixels.astype(np.uint8), None, dataset_id="ramps")
    torch.manual_seed(3)
    flow = build(maf(**SMALL, order="random"), SHAPE)
    before = flow.bits_per_dim(images.pixels).mean()
    config = TrainConfig(steps=60, batch=16, lr=1e-2, warmup=2, ema=0.9, evaluate_every=30)
    train(flow, images, out=tmp_path / "run", config=config, quiet=True)
    after = flow.bits_per_dim(images.pixels)
    assert after.mean() < before - 0.5
    torch.manual_seed(4)  # another order would be drawn
    assert torch.equal(load(tmp_path / "run", which="last").bits_per_dim(images.pixels), after)


def test_every_baseline_has_a_twin():
    for name in ("made-mnist", "made-cifar10", "maf-mnist", "maf-cifar10"):
        assert RECIPES[name].published is not None
        assert isinstance(RECIPES[f"{name}-tiny"].model, MAF)
