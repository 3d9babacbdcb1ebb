"""Maps of images against closed forms of a Gaussian density, plain loops, and planted patches."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from benchmarks.maps import figures

from gaussian_images import Linear
from helpers import MODEL, flow_of, images
from mixerflow import pictures
from mixerflow.core import Chain, Flow
from mixerflow.detection import (
    GradientMap,
    OcclusionMap,
    SlopeMap,
    VarianceMap,
    map_auroc,
    paste,
)
from mixerflow.detection.windows import Window, filled, windows_of
from mixerflow.errors import ConfigError
from mixerflow.parts import LogitPixels, ResidualDense, VariationalDequantizer, Vectors
from mixerflow.registry import describe
from mixerflow.restoration import blurred, harmonic
from mixerflow.transforms import Dequantize, Rescale
from mixerflow.transforms.checks.subject import perturb
from mixers import DENSEFLOW, mixer

SHAPE = (2, 7, 5)
MAPS = [GradientMap(1.0), SlopeMap(0.7, 1.0), VarianceMap(0.7, 1.0), OcclusionMap(3, 2)]


def gaussian(shape, levels=256, seed=0):
    """Mean, precision and log-determinant of smooth images, and the flow that is their density."""
    channels, height, width = shape
    size = math.prod(shape)
    axes = [torch.arange(n, dtype=torch.float64) for n in (height, width)]
    places = torch.cartesian_prod(*axes)
    near = (-0.5 * torch.cdist(places, places).square() / 4.0).exp()
    generator = torch.Generator().manual_seed(seed)
    skew = torch.randn(size, size, generator=generator, dtype=torch.float64) / 20
    covariance = 100 * torch.kron(torch.eye(channels, dtype=torch.float64) + 0.3, near)
    covariance += 4 * (skew @ skew.T + torch.eye(size, dtype=torch.float64))
    mean = (levels or 256) * (0.4 + 0.1 * torch.rand(size, generator=generator).double())
    matrix = torch.linalg.cholesky(torch.linalg.inv(covariance)).T
    steps = [Dequantize(levels)] if levels else []
    flow = Flow(Chain(*steps, Linear(shape, matrix, mean)), shape, levels=levels).double().eval()
    return flow, mean, covariance


def log_normal(x, mean, covariance):
    d = x.reshape(-1).double() - mean
    quadratic = d @ torch.linalg.solve(covariance, d)
    return -0.5 * (quadratic + torch.linalg.slogdet(2 * math.pi * covariance)[1])


def draws(n, shape=SHAPE, levels=256, seed=3):
    _, mean, covariance = gaussian(shape, levels)
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(n, len(mean), generator=generator, dtype=torch.float64)
    x = (mean + z @ torch.linalg.cholesky(covariance).T).reshape(n, *shape)
    return x.floor().clamp(0, levels - 1).to(torch.int64) if levels else x


def by_neighbours(x, window):
    """The harmonic filling, from a system that is written down pixel by pixel."""
    channels, height, width = x.shape
    inside = [
        (r, c) for r in range(height)[window.slices[0]] for c in range(width)[window.slices[1]]
    ]
    system, right = np.zeros((len(inside),) * 2), np.zeros((len(inside), channels))
    for i, (r, c) in enumerate(inside):
        for near in ((r - 1, c), (r + 1, c), (r, c - 1), (r, c + 1)):
            if 0 <= near[0] < height and 0 <= near[1] < width:
                system[i, i] += 1
                if near in inside:
                    system[i, inside.index(near)] -= 1
                else:
                    right[i] += x[:, near[0], near[1]].numpy()
    out = x.clone()
    for (r, c), value in zip(inside, np.linalg.solve(system, right), strict=True):
        out[:, r, c] = torch.from_numpy(value)
    return out


@pytest.mark.parametrize("size", [(7, 5), (5, 7), (1, 6), (4, 4), (9, 16)])
@pytest.mark.parametrize(("side", "stride"), [(1, 1), (3, 2), (3, 3), (4, 1), (6, 5)])
def test_windows_cover_an_image_and_stay_inside(size, side, stride):
    covered = np.zeros(size, int)
    windows = windows_of(*size, side, stride)
    for window in windows:
        assert (window.height, window.width) == tuple(min(side, n) for n in size)
        assert window.top + window.height <= size[0] and window.left + window.width <= size[1]
        covered[window.slices] += 1
    assert covered.min() >= 1 and len(set(windows)) == len(windows)
    tops = sorted({window.top for window in windows})
    assert all(0 < b - a <= stride for a, b in itertools.pairwise(tops))


@pytest.mark.parametrize(
    "window",
    [
        Window(2, 1, 3, 3),
        Window(0, 0, 3, 2),
        Window(4, 3, 3, 2),
        Window(2, 0, 3, 5),
        Window(0, 1, 7, 2),
    ],
)
def test_a_filling_is_harmonic(window):
    x = 255 * torch.rand(3, *SHAPE, generator=torch.Generator().manual_seed(0)).double()
    made = filled(x, window)
    for image, one in zip(x, made, strict=True):
        torch.testing.assert_close(one, by_neighbours(image, window), atol=1e-10, rtol=0)
    known = torch.ones(SHAPE[1:], dtype=torch.bool)
    known[window.slices] = False
    assert torch.equal(made[:, :, known], x[:, :, known])
    torch.testing.assert_close(made, harmonic(x, known), atol=1e-3, rtol=0)


@pytest.mark.parametrize(("patch", "stride"), [(3, 2), (1, 1), (6, 1)])
@pytest.mark.parametrize("levels", [256, 65536, None])
def test_occlusion_is_a_plain_loop_of_a_closed_form(patch, stride, levels):
    flow, mean, covariance = gaussian(SHAPE, levels)
    x = draws(3, levels=levels)
    found = OcclusionMap(patch, stride).map(flow, x, batch=4)
    real = x.double() + (0.5 if levels else 0)
    for image, one in zip(real, found, strict=True):
        total, count = torch.zeros(SHAPE[1:]).double(), torch.zeros(SHAPE[1:])
        plain = log_normal(image, mean, covariance)
        for window in windows_of(*SHAPE[1:], patch, stride):
            saved = log_normal(by_neighbours(image, window), mean, covariance) - plain
            saved /= math.log(2) * SHAPE[0] * window.height * window.width
            total[window.slices] += saved
            count[window.slices] += 1
        torch.testing.assert_close(one, total / count, atol=1e-8, rtol=1e-8)


def test_bits_saved_compare_the_filling_with_the_window_given_the_rest():
    flow, mean, covariance = gaussian(SHAPE)
    x, window = draws(1), Window(2, 1, 3, 3)
    inside = torch.zeros(SHAPE, dtype=torch.bool)
    inside[:, *window.slices] = True
    inside = inside.flatten()
    precision = torch.linalg.inv(covariance)
    own, cross = precision[inside][:, inside], precision[inside][:, ~inside]
    image = (x[0].double() + 0.5).flatten()
    expected = mean[inside] - torch.linalg.solve(own, cross @ (image - mean)[~inside])
    filling = by_neighbours(x[0].double() + 0.5, window).flatten()

    def conditional(values):  # log p(window | rest), but for a constant
        d = values[inside] - expected
        return -0.5 * d @ own @ d

    wanted = (conditional(filling) - conditional(image)) / (math.log(2) * int(inside.sum()))
    each = OcclusionMap(3, 1)
    number = each.windows(SHAPE).index(window)
    density = flow.continuous()
    saved = each.saved(density, x.double() + 0.5, None, 64, lambda count: None)
    torch.testing.assert_close(saved[0, number], wanted, atol=1e-9, rtol=1e-9)


def averaged(maps, width):
    """The mean under a Gaussian around each pixel, cut off at 4 standard deviations."""
    out, (height, width_in) = torch.zeros_like(maps), maps.shape[1:]
    for r, c in itertools.product(range(height), range(width_in)):
        weights = torch.zeros(height, width_in).double()
        for a, b in itertools.product(range(height), range(width_in)):
            if max(abs(a - r), abs(b - c)) <= math.ceil(4 * width):
                weights[a, b] = math.exp(-0.5 * ((a - r) ** 2 + (b - c) ** 2) / width**2)
        out[:, r, c] = (maps * weights).sum((1, 2)) / weights.sum()
    return out


def test_a_gradient_is_that_of_the_closed_form():
    flow, mean, covariance = gaussian(SHAPE)
    x = draws(4)
    wanted = -torch.linalg.solve(covariance, (x.double() + 0.5).flatten(1).T - mean[:, None]).T
    wanted = wanted.reshape(x.shape).square().sum(1).sqrt()
    torch.testing.assert_close(GradientMap(0).map(flow, x, batch=3), wanted, atol=1e-10, rtol=1e-8)
    smooth = averaged(wanted, 1.5)
    torch.testing.assert_close(GradientMap(1.5).map(flow, x), smooth, atol=1e-10, rtol=1e-8)


def own_weight(n, i, width):
    """Weight of pixel i in its own blur along an axis of n pixels whose ends repeat outside."""
    near = range(-math.ceil(4 * width), math.ceil(4 * width) + 1)
    weights = {k: math.exp(-0.5 * (k / width) ** 2) for k in near}
    at = {k: min(max(i + k, 0), n - 1) for k in near}
    return sum(w for k, w in weights.items() if at[k] == i) / sum(weights.values())


def test_a_slope_is_the_rate_at_which_blurring_raises_the_density():
    flow = flow_of(mixer(layers=2, flow_layers=2, hidden=8, patch=2, shift=1, shift_every=2))
    perturb(flow, size=0.1)
    flow = flow.double().eval()
    x = torch.from_numpy(images(3).pixels)
    slope, step = SlopeMap(0.8, 0.0), 1e-4
    weights = [[own_weight(4, i, 0.8) for i in range(4)]] * 2
    parts = slope.map(flow, x) * (1 - torch.outer(*map(torch.tensor, weights)).double())
    real, density = x.double() + 0.5, flow.continuous()
    v = blurred(real, 0.8) - real
    with torch.no_grad():
        rate = density.log_prob(real + step * v) - density.log_prob(real - step * v)
    torch.testing.assert_close(parts.sum((1, 2)), rate / (2 * step), rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("levels", [256, None])
def test_a_slope_is_1_on_average_at_every_pixel(levels):
    """Stein's identity, for rough and for smooth densities alike."""
    flow, mean, covariance = gaussian(SHAPE, None)
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(20000, len(mean), generator=generator, dtype=torch.float64)
    x = (mean + z @ torch.linalg.cholesky(covariance).T).reshape(-1, *SHAPE)
    if levels:  # real images of a flow of integers are a little beside the centres of their bins
        flow, x = gaussian(SHAPE, levels)[0], x.floor().clamp(0, levels - 1)
    found = SlopeMap(0.9, 0.0).map(flow, x, batch=5000)
    error = found.std(0) / math.sqrt(len(x))
    off = (found.mean(0) - 1).abs()
    if levels:
        assert off.max() < 0.15
    else:
        assert (off < 5 * error).all() and error.max() < 0.05


def test_variance_is_a_weighted_loop():
    x = draws(2)
    found = VarianceMap(0.9, 0.0).map(gaussian(SHAPE)[0], x)
    reach = range(-4, 5)
    kernel = {k: math.exp(-0.5 * (k / 0.9) ** 2) for k in reach}
    total = sum(kernel.values())
    for r in range(SHAPE[1]):
        for c in range(SHAPE[2]):
            pairs = [
                (kernel[i] * kernel[j] / total**2, min(max(r + i, 0), 6), min(max(c + j, 0), 4))
                for i in reach
                for j in reach
            ]
            first = sum(w * x[:, :, a, b].double() for w, a, b in pairs)
            second = sum(w * x[:, :, a, b].double().square() for w, a, b in pairs)
            wanted = (second - first.square()).sum(1)
            torch.testing.assert_close(found[:, r, c], wanted, atol=1e-8, rtol=1e-9)


@pytest.fixture(scope="module")
def flow():
    flow = flow_of(mixer(layers=2, flow_layers=2, hidden=8, patch=2, shift=1, shift_every=2))
    perturb(flow, size=0.1)
    return flow.double()  # in training mode: maps must not depend on it


@pytest.mark.parametrize("each", MAPS, ids=lambda each: type(each).__name__)
def test_a_map_depends_on_no_other_image(flow, each):
    flow.train()
    x = images(7).pixels
    counts = []
    together = each.map(flow, x, on_batch=counts.append)
    assert together.shape == (7, 4, 4) and together.dtype == torch.float64
    assert sum(counts) == 7 * each.evaluations(flow.shape)
    assert together.std() > 0
    for batch in (1, 3):
        counts.clear()
        apart = each.map(flow, x, batch=batch, on_batch=counts.append)
        torch.testing.assert_close(apart, together, atol=1e-9, rtol=1e-9)
        assert not counts or max(counts) == batch
    alone = each.map(flow, x[5:6])
    torch.testing.assert_close(alone, together[5:6], atol=1e-9, rtol=1e-9)
    assert each.map(flow, x[:0]).shape == (0, 4, 4)
    assert flow.training and all(p.grad is None for p in flow.parameters())


@pytest.mark.parametrize("each", MAPS, ids=lambda each: type(each).__name__)
def test_a_conditional_flow_has_maps_given_its_class(each):
    model = mixer(layers=1, flow_layers=2, hidden=8, patch=2, classes=3)
    conditional = flow_of(model)
    perturb(conditional, size=0.3)
    x = images(4).pixels
    first, second = (each.map(conditional, x, np.full(4, y)) for y in (0, 1))
    mixed = each.map(conditional, x, np.array([0, 1, 0, 1]), batch=3)
    torch.testing.assert_close(mixed[::2], first[::2], atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(mixed[1::2], second[1::2], atol=1e-3, rtol=1e-3)
    if isinstance(each, VarianceMap):
        assert torch.equal(first, second)
        return
    assert (first - second).abs().max() > 1e-2
    with pytest.raises(ValueError, match=r"labels \(3,\) for 4 images"):
        each.map(conditional, x, np.zeros(3))


def test_without_classes_a_map_is_of_their_mixture():
    conditional = flow_of(mixer(layers=1, flow_layers=2, hidden=8, patch=2, classes=3))
    perturb(conditional, size=0.3)
    conditional = conditional.double().eval()
    x, density = torch.from_numpy(images(3).pixels), conditional.continuous()

    def log_mixture(real):
        each = [density.log_prob(real, torch.full((3,), k)).exp() for k in range(3)]
        return (sum(each) / 3).log()

    real = (x.double() + 0.5).requires_grad_(True)
    (gradient,) = torch.autograd.grad(log_mixture(real).sum(), real)
    torch.testing.assert_close(GradientMap(0).map(conditional, x), gradient.abs().sum(1))
    window = Window(0, 0, 3, 3)
    with torch.no_grad():
        saved = log_mixture(filled(real, window)) - log_mixture(real)
    found = OcclusionMap(3, 1).map(conditional, x)[:, 0, 0]  # which no other window covers
    torch.testing.assert_close(found, saved / (9 * math.log(2)))
    vectors = flow_of(dataclasses.replace(MODEL, classes=Vectors(3)))
    with pytest.raises(ValueError, match="conditional"):
        GradientMap().map(vectors, x)


@pytest.mark.parametrize(
    ("shape", "each", "words"),
    [
        ((1, 6), GradientMap(), "two spatial axes"),
        ((1, 3, 3, 3), OcclusionMap(2, 1), "two spatial axes"),
        ((1, 4, 4), OcclusionMap(4, 2), "leaves nothing of images of 4 x 4 around it"),
        ((1, 4, 4), OcclusionMap(9, 2), "leaves nothing"),
    ],
)
def test_images_that_have_no_such_map(shape, each, words):
    flow = Flow(Chain(Dequantize(256), Rescale(1 / 256)), shape, levels=256)
    with pytest.raises(ConfigError, match=words):
        each.map(flow, torch.zeros(2, *shape, dtype=torch.uint8))


def test_settings_and_images_that_cannot_be(flow):
    for made in (
        lambda: OcclusionMap(0, 1),
        lambda: OcclusionMap(3, 4),
        lambda: OcclusionMap(3, 0),
        lambda: GradientMap(-1.0),
        lambda: SlopeMap(0.0, 1.0),
        lambda: VarianceMap(float("nan")),
    ):
        with pytest.raises(ConfigError, match="give"):
            made()
    x = images(2).pixels
    with pytest.raises(ConfigError, match="at a time"):
        GradientMap().map(flow, x, batch=0)
    with pytest.raises(ValueError, match=r"images \(N, 1, 4, 4\)"):
        GradientMap().map(flow, x[:, :, :3])
    with pytest.raises(ValueError, match=r"lie in 0\.\.255"):
        SlopeMap().map(flow, torch.full((1, 1, 4, 4), 300))
    with pytest.raises(ValueError, match="not finite"):
        VarianceMap().map(flow, torch.full((1, 1, 4, 4), math.nan))
    bound = flow_of(DENSEFLOW)
    with pytest.raises(ConfigError, match="a bound, whose noise a map would show"):
        GradientMap().map(bound, x)


def test_learned_dequantisation_has_maps_of_the_density_behind_it():
    noise = VariationalDequantizer(steps=1, context=4, growth=2, depth=1, net=ResidualDense(4))
    model = mixer(layers=1, flow_layers=1, hidden=4, patch=2)
    learned = flow_of(dataclasses.replace(model, pixels=LogitPixels(0.0, dequantizer=noise)))
    perturb(learned, size=0.1)
    learned = learned.double().eval()
    x = torch.from_numpy(images(2).pixels)
    real = (x.double() + 0.5).requires_grad_(True)
    (gradient,) = torch.autograd.grad(learned.continuous().log_prob(real).sum(), real)
    torch.testing.assert_close(GradientMap(0).map(learned, x), gradient.abs().sum(1))


def test_maps_are_values_that_files_can_name():
    assert describe(OcclusionMap(5, 2)) == {"type": "OcclusionMap", "patch": 5, "stride": 2}


def test_pasted_patches_are_foreign_and_nothing_else_changes():
    rng = np.random.default_rng(0)
    x = rng.integers(0, 100, (40, 3, 9, 7)).astype(np.uint8)
    foreign = rng.integers(150, 250, (5, 3, 6, 8)).astype(np.uint8)
    kept = x.copy()
    pasted = paste(x, foreign, side=4, seed=3)
    assert np.array_equal(x, kept) and pasted.images.dtype == np.uint8
    assert (pasted.masks.sum((1, 2)) == 16).all()
    inside = np.broadcast_to(pasted.masks[:, None], x.shape)
    assert (pasted.images[inside] >= 150).all()
    assert np.array_equal(pasted.images[~inside], x[~inside])
    corners = set()
    for image, mask in zip(pasted.images, pasted.masks, strict=True):
        rows, columns = np.nonzero(mask)
        corners.add((rows.min(), columns.min()))
        square = image[:, rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        views = np.lib.stride_tricks.sliding_window_view(foreign, (3, 4, 4), axis=(1, 2, 3))
        assert (views == square).all((-1, -2, -3)).any()
    assert len(corners) > 10
    again, other = (paste(x, foreign, side=4, seed=seed) for seed in (3, 4))
    assert np.array_equal(again.images, pasted.images)
    assert not np.array_equal(other.masks, pasted.masks)


@pytest.mark.parametrize(
    ("foreign", "side"),
    [
        (np.zeros((2, 1, 9, 9), np.uint8), 3),
        (np.zeros((2, 3, 9, 9), np.uint16), 3),
        (np.zeros((0, 3, 9, 9), np.uint8), 3),
        (np.zeros((2, 3, 4, 9), np.uint8), 5),
        (np.zeros((2, 3, 9, 9), np.uint8), 0),
        (np.zeros((2, 3, 9, 9), np.uint8), 7),
    ],
)
def test_patches_that_cannot_be_pasted(foreign, side):
    with pytest.raises(ConfigError, match="paste: give"):
        paste(np.zeros((4, 3, 7, 7), np.uint8), foreign, side=side)


def test_auroc_of_a_map_counts_pairs_of_pixels():
    rng = np.random.default_rng(0)
    maps, masks = rng.integers(0, 5, (6, 4, 5)).astype(float), rng.random((6, 4, 5)) < 0.4
    for value, each, mask in zip(map_auroc(maps, masks), maps, masks, strict=True):
        pairs = [(a > b) + (a == b) / 2 for a in each[mask] for b in each[~mask]]
        assert value.item() == pytest.approx(np.mean(pairs), abs=1e-12)
    assert map_auroc(masks + 0.0, masks).tolist() == [1.0] * 6
    assert map_auroc(np.zeros((6, 4, 5)), masks).tolist() == [0.5] * 6
    maps[0, 0, 0] = np.nan
    for wrong in ((maps, masks), (maps[1:], masks), (masks + 0.0, masks & False)):
        with pytest.raises(ValueError, match="map_auroc"):
            map_auroc(*wrong)


@pytest.mark.parametrize("each", [SlopeMap(0.7, 1.5), OcclusionMap(4, 2)])
def test_a_patch_of_noise_is_found_in_images_of_a_gaussian(each):
    shape = (1, 14, 14)
    flow = gaussian(shape)[0]
    x = draws(12, shape).numpy().astype(np.uint8)
    noise = np.random.default_rng(0).integers(60, 160, (20, *shape)).astype(np.uint8)
    pasted = paste(x, noise, side=5)
    assert map_auroc(each.map(flow, pasted.images), pasted.masks).mean() > 0.9


def test_heat_has_one_scale_for_all_images():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (2, 1, 6, 6)).astype(np.uint8)
    maps = np.stack([rng.random((6, 6)), 10 + rng.random((6, 6))])
    shown = pictures.heat(pixels, maps)
    assert shown.shape == (2, 3, 6, 6) and shown.dtype == np.uint8
    assert np.array_equal(shown[0], np.repeat(pixels[0], 3, 0))  # all is below the scale
    assert (shown[1, 0] >= shown[1, 1]).all() and (shown[1, 0] > shown[1, 2]).any()
    hottest = np.unravel_index(maps[1].argmax(), (6, 6))
    grey = 0.25 * pixels[1, 0][hottest]
    wanted = np.round(np.array([grey + 0.75 * 255, grey + 0.75 * 255, grey]))
    assert np.array_equal(shown[1][:, *hottest], wanted)
    maps[0, 2, 3] = np.nan
    assert pictures.heat(pixels, maps)[0, :, 2, 3].tolist() == [255, 0, 255]
    deep = pictures.heat(pixels.astype(np.uint16) << 8, maps)
    assert np.array_equal(deep, pictures.heat(pixels, maps))
    same = pictures.heat(pixels, np.zeros((2, 6, 6)))
    assert np.array_equal(same, np.repeat(pixels, 3, 1))
    with pytest.raises(ValueError, match="maps of images"):
        pictures.heat(pixels, maps[:, :5])


def test_figures_of_the_benchmark_are_means_over_seeds_and_images():
    one, two = torch.tensor([0.6, 0.8, 1.0]), torch.tensor([0.8, 0.8, 0.8])
    found = figures({"slope": [one, two], "variance": [two, two]})
    assert found["slope"]["auroc"] == pytest.approx(0.8)
    assert found["slope"]["seeds"] == pytest.approx([0.8, 0.8])
    assert found["slope"]["auroc_error"] == pytest.approx(0.1 / math.sqrt(3))
    assert found["slope"]["above_variance"] == pytest.approx(0.0, abs=1e-7)
    assert found["slope"]["above_variance_error"] == pytest.approx(0.1 / math.sqrt(3))
    assert found["variance"]["above_variance_error"] == 0
