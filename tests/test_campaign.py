"""The campaign keeps the trials that are done, shows what it found, and writes one table."""

import json
import os
import signal

import pytest
from campaign import runner
from campaign.__main__ import main
from campaign.base import Found, Outcome, Row, prepared
from campaign.table import BEGIN, END

# Python 3.12 and later warn of a fork beside threads, such as pytest's own
pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


def trial(number, folder):
    """Leave a note of each time that it runs; the third finds a fault, the fourth dies."""
    with open(prepared(folder) / "ran", "a") as file:
        file.write(f"{number}\n")
    if number == 2:
        raise Found("wrong", "a figure\nis another | one")
    if number == 3:
        os.kill(os.getpid(), signal.SIGUSR1)
    return Outcome(figure=float(number))


def prepare(folder):
    (folder / "ran").touch()


FAKE = Row("fake", "nothing is done", 5, trial, "largest, s", prepare=prepare)


@pytest.fixture
def campaign(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr("campaign.__main__._WARM", ())

    def run(*words):
        return main([*words, "--runs", str(tmp_path), "--results", str(tmp_path / "r")], [FAKE])

    run.ran = lambda: sorted((tmp_path / "fake/prepared/ran").read_text().split())
    run.store = runner.Store(tmp_path, FAKE)
    return run


def test_a_trial_is_done_once_and_a_line_cut_short_again(campaign, capfd):
    assert campaign("--trials", "2") == 0
    assert campaign.ran() == ["0", "1"]
    kept = campaign.store.path.read_bytes()
    campaign.store.path.write_bytes(kept[:-5])  # as a kill leaves it
    assert campaign("fake", "--jobs", "2") == 1
    again = json.loads(kept.splitlines()[-1])["trial"]
    assert campaign.ran() == sorted(["0", "1", "2", "3", "4", str(again)])
    capfd.readouterr()


def test_faults_are_shown_in_full_and_counted_in_the_page(campaign, capfd, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    assert campaign("--write", str(page)) == 1
    out, err = capfd.readouterr()
    assert "fake, trial 2: wrong\n    a figure\n    is another | one\n" in err
    assert "fake, trial 3: traceback\n    the trial's own process ended with -10\n" in err
    row = "| nothing is done | `python -m campaign fake` | 5 | 1 | 0 | 1 | largest, s: 4 |"
    assert row in out
    text = page.read_text()
    assert row in text and "old" not in text
    assert text.startswith("before\n") and text.endswith("after\n")
    assert [p.name for p in campaign.store.folder.glob("trial-*")] == ["trial-0002", "trial-0003"]
    assert json.loads((tmp_path / "r/fake.json").read_bytes())["faults"][0]["trial"] == 2


def test_trials_of_other_code_do_not_count(campaign, capfd, monkeypatch):
    assert campaign("--trials", "1") == 0
    monkeypatch.setattr(runner, "code_of", lambda row: "other")
    assert campaign.store.done() == {}


def test_a_trial_without_end_is_stopped_and_lost(tmp_path):
    row = Row("endless", "-", 1, lambda number, folder: signal.pause(), limit=0.1)
    (outcome,) = runner.run(row, tmp_path, trials=1, quiet=True)
    assert outcome.fault == "lost" and "no end within 0.1 s" in outcome.text
