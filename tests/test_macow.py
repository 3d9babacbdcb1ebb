"""MaCow: what a masked convolution reads, its inverse by few lines at a time, counts."""

import pytest
import torch

from mixerflow.errors import ConfigError
from mixerflow.models import MaCow
from mixerflow.nets import LineConvNet
from mixerflow.parts import PlainConv
from mixerflow.recipes import RECIPES
from mixerflow.transforms import ActNorm, Affine, LineAutoregressive, SigmoidAffine
from mixerflow.transforms.checks import perturb

DOUBLE = torch.float64
WAYS = [(0, False), (0, True), (1, False), (1, True)]
"""MaCow's A, B, C and D: rows above, rows below, columns left, columns right."""


def masked(axis, after, *, channels=2, dtype=DOUBLE, **settings):
    net = LineConvNet(channels, 2 * channels, width=6, axis=axis, after=after, **settings)
    transform = LineAutoregressive(net, SigmoidAffine(shift_last=True)).to(dtype)
    perturb(transform)
    return transform


@pytest.mark.parametrize(("axis", "after"), WAYS)
def test_a_number_is_mapped_as_the_paper_says(axis, after):
    """``sigmoid(raw + 2) x + mu``, tap by tap, from the window on one side of the number."""
    transform, shape = masked(axis, after), (2, 5, 7)
    x, net = torch.randn(1, *shape, dtype=DOUBLE), transform.net
    z, _ = transform(x)
    place = (2, 3)
    kernel, hidden = net.enter.weight, net.enter.bias.clone()
    for i in range(kernel.shape[2]):
        for j in range(kernel.shape[3]):
            line, across = (i, j) if axis == 0 else (j, i)
            along = line + 1 if after else line - 2  # the reach is 2 lines
            shift = (along, across - 2) if axis == 0 else (across - 2, along)  # the span is 5
            row, column = place[0] + shift[0], place[1] + shift[1]
            if 0 <= row < 5 and 0 <= column < 7:
                hidden = hidden + kernel[:, :, i, j] @ x[0, :, row, column]
    out = net.leave.weight[:, :, 0, 0] @ torch.nn.functional.elu(hidden) + net.leave.bias
    raw, mu = out[:2], out[2:]
    wanted = (raw + 2).sigmoid() * x[0, :, 2, 3] + mu
    torch.testing.assert_close(z[0, :, 2, 3], wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("axis", "after"), WAYS)
def test_an_inverse_convolves_only_the_lines_that_count(axis, after, monkeypatch):
    transform = masked(axis, after, reach=3)
    x, read = torch.randn(2, 2, 6, 5, dtype=DOUBLE), []
    z, log_det = transform(x)
    line = LineConvNet.line
    monkeypatch.setattr(
        LineConvNet, "line", lambda net, w, context: read.append(w.shape) or line(net, w, context)
    )
    back, inverse_log_det = transform.inverse(z)
    torch.testing.assert_close(back, x, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(inverse_log_det, -log_det, rtol=1e-12, atol=1e-12)
    assert read == [(2, 2, 3, 5) if axis == 0 else (2, 2, 6, 3)] * x.shape[axis + 2]


def test_half_precision_nets_sum_in_the_same_order_both_ways(monkeypatch):
    """Convolutions of another shape may round bfloat16 sums otherwise: parameters would differ."""
    transform = masked(0, False, channels=4, dtype=torch.float32)
    x, read = torch.randn(2, 4, 6, 5), []
    line = LineConvNet.line
    monkeypatch.setattr(
        LineConvNet, "line", lambda net, w, context: read.append(w.shape) or line(net, w, context)
    )
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        back, _ = transform.inverse(transform(x)[0])
    torch.testing.assert_close(back, x, rtol=1e-5, atol=1e-5)
    assert len(read) == 7 and len(set(read)) == 1


@pytest.mark.parametrize(
    "settings", [{"axis": 2}, {"axis": -1}, {"reach": 0}, {"span": 4}, {"axis": 1, "axes": 1}]
)
def test_windows_that_do_not_exist_are_refused(settings):
    with pytest.raises(ValueError, match=r"LineConvNet: .*got axis"):
        LineConvNet(2, 4, width=3, **settings)


def test_settings_and_images_that_do_not_fit_are_named():
    with pytest.raises(ConfigError, match="span 4"):
        MaCow(scales=1, span=4).build((3, 4, 4))
    with pytest.raises(ValueError, match="takes 4 parameters for 2 channels; the net gives 6"):
        LineAutoregressive(LineConvNet(2, 6, width=3), Affine())(torch.zeros(1, 2, 3, 3))
    with pytest.raises(ValueError, match=r"2 channels and 2 axes; got \(3, 4, 4\)"):
        masked(0, False).out_shape((3, 4, 4))


def test_it_has_the_published_count():
    """11.43 M in Table 1."""
    with torch.device("meta"):
        flow = RECIPES["macow-cifar10"].model.build((3, 32, 32))
    assert sum(p.numel() for p in flow.parameters()) == 11_432_052


@pytest.mark.parametrize("shape", [(3, 16, 8), (2, 8), (1, 4, 4, 8)])
def test_a_narrow_model_runs_both_ways_over_any_axes(shape):
    """In float32, all scales, steps and units at work; two units have two ActNorms an axis each."""
    deep = len(shape) == 3
    model = MaCow(scales=3 if deep else 2, steps=2, net=PlainConv(8, zero=True), span=3, factor=2)
    flow, axes = model.build(shape), len(shape) - 1
    x = torch.randint(0, 256, (3, *shape), dtype=torch.uint8)
    flow.initialize(x)
    perturb(flow.transform, size=0.02)
    flow(x).log_prob.sum().backward()
    for key, parameter in flow.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), key
    assert torch.equal(flow.decode(flow.encode(x)), x)
    kinds = [type(part) for part in flow.modules()]
    steps = model.scales * model.steps
    assert kinds.count(LineAutoregressive) == 2 * model.units * axes * steps
    assert kinds.count(ActNorm) == (model.units * axes + 1) * steps
