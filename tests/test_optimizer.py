"""Optimisers and schedules: Adamax is Adamax, rates are as said, and all of it resumes."""

import copy
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers import MODEL, flow_of, images, settings, timeless, whole_and_resumed
from mixerflow.augmentation import Augmentation
from mixerflow.data import make_images
from mixerflow.errors import ConfigError
from mixerflow.models import flow_from
from mixerflow.registry import construct, describe
from mixerflow.runs import Checkpoints, RunFolder
from mixerflow.schedule import Constant, Cosine, Exponential
from mixerflow.training import TrainConfig, Trainer, train
from mixerflow.training.batches import Batches
from mixerflow.training.graphed import GraphedTrainer
from mixerflow.training.optimizer import parameter_groups
from mixers import vary

ALL = {
    "optimizer": "adamax",
    "schedule": Constant(cooldown=0.3, cooldown_lr=1e-3),
    "augmentation": Augmentation(flip=True, shift=1),
}
FIXTURE = Path(__file__).parent / "fixtures" / "run-format-3"


def trainer_of(flow, kind=Trainer, steps=100, **changes):
    config = settings(**changes)
    batches = Batches(images(), config.batch, seed=0, device=flow.device, conditional=False)
    flow.initialize(*batches.first(16))
    return kind(flow, batches, config, steps=steps)


def test_adamax_trains_as_torchs_with_rates_by_layer():
    trainer = trainer_of(flow_of(), optimizer="adamax", betas=(0.8, 0.9), layer_lr=0.25, clip=1e9)
    flow = copy.deepcopy(trainer.flow)
    groups, rates = parameter_groups(flow, trainer.config)
    assert len(groups) > 2
    theirs = torch.optim.Adamax(groups, betas=(0.8, 0.9), eps=1e-8, foreach=False)
    for step in range(6):
        torch.manual_seed(step)
        taken = trainer.advance()
        torch.manual_seed(step)
        for group, rate in zip(theirs.param_groups, rates, strict=True):
            group["lr"] = taken.lr * rate
        theirs.zero_grad()
        loss = -flow.train().log_prob(trainer.batches.at(step)[0]).mean()
        (loss / (flow.dims * math.log(2))).backward()
        theirs.step()
        for mine, other in zip(trainer.flow.parameters(), flow.parameters(), strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-8)


def test_a_step_that_is_not_finite_changes_nothing_of_adamax(monkeypatch):
    trainer = trainer_of(flow_of(vary(MODEL, levels=None)), optimizer="adamax")
    trainer.advance()
    before = copy.deepcopy((trainer.weights(), trainer.state()["optimizer"]["state"]))
    at = trainer.batches.at
    monkeypatch.setattr(trainer.batches, "at", lambda step: (at(step)[0] * math.nan, None))
    assert trainer.advance().bad_part is not None
    after = (trainer.weights(), trainer.state()["optimizer"]["state"])
    leaves = [torch.utils._pytree.tree_leaves(each) for each in (before, after)]
    assert all(torch.equal(*map(torch.as_tensor, pair)) for pair in zip(*leaves, strict=True))


def test_adamax_has_no_graph():
    with pytest.raises(ConfigError, match=r"no graph with train\.optimizer adamax"):
        trainer_of(flow_of(), GraphedTrainer, optimizer="adamax")


@pytest.mark.parametrize("stop", [4, 7])
def test_adamax_a_constant_rate_and_augmentation_resume_bit_for_bit(tmp_path, monkeypatch, stop):
    config = settings(**ALL, layer_lr=0.5)
    whole, resumed = whole_and_resumed(tmp_path, monkeypatch, config, stop)
    assert resumed.keys() == whole.keys() and "adam.0.exp_inf" in whole
    assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())
    assert timeless(tmp_path / "run") == timeless(tmp_path / "whole")
    rates = [r["lr"] for r in timeless(tmp_path / "run") if r["kind"] == "train"]
    assert rates == [1e-2] * 8 + [1e-3] * 4  # the warm-up is a tenth of 12 steps at most


def test_a_deeper_flow_continues_with_adamaxs_moments(tmp_path):
    shallow, deep = MODEL, vary(MODEL, layers=3)
    config = settings(**ALL, schedule_steps=24, keep=9)
    train(flow_of(shallow), images(), out=tmp_path / "a", config=config, quiet=True)
    begin = {"begin": tmp_path / "a", "quiet": True}
    with pytest.raises(ConfigError, match=r"those of adamax, not adam: .*use train\.opt"):
        train(flow_of(deep), images(), config=settings(), **begin)
    train(flow_of(deep), images(), out=tmp_path / "b", config=config, **begin)
    old = Checkpoints(tmp_path / "a" / "checkpoints").load("last").state["trainer"]["optimizer"]
    new = Checkpoints(tmp_path / "b" / "checkpoints").load(0).state["trainer"]["optimizer"]
    names = [[n for n, _ in flow_of(model).named_parameters()] for model in (deep, shallow)]
    came = {names[0][i]: values for i, values in new["state"].items() if values}
    assert came.keys() == set(names[1])
    for i, values in old["state"].items():
        assert values.keys() == {"step", "exp_avg", "exp_inf"}
        assert all(torch.equal(came[names[1][i]][key], value) for key, value in values.items())
    rates = [r["lr"] for r in timeless(tmp_path / "b") if r["kind"] == "train"]
    assert rates == [1e-2] * 5 + [1e-3] * 7  # steps 12 to 23 of 24, no second rise


def test_a_constant_rate_warms_up_and_cools_down():
    schedule = Constant(cooldown=20 / 420, cooldown_lr=2e-5)
    config = settings(lr=1e-3, warmup=5000, schedule=schedule)
    rates = [config.lr_at(step, 420_000) for step in (0, 2499, 4999, 5000, 399_999, 400_000)]
    assert rates == pytest.approx([2e-7, 5e-4, 1e-3, 1e-3, 1e-3, 2e-5])
    assert config.lr_at(419_999, 420_000) == 2e-5
    flat = settings(lr=1e-3, warmup=0, schedule=Constant())
    assert {flat.lr_at(step, 50) for step in range(50)} == {1e-3}
    short = settings(lr=1.0, warmup=500, schedule=Constant(cooldown=0.5, cooldown_lr=0.1))
    assert [short.lr_at(step, 20) for step in range(20)] == [0.5, *[1.0] * 9, *[0.1] * 10]


def test_a_piece_of_a_constant_schedule_has_the_rates_of_its_place():
    schedule = Constant(cooldown=0.1, cooldown_lr=0.01)
    whole = settings(lr=1.0, warmup=10, schedule=schedule)
    piece = settings(lr=1.0, warmup=10, schedule=schedule, schedule_start=60, schedule_steps=100)
    rates = [piece.lr_at(step, 40, moments=True) for step in range(40)]
    assert rates == [whole.lr_at(60 + step, 100) for step in range(40)]
    assert rates == [1.0] * 30 + [0.01] * 10
    rise = [piece.lr_at(step, 40) for step in range(5)]  # without moments, a tenth of the piece
    assert rise == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"cooldown": 1.0}, "cooldown"), ({"cooldown": -0.1}, "cooldown")]
    + [({"cooldown_lr": value}, "cooldown_lr") for value in (0.0, math.nan, math.inf)],
)
def test_impossible_cool_downs_are_refused(changes, named):
    with pytest.raises(ValueError, match=f"Constant: {named} must"):
        Constant(**changes)


def test_an_unknown_optimiser_is_named():
    with pytest.raises(ConfigError, match=r"sgd .*train\.optimizer: .*adam, adamax"):
        settings(optimizer="sgd")


def test_settings_survive_run_json():
    for config in (TrainConfig(), settings(**ALL), settings(schedule=Cosine())):
        assert construct(describe(config)) == config


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"optimizer": "adamax"}, "train.optimizer is adam, not adamax"),
        ({"schedule": Constant()}, "train.schedule is cosine, not constant"),
        ({"augmentation": Augmentation(flip=True)}, "train.augmentation.flip is False, not True"),
    ],
)
def test_a_run_from_before_these_settings_goes_on_with_their_defaults(tmp_path, changes, words):
    """The fixture's images are those of seed 0; its two steps become the first of four."""
    run = shutil.copytree(FIXTURE, tmp_path / "run", symlinks=True)
    folder = RunFolder(run)
    folder.update({"steps": 4})
    header = folder.read_metadata()
    assert not header["train"].keys() & ALL.keys()
    pixels = np.random.default_rng(0).integers(0, 256, (24, 1, 4, 4)).astype(np.uint8)
    data = make_images(pixels, np.arange(24) % 2, dataset_id="array")
    known = {"steps": 2, "batch": 4, "initial": 8, "evaluate_every": 2, "keep": 1}

    def resumed(**more):
        flow = flow_from(header["model"])
        return train(flow, data, out=run, config=TrainConfig(**known | more), quiet=True)

    with pytest.raises(ConfigError, match=words):
        resumed(**changes)
    assert resumed().step == 4
    assert construct(folder.read_metadata()["train"]) == TrainConfig(**known)
    assert Checkpoints(run / "checkpoints").steps()[-1] == 4


def test_an_exponential_rate_holds_falls_and_ends_at_its_least():
    schedule = Exponential(hold=20, decay=0.9, least=0.1)
    config = settings(warmup=10, lr=1.0, schedule=schedule)
    rates = [config.lr_at(step, 200) for step in range(200)]
    assert rates[9:21] == [1.0] * 12 and rates[4] == 0.5
    assert rates[21:25] == pytest.approx([0.9, 0.81, 0.729, 0.6561])
    assert rates[-1] == 0.1 and min(rates[10:]) == 0.1
    assert schedule.rate(0.05, 150, 200, 10) == 0.05  # never above the rate itself
    for wrong in ({"hold": -1}, {"decay": 0.0}, {"decay": 1.1}, {"least": 0.0}):
        with pytest.raises(ValueError, match="Exponential"):
            Exponential(**wrong)
