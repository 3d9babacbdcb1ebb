"""Learning rates by layer."""

import pytest
import torch

from mixerflow.errors import ConfigError
from mixerflow.training import RunFolder, Trainer, train
from mixerflow.training.batches import Batches
from test_training import MODEL, everything, flow_of, images, settings, stop_after


def trainer_of(config, flow, steps=12):
    flow.initialize(torch.from_numpy(images().pixels))
    batches = Batches(images(), config.batch, seed=0, device=flow.device, conditional=False)
    return Trainer(flow, batches, config, steps=steps)


def test_rates_go_geometrically_from_the_first_layer_to_the_last():
    flow = flow_of()
    trainer = trainer_of(settings(layer_lr=0.25), flow)
    layers = [step for step in flow.transform if next(step.parameters(), None) is not None]
    assert len(layers) == MODEL.layers + 1  # and the colour transform
    for _ in range(3):
        taken = trainer.advance()
        rates = {id(p): g["lr"] for g in trainer.optimizer.param_groups for p in g["params"]}
        assert len(rates) == len(list(flow.parameters()))
        for layer, ratio in zip(layers, (1, 0.5, 0.25), strict=True):
            assert {rates[id(p)] for p in layer.parameters()} == {taken.lr * ratio}


def test_adams_first_step_is_as_long_as_the_layers_rate():
    flow = flow_of()
    trainer = trainer_of(settings(layer_lr=0.25, warmup=0), flow)
    before = [p.detach().clone() for p in flow.parameters()]
    trainer.advance()
    moved = {
        id(p): (p - b).abs().max().item() for p, b in zip(flow.parameters(), before, strict=True)
    }
    layers = [step for step in flow.transform if next(step.parameters(), None) is not None]
    for layer, ratio in zip(layers[1:], (0.5, 0.25), strict=True):
        longest = max(moved[id(p)] for p in layer.parameters())
        assert longest == pytest.approx(1e-2 * ratio, rel=1e-2)


def test_the_default_is_one_group():
    trainer = trainer_of(settings(), flow_of())
    (group,) = trainer.optimizer.param_groups
    assert group["params"] == trainer.parameters


def test_resumed_with_rates_by_layer_is_bit_identical(tmp_path, monkeypatch):
    config = settings(layer_lr=0.1)
    train(flow_of(), images(), out=tmp_path / "whole", config=config, quiet=True)
    with monkeypatch.context() as patch:
        stop_after(patch, 5)
        train(flow_of(), images(), out=tmp_path / "run", config=config, quiet=True)
    train(flow_of(), images(), out=tmp_path / "run", config=config, quiet=True)
    whole, resumed = everything(tmp_path / "whole"), everything(tmp_path / "run")
    assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())
    assert resumed.keys() == whole.keys()


def test_runs_older_than_the_setting_go_on(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(patch, 5)
        train(flow_of(), images(), out=tmp_path / "run", config=settings(), quiet=True)
    folder = RunFolder(tmp_path / "run")
    header = folder.read_config()
    del header["train"]["layer_lr"]
    folder.write_config(header)
    with pytest.raises(ConfigError, match=r"layer_lr is 1\.0, not 0\.5"):
        train(flow_of(), images(), out=folder.path, config=settings(layer_lr=0.5), quiet=True)
    assert train(flow_of(), images(), out=folder.path, config=settings(), quiet=True).step == 12


def test_a_rate_that_cannot_be_is_named():
    with pytest.raises(ConfigError, match=r"--train\.layer-lr"):
        settings(layer_lr=0.0)
