"""Learning rates by layer, and depth that grows from run to run."""

import dataclasses

import pytest
import torch

from helpers import MODEL, everything, flow_of, images, settings, stop_after, timeless
from mixerflow.errors import ConfigError
from mixerflow.experiments.tables import table
from mixerflow.models import Glow
from mixerflow.parts import GlowConv, LUMap
from mixerflow.runs import Checkpoints, Evaluator, RunFolder, load, publish
from mixerflow.training import Trainer, train
from mixerflow.training.batches import Batches
from mixerflow.transforms import Affine
from mixers import mixer, vary


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
    header = folder.read_metadata()
    del header["train"]["layer_lr"]
    folder.write_metadata(header)
    with pytest.raises(ConfigError, match=r"layer_lr is 1\.0, not 0\.5"):
        train(flow_of(), images(), out=folder.path, config=settings(layer_lr=0.5), quiet=True)
    assert train(flow_of(), images(), out=folder.path, config=settings(), quiet=True).step == 12


def test_a_rate_that_cannot_be_is_named():
    with pytest.raises(ConfigError, match=r"train\.layer_lr"):
        settings(layer_lr=0.0)


SHALLOW = mixer(layers=2, flow_layers=2, hidden=8, patch=2, shift=1, shift_every=2, norm="none")
DEEP = vary(SHALLOW, layers=4)
NORMED = vary(SHALLOW, norm="batch")
PAIRS = {
    "plain": (SHALLOW, DEEP),
    "batch norm in conditioners": (NORMED, vary(NORMED, layers=5)),
    "scales": (vary(SHALLOW, scales=2, patch=1, shift=0), vary(DEEP, scales=2, patch=1, shift=0)),
    "splines": (vary(SHALLOW, law="spline"), vary(DEEP, law="spline")),
    "learned base": (vary(SHALLOW, base="spike-and-slab"), vary(DEEP, base="spike-and-slab")),
    "classes": (vary(SHALLOW, classes=3), vary(DEEP, classes=3)),
}


def pixels():
    return torch.from_numpy(images().pixels)


def trained(model, out, data=None, begin=None, **changes):
    given = images() if data is None else data
    config = settings(**changes)
    return train(flow_of(model), given, out=out, begin=begin, config=config, quiet=True)


# classes, scales and splines hold all that the plain pair does
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n == "plain" else n for n in PAIRS]
)
def test_a_deeper_flow_begins_as_the_shallower_one_ended(tmp_path, name):
    shallow, deep = PAIRS[name]
    data = images(classes=3 if name == "classes" else 0)
    trained(shallow, tmp_path / "a", data, schedule_steps=24)
    trained(deep, tmp_path / "b", data, begin=tmp_path / "a", keep=9)
    labels = None if data.labels is None else torch.from_numpy(data.labels)
    for average in (True, False):
        ended = load(tmp_path / "a", which="last", average=average)
        began = load(tmp_path / "b", which=0, average=average)
        assert len(began.layers()) > len(ended.layers())
        before, after = (flow.bits_per_dim(data.pixels, labels) for flow in (ended, began))
        # batch norm's running statistics of the averaged weights are taken anew
        torch.testing.assert_close(after, before, rtol=0, atol=0.02 if "batch" in name else 2e-6)


def test_moments_and_the_place_in_the_schedule_come_along(tmp_path):
    trained(SHALLOW, tmp_path / "a", schedule_steps=40)
    trained(DEEP, tmp_path / "b", begin=tmp_path / "a", keep=9)
    old = Checkpoints(tmp_path / "a" / "checkpoints").load("last").state["trainer"]["optimizer"]
    new = Checkpoints(tmp_path / "b" / "checkpoints").load(0).state["trainer"]["optimizer"]
    names = [[n for n, _ in flow_of(model).named_parameters()] for model in (SHALLOW, DEEP)]
    mine = {names[1][i]: state for i, state in new["state"].items() if state}
    theirs = {names[0][i]: state for i, state in old["state"].items()}
    assert mine.keys() == theirs.keys() and len(names[1]) > len(names[0])
    for name, state in mine.items():
        assert all(torch.equal(state[key], theirs[name][key]) for key in state)
    header = RunFolder(tmp_path / "b").read_metadata()
    assert header["train"]["schedule_start"] == 12 and header["train"]["schedule_steps"] == 40
    assert header["origin"]["moments"] and header["origin"]["steps"] == 12
    rates = [r["lr"] for r in RunFolder(tmp_path / "b").read_metrics() if r["kind"] == "train"]
    whole = settings(schedule_steps=40)
    assert rates == [whole.lr_at(12 + step, 28) for step in range(12)]  # no second rise


def test_a_third_stage_begins_from_the_second(tmp_path):
    trained(SHALLOW, tmp_path / "a", schedule_steps=36)
    trained(vary(SHALLOW, layers=3), tmp_path / "b", begin=tmp_path / "a")
    trained(DEEP, tmp_path / "c", begin=tmp_path / "b")
    header = RunFolder(tmp_path / "c").read_metadata()
    assert header["train"]["schedule_start"] == 24
    assert [piece["steps"] for piece in header["origin"]["pieces"]] == [12, 12]


@pytest.mark.parametrize("stop", [4, *(pytest.param(s, marks=pytest.mark.slow) for s in (1, 7))])
@pytest.mark.parametrize("layer_lr", [pytest.param(1.0, marks=pytest.mark.slow), 0.5])
def test_a_stage_resumes_bit_for_bit(tmp_path, monkeypatch, stop, layer_lr):
    trained(SHALLOW, tmp_path / "a", schedule_steps=24, layer_lr=layer_lr)
    more = {"begin": tmp_path / "a", "layer_lr": layer_lr}
    trained(DEEP, tmp_path / "whole", **more)
    with monkeypatch.context() as patch:
        stop_after(patch, stop)
        assert trained(DEEP, tmp_path / "run", **more).step == stop
    (tmp_path / "a").rename(tmp_path / "elsewhere")  # not needed any more
    trained(DEEP, tmp_path / "run", **more)
    whole, resumed = everything(tmp_path / "whole"), everything(tmp_path / "run")
    assert resumed.keys() == whole.keys()
    assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())
    assert timeless(tmp_path / "run") == timeless(tmp_path / "whole")


def test_an_objectives_own_weights_come_along(tmp_path):
    class Scaled(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(1))

        def forward(self, flow, images, labels):
            return -flow.log_prob(images) * self.scale.square(), {}

    objective = Scaled()
    config = settings(schedule_steps=24, keep=9)
    common = {"objective": objective, "config": config, "quiet": True}
    train(flow_of(SHALLOW), images(), out=tmp_path / "a", **common)
    scale = objective.scale.item()
    common["objective"] = Scaled()
    train(flow_of(DEEP), images(), out=tmp_path / "b", begin=tmp_path / "a", **common)
    first = Checkpoints(tmp_path / "b" / "checkpoints").load(0).state["trainer"]
    assert first["objective"]["scale"].item() == scale != 1


def test_glow_grows_at_every_scale(tmp_path):
    """With linear maps and couplings that start as the identity."""
    shallow = Glow(scales=2, steps=1, linear=LUMap(), elementwise=Affine(), net=GlowConv(4))
    config = settings(schedule_steps=24, keep=9)
    train(shallow.build((1, 4, 4)), images(), out=tmp_path / "a", config=config, quiet=True)
    flow = dataclasses.replace(shallow, steps=2).build((1, 4, 4))
    more = {"out": tmp_path / "b", "begin": tmp_path / "a", "config": settings(keep=9)}
    train(flow, images(), quiet=True, **more)
    ended, began = load(tmp_path / "a", which="last"), load(tmp_path / "b", which=0)
    before, after = (each.bits_per_dim(images().pixels) for each in (ended, began))
    torch.testing.assert_close(after, before, rtol=0, atol=2e-6)


def refused(model, match, path):
    with pytest.raises(ConfigError, match=match) as caught:
        train(flow_of(model), images(), config=settings(), begin=path, quiet=True)
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def shallow_run(tmp_path_factory):
    out = tmp_path_factory.mktemp("shallow") / "run"
    trained(SHALLOW, out)
    return out


def test_published_weights_have_nothing_to_grow_with(shallow_run, tmp_path):
    few = Evaluator(images(), "all")
    publish(shallow_run, tmp_path / "w", few)
    refused(DEEP, "published weights have no moments.*name the run folder", tmp_path / "w")


def test_the_card_tells_of_the_stages(shallow_run, tmp_path):
    trained(DEEP, tmp_path / "b", begin=shallow_run)
    card = publish(tmp_path / "b", tmp_path / "w", Evaluator(images(), "all"))
    assert [piece["moments"] for piece in card["pieces"]] == [False, True]
    assert ", with moments |" in (tmp_path / "w" / "card.md").read_text()


def test_flows_that_are_not_deeper_are_refused(shallow_run):
    refused(vary(SHALLOW, layers=1), r"its model\.layers is 2, not 1", shallow_run)
    wider = vary(DEEP, hidden=9)
    refused(wider, r"its model\.\S+ is \S+, not", shallow_run)
    refused(vary(SHALLOW, hidden=9), r"its model\.flow\.net\.width is 8, not 9", shallow_run)
    refused(vary(DEEP, law="spline"), r"its model\.\S+ is \S+, not", shallow_run)


@pytest.mark.parametrize(
    "changes",
    [{"actnorm": "batch"}, {"linear": "RLU", "flow_layers": 1, "shift": 0}],
    ids=["batch-norm", "reversal"],
)
def test_layers_that_do_not_start_as_the_identity_are_refused(tmp_path, changes):
    trained(vary(SHALLOW, **changes), tmp_path / "a")
    refused(vary(DEEP, **changes), r"layer \d of \d is not the identity", tmp_path / "a")


@pytest.mark.parametrize("budget", ["tiny", "cpu", "gpu"])
def test_the_paper_s_row_of_stages_costs_the_steps_of_the_others(budget):
    cells = {cell.row.name: cell for cell in table("appendix-d").cells}
    stages = cells["grown"].stages(budget, 0)
    (base,) = cells["base"].stages(budget, 0)
    assert sum(config.steps for _, config in stages) == base[1].steps
    starts = [config.schedule_start for _, config in stages]
    assert starts == [0, stages[0][1].steps]
    assert {config.schedule_steps for _, config in stages} == {base[1].steps}
    assert [model.layers for model, _ in stages] == [-(-base[0].layers // 2), base[0].layers]
    assert stages[-1][0] == base[0]
