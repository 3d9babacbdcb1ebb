"""The published block of the benchmark computes what our block computes."""

import torch
from benchmarks import residual_block
from benchmarks.rival_residual import PowerConv, PublishedBlock

from mixerflow.nets import LipschitzConvNet, SpectralConv
from mixerflow.transforms import Residual
from mixerflow.transforms.series import PoissonTail, estimate


def test_power_iteration_approaches_the_norm_from_below():
    torch.manual_seed(0)
    conv = PowerConv(2, 3, 3, 5, 0.9)
    units = torch.eye(50).reshape(50, 2, 5, 5)
    matrix = torch.nn.functional.conv2d(units, conv.weight, padding=1).reshape(50, -1)
    norm = torch.linalg.matrix_norm(matrix, 2)
    found = (conv.u * torch.nn.functional.conv2d(conv.v, conv.weight, padding=1)).sum()
    assert 0.99 * norm < found <= norm * (1 + 1e-5)
    assert conv.iterate() < 200


def test_both_blocks_have_the_same_values_and_expected_gradients():
    """Of one net whose norms no bound changes, with so many exact terms that no draw matters."""
    torch.manual_seed(0)
    theirs = PublishedBlock(2, 4, width=5, exact=30).double()
    net = LipschitzConvNet(2, (4, 4), width=5, coefficient=0.98).double()
    with torch.no_grad():
        for mine, other in zip(net.linears, theirs.net[1::2], strict=True):
            assert isinstance(mine, SpectralConv) and isinstance(other, PowerConv)
            other.weight *= 0.1
            mine.weight.copy_(other.weight)
            mine.bias.copy_(other.bias)
    x = torch.randn(3, 2, 4, 4, dtype=torch.float64)
    probe = torch.randn_like(x).sign()
    z, series = theirs(x, probe, 0)
    # of one draw, series of J and of its transpose are equal, and their gradients in the mean alone
    value, pull = torch.func.vjp(net.prepare(), x)
    log_det = estimate(lambda v: pull(v)[0], probe, lambda k: (-1) ** (k + 1) / k, terms=31)
    torch.testing.assert_close(z, x + value, rtol=1e-10, atol=1e-12)
    wanted = torch.autograd.grad((z.square() + series.mean()).sum(), list(theirs.parameters()))
    ours = ((x + value).square() + log_det.mean()).sum()
    order = [
        each
        for pair in zip(net.activations, net.linears, strict=True)
        for module in pair
        for each in module.parameters()
    ]
    for a, b in zip(torch.autograd.grad(ours, order), wanted, strict=True):
        torch.testing.assert_close(a.flatten(), b.flatten(), rtol=1e-6, atol=1e-9)


def test_the_benchmark_times_both_on_the_same_terms():
    given = residual_block.Arguments(width=4, batch=2, rounds=1, further=(0, 3))
    row = residual_block.measure(2, 4, given)
    assert set(row["faster"]) == {"ours", "ours, without slopes"}
    assert all(each["median"] > 0 for each in row["seconds"].values())
    block = residual_block.ours(2, 4, given)
    assert isinstance(block, Residual) and isinstance(block.tail, PoissonTail)
    plain = residual_block.ours(2, 4, given, slopes=False)
    assert not hasattr(plain.net.prepare(None), "linearise")
