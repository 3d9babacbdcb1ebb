"""Hybrid training by several processes, whole or sharded, is that of one."""

import numpy as np
import pytest
import torch

from helpers import together
from mixerflow.data import make_images
from mixerflow.evaluate import classify
from mixerflow.models import MixerFlow
from mixerflow.parts import MLP, GaussiansHead, LinearHead, Patching, RowCoupling
from mixerflow.training import Hybrid, TrainConfig, Trainer
from mixerflow.training.batches import Batches

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")

FLOW = RowCoupling(net=MLP(8))


def trained(processes, head, how):
    """The objectives of some steps, and what the flow of this process says of images."""
    torch.manual_seed(0)
    model = MixerFlow(layers=2, flow_layers=1, patching=Patching(2), flow=FLOW, head=head)
    flow = model.build((1, 4, 4)).double()
    labels = np.arange(40) % 3
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 60, (40, 1, 4, 4)) + 60 * labels[:, None, None, None]
    images = make_images(pixels.astype(np.uint8), labels, dataset_id="bright")
    config = TrainConfig(
        objective=Hybrid(1.0), batch=8, lr=1e-2, warmup=0, initial=32, parallel=how,
        labels_per_class=6,
    )  # fmt: skip
    batches = Batches(
        images, 8, seed=0, device=torch.device("cpu"), conditional=False, processes=processes,
        labels_per_class=6, labelled=0.5,
    )  # fmt: skip
    flow.initialize(*batches.first(32))
    trainer = Trainer(flow, batches, config, steps=6, objective=config.objective)
    steps = [trainer.advance() for _ in range(6)]
    return [step.objective for step in steps], classify(trainer.flow, images.pixels)


@pytest.mark.slow
@pytest.mark.parametrize("head", [LinearHead(3), GaussiansHead(3)], ids=["linear", "gaussians"])
def test_sharded_hybrids_are_those_of_whole_ones(head):
    whole, sharded = (together(2, trained, head, how) for how in ("ddp", "fsdp"))
    for (losses, said), (others, told) in zip(whole, sharded, strict=True):
        assert np.allclose(losses, others, atol=1e-9)
        assert np.allclose(said, told, atol=1e-9)
    assert np.allclose(whole[0][0], whole[1][0])
