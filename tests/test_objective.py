"""Objectives: labels reach them, they learn with the flow, and their figures are means."""

import functools
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from helpers import (
    SHAPE,
    everything,
    flow_of,
    images,
    settings,
    stop_after,
    timeless,
    together,
)
from mixerflow.core import Noise
from mixerflow.data import make_images
from mixerflow.errors import CheckpointError, ConfigError, NonFiniteError
from mixerflow.processes import Processes
from mixerflow.runs import Checkpoints, RunFolder
from mixerflow.training import TrainConfig, Trainer, likelihood, loop, train
from mixerflow.training.batches import Batches
from mixerflow.training.graphed import GraphedTrainer
from mixerflow.training.objective import TAKEN, Task, name_of
from mixerflow.training.parallel import parallel
from mixers import mixer

CPU = torch.device("cpu")


class Hybrid(nn.Module):
    """Classes read from the latents, beside the likelihood."""

    def __init__(self, classes=2, width=16, seed=1):
        super().__init__()
        torch.manual_seed(seed)
        self.norm = nn.BatchNorm1d(width)
        self.head = nn.Sequential(nn.Dropout(0.1), nn.Linear(width, classes))

    def forward(self, flow, x, labels):
        z, log_prob, _ = flow(x)
        logits = self.head(self.norm(z))
        hits = logits.argmax(1) == labels
        loss = cross_entropy(logits, labels, reduction="none") - log_prob
        return loss, {"accuracy": hits, "largest": logits.abs().max()}


def plain(flow, x, labels):
    return -flow.log_prob(x), {}


def with_figure(**figures):
    """The likelihood, and figures that are functions of the images."""

    def objective(flow, x, labels):
        return -flow.log_prob(x), {name: of(x) for name, of in figures.items()}

    return objective


def separable(n=60):
    """Dark images of class 0, bright ones of class 1."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, n)
    pixels = 150 * labels[:, None, None, None] + rng.integers(0, 60, (n, *SHAPE))
    return make_images(pixels.astype(np.uint8), labels, dataset_id="two")


def lines(out):
    return [r for r in RunFolder(out).read_metrics() if r["kind"] == "train"]


@pytest.mark.parametrize("accumulate", [1, 3])
def test_labels_reach_the_objective_of_a_flow_that_takes_none(accumulate):
    data, seen = images(23, classes=3), []

    def objective(flow, x, labels):
        seen.append((x.clone(), labels))
        return plain(flow, x, labels)

    config = settings(batch=6, accumulate=accumulate)
    train(flow_of(), data, objective=objective, config=config, quiet=True)
    label_of = {
        image.tobytes(): label for image, label in zip(data.pixels, data.labels, strict=True)
    }
    assert len(seen) == 12 * accumulate
    for x, labels in seen:
        assert labels.dtype == torch.int64
        assert labels.tolist() == [label_of[image.numpy().tobytes()] for image in x]
    seen.clear()
    train(flow_of(), images(), objective=objective, config=settings(), quiet=True)
    assert {labels for _, labels in seen} == {None}


def test_the_default_is_the_likelihood_given_labels_where_a_flow_takes_them(tmp_path):
    conditional = mixer(
        layers=1, flow_layers=2, hidden=8, patch=2, shift=0, classes=3, class_width=4, norm="none"
    )

    def given_labels(flow, x, labels):
        return -flow.log_prob(x, labels), {}

    data = images(40, classes=3)
    for name, objective in (("default", None), ("named", likelihood), ("same", given_labels)):
        out, given = tmp_path / name, {"config": settings(), "quiet": True}
        train(flow_of(conditional), data, objective=objective, out=out, **given)
    default, named, same = (everything(tmp_path / name) for name in ("default", "named", "same"))
    for name, tensor in default.items():
        assert torch.equal(tensor, named[name]) and torch.equal(tensor, same[name]), name
    likely = [r["bits_per_dim"] for r in lines(tmp_path / "default")]
    assert [r["objective"] for r in lines(tmp_path / "same")] == likely
    assert not any("bits_per_dim" in r for r in lines(tmp_path / "same"))
    assert RunFolder(tmp_path / "named").read_metadata()["objective"] == "likelihood"
    with pytest.raises(ConfigError, match="no labels for a conditional flow"):
        train(flow_of(conditional), images(), objective=given_labels, config=settings(), quiet=True)


def test_a_head_learns_and_ends_in_eval_mode(tmp_path):
    head, flow, out = Hybrid(), flow_of(), tmp_path / "run"
    config = settings(steps=60, batch=16, layer_lr=0.5)
    train(flow, separable(), objective=head, out=out, config=config, quiet=True)
    accuracy = [r["accuracy"] for r in lines(out)]
    assert np.mean(accuracy[:3]) < 0.8
    assert np.mean(accuracy[-10:]) > 0.97
    assert not any(module.training for module in (*flow.modules(), *head.modules()))
    with torch.no_grad():
        _, figures = head(flow, *map(torch.from_numpy, (separable().pixels, separable().labels)))
    assert figures["accuracy"].float().mean() > 0.95
    assert RunFolder(out).read_metadata()["objective"] == "test_objective.Hybrid"


def test_a_heads_parameters_have_the_base_rate_and_come_last():
    head, flow = Hybrid(), flow_of()
    batches = Batches(separable(), 8, seed=0, device=CPU, conditional=False)
    flow.initialize(batches.first(16)[0])
    trainer = Trainer(flow, batches, settings(layer_lr=0.25), steps=10, objective=head)
    step, last = trainer.advance(), trainer.optimizer.param_groups[-1]
    assert [id(p) for p in last["params"]] == [id(p) for p in head.parameters()]
    assert last["lr"] == step.lr == trainer.optimizer.param_groups[0]["lr"]
    assert set(step.figures) == {"accuracy", "largest"}


def test_a_run_with_a_head_resumes_bit_for_bit(tmp_path, monkeypatch):
    def run(out, head):
        given = {"config": settings(accumulate=1), "quiet": True}
        ended = train(flow_of(), separable(), objective=head, out=out, **given)
        last = Checkpoints(out / "checkpoints").load("last").state["trainer"]["objective"]
        return ended, last

    monkeypatch.setattr(loop, "_LINES", 4)  # lines of three steps: stops lie between them
    whole = Hybrid()
    _, wanted = run(tmp_path / "whole", whole)
    assert all(torch.equal(wanted[name], value) for name, value in whole.state_dict().items())
    for stop in (5, 11):
        out = tmp_path / f"stopped-{stop}"
        with monkeypatch.context() as patch:
            stop_after(patch, stop)
            assert run(out, Hybrid())[0].step == stop
        head = Hybrid(seed=stop + 5)  # what it begins with must not matter
        _, last = run(out, head)
        assert last.keys() == wanted.keys()
        for name, value in wanted.items():
            assert torch.equal(last[name], value) and torch.equal(head.state_dict()[name], value)
        expected, resumed = everything(tmp_path / "whole"), everything(out)
        assert resumed.keys() == expected.keys()
        assert all(torch.equal(resumed[name], value) for name, value in expected.items())
        assert timeless(out) == timeless(tmp_path / "whole")


@pytest.mark.parametrize("accumulate", [1, 2])
def test_figures_are_means_over_a_batch_its_parts_and_the_steps_of_a_line(
    tmp_path, monkeypatch, accumulate
):
    monkeypatch.setattr(loop, "_LINES", 4)
    objective = with_figure(mean=lambda x: x.float().flatten(1).mean(1), size=lambda x: 2.0 * len(x)
        * torch.ones(()))  # fmt: skip
    out, config = tmp_path / "run", settings(batch=6, accumulate=accumulate)
    data = images()
    train(flow_of(), data, validation=data, objective=objective, out=out, config=config, quiet=True)
    batches = Batches(data, 6, seed=0, device=CPU, conditional=False)
    means = [batches.at(step)[0].double().mean().item() for step in range(12)]
    records = lines(out)
    assert [r["step"] for r in records] == [3, 6, 9, 12]
    wanted = np.reshape(means, (4, 3)).mean(1)
    assert np.ptp(wanted) > 1
    assert [r["mean"] for r in records] == pytest.approx(wanted, rel=1e-6)
    assert {r["size"] for r in records} == {12.0 / accumulate}
    assert all(r.keys() - TAKEN == {"mean", "size"} for r in records)


def test_the_loss_is_in_nats_and_its_figure_in_bits_a_dimension():
    def constant(flow, x, labels):
        return -0 * flow.log_prob(x) + 16 * math.log(2) * 3, {}

    flow = flow_of()
    batches = Batches(images(), 5, seed=0, device=CPU, conditional=False)
    flow.initialize(batches.first(16)[0])
    trainer = Trainer(flow, batches, settings(), steps=10, objective=constant)
    assert trainer.advance().objective == pytest.approx(3, rel=1e-6)


def trained(processes, accumulate):
    torch.set_num_threads(1)
    flow, head = flow_of().double(), Hybrid().double()
    head.norm, head.head[0] = nn.Identity(), nn.Identity()  # which know of one process
    config = TrainConfig(steps=9, batch=12, accumulate=accumulate, lr=1e-2, warmup=2)
    batches = Batches(
        separable(), 12, seed=0, device=CPU, conditional=False, parts=accumulate,
        processes=processes,
    )  # fmt: skip
    flow.initialize(batches.first(24)[0])
    if processes.rank:
        nn.init.zeros_(head.head[1].weight)  # process 0's is every process's
    trainer = Trainer(flow, batches, config, steps=100, objective=head)
    steps = [trainer.advance() for _ in range(8)]
    figures = [(step.objective, step.figures["accuracy"]) for step in steps]
    state = trainer.state()
    trainer.load_state(state if processes.main else None)
    trainer.advance()
    return figures, {**flow.state_dict(), **{f"head.{k}": v for k, v in head.state_dict().items()}}


@pytest.mark.parametrize("accumulate", [1, 2])
def test_two_processes_train_a_head_as_one(accumulate):
    ((figures, state),) = together(1, trained, accumulate)
    for theirs, other in together(2, trained, accumulate):
        assert np.allclose(theirs, figures, rtol=1e-6)
        for name, value in state.items():
            assert torch.allclose(other[name], value, rtol=1e-6, atol=1e-9), name


def test_noise_is_bound_for_a_time():
    flow, x = flow_of().double().eval(), torch.from_numpy(images(4).pixels)
    one, two = (Noise(seed, torch.arange(4)) for seed in (1, 2))
    first, second = flow.log_prob(x, None, one), flow.log_prob(x, None, two)
    assert not torch.equal(first, second)
    with flow.drawing(one):
        assert torch.equal(flow.log_prob(x), first)
        assert torch.equal(flow.log_prob(x, None, two), second)  # what is given is taken
        with pytest.raises(ZeroDivisionError), flow.drawing(two):
            assert torch.equal(flow.log_prob(x), second)
            raise ZeroDivisionError
        assert torch.equal(flow.log_prob(x), first)
    torch.manual_seed(0)
    free = flow.log_prob(x)
    assert not torch.equal(free, flow.log_prob(x))


@pytest.mark.parametrize(
    ("objective", "words"),
    [
        (with_figure(lr=lambda x: torch.ones(())), "a figure of the objective is called lr"),
        (with_figure(map=lambda x: x.float()), r"the objective's figure map is \(5, 1, 4, 4\)"),
        (lambda flow, x, labels: (-flow.log_prob(x).mean(), {}), r"loss is \(\): .*<lambda>"),
        (
            lambda flow, x, labels, seen=[]: (
                (-flow.log_prob(x), {str(len(seen)): x.sum()}) if seen.append(0) is None else None
            ),
            "figures are 2, and were 1: .*the same ones each time",
        ),
    ],
    ids=["taken", "shape", "loss", "changing"],
)
def test_what_an_objective_must_not_return_is_refused(objective, words):
    with pytest.raises(ConfigError, match=words) as caught:
        train(flow_of(), images(), objective=objective, config=settings(), quiet=True)
    assert "\n" not in str(caught.value)


def test_objectives_that_cannot_be_are_refused():
    flow, head = flow_of(), Hybrid()
    head.flow = flow
    with pytest.raises(ConfigError, match="an objective holds the flow"):
        train(flow, separable(), objective=head, config=settings(), quiet=True)
    with pytest.raises(ConfigError, match="parameters of its own is not sharded"):
        parallel(Task(flow, Hybrid()), flow, Processes(0, 2, 0, True), "fsdp")
    batches = Batches(images(), 5, seed=0, device=CPU, conditional=False)
    with pytest.raises(ConfigError, match="no graph with an objective other than the likelihood"):
        GraphedTrainer(flow, batches, settings(), steps=5, objective=plain)


def test_a_run_goes_on_with_its_own_objective_only(tmp_path, monkeypatch):
    out, given = tmp_path / "run", {"config": settings(), "quiet": True}
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        train(flow_of(), separable(), objective=Hybrid(), out=out, **given)
    with pytest.raises(ConfigError, match=r"is here: its objective is test_objective\.Hybrid, not"):
        train(flow_of(), separable(), out=out, **given)
    with pytest.raises(CheckpointError, match=r"does not fit test_objective\.Hybrid"):
        train(flow_of(), separable(), objective=Hybrid(classes=3), out=out, **given)
    train(flow_of(), separable(), objective=Hybrid(), out=out, **given)
    older = tmp_path / "older"  # than objectives
    train(flow_of(), images(), out=older, **given)
    header = RunFolder(older).read_metadata()
    del header["objective"]
    RunFolder(older).write_metadata(header)
    assert train(flow_of(), images(), out=older, **given).status == "finished"


def test_names_of_objectives():
    assert name_of(likelihood) == "likelihood"
    assert name_of(functools.partial(plain)) == name_of(plain) == "test_objective.plain"
    assert name_of(Hybrid()) == "test_objective.Hybrid"


def test_an_objective_that_is_not_finite_is_named():
    def broken(flow, x, labels):
        return math.nan * flow(x).z.mean(1).detach() - 0 * flow.log_prob(x).detach() + 0 * sum(
            p.sum() for p in flow.parameters()
        ), {}  # fmt: skip

    with pytest.raises(NonFiniteError, match=r"in test_objective\..*broken"):
        train(flow_of(), images(), objective=broken, config=settings(give_up_after=2), quiet=True)


def test_the_bar_shows_an_objective_and_its_figures(capsys):
    shown = []

    class Recorded(loop.ProgressBar):
        def update(self, done, figures):
            shown.append(figures)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "ProgressBar", Recorded)
        train(flow_of(), separable(), objective=Hybrid(), config=settings(steps=3), quiet=True)
    assert all(line.startswith("objective ") and "  accuracy " in line for line in shown)
    assert "bits/dim" not in "".join(shown)
