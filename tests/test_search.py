"""`benchmarks.search`: candidates that inherit flags, rungs that halve, runs that go on."""

import json
import math

import pytest
from benchmarks import search
from benchmarks.search import Arguments, Search, candidates

from mixerflow.errors import ConfigError, DataError

LINES = """# what is tried
today:
narrow < today: --model.flow.net.width 4
quick < narrow: --train.lr 0.02
"""


@pytest.fixture
def given(tmp_path):
    path = tmp_path / "tried.txt"
    path.write_text(LINES)
    settings = {"recipe": "mixerflow-tiny", "rungs": (1.0, 2.0), "keep": 0.4, "jobs": 1}
    return Arguments(path, **settings, noise=3, out=tmp_path / "search.json")


def pretended(done):
    def measure(each, data, seed, seconds, images):
        done.append((each.name, seed, seconds))
        bits = {"today": 4.0, "narrow": 3.5, "quick": 3.8}[each.name] + 0.01 * seed - seconds / 100
        row = {"name": each.name, "flags": " ".join(each.words), "seconds": seconds, "seed": seed}
        return row | {
            "bits_per_dim": bits, "steps": 9, "images_per_second": 1.0, "parameters": 10,
        }  # fmt: skip

    return measure


def test_a_candidate_has_its_parents_flags_and_then_its_own(given):
    _, narrow, quick = candidates(given.candidates, given.recipe)
    assert narrow.words == ("--model.flow.net.width", "4")
    assert quick.words == (*narrow.words, "--train.lr", "0.02")
    assert (quick.parent, quick.own) == ("narrow", "--train.lr 0.02")


def test_the_best_go_on_beside_the_first_and_nothing_is_run_twice(given, monkeypatch):
    done = []
    monkeypatch.setattr(search, "measure", pretended(done))
    ranked = [(seconds, [each.name for each in best]) for seconds, best in Search(given).rungs()]
    assert ranked == [(1.0, ["narrow", "quick", "today"]), (2.0, ["narrow", "today"])]
    assert [run for run in done if run[0] == "today"] == [
        ("today", 0, 1.0), ("today", 1, 1.0), ("today", 2, 1.0), ("today", 0, 2.0),
    ]  # fmt: skip
    before = len(done)
    again = Search(given)
    assert [*again.rungs()] and len(done) == before
    told = again.told(1.0, again.every)
    assert "+0.500" in told and "`--train.lr 0.02`" in told
    spread = 0.01  # of 0, 0.01 and 0.02
    assert f"{4.303 * spread * math.sqrt(2):.3f}" in again.noise()


def test_a_new_line_of_the_file_is_run_too(given, monkeypatch):
    monkeypatch.setattr(search, "measure", pretended([]))
    assert [*Search(given).rungs()]
    done = []
    monkeypatch.setattr(search, "measure", pretended(done))
    given.candidates.write_text(LINES.replace("0.02", "0.03"))
    assert [*Search(given).rungs()] and done == [("quick", 0, 1.0)]


def test_it_trains_for_the_seconds_and_scores_held_out_images(given):
    given.candidates.write_text("small: --train.initial 40 --model.layers 1 --train.batch 4")
    (small,) = candidates(given.candidates, given.recipe)
    row = search.measure(small, "fashion-mini", 0, 2.0, 20)
    assert row["steps"] > 3 and 1 < row["bits_per_dim"] < 9 and row["used"] < 10
    assert json.dumps(row)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("", "no candidates"),
        ("today --train.lr 1", "NAME: FLAGS"),
        ("a:\na: --train.lr 1", "each name once"),
        ("a < b:", "no 'b' above"),
        ("a: --train.rate 1", "no such flag"),
    ],
)
def test_a_wrong_line_is_one_error(given, lines, message):
    given.candidates.write_text(lines)
    with pytest.raises(ConfigError, match=message):
        candidates(given.candidates, given.recipe)


def test_what_cannot_be_is_refused(given, tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        candidates(tmp_path / "none.txt", given.recipe)
    with pytest.raises(ConfigError, match="rungs"):
        Arguments(given.candidates, rungs=())
    with pytest.raises(ConfigError, match="jobs"):
        Arguments(given.candidates, jobs=0)
    given.out.write_text("[]")
    with pytest.raises(DataError, match="no JSON of this search"):
        Search(given)
