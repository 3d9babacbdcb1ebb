"""Whole models equal those that are built from other libraries' own parts, to 1e-6 nats.

Glow and RealNVP beside normflows, NSF beside nflows, each of several scales, away from the start,
in float64. Pixels are left out: both get the same real numbers.
"""

import pytest
import torch
from benchmarks.counterparts import counterpart, split_pixels

from mixerflow.models import NSF, Glow, RealNVP
from mixerflow.parts import (
    ActivationPrior,
    LUMap,
    MatrixMap,
    PlainConv,
    PLUMap,
    PreactivationConv,
    ResidualConv,
    ZeroConvolution,
)
from mixerflow.transforms.checks import perturb

PLAIN = PlainConv(6)
MODELS = {
    "normflows, Glow": Glow(2, 2, MatrixMap(), net=PLAIN, split=None, prior=ActivationPrior()),
    "normflows, Glow, PLU": Glow(3, 1, PLUMap(), net=PLAIN, split=None, prior=None),
    "normflows, Glow, split priors": Glow(3, 1, net=PLAIN, split=ZeroConvolution()),
    "normflows, RealNVP": RealNVP(2, ResidualConv(4, depth=1, norm="none")),
    "normflows, RealNVP, 3 scales": RealNVP(3, ResidualConv(2, depth=1, norm="batch")),
    "nflows, NSF": NSF(
        2, 2, LUMap(), net=PreactivationConv(5, depth=2), split=None, bias=True, last_map=True
    ),
}


def moved(model):
    """In float64 and eval mode, every parameter and running average away from the start."""
    torch.manual_seed(0)
    flow = model.build((3, 16, 8))
    perturb(flow.transform)
    flow = flow.double().eval()
    for name, buffer in flow.named_buffers():
        if name.endswith("running_var"):
            buffer.mul_(1.7)
        elif name.endswith("running_mean"):
            buffer.add_(0.3)
    return flow


# nflows' splines are ours only with our parametrisation of their derivatives
WAYS = [(name, exact) for name in MODELS for exact in (True, False) if exact or "NSF" not in name]


@torch.no_grad()
@pytest.mark.parametrize(("name", "exact"), WAYS)
def test_the_density_is_the_other_librarys(name, exact):
    pytest.importorskip(name.partition(",")[0])
    flow = moved(MODELS[name])
    theirs = counterpart(MODELS[name], flow, exact=exact)
    y = 1.5 * torch.randn(5, 3, 16, 8, dtype=torch.float64)
    z, log_det = split_pixels(flow)[1](y)
    ours = flow.base.log_prob(z) + log_det
    assert ours.std() > 1
    torch.testing.assert_close(theirs.log_prob(y), ours, rtol=0, atol=1e-6)
