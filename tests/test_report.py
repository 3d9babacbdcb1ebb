"""Pages of a run and of outliers: their figures are those computed, for images of any kind."""

import base64
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

from helpers import MODEL, flow_of, images, settings, small_run
from mixerflow import pictures
from mixerflow.cli import main
from mixerflow.cli.report import images_of
from mixerflow.data import Splits, hold_out, make_images
from mixerflow.detection import Outliers, compare_sets, fit_outliers, measure, scores_named
from mixerflow.evaluate import DrawnPixels, bits
from mixerflow.evaluate.codecs import coded_as_seen, coded_in_seconds, sample_of
from mixerflow.parts import Classes
from mixerflow.plots import histogram
from mixerflow.recipes import build
from mixerflow.report import make_outliers_page, make_report
from mixerflow.report.shown import planes
from mixerflow.runs import InsideFit, RunFolder, keep_fit, load, own_parts, read_weights
from mixerflow.training import train
from mixers import mixer

TEST = images(n=40, seed=5)
ONE_PIXEL = pictures.png_bytes(np.zeros((1, 1, 1), np.uint8))


class Page(HTMLParser):
    """What a page shows: text, tables as rows of cells, pictures with their words, and links."""

    def __init__(self, html):
        super().__init__()
        self.html, self.text, self.tags = html, "", []
        self.rows, self.images, self.links, self.ids = [], [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.tags.append((tag, given))
        self.ids += [given["id"]] if "id" in given else []
        if tag == "img":
            self.images.append(given)
        if tag == "a":
            self.links.append(given["href"])
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data):
        self.text += data
        if self.tags and self.tags[-1][0] in ("td", "th") and self.rows:
            self.rows[-1][-1] += data.strip("\n")

    def row(self, name):
        """The first row of this name."""
        return next(row for row in self.rows if row and row[0] == name)


def page_of(report, tmp_path):
    return Page(report.write(tmp_path / "page.html").read_text())


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("trained") / "run"
    train(flow_of(), images(n=60), out=out, config=settings(), quiet=True)
    return out


def well_formed(page):
    """Pictures have words, links lead to places of their own, and wide tables scroll by keys."""
    assert all(each["alt"].strip() for each in page.images) and page.images
    assert all(each["src"].startswith("data:image/png;base64,") for each in page.images)
    assert page.links and all(link.removeprefix("#") in page.ids for link in page.links)
    assert len({*page.ids}) == len(page.ids)
    frames = [given for tag, given in page.tags if given.get("role") == "region"]
    assert len(frames) == sum(tag == "table" for tag, _ in page.tags)
    assert all(frame["tabindex"] == "0" and frame["aria-label"] for frame in frames)
    viewport = [given for tag, given in page.tags if given.get("name") == "viewport"]
    assert viewport[0]["content"].startswith("width=device-width")
    assert not {"script", "link", "iframe"} & {tag for tag, _ in page.tags}


def test_the_codecs_and_the_flow_are_of_the_same_images(run, tmp_path):
    report = make_report(run, TEST, code=lambda *given: coded_as_seen(*given, count=9))
    page = page_of(report, tmp_path)
    well_formed(page)
    sample = TEST.pixels[sample_of(TEST, 9)]
    own = bits(load(run), sample).per_image  # an image's noise is its own
    error = own.std(ddof=1) / 3
    length = own.mean() * 16 / 8
    words = [f"{own.mean():.3f}", f"{error:.3f}", f"{length:,.1f}"]
    assert page.row("the flow, ideal")[1:] == words
    for codec in ("png", "webp"):
        for sheet, name in ((False, "a file an image"), (True, "one sheet")):
            figure = pictures.codec_bits(sample, codec, sheet=sheet)
            row = page.row(f"{codec}, {name}")
            assert (row[1], row[3]) == (f"{figure:.3f}", f"{figure * 2:,.1f}")
    assert "Of 9 of the page's 40 images." in page.text


def test_samples_outside_the_levels_are_counted(run, tmp_path):
    flow, page = load(run), page_of(make_report(run, TEST), tmp_path)
    for temperature in (0.7, 1.0):
        generator = torch.Generator().manual_seed(1)
        drawn = flow.draw(64, temperature=temperature, generator=generator)
        share = f"{100 * drawn.clamped / 1024:.2g} % ({drawn.clamped:,} of 1,024)"
        words = f"Before clamping, {share} of the sampled values lay outside the levels 0 to 255"
        assert f"{words}; all are finite." in page.text
        setting = page.row(f"samples at {temperature:g}")
        assert setting[1] == f"clamped {share}, not finite 0 % (0 of 1,024)"
    assert drawn.clamped > 0, "a flow of few steps draws values outside"


def test_what_is_not_finite_is_told(run, tmp_path, monkeypatch):
    def broken(flow, n, **settings):
        drawn = flow.draw(n, generator=torch.Generator().manual_seed(0))
        nonfinite = np.zeros(n, int)
        nonfinite[[2, 5]] = 3, 1
        pixels = drawn.images.numpy()
        return DrawnPixels(pixels, 7, nonfinite, pixels.size)

    monkeypatch.setattr("mixerflow.report.run.draw_pixels", broken)
    page = page_of(make_report(run, TEST), tmp_path)
    assert "0.39 % (4 of 1,024), in 2 of 64 images, are not finite" in page.text
    assert page.row("samples at 1")[1].endswith("not finite 0.39 % (4 of 1,024)")


def test_test_images_stand_beside_those_of_training(run, tmp_path):
    metadata, trained = RunFolder(run).read_started(), images(n=60)
    splits = Splits(trained, TEST)
    chosen, parts = images_of(metadata, splits)
    training, validation = hold_out(trained, seed=settings().seed)
    assert chosen is TEST and parts["test"] is TEST
    assert np.array_equal(parts["training"].pixels, training.pixels)
    page = page_of(make_report(run, chosen, parts), tmp_path)
    flow = load(run)
    medians = [np.median(bits(flow, each).per_image) for each in (TEST, training)]
    words = f"test images {medians[0]:.4g}, training images {medians[1]:.4g}"
    assert f"Medians, the broken lines: {words}." in page.text
    assert f"40 test images and {len(training)} training images" in page.text

    chosen, parts = images_of(metadata, Splits(trained, None))
    assert chosen is trained and [*parts] == ["validation", "training"]
    assert np.array_equal(parts["validation"].pixels, validation.pixels)


def test_images_of_others_are_not_taken_for_the_runs_own(run):
    metadata = RunFolder(run).read_started()
    other = images(n=60, seed=9)
    assert own_parts(metadata, Splits(other, None)) == {}
    assert images_of(metadata, Splits(other, None))[1] == {"": other}
    assert [*images_of(metadata, Splits(other, TEST))[1]] == ["test"]
    training, validation = hold_out(images(n=60), seed=settings().seed)
    found = own_parts(metadata, Splits(training, None, validation))
    assert found == {"training": training, "validation": validation}
    assert own_parts({"data": {}}, Splits(other, None)) == {}


def test_of_many_images_a_sample_is_shown_and_it_is_the_same_each_time(run):
    many = images(n=40, seed=5)
    first, second = (make_report(run, many, most=8).figure for _ in range(2))
    assert first.images == 8 and np.array_equal(first.per_image, second.per_image)
    places = np.sort(sample_of(many, 8))
    assert np.array_equal(first.per_image, bits(load(run), many.pixels[places]).per_image)


def test_a_histogram_says_what_it_does_not_show():
    rng = np.random.default_rng(0)
    near = rng.normal(0, 1, 400)
    told = histogram({"a": np.append(near, [np.nan, np.inf, 1e6])}, label="x")
    assert (told.beyond, told.nonfinite) == (1, 2)
    assert told.medians == {"a": np.median(np.append(near, 1e6))}
    assert "1 value is beyond the plot. 2 values are not finite." in str(told)
    assert histogram({"a": near}, label="x", threshold=50.0).beyond == 0
    far = {"a": near, "b": rng.uniform(0, 1000, 400)}
    wide, close = histogram(far, label="x"), histogram(far, label="x", around="a")
    assert wide.beyond == 0
    least, most = np.quantile(near, (0.05, 0.95))
    assert close.beyond == (far["b"] > least + 9 * (most - least)).sum() > 300
    for few in ([], [3.0], [np.nan]):
        assert histogram({"a": np.array(few)}, label="x").png.startswith(b"\x89PNG")


KINDS = {
    "grey": ((1, 4, 4), np.uint8),
    "colour": ((3, 4, 6), np.uint8),
    "deep": ((1, 4, 4), np.uint16),
    "volumes": ((1, 4, 2, 2), np.uint8),
    "sequences": ((1, 8), np.uint8),
    "floats": ((2, 4, 4), np.float32),
    "volumes of floats": ((1, 4, 2, 2), np.float32),
}


@pytest.mark.parametrize("kind", KINDS)
def test_images_of_any_kind_have_a_page(kind, tmp_path):
    shape, dtype = KINDS[kind]
    rng = np.random.default_rng(0)
    top = {np.uint8: 256, np.uint16: 65536, np.float32: 3}[dtype]
    pixels = (top * rng.random((30, *shape))).astype(dtype)
    given = make_images(pixels, None, dataset_id="drawn")
    torch.manual_seed(0)
    model = mixer(layers=1, flow_layers=2, hidden=8, patch=2, shift=0, levels=given.levels)
    out = tmp_path / "run"
    train(build(model, shape), given, out=out, config=settings(steps=3), quiet=True)
    page = page_of(make_report(out, given, code=coded_in_seconds), tmp_path)
    well_formed(page)
    coded = [row[0] for row in page.rows if row and row[0].endswith(("image", "sheet"))]
    codecs = {"grey": 4, "colour": 4, "deep": 2}.get(kind, 0)
    assert len([each for each in coded if each.startswith(("png", "webp"))]) == codecs
    wanted = {2: "webp: no files", 0: "png and webp: no files"}.get(codecs)
    assert wanted is None or f"{wanted} of images with {shape[0]} channel" in page.text
    real = "The values are real numbers: none is clamped; all are finite."
    assert (real in page.text) == (dtype == np.float32)
    assert ("the largest difference is" in page.text) == (dtype == np.float32)


def test_a_volume_is_shown_by_its_middle_plane_and_a_sequence_by_a_bar():
    volumes = np.arange(2 * 4 * 3 * 5).reshape(2, 1, 4, 3, 5)
    assert np.array_equal(planes(volumes), volumes[:, :, 2])
    bars = planes(np.arange(32).reshape(1, 1, 32))
    assert bars.shape == (1, 1, 4, 32) and (bars[0, 0] == np.arange(32)).all()


def test_one_image_has_a_page(run, tmp_path):
    report = make_report(run, TEST.first(1), code=coded_in_seconds)
    page = page_of(report, tmp_path)
    well_formed(page)
    assert page.row("the flow, ideal")[2] == ""
    assert "Of 1 of the page's 1 image." in page.text


def test_names_are_text_and_no_markup(run, tmp_path):
    name = "<script>alert('x')</script> & \"y\""
    pixels = images(n=60).pixels
    given = make_images(pixels, np.arange(60) % 2, dataset_id=name, classes=("<b>a", "'c'"))
    page = page_of(make_report(run, given, {name: given}, code=coded_in_seconds), tmp_path)
    well_formed(page)
    assert "<script>" not in page.html and name in page.text
    flow = load(run)
    fitted = fit_outliers(flow, pixels)
    found = Outliers.of(measure(flow, pixels), fitted)
    settings = {
        "title": name,
        "by": "bits",
        "inside": measure(flow, pixels),
        "maps": [(name, ONE_PIXEL)],
        "origin": {"dataset_id": name, "split": name},
        "weights": name,
    }
    out = make_outliers_page(tmp_path / "o.html", flow, given, found, **settings)
    page = Page(out.read_text())
    well_formed(page)
    assert "<script>" not in page.html and "<b>a" not in page.html
    assert page.text.count("<b>a") > 2 and name in page.text


def test_a_run_without_any_validation_has_a_page(tmp_path):
    out = small_run(tmp_path)
    (out / "metrics.jsonl").unlink(missing_ok=True)
    assert main(["report", str(out), "--out", str(tmp_path / "page.html")]) == 0
    page = Page((tmp_path / "page.html").read_text())
    well_formed(page)
    assert "12 images:" in page.text
    assert "No validation figure yet" in page.images[0]["alt"]


def test_flags_of_codecs(tmp_path, capsys):
    out = small_run(tmp_path)
    for words, told in (
        (["--codec-images", "-1"], "-1 images"),
        (["--no-codecs", "--codec-images", "3"], "nothing is compressed"),
    ):
        assert main(["report", str(out), *words]) == 2
        assert told in capsys.readouterr().err
    assert main(["report", str(out), "--codec-images", "5"]) == 0
    page = Page((out / "report.html").read_text())
    assert "Of 5 of the page's 12 images" in page.text
    assert main(["report", str(out), "--no-codecs"]) == 0
    assert "Lossless codecs" not in (out / "report.html").read_text()


# --- outliers


def strange(count=30):
    rng = np.random.default_rng(3)
    return rng.integers(0, 256, (count, 1, 4, 4)).astype(np.uint8)


@pytest.fixture(scope="module")
def fit(run):
    flow, inside = load(run), images(n=80, seed=7)
    fitted = fit_outliers(flow, inside.pixels, group=5)
    return flow, fitted, measure(flow, inside.pixels)


def test_the_page_of_outliers_has_the_figures(fit, tmp_path):
    flow, fitted, inside = fit
    pixels = np.concatenate([images(n=20, seed=8).pixels, strange()])
    labels = np.repeat([0, 1], (20, 30))
    given = make_images(pixels, labels, dataset_id="mixed", classes=("ramps", "noise"))
    found = Outliers.of(measure(flow, pixels), fitted)
    compared = compare_sets(inside, found.measured.take(np.arange(20, 50)), fitted)
    out = make_outliers_page(
        tmp_path / "o.html",
        flow,
        given,
        found,
        title="a run",
        by="complexity",
        inside=inside,
        compared=compared,
        maps=[("where", ONE_PIXEL)],
    )
    page = Page(out.read_text())
    well_formed(page)
    beyond = page.row("bits")
    wrong = int((found.scores["bits"] > fitted.threshold("bits").value).sum())
    assert beyond[1:3] == [
        f"{fitted.threshold('bits').value:.4g}",
        f"{wrong} of 50 ({2 * wrong} %)",
    ]
    assert 25 <= wrong < 50
    order = np.argsort(-found.scores["complexity"])
    heads = [n for n, row in enumerate(page.rows) if row[0] == "image"]
    for head, places in zip(heads, (order[:16], order[::-1][:16]), strict=True):
        rows = page.rows[head + 1 : head + 17]
        assert [int(row[0]) for row in rows] == places.tolist()
        assert [row[1] for row in rows] == [("ramps", "noise")[labels[n]] for n in places]
        scores = [found.scores["complexity"][n] for n in places]
        column = page.rows[head].index("complexity")
        assert [float(row[column].split()[0]) for row in rows] == pytest.approx(scores, rel=1e-3)
    told = compared["typicality"]
    words = [
        f"{told.auroc:.3f} ± {told.auroc_error:.3f}",
        f"{told.aupr:.3f} ± {told.aupr_error:.3f}",
    ]
    assert [row for row in page.rows if row[0] == "typicality" and row[1:3] == words]
    shares = [100 * found.flags("bits")[labels == n].mean() for n in (0, 1)]
    assert page.row("ramps")[1:3] == ["20", f"{shares[0]:.3g} %"]
    assert page.row("noise")[1:3] == ["30", f"{shares[1]:.3g} %"]
    for score, threshold in zip(fitted.scores, fitted.thresholds, strict=True):
        assert f"{score.name}, {threshold}." in page.text
        assert [score.name, score.equation, score.source] in page.rows
    assert "arXiv:1810.09136" in page.text and "A larger score is more outlying." in page.text
    assert base64.b64encode(ONE_PIXEL).decode() in page.html
    median = np.median(found.scores["bits"][labels == 1])
    assert f"these, noise {median:.4g}" in page.text


def test_scores_of_other_images_are_refused(fit, tmp_path):
    flow, fitted, _ = fit
    found = Outliers.of(measure(flow, strange(3)), fitted)
    with pytest.raises(ValueError, match="3 scores of 40 images"):
        make_outliers_page(tmp_path / "o.html", flow, TEST, found, title="a", by="bits")
    assert not (tmp_path / "o.html").exists()


def test_few_images_and_scores_that_are_no_numbers_have_a_page(fit, tmp_path):
    flow, fitted, _ = fit
    measured = measure(flow, strange(2))
    measured.log_prob[1] = np.nan
    given = make_images(strange(2), None, dataset_id="two")
    found = Outliers.of(measured, fitted)
    out = make_outliers_page(tmp_path / "o.html", flow, given, found, title="a", by="bits")
    page = Page(out.read_text())
    well_formed(page)
    assert "1 images have a score that is not a number" in page.text
    first = page.rows[[row[0] for row in page.rows].index("image") + 1]
    assert first[:2] == ["1", "nan *"], "it counts as the most outlying"


def test_thresholds_of_a_conditional_flow_are_of_the_mixture_of_its_classes(tmp_path):
    out = tmp_path / "run"
    given = images(n=60, classes=2)
    flow = flow_of(replace(MODEL, classes=Classes(2)))
    train(flow, given, out=out, config=settings(steps=3), quiet=True)
    flow, inside = load(out), images(n=80, seed=7)
    measured = measure(flow, inside.pixels)
    fitted = fit_outliers(flow, inside.pixels, group=5)
    key = {"weights_sha256": read_weights(out).sha256, "background_sha256": None, "seed": 0}
    keep_fit(out, InsideFit(fitted, measured, key, {}))
    page = page_of(make_report(out, given), tmp_path)
    well_formed(page)
    found = Outliers.of(measure(flow, given.pixels), fitted)
    for name in found.scores:
        assert page.row(name)[2].startswith(f"{int(found.flags(name).sum())} of 60 ")
    assert "Beyond the threshold" not in page.text, "bits/dim given a class are others"


def test_the_runs_page_knows_the_thresholds_that_the_run_keeps(run, fit, tmp_path):
    flow, fitted, inside = fit
    key = {"weights_sha256": read_weights(run).sha256, "background_sha256": None, "seed": 0}
    keep_fit(run, InsideFit(fitted, inside, key, {"dataset_id": "<b>ramps", "split": "'test'"}))
    page = page_of(make_report(run, TEST, {"test": TEST}), tmp_path)
    well_formed(page)
    found = Outliers.of(measure(flow, TEST.pixels), fitted)
    for name in found.scores:
        count = int(found.flags(name).sum())
        assert page.row(name)[2].startswith(f"{count} of 40 ")
    assert "The inside: 80 images of <b>ramps, its 'test' part." in page.text
    assert "<b>ramps" not in page.html
    limit = fitted.threshold("bits").value
    wanted = int((bits(flow, TEST).per_image > limit).sum())
    told = f"Beyond the threshold of outliers, {limit:.4g}: {wanted} of 40 test images."
    assert told in page.text

    (ratio,) = scores_named(["ratio"])
    alone = replace(fitted, scores=(ratio,), thresholds=fitted.thresholds[:1])
    keep_fit(run, InsideFit(alone, inside, key, {}))
    page = page_of(make_report(run, TEST), tmp_path)
    assert "All thresholds that the run keeps are of scores that need a background" in page.text

    keep_fit(run, InsideFit(fitted, inside, key | {"weights_sha256": "0"}, {}))
    page = page_of(make_report(run, TEST), tmp_path)
    assert "of other weights" in page.text and "Beyond the threshold" not in page.text
    (run / "outliers" / "inside.safetensors").write_bytes(b"")
    page = page_of(make_report(run, TEST), tmp_path)
    assert re.search("thresholds of outliers cannot be used: .*SHA-256 differs", page.text)
    for harm, word in (
        (lambda path: path.write_bytes(path.read_bytes()[:50]), "damaged"),
        (lambda path: path.write_bytes(b""), "damaged"),
        (lambda path: path.unlink(), "missing beside its inside images"),
        (lambda path: path.mkdir(), "it is no file"),
    ):
        harm(run / "outliers" / "fitted.json")
        page = page_of(make_report(run, TEST), tmp_path)
        assert re.search(f"thresholds of outliers cannot be used: .*{word}", page.text)
    shutil.rmtree(run / "outliers")
    assert "thresholds of outliers" not in page_of(make_report(run, TEST), tmp_path).text


def test_the_command_writes_the_page_beside_its_figures(run, tmp_path, capsys):
    copied = shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("outliers"))
    np.save(tmp_path / "inside.npy", images(n=60, seed=7).pixels[:, 0])
    new = np.concatenate([images(n=9, seed=8).pixels, strange(9)])
    np.save(tmp_path / "new.npy", new[:, 0])
    words = ["--data", str(tmp_path / "new.npy"), "--inside", str(tmp_path / "inside.npy")]
    maps = ["--maps", "slope,variance", "--map-images", "3"]
    assert main(["outliers", str(copied), *words, *maps]) == 0
    (out,) = (copied / "outliers").glob("*.html")
    assert f"see {out}" in capsys.readouterr().out
    page, record = Page(out.read_text()), json.loads(out.with_suffix(".json").read_text())
    well_formed(page)
    for name, told in record["scores"].items():
        row = page.row(name)
        assert row[1] == f"{told['threshold']['value']:.4g}"
        assert row[2].startswith(f"{round(18 * told['flagged'])} of 18 ")
        auroc = told["detection"]["auroc"]
        assert any(r[0] == name and r[1].startswith(f"{auroc:.3f} ±") for r in page.rows)

    alts = [each["alt"] for each in page.images]
    for word in ("slope", "variance"):
        told = f"Map {word} of the 3 most outlying images by complexity, in their order"
        assert told in alts and told in page.text

    out.unlink()
    out.mkdir()
    assert main(["outliers", str(copied), *words[:2], "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["images"] == 18
    assert "warning: the page is not kept: cannot write" in said.err
