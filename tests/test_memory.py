"""Memory modes: what backward recomputes or inverts is what it would have stored."""

import copy
import math
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from mixerflow.core import Chain, Flow, Transform, memory
from mixerflow.core.memory import through
from mixerflow.data import make_images
from mixerflow.errors import ConfigError
from mixerflow.models import MixerFlowConfig, build
from mixerflow.nets import ResidualMLP
from mixerflow.training import TrainConfig, Trainer
from mixerflow.training.batches import Batches
from mixerflow.transforms import LU, ActNorm, Affine, Coupling, Dequantize, Rescale
from mixerflow.transforms.checks import perturb

from test_laws import CASES

SHAPE = (2, 6, 4)
MODEL = MixerFlowConfig(
    layers=4, shift_every=2, flow_layers=2, patch=2, hidden=8, norm="batch", levels=256
)
MODES = ("store", "checkpoint", "invert")
AGAIN = ("checkpoint", "invert")


def pixels(n=6, seed=0, shape=SHAPE):
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.integers(0, 256, (n, *shape), dtype=np.uint8))


def perturbed(config=MODEL, shape=SHAPE, size=0.15):
    """A flow with weights such as training might leave."""
    torch.manual_seed(0)
    flow = build(config, shape)
    perturb(flow, seed=1, size=size)
    return flow.train()


def outcome(flow, mode, x, context=None, **settings):
    """Gradients by name, batch norm's and torch's state after a step from the same start."""
    flow = copy.deepcopy(flow)
    flow.memory = mode
    torch.manual_seed(7)
    loss = -flow(x, context, **settings).log_prob.mean()
    loss.backward()
    gradients = {n: p.grad for n, p in flow.named_parameters()}
    return loss.detach(), gradients, dict(flow.named_buffers()), torch.get_rng_state()


def compare(mine, theirs):
    """Relative error and cosine of all gradients together."""
    assert mine.keys() == theirs.keys()
    assert all((mine[n] is None) == (theirs[n] is None) for n in mine)
    a, b = (torch.cat([g.double().flatten() for g in gs.values()]) for gs in (mine, theirs))
    return float((a - b).norm() / b.norm()), float(a @ b / (a.norm() * b.norm()))


@pytest.mark.parametrize("norm", ["batch", "layer", "none"])
@pytest.mark.parametrize("mode", AGAIN)
def test_gradients_agree_in_double_precision(mode, norm):
    flow = perturbed(MixerFlowConfig(**{**vars(MODEL), "norm": norm})).double()
    stored, again = (outcome(flow, m, pixels())[1] for m in ("store", mode))
    assert compare(again, stored)[0] < 1e-9
