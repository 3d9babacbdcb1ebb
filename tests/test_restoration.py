"""Restoration against closed forms: the maximum of a Gaussian posterior solves a linear system."""

import dataclasses
import math

import pytest
import torch

from gaussian_images import (
    EVENT,
    MEASUREMENTS,
    D,
    Linear,
    drawn,
    gaussian_flow,
    gaussian_prior,
    matrix_of,
)
from helpers import SHAPE, flow_of, images
from mixerflow import restore
from mixerflow.core import Chain, Flow, Layer, Noise, Transform
from mixerflow.errors import ConfigError
from mixerflow.models import Glow
from mixerflow.parts import (
    Classes,
    GlobalShuffle,
    GlowConv,
    LogitPixels,
    LUMap,
    ResidualDense,
    VariationalDequantizer,
)
from mixerflow.restoration import (
    ROUNDING,
    Blurred,
    CentreMask,
    Downsampled,
    ImageSearch,
    LatentSearch,
    Masked,
    Noisy,
    RandomMask,
    compare,
    real_bits,
)
from mixerflow.transforms import (
    Affine,
    Dequantize,
    Logit,
    Rescale,
    ShufflePixels,
)
from mixerflow.transforms.checks.subject import perturb
from mixers import DENSEFLOW, maf, mixer

SEARCHES = {"image": ImageSearch(1000, 2.0), "latent": LatentSearch(1000, 0.5)}


CASES = [(name, space, 256, 1.0) for name in MEASUREMENTS for space in SEARCHES]
CASES += [("blurred", space, *other) for space in SEARCHES for other in [(None, 1.0), (256, 0.4)]]
# every measurement, level and weight, and half of them in each space; the other half is slow
CASES = [
    case if number % 4 in (0, 3) else pytest.param(*case, marks=pytest.mark.slow)
    for number, case in enumerate(CASES)
]


@pytest.mark.parametrize(("name", "space", "levels", "weight"), CASES)
def test_the_maximum_of_a_gaussian_posterior_solves_a_linear_system(name, space, levels, weight):
    """``(w S^-1 + A^T A / s^2) x = w S^-1 m + A^T y / s^2``."""
    measurement, x = MEASUREMENTS[name], drawn()
    y = measurement.measure(x, Noise.of(0, x))
    covariance, mean = gaussian_prior()
    a, precision = matrix_of(measurement), weight * torch.linalg.inv(covariance)
    half = 0.5 if levels else 0.0  # a pixel value k is the real number k + 1/2
    right = precision @ (mean - half) + y.flatten(1).to(a) @ a / measurement.sigma**2
    wanted = torch.linalg.solve(precision + a.T @ a / measurement.sigma**2, right.T).T
    search = type(SEARCHES[space])(SEARCHES[space].steps, SEARCHES[space].rate, weight)
    restored = restore(gaussian_flow(levels), y, measurement, search=search)
    error = (restored.images.flatten(1) - wanted).abs().max().item()
    prior_error = (mean - half - wanted).abs().max().item()
    assert error < 2e-3 < 1 < prior_error
    z = (wanted + half - mean) @ torch.linalg.inv(covariance) * (wanted + half - mean)
    log_prob = -0.5 * (z.sum(1) + torch.linalg.slogdet(2 * math.pi * covariance)[1])
    torch.testing.assert_close(
        restored.bits_per_dim, -log_prob / (D * math.log(2)), atol=1e-5, rtol=0
    )
    assert (restored.gain > 0).all()


@pytest.fixture(scope="module")
def trained():
    """A flow of the package's own layers, away from the identity."""
    flow = flow_of(mixer(layers=2, flow_layers=2, hidden=8, patch=2, shift=1, shift_every=2))
    perturb(flow, size=0.1)
    return flow.eval()


@pytest.mark.parametrize("space", ["image", "latent"])
def test_an_image_does_not_depend_on_its_batch(trained, space):
    x = torch.from_numpy(images(5).pixels).float()
    measurement = Masked(mask=RandomMask(0.3), sigma=20.0)
    y = measurement.measure(x, Noise.of(0, x))
    search = ImageSearch(15) if space == "image" else LatentSearch(15, 0.1)
    together = restore(trained, y, measurement, search=search)
    for batch in (1, 2):
        apart = restore(trained, y, measurement, search=search, batch=batch)
        torch.testing.assert_close(apart.images, together.images, atol=2e-2, rtol=0)
    alone = restore(trained, y[3:4], measurement, search=search)
    torch.testing.assert_close(alone.images, together.images[3:4], atol=2e-2, rtol=0)
    moved = restore(trained, y.flip(0), measurement, search=search).images
    torch.testing.assert_close(moved.flip(0), together.images, atol=2e-2, rtol=0)
    assert (together.images - measurement.simple(y, SHAPE)["harmonic"]).abs().max() > 1
    assert (together.gain > 0).all()


def test_restoring_changes_no_flow(trained):
    before = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    trained.train()
    x = torch.from_numpy(images(2).pixels).float()
    restore(trained, x, Noisy(9.0), search=ImageSearch(3))
    assert trained.training and all(p.requires_grad for p in trained.parameters())
    assert all(torch.equal(before[name], t) for name, t in trained.state_dict().items())
    trained.eval()


def test_the_best_point_is_kept_where_steps_are_too_long():
    y = drawn(2)
    restored = restore(gaussian_flow(), y, Noisy(0.01), search=ImageSearch(3, 100.0))
    torch.testing.assert_close(restored.images, y)
    assert restored.gain.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("where", ["first", "shuffled", "nested", "folded", "variational"])
def test_the_density_behind_a_dequantiser(trained, where):
    """It is the flow's own density of the pixel and the noise that it drew."""
    flow = trained
    if where == "shuffled":
        model = mixer(layers=2, flow_layers=2, hidden=8, patch=2)
        flow = flow_of(dataclasses.replace(model, shuffle=GlobalShuffle())).eval()
        perturb(flow, size=0.1)
    elif where == "variational":
        noise = VariationalDequantizer(steps=1, context=4, growth=2, depth=1, net=ResidualDense(4))
        model = mixer(layers=1, flow_layers=1, hidden=4, patch=2)
        flow = flow_of(
            dataclasses.replace(model, pixels=LogitPixels(0.0, dequantizer=noise))
        ).eval()
        perturb(flow, size=0.1)
    elif where == "nested":
        flow = Flow(Chain(Layer(Dequantize(256), Rescale(1 / 256)), Logit()), SHAPE, levels=256)
    elif where == "folded":
        flow = trained.fused()
    x, noise = torch.from_numpy(images(4).pixels), Noise(7, torch.arange(4))
    real = flow.continuous()
    (dequantizer,) = (m for m in flow.modules() if isinstance(m, Dequantize))
    (shuffle,) = [m for m in flow.modules() if isinstance(m, ShufflePixels)] or [Chain()]
    with torch.no_grad():
        y, log_det = dequantizer(shuffle(x)[0], None, noise)
        y = shuffle.inverse(y)[0]
        torch.testing.assert_close(real.log_prob(y) + log_det, flow.log_prob(x, noise=noise))
    assert torch.equal(y.floor(), x.float()) and not torch.equal(y, x.float())
    assert real.levels is None and real.dequantization == "none" and flow.levels == 256
    y.requires_grad_(True)
    real.log_prob(y).sum().backward()
    assert y.grad is not None and y.grad.abs().min() > 0
    assert any(isinstance(m, Dequantize) for m in flow.modules())


def test_the_gradient_of_the_density_is_its_slope(trained):
    flow = trained.continuous()
    x = torch.from_numpy(images(1).pixels).float() + 0.5
    with torch.no_grad():
        flow = Flow(flow.transform, SHAPE).double()
    x = x.double().requires_grad_(True)
    (gradient,) = torch.autograd.grad(flow.log_prob(x).sum(), x)
    step = 1e-3 * torch.randn(SHAPE, dtype=torch.float64)
    slope = (flow.log_prob(x + step) - flow.log_prob(x - step)) / 2
    torch.testing.assert_close(slope.detach(), (gradient * step).sum()[None], rtol=1e-4, atol=1e-7)
    trained.float()


def test_flows_without_a_density_of_real_numbers_are_refused():
    class Doubling(Transform):
        def forward(self, x, context=None, noise=None):
            return 2 * x, torch.zeros(len(x))

    for transform in (Rescale(1.0), Chain(Doubling(), Dequantize(512)), Chain()):
        flow = Flow(transform, SHAPE, levels=256)
        with pytest.raises(ConfigError, match="no density of real numbers"):
            restore(flow, torch.zeros(1, *SHAPE), Noisy(1.0))
    bound = DENSEFLOW.build((1, 8, 8))
    with pytest.raises(ConfigError, match="log p of this flow is a bound"):
        restore(bound, torch.zeros(1, 1, 8, 8), Noisy(1.0))


class OneWay(Linear):
    """Its inverse records no gradient."""

    @torch.no_grad()
    def inverse(self, z, context=None, noise=None):
        return super().inverse(z, context, noise)


def test_latents_need_an_inverse_with_a_gradient():
    flow = Flow(OneWay(EVENT, torch.eye(D).double(), torch.zeros(D).double()), EVENT).double()
    with pytest.raises(ConfigError, match="no gradient"):
        restore(flow, drawn(1), Noisy(1.0), search=LatentSearch(2))
    assert restore(flow, drawn(1), Noisy(1.0), search=ImageSearch(2)).gain.item() > 0


GLOW = Glow(scales=2, steps=1, linear=LUMap(), elementwise=Affine(), net=GlowConv(4))
MODELS = [
    (GLOW, (3, 4, 4)),
    (dataclasses.replace(GLOW, classes=Classes(2, 3)), (3, 8, 4)),
    (maf(hidden=8, layers=1, depth=1), (1, 3, 2)),
    (mixer(layers=1, flow_layers=2, hidden=4, patch=2), (2, 4, 4, 2)),
]


@pytest.mark.parametrize("space", ["image", "latent"])
@pytest.mark.parametrize(("model", "shape"), MODELS)
def test_models_of_the_package_restore(model, shape, space):
    torch.manual_seed(0)
    flow = model.build(shape).eval()
    perturb(flow, size=0.1)
    x = 100 + 40 * torch.rand(2, *shape)
    labels = torch.tensor([0, 1]) if flow.context_net is not None else None
    measurement = Masked(mask=RandomMask(0.5), sigma=20.0)
    y = measurement.measure(x, Noise.of(0, x))
    search = ImageSearch(5) if space == "image" else LatentSearch(5, 0.01)
    restored = restore(flow, y, measurement, labels=labels, search=search)
    assert restored.images.shape == x.shape and (restored.gain > 0).all()
    bits = real_bits(flow, restored.images, labels=labels)
    torch.testing.assert_close(bits, restored.bits_per_dim, rtol=1e-3, atol=1e-3)


def test_rows_compare_the_restored_with_what_needs_no_model(trained):
    x = torch.from_numpy(images(3).pixels).float()
    y = Noisy(30.0).measure(x, Noise.of(0, x))
    rows = compare(trained, Noisy(30.0), y, x + 1 - 2 * (x > 127), x)  # one level off
    assert [row.name.split()[0] for row in rows] == ["truth", "measurement", "filter", "restored"]
    assert rows[0].psnr is None
    torch.testing.assert_close(rows[-1].psnr, torch.full((3,), 20 * math.log10(255)).double())
    torch.testing.assert_close(rows[0].bits_per_dim, real_bits(trained, x, batch=2))
    assert rows[1].as_dict()["psnr"] == pytest.approx(rows[1].psnr.mean().item())
    unknown = compare(trained, Noisy(30.0), y, x)
    assert [row.name for row in unknown] == ["measurement", "restored"]
    assert all(row.psnr is None for row in unknown)


def test_settings_that_cannot_be():
    for make in (
        lambda: Noisy(0.0),
        lambda: Blurred(width=0.0),
        lambda: Downsampled(factor=1),
        lambda: Downsampled(factor=3).check((1, 4, 4)),
        lambda: Masked(mask=CentreMask(9)).check((1, 4, 4)),
        lambda: Masked(mask=RandomMask(0.01)).check((1, 4, 4)),
        lambda: ImageSearch(0),
        lambda: ImageSearch(rate=math.inf),
        lambda: LatentSearch(prior=0.0),
    ):
        with pytest.raises(ConfigError):
            make()
    flow = gaussian_flow()
    with pytest.raises(ValueError, match="takes measurements"):
        restore(flow, torch.zeros(2, 1, 4, 4), Noisy(1.0))
    with pytest.raises(ValueError, match="not finite"):
        restore(flow, torch.full((2, *EVENT), math.nan), Noisy(1.0))
    with pytest.raises(ValueError, match="labels"):
        restore(flow, torch.zeros(2, *EVENT), Noisy(1.0), labels=torch.zeros(1))
    assert ROUNDING**2 == pytest.approx(1 / 12)
    assert restore(flow, torch.zeros(0, *EVENT), Noisy(1.0)).images.shape == (0, *EVENT)


def test_a_logit_stays_finite_at_the_ends():
    flow = Flow(Chain(Dequantize(), Rescale(1 / 256), Logit(0.0, inside=True)), SHAPE, levels=256)
    y = torch.tensor([0.0, 255.0]).reshape(2, 1, 1, 1).expand(2, *SHAPE)
    restored = restore(flow, y, Noisy(5.0), search=ImageSearch(20, 50.0))
    assert restored.images.isfinite().all() and restored.bits_per_dim.isfinite().all()
    assert restored.images.min() >= 0 and restored.images.max() <= 255
