"""The step for a CUDA graph: it trains as Trainer does, and nothing in it waits for the device."""

import contextlib
import copy
import dataclasses
import itertools
import math
import signal

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from helpers import (
    MODEL,
    SHAPE,
    WITH_BATCH_NORM,
    everything,
    flow_of,
    images,
    settings,
    timeless,
)
from mixerflow.data import make_images
from mixerflow.errors import ConfigError, NonFiniteError
from mixerflow.processes import Processes
from mixerflow.recipes import build
from mixerflow.registry import describe, restore
from mixerflow.runs import Checkpoints, RunFolder
from mixerflow.training import TrainConfig, Trainer, fit, loop, train
from mixerflow.training.batches import Batches
from mixerflow.training.graphed import GraphedTrainer, trainer_of
from mixers import maf, mixer, vary

FLOATS = vary(MODEL, levels=None, layers=1)
CLASSES = vary(MODEL, classes=3, class_width=4, layers=1)
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def data_of(model):
    if model.pixels.levels is None:
        values = np.random.default_rng(0).normal(5, 2, (23, *SHAPE)).astype(np.float32)
        return make_images(values, None, dataset_id="floats")
    return images(classes=model.classes.count if model.classes else 0)


def trainer(kind, model=MODEL, *, steps=100, device=CPU, **changes):
    """A trainer of that kind on a fresh flow, and torch's generator where each run begins."""
    config, data = settings(**{"batch": 6, **changes}), data_of(model)
    flow = flow_of(model)
    labels = torch.from_numpy(data.labels) if model.classes else None
    flow.initialize(torch.from_numpy(data.pixels), labels)
    flow.to(device)
    batches = Batches(
        data,
        config.batch,
        seed=0,
        device=flow.device,
        conditional=bool(model.classes),
        parts=config.accumulate,
    )
    made = kind(flow, batches, config, steps=steps)
    torch.manual_seed(1)
    return made


def stop_after(monkeypatch, kind, step):
    """Send this process SIGTERM while a trainer of that kind takes the given step."""
    advance = kind.advance

    def advance_and_signal(self):
        if self.step == step - 1:
            signal.raise_signal(signal.SIGTERM)
        return advance(self)

    monkeypatch.setattr(kind, "advance", advance_and_signal)


def numbers(trainer):
    """All that training has come to, as copies."""
    model, ema = trainer.weights()
    tensors = {f"model.{k}": v for k, v in model.items()}
    tensors |= {f"ema.{k}": v for k, v in ema.items()}
    for i, values in trainer.state()["optimizer"]["state"].items():
        tensors |= {f"adam.{i}.{k}": v for k, v in values.items()}
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def same(mine, theirs):
    assert mine.keys() == theirs.keys()
    return all(torch.equal(tensor, theirs[name]) for name, tensor in mine.items())


def assert_near(mine, theirs, tolerance):
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        torch.testing.assert_close(
            tensor, theirs[name], rtol=tolerance, atol=tolerance, msg=lambda m, name=name: name + m
        )


@pytest.mark.parametrize(
    ("model", "changes", "tolerance"),
    [
        (MODEL, {"clip": 0.5, "layer_lr": 0.5, "ema": 0.0}, 2e-6),
        (WITH_BATCH_NORM, {"clip": 1e9, "layer_lr": 0.5, "accumulate": 2}, 1e-5),
        (WITH_BATCH_NORM, {"clip": 0.5}, 1e-5),
        (WITH_BATCH_NORM, {"precision": "bfloat16"}, 1e-2),
        (CLASSES, {"clip": 1e9}, 2e-6),
        (FLOATS, {"accumulate": 3}, 2e-6),
    ],
)
def test_it_trains_as_trainer_does(model, changes, tolerance):
    came_to = []
    for kind in (Trainer, GraphedTrainer):
        made = trainer(kind, model, **changes)
        for group in made.optimizer.param_groups:
            group["eps"] = 1e-3  # or Adam makes steps of the rounding of gradients that are 0
        taken = [made.advance() for _ in range(8)]
        came_to.append((taken, numbers(made), torch.get_rng_state()))
    (theirs, weights, generator), (mine, graphed_weights, graphed_generator) = came_to
    for a, b in zip(mine, theirs, strict=True):
        assert a.objective == pytest.approx(b.objective, rel=tolerance)
        assert a.gradient_norm == pytest.approx(b.gradient_norm, rel=100 * tolerance)
        assert (a.lr, a.number, a.counted, a.bad_part) == (b.lr, b.number, 1, None)
    clipped = sum(step.gradient_norm > made.config.clip for step in theirs)
    assert {0.5: clipped == 8, 1e9: clipped == 0}.get(made.config.clip, True)
    assert_near(graphed_weights, weights, tolerance)
    assert torch.equal(graphed_generator, generator)


def test_a_checkpoint_has_each_weight_by_itself(tmp_path):
    made = trainer(GraphedTrainer, WITH_BATCH_NORM)
    made.advance()
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, *made.weights(), {"trainer": made.state()})
    loaded, theirs = checkpoints.load(1), trainer(Trainer, WITH_BATCH_NORM)
    theirs.advance()
    assert same(loaded.model, made.flow.state_dict())
    assert {k: v.shape for k, v in loaded.model.items()} == {
        k: v.shape for k, v in theirs.flow.state_dict().items()
    }
    mine, usual = loaded.state["trainer"], theirs.state()
    assert mine["optimizer"]["param_groups"] == usual["optimizer"]["param_groups"]
    assert mine["optimizer"]["state"].keys() == usual["optimizer"]["state"].keys()
    steps = [values["step"] for values in mine["optimizer"]["state"].values()]
    assert len({step.data_ptr() for step in steps}) == len(steps)
    assert mine.keys() - usual.keys() == {"figures"}


def poison(made, *steps):
    """Put NaN into one image of each of these steps, from 0."""
    at = made.batches.at

    def poisoned(step):
        x, context = at(step)
        x = x.clone()
        if step in steps:
            x[2, 0, 1, 1] = math.nan
        return x, context

    made.batches.at = poisoned


def test_a_step_that_is_not_finite_changes_nothing_and_is_counted():
    made = trainer(GraphedTrainer, FLOATS)
    poison(made, 3)
    for _ in range(3):
        assert made.advance().bad_part is None
    before = numbers(made)
    step = made.advance()
    assert same(numbers(made), before)
    assert (step.number, step.counted) == (4, 0)
    assert "steps.0" in step.bad_part
    assert (made.skipped, made.bad_in_a_row) == (1, 1)
    step = made.advance()
    assert (step.bad_part, step.counted, made.skipped, made.bad_in_a_row) == (None, 1, 1, 0)
    assert math.isfinite(step.objective)
    assert not same(numbers(made), before)


def test_figures_are_read_now_and_then_and_none_is_lost():
    often, seldom = (trainer(GraphedTrainer, FLOATS, steps=15) for _ in range(2))
    for made in (often, seldom):
        poison(made, 6, 7, 11)
    torch.manual_seed(1)
    each = [often.advance() for _ in range(15)]
    torch.manual_seed(1)
    seldom.read_every = 4
    steps = [seldom.advance() for _ in range(15)]  # of which the last is looked at too
    told = [step for step in steps if step.counted or step.bad_part]
    assert [step.counted for step in told] == [4, 2, 3, 3]
    assert [step.number for step in told] == [4, 8, 12, 15]
    # the last step's batch is still there to look into
    assert told[0].bad_part is told[3].bad_part is None
    assert "steps.0" in told[1].bad_part
    assert "steps.0" in told[2].bad_part
    for step, (first, last) in zip(told, itertools.pairwise((0, 4, 8, 12, 15)), strict=True):
        good = [one for one in each[first:last] if one.bad_part is None]
        assert step.objective == pytest.approx(np.mean([one.objective for one in good]))
        assert step.gradient_norm == pytest.approx(np.mean([one.gradient_norm for one in good]))
    assert (seldom.skipped, seldom.bad_in_a_row) == (often.skipped, often.bad_in_a_row) == (3, 0)
    assert same(numbers(often), numbers(seldom))


def test_an_earlier_bad_step_is_numbered():
    made = trainer(GraphedTrainer, FLOATS)
    poison(made, 1)
    made.read_every = 4
    *unread, step = (made.advance() for _ in range(4))
    assert all(one.counted == 0 and one.bad_part is None for one in unread)
    assert (step.number, step.counted, made.skipped, made.bad_in_a_row) == (2, 3, 1, 0)
    assert step.bad_part == "the objective or its gradient"


def test_a_run_that_stays_not_finite_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(fit, "trainer_of", GraphedTrainer)
    monkeypatch.setattr(loop, "_LINES", 3)
    flow, at = flow_of(FLOATS), Batches.at

    def poisoned(self, step):
        x, context = at(self, step)
        return (x * math.nan if step >= 5 else x), context

    monkeypatch.setattr(Batches, "at", poisoned)
    config = settings(give_up_after=3, save_every=1, keep=20)
    with pytest.raises(NonFiniteError, match=r"3 steps in a row .* at step 8 in .*steps\.0"):
        train(flow, data_of(FLOATS), out=tmp_path / "run", config=config, quiet=True)
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints")
    fifth, seventh = checkpoints.load(5), checkpoints.load(7)
    assert same(fifth.model, seventh.model)
    assert seventh.state["trainer"]["bad_in_a_row"] == seventh.state["trainer"]["skipped"] == 2


def test_resumed_is_bit_identical_wherever_it_stopped(tmp_path, monkeypatch):
    model = WITH_BATCH_NORM
    monkeypatch.setattr(fit, "trainer_of", GraphedTrainer)
    monkeypatch.setattr(loop, "_LINES", 3)  # figures are read every fifth step
    data, config = images(), settings(steps=15, evaluate_every=7)
    train(flow_of(model), data, out=tmp_path / "whole", config=config, quiet=True)
    whole, metrics = everything(tmp_path / "whole"), timeless(tmp_path / "whole")
    assert [r["step"] for r in metrics if r["kind"] == "train"] == [5, 10, 15]
    for stop in (5, 7, 13):
        out = tmp_path / f"stopped-{stop}"
        with monkeypatch.context() as patch:
            stop_after(patch, GraphedTrainer, stop)
            ended = train(flow_of(model), data, out=out, config=config, quiet=True)
        assert (ended.status, ended.step) == ("interrupted", stop)
        train(flow_of(model), data, out=out, config=config, quiet=True)
        assert same(everything(out), whole), f"differs after a stop at {stop}"
        assert timeless(out) == metrics


def test_either_goes_on_from_the_others_checkpoint(tmp_path, monkeypatch):
    data, config = images(), settings(steps=9, evaluate_every=9, ema=0.9)
    train(flow_of(), data, out=tmp_path / "whole", config=config, quiet=True)
    for kinds in ((Trainer, GraphedTrainer), (GraphedTrainer, Trainer)):
        out = tmp_path / kinds[0].__name__
        for number, kind in enumerate(kinds):
            with monkeypatch.context() as patch:
                patch.setattr(fit, "trainer_of", kind)
                if number == 0:
                    stop_after(patch, kind, 5)
                mode = dataclasses.replace(config, graph=kind is GraphedTrainer)
                ended = train(flow_of(), data, out=out, config=mode, quiet=True)
        assert ended.status == "finished"
        assert_near(everything(out), everything(tmp_path / "whole"), 1e-5)
        assert RunFolder(out).read_metadata()["train"]["graph"] is (kinds[1] is GraphedTrainer)


def test_one_step_from_either_state_is_the_same():
    usual = trainer(Trainer, WITH_BATCH_NORM)
    for _ in range(3):
        usual.advance()
    state, weights = copy.deepcopy(usual.state()), copy.deepcopy(usual.weights())
    taken = trainer(GraphedTrainer, WITH_BATCH_NORM)
    taken.load_weights(*weights)
    taken.load_state(state)
    assert same(numbers(taken), numbers(usual))
    back = trainer(Trainer, WITH_BATCH_NORM)
    back.load_weights(*copy.deepcopy(taken.weights()))
    back.load_state(copy.deepcopy(taken.state()))
    torch.manual_seed(2)
    step = usual.advance()
    torch.manual_seed(2)
    assert back.advance() == step
    assert same(numbers(back), numbers(usual))
    assert {float(v["step"]) for v in back.optimizer.state.values()} == {4.0}


def test_figures_that_nobody_looked_at_are_in_the_state():
    made = trainer(GraphedTrainer, FLOATS)
    poison(made, 1)
    made.read_every = 4
    for _ in range(2):
        made.advance()
    state = copy.deepcopy(made.state())
    assert (state["skipped"], state["bad_in_a_row"]) == (1, 1)
    again = trainer(GraphedTrainer, FLOATS)
    again.read_every = 4
    again.load_weights(*copy.deepcopy(made.weights()))
    again.load_state(state)
    torch.manual_seed(2)
    steps = [made.advance() for _ in range(2)]
    torch.manual_seed(2)
    assert again.advance().counted == 0
    assert again.advance() == steps[-1]
    assert (again.skipped, again.bad_in_a_row) == (made.skipped, made.bad_in_a_row) == (1, 0)


def test_a_state_of_no_steps_has_no_moments():
    made, fresh = trainer(GraphedTrainer), trainer(Trainer)
    for _ in range(2):
        made.advance()
    made.load_state(fresh.state())
    assert made.step == 0
    assert not made.optimizer.state


class Watch(TorchDispatchMode):
    """Raises where a value is looked at, or where the sizes of what follows depend on values."""

    looks = (
        *("_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select"),
        *("unique_dim", "_unique2", "unique_consecutive", "lift_fresh"),
    )
    """`lift_fresh` makes a tensor of numbers of the host."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name, result = func.overloadpacket.__name__, func(*args, **(kwargs or {}))
        given = [t for t in tree_leaves((args, kwargs, result)) if isinstance(t, torch.Tensor)]
        assert name not in self.looks, name
        assert len({t.device for t in given}) < 2, f"{name} reads from the host"
        masks = name.startswith("index") and any(t.dtype == torch.bool for t in given)
        assert not masks, f"{name} by a mask"
        return result


WATCHED = {
    "plain": (MODEL, {}),
    "batch-norm": (WITH_BATCH_NORM, {"accumulate": 2, "layer_lr": 0.5}),
    "classes": (CLASSES, {}),
    "floats": (FLOATS, {}),
    "spline": (vary(FLOATS, law="spline"), {}),
    "kan": (vary(FLOATS, net="kan"), {}),
    "maf": (maf(layers=2, hidden=8), {}),
}


@pytest.mark.parametrize("name", [*WATCHED, "bfloat16"])
def test_the_host_sees_no_value(name):
    model, changes = WATCHED.get(name, (WITH_BATCH_NORM, {"precision": "bfloat16"}))
    made = trainer(GraphedTrainer, model, **changes)
    made.advance()
    made._load()
    before = numbers(made)
    with Watch():
        made._device_step()
    assert not same(numbers(made), before)
    with pytest.raises(AssertionError, match="_local_scalar_dense"), Watch():
        float(made._share)  # what it would say


@pytest.mark.parametrize("name", WATCHED)
def test_no_tensor_comes_from_the_host(name, monkeypatch):
    """On the meta device, which has no values, as far as that knows the operators."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    model, changes = WATCHED[name]
    made = trainer(GraphedTrainer, model, device=torch.device("meta"), **changes)
    monkeypatch.setattr(made.optimizer, "step", lambda: None)  # the fused one knows no meta device
    made._load()
    with Watch():
        made._device_step()


class Stream:
    """Of a GPU that is not there."""

    def __init__(self, device=None): ...

    def wait_stream(self, other): ...


def pretend(monkeypatch, made):
    """Let `made` think that it has a GPU; what is captured runs at each replay. Counts both."""
    counts = {"captured": 0, "replayed": 0}

    class Graph:
        def replay(self):
            counts["replayed"] += 1
            made._device_step()

    @contextlib.contextmanager
    def capture(graph):
        counts["captured"] += 1
        with made._state_preserved():  # nothing runs while it is captured
            yield

    nothing = {
        "stream": lambda _: contextlib.nullcontext(),
        "device": lambda _: contextlib.nullcontext(),
        "current_stream": Stream,
        "Stream": Stream,
        "CUDAGraph": Graph,
        "graph": capture,
    }
    for name, stand_in in nothing.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda *_: None)
    made._copy_stream = Stream()
    return counts


@pytest.mark.parametrize("model", [WITH_BATCH_NORM, CLASSES], ids=["batch-norm", "classes"])
def test_capture_leaves_no_trace(monkeypatch, model):
    plain = trainer(GraphedTrainer, model)
    steps = [plain.advance() for _ in range(5)]
    wanted, generator = numbers(plain), torch.get_rng_state()
    made = trainer(GraphedTrainer, model)
    counts = pretend(monkeypatch, made)
    assert [made.advance() for _ in range(5)] == steps
    assert counts == {"captured": 1, "replayed": 5}
    assert same(numbers(made), wanted)
    assert torch.equal(torch.get_rng_state(), generator)


def test_a_step_that_cannot_be_captured_is_told(monkeypatch):
    made = trainer(GraphedTrainer)
    pretend(monkeypatch, made)
    monkeypatch.setattr(made, "_device_step", lambda: torch.zeros(2).item())
    with pytest.raises(ConfigError, match=r"has no graph \(a Tensor with 2 .*: train\.graph: "):
        made.advance()


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"memory": "invert"}, "train.memory invert"),
        ({"memory": "checkpoint"}, "train.memory checkpoint"),
    ],
)
def test_settings_that_no_graph_can_have_are_refused(changes, what):
    with pytest.raises(
        ConfigError, match=rf"^no graph with {what}: train\.graph: say train.graph=False"
    ):
        trainer(GraphedTrainer, **changes)


def test_flows_and_images_that_no_graph_can_have_are_refused():
    def made(flow, pixels, processes=None):
        data = make_images(pixels, None, dataset_id="given")
        batches = Batches(data, 6, seed=0, device=CPU, conditional=False)
        if processes is not None:
            batches.processes = processes
        return GraphedTrainer(flow, batches, settings(batch=6), steps=10)

    few = build(vary(MODEL, levels=32), SHAPE)
    with pytest.raises(ConfigError, match="no graph with pixels other than uint8 of 256 levels"):
        made(few, images().pixels // 8)
    deep = build(vary(MODEL, levels=2**16), SHAPE)
    with pytest.raises(ConfigError, match="no graph with pixels other than uint8 of 256 levels"):
        made(deep, images().pixels.astype(np.uint16))
    with pytest.raises(ConfigError, match="no graph with parameters other than float32"):
        made(flow_of().double(), images().pixels)
    with pytest.raises(ConfigError, match="no graph with several processes"):
        made(flow_of(), images().pixels, Processes(0, 2, 0, together=True))


def test_without_a_gpu_graphs_are_refused_and_say_what_to_do(tmp_path):
    wanted = r"^no CUDA graphs on the cpu: train\.graph: train on a GPU \(device cuda\), or"
    with pytest.raises(ConfigError, match=wanted):
        train(flow_of(), images(), out=tmp_path / "a", config=settings(graph=True), quiet=True)
    with pytest.raises(ConfigError, match=wanted):
        config = settings(steps=None, minutes=0.1, graph=True)
        train(flow_of(), images(), out=tmp_path / "b", config=config, quiet=True)
    batches = Batches(images(), 5, seed=0, device=CPU, conditional=False)
    assert type(trainer_of(flow_of(), batches, settings(), steps=5)) is Trainer


def test_runs_from_before_graphs_have_none():
    stored = describe(settings(graph=True))
    del stored["graph"]
    assert restore(TrainConfig, stored) == settings()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("model", [MODEL, WITH_BATCH_NORM, CLASSES])
def test_a_replayed_graph_trains_as_operators_do(model):
    came_to = []
    for replayed in (False, True):
        made = trainer(GraphedTrainer, model, device=torch.device("cuda"), steps=40)
        for group in made.optimizer.param_groups:
            group["eps"] = 1e-3
        made.read_every = 7
        if not replayed:
            made._copy_stream = None
        taken = [made.advance() for _ in range(40)]
        came_to.append((taken[-1].objective, numbers(made), torch.cuda.get_rng_state()))
    (objective, wanted, generator), (graphed, got, after) = came_to
    assert graphed == pytest.approx(objective, rel=1e-4)
    assert_near(got, wanted, 1e-3)
    assert torch.equal(after, generator)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_graphed_run_on_a_gpu_goes_on_where_it_stopped(tmp_path, monkeypatch):
    model = mixer(layers=2, flow_layers=2, hidden=8, patch=2, shift=0, norm="batch")
    data, config = images(200), settings(steps=40, batch=16, evaluate_every=10, graph=True)

    def run(out):
        return train(flow_of(model).cuda(), data, out=out, config=config, quiet=True)

    run(tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_after(patch, GraphedTrainer, 13)
        assert run(tmp_path / "stopped").step == 13
    assert run(tmp_path / "stopped").status == "finished"
    mine, theirs = everything(tmp_path / "stopped"), everything(tmp_path / "whole")
    assert_near(mine, theirs, 1e-3)
