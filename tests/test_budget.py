"""Budgets: minutes are kept while the machine changes speed, and the schedule follows the clock."""

import dataclasses
import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from helpers import everything, flow_of, images, settings, stop_after
from mixerflow import train_config
from mixerflow.errors import ConfigError
from mixerflow.runs import RunFolder
from mixerflow.schedule import Constant
from mixerflow.training import Trainer, budget, loop, train, validation
from mixerflow.training.budget import Costs, Evaluations, Pace, limit_of
from mixerflow.training.trainer import Step

MINUTES = 2.0
STEP, IMAGE, SAMPLE = 0.4, 0.003, 0.003


class Machine:
    """A machine with a clock of its own, on which nothing takes time but what a test says.

    With another `clock` than the wall's, ten times as much passes on the wall.
    """

    def __init__(
        self,
        monkeypatch,
        step=STEP,
        image=IMAGE,
        sample=SAMPLE,
        load=lambda share: 1.0,
        clock="wall",
    ):
        self.now, self.evaluating, self.rates = 0.0, 0.0, []
        self.speed = lambda: load(self.now / (60 * MINUTES))
        wall = {"wall": lambda: self.now, "cpu": lambda: 10 * self.now}[clock]
        clocks = SimpleNamespace(monotonic=wall, process_time=lambda: self.now)
        monkeypatch.setattr(train_config, "time", clocks)
        score, draw = validation.bits, validation.draw_pixels

        def stepped(trainer):  # what no clock sees is left out
            self.now += step * self.speed() * (3 if trainer.step == 0 else 1)
            self.rates.append(trainer._set_rate())
            trainer.step += 1
            return Step(3.0, 1.0, self.rates[-1], trainer.step, 1)

        def evaluated(seconds):
            self.now += seconds * self.speed()
            self.evaluating += seconds * self.speed()

        def bits(flow, pixels, **how):
            evaluated(image * len(pixels))
            figure = score(flow, pixels[:4], **how)
            scores = np.resize(figure.per_image, len(pixels))
            return dataclasses.replace(figure, images=len(pixels), per_image=scores)

        def drawn(flow, number, **how):
            evaluated(sample * number)
            return draw(flow, 2, **how)

        monkeypatch.setattr(Trainer, "advance", stepped)
        monkeypatch.setattr(validation, "bits", bits)
        monkeypatch.setattr(validation, "draw_pixels", drawn)

    def train(self, out=None, **changes):
        config = settings(steps=None, minutes=MINUTES, evaluate_every=0, **changes)
        known = images(120)
        return train(flow_of(), known, validation=images(200), out=out, config=config, quiet=True)


LOADS = {
    "steady": lambda share: 1.0,
    "slows down fivefold": lambda share: 1.0 if share < 0.3 else 5.0,
    "speeds up fivefold": lambda share: 5.0 if share < 0.3 else 1.0,
    "slows down near the end": lambda share: 1.0 if share < 0.9 else 6.0,
    "slower and slower": lambda share: 1 + 6 * share,
    "comes and goes": lambda share: 4.0 if int(share * 20) % 2 else 1.0,
    "stands still once": lambda share: 30.0 if 0.4 < share < 0.41 else 1.0,
}


@pytest.mark.parametrize("load", LOADS.values(), ids=LOADS)
def test_minutes_are_kept_when_the_machine_changes_its_speed(monkeypatch, tmp_path, load):
    machine = Machine(monkeypatch, load=load)
    ended = machine.train(tmp_path / "run")
    assert 0.9 < machine.now / (60 * MINUTES) < 1.1
    assert machine.evaluating <= 0.13 * 60 * MINUTES
    header = RunFolder(tmp_path / "run").read_metadata()
    assert header["steps"] == ended.step == len(machine.rates)
    # the schedule ends with the run, and nowhere leaps
    warmup = machine.rates.index(max(machine.rates))
    assert warmup < 0.35 * ended.step
    assert machine.rates[-1] < 0.1 * max(machine.rates)
    after = machine.rates[warmup:]
    assert all(a >= b for a, b in itertools.pairwise(after))
    assert max(a - b for a, b in itertools.pairwise(after)) < 0.25 * max(machine.rates)


@pytest.mark.parametrize(
    ("changes", "evaluations"),
    [
        pytest.param({"image": 0.1}, 10, id="slow to score"),
        pytest.param({"sample": 1.0}, 3, id="slow to sample"),
        pytest.param({"step": 10.0, "image": 1.0, "sample": 1.0}, 1, id="slow in everything"),
        pytest.param({"step": 50.0}, 2, id="three steps"),
    ],
)
def test_evaluations_take_a_tenth_of_the_minutes(monkeypatch, tmp_path, changes, evaluations):
    machine = Machine(monkeypatch, **changes)
    ended = machine.train(tmp_path / "run")
    assert machine.now < 1.1 * 60 * MINUTES or ended.step <= 3
    assert machine.evaluating < 0.16 * 60 * MINUTES
    records = RunFolder(tmp_path / "run").read_metrics()
    validated = [each["images"] for each in records if each["kind"] == "validation"]
    assert 1 <= len(validated) <= evaluations
    assert validated[-1] == ended.validation.images <= 200


def test_what_was_reduced_is_said(monkeypatch, capsys):
    config = settings(steps=None, minutes=MINUTES, evaluate_every=0)
    Machine(monkeypatch, image=0.5, sample=3.0)
    train(flow_of(), images(120), validation=images(200), config=config)
    said = capsys.readouterr().err
    assert "evaluations within a tenth of the time: " in said
    assert " of 200 images at the end" in said


def test_minutes_of_processor_time_do_not_count_what_passes_on_the_wall(monkeypatch, tmp_path):
    machine = Machine(monkeypatch, clock="cpu")
    ended = machine.train(tmp_path / "run", clock="cpu")
    assert 0.9 < machine.now / (60 * MINUTES) < 1.1
    header = RunFolder(tmp_path / "run").read_metadata()
    assert header["seconds"] == pytest.approx(machine.now, rel=0.1)
    assert ended.step > 100


def test_a_stopped_run_of_minutes_goes_on_with_the_minutes_left(monkeypatch, tmp_path):
    machine = Machine(monkeypatch)
    stop_after(monkeypatch, 100)
    assert machine.train(tmp_path / "run").status == "interrupted"
    spent, before = machine.now, len(machine.rates)
    machine.now += 1e5  # time between two pieces does not count
    ended = machine.train(tmp_path / "run")
    assert ended.status == "finished"
    assert 0.9 < (machine.now - 1e5) / (60 * MINUTES) < 1.1
    assert machine.now - 1e5 > 1.5 * spent
    # the rate goes on where it was, and the plan's records are those of one run
    assert machine.rates[before] == pytest.approx(machine.rates[before - 1], rel=0.1)
    plans = [r for r in RunFolder(tmp_path / "run").read_metrics() if r["kind"] == "plan"]
    assert all(a["place"] < b["place"] for a, b in itertools.pairwise(plans))


def test_of_two_budgets_the_one_that_ends_first_counts(monkeypatch, tmp_path):
    config = settings(steps=20, minutes=MINUTES)
    alone = settings(steps=20)
    for name, each in (("both", config), ("steps", alone)):
        train(flow_of(), images(), out=tmp_path / name, config=each, quiet=True)
    both, steps = (everything(tmp_path / name) for name in ("both", "steps"))
    assert all(torch.equal(both[k], v) for k, v in steps.items() if torch.is_tensor(v))
    slow = Machine(monkeypatch, step=10.0)
    assert train(flow_of(), images(), config=config, quiet=True).step < 20
    assert slow.now < 1.1 * 60 * MINUTES
    assert slow.rates[-1] < 0.4 * max(slow.rates)
    assert limit_of(settings(steps=50, epochs=2.0, batch=10), 100) == 20
    with pytest.raises(ConfigError, match="no budget"):
        limit_of(settings(steps=None), 100)


def test_a_pace_is_a_line_and_exact_for_steps():
    fixed = Pace(977, 977)
    assert [fixed.at(step) for step in range(978)] == [float(step) for step in range(978)]
    slower = Pace(100, 100).until(60, 20)
    assert slower.at(20) == 20
    assert slower.at(60) == 100
    again = slower.until(80, 40)
    assert again.at(40) == slower.at(40)
    assert again.at(80) == 100
    over = slower.until(40, 40)
    assert over.at(40) == slower.at(40)


@pytest.mark.parametrize("minutes", [0.5, 4, 60])
@pytest.mark.parametrize("image", [1e-4, 0.05, 2.0])
@pytest.mark.parametrize("grid", [1e-3, 5.0, 1e3])
@pytest.mark.parametrize("rest", [1e-3, 2.0])
def test_evaluations_fit_or_are_the_least(minutes, image, grid, rest):
    wanted, costs = Evaluations(10, 1000, 2000), Costs(image, grid, rest)
    share = 0.1 * 60 * minutes
    planned = wanted.within(share, costs)
    cost = planned.cost(costs, last=True) + (planned.times - 1) * planned.cost(costs, last=False)
    least = Evaluations(1, 1, 1, grid=False).cost(costs, last=True)
    assert cost <= share * (1 + 1e-9) or planned.last == 1 or cost <= least
    assert planned.last >= planned.images >= 1
    assert planned.times <= 10
    assert planned.last <= 2000
    if wanted.cost(costs, last=True) + 9 * wanted.cost(costs, last=False) <= share / 2:
        assert planned == wanted


def test_rates_between_two_steps_lie_between_theirs():
    config = settings(warmup=10, lr=1.0)
    for schedule in (config.schedule, Constant(cooldown=0.3, cooldown_lr=0.1)):
        made = settings(warmup=10, lr=1.0, schedule=schedule)
        rates = [made.lr_at(place, 100) for place in np.arange(0, 100, 0.25)]
        whole = [made.lr_at(place, 100) for place in range(100)]
        assert rates[::4] == whole
        assert all(0 < rate <= 1.0 for rate in rates)


def test_a_run_from_before_clocks_resumes_with_its_steps(monkeypatch, tmp_path):
    config = settings(steps=None, minutes=MINUTES, evaluate_every=4)
    monkeypatch.setattr(budget.Clock, "due", lambda *given: False)
    machine = Machine(monkeypatch, step=0.01)
    stop_after(monkeypatch, 6)
    train(flow_of(), images(), out=tmp_path / "run", config=config, quiet=True)
    folder = RunFolder(tmp_path / "run")
    folder.update({"steps": 12})  # as older versions wrote it, beside checkpoints without a clock
    drop_the_clock(monkeypatch)
    ended = train(flow_of(), images(), out=tmp_path / "run", config=config, quiet=True)
    assert (ended.status, ended.step) == ("finished", 12)
    assert len(machine.rates) == 12


def drop_the_clock(monkeypatch):
    load = loop.Loop.restore

    def restore(self, checkpoint):
        del checkpoint.state["clock"], checkpoint.state["trainer"]["pace"]
        load(self, checkpoint)

    monkeypatch.setattr(loop.Loop, "restore", restore)


def test_the_last_evaluation_keeps_its_images(monkeypatch, tmp_path):
    """Evaluations that take longer than a trial said become fewer; the last one comes first."""
    machine = Machine(monkeypatch, image=0.02, load=lambda share: 1.0 if share < 0.05 else 1.5)
    machine.train(tmp_path / "run")
    records = RunFolder(tmp_path / "run").read_metrics()
    validated = [each["images"] for each in records if each["kind"] == "validation"]
    assert validated[-1] >= 150
    assert machine.evaluating <= 0.13 * 60 * MINUTES


def test_checkpoints_go_on_when_evaluations_have_had_their_time(monkeypatch, tmp_path):
    machine = Machine(monkeypatch, image=0.03, load=lambda share: 1.0 if share < 0.35 else 6.0)
    saved, save = [], loop.Checkpoints.save

    def noted(self, step, *given, **how):
        saved.append(step)
        return save(self, step, *given, **how)

    monkeypatch.setattr(loop.Checkpoints, "save", noted)
    machine.train(tmp_path / "run")
    assert len(set(saved)) >= 10  # at the start, and after each tenth of the schedule
