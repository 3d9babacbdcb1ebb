"""Learning rates by layer, and depth that grows."""

import math

import pytest
import torch

from mixerflow.core import Chain, Flow, Noise
from mixerflow.errors import ConfigError
from mixerflow.processes import Processes
from mixerflow.runs import RunFolder, load
from mixerflow.training import Trainer, train
from mixerflow.training.batches import Batches
from mixerflow.training.budget import steps_of
from mixerflow.training.growth import Growth, active, check, layers_of, wake
from mixerflow.transforms import ActNorm
from mixers import mixer, vary
from test_training import MODEL, everything, flow_of, images, settings, stop_after, timeless


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


GROWN = mixer(layers=4, flow_layers=2, hidden=8, patch=2, shift=1, shift_every=2, norm="none")
"""With the colour transform five layers: of three stages the first has two, the second four."""
NORMED = vary(GROWN, norm="batch")
BOTH = pytest.mark.parametrize("model", [GROWN, NORMED], ids=["plain", "batch-norm"])


def growing(model=GROWN, **changes):
    """A trainer whose flow grows at steps 4 and 8 of 12."""
    config = settings(grow=3, **changes)
    flow = flow_of(model)
    Growth(flow, config.grow).at(0, 1)
    return trainer_of(config, flow)


def pixels():
    return torch.from_numpy(images().pixels)


def state_of(layer):
    return {name: value.clone() for name, value in layer.state_dict().items()}


def same(layer, before):
    return all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


@pytest.mark.parametrize("steps", [3, 4, 7, 100])
@pytest.mark.parametrize("layers", [3, 5, 31])
def test_stages_are_equal_in_steps_and_in_layers(steps, layers):
    depths = [active(step, steps, stages=3, layers=layers) for step in range(steps)]
    shares = [math.ceil(k * layers / 3) for k in (1, 2, 3)]
    assert depths == sorted(depths) and sorted(set(depths)) == shares
    counts = [depths.count(share) for share in shares]
    assert max(counts) - min(counts) <= 1
    assert active(steps, steps, stages=3, layers=layers) == layers


def test_one_stage_is_all_layers():
    assert {active(s, 5, stages=1, layers=4) for s in range(6)} == {4}
    for grow in (0, 1):
        flow = flow_of(GROWN)
        trainer_of(settings(grow=grow), flow)
        assert len(flow.transform.awake()) == len(flow.transform)


def test_layers_are_the_colour_transform_and_the_mixer_layers():
    flow = flow_of(GROWN)
    assert layers_of(flow) == list(flow.transform)[2:]
    scaled = flow_of(vary(GROWN, scales=2, patch=1, shift=0))
    assert len(layers_of(scaled)) == 5  # and not what halves the event between
    assert len(scaled.layers()) == 2 + 5 + 1


@BOTH
def test_waking_changes_no_figure(model):
    trainer = growing(model)
    for wakes in (4, 8):
        while trainer.step < wakes:
            trainer.advance()
        averaged = trainer.settle()
        before = [flow.bits_per_dim(pixels()) for flow in (trainer.flow, averaged)]
        depth = 2 if wakes == 4 else 4  # and the two steps without parameters
        assert len(trainer.flow.transform.awake()) == len(averaged.transform.awake()) == 2 + depth
        trainer._grow()
        deeper = 4 if wakes == 4 else 5
        assert len(trainer.flow.transform.awake()) == len(averaged.transform.awake()) == 2 + deeper
        after = [flow.bits_per_dim(pixels()) for flow in (trainer.flow, averaged)]
        for old, new in zip(before, after, strict=True):
            assert torch.allclose(old, new, rtol=0, atol=1e-6)


@BOTH
@pytest.mark.parametrize("memory", ["store", "checkpoint", "invert"])
def test_a_sleeping_layer_is_not_touched_until_it_wakes(model, memory):
    trainer = growing(model, memory=memory)
    layers = layers_of(trainer.flow)
    averaged = layers_of(trainer.average.flow)
    starts = [state_of(layer) for layer in layers]
    calls = [0] * len(layers)
    for number, layer in enumerate(layers):
        layer.register_forward_hook(lambda *_, number=number: calls.__setitem__(number, 1))
    for depth in (2, 4, 5):
        calls[:] = [0] * len(layers)
        for _ in range(4):
            trainer.advance()
        assert calls == [1] * depth + [0] * (5 - depth)
        for number, (layer, start) in enumerate(zip(layers, starts, strict=True)):
            states = [p in trainer.optimizer.state for p in layer.parameters()]
            asleep = number >= depth
            assert same(layer, start) is asleep and same(averaged[number], start) is asleep
            assert states == [not asleep] * len(states)


@pytest.mark.parametrize("memory", ["checkpoint", "invert"])
def test_memory_makes_no_difference(memory):
    flows = []
    for kind in ("store", memory):
        trainer = growing(memory=kind)
        for _ in range(12):
            trainer.advance()
        flows.append(trainer.flow)
    for kept, again in zip(*(flow.parameters() for flow in flows), strict=True):
        assert torch.allclose(kept, again, rtol=1e-3, atol=1e-4)


@BOTH
@pytest.mark.parametrize("stop", [3, 4, 5, 8, 9])
def test_resumed_across_a_growth_is_bit_identical(tmp_path, monkeypatch, model, stop):
    config = settings(grow=3, evaluate_every=5)
    train(flow_of(model), images(), out=tmp_path / "whole", config=config, quiet=True)
    with monkeypatch.context() as patch:
        stop_after(patch, stop)
        ended = train(flow_of(model), images(), out=tmp_path / "run", config=config, quiet=True)
        assert ended.step == stop
    train(flow_of(model), images(), out=tmp_path / "run", config=config, quiet=True)
    whole, resumed = everything(tmp_path / "whole"), everything(tmp_path / "run")
    assert resumed.keys() == whole.keys()
    assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())
    assert timeless(tmp_path / "run") == timeless(tmp_path / "whole")


@BOTH
def test_a_finished_run_taken_up_again_has_the_same_figure(tmp_path, model):
    config = settings(grow=3)
    first = train(flow_of(model), images(), out=tmp_path, config=config, quiet=True)
    again = train(flow_of(model), images(), out=tmp_path, config=config, quiet=True)
    assert again.step == first.step == 12
    assert again.validation.bits_per_dim == first.validation.bits_per_dim


def test_sampling_passes_the_sleeping_over(monkeypatch):
    flow = growing().flow
    for layer in layers_of(flow)[2:]:
        monkeypatch.setattr(layer, "inverse", None)
    assert flow.sample(3).shape == (3, *flow.shape)
    wake(flow)
    with pytest.raises(TypeError):
        flow.sample(3)


@BOTH
def test_a_checkpoint_in_between_loads_as_the_averaged_flow(tmp_path, monkeypatch, model):
    flow = flow_of(model)
    with monkeypatch.context() as patch:
        stop_after(patch, 6)
        train(flow, images(), out=tmp_path / "run", config=settings(grow=3), quiet=True)
    assert len(flow.transform.awake()) == len(flow.transform)
    loaded = load(tmp_path / "run", which="last")
    noise = Noise(0, torch.arange(23))
    assert torch.equal(loaded.log_prob(pixels(), noise=noise), flow.log_prob(pixels(), noise=noise))
    Growth(loaded, 3).at(5, 12)
    assert len(loaded.transform.awake()) == 2 + 4
    shallow = loaded.log_prob(pixels(), noise=noise)
    assert torch.allclose(shallow, flow.log_prob(pixels(), noise=noise), rtol=1e-6)
    z = torch.randn(3, flow.dims)
    assert torch.allclose(
        loaded.transform.inverse(z.view(3, *flow.shape))[0],
        flow.transform.inverse(z.view(3, *flow.shape))[0],
        atol=1e-5,
    )
    assert len(loaded.fused().transform.steps) < len(flow.fused().transform.steps)
    assert torch.allclose(loaded.fused().log_prob(pixels(), noise=noise), shallow, rtol=1e-5)


def test_a_run_that_fails_leaves_no_layer_asleep(monkeypatch):
    flow = flow_of(GROWN)
    monkeypatch.setattr(Trainer, "advance", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(flow, images(), config=settings(grow=3), quiet=True)
    assert len(flow.transform.awake()) == len(flow.transform)


def test_initialisation_leaves_the_sleeping_at_the_identity():
    flow = growing().flow
    first, last = (
        next(m for m in layers_of(flow)[i].modules() if isinstance(m, ActNorm)) for i in (1, 4)
    )
    assert first.shift.abs().max() > 0 and last.shift.abs().max() == 0
    wake(flow)
    check(flow, 3, pixels()[:2])


def test_minutes_are_timed_at_full_depth(monkeypatch):
    depths, advance = [], Trainer.advance

    def look(self):
        depths.append(len(self.flow.transform.awake()))
        return advance(self)

    monkeypatch.setattr(Trainer, "advance", look)
    flow = flow_of(GROWN)
    batches = Batches(images(), 5, seed=0, device=flow.device, conditional=False)
    config = settings(steps=None, minutes=0.001, grow=3)
    steps_of(config, flow, batches, images())
    assert set(depths) == {2 + 5}


def refused(model, match, **changes):
    with pytest.raises(ConfigError, match=match) as caught:
        train(flow_of(model), images(), config=settings(**{"grow": 3} | changes), quiet=True)
    assert "--train.grow" in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [{"actnorm": "batch"}, {"linear": "RLU", "flow_layers": 1, "shift": 0}],
    ids=["batch-norm", "reversal"],
)
def test_layers_that_do_not_start_as_the_identity_are_refused(changes):
    refused(vary(GROWN, **changes), r"layer 3 of 5 is not the identity")


class Dishonest(ActNorm):
    """The identity, by whose account volumes change."""

    def forward(self, x, context=None, noise=None):
        return x, super().forward(x)[1] + 1e-3


def test_the_log_det_is_looked_at_too():
    steps = [ActNorm((1, 4, 4)), ActNorm((1, 4, 4)), Dishonest((1, 4, 4))]
    check(Flow(Chain(*steps[:2]), (1, 4, 4)), 2, pixels()[:2])
    with pytest.raises(ConfigError, match="layer 3 of 3"):
        check(Flow(Chain(*steps), (1, 4, 4)), 3, pixels()[:2])


@pytest.mark.parametrize(
    "changes",
    [
        {"linear": "RLU"},
        {"linear": "Woodbury"},
        {"law": "spline"},
        {"net": "kan"},
        {"actnorm": "activation"},
        {"scales": 2, "patch": 1, "shift": 0},
    ],
    ids=str,
)
def test_layers_that_do_are_taken(changes):
    check(flow_of(vary(GROWN, **changes)), 3, pixels()[:2])


def test_a_flow_that_was_trained_is_refused():
    flow = flow_of(GROWN)
    train(flow, images(), config=settings(), quiet=True)
    with pytest.raises(ConfigError, match=r"is not the identity.*fresh flow"):
        train(flow, images(), config=settings(grow=3), quiet=True)


def test_stages_that_cannot_be_are_refused():
    refused(GROWN, "6 stages are more than the flow's 5 layers", grow=6)
    refused(GROWN, "3 stages in 2 steps", steps=2)
    with pytest.raises(ConfigError, match=r"--train\.grow"):
        settings(grow=-1)


def test_several_processes_are_refused():
    with pytest.raises(ConfigError, match=r"--train\.grow: train in one process"):
        Growth(flow_of(GROWN), 3, Processes(together=True))


def test_layers_that_share_parameters_are_refused():
    flow = flow_of(GROWN)
    steps = list(flow.transform)
    shared = Flow(Chain(*steps, steps[-1]), flow.shape, levels=flow.levels)
    with pytest.raises(ConfigError, match="share parameters"):
        Growth(shared, 3)
    Growth(flow, 3)
