"""Training: what resumes is bit for bit what was, what is not finite stops, budgets are kept."""

import dataclasses
import functools
import itertools
import json
import math
import operator
import os
import signal
import time
import traceback
from pathlib import Path

import numpy as np
import pytest
import torch

import mixerflow
from helpers import (
    MODEL,
    SHAPE,
    WITH_BATCH_NORM,
    everything,
    flow_of,
    images,
    settings,
    stop_after,
    timeless,
)
from mixerflow.core import Noise
from mixerflow.data import hold_out
from mixerflow.errors import ConfigError, NonFiniteError, ResourceError
from mixerflow.models import MAF, Glow, RealNVP
from mixerflow.parts import GlowConv, ResidualConv
from mixerflow.recipes import build
from mixerflow.report import make_report
from mixerflow.runs import Checkpoints, RunFolder, load
from mixerflow.training import Trainer, train, validation
from mixerflow.training.batches import Batches
from mixerflow.training.optimizer import Average, batch_norms, recalibrate
from mixerflow.transforms import Dequantize
from mixers import mixer, vary


@pytest.mark.parametrize(
    "stops",
    [
        # the first step, an evaluation, behind a batch of two epochs, mid-epoch, the last but one
        pytest.param((1, 4, 5, 11, 20), id="some stops"),
        pytest.param(range(1, 21), id="all stops", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize(
    "model",
    [
        pytest.param(MODEL, id="plain", marks=pytest.mark.slow),
        pytest.param(WITH_BATCH_NORM, id="batch-norm"),
    ],
)
def test_resumed_is_bit_identical_wherever_it_stopped(tmp_path, monkeypatch, model, stops):
    data = images()
    config = settings(steps=21)  # 22 training images in batches of 5: 17 stops are in mid-epoch
    train(flow_of(model), data, out=tmp_path / "whole", config=config, quiet=True)
    whole, metrics = everything(tmp_path / "whole"), timeless(tmp_path / "whole")
    for stop in stops:
        out = tmp_path / f"stopped-{stop}"
        with monkeypatch.context() as patch:
            stop_after(patch, stop)
            ended = train(flow_of(model), data, out=out, config=config, quiet=True)
        assert (ended.status, ended.step, ended.exit_code) == ("interrupted", stop, 143)
        torch.manual_seed(stop)  # the caller's generator must not matter
        again = train(flow_of(model), data, out=out, config=config, quiet=True)
        assert (again.status, again.step, again.exit_code) == ("finished", 21, 0)
        resumed = everything(out)
        assert resumed.keys() == whole.keys()
        for name, tensor in whole.items():
            assert torch.equal(resumed[name], tensor), f"{name} differs after a stop at {stop}"
        assert timeless(out) == metrics


@pytest.mark.parametrize(
    "model",
    [
        MAF(layers=2, width=12),
        Glow(scales=2, steps=2, net=GlowConv(4)),
        RealNVP(net=ResidualConv(4, depth=1)),
    ],
    ids=["maf", "glow", "realnvp"],
)
def test_other_models_resume_bit_for_bit_too(tmp_path, monkeypatch, model):
    """Averaged weights, rates by layer, in mid-epoch; MAF and RealNVP have batch norm."""
    data, config = images(), settings(steps=7, layer_lr=0.5, ema=0.9)

    def trained(out):
        torch.manual_seed(1)
        return train(model.build(SHAPE), data, out=out, config=config, quiet=True)

    trained(tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        assert trained(tmp_path / "stopped").step == 3
    assert trained(tmp_path / "stopped").step == 7
    whole, resumed = everything(tmp_path / "whole"), everything(tmp_path / "stopped")
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())
    assert timeless(tmp_path / "stopped") == timeless(tmp_path / "whole")


def test_a_signal_leaves_a_run_folder_that_says_so(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(patch, 3, signal.SIGINT)
        ended = train(flow_of(), images(), out=tmp_path / "run", config=settings(), quiet=True)
    assert ended.exit_code == 130
    assert RunFolder(tmp_path / "run").read_metadata()["status"] == "interrupted"
    assert load(tmp_path / "run", which="last").bits_per_dim(images().pixels).isfinite().all()


def test_an_interrupted_run_with_batch_norm_can_be_evaluated(tmp_path, monkeypatch):
    data, config = images(200), settings(steps=200, batch=16, evaluate_every=100, ema=0.9)
    with monkeypatch.context() as patch:
        stop_after(patch, 99)
        train(flow_of(WITH_BATCH_NORM), data, out=tmp_path / "run", config=config, quiet=True)
    stopped = load(tmp_path / "run", which="last").bits_per_dim(data.pixels).mean()
    train(flow_of(WITH_BATCH_NORM), data, out=tmp_path / "run", config=config, quiet=True)
    records = RunFolder(tmp_path / "run").read_metrics()
    (next_one,) = [r for r in records if r["kind"] == "validation" and r["step"] == 100]
    assert abs(stopped - next_one["bits_per_dim"]) < 0.3


def test_training_learns_and_leaves_the_averaged_weights_in_the_flow(tmp_path):
    data = images(200)
    flow = flow_of()
    before = flow.bits_per_dim(data.pixels).mean()
    result = train(
        flow,
        data,
        out=tmp_path / "run",
        config=settings(steps=150, ema=0.9, evaluate_every=50),
        quiet=True,
    )
    after = flow.bits_per_dim(data.pixels)
    assert after.mean() < before - 1
    assert not flow.training
    assert torch.equal(load(tmp_path / "run", which="last").bits_per_dim(data.pixels), after)
    _, held_out = hold_out(data, seed=0)
    assert result.validation is not None
    assert result.validation.images == len(held_out)
    mean = flow.bits_per_dim(held_out.pixels).double().mean().item()
    assert math.isclose(result.validation.bits_per_dim, mean, rel_tol=1e-6)


def test_another_run_in_the_folder_is_refused_and_told_apart(tmp_path):
    train(flow_of(), images(), out=tmp_path / "run", config=settings(), quiet=True)
    with pytest.raises(ConfigError, match=r"train\.lr is 0.01, not 0.02"):
        train(flow_of(), images(), out=tmp_path / "run", config=settings(lr=2e-2), quiet=True)
    with pytest.raises(ConfigError, match="training_sha256"):
        train(flow_of(), images(seed=1), out=tmp_path / "run", config=settings(), quiet=True)
    # what does not touch the weights may change
    train(flow_of(), images(), out=tmp_path / "run", config=settings(keep=3), quiet=True)


def test_from_step_takes_another_way_and_sets_the_old_one_aside(tmp_path):
    out = tmp_path / "run"
    train(flow_of(), images(), out=out, config=settings(keep=5), quiet=True)
    whole = everything(out)
    train(flow_of(), images(), out=out, config=settings(keep=5), from_step=4, quiet=True)
    assert sorted(p.name for p in (out / "checkpoints").glob("*.aside-1")) == [
        "step-12.aside-1",
        "step-8.aside-1",
    ]
    assert all(torch.equal(tensor, whole[name]) for name, tensor in everything(out).items())
    steps = [r["step"] for r in RunFolder(out).read_metrics() if r["kind"] == "train"]
    assert steps == list(range(1, 13))


def test_a_folder_in_use_is_refused(tmp_path):
    with RunFolder(tmp_path / "run").lock():
        with pytest.raises(ResourceError, match="is writing here"):
            train(flow_of(), images(), out=tmp_path / "run", config=settings(), quiet=True)


def test_non_finite_steps_change_nothing_then_end_the_run(tmp_path, monkeypatch):
    at = Batches.at

    def poisoned(self, step):
        x, labels = at(self, step)
        bad = step >= 6
        return (x.float() if bad else x), labels

    flow = flow_of()
    inner = flow.transform.steps[2].forward  # the colour transform: give NaN for float batches

    def break_it(x, context=None, noise=None):
        z, log_det = inner(x, context, noise)
        return (z * math.nan, log_det) if broken else (z, log_det)

    broken = False

    def advance(self):
        nonlocal broken
        broken = self.step >= 6
        return original(self)

    original = Trainer.advance
    monkeypatch.setattr(Batches, "at", poisoned)
    monkeypatch.setattr(Trainer, "advance", advance)
    monkeypatch.setattr(flow.transform.steps[2], "forward", break_it)
    config = settings(give_up_after=3, save_every=1, keep=20)
    with pytest.raises(NonFiniteError, match=r"3 steps in a row .* at step 9 in .*steps\.2"):
        train(flow, images(), out=tmp_path / "run", config=config, quiet=True)
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints")
    sixth, eighth = checkpoints.load(6), checkpoints.load(8)
    assert all(torch.equal(sixth.model[k], eighth.model[k]) for k in sixth.model)
    assert all(v.isfinite().all() for v in eighth.model.values() if v.is_floating_point())
    header = RunFolder(tmp_path / "run").read_metadata()
    assert header["status"] == "failed"
    assert "NonFiniteError" in header["error"]


def test_a_budget_in_minutes(tmp_path):
    flow, data = flow_of(), images(200)
    begun = time.monotonic()
    ended = train(flow, data, out=tmp_path / "run", config=settings(steps=None), minutes=0.05)
    assert time.monotonic() - begun < 2 * 3
    header = RunFolder(tmp_path / "run").read_metadata()
    assert header["steps"] == ended.step > 3
    assert header["train"]["minutes"] == 0.05
    with pytest.raises(ConfigError, match="no budget"):
        train(flow_of(), data, config=settings(steps=None), quiet=True)


def test_a_run_without_a_finite_step_or_figure_is_no_finished_run(tmp_path, monkeypatch):
    def broken(flow, x, labels):
        return math.nan * flow.log_prob(x), {}

    config = settings(steps=3, give_up_after=10)
    with pytest.raises(NonFiniteError, match="none of 3 steps was finite"):
        train(flow_of(), images(), objective=broken, out=tmp_path / "a", config=config, quiet=True)
    flow = flow_of()
    original = validation.bits
    monkeypatch.setattr(validation, "bits", lambda *given, **how: infinite(original(*given, **how)))
    with pytest.raises(NonFiniteError, match="the validation figure is inf"):
        train(flow, images(), out=tmp_path / "b", config=settings(), quiet=True)
    for name in "ab":
        header = RunFolder(tmp_path / name).read_metadata()
        assert header["status"] == "failed"
        assert "NonFiniteError" in header["error"]
        assert Checkpoints(tmp_path / name / "checkpoints").load("last").step
        for path in (tmp_path / name).glob("*.json*"):  # NaN and Infinity are no JSON
            for line in path.read_text().splitlines() if path.suffix == ".jsonl" else []:
                json.loads(line, parse_constant=pytest.fail)
            if path.suffix == ".json":
                json.loads(path.read_text(), parse_constant=pytest.fail)
    (broken, *_) = [
        r for r in RunFolder(tmp_path / "b").read_metrics() if r["kind"] == "validation"
    ]
    assert (broken["bits_per_dim"], broken["not_finite"]) == (None, {"bits_per_dim": "inf"})
    make_report(tmp_path / "b", images())


@pytest.mark.parametrize("budget", [{"steps": 6}, {"epochs": 1.0}, {"minutes": 0.01}], ids=str)
def test_a_finished_run_says_how_to_train_further(tmp_path, budget):
    run = tmp_path / "run"
    train(flow_of(), images(), out=run, config=settings(steps=3), quiet=True)
    wanted = (
        rf"the run here has finished, after 3 steps: .*: to train further, give begin {run} and"
    )
    with pytest.raises(ConfigError, match=wanted):
        train(flow_of(), images(), out=run, config=settings(), quiet=True, **budget)
    further = train(flow_of(), images(), begin=run, out=tmp_path / "b", config=settings(steps=2))
    assert further.status == "finished"


def infinite(figure):
    return dataclasses.replace(figure, bits_per_dim=math.inf)


def test_accumulated_gradients_are_the_batchs(tmp_path):
    flow = flow_of().double()
    flow.initialize(torch.from_numpy(images().pixels))
    for parameter in flow.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    grads = []
    for parts in (1, 3):
        copied = flow_of().double()
        copied.load_state_dict(flow.state_dict())
        batches = Batches(images(), 6, seed=0, device=torch.device("cpu"), conditional=False)
        trainer = Trainer(copied, batches, settings(batch=6, accumulate=parts), steps=10)
        torch.manual_seed(0)
        trainer._backward(*batches.at(0))
        grads.append([p.grad.clone() for p in trainer.parameters])
    for whole, added in zip(*grads, strict=True):
        assert torch.allclose(whole, added, rtol=1e-9, atol=1e-12)


def test_bf16_is_the_conditioners_alone():
    flow = flow_of()
    flow.initialize(torch.from_numpy(images().pixels))
    for parameter in flow.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    batches = Batches(images(), 5, seed=0, device=torch.device("cpu"), conditional=False)
    figures = []
    for precision in ("float32", "bfloat16"):
        trainer = Trainer(flow, batches, settings(precision=precision), steps=10)
        seen = []
        for module in flow.modules():
            if isinstance(module, torch.nn.Linear):
                module.register_forward_hook(lambda m, a, out, seen=seen: seen.append(out.dtype))
        torch.manual_seed(0)
        figures.append(trainer._backward(*batches.at(0))[0])
        assert figures[-1].dtype == torch.float32
        wanted = torch.bfloat16 if precision == "bfloat16" else torch.float32
        assert set(seen) == {wanted}
    assert figures[0] != figures[1]
    assert abs(figures[0] - figures[1]) < 0.02


def test_batches_are_a_pure_function_of_seed_and_step():
    def chosen(steps, seed=3):
        data = images(10)
        batches = Batches(data, 4, seed=seed, device=torch.device("cpu"), conditional=False)
        where = {row.tobytes(): i for i, row in enumerate(data.pixels)}
        return [[where[x.numpy().tobytes()] for x in batches.at(step)[0]] for step in steps]

    forward = chosen(range(10))
    assert chosen(reversed(range(10)))[::-1] == forward
    assert chosen(range(10), seed=4) != forward
    flat = functools.reduce(operator.iadd, forward, [])
    for epoch in range(4):  # each pass sees each image once, and no two passes agree
        assert sorted(flat[10 * epoch : 10 * epoch + 10]) == list(range(10))
    assert flat[:10] != flat[10:20]


def test_batch_norm_figures_are_never_called_likelihoods(tmp_path):
    out = tmp_path / "run"
    train(flow_of(WITH_BATCH_NORM), images(), out=out, config=settings(), quiet=True)
    records = [r for r in RunFolder(out).read_metrics() if r["kind"] == "train"]
    assert records
    assert all("objective" in r and "bits_per_dim" not in r for r in records)


def test_averaged_weights_get_statistics_of_their_own():
    torch.manual_seed(0)
    flow = flow_of(WITH_BATCH_NORM)
    x = torch.from_numpy(images(64).pixels)
    flow.initialize(x)
    for parameter in flow.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    average = Average(flow, 0.0)
    stale = [norm.running_mean.clone() for norm in batch_norms(average.flow)]
    state = torch.get_rng_state()
    recalibrate(average.flow, [(x, None, Noise(0, torch.arange(len(x))))])
    assert torch.equal(torch.get_rng_state(), state)
    for norm, before in zip(batch_norms(average.flow), stale, strict=True):
        assert not torch.equal(norm.running_mean, before)
        assert norm.momentum == 0.1
        assert not norm.training
    # over the batch they were taken from, eval mode is what training mode says
    noise = Noise(0, torch.arange(len(x)))
    biased = 1 - 1 / (len(x) * 4)  # running variances are unbiased
    for norm in batch_norms(average.flow):
        norm.running_var *= biased
    frozen = average.flow.log_prob(x, None, noise)
    trained = average.flow.train().log_prob(x, None, noise)
    assert torch.allclose(frozen, trained, rtol=1e-3)


@pytest.mark.parametrize(
    "changes", [{}, {"flow": "maf"}, {"positions": "sinusoidal"}, {"norm": "batch"}], ids=str
)
def test_loading_gives_what_was_built(changes, tmp_path):
    """What no state dict holds is there too: masks, tables, and the dtype that pixels get."""
    data, flow = images(16), flow_of(vary(MODEL, **changes))
    train(flow, data, out=tmp_path / "run", config=settings(steps=2), quiet=True)
    state = torch.get_rng_state()
    loaded = load(tmp_path / "run", which="last")
    assert torch.equal(torch.get_rng_state(), state)
    mine, its = dict(flow.named_buffers()), dict(loaded.named_buffers())
    assert mine.keys() == its.keys() > flow.state_dict().keys() - dict(flow.named_parameters())
    for name, buffer in mine.items():
        assert torch.equal(buffer, its[name]) and buffer.dtype == its[name].dtype
    assert torch.equal(flow.bits_per_dim(data.pixels), loaded.bits_per_dim(data.pixels))


def test_loading_builds_on_the_cpu_wherever_tensors_go(tmp_path):
    train(flow_of(), images(16), out=tmp_path / "run", config=settings(steps=2), quiet=True)
    with torch.device("meta"):
        loaded = load(tmp_path / "run")
    assert {p.device.type for p in loaded.parameters()} == {"cpu"}


def test_class_conditional_trains_scores_and_samples(tmp_path):
    model = mixer(layers=1, flow_layers=2, hidden=8, patch=2, shift=0, classes=3, class_width=4)
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 300)
    pixels = (80 * labels[:, None, None, None] + rng.integers(0, 20, (300, *SHAPE))).astype(
        np.uint8
    )
    flow = flow_of(model)
    config = settings(steps=250, batch=32, ema=0.9, evaluate_every=125)
    train(flow, pixels, labels=labels, out=tmp_path / "run", config=config, quiet=True)
    flow = load(tmp_path / "run")
    x, right = torch.from_numpy(pixels), torch.from_numpy(labels)
    assert (
        flow.bits_per_dim(x, right) < flow.bits_per_dim(x, (right + 1) % 3)
    ).float().mean() > 0.9
    means = [flow.sample(64, label).float().mean() for label in range(3)]
    assert means[0] < means[1] < means[2]


def test_learning_rate_rises_then_falls_to_zero():
    config = settings(lr=1.0, warmup=10)
    rates = [config.lr_at(step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == 1.0
    assert all(a > b for a, b in itertools.pairwise(rates[10:]))
    assert config.lr_at(100, 100) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize(
    "changes", [{"batch": 0}, {"lr": -1.0}, {"ema": 1.0}, {"accumulate": 2}, {"minutes": math.nan}]
)
def test_settings_that_cannot_be_are_named(changes):
    with pytest.raises(ConfigError, match=f": (train.)?{next(iter(changes))}: "):
        settings(**changes)


def killed_training(out, data, config, seconds, *, at_once):
    """Train in a forked child, killed some time after its first save (or its start)."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        save = Checkpoints.save

        def save_and_tell(self, *given, best=False):
            path = save(self, *given, best=best)
            os.write(writing, b".")
            return path

        Checkpoints.save = save_and_tell
        try:
            train(flow_of(), data, out=out, config=config, quiet=True)
        finally:
            os._exit(0)
    os.close(writing)
    if not at_once:
        os.read(reading, 1)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    os.close(reading)
    return os.WIFSIGNALED(status)


def share_of_saving(out, data, config):
    """The part of a run's time that goes into saving checkpoints."""
    spent, save = 0.0, Checkpoints.save

    def timed(self, *given, best=False):
        nonlocal spent
        begun = time.monotonic()
        path = save(self, *given, best=best)
        spent += time.monotonic() - begun
        return path

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, "save", timed)
        begun = time.monotonic()
        train(flow_of(), data, out=out, config=dataclasses.replace(config, steps=30), quiet=True)
    return spent / (time.monotonic() - begun)


@pytest.mark.parametrize(
    "kills", [8, pytest.param(200, marks=[pytest.mark.slow, pytest.mark.timeout(3000)])]
)
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_kill_9_at_any_moment_loses_no_checkpoint(tmp_path, kills, capsys):
    """Each trial goes on with the folder that the last one was killed over."""
    data, config = images(), settings(steps=100_000, save_every=1, evaluate_every=1000)
    train(flow_of(), data, config=settings(steps=2), quiet=True)  # warm
    rng = np.random.default_rng(kills)
    out, reached, hits = tmp_path / "run", -1, 0
    for trial in range(kills):
        seconds = rng.uniform(0, 0.3)
        hits += killed_training(out, data, config, seconds, at_once=trial % 5 == 4)
        checkpoints = Checkpoints(out / "checkpoints")
        if not checkpoints.steps():
            continue
        step = checkpoints.load("last").step
        assert step >= reached, "a checkpoint was lost"
        assert load(out, which="last").bits_per_dim(data.pixels).isfinite().all()
        reached = step
    assert hits == kills
    assert reached > 0, "no run got as far as a step"
    share = share_of_saving(tmp_path / "timed", data, config)
    assert share > 0.3, "too little of the time is spent saving to be hit at it"
    with capsys.disabled():
        print(f"\n{hits} kills, 0 checkpoints lost, {reached} steps; {share:.0%} of time saving")


def test_tensorboard_gets_the_curves(tmp_path):
    out = tmp_path / "run"
    train(flow_of(), images(), out=out, config=settings(tensorboard=True), quiet=True)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(out / "tensorboard")).Reload()
    points = events.Scalars("validation/bits_per_dim")
    assert [point.step for point in points] == [4, 8, 12]
    assert events.Scalars("train/bits_per_dim")


def test_floats_train_too_for_a_flow_without_levels(tmp_path):
    rng = np.random.default_rng(0)
    values = rng.normal(5, 2, (64, 2, 4, 2, 2)).astype(np.float64)  # volumes, at that
    torch.manual_seed(0)
    model = mixer(layers=1, flow_layers=2, hidden=8, patch=2, shift=0, levels=None)
    flow = build(model, (2, 4, 2, 2))
    ended = train(flow, values, out=tmp_path / "run", config=settings(), quiet=True)
    assert ended.validation is not None
    assert ended.validation.dequantization == "none"
    assert load(tmp_path / "run").sample(3).shape == (3, 2, 4, 2, 2)
    with pytest.raises(ConfigError, match="levels"):
        train(flow_of(), rng.random((64, *SHAPE)), config=settings(), quiet=True)


def test_the_first_log_det_is_ten_frames_from_train(monkeypatch):
    """A new reader follows ten functions in nine files."""
    forward, found = Dequantize.forward, []
    package = Path(mixerflow.__file__).parent

    def seen(self, *given):
        if torch.is_grad_enabled() and not found:
            frames = traceback.extract_stack()
            found.extend(f for f in frames if f.filename.startswith(str(package)))
        return forward(self, *given)

    monkeypatch.setattr(Dequantize, "forward", seen)
    train(flow_of(), images(), config=settings(steps=1), quiet=True)
    path = [f"{Path(f.filename).relative_to(package)}:{f.name}" for f in found]
    assert path[:3] == [
        "training/fit.py:train",
        "training/loop.py:run",
        "training/trainer.py:advance",
    ]
    assert len(path) + 1 <= 10  # with Dequantize.forward itself
    assert len({name.partition(":")[0] for name in path}) + 1 <= 9
