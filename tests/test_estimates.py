"""Estimated densities: their means are the exact figures, and each says how far it may be off."""

import json
import math
import re
import shutil

import numpy as np
import pytest
import torch

from helpers import images, settings, together
from mixerflow.cli import main
from mixerflow.core import Chain, Flow, Noise
from mixerflow.detection import note_of
from mixerflow.errors import ConfigError
from mixerflow.evaluate import Draws, Estimates, bits, exact_cost, kind_of, probes_of
from mixerflow.experiments.column_tables import estimates_text
from mixerflow.nets import LipschitzMLP, Velocity
from mixerflow.recipes import build
from mixerflow.runs import RunFolder
from mixerflow.runs.evaluations import KeptDraws
from mixerflow.training import loop, train
from mixerflow.transforms import Continuous, Dequantize, Rescale, Reshape, Residual
from mixerflow.transforms.checks import perturb
from mixers import mixer

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")

TINY, SMALL, COLOUR = (1, 2, 2), (1, 4, 4), (3, 4, 4)


def of_images(transforms, shape, size=1.0):
    """A flow of vector transforms over flattened images, its weights away from the start."""
    chain = Chain(Dequantize(), Rescale(1 / 64), Reshape(shape, (math.prod(shape),)), *transforms)
    flow = Flow(chain, shape, levels=256).double()
    perturb(flow, size=size)
    return flow.eval()


def residual(shape=SMALL, kind=Residual):
    """Jacobians are nearly ``W^T D W``, whose powers have traces that do not cancel."""
    n = math.prod(shape)
    net = LipschitzMLP(n, n, width=n, depth=1)
    flow = of_images([kind(net, log_det="unbiased")], shape)
    enter, leave = (each.weight.data for each in net.linears)
    leave += 2 * enter.T
    return flow


def continuous(shape=TINY):
    n = math.prod(shape)
    settings = {"trace": "hutchinson", "tolerance": 1e-5, "train_tolerance": None}
    return of_images([Continuous(Velocity(n, width=8), **settings)], shape)


def small(count, shape=SMALL):
    return np.random.default_rng(count).integers(0, 256, (count, *shape), np.uint8)


class Misweighted(Residual):
    """Gives the first term of the series, ``v^T J v``, the weight 1/2 in place of 1."""

    def forward(self, x, context=None, noise=None):
        z, log_det = super().forward(x, context, noise)
        if self.density == "exact":
            return z, log_det
        signs = torch.where(noise.uniform(x, noise.probing(999)) < 0.5, -1.0, 1.0).to(x)
        pulled = torch.func.vjp(self.net, x)[1](signs)[0]
        return z, log_det - 0.5 * (pulled * signs).sum(1)


def errors_off(flow, images, probes, training):
    """By how many standard errors the mean log-det of each image is off, at the same real image."""
    pixels = torch.from_numpy(images)
    real = flow.continuous().train(training)
    y = pixels + Noise.of(0, pixels).uniform(pixels.double(), 0)
    wanted = real.exact()(y).log_det
    numbers = torch.arange(len(y) * probes)
    with torch.no_grad():
        got = real(y.repeat_interleave(probes, 0), None, Noise(0, numbers)).log_det
    got = got.view(len(y), probes)
    assert got.std(1).min() > 1e-3, "there is something to estimate"
    return ((got.mean(1) - wanted) / (got.std(1) * probes**-0.5)).detach().abs()


DRAWS = pytest.mark.parametrize("probes", [1000, pytest.param(10_000, marks=pytest.mark.slow)])


@DRAWS
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("shape", [SMALL, COLOUR])
def test_many_residual_estimates_come_to_the_exact_log_det(shape, training, probes):
    flow = residual(shape)
    assert flow.density == "estimate" and flow.exact().density == "exact"
    assert errors_off(flow, small(2, shape), probes, training).max() < 3


@DRAWS
@pytest.mark.parametrize("training", [False, True])
def test_so_do_those_of_a_continuous_flow(probes, training):
    assert errors_off(continuous(), small(2, TINY), probes, training).max() < 3


@pytest.mark.parametrize("training", [False, True])
def test_a_wrong_weight_in_the_series_is_seen(training):
    assert errors_off(residual(kind=Misweighted), small(2), 1000, training).min() > 6


FEW = [(residual, 20), (continuous, 10)]


@pytest.mark.parametrize(("make", "probes"), FEW)
def test_the_mean_figure_is_that_of_exact_log_dets(make, probes):
    """With the same dequantisation; the error that the figure tells of itself is the right one."""
    flow = make()
    x = small(8, flow.shape)
    exact = bits(flow.exact(), x)
    figure = bits(flow, x, probes=probes)
    off = figure.bits_per_dim - exact.bits_per_dim
    assert 0 < abs(off) < 3 * figure.estimator_error < 0.1
    assert exact.probes is None and exact.density == "exact"
    assert "estimator_error" not in exact.as_dict()


def test_a_wrong_weight_is_seen_in_the_figure_too():
    flow, x = residual(kind=Misweighted), small(8)
    figure = bits(flow, x, probes=20)
    off = figure.bits_per_dim - bits(flow.exact(), x).bits_per_dim
    assert abs(off) > 6 * figure.estimator_error


def test_the_error_is_that_between_figures_of_other_probes():
    """Forty figures of one probe each: their spread is what two probes tell."""
    flow, x, unit = residual(), small(40), 16 * math.log(2)
    keys = Noise.of(0, torch.from_numpy(x)).keys
    with torch.no_grad():
        nats = torch.stack(
            [flow.log_prob(torch.from_numpy(x), noise=Noise(0, keys, probe=r)) for r in range(40)]
        )
    means = (-nats / unit).mean(1)
    two = bits(flow, x)
    assert two.probes == 2
    np.testing.assert_allclose(two.per_image, -nats[:2].mean(0) / unit, rtol=1e-12)
    wanted = math.sqrt((nats[:2] / unit).var(0).sum() / 2) / 40
    assert two.estimator_error == pytest.approx(wanted, rel=1e-9)
    # both are known to sqrt(2 / 40) / 2, or 11 %
    assert two.estimator_error == pytest.approx((means.std() / 2**0.5).item(), rel=0.4)
    assert two.estimator_error < two.standard_error


def test_a_figure_says_that_it_is_an_estimate():
    flow, x = residual(), small(6)
    one, two = bits(flow, x, probes=1), bits(flow, x)
    kind = "estimated density, uniform dequantisation, single-sample"
    assert one.kind == two.kind == kind, "their expectations are equal"
    error = f"{two.estimator_error:.2g}"
    assert str(two).endswith(f"({kind}; estimate ± {error} by 2 probes)")
    assert str(one).endswith(f"({kind}; estimate by 1 probe)")
    record = json.loads(json.dumps(one.as_dict(), allow_nan=False))
    assert (record["probes"], record["estimator_error"]) == (1, None)
    assert probes_of(record) == "estimate by 1 probe"
    old = {"density": "estimate", "dequantization": "uniform", "importance_samples": 1}
    assert kind_of(old) == kind and probes_of(old) == "estimate by 1 probe"
    assert probes_of(old | {"density": "exact"}) == ""


def test_what_means_nothing_is_refused():
    flow, x = residual(), small(2)
    with pytest.raises(ConfigError, match="overstate"):
        bits(flow, x, importance_samples=2)
    with pytest.raises(ConfigError, match="0 probes an image: probes: give at least 1"):
        bits(flow, x, probes=0)
    with pytest.raises(ConfigError, match="no log-det of this flow is an estimate: probes: leave"):
        bits(flow.exact(), x, probes=2)
    with pytest.raises(ValueError, match=r"draws is Draws.*estimate: give Estimates"):
        bits(flow, x, draws=Draws.none(2))


def shared(processes, flow, x):
    figure = bits(flow, x, probes=3, batch=2, processes=processes)
    return figure.per_image, figure.estimator_error


def test_neither_batch_nor_order_nor_processes_change_an_estimate():
    flow, x = residual(), small(7)
    wanted = bits(flow, x, probes=3)
    order = np.random.default_rng(0).permutation(7)
    other = bits(flow, x[order], probes=3, batch=3)
    np.testing.assert_allclose(other.per_image, wanted.per_image[order], rtol=1e-12)
    for per_image, error in together(2, shared, flow, x):
        np.testing.assert_allclose(per_image, wanted.per_image, rtol=1e-12)
        assert error == pytest.approx(wanted.estimator_error, rel=1e-9)


def test_probes_go_on_where_an_evaluation_stopped(tmp_path):
    flow, x, done = residual(), small(9), []

    class Stop(Exception):
        pass

    def stopping(count):
        done.append(count)
        if sum(done) == 3 * 4 + 4 + 4:
            raise Stop

    def kept(probes):
        return KeptDraws(tmp_path, {"key": 1}, 9, probes, kind=Estimates)

    begun = kept(3)
    with pytest.raises(Stop):
        bits(flow, x, probes=3, batch=4, draws=begun.draws, on_batch=stopping)
    begun.save()
    goes_on, rest = kept(5), []
    figure = bits(flow, x, probes=5, batch=2, draws=goes_on.draws, on_batch=rest.append)
    assert sum(done) + sum(rest) == 45
    whole = bits(flow, x, probes=5)
    np.testing.assert_allclose(figure.per_image, whole.per_image, rtol=1e-12)
    assert figure.estimator_error == pytest.approx(whole.estimator_error, rel=1e-9)


def test_what_exact_log_dets_cost_is_known_before():
    """Rows of an image count by their own length, not by the image's."""
    x = torch.from_numpy(small(1, COLOUR))
    flow = residual(COLOUR)
    cost = exact_cost(flow, x)
    assert cost.numbers == 48
    assert cost.bytes == 48 * (3 * 48 + 4 * 48) * 8
    hooks = [module._forward_pre_hooks for module in flow.modules()]
    assert not any(hooks)
    settings = {"layers": 1, "patch": 2, "hidden": 8, "shift": 0, "norm": "none"}
    rows = exact_cost(build(mixer(**settings, flow="residual", log_det="unbiased"), COLOUR), x)
    assert rows.numbers == 12 and 1 < rows.batch
    assert exact_cost(flow.exact(), x).numbers == 0


WORDS = ["--model.layers", "1", "--model.flow.net.width", "8", "--model.flow-layers", "1"]
WORDS += ["--threads", "1", "--model.patching.size", "2"]
ESTIMATED = ["--model.flow", "residual", "--model.flow.log-det", "unbiased"]


def run(*arguments):
    return main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A run of four steps, made once, of images with a test part."""
    where = tmp_path_factory.mktemp("estimated")
    train, test = (np.moveaxis(small(count), 1, -1) for count in (40, 12))
    np.savez(where / "noise.npz", train_images=train, test_images=test)
    words = ["train", "mixerflow-tiny", "--data", where / "noise.npz", *WORDS, *ESTIMATED]
    assert run(*words, "--steps", 4, "--train.batch", 8, "--out", where / "run") == 0
    return where / "run"


@pytest.fixture
def trained(first, tmp_path):
    return shutil.copytree(first, tmp_path / "run")


def evaluated(trained, capsys, *words):
    capsys.readouterr()
    assert run("evaluate", trained, "--no-codecs", *words, "--json") == 0
    return json.loads(capsys.readouterr().out)


def test_the_command_tells_the_error_of_its_estimate(trained, capsys):
    two = evaluated(trained, capsys)
    assert two["probes"] == 2 and two["density"] == "estimate"
    assert 0 < two["estimator_error"] < two["standard_error"]
    many = evaluated(trained, capsys, "--probes", 20)
    exact = evaluated(trained, capsys, "--exact")
    assert exact["density"] == "exact" and "probes" not in exact
    off = abs(many["bits_per_dim"] - exact["bits_per_dim"])
    assert off < 3 * many["estimator_error"]
    assert many["estimator_error"] < 0.5 * two["estimator_error"]
    names = {p.name for p in (trained / "evaluations").glob("*.json")}
    stem = "npz-noise-npz-test"
    assert names == {f"{stem}.json", f"{stem}-20-probes.json", f"{stem}-exact.json"}
    assert run("evaluate", trained, "--no-codecs") == 0
    told = capsys.readouterr().out
    error = f"{two['estimator_error']:.2g}"
    assert "12 images; estimated density, uniform dequantisation\n" in told
    rows = {line.split("  ")[1]: line.split() for line in told.splitlines() if line[:2] == "  "}
    assert rows["± probes"][-1] == error
    assert f"estimate ± {error} by 2 probes an image: ± probes is the error of the" in told
    assert run("evaluate", trained, "--no-codecs", "--probes", 1) == 0
    told = capsys.readouterr().out
    assert "± probes" not in told and "estimate by 1 probe: its own error is not known" in told


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--exact", "--probes", "2"], "exact log-dets have no probes: --probes: leave it or"),
        (["--probes", "0"], "0 probes an image: --probes: give at least 1"),
        (["--importance-samples", "2"], "--importance-samples: use 1, or a model with"),
    ],
)
def test_the_command_refuses_in_one_line(trained, capsys, words, message):
    capsys.readouterr()
    assert run("evaluate", trained, "--no-codecs", *words) == 2
    said = capsys.readouterr()
    *images, error = said.err.splitlines()
    assert said.out == "" and message in error
    assert len(images) < 2 and not list((trained / "evaluations").glob("*"))


def test_exact_log_dets_of_large_events_are_refused(trained, capsys, monkeypatch):
    monkeypatch.setattr("mixerflow.evaluate.exact.LARGEST", 3)
    assert run("evaluate", trained, "--no-codecs", "--exact") == 2
    said = capsys.readouterr().err
    assert "exact log-dets of 4 numbers" in said and "for at most 3: raise --probes" in said


def test_a_batch_that_memory_does_not_hold_is_cut(trained, capsys, monkeypatch):
    whole = evaluated(trained, capsys, "--exact")
    monkeypatch.setattr("mixerflow.evaluate.exact._MEMORY", 3 * 2**10)
    capsys.readouterr()
    assert run("evaluate", trained, "--no-codecs", "--exact", "--seed", 0) == 0
    said = capsys.readouterr().err
    assert "--exact: 1 image at a time, for the memory" in said
    again = json.loads((trained / "evaluations" / "npz-noise-npz-test-exact.json").read_text())
    assert again["bits_per_dim"] == pytest.approx(whole["bits_per_dim"], abs=1e-6)


def test_training_says_that_its_figures_are_estimates(trained):
    records = RunFolder(trained).read_metrics()
    assert {record["density"] for record in records} == {"estimate"}
    page = (trained / "report.html").read_text()
    assert "The curve of training is of unbiased estimates too" in page
    result = json.loads((trained / "run.json").read_text())["result"]
    assert result["probes"] == 1 and result["estimator_error"] is None
    assert "single-sample, estimate by 1 probe" in page


def test_the_bar_of_training_says_estimate():
    shown = []

    class Recorded(loop.ProgressBar):
        def update(self, done, figures):
            shown.append(figures)

    config = settings(steps=2, evaluate_every=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "ProgressBar", Recorded)
        train(of_ramps("unbiased"), images(), config=config, quiet=True)
        train(of_ramps("exact"), images(), config=config, quiet=True)
    names = [re.split(r" (?:\.\.\.|-?\d)", line)[0] for line in shown]
    assert names == ["bits/dim (estimate)"] * 2 + ["bits/dim"] * 2


def of_ramps(log_det):
    mixed = {"layers": 1, "flow_layers": 1, "hidden": 4, "patch": 2, "shift": 0, "norm": "none"}
    return build(mixer(**mixed, flow="residual", log_det=log_det), SMALL)


def test_published_weights_tell_the_error_of_their_estimate(trained, tmp_path):
    words = ["publish", trained, "--to", tmp_path / "weights", "--images", 5, "--threads", 1]
    assert run(*words) == 0
    card = json.loads((tmp_path / "weights" / "card.json").read_text())
    assert card["figure"]["probes"] == 2 and card["figure"]["estimator_error"] > 0
    assert "by 2 probes, noise of seed 0" in (tmp_path / "weights" / "card.md").read_text()


def test_outlier_scores_say_that_they_are_of_estimates():
    assert "estimate by one probe an image" in note_of(residual())
    assert note_of(residual().exact()) == ""


def test_a_table_says_how_far_its_estimates_may_be_off():
    runs = [{"probes": 2, "estimator_error": error} for error in (0.001, 0.002)]
    (text,) = estimates_text({"rows": [{"runs": runs}, {"runs": [{}]}]})
    assert "the mean of 2 probes an image" in text and "at most 0.002 bits/dim" in text
    assert estimates_text({"rows": [{"runs": [{"probes": 1, "estimator_error": None}]}]}) == []
