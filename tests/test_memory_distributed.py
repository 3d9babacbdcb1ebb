"""Memory modes in two processes: DDP's gradients are one process's; sharded weights are refused."""

import copy

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from mixerflow.core import refuse_sharded
from mixerflow.errors import ConfigError
from mixerflow.models import MixerFlowConfig, build
from mixerflow.transforms.checks import perturb

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*fork.*")

MODEL = MixerFlowConfig(layers=2, shift_every=2, flow_layers=2, patch=2, hidden=6, norm="none")
MODES = ("store", "checkpoint", "invert")
SHAPE = (1, 4, 4)


def flow_and_pixels():
    torch.manual_seed(0)
    flow = build(MODEL, SHAPE).double()
    perturb(flow, size=0.15)
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.integers(0, 256, (8, *SHAPE), dtype=np.uint8))
    return flow.train(), x.double() + 0.5  # the middles of bins: nothing is drawn


def gradients(model, parts, **settings):
    for part in parts:
        (-model(part).log_prob.mean() / len(parts)).backward()
    return [p.grad.clone() for p in model.parameters()]


def without_dequantisation(flow):
    flow.transform.steps = flow.transform.steps[1:]
    return flow


def work(rank, path, wanted):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{path}/meet", rank=rank, world_size=2)
    try:
        for mode in MODES:
            for static in (False, True):
                flow, x = flow_and_pixels()
                flow = without_dequantisation(flow)
                flow.memory = mode
                model = DistributedDataParallel(flow, static_graph=static)
                mine = gradients(model, [x[4 * rank : 4 * rank + 4]])
                for a, b in zip(mine, wanted, strict=True):
                    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
                model.zero_grad()
                with model.no_sync():
                    gradients(model, [x[4 * rank : 4 * rank + 2]])
                gradients(model, [x[4 * rank + 2 : 4 * rank + 4]])
                for p, b in zip(model.parameters(), wanted, strict=True):
                    torch.testing.assert_close(p.grad / 2, b, rtol=1e-9, atol=1e-9)
        refuses_shards()
    finally:
        dist.destroy_process_group()


def refuses_shards():
    from torch.distributed.fsdp import fully_shard

    for whole in (False, True):
        flow = without_dequantisation(flow_and_pixels()[0])
        x = flow_and_pixels()[1]
        for step in [] if whole else flow.transform.steps:
            fully_shard(step)
        fully_shard(flow)
        for mode in MODES:
            try:
                refuse_sharded(flow, mode)
                assert mode == "store"
            except ConfigError as error:
                assert mode != "store" and "FSDP2" in str(error)
        flow.memory = "invert"
        with pytest.raises(ConfigError, match="FSDP2"):
            flow(x[:4])


def test_two_processes_learn_what_one_does_and_refuse_shards(tmp_path):
    flow, x = flow_and_pixels()
    wanted = gradients(without_dequantisation(copy.deepcopy(flow)), [x])
    mp.spawn(work, (str(tmp_path), wanted), nprocs=2)
