"""Several processes do what one does, whole or sharded, and end together; over gloo, on the CPU."""

import dataclasses
import gc
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

import helpers
from helpers import SHAPE, collect, start, together
from mixerflow import processes as module
from mixerflow.augmentation import Augmentation
from mixerflow.cli import main
from mixerflow.core import Noise
from mixerflow.errors import ConfigError, DataError, ResourceError
from mixerflow.evaluate import Draws, bits
from mixerflow.processes import SINGLE, joined
from mixerflow.recipes import build
from mixerflow.runs import Checkpoints, RunFolder, load
from mixerflow.training import TrainConfig, Trainer, train
from mixerflow.training.batches import Batches
from mixerflow.training.optimizer import batch_norms
from mixerflow.training.parallel import local, shard
from mixers import DENSEFLOW, mixer, vary

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")

MODEL = mixer(layers=2, flow_layers=1, hidden=16, patch=2, shift=1, shift_every=2, norm="batch")


def images(n=103, seed=0):
    return helpers.images(n, seed)


def settings(**changes):
    base = {"steps": 8, "batch": 8, "lr": 1e-2, "warmup": 2, "initial": 32, "evaluate_every": 4}
    return TrainConfig(**base | changes)


def flow_of(**changes):
    torch.manual_seed(0)
    return build(vary(MODEL, **changes), SHAPE)


@pytest.fixture(scope="module", autouse=True)
def imported():
    """Import once what training imports late, or each forked process would, in seconds."""
    import torch.distributed.fsdp  # noqa: F401

    trained(SINGLE, settings(), steps=1)


class Left:
    """What only its own process can end: a session with threads, say."""

    def __init__(self):
        self.pid, self.me = os.getpid(), self

    def __del__(self):
        if os.getpid() != self.pid:
            os._exit(1)


def test_a_forked_child_leaves_its_parents_garbage_alone():
    """Or a child of a long run of tests dies of a segmentation fault, now and then."""
    Left()
    pid = os.fork()
    if pid == 0:
        gc.collect()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def trained(processes, config, dtype=torch.float32, steps=20, model=None, **changes):
    """The losses of some steps, the flow's state dict, and the bytes of state in this process."""
    flow = (flow_of(**changes) if model is None else helpers.flow_of(model)).to(dtype)
    device = torch.device("cpu")
    parts = config.accumulate
    batches = Batches(
        images(), config.batch, seed=0, device=device, conditional=False, parts=parts,
        processes=processes,
    )  # fmt: skip
    flow.initialize(*batches.first(32))
    trainer = Trainer(flow, batches, config, steps=100)
    losses = [trainer.advance().objective for _ in range(steps)]
    trainer.settle()
    held = [*flow.parameters(), *trainer.average.flow.parameters()]
    for values in trainer.optimizer.state.values():
        held += [value for value in values.values() if value.dim()]
    size = sum(local(tensor).nbytes for tensor in held)
    model, ema = trainer.weights()
    return (
        losses,
        {f"{i}{k}": v for i, part in enumerate((model, ema)) for k, v in part.items()},
        size,
    )


def assert_close(state, wanted):
    assert state.keys() == wanted.keys()
    for name, value in wanted.items():
        assert torch.allclose(state[name], value, rtol=1e-6, atol=1e-9), name


@pytest.mark.parametrize(
    ("changes", "actnorm"),
    [
        ({}, "feature"),
        pytest.param({"accumulate": 2}, "feature", marks=pytest.mark.slow),
        ({}, "batch"),  # shifts at their optimum from the start: a gradient of rounding alone
        pytest.param({"parallel": "fsdp"}, "batch", marks=pytest.mark.slow),
    ],
)
def test_two_processes_train_as_one_with_batch_norm(changes, actnorm):
    config = settings(**changes)
    alone = dataclasses.replace(config, parallel="ddp")
    ((one, state, _),) = together(1, with_actnorm, alone, actnorm)
    for losses, other, _ in together(2, with_actnorm, config, actnorm):
        assert np.allclose(losses, one, rtol=1e-6)  # figures are float32, weights are not
        assert_close(other, state)


def with_actnorm(processes, config, actnorm):
    return trained(processes, config, torch.float64, actnorm=actnorm)


def in_minutes(processes, out):
    config = settings(steps=None, minutes=0.03, evaluate_every=0)
    ended = train(flow_of(), images(), out=out, config=config, quiet=True)
    return ended.step, ended.validation.bits_per_dim, ended.validation.images


def test_processes_keep_one_clock(tmp_path):
    ended, other = together(2, in_minutes, tmp_path / "run")
    assert ended == other
    plans = [r["steps"] for r in RunFolder(tmp_path / "run").read_metrics() if r["kind"] == "plan"]
    assert plans[-1] == ended[0]


@pytest.mark.parametrize(
    "dtype", [pytest.param(torch.float32, marks=pytest.mark.slow), torch.float64]
)
def test_sharded_training_is_ddps_with_a_part_of_its_state(dtype):
    ddp = together(2, trained, settings(), dtype)
    fsdp = together(2, trained, settings(parallel="fsdp"), dtype)
    for (losses, state, size), (others, sharded, part) in zip(ddp, fsdp, strict=True):
        assert losses[0] != losses[-1]
        assert np.abs(np.subtract(losses, others)).max() < 1e-5
        assert part <= 0.6 * size
        if dtype == torch.float64:  # in float32 Adam turns roundings of small gradients into steps
            assert_close(sharded, state)


@pytest.mark.parametrize(
    "changes",
    [{"memory": "checkpoint"}, pytest.param({"parallel": "fsdp"}, marks=pytest.mark.slow)],
    ids=str,
)
def test_noise_inside_of_a_flow_is_drawn_by_image_whatever_the_processes(changes):
    """DDP and FSDP2 of a DenseFlow, whose noise is drawn in the middle of the flow."""
    given = (torch.float64, 3, DENSEFLOW)
    ((one, state, _),) = together(1, trained, settings(), *given)
    for losses, other, _ in together(2, trained, settings(**changes), *given):
        assert losses[0] != losses[-1]
        assert np.allclose(losses, one, rtol=1e-6)
        assert_close(other, state)


def scaled(processes, config):
    """As `trained`, of two scales; and that each layer is sharded, and no other memory is taken."""
    changes = {"scales": 2, "shift": 0, "layers": 3, "patch": 1}
    result = trained(processes, config, torch.float64, 3, **changes)
    if config.parallel == "fsdp":
        flow = flow_of(**changes)
        shard(flow, processes)
        layers = [layer for layer in flow.layers() if next(layer.parameters(), None) is not None]
        assert len(layers) == 5 and all(type(layer).__name__[:4] == "FSDP" for layer in layers)
        flow.memory = "invert"
        with pytest.raises(ConfigError, match="FSDP2"):
            flow(torch.from_numpy(images(4).pixels))
    return result


@pytest.mark.slow
def test_a_flow_of_two_scales_is_sharded_layer_by_layer():
    ((one, state, size),) = together(1, scaled, settings())
    for losses, other, part in together(2, scaled, settings(parallel="fsdp")):
        assert losses[0] != losses[-1]
        assert np.allclose(losses, one, rtol=1e-6)
        assert part <= 0.6 * size
        assert_close(other, state)


def scored(processes, count, sharded):
    flow = flow_of()
    data = images(count)
    flow.initialize(torch.from_numpy(data.pixels))
    if sharded:
        shard(flow, processes)
    done = []
    figure = bits(flow, data.pixels, batch=16, processes=processes, on_batch=done.append)
    return figure, done, flow.sample(3, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("sharded", [pytest.param(False, marks=pytest.mark.slow), True])
def test_images_are_scored_once_each_whatever_the_number_of_processes(sharded):
    one, _, samples = scored(SINGLE, 101, False)
    for figure, done, drawn in together(2, scored, 101, sharded):
        assert figure.images == sum(done) == 101
        assert abs(figure.bits_per_dim - one.bits_per_dim) < 1e-6
        assert np.allclose(figure.per_image, one.per_image, atol=1e-5)
        assert (drawn != samples).float().mean() < 0.01
    for figure, done, _ in together(2, scored, 97, sharded):  # the last round has one image
        assert figure.images == sum(done) == 97


def run(processes, out, config, stop=None):
    if stop is not None:
        stop(processes)
    return train(flow_of().double(), images(), out=out, config=config, quiet=True)


def before_step(step, act):
    """Do something in one process as it begins a step (from 0)."""

    def patch(processes, rank=1):
        advance = Trainer.advance

        def acting(self):
            if self.step == step and processes.rank == rank:
                act()
            return advance(self)

        Trainer.advance = acting

    return patch


def at_last(out):
    return Checkpoints(out / "checkpoints").load("last")


@pytest.mark.slow
def test_a_signal_to_one_stops_all_and_any_number_of_processes_goes_on(tmp_path):
    augmentation = Augmentation(flip=True, shift=1)
    config = settings(steps=12, optimizer="adamax", augmentation=augmentation)
    together(2, run, tmp_path / "whole", config)
    out = tmp_path / "run"
    ask = before_step(4, lambda: signal.raise_signal(signal.SIGTERM))
    sharded = dataclasses.replace(config, parallel="fsdp")
    for ended in together(2, run, out, sharded, ask):
        assert (ended.status, ended.step, ended.exit_code) == ("interrupted", 5, 143)
    ask = before_step(8, lambda: signal.raise_signal(signal.SIGINT))
    (ended,) = together(1, run, out, config, lambda processes: ask(processes, rank=0))
    assert (ended.step, ended.exit_code) == (9, 130)
    ended, _ = together(2, run, out, sharded)
    assert (ended.status, ended.step) == ("finished", 12)
    whole, pieced = at_last(tmp_path / "whole"), at_last(out)
    assert_close(pieced.model, whole.model)
    assert_close(pieced.ema, whole.ema)
    theirs = pieced.state["trainer"]["optimizer"]["state"]
    for i, values in whole.state["trainer"]["optimizer"]["state"].items():
        assert values["exp_inf"].shape == theirs[i]["exp_inf"].shape
        assert values["step"] == theirs[i]["step"] == 12
    steps = [r["step"] for r in RunFolder(out).read_metrics() if r["kind"] == "train"]
    assert steps == list(range(1, 13))
    assert load(out).bits_per_dim(images().pixels).isfinite().all()
    more = dataclasses.replace(config, keep=1)
    assert train(flow_of(), images(), out=out, config=more, quiet=True).status == "finished"


@pytest.mark.parametrize("how", [pytest.param("ddp", marks=pytest.mark.slow), "fsdp"])
def test_a_run_of_one_process_goes_on_in_two(tmp_path, how):
    config = settings(steps=8)
    patch = before_step(5, lambda: signal.raise_signal(signal.SIGTERM))
    with pytest.MonkeyPatch.context() as undo:
        undo.setattr(Trainer, "advance", Trainer.advance)
        patch(SINGLE, rank=0)
        assert train(flow_of(), images(), out=tmp_path, config=config, quiet=True).step == 6
    ended, _ = together(2, run, tmp_path, dataclasses.replace(config, parallel=how))
    assert (ended.status, ended.step) == ("finished", 8)
    assert ended.validation.images == 4


@pytest.mark.parametrize(
    ("how", "killed", "saved"),
    [
        pytest.param("ddp", 1, 6, marks=pytest.mark.slow),
        pytest.param("fsdp", 1, 4, marks=pytest.mark.slow),
        ("ddp", 0, 4),
    ],
)
def test_a_killed_process_ends_the_others_with_a_checkpoint(tmp_path, how, killed, saved):
    die = before_step(6, lambda: os.kill(os.getpid(), signal.SIGKILL))
    config = settings(parallel=how)
    begun = time.monotonic()
    started = start(2, run, tmp_path, config, lambda p: die(p, rank=killed))
    results = collect(started, killed=[killed])
    assert time.monotonic() - begun < 60
    assert results[killed] is None
    error = results[1 - killed]
    assert isinstance(error, ResourceError)
    assert "another process was lost in step 7" in str(error)
    if killed == 1:
        assert f"checkpoint of step {saved} is intact" in str(error)
        assert RunFolder(tmp_path).read_metadata()["status"] == "failed"
    assert at_last(tmp_path).step == saved
    assert load(tmp_path, which="last").bits_per_dim(images().pixels).isfinite().all()
    ended, _ = together(2, run, tmp_path, config)
    assert (ended.status, ended.step) == ("finished", 8)


def test_a_stopped_process_ends_the_others(tmp_path, monkeypatch, capfd):
    """It closes no connection: only its silence shows."""
    monkeypatch.setattr(module, "BEAT", 0.2)
    monkeypatch.setattr(module, "SILENCE", 2.0)
    monkeypatch.setattr(module, "GRACE", 0.5)
    freeze = before_step(6, lambda: os.kill(os.getpid(), signal.SIGSTOP))
    started = start(2, run, tmp_path, settings(), freeze)
    begun = time.monotonic()
    _, status = os.waitpid(started[0][0], 0)
    assert time.monotonic() - begun < 30
    assert os.waitstatus_to_exitcode(status) == ResourceError.exit_code
    assert "process 1 of 2 has not answered for 2 s" in capfd.readouterr().err
    os.kill(started[1][0], signal.SIGKILL)
    os.waitpid(started[1][0], 0)
    assert at_last(tmp_path).step == 4


def slow_save(processes, out):
    save = Checkpoints.save

    def slowly(self, *given, best=False):
        time.sleep(3)
        return save(self, *given, best=best)

    Checkpoints.save = slowly
    return train(flow_of(), images(), out=out, config=settings(steps=2), quiet=True).status


@pytest.mark.slow
def test_what_process_0_does_alone_may_take_long(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BEAT", 0.2)
    monkeypatch.setattr(module, "SILENCE", 2.0)
    monkeypatch.setattr(module, "GRACE", 0.3)
    assert together(2, slow_save, tmp_path) == ["finished", "finished"]


def poisoned(processes):
    """Process 1's images become NaN in one layer, for two steps."""
    flow = flow_of()
    batches = Batches(
        images(), 8, seed=0, device=torch.device("cpu"), conditional=False, processes=processes
    )
    flow.initialize(*batches.first(32))
    trainer = Trainer(flow, batches, settings(), steps=100)
    colour = flow.transform.steps[2]
    forward = colour.forward
    steps = []
    for number in range(6):
        bad = processes.rank == 1 and number in (2, 3)

        def broken(x, context=None, noise=None, bad=bad):
            z, log_det = forward(x, context, noise)
            return (z * float("nan"), log_det) if bad else (z, log_det)

        colour.forward = broken
        steps.append(trainer.advance())
    state = torch.cat([p.detach().flatten() for p in flow.parameters()])
    return [step.bad_part for step in steps], trainer.skipped, state


def test_a_step_that_is_bad_in_one_process_is_skipped_by_all():
    (parts, skipped, state), other = together(2, poisoned)
    assert parts == other[0]
    assert [part is None for part in parts] == [True, True, False, False, True, True]
    assert "transform.steps.2" in parts[2]
    assert skipped == other[1] == 2
    assert state.isfinite().all()
    assert torch.equal(state, other[2])


def refused(processes, out, case):
    config = settings()
    data = images()
    if case == "batch":
        config = settings(batch=9)
    if case == "images":
        data = images(seed=processes.rank)
    if case == "folder" and processes.main:
        out.write_text("a file is in the way")
    train(flow_of(), data, out=out, config=config, quiet=True)


@pytest.mark.parametrize(
    ("case", "kind", "line"),
    [
        ("batch", ConfigError, "a batch of 9 in 1 x 2 equal parts"),
        ("images", DataError, "different images"),
        ("folder", ResourceError, "cannot write"),
    ],
)
def test_what_cannot_be_is_refused_by_all_alike(tmp_path, case, kind, line):
    first, second = collect(start(2, refused, tmp_path / "run", case))
    assert isinstance(first, kind) and isinstance(second, kind)
    assert line in str(first)
    assert str(first) == str(second)


def with_foreign_norm(processes):
    flow = flow_of(norm="none")
    flow.transform.steps[2].extra = torch.nn.BatchNorm1d(3)
    batches = Batches(
        images(), 8, seed=0, device=torch.device("cpu"), conditional=False, processes=processes
    )
    if processes.main:
        with pytest.warns(UserWarning, match="1 batch norms see their own process's images only"):
            Trainer(flow, batches, settings(), steps=100)
    else:
        Trainer(flow, batches, settings(), steps=100)


def test_batch_norms_that_cannot_be_shared_are_named():
    together(2, with_foreign_norm)


def test_alone_everything_is_the_identity():
    x = torch.arange(3.0)
    assert SINGLE.sum(x) is x
    assert SINGLE.gather(x).shape == (1, 3)
    assert SINGLE.on_main(lambda: 3) == SINGLE.from_main(3) == SINGLE.largest(3) == 3
    assert SINGLE.collect("a") == ["a"]
    assert range(10)[SINGLE.share(10)] == range(10)
    thirds = [dataclasses.replace(SINGLE, rank=r, world=3).share(10) for r in range(3)]
    assert [len(range(10)[part]) for part in thirds] == [3, 3, 4]
    with joined() as processes:
        assert processes is SINGLE
    flow = flow_of()
    assert all(norm.processes is SINGLE for norm in batch_norms(flow))


def test_shares_of_a_batch_make_it_up():
    def batches(**given):
        return Batches(images(), 12, seed=0, device=torch.device("cpu"), conditional=False, **given)

    whole = batches()
    shares = [
        batches(parts=2, processes=dataclasses.replace(SINGLE, rank=r, world=3)) for r in range(3)
    ]
    for step in (0, 9):
        index = torch.stack([share.index(step).reshape(2, 2) for share in shares], 1).flatten()
        assert torch.equal(index, whole.index(step))
        x = torch.stack([share.at(step)[0].reshape(2, 2, *SHAPE) for share in shares], 1)
        assert torch.equal(x.flatten(0, 2), whole.at(step)[0])
    assert not torch.equal(
        Noise(0, whole.index(0)).uniform(torch.zeros(12, 4), 1),
        Noise(~0, whole.index(0)).uniform(torch.zeros(12, 4), 1),
    )


def command(*words, processes=0, **environment):
    """Start ``mixerflow``, under torchrun where `processes` says."""
    launcher = [sys.executable, "-m"]
    if processes:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        launcher += [f"--nproc-per-node={processes}", "-m"]
    return subprocess.Popen(
        [*launcher, "mixerflow", *map(str, words)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


TINY = [
    *("mixerflow-tiny", "--model.layers", "2", "--model.flow.net.width", "8"),
    *("--model.flow.net.norm", "layer", "--train.batch", "8", "--train.evaluate-every", "100000"),
    *("--train.evaluate-images", "20", "--train.initial", "16", "--device", "cpu", "-j", "1"),
]


def ramps(tmp_path):
    """Words that train on sixty images there."""
    np.savez(tmp_path / "ramps.npz", x=images(60).pixels[:, 0])
    words = ["train", *TINY, "--data", tmp_path / "ramps.npz", "--out", tmp_path / "run"]
    words += ["--model.patching.size", 2, "--model.patching.shift", 0, 0, 0, 1, "--steps", 3]
    return [str(word) for word in words]


def check_training(tmp_path, told, said):
    assert told.count("3 steps, validation") == 1
    assert said.count("step 3: validation") == 1
    assert RunFolder(tmp_path / "run").read_metadata()["machine"]["processes"] == 2


def check_evaluation(tmp_path, told):
    figure, one = json.loads(told), bits(load(tmp_path / "run"), images(60).pixels)
    assert figure["images"] == one.images == 60
    assert abs(figure["bits_per_dim"] - one.bits_per_dim) < 1e-6


def commanded(processes, words):
    return main(words)


def test_the_command_line_trains_and_evaluates_in_two_processes(tmp_path, capfd):
    assert together(2, commanded, ramps(tmp_path)) == [0, 0]
    check_training(tmp_path, *capfd.readouterr())
    assert together(2, commanded, ["evaluate", str(tmp_path / "run"), "--json"]) == [0, 0]
    check_evaluation(tmp_path, capfd.readouterr().out)


def stopped(processes, words, draws):
    """Evaluate until process 1 gets a signal."""
    add = Draws.add

    def add_and_signal(self, rows, log_weights):
        add(self, rows, log_weights)
        if processes.rank == 1 and self.count.sum() == draws:
            signal.raise_signal(signal.SIGTERM)

    Draws.add = add_and_signal
    return main(words)


def test_one_process_goes_on_with_the_draws_of_two(tmp_path, capsys):
    train(flow_of(), images(), out=tmp_path, config=settings(steps=1), quiet=True)
    np.savez(tmp_path / "ramps.npz", x=images(30).pixels[:, 0])
    words = ["evaluate", tmp_path, "--data", tmp_path / "ramps.npz", "--importance-samples", 12]
    words = [*map(str, words), "--json"]
    assert together(2, stopped, [*words, "--batch", "4"], 72) == [143, 143]
    kept = sorted((tmp_path / "evaluations").glob("draws-*-12-[01]"))
    assert len(kept) == 2
    capsys.readouterr()
    add, added = Draws.add, []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Draws, "add", lambda *given: (added.extend(given[1]), add(*given)))
        assert main(words) == 0
    assert len(added) == 12 * 30 - 2 * 72
    figure = json.loads(capsys.readouterr().out)
    whole = bits(load(tmp_path), images(30).pixels, importance_samples=12)
    assert figure["bits_per_dim"] == pytest.approx(whole.bits_per_dim, abs=1e-6)
    assert [path.exists() for path in kept] == [True, False]  # the first has all draws now


@pytest.mark.slow
def test_torchrun_trains_and_evaluates(tmp_path):
    told, said = (both := command(*ramps(tmp_path), processes=2)).communicate(timeout=200)
    assert both.returncode == 0, said
    check_training(tmp_path, told, said)
    asked = command("evaluate", tmp_path / "run", "--json", processes=2)
    told, said = asked.communicate(timeout=200)
    assert asked.returncode == 0, said
    check_evaluation(tmp_path, told)


@pytest.mark.slow
def test_what_is_wrong_for_all_is_said_once(tmp_path):
    words = ["train", *TINY, "--out", tmp_path / "run", "--train.batch", "7", "--steps", "3"]
    wrong = command(*words, processes=2)
    _, said = wrong.communicate(timeout=200)
    assert wrong.returncode != 0
    assert said.count("error: a batch of 7") == 1


@pytest.mark.slow
def test_torchrun_ends_when_a_process_is_killed(tmp_path):
    words = ["train", *TINY, "--out", tmp_path / "run", "--steps", "100000"]
    launched = command(*words, "--train.save-every", "3", processes=2)
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints")
    while not any(step > 0 for step in checkpoints.steps()):
        assert launched.poll() is None
        time.sleep(0.1)
    listed = subprocess.run(
        ["pgrep", "-P", str(launched.pid)], capture_output=True, text=True, check=True
    )
    begun = time.monotonic()
    os.kill(int(listed.stdout.split()[-1]), signal.SIGKILL)
    _, said = launched.communicate(timeout=200)
    assert time.monotonic() - begun < 60
    assert said.count("another process was lost in step") == 1
    saved = checkpoints.load("last").step
    assert f"the checkpoint of step {saved} is intact" in said
    assert load(tmp_path / "run", which="last").sample(1).shape == (1, 1, 28, 28)


def counted(processes):
    """What this process is given, while another may take none."""
    take, other, mine = processes.counter("taken"), processes.counter("other"), []
    while (place := take(1) - 1) < 20:
        mine.append(place)
    other(10)
    processes.collect(None)
    return mine, other(0)


def test_a_counter_gives_each_place_to_one_process():
    results = together(2, counted)
    assert sorted(place for mine, _ in results for place in mine) == [*range(20)]
    assert [total for _, total in results] == [20, 20]
    assert counted(SINGLE) == ([*range(20)], 10)
