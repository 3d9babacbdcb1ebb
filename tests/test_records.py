"""Who hears of a run's figures: a function of the user's, TensorBoard, and Optuna."""

import io
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from helpers import everything, flow_of, images, settings, stop_after, timeless, together
from mixerflow.errors import ConfigError
from mixerflow.runs import RunFolder
from mixerflow.training import train

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")

DOCS = Path(__file__).parents[1] / "docs"


class Asks:
    """Keeps the records, and does something at the first validation from a step on."""

    def __init__(self, step=None, act=lambda: True):
        self.step, self.act, self.records = step, act, []

    def __call__(self, record):
        self.records.append(record)
        if self.step is not None and record["kind"] == "validation" and record["step"] >= self.step:
            return self.act()
        return None

    @property
    def timeless(self):
        clocks = ("seconds", "images_per_second")
        return [{k: v for k, v in r.items() if k not in clocks} for r in self.records]


def run(out, asks, **changes):
    config = settings(**changes)
    return train(flow_of(), images(), out=out, config=config, on_record=asks, quiet=True)


def status(out):
    return RunFolder(out).read_metadata()["status"]


def test_each_record_is_told_in_order_with_a_folder_or_without(tmp_path):
    told, alone = Asks(), Asks()
    run(tmp_path / "run", told)
    run(None, alone)
    assert told.records == RunFolder(tmp_path / "run").read_metrics()
    assert alone.timeless == told.timeless
    steps = [r["step"] for r in told.records if r["kind"] == "train"]
    assert steps == list(range(1, 13))
    assert [r["step"] for r in told.records if r["kind"] == "validation"] == [4, 8, 12]


def test_what_it_does_to_a_record_and_what_it_answers_changes_nothing(tmp_path):
    def spoil(record):
        record.clear()
        return "done"

    ended = run(tmp_path / "run", spoil)
    run(tmp_path / "plain", None)
    assert (ended.status, ended.step) == ("finished", 12)
    assert timeless(tmp_path / "run") == timeless(tmp_path / "plain")


@pytest.mark.parametrize("answer", [True, np.True_], ids=["bool", "numpy"])
def test_true_stops_with_a_checkpoint_and_the_run_goes_on_bit_for_bit(tmp_path, answer):
    whole, first, second = Asks(), Asks(8, lambda: answer), Asks()
    run(tmp_path / "whole", whole)
    ended = run(tmp_path / "run", first)
    assert (ended.status, ended.step, ended.exit_code) == ("interrupted", 8, 0)
    assert ended.validation is None
    assert status(tmp_path / "run") == "interrupted"
    ended = run(tmp_path / "run", second)
    assert (ended.status, ended.step) == ("finished", 12)
    assert first.timeless + second.timeless == whole.timeless  # none twice
    one, other = everything(tmp_path / "whole"), everything(tmp_path / "run")
    assert all(torch.equal(other[name], tensor) for name, tensor in one.items())


def test_true_at_a_step_between_evaluations_stops_there_too(tmp_path):
    ended = run(tmp_path / "run", lambda record: record["step"] == 6)
    assert (ended.status, ended.step) == ("interrupted", 6)
    assert run(None, lambda record: record["step"] == 6).step == 6
    assert run(tmp_path / "run", None).status == "finished"


def test_true_at_the_end_is_the_end(tmp_path):
    ended = run(tmp_path / "run", Asks(12))
    assert (ended.status, ended.exit_code) == ("finished", 0)
    assert ended.validation is not None


def test_a_signal_beside_it_keeps_its_exit_code(tmp_path, monkeypatch):
    stop_after(monkeypatch, 4)
    ended = run(tmp_path / "run", Asks(4))
    assert (ended.status, ended.step, ended.exit_code) == ("interrupted", 4, 143)


def failing():
    raise KeyError("no such thing")


def test_what_it_raises_is_the_users_and_the_run_resumes(tmp_path):
    with pytest.raises(KeyError, match="no such thing"):
        run(tmp_path / "run", Asks(8, failing))
    assert status(tmp_path / "run") == "failed"
    assert "no such thing" in RunFolder(tmp_path / "run").read_metadata()["error"]
    again = Asks()
    assert run(tmp_path / "run", again).status == "finished"
    assert again.records[0]["step"] == 5  # the last checkpoint is that of step 4
    run(tmp_path / "whole", None)
    assert timeless(tmp_path / "run") == timeless(tmp_path / "whole")


def test_what_cannot_be_called_is_refused_at_once(tmp_path):
    with pytest.raises(ConfigError, match="on_record"):
        run(tmp_path / "run", "print")
    assert not (tmp_path / "run").exists()


def in_two(processes, out, step, act):
    asks = Asks(step, act) if processes.main else None
    ended = run(out, asks, batch=8, steps=8)
    return ended.status, ended.step, ended.exit_code, asks and len(asks.records)


def test_process_0_alone_is_asked_and_stops_all(tmp_path):
    ended, other = together(2, in_two, tmp_path / "run", 4, lambda: True)
    assert ended[:3] == other[:3] == ("interrupted", 4, 0)
    assert (ended[3], other[3]) == (5, None)
    ended, other = together(2, in_two, tmp_path / "run", None, None)
    assert ended == ("finished", 8, 0, 5)
    assert other[:2] == ("finished", 8)


def refused(processes, out):
    try:
        in_two(processes, out, 4, lambda: (_ for _ in ()).throw(ConfigError("no", "it", "stop")))
    except ConfigError as error:
        return str(error)
    return None


def test_what_process_0_raises_all_raise(tmp_path):
    one, other = together(2, refused, tmp_path / "run")
    assert one == other
    assert "no" in one
    assert status(tmp_path / "run") == "failed"


def events_of(out):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(out / "tensorboard"), {"images": 0, "histograms": 0}).Reload()


def test_tensorboard_has_grids_and_distributions_and_changes_no_figure(tmp_path):
    config = settings(tensorboard=True)
    ended = train(flow_of(), images(), out=tmp_path / "run", config=config, quiet=True)
    run(tmp_path / "plain", None)
    assert timeless(tmp_path / "run") == timeless(tmp_path / "plain")
    one, other = everything(tmp_path / "plain"), everything(tmp_path / "run")
    assert all(torch.equal(other[name], tensor) for name, tensor in one.items())

    events = events_of(tmp_path / "run")
    grids = events.Images("samples")
    assert [grid.step for grid in grids] == [4, 8, 12]

    for grid in grids:
        seen = np.asarray(Image.open(io.BytesIO(grid.encoded_image_string)))
        drawn = Image.open(tmp_path / "run" / "samples" / f"step-{grid.step}.png")
        assert np.array_equal(seen, np.asarray(drawn.convert("RGB")))
    last = events.Histograms("validation/bits_per_dim_of_images")[-1]
    values = ended.validation.per_image
    assert (last.step, last.histogram_value.num) == (12, len(values))
    assert last.histogram_value.sum == pytest.approx(values.sum(), rel=1e-6)
    flow = flow_of()
    flow.load_state_dict(
        {k.removeprefix("ema."): v for k, v in one.items() if k.startswith("ema.")}
    )
    norms = [float(p.detach().norm()) for p in flow.parameters()]
    last = events.Histograms("weights/norms")[-1].histogram_value
    assert last.num == len(norms)
    assert last.sum == pytest.approx(sum(norms), rel=1e-5)


def test_tensorboard_of_a_run_that_resumes_has_each_step_once(tmp_path, monkeypatch):
    config = settings(tensorboard=True)
    with monkeypatch.context() as patch:
        stop_after(patch, 8)
        train(flow_of(), images(), out=tmp_path, config=config, quiet=True)
    train(flow_of(), images(), out=tmp_path, config=config, quiet=True)
    events = events_of(tmp_path)
    assert [point.step for point in events.Scalars("train/bits_per_dim")] == list(range(1, 13))
    assert [point.step for point in events.Scalars("validation/bits_per_dim")] == [4, 8, 12]
    assert [grid.step for grid in events.Images("samples")] == [4, 8, 12]


def test_the_search_of_the_page_prunes_and_finds(monkeypatch):
    """docs/search.md, word for word but for the steps, the trials and the pruner."""
    optuna = pytest.importorskip("optuna")
    optuna.logging.set_verbosity(optuna.logging.ERROR)

    class FromTheThird(optuna.pruners.BasePruner):
        def prune(self, study, trial):
            return trial.number >= 2 and trial.last_step >= 2

    page = (DOCS / "search.md").read_text()
    code = re.search(r"```python\n(.*?)```", page, re.S)[1]
    for old, new in [
        ("steps=200", "steps=4, batch=32, initial=64, evaluate_every=2, evaluate_images=16"),
        ("n_trials=20", "n_trials=3"),
        ("optuna.pruners.MedianPruner(n_startup_trials=3)", "PRUNER"),
        ('load("fashion-mini").train', 'load("fashion-mini").train.first(400)'),
    ]:
        assert old in code
        code = code.replace(old, new)
    found = {"PRUNER": FromTheThird()}
    exec(code, found)
    one, two, pruned = found["study"].trials
    complete, stopped = optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED
    assert (one.state, two.state, pruned.state) == (complete, complete, stopped)
    assert list(one.intermediate_values) == [2, 4]
    assert list(pruned.intermediate_values) == [2]
    assert one.value == one.intermediate_values[4]
