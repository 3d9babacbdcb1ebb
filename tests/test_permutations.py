"""A mixer without shifts and linear maps does not know in which order patches and pixels come.

Permute the patches inside each half of the patch flows' couplings, and the patch flows' weights
alike: the density does not change. The same holds of the numbers of a patch and the channel flows.
"""

import pytest
import torch

from mixerflow.core import Along
from mixerflow.recipes import build
from mixerflow.transforms import ActNorm, Coupling, Patchify
from mixerflow.transforms.checks import perturb
from mixers import mixer

SHAPE, PATCH = (3, 6, 10), (2, 2)  # 15 patches of 12 numbers
PATCHES, CHANNELS = -2, -1
"""Axes of the patch matrix, and of the row flows that mix patches, or a patch's numbers."""

MODELS = {
    "batch norm": {},
    "splines": {"law": "spline", "norm": "layer"},
    "floored scales": {"law": "floored", "norm": "none", "flow_layers": 2},
}


def flow_of(name, *, moved=(PATCHES, CHANNELS), **settings):
    """In float64 and eval mode; row flows along these axes are moved, others are the identity."""
    small = {"layers": 2, "flow_layers": 3, "patch": PATCH, "shift": 0, "hidden": 8}
    small |= {"linear": "none", "scale_bound": 1.0}
    model = mixer(**{**small, **MODELS[name], **settings})
    flow = build(model, SHAPE).double().eval()
    for seed, along in enumerate(row_flows(flow)):
        if along.dim in moved:
            perturb(along, seed=seed, size=0.3)
    return flow


def row_flows(flow):
    return [m for m in flow.modules() if isinstance(m, Along) and m.dim < 0]


@torch.no_grad()
def density(flow, x):
    """Of real numbers, behind dequantisation."""
    log_det = 0.0
    for step in flow.transform.steps[1:]:
        x, each = step(x)
        log_det = log_det + each
    return flow.base.log_prob(x.flatten(1)) + log_det


def images():
    return torch.rand(4, *SHAPE, dtype=torch.float64) * 255


def permuted(x, axis, order):
    """Images whose patches, or whose patches' numbers, come in another order."""
    cut = Patchify(SHAPE, PATCH)
    matrix = cut(x)[0]
    matrix = matrix[:, order] if axis == PATCHES else matrix[:, :, order]
    return cut.inverse(matrix)[0]


def within_halves(n):
    first = (n + 1) // 2
    return torch.cat([torch.randperm(first), first + torch.randperm(n - first)])


@torch.no_grad()
def permute_weights(flow, axis, order):
    """Permute the weights of the row flows along an axis as their vectors' entries."""
    first = (len(order) + 1) // 2
    halves = order[:first], order[first:] - first
    for along in row_flows(flow):
        for step in along.transform.steps if along.dim == axis else ():
            if isinstance(step, ActNorm):
                step.log_scale.copy_(step.log_scale[order])
                step.shift.copy_(step.shift[order])
            elif isinstance(step, Coupling):
                given, changed = halves[::-1] if step.flip else halves
                step.net.enter.weight.copy_(step.net.enter.weight[:, given])
                for tensor in step.net.leave.parameters():
                    parts = tensor.unflatten(0, (step.elementwise.params, -1))
                    tensor.copy_(parts[:, changed].flatten(0, 1))


@pytest.mark.parametrize("axis", [PATCHES, CHANNELS])
@pytest.mark.parametrize("name", MODELS)
def test_a_permutation_within_the_halves_is_one_of_the_weights(name, axis):
    flow, x = flow_of(name, colour=axis == PATCHES), images()
    before = density(flow, x)
    order = within_halves(15 if axis == PATCHES else 12)
    other = permuted(x, axis, order)
    assert (density(flow, other) - before).abs().min() > 1e-3  # these weights know the order
    permute_weights(flow, axis, order)
    torch.testing.assert_close(density(flow, other), before, rtol=0, atol=1e-9)


@pytest.mark.parametrize("axis", [PATCHES, CHANNELS])
@pytest.mark.parametrize("name", MODELS)
def test_where_the_row_flows_of_an_axis_are_the_identity_any_permutation_keeps_it(name, axis):
    (moved,) = {PATCHES, CHANNELS} - {axis}
    flow, x = flow_of(name, moved=(moved,), colour=axis == PATCHES), images()
    assert flow_moves(flow, x).all()
    order = torch.randperm(15 if axis == PATCHES else 12)
    other = density(flow, permuted(x, axis, order))
    torch.testing.assert_close(other, density(flow, x), rtol=0, atol=1e-9)


def flow_moves(flow, x):
    """Whether the density is another than that of the same flow at the identity."""
    return (density(flow, x) - density(flow_of("batch norm", moved=()), x)).abs() > 1e-3


def test_shift_layers_and_linear_maps_know_the_order_of_patches():
    x, order = images(), within_halves(15)
    shifting = flow_of("batch norm", moved=(CHANNELS,), layers=4, shift=1)
    change = density(shifting, permuted(x, PATCHES, order)) - density(shifting, x)
    assert change.abs().min() > 1e-3
    mixing = flow_of("batch norm", linear="LU")
    before = density(mixing, x)
    permute_weights(mixing, PATCHES, order)  # all but those of the linear maps
    assert (density(mixing, permuted(x, PATCHES, order)) - before).abs().min() > 1e-3
