"""MixerFlow: the paper's sizes, its layers, odd shapes, and exactness down to the last pixel."""

import math
import time

import pytest
import torch

from mixerflow.core import Chain, Flow, Noise, Window
from mixerflow.errors import ConfigError
from mixerflow.recipes import build
from mixerflow.transforms import MixerLayer, Rescale
from mixerflow.transforms.checks import perturb
from mixers import mixer

TABLE_8 = {"linear": "RLU", "shift": 0, "hidden": 64}


@pytest.mark.parametrize(
    ("settings", "shape", "millions", "tolerance"),
    [
        ({}, (3, 32, 32), 11.34, 0.005),
        ({"patch": 8, "shift": 2}, (3, 64, 64), 18.90, 0.005),
        (TABLE_8, (1, 28, 28), 3.10, 0.025),
        ({**TABLE_8, "law": "spline", "norm": "none"}, (1, 28, 28), 5.28, 0.025),
        ({**TABLE_8, "flow": "maf", "norm": "none"}, (1, 28, 28), 3.83, 0.025),
    ],
)
def test_parameters_number_what_the_paper_says(settings, shape, millions, tolerance):
    with torch.device("meta"):
        flow = build(mixer(**{"norm": "batch", **settings}), shape)
    count = sum(p.numel() for p in flow.parameters())
    assert count == pytest.approx(millions * 1e6, rel=tolerance)


def small(shape, **settings) -> Flow:
    few = {"layers": 2, "shift_every": 2, "patch": 2, "hidden": 8, "norm": "none", **settings}
    return build(mixer(**few), shape)


def pixels(n, shape, levels=256):
    return torch.randint(0, levels, (n, *shape), dtype=torch.uint8)


@pytest.mark.parametrize("norm", ["none", "batch", "layer"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"actnorm": "activation"},
        {"cut": "dilated"},
        {"law": "spline"},
        {"law": "floored", "net": "kan"},
        {"net": "kernel", "glow": 1},
        {"positions": "learned", "extra": "invertible-attention"},
    ],
)
def test_a_fresh_model_is_the_identity_on_rescaled_pixels(norm, settings):
    shape = (3, 8, 12)
    flow, x = small(shape, norm=norm, patch=4, **settings), pixels(3, shape)
    assert torch.equal(flow.encode(x), ((x + 0.5) / 128 - 1).flatten(1))
    assert torch.equal(flow.eval()(x).log_det, torch.tensor(math.log(2 / 256) * 288).expand(3))


SHAPES = {
    "thin": ((1, 20, 28), {"patch": 4}),
    "four channels": ((4, 24, 40), {"patch": (8, 4), "shift": (3, 2)}),
    "volumes": ((3, 8, 8, 8), {"patch": (2, 4, 4), "shift": (1, 2, 1)}),
    "shift on one axis": ((1, 4, 8), {"patch": (4, 2), "shift": (0, 1)}),
    "signals": ((2, 12), {"patch": 3}),
    "two channels, dilated": ((2, 6, 9), {"cut": "dilated", "patch": 3, "shift": 2}),
    "stripes": ((3, 8, 5), {"cut": "stripes", "patch": (2, 5)}),
    "bands": ((3, 5, 8), {"cut": "bands", "patch": (5, 2)}),
    "pixels": ((3, 4, 4), {"patch": 1, "shift": 0}),
    "one patch": ((1, 4, 4), {"patch": 4, "shift": 0}),
    "no linear maps": ((1, 4, 6), {"linear": "none", "colour": False}),
    "five bits": ((3, 4, 4), {"levels": 32}),
    "growing patches": ((1, 8, 8), {"patches": (2, 4), "layers": 4}),
    "a cut after the other": ((2, 8, 4), {"cut": ("stripes", "bands", "dilated"), "layers": 4}),
    "another grid each layer": ((1, 8, 8), {"patch": 4, "shifts": (0, 1, 2, 3), "layers": 4}),
}


OPTIONS: dict[str, dict] = {
    "splines": {"law": "spline", "bins": 5, "tail": 2.0},
    "floored": {"law": "floored"},
    "logistic mixtures": {"law": "logistic", "components": 3},
    "KAN": {"net": "kan"},
    "kernel": {"net": "kernel"},
    "MAF": {"flow": "maf"},
    "MAF, reversed by RLU": {"flow": "maf", "linear": "RLU", "shift": 0},
    "IAF with splines": {"flow": "iaf", "law": "spline"},
    "residual": {"flow": "residual", "layers": 1},
    "densely residual": {"flow": "dense-residual", "layers": 1},
    "monotone": {"flow": "monotone", "layers": 1},
    "continuous": {"flow": "continuous", "layers": 1, "flow_layers": 1},
    "batch-norm flows": {"actnorm": "batch"},
    "learned positions": {"positions": "learned"},
    "sinusoidal positions": {"positions": "sinusoidal", "actnorm": "activation", "flow": "maf"},
    "convolutions": {"extra": "convolution"},
    "dense block": {"extra": "dense", "law": "spline"},
    "attention": {"extra": "attention"},
    "attention of an odd width": {"extra": "attention", "hidden": 5},
    "invertible attention": {"extra": "invertible-attention"},
    "Glow first": {"glow": 2},
    "squeezed": {"squeeze": 2},
    "two scales": {"scales": 2, "layers": 3, "patch": 2},
    "three scales": {"scales": 3, "layers": 3, "patch": 1, "shift": 0},
    "everything": {
        "flow": "maf", "law": "spline", "positions": "learned", "extra": "dense", "glow": 1,
        "scales": 2, "patches": (4, 2), "cut": ("patches", "stripes"), "shifts": (0, 1),
    },
}  # fmt: skip
UNCONDITIONAL = {"Gaussianisation": {"flow": "gaussianization", "components": 3, "layers": 1}}
SHAPES |= {
    f"{name}, {shape[0]} channels": (shape, {"hidden": 4, **settings})
    for name, settings in (OPTIONS | UNCONDITIONAL).items()
    for shape in ((1, 8, 8), (3, 8, 8))
}


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_may_be_conditional_and_read_where_it_is(name):
    shape = (1, 8, 8)
    flow = small(shape, classes=3, class_width=4, **{"hidden": 4, **OPTIONS[name]})
    perturb(flow, size=0.2)
    x, labels = pixels(3, shape), torch.tensor([0, 1, 2])
    same, noise = x[:1].expand(3, *shape), Noise(0, torch.zeros(3, dtype=torch.int64))
    assert flow.eval().bits_per_dim(same, labels, noise).unique().numel() == 3
    flow.double()
    assert torch.equal(flow.decode(flow.encode(x, labels), labels), x)
    flow.train().log_prob(x, labels).sum().backward()
    still = {n for n, p in flow.named_parameters() if p.grad is None or not p.grad.isfinite().all()}
    assert still == set()


@pytest.mark.parametrize("base", ["normal", "student-t", "cauchy", "mixture", "spike-and-slab"])
def test_latents_may_have_other_distributions(base):
    flow = small((1, 4, 6), base=base)
    x = pixels(3, (1, 4, 6))
    assert flow.log_prob(x).isfinite().all()
    assert flow.sample(2).shape == (2, 1, 4, 6)


@pytest.mark.parametrize("name", SHAPES)
def test_images_of_all_shapes_go_there_and_back(name):
    shape, settings = SHAPES[name]
    flow = small(shape, **settings)
    perturb(flow, size=0.1)
    x = pixels(3, shape, settings.get("levels", 256))
    assert torch.equal(flow.decode(flow.encode(x)), x)
    inner = flow.eval().double().transform
    z = torch.randn(3, *flow.latent_shape, dtype=torch.float64)
    y, back = Chain(*list(inner)[1:]).inverse(z)
    there, log_det = Chain(*list(inner)[1:])(y)
    tolerance = 1e-7 if "continuous" in name else 1e-10  # its solver's is 1e-8
    torch.testing.assert_close(there, z, rtol=0, atol=tolerance)
    torch.testing.assert_close(log_det, -back, rtol=0, atol=10 * tolerance)
    assert flow.sample(2).shape == (2, *shape)


@pytest.mark.parametrize(
    ("shape", "patch", "shift"),
    [((3, 32, 32), 4, 1), ((1, 12, 8), (4, 2), (3, 1)), ((2, 6, 8, 4), (2, 4, 2), (1, 3, 0))],
)
def test_a_shift_layer_mixes_its_window_and_leaves_the_frame(shape, patch, shift):
    config = mixer(patch=patch, shift=shift, hidden=8, flow_layers=2, norm="none")
    moved = config.layer(shape, 4)
    perturb(moved, size=0.2)
    window = torch.zeros(shape, dtype=torch.bool)
    inner = [slice(None)]
    _, sides, shifts = config.patching.of(shape, 4, config.layers)
    for n, p, s in zip(shape[1:], sides, shifts, strict=True):
        inner.append(slice(s, n - p + s) if s else slice(None))
    window[tuple(inner)] = True
    x = torch.randn(2, *shape)
    z = moved(x)[0]
    assert torch.equal(z[:, ~window], x[:, ~window])
    assert (z[:, window] != x[:, window]).all()
    torch.testing.assert_close(moved.inverse(z)[0], x, rtol=1e-4, atol=1e-4)


def test_every_fourth_layer_is_shifted():
    with torch.device("meta"):
        flow = build(mixer(hidden=8), (3, 32, 32))
    names = [type(step).__name__ for step in flow.transform]
    assert names[:3] == ["Dequantize", "Rescale", "Along"]
    layers = names[3:]
    assert len(layers) == 30
    assert [i + 1 for i, name in enumerate(layers) if name == "Window"] == [
        4,
        8,
        12,
        16,
        20,
        24,
        28,
    ]


def kinds_of(**settings) -> list[tuple]:
    """Each layer's cut, patches and window."""
    flow = small((1, 12, 12), shift_every=4, **settings)
    layers = [step for step in flow.transform if type(step) in (MixerLayer, Window)]
    inner = [step.transform if isinstance(step, Window) else step for step in layers]
    cuts = [next(iter(chain)) for chain in inner]
    starts = [step.start if isinstance(step, Window) else None for step in layers]
    return [(type(c).__name__, c.patch, s) for c, s in zip(cuts, starts, strict=True)]


def test_patches_cuts_and_shifts_change_with_the_layer_as_they_say():
    sides = [patch[0] for _, patch, _ in kinds_of(layers=7, patches=(2, 4, 6), shift=0)]
    assert sides == [2, 2, 2, 4, 4, 6, 6]
    cuts = [name for name, _, _ in kinds_of(layers=5, cut=("stripes", "bands"), shift=0)]
    assert cuts == ["Stripes", "Bands", "Stripes", "Bands", "Stripes"]
    starts = [s for _, _, s in kinds_of(layers=6, patch=4, shifts=(0, 1, 2, 3))]
    assert starts == [None, (1, 1), (2, 2), (3, 3), None, (1, 1)]
    as_paper = kinds_of(layers=8, patch=4, shifts=(0, 0, 0, 1))
    assert as_paper == kinds_of(layers=8, patch=4, shift=1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"patches": (2, 3, 4)}, r"3 values of size for 2 layers"),
        ({"patches": (2, 5)}, r"patch side 5 does not divide"),
        ({"cut": ()}, r"cut names none"),
        ({"shifts": (0, 2)}, r"shift 2 on spatial axis 0 must lie in 0\.\.1"),
        (
            {"patch": 5},
            r"patch side 5 does not divide the 12 pixels .* these do: 1, 2, 3, 4, 6, 12",
        ),
        ({"patch": (2, 3, 4)}, r"size \(2, 3, 4\) names 3 spatial axes; the images have 2"),
        ({"shift": (1,)}, r"shift \(1,\) names 1 spatial axes; the images have 2"),
        ({"patch": 4, "shift": 4}, r"shift 4 on spatial axis 0 must lie in 0\.\.3"),
        ({"patch": 4, "shift": -1}, r"shift -1 on spatial axis 0 must lie in 0\.\.3"),
        ({"patch": (4, 12), "shift": 1}, r"one patch .* wide: use shift 0"),
        ({"linear": "RLU", "flow_layers": 3}, r"odd number of order reversals"),
        ({"scales": 3}, r"3 scales for 2 layers"),
        ({"scales": 2, "patch": 4, "shift": 0}, r"patch side 4 does not divide the 6 pixels"),
        ({"squeeze": 5}, r"side 5 does not divide"),
        ({"glow": -1}, r"pairs must be at least 1; got -1"),
        ({"flow": "maf", "norm": "layer"}, r"makes each unit a function of all"),
        ({"flow": "gaussianization", "classes": 2}, r"reads no context: use no classes"),
        ({"layers": 0}, r"layers must be at least 1; got 0"),
        ({"levels": 1}, r"levels must be 2 to 65536; got 1"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises((ValueError, ConfigError), match=message):
        small((1, 12, 12), **settings)


@pytest.mark.parametrize(
    ("settings", "shape", "where"),
    [
        ({"patch": 5, "hidden": 16}, (1, 12, 12), "model.patching.size"),
        ({"flow": "maf", "norm": "layer", "hidden": 16}, (1, 12, 12), "model.flow"),
        ({"patch": 6, "shifts": (0, 7)}, (1, 12, 12), "model.patching.shift"),
        ({"scales": 3, "shift": 0}, (1, 16, 16), "model.layers or model.scales"),
        ({}, (1, 30, 30), "model.patching.size"),
    ],
)
def test_a_refusal_says_which_setting_to_change(settings, shape, where):
    with pytest.raises(ConfigError, match=f": {where}: choose another value$"):
        build(mixer(**{"layers": 2} | settings), shape)


def test_a_refusal_builds_no_giant():
    """With the default patch the maps of these images would take gigabytes, and half a minute."""
    begun = time.monotonic()
    with pytest.raises(ConfigError, match=r" model\.patching"):
        build(mixer(layers=2, patch=24), (3, 512, 512))
    assert time.monotonic() - begun < 20


def test_an_odd_number_of_reversals_is_fine_without_shift():
    shape = (1, 4, 6)
    flow, x = small(shape, linear="RLU", flow_layers=3, shift=0), pixels(2, shape)
    assert torch.equal(flow.decode(flow.encode(x)), x)


def test_a_class_conditional_model_knows_its_classes():
    shape = (1, 4, 6)
    flow, x = small(shape, classes=3, class_width=4), pixels(3, shape)
    labels = torch.tensor([0, 1, 2])
    perturb(flow, size=0.1)
    same = x[:1].expand(3, *shape)
    noise = Noise(0, torch.zeros(3, dtype=torch.int64))
    assert flow.bits_per_dim(same, labels, noise).unique().numel() == 3
    assert torch.equal(flow.decode(flow.encode(x, labels), labels), x)
    assert not torch.equal(flow.decode(flow.encode(x, labels), labels.flip(0)), x)
    assert flow.sample(4, 1).shape == (4, *shape)
    with pytest.raises(ValueError, match="pass a context"):
        flow.log_prob(x)


class WrongRescale(Rescale):
    """Two per cent too much log-det."""

    def forward(self, x, context=None, noise=None):
        z, log_det = super().forward(x, context, noise)
        return z, log_det * 1.02


def mass(flow, *, draws=1024, samples=100_000) -> tuple[float, float, float]:
    """P(all images) + P(outside all cubes), which is 1; its standard error; the second share.

    ``P(x)`` is the density's integral over x's unit cube, the mean of ``p(x + u)``; the rest are
    the flow's own samples with a value outside the levels, before any clamping.
    """
    every = torch.cartesian_prod(*[torch.arange(flow.levels)] * flow.dims).to(torch.uint8)
    images = every.reshape(-1, *flow.shape).repeat_interleave(draws, 0)
    log_prob = flow.log_prob(images, noise=Noise(1, torch.arange(len(images))))
    density = log_prob.double().exp().reshape(len(every), draws)
    total, variance = density.mean(1).sum().item(), density.var(1).sum().item() / draws
    x = flow.transform.inverse(torch.randn(samples, *flow.latent_shape))[0].flatten(1)
    outside = ((x < 0) | (x >= flow.levels)).any(1).double().mean().item()
    variance += outside * (1 - outside) / samples
    return total + outside, math.sqrt(variance), outside


EXACT = {
    "square": ((1, 2, 2), {"patch": 1, "shift": 0, "levels": 3}, 0),
    "row": ((1, 1, 4), {"patch": (1, 2), "shift": (0, 1), "levels": 3, "norm": "batch"}, 3),
    "two colours": ((2, 2), {"patch": 1, "shift": 0, "levels": 3, "linear": "RLU"}, 4),
}


@torch.no_grad()
@pytest.mark.parametrize("name", EXACT)
def test_the_probabilities_of_all_images_make_one(name):
    shape, settings, seed = EXACT[name]
    flow = small(shape, **settings).eval()
    perturb(flow, size=0.2, seed=seed)
    flow.initialize(pixels(1000, shape, flow.levels))  # or hardly any sample would be an image
    total, error, outside = mass(flow)
    assert 0.1 < outside < 0.9, "with all mass on one side the sum would prove little"
    assert abs(total - 1) < 3 * error
    steps = list(flow.transform)
    steps[1] = WrongRescale(steps[1].scale, steps[1].shift)
    wrong, error, _ = mass(Flow(Chain(*steps), shape, levels=flow.levels).eval())
    assert abs(wrong - 1) > 3 * error, "an error of 2 % in one log-det would go unseen"


# A hundred steps of training move weights by 0.01 to 0.07, in units of 1 / sqrt(fan_in).
TRAINED = 0.05


def photographs(n, shape):
    """Smooth 8-bit images with some grain, clipped at both ends, like photographs."""
    coarse = torch.randn(n, shape[0], 6, 6)
    smooth = torch.nn.functional.interpolate(coarse, size=shape[1:], mode="bicubic")
    return (128 + 70 * smooth + 3 * torch.randn(smooth.shape)).round().clamp(0, 255).byte()


def framed(n, shape):
    """The same on an empty ground, like scans of digits: most pixels are constant."""
    x = torch.zeros(n, *shape, dtype=torch.uint8)
    box = (slice(None), slice(None), slice(8, -8), slice(8, -8))
    x[box] = photographs(n, shape)[box]
    return x


@pytest.mark.parametrize(
    ("norm", "images"),
    [
        ("batch", photographs),
        ("none", framed),
        pytest.param("batch", framed, marks=pytest.mark.slow),
        pytest.param("none", photographs, marks=pytest.mark.slow),
    ],
)
def test_thirty_layers_give_every_pixel_back(images, norm):
    shape = (3, 32, 32)
    x = images(32, shape)
    flow = build(mixer(hidden=16, norm=norm), shape)
    flow.initialize(x)
    for size in (0.0, TRAINED):
        perturb(flow, size=size)
        z = flow.encode(x[:4])
        assert torch.equal(flow.decode(z), x[:4])
        assert z.isfinite().all()


@pytest.mark.slow
def test_a_trained_model_gives_every_pixel_back():
    shape = (1, 16, 16)
    x = photographs(500, shape)
    flow = build(mixer(hidden=16), shape)
    flow.initialize(x[:256])
    before = flow.bits_per_dim(x[:64]).mean()
    optimiser = torch.optim.Adam(flow.train().parameters(), 1e-3)
    for _ in range(60):
        loss = -flow.log_prob(x[torch.randint(len(x), (64,))]).mean() / (flow.dims * math.log(2))
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(flow.parameters(), 5.0)
        optimiser.step()
    assert flow.bits_per_dim(x[:64]).mean() < before - 2
    assert torch.equal(flow.decode(flow.encode(x)), x)
