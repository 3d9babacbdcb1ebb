"""Gaussianization flows of images: counts, density by autograd, the start from data, samples."""

import dataclasses
import math

import numpy as np
import pytest
import torch

import mixerflow
from mixerflow.core import Noise
from mixerflow.data import make_images
from mixerflow.errors import ConfigError
from mixerflow.models import GaussianizationFlow, from_spec, spec_of
from mixerflow.parts import Classes, LogitPixels, Vectors
from mixerflow.training import TrainConfig, train
from mixerflow.transforms.checks import perturb

COUNTS = {"gaussianization-mnist": 708_736, "gaussianization-mnist-tiny": 363_776}
SHAPE = (2, 3, 4)
SMALL = GaussianizationFlow(layers=2, reflections=5)
MODELS = {
    "principal": SMALL,
    "random, all reflections": dataclasses.replace(SMALL, start="random", reflections=None),
    "more reflections than numbers, logit": dataclasses.replace(
        SMALL, reflections=99, pixels=LogitPixels(0.05)
    ),
}


def drawn(count, seed=0):
    """Images of two kinds, whose values vary together and are dark in half of the places."""
    rng = np.random.default_rng(seed)
    level = rng.integers(0, 2, (count, 1, 1, 1)) * 120 + rng.integers(0, 90, (count, 1, 1, 1))
    x = np.clip(level + rng.integers(-20, 20, (count, *SHAPE)), 0, 255)
    x[:, :, :, :2] = x[:, :, :, :2] // 4 * (level > 100)
    return torch.from_numpy(x.astype(np.uint8))


def moved(model, size=0.2):
    """In eval mode and float64, started from images and moved from there."""
    torch.manual_seed(0)
    flow = model.build(SHAPE).double()
    flow.initialize(drawn(300))
    perturb(flow.transform, size=size)
    return flow.eval()


@pytest.mark.parametrize("name", COUNTS)
def test_the_recipes_have_their_counts(name):
    with torch.device("meta"):
        flow = mixerflow.build(name)
    assert sum(p.numel() for p in flow.parameters()) == COUNTS[name]


@pytest.mark.parametrize("name", MODELS)
def test_log_det_is_the_jacobians(name):
    flow = moved(MODELS[name])
    x = drawn(2, seed=1) + torch.rand(2, *SHAPE, dtype=torch.float64)

    def forward(image):
        z, log_det = image[None], 0.0
        for step in flow.transform.steps[1:]:  # behind dequantisation
            z, each = step(z)
            log_det = log_det + each
        return z[0], log_det

    for image in x:
        jacobian = torch.autograd.functional.jacobian(lambda t: forward(t)[0], image)
        exact = torch.linalg.slogdet(jacobian.reshape(24, 24))[1]
        torch.testing.assert_close(forward(image)[1][0], exact, rtol=1e-9, atol=1e-8)


@pytest.mark.parametrize("name", MODELS)
def test_images_come_back_and_no_image_sees_another(name):
    flow, x, keys = moved(MODELS[name]), drawn(5, seed=1), torch.arange(5)
    assert torch.equal(flow.decode(flow.encode(x)), x)
    score = flow(x, None, Noise(0, keys)).log_prob
    others = drawn(5, seed=2)
    others[2] = x[2]
    assert torch.equal(flow(others, None, Noise(0, keys)).log_prob[2], score[2])
    alone = flow(x[2:3], None, Noise(0, keys[2:3])).log_prob
    torch.testing.assert_close(alone, score[2:3], rtol=1e-12, atol=0)
    assert flow.sample(3).shape == (3, *SHAPE)


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_has_a_gradient(name):
    flow = moved(MODELS[name])
    flow(drawn(20, seed=1)).log_prob.mean().backward()
    for key, parameter in flow.named_parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.any(), key


@pytest.mark.parametrize("memory", ["checkpoint", "invert"])
def test_memory_modes_have_the_same_gradients(memory):
    def gradients(mode):
        flow = moved(SMALL)
        flow.memory = mode
        flow(drawn(9, seed=1), None, Noise(0, torch.arange(9))).log_prob.mean().backward()
        return {key: parameter.grad for key, parameter in flow.named_parameters()}

    torch.testing.assert_close(gradients(memory), gradients("store"), rtol=1e-6, atol=1e-8)


def test_iterative_gaussianization_alone_beats_one_gaussian_and_random_rotations():
    """Started from 2000 images, without a step of training."""
    images, new = drawn(2000), drawn(500, seed=1)
    noise = Noise(0, torch.arange(500))

    def bits(start):
        torch.manual_seed(0)
        flow = dataclasses.replace(SMALL, start=start).build(SHAPE)
        flow.initialize(images)
        return flow.eval().bits_per_dim(new, noise=noise).mean().item()

    gaussian = mixerflow.evaluate.gaussian_bits(images.numpy(), new.numpy(), full=True)
    assert bits("principal") < bits("random") - 0.05
    assert bits("principal") < gaussian - 0.15


def test_principal_components_are_the_axes_behind_the_first_rotation():
    flow = SMALL.build(SHAPE).double()
    x = drawn(400)
    with torch.no_grad():
        noise = Noise(0, torch.arange(400))
        flow.initialize(x)
        values = x
        for step in flow.transform.steps[:4]:  # pixels, vector, marginals
            values, _ = step(values, None, noise)
        rotated = flow.transform.steps[4].steps[0](values)[0]
    # other noise than at the start, so only nearly
    assert rotated.shape == (400, 24) and math.isclose(float(values.var()), 1, abs_tol=0.1)
    covariance = rotated.mT.cov()[:5]
    diagonal = covariance.diagonal()
    off = (covariance - torch.nn.functional.pad(diagonal.diag(), (0, 19))).abs().max()
    assert off < 0.05 * diagonal[0]
    assert (diagonal.diff() < 0.1).all() and diagonal[0] > 3 * diagonal[4]


def test_training_lowers_the_bits_and_a_run_folder_gives_the_model_back(tmp_path):
    images = make_images(drawn(200).numpy(), None, dataset_id="two kinds")
    torch.manual_seed(3)
    flow = SMALL.build(SHAPE)
    assert from_spec(spec_of(SMALL, SHAPE)) == (SMALL, SHAPE)
    config = TrainConfig(steps=40, batch=32, lr=1e-2, warmup=2, ema=0.9, evaluate_every=40)
    started = SMALL.build(SHAPE)
    started.initialize(images.pixels)
    noise = Noise(0, torch.arange(200))
    before = started.eval().bits_per_dim(images.pixels, noise=noise).mean()
    train(flow, images, out=tmp_path / "run", config=config, quiet=True)
    loaded = mixerflow.load(tmp_path / "run", which="last")
    after = loaded.bits_per_dim(images.pixels, noise=noise)
    assert torch.equal(after, flow.bits_per_dim(images.pixels, noise=noise))
    assert after.mean() < before - 0.02
    fused = loaded.fused().bits_per_dim(images.pixels, noise=noise)
    torch.testing.assert_close(fused, after, rtol=0, atol=1e-3)


def test_what_does_not_fit_is_refused_in_one_line():
    for condition in ({"classes": Classes(3)}, {"vectors": Vectors(3)}):
        with pytest.raises(ConfigError, match=r"no nets that could read them.*model\.(c|v)"):
            dataclasses.replace(SMALL, **condition).build(SHAPE)
    with pytest.raises(ConfigError, match=r"two components at least; got 1.*model\.components"):
        dataclasses.replace(SMALL, components=1).build(SHAPE)
    with pytest.raises(ConfigError, match=r"start must be random or principal.*model\.start"):
        dataclasses.replace(SMALL, start="ica").build(SHAPE)
    with pytest.raises(ValueError, match="GaussianizationFlow: reflections must be at least 1"):
        dataclasses.replace(SMALL, reflections=0)
