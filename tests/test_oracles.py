"""Values and log-dets agree with nflows and zuko, to 1e-10 in float64."""

import math

import pytest
import torch
from torch import nn

from mixerflow.core import StandardNormal
from mixerflow.nets import ResidualMLP
from mixerflow.transforms import LU, Affine, Coupling
from mixerflow.transforms.checks import perturb


def agree(ours, theirs):
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-10)


def lu(n):
    transform = LU(n).double()
    perturb(transform)
    return transform


def coupling(n, bound=None):
    net = ResidualMLP(n // 2, n, width=8)
    transform = Coupling(-1, net, Affine(bound)).double()
    perturb(transform)
    return transform


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:torch.triangular_solve:UserWarning")  # their way back
def test_lu_is_that_of_nflows():
    linear = pytest.importorskip("nflows.transforms.lu")
    ours, theirs = lu(6), linear.LULinear(6).double()
    # nflows keeps the triangles' entries in rows, and U's diagonal as softplus(raw) + eps
    rows = torch.tril_indices(6, 6, -1)
    theirs.lower_entries.copy_(ours.packed[rows[0], rows[1]])
    rows = torch.triu_indices(6, 6, 1)
    theirs.upper_entries.copy_(ours.packed[rows[0], rows[1]])
    theirs.unconstrained_upper_diag.copy_((ours.packed.diagonal().exp() - theirs.eps).expm1().log())
    theirs.bias.copy_(ours.bias)
    x = torch.randn(7, 6, dtype=torch.float64)
    agree(ours(x), theirs(x))
    agree(ours.inverse(x), theirs.inverse(x))


@torch.no_grad()
@pytest.mark.parametrize("bound", [None, 1.5])
def test_affine_coupling_is_that_of_nflows(bound):
    module = pytest.importorskip("nflows.transforms.coupling")
    ours = coupling(6, bound)

    ours.net.leave.bias[:3] -= 2  # nflows' scales are at most 1.001: keep ours below 1

    class Rewritten(nn.Module):
        """Our net's (s, t) as nflows reads it: (t, u) with exp(s) = sigmoid(u + 2) + 1e-3."""

        def __init__(self, given, out):
            super().__init__()
            assert (given, out) == (3, 6)

        def forward(self, x, context=None):
            raw = ours.net(x).unflatten(1, (2, 3)).movedim(1, 0)
            log_scale, shift = ours.elementwise._read(raw)
            return torch.cat([shift, (log_scale.exp() - 1e-3).logit() - 2], 1)

    mask = torch.tensor([0, 0, 0, 1, 1, 1])  # nflows transforms where the mask is 1
    theirs = module.AffineCouplingTransform(mask, Rewritten)
    x = torch.randn(7, 6, dtype=torch.float64)
    agree(ours(x), theirs(x))
    agree(ours.inverse(x), theirs.inverse(x))


@torch.no_grad()
def test_lu_is_that_of_zuko():
    transforms = pytest.importorskip("zuko.transforms")
    ours = lu(6)
    lower, upper = ours.triangles()
    # zuko's unit triangle is the upper one: L U = (L D) (D^-1 U) with D the diagonal of U
    diagonal = upper.diagonal()
    packed = lower * diagonal + (upper / diagonal[:, None]).triu(1)
    theirs = transforms.LULinearTransform(packed)
    x = torch.randn(7, 6, dtype=torch.float64)
    z, log_det = theirs.call_and_ladj(x)
    agree(ours(x), (z + ours.bias, log_det.expand(7)))
    agree(ours.inverse(x)[:1], (theirs.inv(x - ours.bias),))


@torch.no_grad()
def test_affine_coupling_is_that_of_zuko():
    transforms = pytest.importorskip("zuko.transforms")
    ours, slope = coupling(6), 1e-3

    def meta(given):
        """zuko softclips: log-scale = raw / (1 + |raw / log slope|), here solved for raw."""
        log_scale, shift = ours.net(given).chunk(2, 1)
        raw = log_scale / (1 - (log_scale / math.log(slope)).abs())
        return transforms.DependentTransform(
            transforms.MonotonicAffineTransform(shift, raw, slope=slope), 1
        )

    mask = torch.tensor([True, True, True, False, False, False])  # zuko keeps where it is True
    theirs = transforms.CouplingTransform(meta, mask)
    x = torch.randn(7, 6, dtype=torch.float64)
    agree(ours(x), theirs.call_and_ladj(x))
    agree(ours.inverse(x), theirs.inv.call_and_ladj(x))


def test_the_base_is_torchs_normal():
    z = torch.randn(5, 7, dtype=torch.float64)
    wanted = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(1)
    agree([StandardNormal().log_prob(z)], [wanted])
