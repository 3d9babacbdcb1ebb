"""`benchmarks.minutes`: equal seconds for all, equal noise, exact rivals, and runs that go on."""

import itertools
import json
import math
import sys
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from benchmarks import markdown, minutes, minutes_race
from benchmarks.minutes import Arguments, Benchmark
from benchmarks.minutes_learners import Named
from benchmarks.minutes_race import Run, race
from benchmarks.minutes_rivals import RIVAL_TRAINING, Other, operations, rival
from benchmarks.minutes_tables import draw, tables
from benchmarks.rival_transformer import Transformer
from benchmarks.rivals import Calls, Rival
from torch import nn

from mixerflow.core import Chain, Flow
from mixerflow.data import Splits, make_images
from mixerflow.errors import ConfigError, DataError
from mixerflow.evaluate import bits
from mixerflow.recipes import recipe
from mixerflow.train_config import TrainConfig
from mixerflow.transforms import Dequantize, Rescale


def made(count: int, shape=(1, 8, 8)):
    pixels = np.random.default_rng(0).integers(0, 256, (count, *shape)).astype(np.uint8)
    return make_images(pixels, None, dataset_id="made")


@pytest.fixture
def transformer():
    torch.manual_seed(0)
    flow = Transformer((1, 4, 4), patch=2, width=32, blocks=2, layers=1).build().double()
    for parameter in flow.parameters():
        nn.init.normal_(parameter, std=0.2)
    return flow


def test_the_transformers_density_is_that_of_its_jacobian(transformer):
    x = torch.randn(1, 1, 4, 4, dtype=torch.float64)

    def encode(flat):
        return transformer.encode(flat.reshape(x.shape)).flatten()

    jacobian = torch.autograd.functional.jacobian(encode, x.flatten())
    norm = torch.distributions.Normal(0.0, 1.0)
    expected = norm.log_prob(encode(x.flatten())).sum() + jacobian.slogdet().logabsdet
    assert transformer.log_prob(x).item() == pytest.approx(expected.item(), abs=1e-10)
    # an image's first patch, in the order of the second block, is the last: nothing is left out
    assert (jacobian != 0).any(0).all() and (jacobian != 0).any(1).all()


def test_the_transformers_inverse_gives_the_image_back(transformer):
    x = torch.randn(3, 1, 4, 4, dtype=torch.float64)
    with torch.no_grad():
        z = transformer.encode(x)
    assert torch.allclose(transformer.inner.decode(z), x, atol=1e-12)
    assert not torch.allclose(z.view_as(x), x, atol=0.1)
    assert transformer.sample(2).shape == (2, 1, 4, 4)


def test_each_block_is_causal(transformer):
    net = transformer.inner.nets[0]
    x = torch.randn(1, 4, 4, dtype=torch.float64)
    changed = x.clone()
    changed[:, 2] += 1
    for before, after in zip(net(x), net(changed), strict=True):
        assert torch.equal(before[:, :3], after[:, :3])
        assert not torch.allclose(before[:, 3], after[:, 3])


def test_an_untrained_transformer_is_the_normal_density():
    x = torch.randn(2, 3, 8, 8)
    expected = torch.distributions.Normal(0.0, 1.0).log_prob(x).sum((1, 2, 3))
    found = Transformer((3, 8, 8), 4, 32).build().log_prob(x)
    assert torch.allclose(found, expected, rtol=1e-5)


class Normal(nn.Module):
    """N(mean, 1), and a buffer of floats beside its parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(()))
        self.register_buffer("seen", torch.zeros(()))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def log_prob(self, x):
        if self.training:
            self.seen += 1
            self.calls += 1
        return (
            torch.distributions.Normal(self.mean, 1.0, validate_args=False)
            .log_prob(x)
            .sum((1, 2, 3))
        )


NOTHING = Calls(Normal.log_prob, lambda m, n: None, lambda m, x: x)


def normal(low=-0.5, high=0.5) -> Other:
    config = replace(RIVAL_TRAINING, batch=4, ema=0.5, warmup=2)
    build = lambda: Rival(Normal(), NOTHING)  # noqa: E731
    return Other("normal", "N(mean, 1)", "torch", build, config, low, high)


def test_rivals_are_scored_in_the_units_and_with_the_noise_of_the_package():
    images = made(20)
    learner = normal(low=-1.0, high=1.0).begin(images, seed=0, rate=0.1, seconds=1.0)
    steps = Chain(Dequantize(256), Rescale(2 / 256, -1.0))
    flow = Flow(steps, (1, 8, 8)).eval()
    assert np.allclose(learner.score(images), bits(flow, images).per_image, atol=1e-6)


def test_a_rivals_loop_is_adam_by_the_schedule_with_an_average_of_all_numbers():
    learner = normal().begin(made(20), seed=0, rate=0.1, seconds=1.0)
    means, seen = [0.0], [1.0]
    average = {"mean": 0.0, "seen": 1.0}
    for number in range(4):
        learner.step(float(number), 40)
        rate = learner.optimizer.param_groups[0]["lr"]
        assert rate == TrainConfig(lr=0.1, warmup=2).lr_at(number, 40)
        inner = learner.model.rival.inner
        means.append(inner.mean.item())
        seen.append(inner.seen.item())
        share = 1 - min(0.5, (1 + number) / (10 + number))
        for name, values in (("mean", means), ("seen", seen)):
            average[name] += share * (values[-1] - average[name])
    # Adam's first step is the rate itself, here half of it in the warm-up of two steps
    assert abs(means[1]) == pytest.approx(0.05, rel=1e-4)
    averaged = learner.averaged.rival.inner
    assert averaged.mean.item() == pytest.approx(average["mean"], rel=1e-5)
    assert averaged.seen.item() == pytest.approx(average["seen"], rel=1e-5)
    assert learner.skipped == 0


def test_a_step_that_is_not_finite_changes_nothing():
    learner = normal().begin(made(20), seed=0, rate=0.1, seconds=1.0)
    learner.step(0.0, 10)
    before = {name: value.clone() for name, value in learner.averaged.state_dict().items()}
    mean = learner.model.rival.inner.mean
    kept = mean.item()
    learner.model.low = math.nan
    learner.step(1.0, 10)
    assert (learner.skipped, mean.item()) == (1, kept)
    assert all(torch.equal(v, before[n]) for n, v in learner.averaged.state_dict().items())


@dataclass
class Clock:
    """A processor's clock that only those move who work."""

    now: float = 0.0
    told: list = field(default_factory=list)

    def process_time(self) -> float:
        return self.now


@dataclass
class Slow:
    """An entrant and its learner, of given seconds a step, start and statistics."""

    name: str
    clock: Clock
    each: float
    start: float = 0.5
    settling: float = 0.0
    config: TrainConfig = RIVAL_TRAINING

    def begin(self, images, seed, rate, seconds):
        self.clock.now += self.start
        self.places = []
        return self

    def step(self, place, whole):
        self.clock.now += self.each
        self.clock.told.append(self.name)
        self.places.append((place, whole, torch.rand(()).item()))

    def settle(self):
        self.clock.now += self.settling


def test_all_get_the_same_seconds_in_turns_and_their_schedules_end_with_them(monkeypatch):
    clock, looks = Clock(), []
    monkeypatch.setattr(minutes_race, "time", clock)
    slow = Slow("slow", clock, 0.7)
    quick = Slow("quick", clock, 0.1, start=4.0, settling=0.3)
    runs = [Run(each, None, 0, 0.1, 20.0) for each in (slow, quick)]

    def look(run, last):
        clock.now += 100.0  # an evaluation does not count
        looks.append((run.entrant.name, last, round(run.used, 6)))

    race(runs, 2.0, [5.0, 10.0], look)
    for run in runs:
        assert abs(run.used - 20.0) <= run.entrant.each / 2 + 1e-9
        place, whole, _ = run.entrant.places[-1]
        assert whole == pytest.approx(run.steps, abs=1)
        assert place == pytest.approx(whole, rel=0.1) and place <= whole
        places = [place for place, _, _ in run.entrant.places]
        assert places == sorted(places) and places[:4] == pytest.approx([0, 1, 2, 3], abs=0.1)
    assert quick.places != slow.places and runs[1].begun == 4.0
    for name, step in (("slow", 0.7), ("quick", 0.1)):
        mine = [(last, used) for who, last, used in looks if who == name]
        assert [last for last, _ in mine] == [False, False, True]
        for (_, used), mark in zip(mine, (5.0, 10.0, 20.0), strict=True):
            assert -step / 2 - 1e-9 <= used - mark < step + 0.3
    # nobody works for more than a turn and a step at a time
    working = [(name, len([*group])) for name, group in itertools.groupby(clock.told)]
    assert working[0] == ("slow", 8)  # while the other's long start takes up its first turns
    assert max(count for name, count in working[1:-1] if name == "slow") <= 4
    assert max(count for name, count in working[1:-1] if name == "quick") <= 21


def test_turns_do_not_change_what_a_run_draws(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(minutes_race, "time", clock)

    def drawn(turn, names):
        entrants = [Slow(name, clock, 0.5) for name in names]
        torch.manual_seed(3)
        race([Run(e, None, 0, 0.1, 6.0) for e in entrants], turn, [], lambda run, last: None)
        return [draw for *_, draw in entrants[0].places]

    assert drawn(1.0, "ab") == drawn(3.0, "abc") == drawn(10.0, "a")


SMALL = {
    "data": ("made",),
    "recipes": ("mixerflow-tiny",),
    "rivals": ("transformer-4-32-1-1",),
    "seconds": 0.6,
    "trial": 0.2,
    "seeds": 1,
    "rates": (3e-3, 1e-2),
    "images": 16,
    "curve_images": 8,
    "marks": 2,
    "turn": 0.1,
}


@pytest.fixture
def small(monkeypatch):
    """The benchmark on small images, with a recipe whose start is of few of them."""
    splits = Splits(made(60, (1, 8, 8)), made(20, (1, 8, 8)))
    monkeypatch.setattr(minutes, "load", lambda spec: splits)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield lambda **more: Benchmark(Arguments(**SMALL | more))
    torch.set_num_threads(threads)


@pytest.mark.slow
def test_a_benchmark_measures_all_and_goes_on_from_its_file(small, tmp_path):
    out = tmp_path / "minutes.json"
    first = small(out=out)
    first.run()
    rows = first.result["minutes"]
    assert {row["name"] for row in rows} == {"mixerflow-tiny", "transformer-4-32-1-1"}
    for row in rows:
        step = (row["seconds"] - row["start_seconds"]) / row["steps"]
        assert abs(row["seconds"] - 0.6) < 0.1 + 3 * step
        assert row["images"] == 16 and row["bits_per_dim"] < 12
        assert [point["steps"] for point in row["curve"]][-1] == row["steps"]
    trials = first.result["trials"]["made"]
    own = recipe("mixerflow-tiny").train.lr
    assert [each["rate"] for each in trials["mixerflow-tiny"]["tried"]] == sorted({3e-3, 1e-2, own})
    for trial in trials.values():
        least = min(trial["tried"], key=lambda each: each["bits_per_dim"])
        assert trial["chosen"] == least["rate"]
    kept = json.loads(out.read_text())

    second = small(out=out, seeds=2)
    taken_over = [*second.result["minutes"]]
    second.run()
    assert taken_over == kept["minutes"] == second.result["minutes"][: len(rows)]
    assert second.result["trials"] == kept["trials"]
    seeds = [(row["name"], row["seed"]) for row in second.result["minutes"]]
    assert len(set(seeds)) == 4 == len(seeds)

    for other, what in (
        ({"batch": 8}, "another batch: 32, and not 8"),
        ({"rates": (1.0,)}, "another rates"),
    ):
        with pytest.raises(ConfigError, match=what):
            small(out=out, **other)
    out.write_text("{}")
    with pytest.raises(DataError, match="no JSON of this benchmark"):
        small(out=out)


def test_one_line_for_what_cannot_run(small, monkeypatch, capsys, tmp_path):
    cases = {
        "--recipes mixerflow-tinny": (2, "did you mean mixerflow-tiny?"),
        "--rivals nflow": (2, "did you mean nflows?"),
        "--rivals nflows-4-1-8": (2, "have no 4 levels of 1 steps"),
        "--rivals nflows-3-1": (2, "no such rival"),
        "--rivals transformer-3-32-1-1": (2, "patches of 3 do not fill"),
        "--rivals transformer-4-40-1-1": (2, "a multiple of 32"),
        "--seconds 0": (2, "--seconds"),
        "--rates -1": (2, "--rates"),
    }
    for words, (code, said) in cases.items():
        monkeypatch.setattr(sys, "argv", ["minutes.py", "--seeds", "0", *words.split()])
        with pytest.raises(SystemExit) as stopped:
            minutes.main()
        printed = capsys.readouterr()
        assert stopped.value.code == code and not printed.out
        assert said in printed.err and printed.err.count("\n") == 1, words
    monkeypatch.setattr(minutes, "load", lambda spec: Splits(made(9), None))
    with pytest.raises(DataError, match="no test images"):
        small().run()


def test_a_library_that_is_missing_is_named(small, monkeypatch):
    monkeypatch.setattr(minutes, "installed", lambda package: False)
    benchmark = small(rivals=("nflows", "FrEIA"), seeds=0, rates=(1e-2,), trial=0.01)
    benchmark.run()
    assert benchmark.result["not_installed"] == ["nflows", "FrEIA"]
    assert "not installed: nflows, FrEIA" in tables(benchmark.result)
    assert [*benchmark.result["entrants"]["made"]] == ["mixerflow-tiny"]


@pytest.mark.parametrize("library", ["nflows", "normflows", "FrEIA"])
def test_a_glow_learns_in_the_loop(library):
    pytest.importorskip(library)
    entrant = rival(f"{library}-2-1-8", (1, 8, 8), "mixerflow-tiny", 8)
    assert entrant.about == f"Glow 2x1, 8 wide, {library}"
    learner = entrant.begin(made(40), seed=0, rate=1e-2, seconds=1.0)
    before = learner.score(made(16)).mean()
    for number in range(20):
        learner.step(float(number), 40)
    assert learner.score(made(16)).mean() < before - 0.01 and learner.skipped == 0


def test_a_glow_has_the_operations_of_the_recipe():
    target = operations("mixerflow-tiny", (1, 28, 28))
    glow = rival("nflows", (1, 28, 28), "mixerflow-tiny", 8).build.__self__
    assert glow.flop() == pytest.approx(target, rel=0.25)
    assert target > 1e6


def test_a_recipe_has_its_own_settings():
    learner = Named("mixerflow-tiny").begin(made(40), seed=5, rate=0.02, seconds=1.0)
    own = recipe("mixerflow-tiny").train
    assert learner.config == replace(own, lr=0.02, seed=5)
    learner.step(700.0, 1000)
    rate = learner.trainer.optimizer.param_groups[0]["lr"]
    assert rate == own.__class__.lr_at(learner.config, 700.0, 1000)


def rows_of(name, figures):
    curve = [{"seconds": s, "steps": 1, "bits_per_dim": 4.0} for s in (1.0, 2.0)]
    same = {"data": "d", "name": name, "curve": curve, "parameters": 10**6, "rate": 1e-2}
    numbers = {"images_per_second": 100.0, "steps": 30}
    return [
        same | numbers | {"seed": seed, "bits_per_dim": value} for seed, value in enumerate(figures)
    ]


def test_the_table_judges_by_students_t_and_shows_what_is_not_finite(tmp_path, monkeypatch, capsys):
    trial = {"tried": [{"rate": r, "bits_per_dim": 5.0} for r in (1e-3, 1e-2)], "chosen": 1e-2}
    names = ("ours", "worse", "noisy", "broken")
    result = {
        "command": "python -m benchmarks.minutes", "cpu": "a processor", "threads": 1,
        "settings": {"seconds": 2.0, "marks": 2},
        "sets": {"d": {"dataset_id": "made", "test": 16}},
        "entrants": {"d": {n: {"about": n.upper(), "package": "mixerflow"} for n in names}},
        "trials": {"d": dict.fromkeys(names, trial)},
        "minutes": [
            *rows_of("worse", [4.2, 4.3, 4.31]),
            *rows_of("ours", [4.0, 4.1, 4.1]),
            *rows_of("noisy", [4.0, 4.6, 4.1]),
            *rows_of("broken", [None, 4.0, 4.0]),
        ],
    }  # fmt: skip
    lines = {line.split(" | ")[0].strip("| "): line for line in tables(result).splitlines()}
    assert "more than ours" in tables(result)
    # differences 0.2, 0.2, 0.21: mean 0.2033, standard error 0.00333, t of two degrees 4.303
    assert "+0.203 ± 0.014, more" in lines["worse"]
    assert "undecided" in lines["noisy"]
    assert "not finite (1 of 3 seeds)" in lines["broken"]
    assert "**4.067** ± 0.033 (3 seeds)" in lines["ours"] and "0.01 (highest)" in lines["ours"]
    draw(result, tmp_path / "curves.svg")
    assert "<svg" in (tmp_path / "curves.svg").read_text()
    (tmp_path / "minutes.json").write_text(json.dumps(result))
    monkeypatch.setattr(sys, "argv", ["markdown.py", str(tmp_path / "minutes.json")])
    markdown.main()
    assert lines["worse"] in capsys.readouterr().out
