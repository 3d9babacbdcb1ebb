"""Residual flows, i-ResNets, i-DenseNets, monotone flows: counts, densities, late shares."""

import itertools
import math
from dataclasses import replace

import pytest
import torch

from mixerflow.data import Images
from mixerflow.errors import ConfigError
from mixerflow.models import IDenseNet, IResNet, MonotoneFlow, ResidualFlow
from mixerflow.nets import LipELU, LipschitzConvNet
from mixerflow.parts import Classes
from mixerflow.parts.contractions import (
    ConvContraction,
    DenseConvContraction,
    DenseVectorContraction,
    VectorContraction,
)
from mixerflow.parts.pixels import LogitPixels
from mixerflow.recipes import RECIPES, build
from mixerflow.runs.bounded import flow_within
from mixerflow.train_config import TrainConfig
from mixerflow.training.batches import Batches
from mixerflow.training.trainer import Trainer
from mixerflow.transforms import ActNorm, Residual
from mixerflow.transforms.checks import perturb


@pytest.mark.parametrize(
    "name, count",
    [
        ("residual-cifar10", 25_174_233),
        ("residual-imagenet32", 47_099_289),
        ("residual-mnist", 16_608_693),
        ("idensenet-cifar10", 24_894_690),
        ("iresnet-cifar10", 25_173_974),
        ("monotone-cifar10", 50_244_209),
    ],
)
def test_counts(name, count):
    """The first four are those of the released models."""
    with torch.device("meta"):
        flow = build(name)
    assert sum(p.numel() for p in flow.parameters()) == count


def test_the_spare_parameters_of_the_released_code_are_two_a_block_and_do_not_train():
    with torch.device("meta"):
        flow = build("residual-cifar10")
        bare = replace(RECIPES["residual-cifar10"].model, spare=False).build((3, 32, 32))
    spare = {n: p for n, p in flow.named_parameters() if n.endswith("unused")}
    assert sum(p.numel() for p in spare.values()) == 2 * 52 == 104
    assert not any(p.requires_grad for p in spare.values())
    count = sum(p.numel() for p in bare.parameters())
    assert count == 25_174_233 - 104


def test_the_first_blocks_see_the_image_before_any_squeeze():
    with torch.device("meta"):
        flow = build("residual-cifar10")
    blocks = [m for m in flow.modules() if isinstance(m, Residual)]
    shapes = [tuple(net.sides) for net in (block.net for block in blocks)]
    assert shapes == [(32, 32)] * 16 + [(16, 16)] * 16 + [(8, 8)] * 16 + [()] * 4
    leading = [len(net.activations) == len(net.linears) for net in (b.net for b in blocks)]
    assert leading == [False] + [True] * 51
    vectors = [m for m in flow.modules() if isinstance(m, ActNorm) and m.shape == (3072,)]
    assert len(vectors) == 4  # a scale and a shift for each number


CONV, VECTOR = ConvContraction(4), VectorContraction(4, depth=1)
SMALL = {
    "residual": ResidualFlow(scales=2, blocks=1, dense_blocks=1, net=CONV, dense=VECTOR),
    "iresnet": IResNet(
        scales=2,
        blocks=1,
        dense_blocks=1,
        net=replace(CONV, activation="elu"),
        dense=replace(VECTOR, activation="elu"),
    ),
    "idensenet": IDenseNet(
        scales=2,
        blocks=1,
        dense_blocks=1,
        net=DenseConvContraction(3, depth=2),
        dense=DenseVectorContraction(2, depth=2, enter=3),
    ),
    "monotone": MonotoneFlow(scales=2, blocks=1, dense_blocks=1, net=CONV, dense=VECTOR),
}


def small(name, **changes):
    """A small model of float images (1, 4, 4), away from the identity."""
    model = replace(SMALL[name], pixels=LogitPixels(levels=None), **changes)
    torch.manual_seed(0)
    flow = model.build((1, 4, 4)).double()
    perturb(flow, size=2.0)
    return flow.eval()


@pytest.mark.parametrize("name", SMALL)
def test_the_exact_log_det_is_autograds(name):
    flow = small(name, log_det="exact")
    x = torch.randn(2, 1, 4, 4, dtype=torch.float64)
    log_det = flow(x).log_det
    for row, got in zip(x, log_det, strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda v: flow(v[None]).z[0], row)
        wanted = torch.linalg.slogdet(jacobian.reshape(16, 16))[1]
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-8)


@pytest.mark.parametrize("name", SMALL)
def test_the_estimate_becomes_exact_and_images_come_back(name):
    flow = small(name)
    assert flow.density == "estimate"
    exact = flow.exact()
    assert exact.density == "exact" and flow.density == "estimate"
    x = torch.randn(3, 1, 4, 4, dtype=torch.float64)
    with torch.no_grad():
        wanted = exact.log_prob(x)
        many = x.repeat(20, 1, 1, 1)  # N is the same for all rows of a call
        draws = torch.cat([flow.log_prob(many).reshape(20, 3) for _ in range(15)])
        back = flow.transform.inverse(flow.transform(x)[0])[0]
    error = (draws.mean(0) - wanted).abs() / (draws.std(0) * 300**-0.5)
    assert error.max() < 4
    torch.testing.assert_close(back, x, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", SMALL)
def test_every_parameter_learns_and_none_that_is_spare(name):
    torch.manual_seed(0)
    flow = replace(SMALL[name], spare=True).build((1, 4, 4)).train()
    perturb(flow, size=1.0)
    x = torch.randint(0, 256, (8, 1, 4, 4))
    (-flow.log_prob(x).mean()).backward()
    for key, parameter in flow.named_parameters():
        learns = parameter.grad is not None and parameter.grad.any()
        assert learns == (not key.endswith("unused")), key


def test_the_activation_and_the_constant_are_settings():
    net = ConvContraction(4, activation="elu", coefficient=0.5).build((2, 3, 3))
    assert isinstance(net, LipschitzConvNet) and isinstance(net.activations[0], LipELU)
    assert net.linears[-1].coefficient == 0.5
    with pytest.raises(ValueError, match="activation must be one of lipswish"):
        ConvContraction(activation="relu")
    with pytest.raises(ValueError, match="odd sides"):
        ConvContraction(kernels=(3, 2))
    with pytest.raises(ValueError, match="width must be at least 1"):
        ConvContraction(0)


def test_a_class_conditional_model_reads_its_class():
    model = replace(SMALL["residual"], classes=Classes(count=3, width=2))
    flow = model.build((1, 4, 4)).eval()
    perturb(flow, size=2.0)
    x = torch.randint(0, 256, (1, 1, 4, 4)).expand(3, 1, 4, 4)
    scores = flow.log_prob(x, torch.arange(3))
    assert len(set(scores.tolist())) == 3


def trained_shares(epochs, steps):
    """The shares of a small i-DenseNet before training and after each step on 24 images of 8."""
    torch.manual_seed(0)
    flow = SMALL["idensenet"].build((1, 4, 4))
    perturb(flow, size=1.0)
    images = torch.randint(0, 256, (24, 1, 4, 4), dtype=torch.uint8)
    config = TrainConfig(steps=steps, batch=8, warmup=0, late_epochs=epochs)
    made = Images(images.numpy(), None, None, "made")
    given = Batches(made, 8, seed=0, device=torch.device("cpu"), conditional=False)
    trainer = Trainer(flow, given, config, steps=steps)
    etas = [p for name, p in flow.named_parameters() if name.endswith(".eta")]
    seen = [torch.cat([eta.detach().flatten().clone() for eta in etas])]
    for _ in range(steps):
        trainer.advance()
        seen.append(torch.cat([eta.detach().flatten().clone() for eta in etas]))
    return [not torch.equal(a, b) for a, b in itertools.pairwise(seen)]


def test_late_parameters_learn_from_their_epoch_on():
    assert trained_shares(0, 3) == [True] * 3
    assert trained_shares(1, 5) == [False] * 3 + [True] * 2
    assert trained_shares(1.5, 6) == [False] * 5 + [True]


def test_late_epochs_must_be_a_number():
    for wrong in (-1.0, math.inf, math.nan):
        with pytest.raises(ConfigError, match="late_epochs"):
            TrainConfig(late_epochs=wrong)


@pytest.mark.parametrize("name", SMALL)
def test_a_small_model_holds_no_more_than_its_weights(name):
    """A file of weights bounds the model that is built for it; tables of frequencies count too."""
    flow = replace(SMALL[name], net=ConvContraction(1), dense=None, blocks=4).build((1, 16, 16))
    held = [*flow.parameters(), *flow.buffers()]
    assert flow.spec is not None
    again = flow_within(
        flow.spec, "run.json", numbers=sum(t.numel() for t in held), parts=len(held)
    )
    assert sum(p.numel() for p in again.parameters()) == sum(p.numel() for p in flow.parameters())
    assert not any(t.numel() > 8 for t in flow.buffers())
