"""Features by depth: what the layers of a flow make of images, against the layers run by hand."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from mixerflow.core import Centre, Chain, Flow, MultiScale
from mixerflow.parts import Classes
from mixerflow.recipes import RECIPES, build
from mixerflow.registry import evolve
from mixerflow.transforms import (
    ActNorm,
    Augment,
    CrossUnits,
    Dequantize,
    Rescale,
    ShufflePixels,
    Squeeze,
)
from mixerflow.transforms.checks import perturb

MODELS = sorted({type(recipe.model).__name__: name for name, recipe in RECIPES.items()}.items())


def images(shape, count=3, levels=256):
    generator = torch.Generator().manual_seed(7)
    return torch.randint(0, levels, (count, *shape), generator=generator).to(torch.uint8)


def perturbed(flow):
    perturb(flow, size=0.05)
    return flow


def scaled(number):
    """Return a layer that multiplies by its own number."""
    return Rescale(float(number), 1.0)


@pytest.mark.parametrize(("kind", "name"), MODELS)
def test_the_last_layer_of_every_model_is_the_latent_and_the_first_the_images(kind, name):
    torch.manual_seed(0)
    recipe = RECIPES[f"{name}-tiny" if f"{name}-tiny" in RECIPES else name]
    flow = perturbed(recipe.model.build(recipe.shape))
    x = images(recipe.shape)
    found = flow.features_by_layer(x)
    n = len(flow.layer_shapes())
    assert list(found) == list(range(n + 1))
    assert torch.equal(found[n], flow.encode(x))
    assert torch.equal(found[0], x.flatten(1).float())
    for k, placed in enumerate(flow.layer_shapes(), 1):
        assert found[k].shape[1] >= torch.Size(placed.given).numel()
        assert found[k].isfinite().all()
    sizes = {each.shape[1] for each in found.values()}
    keeps = flow.density == "exact" and not flow.transform.inverse_draws
    assert (sizes == {flow.dims}) == (keeps or len(sizes) == 1)


@pytest.mark.parametrize("shape", [(2, 12), (1, 8, 8), (1, 4, 4, 4)])
def test_a_layer_is_the_composition_of_the_layers_before_it(shape):
    torch.manual_seed(0)
    model = evolve(
        RECIPES["mixerflow-tiny"].model, {"patching.size": 2, "patching.shift": (0, 1), "layers": 3}
    )
    flow = perturbed(build(model, shape))
    x = images(shape)
    found, y = flow.features_by_layer(x), x
    flow.eval()
    with torch.no_grad():
        for k, placed in enumerate(flow.layer_shapes(), 1):
            y, _ = placed.layer(y, None, Centre())
            assert torch.equal(found[k], y.flatten(1))
            assert torch.equal(flow.features(x, layer=k), y.flatten(1))


def multi_scale():
    layers = [scaled(n) for n in (2, 3, 5, 7)]
    one = Chain(Squeeze((1, 4, 4)), layers[0], layers[1])
    two = Chain(Squeeze((2, 2, 2)), layers[2])
    return Chain(MultiScale((1, 4, 4), [one, two]), layers[3])


def test_what_a_scale_factors_out_stays_among_the_features():
    flow = Flow(multi_scale(), (1, 4, 4))
    x = torch.randn(2, 1, 4, 4)
    found = flow.features_by_layer(x)
    assert {each.shape for each in found.values()} == {(2, 16)}
    squeezed = Squeeze((1, 4, 4))(x)[0]
    first = (squeezed * 2 + 1) * 3 + 1  # the first scale's last layer
    kept, out = first.split(2, 1)
    assert torch.equal(found[3], first.flatten(1))
    again = Squeeze((2, 2, 2))(kept)[0]
    assert torch.equal(found[4], torch.cat([out.flatten(1), again.flatten(1)], 1))
    assert torch.equal(found[5], torch.cat([out.flatten(1), again.flatten(1) * 5 + 1], 1))
    # after the scales, the whole vector goes on
    assert torch.equal(found[6], found[5] * 7 + 1)
    assert torch.equal(found[6], flow.encode(x))


def test_scales_inside_a_scale_keep_what_both_factor_out():
    inner = MultiScale((2, 2, 2), [scaled(2), scaled(3)])

    outer = MultiScale((4, 2, 2), [scaled(5), Chain(inner, _Unflatten())])
    flow, x = Flow(outer, (4, 2, 2)), torch.randn(2, 4, 2, 2)
    found = flow.features_by_layer(x)
    y = x * 5 + 1
    kept, out = y.split(2, 1)
    kept = kept * 2 + 1
    deep, out_2 = kept.split(1, 1)
    want = torch.cat([out.flatten(1), out_2.flatten(1), deep.flatten(1) * 3 + 1], 1)
    assert torch.equal(found[3], want)
    assert torch.equal(found[4], flow.encode(x))


class _Unflatten(Rescale):
    """A vector of 8 as two channels of 2x2."""

    def __init__(self):
        super().__init__(1.0)

    def forward(self, x, context=None, noise=None):
        z, log_det = super().forward(x, context, noise)
        return z.reshape(-1, 2, 2, 2), log_det

    def out_shape(self, shape):
        return (2, 2, 2)


def test_added_noise_is_at_its_centre_and_adds_features():
    shape = (1, 2, 2)
    units = [Chain(scaled(2)), Chain(scaled(3), scaled(5))]
    flow = Flow(CrossUnits(shape, units, [Augment(shape, 2)]), shape)
    x = torch.randn(3, *shape)
    found = flow.features_by_layer(x)  # the noise is layer 2
    y = x.flatten(1) * 2 + 1
    assert torch.equal(found[1], y)
    assert torch.equal(found[2], torch.cat([y, torch.zeros(3, 8)], 1))
    assert torch.equal(found[4], flow.encode(x))
    assert [found[k].shape[1] for k in range(5)] == [4, 4, 12, 12, 12]


def test_shuffled_images_are_in_order_at_layer_0_only():
    shape = (1, 3, 3)
    transform = Chain(ShufflePixels(shape, seed=1), Dequantize())
    flow, x = Flow(transform, shape, levels=256), images(shape)
    found = flow.features_by_layer(x)
    assert torch.equal(found[0], x.flatten(1).float())
    shuffled = transform.steps[0](x)[0].flatten(1)
    assert not torch.equal(shuffled, x.flatten(1))
    assert torch.equal(found[1], shuffled)
    assert torch.equal(found[2], shuffled + 0.5)


def test_one_layer_twice_counts_twice():
    layer = scaled(2)
    flow, x = Flow(Chain(layer, layer), (1, 2, 2)), torch.randn(2, 1, 2, 2)
    found = flow.features_by_layer(x)
    assert torch.equal(found[1], x.flatten(1) * 2 + 1)
    assert torch.equal(found[2], (x.flatten(1) * 2 + 1) * 2 + 1)


def test_negative_layers_count_from_the_latent():
    flow, x = Flow(Chain(*[scaled(2)] * 3), (1, 2, 2)), torch.randn(2, 1, 2, 2)
    found = flow.features_by_layer(x, layers=[-1, -2, 0, 3])
    assert list(found) == [-1, -2, 0, 3]
    assert torch.equal(found[-1], flow.encode(x))
    assert torch.equal(found[-1], found[3])
    assert torch.equal(found[-2], flow.features(x, layer=2))


@pytest.mark.parametrize("layer", [4, -5, 100])
def test_a_layer_that_is_not_there_is_one_line(layer):
    flow, x = Flow(Chain(*[scaled(2)] * 3), (1, 2, 2)), torch.randn(2, 1, 2, 2)
    with pytest.raises(ValueError, match=rf"no layer {layer}: .*0 .* to 3 .*to -4") as error:
        flow.features(x, layer=layer)
    assert "\n" not in str(error.value)


def test_features_need_no_gradient_and_change_no_module():
    norm = nn.BatchNorm2d(1)

    class Normed(Rescale):
        def __init__(self):
            super().__init__(1.0)
            self.norm = norm

        def forward(self, x, context=None, noise=None):
            return super().forward(self.norm(x), context, noise)

    flow = Flow(Chain(Normed(), ActNorm(1)), (1, 2, 2)).train()
    x = torch.randn(5, 1, 2, 2)
    found = flow.features(x)
    assert not found.requires_grad
    assert flow.training
    assert norm.num_batches_tracked == 0
    assert torch.equal(found, flow.features(x))


def test_a_conditional_flow_sees_its_context():
    torch.manual_seed(0)
    model = evolve(RECIPES["mixerflow-tiny"].model, {"layers": 2})
    flow = perturbed(replace(model, classes=Classes(3)).build((1, 8, 8)))
    x = images((1, 8, 8), 2)
    one, two = (flow.features(x, torch.full((2,), c)) for c in (0, 1))
    assert torch.equal(one, flow.encode(x, torch.zeros(2, dtype=torch.long)))
    assert not torch.equal(one, two)
    with pytest.raises(ValueError, match="conditional"):
        flow.features(x)
