"""Linear probes: against Bayes, against a plain loop of torch's, and the command and Table 7."""

import json
import math
import os
import signal
import statistics
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from helpers import small_run
from mixerflow.cli import main
from mixerflow.core import Chain, Flow
from mixerflow.errors import ConfigError
from mixerflow.evaluate import (
    Labelled,
    ProbeFigure,
    ProbeSettings,
    ProbeSummary,
    Whitening,
    embed,
    passes_of,
    probe,
)
from mixerflow.evaluate.probe import Heads, Standardised, fit_classifier
from mixerflow.experiments import TABLES, Claim
from mixerflow.experiments.claims import judge
from mixerflow.experiments.column_tables import claims_table, further_tables
from mixerflow.experiments.embeddings import Probing
from mixerflow.transforms import Rescale

SETTINGS = ProbeSettings(decays=(0.0, 1.0), epochs=3, batch=32)


def blobs(count, seed, mean=1.0, size=5):
    """Two Gaussian classes of unit covariance, their means `mean` from 0 on the first axis."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 2, (count,), generator=generator)
    x = torch.randn(count, size, generator=generator)
    x[:, 0] += mean * (2 * labels - 1)
    return Labelled(x, labels)


def test_a_probe_of_gaussian_classes_comes_to_the_figures_of_bayes():
    # p(1 | x) = sigmoid(2 m x_0): accuracy Phi(m); the loss by quadrature
    mean = 1.0
    settings = ProbeSettings(decays=(0.0, 0.1), epochs=30, batch=128, lr=1e-2)
    train, held_out, test = (blobs(n, seed, mean) for n, seed in ((6000, 0), (500, 1), (20000, 2)))
    figure = probe(train, held_out, test, classes=2, settings=settings)
    accuracy = 0.5 * (1 + math.erf(mean / math.sqrt(2)))
    t = np.linspace(-9, 9, 20001)
    weight = np.exp(-((t - mean) ** 2) / 2) / math.sqrt(2 * math.pi)
    loss = np.trapezoid(weight * np.logaddexp(0, -2 * mean * t), t)
    assert figure.accuracy == pytest.approx(accuracy, abs=4 * math.sqrt(0.16 * 0.84 / 20000))
    assert figure.loss == pytest.approx(loss, abs=0.012)
    assert figure.features == 5


@pytest.mark.parametrize("decay", [0.0, 3.0])
def test_a_head_is_what_a_plain_loop_of_adamw_makes(decay):
    train = blobs(100, 0, size=4)
    settings = ProbeSettings(decays=(0.0, 3.0), epochs=4, batch=32, lr=1e-2)
    heads = Heads(4, 2, 2)
    groups = [
        {"params": [weight], "weight_decay": each}
        for weight, each in zip(heads.weights, settings.decays, strict=True)
    ]
    groups.append({"params": list(heads.biases), "weight_decay": 0.0})
    net = nn.Sequential(Standardised(train), heads)
    fit_classifier(net, train, groups, settings, seed=5)

    x = (train.features - train.features.mean(0)) / train.features.std(0, correction=0)
    plain = nn.Linear(4, 2)
    nn.init.zeros_(plain.weight)
    nn.init.zeros_(plain.bias)
    own = [
        {"params": [plain.weight], "weight_decay": decay},
        {"params": [plain.bias], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(own, lr=1e-2)
    generator = torch.Generator().manual_seed(5)
    steps, done = 4 * 4, 0
    for _ in range(4):
        for part in torch.randperm(100, generator=generator).split(32):
            for group in optimizer.param_groups:
                group["lr"] = 1e-2 * 0.5 * (1 + math.cos(math.pi * done / steps))
            optimizer.zero_grad()
            nn.functional.cross_entropy(plain(x[part]), train.labels[part]).backward()
            optimizer.step()
            done += 1
    number = settings.decays.index(decay)
    torch.testing.assert_close(heads.weights[number], plain.weight, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(heads.biases[number], plain.bias, atol=1e-5, rtol=1e-4)
    assert heads.weights[number].abs().max() > 0.01


def test_the_held_out_images_choose_the_decay_and_the_test_images_do_not():
    generator = torch.Generator().manual_seed(0)
    # labels that are noise: the more decay, the better, and the test says the opposite
    train = Labelled(
        torch.randn(60, 40, generator=generator), torch.randint(0, 2, (60,), generator=generator)
    )
    held_out = Labelled(
        torch.randn(400, 40, generator=generator), torch.randint(0, 2, (400,), generator=generator)
    )
    settings = ProbeSettings(decays=(0.0, 1.0, 30.0), epochs=60, batch=32, lr=1e-2)
    for test in (held_out, train):
        figure = probe(train, held_out, test, classes=2, settings=settings)
        assert figure.decay == 30.0 == settings.decays[int(np.argmin(figure.held_out))]
        assert list(figure.held_out) == sorted(figure.held_out, reverse=True)
    assert probe(train, train, held_out, classes=2, settings=settings).decay == 0.0
    alone = replace(settings, decays=(30.0,))
    assert probe(train, held_out, train, classes=2, settings=alone) == replace(
        figure, held_out=pytest.approx(figure.held_out[2:]), loss=pytest.approx(figure.loss)
    )


def test_standardisation_is_by_the_training_images_alone():
    train = blobs(50, 0)
    features = torch.cat([train.features * 100 + 7, torch.full((50, 1), 0.1)], 1)
    features = torch.cat([features, torch.randn(950, 6) * 1e6])
    labels = torch.cat([train.labels, torch.zeros(950, dtype=torch.long)])
    rows = torch.arange(50)
    standard = Standardised(Labelled(features, labels).take(rows))
    z = standard(features[:50])
    torch.testing.assert_close(z.mean(0)[:5], torch.zeros(5), atol=1e-5, rtol=0)
    torch.testing.assert_close(z.std(0, correction=0)[:5], torch.ones(5))
    assert torch.equal(z[:, 5], torch.zeros(50))  # constant, although 0.1 is no exact number
    assert torch.equal(standard(features[50:])[:, 5], torch.zeros(950))

    def figure(test):
        return probe(train, blobs(20, 1), test, classes=2, settings=SETTINGS)

    one, other = blobs(30, 2), blobs(30, 3)
    assert figure(one).held_out == figure(other).held_out
    assert figure(one).loss != figure(other).loss


def test_features_of_any_dtype_are_taken_and_parts_are_not_copied():
    data = blobs(64, 0)
    whole = Labelled((data.features * 20 + 100).clamp(0, 255).to(torch.uint8), data.labels)
    real = Labelled(whole.features.float(), data.labels)
    part = torch.arange(0, 64, 2)
    for each in (whole, real):
        taken = each.take(part)
        assert taken.features is each.features
        assert len(taken) == 32
    copied = Labelled(real.features[part], real.labels[part])
    figures = {
        probe(train, real, real, classes=2, settings=SETTINGS)
        for train in (whole.take(part), real.take(part), copied)
    }
    assert len(figures) == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"decays": ()}, "no decays"),
        ({"epochs": 0}, "epochs"),
        ({"nan": True}, "not all finite"),
        ({"label": 2}, r"labels \d to 2, not in 0..1"),
    ],
)
def test_what_cannot_be_probed_is_a_value_error(change, said):
    data, bad = blobs(40, 0), blobs(40, 1)
    if change.pop("nan", False):
        bad.features[3, 1] = math.nan
    if "label" in change:
        bad.labels[0] = change.pop("label")
    with pytest.raises(ValueError, match=said) as error:
        probe(data, data, bad, classes=2, settings=replace(SETTINGS, **change))
    assert "\n" not in str(error.value)


def test_whitened_features_have_unit_covariance_and_only_directions_that_vary():
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(6, 4, generator=generator)
    x = torch.randn(5000, 4, generator=generator) @ mixing.T * 10 + 50  # rank 4 of 6
    white = Whitening(x)
    z = white(x)
    assert z.shape == (5000, 4)
    torch.testing.assert_close(z.T @ z / 5000, torch.eye(4), atol=1e-3, rtol=0)
    torch.testing.assert_close(z.mean(0), torch.zeros(4), atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="4097 features"):
        Whitening(torch.zeros(2, 4097))


def test_embeddings_are_the_same_whatever_the_batch_and_layers():
    flow = Flow(Chain(*[Rescale(2.0, 1.0)] * 3), (1, 3, 3))
    pixels = np.random.default_rng(0).random((7, 1, 3, 3), np.float32)
    done = []
    found = embed(flow, pixels, [1, 3], batch=3, on_batch=done.append)
    assert done == [3, 3, 1]
    for layer in (1, 3):
        assert torch.equal(found[layer], flow.features(torch.from_numpy(pixels), layer=layer))
    assert list(passes_of(flow, 10, [1, 2, 3])) == [[1, 2, 3]]
    assert list(passes_of(flow, 2**31 // 100, [1, 2, 3])) == [[1, 2], [3]]
    assert list(passes_of(flow, 2**31, [1, 2, 3])) == [[1], [2], [3]]


def test_a_summary_is_the_mean_over_seeds():
    figures = [ProbeFigure(loss, 0.5, decay, (1.0,), 4) for loss, decay in ((1.0, 0.0), (2.0, 1.0))]
    summary = ProbeSummary.of(figures)
    assert (summary.loss, summary.loss_error) == (1.5, pytest.approx(0.5))
    assert (summary.accuracy, summary.accuracy_error) == (0.5, 0.0)
    assert summary.decays == (0.0, 1.0)
    assert ProbeSummary.of(figures[:1]).loss_error is None


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Made images of three classes, told by their brightness, and a run trained on them."""
    where = tmp_path_factory.mktemp("probe")
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 150)
    pixels = rng.integers(0, 60, (150, 8, 8, 1)) + 60 * labels[:, None, None, None]
    pixels = pixels.astype(np.uint8)
    parts = {"train": slice(0, 110), "test": slice(110, 150)}
    arrays = {f"{name}_images": pixels[part] for name, part in parts.items()}
    np.savez(where / "plain.npz", **arrays)
    arrays |= {f"{name}_labels": labels[part] for name, part in parts.items()}
    np.savez(where / "made.npz", **arrays)
    words = ["--train.steps", "2", "--train.batch", "8", "--model.layers", "2", "--threads", "1"]
    out = ["--data", where / "made.npz", "--out", where / "run"]
    assert main(list(map(str, ["train", "mixerflow-tiny", *out, *words]))) == 0
    return where


def command(place, *words):
    return main(["probe", str(place / "run"), "--threads", "1", *map(str, words)])


FAST = ("--epochs", 40, "--seeds", 2)


def test_the_command_prints_keeps_and_draws(place, capsys):
    assert command(place, "--layers", "all", *FAST) == 0
    said = capsys.readouterr().out
    assert "raw pixels" in said
    assert "PCA-whitened" in said
    assert "layer 4" in said
    paths = sorted((place / "run" / "evaluations").glob("probe-*"))
    assert [path.suffix for path in paths] == [".json", ".png"]
    kept = json.loads(paths[0].read_text())
    layers = [row["layer"] for row in kept["rows"]]
    assert layers == [None, None, *range(1, len(layers) - 1)]
    raw = kept["rows"][0]["seeds"]
    assert len(raw) == 2
    assert statistics.fmean(each["accuracy"] for each in raw) > 0.8
    assert kept["rows"][2]["seeds"][0]["accuracy"] == raw[0]["accuracy"]  # + 1/2
    assert {each["features"] for row in kept["rows"][2:] for each in row["seeds"]} == {64}
    assert paths[1].read_bytes().startswith(b"\x89PNG")
    for path in paths:
        path.unlink()


def test_some_layers_and_no_whitening(place, capsys):
    words = ("--layers", "0,-1", "--no-whitened", "--decays", "0.5", "--images", 60, *FAST[:2])
    assert command(place, *words, "--seeds", 1) == 0
    assert "±" not in capsys.readouterr().out.split("accuracy")[1]
    (path,) = (place / "run" / "evaluations").glob("probe-*")
    kept = json.loads(path.read_text())
    assert kept["rows"][0]["features"] == "raw pixels"
    assert len(kept["rows"]) == 2
    assert {each["decay"] for row in kept["rows"] for each in row["seeds"]} == {0.5}
    assert kept["training_images"] == 60


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--data", "plain.npz"], 2, "no classes"),
        (["--layers", "77"], 2, "no layers 77: --layers: give last, all, or numbers from 0"),
        (["--layers", "x"], 2, "no layers x"),
        (["--epochs", "0"], 2, "0 epochs: --epochs: give at least 1"),
        (["--seeds", "0"], 2, "0 seeds"),
        (["--images", "2"], 2, "2 images"),
        (["--decays", "1,x"], 2, "--decays: give numbers"),
        (["--decays=-1"], 2, "--decays: give numbers"),
    ],
)
def test_errors_are_one_line(place, words, code, said, capsys):
    words = [str(place / word) if word.endswith(".npz") else word for word in words]
    assert command(place, *words) == code
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert len(errors) == 1
    assert said in errors[0]


def test_a_conditional_run_is_refused(tmp_path, capsys):
    assert main(["probe", str(small_run(tmp_path))]) == 2
    assert "a conditional flow is given the classes" in capsys.readouterr().err
    flow = Flow(Rescale(2.0), (1, 2, 2), context_net=nn.Embedding(2, 3))
    with pytest.raises(ConfigError, match="given the classes"):
        embed(flow, np.zeros((1, 1, 2, 2), np.float32), [1])


def test_a_signal_ends_it_with_what_is_done(place, monkeypatch, capsys):
    calls = []

    def stop(*_):
        calls.append(1)
        if len(calls) == 100:  # the raw pixels are done
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("mixerflow.cli.probe.ProgressBar.update", stop)
    assert command(place, *FAST) == 143
    told = capsys.readouterr()
    assert "stopped after" in told.err
    assert "raw pixels" in told.out
    assert "whitened" not in told.out


def rows_of(**values):
    """Rows whose further figure `accuracy` has these values for seeds 0, 1, 2."""
    same = {"training_sha256": "a", "images_sha256": "b", "curve": [[1, 2.0]], "curve_images": [4]}
    made = []
    for name, each in values.items():
        runs = [
            {"seed": seed, "further": value and {"figures": {"accuracy": value}}, **same}
            for seed, value in enumerate(each)
        ]
        paper = {"mean": None, "standard_error": None, "seeds": 3, "paper": 40.0 + len(name)}
        row = {"row": name, "label": name, "runs": runs, "paper": {"bits_per_dim": None}}
        made.append(row | {"further": {"accuracy": paper, "loss": paper}})
    return made


def test_a_claim_about_a_figure_whose_higher_values_are_better():
    claims = (
        Claim("mixer", "nsf", "better", figure="accuracy"),
        Claim("nsf", "mixer", "the other way", figure="accuracy"),
        Claim("mixer", "pixels", "better than pixels", figure="accuracy"),
        Claim("mixer", "nsf", "no such figures", figure="loss"),
    )
    table = replace(TABLES["table-7"], claims=claims)
    column = {
        "column": "cifar10",
        "minutes": 4.0,
        "rows": rows_of(mixer=[45.0, 45.2, None], nsf=[41.0, 41.3, 41.0]),
        "references": rows_of(pixels=[45.0, 45.3, 45.0]),
        "figures": [{"name": "accuracy", "label": "accuracy, %", "better": "higher", "digits": 2}],
        "about": "",
    }
    column["figures"].append({"name": "loss", "label": "loss", "better": "lower", "digits": 3})
    judge(table, [column])
    first, second, third, fourth = column["claims"]
    assert first["difference"] == pytest.approx((4.0 + 3.9) / 2)
    assert (first["verdict"], first["seeds"]) == ("holds", 2)
    assert first["paper_difference"] == pytest.approx(2.0)  # 45 for mixer, 43 for nsf
    assert second["verdict"] == "fails"
    assert second["difference"] == -first["difference"]
    assert third["verdict"] == "undecided"
    assert third["difference"] == pytest.approx(-0.05)
    assert fourth["difference"] is None
    assert "at_equal_steps" not in first
    head, cells = claims_table(column)
    assert cells[0][:4] == ["better, accuracy, %", "mixer > nsf", "+2.00", "+3.95 ± 0.64"]
    assert cells[3][1] == "mixer < nsf"
    assert {len(row) for row in cells} == {len(head)}
    (_, (head, cells)), *_ = further_tables(column)
    assert [row[0] for row in cells] == ["pixels", "mixer", "nsf"]
    assert {len(row) for row in cells} == {len(head)}


def test_table_7_on_made_images(place, tmp_path, monkeypatch, capsys):
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 3, 90)
    pixels = (rng.integers(0, 60, (90, 8, 8, 3)) + 60 * labels[:, None, None, None]).astype("uint8")
    arrays = {"train_images": pixels[:60], "test_images": pixels[60:]}
    np.savez(tmp_path / "plain.npz", **arrays)
    arrays |= {"train_labels": labels[:60], "test_labels": labels[60:]}
    np.savez(tmp_path / "made.npz", **arrays)
    monkeypatch.chdir(tmp_path)
    words = ["reproduce", "table-7", "--budget", "tiny", "--seeds", "1", "--threads", "1"]
    assert main([*words, "--data", "plain.npz", "--rows", "mixer"]) == 2
    assert "no classes" in capsys.readouterr().err
    assert not Path("runs/table-7/tiny/mixer").exists()

    words += ["--data", "made.npz", "--rows", "mixer"]
    assert main(words) == 0
    out = Path("results/table-7")
    assert (out / "tiny-depth.png").exists()
    kept = json.loads((out / "tiny.json").read_text())["columns"][0]
    assert kept["pictures"] == ["tiny-depth.png"]
    (run,) = kept["rows"][0]["runs"]
    assert run["further"]["features"] == 192
    assert run["further"]["images"] == 30  # all test images, where bits/dim are of 20
    assert run["images"] == 20
    depths = run["further"]["depths"]
    assert str(run["further"]["layers"]) in depths
    assert depths[str(run["further"]["layers"])]["figures"] == run["further"]["figures"]
    pixel, white = kept["references"]
    assert pixel["runs"][0]["further"]["features"] == 192
    assert white["runs"][0]["further"]["features"] <= 57
    assert kept["rows"][0]["further"]["accuracy"]["paper"] == 45.11
    text = (out / "tiny.md").read_text()
    assert "Raw pixels" in text
    assert "45.11" in text
    assert "Raw pixels" in Path("results/report.html").read_text()

    def never(*_, **__):
        raise AssertionError("measured again")

    monkeypatch.setattr("mixerflow.experiments.embeddings.probe", never)
    assert main(words) == 0  # all is kept
    monkeypatch.setattr(Probing, "settings", lambda self, budget: {"another": 1})
    capsys.readouterr()
    assert main(words) != 0  # other settings are another figure
    assert "measured again" in capsys.readouterr().err
