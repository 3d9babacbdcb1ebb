"""Memory modes in two processes: DDP's gradients are one process's; sharded weights are refused."""

from itertools import product

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from helpers import together
from mixerflow.core import refuse_sharded
from mixerflow.errors import ConfigError
from mixerflow.recipes import build
from mixerflow.training.parallel import share_batch_norms
from mixerflow.transforms.checks import perturb
from mixers import mixer

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*fork.*")

MODES = ("store", "checkpoint", "invert")
SHAPE = (1, 4, 4)
CASES = {  # norm, dtype, how near; kernels take float32
    "alone": ("none", torch.float64, 1e-9),
    "batch norm": ("batch", torch.float64, 1e-9),
    "kernels": ("batch", torch.float32, 1e-4),
}


def flow_and_pixels(norm="none", dtype=torch.float64):
    torch.manual_seed(0)
    model = mixer(layers=2, shift_every=2, flow_layers=2, patch=2, hidden=6, norm=norm, levels=None)
    flow = build(model, SHAPE).to(dtype)
    perturb(flow, size=0.15)
    return flow.train(), torch.randn(8, *SHAPE, dtype=torch.float64).to(dtype)


def gradients(model, *parts):
    for part in parts:
        (-model(part).log_prob.mean() / len(parts)).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def work(processes, wanted):
    for (case, (norm, dtype, near)), mode, static in product(CASES.items(), MODES, (False, True)):
        flow, x = flow_and_pixels(norm, dtype)
        assert share_batch_norms(flow, processes) == 0
        flow.memory = mode
        model = DistributedDataParallel(flow, static_graph=static)
        mine, whole = x[4 * processes.rank : 4 * processes.rank + 4], wanted[case]
        found = gradients(model, mine)
        assert float((found - whole).norm() / whole.norm()) < near, (case, mode, static)
        if norm == "none":  # batch norm sees the halves of a batch apart
            model.zero_grad()
            with model.no_sync():
                gradients(model, mine[:2])
            found = gradients(model, mine[2:]) / 2
            assert float((found - whole).norm() / whole.norm()) < near, (mode, static)
    refuses_shards()


def refuses_shards():
    from torch.distributed.fsdp import fully_shard

    for whole in (False, True):
        flow, x = flow_and_pixels()
        for step in [] if whole else flow.transform.steps:
            fully_shard(step)
        fully_shard(flow)
        refuse_sharded(flow, "store")
        for mode in MODES[1:]:
            flow.memory = mode
            with pytest.raises(ConfigError, match="FSDP2"):
                flow(x[:4])


def test_two_processes_learn_what_one_does_and_refuse_shards():
    wanted = {}
    for case, (norm, dtype, _) in CASES.items():
        flow, x = flow_and_pixels(norm, dtype)
        wanted[case] = gradients(flow, x)
    together(2, work, wanted)
