"""Mixer layers in DenseFlow's frame, and the places at which the frame adds noise."""

import math
from dataclasses import replace

import pytest
import torch

from mixerflow import RECIPES, MixerDenseFlow, Noise, build
from mixerflow.cli import main
from mixerflow.core import Window
from mixerflow.errors import ConfigError
from mixerflow.experiments.dense import TABLES
from mixerflow.experiments.results import parameters
from mixerflow.models import DenseFlow
from mixerflow.parts import (
    MLP,
    DenseAttention,
    GlowSteps,
    Mixing,
    Patching,
    RLUMap,
    RowCoupling,
    UniformDequantizer,
    WideningConv,
)
from mixerflow.registry import evolve
from mixerflow.transforms import Affine, Augment, MixerLayer
from mixerflow.transforms.checks import perturb

SMALL = MixerDenseFlow(
    units=(3, 1),
    modules=(1, 2),
    growth=2,
    noise_net=WideningConv(1),
    mixing=Mixing(2, Patching((2, 1), (0, 1)), RowCoupling(Affine(2.0), MLP(8))),
    coupling=GlowSteps(
        elementwise=Affine(2.0), net=DenseAttention(4, growth=4, depth=1), squeeze=1
    ),
)
SMALL = evolve(SMALL, {"pixels.dequantizer": UniformDequantizer()})


@pytest.mark.parametrize(
    ("name", "count"),
    [("cifar10", 16_126_888), ("mnist", 12_649_636), ("cifar10-tiny", 553_154)],
)
def test_counts(name, count):
    with torch.device("meta"):
        flow = build(f"mixerflow-dense-{name}")
    assert sum(parameter.numel() for parameter in flow.parameters()) == count


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 12, 8), (2, 16)])
def test_it_trains_scores_and_inverts(shape):
    torch.manual_seed(0)
    flow = SMALL.build(shape)
    assert flow.density == "bound"
    x = torch.randint(0, 256, (4, *shape))
    flow.initialize(x)
    perturb(flow, size=0.1)
    flow(x).log_prob.mean().backward()
    for name, parameter in flow.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name
    flow.eval().double()
    with torch.no_grad():
        assert torch.equal(flow.decode(flow.encode(x)), x)
        alone = flow.log_prob(x[:1], None, Noise(0, torch.arange(1)))
        together = flow.log_prob(x, None, Noise(0, torch.arange(4)))[:1]
    torch.testing.assert_close(alone, together, rtol=1e-12, atol=0)


def test_layers_are_numbered_through_all_units():
    kinds = []
    for layer in SMALL.build((3, 8, 8)).layers():
        if isinstance(layer, Window) or isinstance(layer, MixerLayer):
            kinds.append(isinstance(layer, Window))
    # the second is a unit of its own; the fourth has patches of one pixel, which do not shift
    assert kinds == [False, True, False, False, False]


def test_mixing_has_no_settings_of_the_model_around_it(capsys):
    assert main(["train", "mixerflow-dense-cifar10-tiny", "--model.mixing", "mixerflow"]) == 2
    assert "mixerflow" in capsys.readouterr().err


def test_a_unit_may_be_mixer_layers_alone():
    flow = replace(SMALL, coupling=None, growth=0).build((3, 8, 8))
    assert flow.density == "exact"
    layers = [layer for layer in flow.layers() if isinstance(layer, (Window, MixerLayer))]
    assert len(layers) == 5


def test_settings_that_do_not_fit_are_refused_by_name():
    reversed_ = replace(SMALL.mixing, linear=RLUMap(), flow_layers=1)
    with pytest.raises(ConfigError, match="odd number of order reversals"):
        replace(SMALL, mixing=reversed_).build((3, 8, 8))
    with pytest.raises(ConfigError, match=r"mixing\.patching\.size"):
        replace(SMALL, mixing=Mixing(2, Patching(3, 0))).build((3, 8, 8))
    sizes = replace(SMALL.mixing, patching=Patching((2, 2, 1), 0))
    with pytest.raises(ConfigError, match="3 sizes of patches for 2 blocks"):
        replace(SMALL, mixing=sizes).build((3, 8, 8))
    with pytest.raises(ValueError, match="place must be one of units, input, last"):
        replace(SMALL, place="first")
    with pytest.raises(ConfigError, match="as many modules as units"):
        replace(SMALL, modules=(1,)).build((3, 8, 8))


def noise_of(model, shape):
    """Channels and images' sides of each addition of noise, in order."""
    flow = model.build(shape)
    return [(m.channels, m.shape) for m in flow.modules() if isinstance(m, Augment)]


DENSE = DenseFlow(
    units=(3, 2),
    modules=(1, 1),
    growth=2,
    net=DenseAttention(4, growth=4, depth=1),
    noise_net=WideningConv(1),
)


def test_the_same_number_is_added_at_each_place():
    # 2 channels of 8x8 between three units, then 2 of 4x4 between two
    spread = noise_of(DENSE, (3, 16, 16))
    assert [(n, shape[1]) for n, shape in spread] == [(2, 8), (2, 8), (2, 4)]
    whole = sum(n * math.prod(shape[1:]) for n, shape in spread)
    ((n, shape),) = noise_of(replace(DENSE, place="last"), (3, 16, 16))
    assert n * math.prod(shape[1:]) == whole and shape[1:] == (4, 4)
    ((n, shape),) = noise_of(replace(DENSE, place="input"), (3, 16, 16))
    assert shape == (12, 8, 8)
    assert 0 <= n * math.prod(shape[1:]) - whole < 64  # up to a whole channel
    assert noise_of(replace(DENSE, growth=0, place="input"), (3, 16, 16)) == []


@pytest.mark.parametrize("place", ["input", "last"])
def test_noise_at_one_place_is_a_bound_that_decodes(place):
    torch.manual_seed(0)
    flow = replace(DENSE, place=place).build((3, 8, 8)).double()
    perturb(flow, size=0.1)
    flow.eval()
    x = torch.randint(0, 256, (3, 3, 8, 8))
    with torch.no_grad():
        assert torch.equal(flow.decode(flow.encode(x)), x)
        log_prob = flow.log_prob(x, None, Noise(0, torch.arange(3)))
    assert flow.density == "bound" and log_prob.isfinite().all()


def test_noise_without_a_net_is_normal():
    flow = replace(DENSE, noise_net=None).build((3, 8, 8))
    assert all(m.net is None for m in flow.modules() if isinstance(m, Augment))
    assert flow.density == "bound"


def test_twins_of_the_tables_are_equally_large():
    for table in TABLES:
        sizes, shape = {}, table.columns[0].shape
        for cell in table.cells:
            model = evolve(cell.model("time"), {"pixels.dequantizer": UniformDequantizer()})
            sizes[cell.name] = parameters(model, shape)
        mean = sum(sizes.values()) / len(sizes)
        for name, size in sizes.items():
            assert abs(size / mean - 1) < 0.02, (table.name, name)


@pytest.mark.slow
def test_the_full_model_runs_both_ways():
    torch.manual_seed(0)
    flow = RECIPES["mixerflow-dense-cifar10"].model.build((3, 32, 32))
    x = torch.randint(0, 256, (2, 3, 32, 32))
    flow.initialize(x)
    flow(x).log_prob.mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in flow.parameters())
    flow.eval()
    with torch.no_grad():
        wrong = (flow.decode(flow.encode(x)) != x).double().mean()
    assert wrong < 1e-3  # float32
