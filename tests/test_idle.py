"""Idle parameters are those whose gradient is 0 but for rounding, and nothing trains them."""

import re

import pytest
import torch

from helpers import SHAPE
from mixerflow.core import Noise
from mixerflow.recipes import RECIPES, build
from mixerflow.training.idle import trained_entries
from mixerflow.transforms.checks import perturb
from mixers import DENSEFLOW, mixer, vary

SMALL = mixer(layers=2, flow_layers=1, hidden=8, patch=2, shift=1, shift_every=2, norm="batch")
MODELS = {
    "conditioners": SMALL,
    "batch-norm layers": vary(SMALL, actnorm="batch", shift=0),
    "a window of one patch": vary(SMALL, actnorm="batch"),
    "masked nets": vary(SMALL, actnorm="batch", flow="maf", shift=0),
    "dense blocks": DENSEFLOW,
}
TWINS = [name for name in RECIPES if name.endswith("-tiny")]


def gradients(flow, shape, batches=2, images=4):
    """The largest absolute gradient of each number over some batches, by name."""
    generator = torch.Generator().manual_seed(0)
    net, found = flow.context_net, {}

    def drawn(count):
        labels = None if net is None else torch.randint(net.num_embeddings, (count,))
        return torch.randint(256, (count, *shape), generator=generator).byte(), labels

    flow.initialize(*drawn(16))
    kept = {name: mask == 0 for name, mask in trained_entries(flow).items()}
    weights = {name: p.detach().clone() for name, p in flow.named_parameters()}
    with torch.no_grad():
        perturb(flow, size=0.1)
        for name, parameter in flow.named_parameters():  # some are idle where they are 0
            if name in kept and re.search(r"(shift|steps\.\d+\.bias)$", name):
                parameter[kept[name]] = weights[name][kept[name]]
    for number in range(batches):
        x, labels = drawn(images)
        flow.zero_grad()
        noise = Noise(0, torch.arange(images) + number * images)
        (-flow(x, labels, noise).log_prob.mean() / flow.dims).backward()
        for name, p in flow.named_parameters():
            found[name] = p.grad.abs().maximum(found.get(name, p.new_zeros(())))
    return found


def check(flow, shape):
    declared, found = {n: m == 0 for n, m in trained_entries(flow).items()}, gradients(flow, shape)
    scale = max(float(each.max()) for each in found.values())
    for name, size in found.items():
        idle = declared.get(name, torch.zeros_like(size, dtype=torch.bool))
        assert (size[idle] < 1e-12 * scale).all(), name
        if size.dim() == 1:  # a weight may be as good as 0 elsewhere: in the tail of a spline
            rest = size[~idle]  # or masked, and exactly 0
            assert ((rest == 0) | (rest > 1e-12 * scale)).all(), name
    return declared


@pytest.mark.parametrize("name", MODELS)
def test_what_is_declared_idle_has_no_gradient_and_nothing_else(name):
    torch.manual_seed(0)
    shape = (3, 8, 8) if name == "dense blocks" else SHAPE
    assert check(build(MODELS[name], shape).double(), shape)


@pytest.mark.slow
@pytest.mark.parametrize("name", TWINS)
def test_the_recipes_declare_all_that_is_idle(name):
    torch.manual_seed(0)
    check(build(name).double(), RECIPES[name].shape)
