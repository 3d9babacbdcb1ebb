"""``mixerflow score``, as its users have it: sources, parts, what is refused, how it goes on."""

import csv
import io
import json
import os
import resource
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import mixerflow
from helpers import flow_of, images, settings
from mixerflow.cli.commands import run
from mixerflow.data import make_images
from mixerflow.scoring import Scorer
from mixerflow.scoring.rows import score_rows
from test_scorer import CONDITIONAL, encoded, trained, with_thresholds

STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
NAMES = ("ant", "bee", "cat")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A run with thresholds."""
    out = trained(tmp_path_factory.mktemp("score") / "run", replace(CONDITIONAL, classes=None))
    with_thresholds(out)
    return out


@pytest.fixture(scope="module")
def conditional(tmp_path_factory):
    """A run of three classes with names."""
    data, out = images(40, classes=3), tmp_path_factory.mktemp("classes") / "run"
    named = make_images(data.pixels, data.labels, dataset_id="ramps", classes=NAMES)
    mixerflow.train(flow_of(CONDITIONAL), named, out=out, config=settings(steps=4), quiet=True)
    return out


def table_of(pixels, **columns):
    cells = [{"bytes": encoded(image), "path": None} for image in pixels[:, 0]]
    return pa.table({"image": pa.array(cells, STRUCT), **columns})


def shards_of(folder, pixels, count=3):
    (folder / "data").mkdir(parents=True)
    for number, part in enumerate(np.array_split(pixels, count)):
        path = folder / "data" / f"train-{number:05}-of-{count:05}.parquet"
        pq.write_table(table_of(part), path, row_group_size=7)
    return folder


def score(model, data, *words):
    return run(["score", str(model), "--data", str(data), "--threads", "1", *map(str, words)])


def rows_of(path):
    """The rows of parts, as columns."""
    paths = sorted(path.glob("part-*.parquet")) if path.is_dir() else [path]
    return pa.concat_tables([pq.read_table(each) for each in paths]).to_pydict()


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def agree(rows, pixels, model, **given):
    """Whether columns of rows are those of a `Scorer`."""
    expected = Scorer(model, **given)(pixels)
    assert [*rows] == ["id", *expected]
    for name, values in expected.items():
        np.testing.assert_allclose(rows[name], values, rtol=1e-5, atol=1e-5)


def test_parquet_shards_have_a_part_each(model, tmp_path, capsys):
    pixels = images(50, seed=1).pixels
    data, out = shards_of(tmp_path / "set", pixels), tmp_path / "out"
    assert score(model, data, "--out", out, "--batch", 8) == 0
    names = [f"part-data-train-{n:05}-of-00003.parquet" for n in range(3)]
    assert sorted(contents(out)) == names
    rows = rows_of(out)
    agree(rows, pixels, model)
    assert rows["id"][:2] == [f"data/train-00000-of-00003.parquet:{n}" for n in range(2)]
    printed = capsys.readouterr().out
    flagged = sum(rows["outlier_bits"])
    assert "50 images; 3 shards; mean " in printed
    assert f"{np.mean(rows['bits_per_dim']):.3f} bits/dim (exact density" in printed
    assert f"{flagged:,} by bits" in printed


def test_the_key_says_what_the_figures_depend_on(model, tmp_path):
    data, out = shards_of(tmp_path / "set", images(9).pixels, 1), tmp_path / "out"
    assert score(model, data, "--out", out, "--seed", 4, "--batch", 3) == 0
    (path,) = out.glob("part-*.parquet")
    key = json.loads(pq.read_schema(path).metadata[b"mixerflow"])
    assert (key["seed"], key["batch"], key["labels"]) == (4, 3, False)
    assert key["weights_sha256"] == Scorer(model).weights.sha256
    assert key["figures"] == "exact density, uniform dequantisation, single-sample"
    assert key["shard"]["images"] == 9
    assert key["reading"]["on_bad_image"] == "stop"


def test_what_is_done_is_not_done_again(model, tmp_path, capsys):
    data, out = shards_of(tmp_path / "set", images(30).pixels), tmp_path / "out"
    assert score(model, data, "--out", out) == 0
    before, (first, second, _) = contents(out), sorted(out.glob("part-*"))
    first.unlink()
    second.write_bytes(second.read_bytes()[:-9])
    (out / ".tmp-part-data-99999999").write_bytes(b"left by a process that is gone")
    capsys.readouterr()
    assert score(model, data, "--out", out, "--json") == 0
    printed = capsys.readouterr()
    assert f"{second}: damaged, it is done again" in printed.err
    assert contents(out) == before
    summary = json.loads(printed.out)
    assert (summary["images"], summary["shards"], summary["shards_skipped"]) == (30, 3, 1)
    assert summary["bits_per_dim"] == pytest.approx(np.mean(rows_of(out)["bits_per_dim"]))
    stamps = [path.stat().st_mtime_ns for path in sorted(out.glob("part-*"))]
    assert score(model, data, "--out", out) == 0
    assert stamps == [path.stat().st_mtime_ns for path in sorted(out.glob("part-*"))]


@pytest.mark.parametrize("place", [0.2, 0.5, 0.8])
def test_a_flipped_bit_of_a_part_is_seen(model, tmp_path, place):
    data, out = shards_of(tmp_path / "set", images(60).pixels, 1), tmp_path / "out"
    assert score(model, data, "--out", out) == 0
    (path,), before = out.glob("part-*"), contents(out)
    group = pq.read_metadata(path).row_group(0)
    data_pages = sum(group.column(n).total_compressed_size for n in range(group.num_columns))
    damaged = bytearray(path.read_bytes())
    damaged[int(place * data_pages)] ^= 4
    path.write_bytes(damaged)
    assert score(model, data, "--out", out) == 0
    assert contents(out) == before


@pytest.mark.parametrize(
    ("words", "difference"),
    [
        (["--seed", "1"], "another seed: 0 there, 1 now"),
        (["--batch", "5"], "another batch: 128 there, 5 now"),
        (["--raw"], "another weights_sha256"),
        (["--on-bad-image", "skip"], "another reading.on_bad_image: stop there, skip now"),
    ],
)
def test_parts_of_other_settings_are_refused_before_any_work(
    model, tmp_path, capsys, words, difference
):
    data, out = shards_of(tmp_path / "set", images(30).pixels), tmp_path / "out"
    assert score(model, data, "--out", out) == 0
    sorted(out.glob("part-*"))[0].unlink()  # would be done first
    before = contents(out)
    capsys.readouterr()
    assert score(model, data, "--out", out, *words) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"error: scored with {difference}" in error
    assert "give another --out, or delete what is there" in error
    assert contents(out) == before


def test_other_images_are_refused(model, tmp_path, capsys):
    data, out = shards_of(tmp_path / "set", images(30).pixels), tmp_path / "out"
    assert score(model, data, "--out", out) == 0
    first = sorted((data / "data").iterdir())[0]
    pq.write_table(table_of(images(10, seed=9).pixels), first)
    assert score(model, data, "--out", out) == 2
    assert "scored with another shard.digest" in capsys.readouterr().err
    first.unlink()
    assert score(model, data, "--out", out) == 2
    assert "a part of no shard of these images" in capsys.readouterr().err


def arrow_file(path, table):
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, 9)


def arrow_stream(path, table):
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, 9)


@pytest.mark.parametrize("write", [arrow_file, arrow_stream, pq.write_table])
def test_tables_of_every_format(model, tmp_path, write):
    pixels, path = images(25, seed=1).pixels, tmp_path / "it.arrow"
    table = table_of(pixels)
    write(path, table) if write is not pq.write_table else write(table, path)
    assert score(model, path, "--out", tmp_path / "rows.parquet") == 0
    rows = rows_of(tmp_path / "rows.parquet")
    agree(rows, pixels, model)
    assert rows["id"] == [str(n) for n in range(25)]


def tensors(pixels):
    kind = pa.fixed_shape_tensor(pa.uint8(), (4, 4))
    return pa.FixedShapeTensorArray.from_numpy_ndarray(pixels[:, 0]).cast(kind)


@pytest.mark.parametrize(
    "column",
    [
        lambda pixels: pa.array([encoded(image) for image in pixels[:, 0]], pa.binary()),
        lambda pixels: pa.array([encoded(image) for image in pixels[:, 0]], pa.large_binary()),
        lambda pixels: pa.array(pixels[:, 0].tolist(), pa.list_(pa.list_(pa.uint8()))),
        lambda pixels: pa.array(pixels[:, 0].tolist(), pa.list_(pa.list_(pa.uint8(), 4), 4)),
        tensors,
    ],
    ids=["binary", "large binary", "lists", "fixed lists", "tensors"],
)
def test_columns_of_every_kind_are_found(model, tmp_path, column):
    pixels = images(6, seed=1).pixels
    table = pa.table({"number": [*range(6)], "scan": column(pixels), "id": [*"abcdef"]})
    pq.write_table(table, tmp_path / "it.parquet")
    assert score(model, tmp_path / "it.parquet", "--out", tmp_path / "rows.parquet") == 0
    rows = rows_of(tmp_path / "rows.parquet")
    agree(rows, pixels, model)
    assert rows["id"] == [*"abcdef"]


def test_columns_are_named_or_listed(model, tmp_path, capsys):
    pixels, path = images(3).pixels, tmp_path / "it.parquet"
    cells = [encoded(image) for image in pixels[:, 0]]
    pq.write_table(pa.table({"left": cells, "right": cells, "key": [7, 8, 9]}), path)
    assert score(model, path) == 3
    error = capsys.readouterr().err.splitlines()[-1]
    assert "2 columns may hold images" in error
    assert "name one of left (binary), right (binary) with --column" in error
    assert score(model, path, "--column", "rihgt") == 3
    assert "did you mean right?" in capsys.readouterr().err
    assert score(model, path, "--column", "key") == 3
    assert "the column 'key' is int64, no images" in capsys.readouterr().err
    assert score(model, path, "--column", "left", "--id-column", "k") == 3
    assert "no column 'k'" in capsys.readouterr().err
    assert score(model, path, "--column", "left", "--id-column", "key", "--csv", "-") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(",")[0] for line in lines] == ["id", "7", "8", "9"]


def test_a_row_is_named_by_the_path_in_its_image(model, tmp_path, capsys):
    (cell,) = (encoded(image) for image in images(1).pixels[:, 0])
    (tmp_path / "near.png").write_bytes(cell)
    cells = [{"bytes": cell, "path": "a/b.png"}, {"bytes": None, "path": "near.png"}]
    pq.write_table(pa.table({"image": pa.array(cells, STRUCT)}), tmp_path / "it.parquet")
    assert score(model, tmp_path / "it.parquet", "--csv", "-") == 0
    rows = [*csv.DictReader(capsys.readouterr().out.splitlines())]
    assert [row["id"] for row in rows] == ["a/b.png", "near.png"]
    assert rows[0]["bits_per_dim"] == rows[1]["bits_per_dim"]


def test_bad_rows(model, tmp_path, capsys):
    pixels, path = images(5).pixels, tmp_path / "it.parquet"
    cells = table_of(pixels)["image"].to_pylist()
    cells[1], cells[3] = None, {"bytes": b"no image", "path": None}
    pq.write_table(pa.table({"image": pa.array(cells, STRUCT)}), path)
    assert score(model, path, "--out", tmp_path / "no") == 3
    assert "error: no image: " in (error := capsys.readouterr().err.splitlines()[-1])
    assert "it.parquet, row 1" in error
    assert not list((tmp_path / "no").glob("*.parquet"))
    out = tmp_path / "rows.parquet"
    assert score(model, path, "--out", out, "--on-bad-image", "skip") == 0
    assert "2 could not be read" in capsys.readouterr().out
    rows = rows_of(out)
    assert rows["error"] == [None, "no image", None, "not an image file", None]
    good = [0, 2, 4]
    agree({k: [v[i] for i in good] for k, v in rows.items() if k != "error"}, pixels[good], model)
    for name in ("bits_per_dim", "outlier_bits"):
        assert rows[name][1] is None
    assert score(model, path, "--on-bad-image", "skip") == 0
    assert "not an image file" in capsys.readouterr().out
    assert score(model, path, "--on-bad-image", "skip", "--csv", tmp_path / "rows.csv") == 0
    lines = [*csv.DictReader((tmp_path / "rows.csv").read_text().splitlines())]
    assert (lines[3]["bits_per_dim"], lines[3]["error"]) == ("NaN", "not an image file")


def test_damaged_tables_are_named(model, tmp_path, capsys):
    data = shards_of(tmp_path / "set", images(30).pixels)
    path = sorted((data / "data").iterdir())[1]
    path.write_bytes(path.read_bytes()[:-20])
    assert score(model, data, "--out", tmp_path / "out") == 3
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: damaged or of another format")
    assert path.name in error


def folder_of(where, pixels, names):
    for number, (image, name) in enumerate(zip(pixels[:, 0], names, strict=True)):
        path = where / name / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return where


def test_a_folder_of_images_is_cut_into_shards(model, tmp_path, capsys):
    pixels, out = images(10, seed=1).pixels, tmp_path / "out"
    data = folder_of(tmp_path / "photos", pixels, ["b", "a"] * 5)
    (data / "notes.txt").write_text("no image")
    assert score(model, data, "--out", out, "--shard-images", 4) == 0
    assert "notes.txt: no image" in capsys.readouterr().err
    assert sorted(contents(out)) == [f"part-{n:05}-of-00003.parquet" for n in range(3)]
    rows = rows_of(out)
    order = [*range(1, 10, 2), *range(0, 10, 2)]
    agree(rows, pixels[order], model)
    assert rows["id"] == [f"{'ba'[n % 2]}/{n:03}.png" for n in order]
    Image.fromarray(pixels[0, 0]).save(data / "new.png")
    assert score(model, data, "--out", out, "--shard-images", 4) == 2
    assert "scored with another shard" in capsys.readouterr().err


def test_labels_of_folders_tables_and_arrays(conditional, tmp_path, capsys):
    data = images(12, seed=1, classes=3)
    pixels, labels = data.pixels, data.labels
    expected = Scorer(conditional, labels=True)(pixels, labels)["bits_per_dim"]

    def scored(source, *words):
        out = tmp_path / f"{len(list(tmp_path.iterdir()))}.parquet"
        assert score(conditional, source, "--labels", "--out", out, *words) == 0
        rows = rows_of(out)
        assert not [name for name in rows if name.startswith("p_")]
        return np.array(rows["bits_per_dim"])

    np.savez(tmp_path / "it.npz", images=pixels[:, 0], labels=labels)
    np.testing.assert_allclose(scored(tmp_path / "it.npz"), expected, rtol=1e-5)
    folder = folder_of(tmp_path / "photos", pixels, [NAMES[k] for k in labels])
    order = np.argsort(labels, kind="stable")
    np.testing.assert_allclose(scored(folder), expected[order], rtol=1e-5)
    tables = {
        "numbers": table_of(pixels, label=labels),
        "names": table_of(pixels, label=[NAMES[k] for k in labels]),
        "other": table_of(pixels, kind=labels),
    }
    theirs = ("cat", "ant", "bee")  # as `datasets` numbers them
    swapped = table_of(pixels, label=[theirs.index(NAMES[k]) for k in labels])
    features = {"label": {"names": theirs, "_type": "ClassLabel"}}
    told = {"huggingface": json.dumps({"info": {"features": features}})}
    tables["named"] = swapped.replace_schema_metadata(told)
    for name, table in tables.items():
        path = tmp_path / f"{name}-in.parquet"
        pq.write_table(table, path)
        words = ["--label-column", "kind"] if name == "other" else []
        np.testing.assert_allclose(scored(path, *words), expected, rtol=1e-5)
    capsys.readouterr()
    assert score(conditional, tmp_path / "other-in.parquet", "--labels") == 3
    assert "no column label" in capsys.readouterr().err
    for wrong, words in ((3, "a label is 3"), (None, "no label")):
        pq.write_table(table_of(pixels[:1], label=pa.array([wrong], pa.int64())), path)
        assert score(conditional, path, "--labels") == 3
        assert words in capsys.readouterr().err
    pq.write_table(table_of(pixels[:1], label=["dog"]), path)
    assert score(conditional, path, "--labels") == 3
    assert "class 'dog' is not among the run's" in capsys.readouterr().err


def test_probabilities_of_named_classes(conditional, tmp_path, capsys):
    pixels = images(4, seed=2).pixels
    np.save(tmp_path / "it.npy", pixels[:, 0])
    assert score(conditional, tmp_path / "it.npy", "--out", tmp_path / "rows.parquet") == 0
    rows = rows_of(tmp_path / "rows.parquet")
    agree(rows, pixels, conditional)
    assert [*rows][-3:] == [f"p_{name}" for name in NAMES]
    capsys.readouterr()
    assert score(conditional, tmp_path / "it.npy") == 0
    printed = capsys.readouterr()
    assert "no outlier columns: the run keeps no thresholds" in printed.err
    assert max(NAMES, key=lambda name: rows[f"p_{name}"][0]) in printed.out


def test_arrays_are_cut_into_shards(model, tmp_path):
    pixels = images(10, seed=1).pixels
    np.savez(tmp_path / "it.npz", train_images=pixels[:7, 0], test_images=pixels[7:, 0])
    out = tmp_path / "out"
    assert score(model, tmp_path / "it.npz", "--out", out, "--shard-images", 4) == 0
    assert sorted(contents(out)) == [
        "part-test-00000-of-00001.parquet",
        "part-train-00000-of-00002.parquet",
        "part-train-00001-of-00002.parquet",
    ]
    rows = rows_of(out)
    agree(rows, np.concatenate([pixels[7:], pixels[:7]]), model)
    assert rows["id"] == [*(f"test/{n}" for n in range(3)), *(f"train/{n}" for n in range(7))]


def test_tables_beside_images_are_refused(model, tmp_path, capsys):
    data = shards_of(tmp_path / "set", images(3).pixels, 1)
    folder_of(data, images(1).pixels, ["more"])
    assert score(model, data) == 3
    assert "tables and images in one folder" in capsys.readouterr().err


def test_names_of_parts_are_unique(model, tmp_path):
    pixels = images(8).pixels
    for number, name in enumerate(("a/b", "a-b", "A-B", "é")):
        path = tmp_path / "set" / f"{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table_of(pixels[2 * number : 2 * number + 2]), path)
    assert score(model, tmp_path / "set", "--out", tmp_path / "out") == 0
    assert len(contents(tmp_path / "out")) == 4
    assert len(rows_of(tmp_path / "out")["id"]) == 8


def test_one_file_of_all(model, tmp_path, capsys):
    pixels, out = images(30, seed=1).pixels, tmp_path / "rows.parquet"
    data = shards_of(tmp_path / "set", pixels)
    assert score(model, data, "--out", out) == 0
    agree(rows_of(out), pixels, model)
    before = out.stat().st_mtime_ns
    assert score(model, data, "--out", out) == 0
    assert out.stat().st_mtime_ns == before
    assert score(model, data, "--out", out, "--seed", 1) == 2
    assert "scored with another seed" in capsys.readouterr().err


def test_many_rows_need_an_output(model, tmp_path, capsys):
    np.save(tmp_path / "it.npy", images(33).pixels[:, 0])
    assert score(model, tmp_path / "it.npy") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: 33 rows are too many for a terminal: --out: ")
    np.save(tmp_path / "it.npy", images(32).pixels[:, 0])
    assert score(model, tmp_path / "it.npy", "--json") == 0
    record = json.loads(capsys.readouterr().out)
    assert len(record["rows"]) == 32
    agree(
        {name: [row[name] for row in record["rows"]] for name in record["rows"][0]},
        images(32).pixels,
        model,
    )


@pytest.mark.parametrize(
    ("words", "fragment"),
    [
        (["--batch", "0"], "--batch"),
        (["--shard-images", "0"], "--shard-images"),
        (["--seed", "-1"], "--seed"),
        (["--out", "x", "--csv", "y"], "two outputs"),
        (["--csv", "-", "--json"], "two things on stdout"),
        (["--labels"], "takes no labels"),
        (["--out", "a-file"], "name a folder, or FILE.parquet"),
        (["--column", "image"], "it is no table: --column"),
        (["--id-column", "id"], "it is no table: --id-column"),
        (["--label-column", "label"], "give --labels too"),
    ],
)
def test_settings_that_cannot_be(model, tmp_path, monkeypatch, capsys, words, fragment):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a-file").touch()
    np.save(tmp_path / "it.npy", images(3).pixels[:, 0])
    assert score(model, "it.npy", *words) == 2
    assert fragment in capsys.readouterr().err.splitlines()[-1]


def test_images_that_do_not_fit_the_run(model, tmp_path, capsys):
    np.save(tmp_path / "it.npy", np.zeros((3, 5, 4), np.uint8))
    assert score(model, tmp_path / "it.npy") == 3
    assert "an image is (1, 5, 4), the run's are (1, 4, 4)" in capsys.readouterr().err


def test_without_pyarrow_csv_works_and_parquet_says_what_to_install(
    model, tmp_path, monkeypatch, capsys
):
    np.save(tmp_path / "it.npy", images(3).pixels[:, 0])
    for name in [each for each in sys.modules if each.partition(".")[0] == "pyarrow"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert score(model, tmp_path / "it.npy", "--csv", tmp_path / "rows.csv") == 0
    rows = [*csv.DictReader((tmp_path / "rows.csv").read_text().splitlines())]
    expected = Scorer(model)(images(3).pixels)["bits_per_dim"]
    np.testing.assert_allclose([float(row["bits_per_dim"]) for row in rows], expected, rtol=1e-5)
    capsys.readouterr()
    assert score(model, tmp_path / "it.npy", "--out", tmp_path / "out") == 2
    assert "pip install 'mixerflow[parquet]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_stops_between_two_blocks(model, tmp_path, monkeypatch, capsys, number, code):
    data, out = shards_of(tmp_path / "set", images(40).pixels), tmp_path / "out"
    assert score(model, data, "--out", out, "--batch", 5) == 0
    expected = contents(out)
    for path in sorted(out.glob("part-*"))[1:]:
        path.unlink()

    def interrupted(shard, scorer):
        for count, block in enumerate(score_rows(shard, scorer)):
            if "00002" in shard.name.split("-of-")[0] and count == 1:
                signal.raise_signal(number)
            yield block

    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr("mixerflow.scoring.work.score_rows", interrupted)
        assert score(model, data, "--out", out, "--batch", 5) == code
    line = "stopped after 37 of 40 images, with 2 of 3 shards done: the same command goes on"
    assert capsys.readouterr().err.splitlines()[-1] == line
    assert sorted(contents(out)) == sorted(expected)[:2]
    assert score(model, data, "--out", out, "--batch", 5) == 0
    assert contents(out) == expected


@pytest.mark.parametrize("words", [["--out", "out"], ["--out", "it.parquet"], ["--csv", "it.csv"]])
def test_a_disk_that_is_full(model, tmp_path, monkeypatch, capsys, words):
    monkeypatch.chdir(tmp_path)
    np.save("it.npy", images(200).pixels[:, 0])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6000, limits[1]))  # less than the rows take
    try:
        code = score(model, "it.npy", *words)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert code == 5
    assert "error: cannot write (File too large)" in capsys.readouterr().err
    left = [path.name for path in tmp_path.rglob("*") if path.name not in (".lock", "out")]
    assert left == ["it.npy"]
    assert score(model, "it.npy", *words) == 0


def test_another_writer_is_told(model, tmp_path, capsys):
    from mixerflow.runs.files import lock

    data, out = shards_of(tmp_path / "set", images(6).pixels), tmp_path / "out"
    with lock(out):
        assert score(model, data, "--out", out) == 5
    assert "is writing here" in capsys.readouterr().err


@pytest.mark.slow
def test_processes_share_the_shards(model, tmp_path):
    pixels = images(60, seed=1).pixels
    data, out, alone = shards_of(tmp_path / "set", pixels, 5), tmp_path / "out", tmp_path / "one"
    assert score(model, data, "--out", alone) == 0

    def launched(*words):
        launcher = [sys.executable, "-m", "mixerflow.launch", "--standalone"]
        argv = [*launcher, "--nproc-per-node=2", "score", model, "--data", data, *words]
        return subprocess.run([*map(str, argv)], capture_output=True, text=True, check=False)

    done = launched("--out", out, "--json")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert (summary["images"], summary["shards_skipped"]) == (60, 0)
    assert summary["bits_per_dim"] == pytest.approx(np.mean(rows_of(alone)["bits_per_dim"]))
    assert contents(out) == contents(alone)
    refused = launched("--out", out, "--seed", 1)
    assert refused.returncode == 2
    errors = [line for line in refused.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert "another seed" in errors[0]
    bad = sorted((data / "data").iterdir())[3]
    table = pa.concat_tables([table_of(pixels[:3]), pa.table({"image": pa.array([None], STRUCT)})])
    pq.write_table(table, bad)
    failed = launched("--out", tmp_path / "bad")
    assert failed.returncode == 3, failed.stderr
    lines = [line for line in failed.stderr.splitlines() if "error" in line or "stopped" in line]
    assert len(lines) == 1, failed.stderr
    assert "row 3" in lines[0]
    for path in (data / "data").iterdir():  # both processes meet one at once
        pq.write_table(pa.table({"image": pa.array([None], STRUCT)}), path)
    failed = launched("--out", tmp_path / "worse")
    assert failed.returncode == 3, failed.stderr
    lines = [line for line in failed.stderr.splitlines() if "error" in line or "stopped" in line]
    assert len(lines) == 1, failed.stderr


@pytest.mark.slow
def test_memory_does_not_grow_with_the_images(model, tmp_path):
    code = (
        "import resource, sys; from mixerflow.cli.commands import run;"
        "assert run(sys.argv[1:]) == 0;"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    peaks = []
    for count in (2_000, 20_000):
        data = tmp_path / f"{count}.parquet"
        pixels = np.random.default_rng(0).integers(0, 256, (count, 4, 4), np.uint8)
        kind = pa.list_(pa.list_(pa.uint8()))
        pq.write_table(pa.table({"image": pa.array(pixels.tolist(), kind)}), data)
        words = ["score", model, "--data", data, "--threads", "1", "--out", tmp_path / f"o{count}"]
        argv = [sys.executable, "-c", code, *map(str, words)]
        done = subprocess.run(argv, capture_output=True, text=True, check=True, env=os.environ)
        peaks.append(int(done.stdout.split()[-1]))
    assert peaks[1] < 1.1 * peaks[0], peaks


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # of Python 3.12 and later
def test_the_campaign_kills_the_scoring_of_shards(tmp_path):
    """Three kills, each a process that is gone at a random moment; the campaign itself has 50."""
    words = ["-m", "campaign", "score", "--trials", "3", "--runs", tmp_path / "runs"]
    argv = [sys.executable, *map(str, words)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| 3 | 0 | 0 | 0 |" in done.stdout


@pytest.mark.parametrize("flag", ["--out", "--csv"])
def test_files_of_others_are_never_replaced(model, tmp_path, capsys, flag):
    data, pixels = tmp_path / "it.parquet", images(5).pixels
    pq.write_table(table_of(pixels), data)
    text, short = tmp_path / "text.parquet", tmp_path / "short.parquet"
    text.write_text("no parquet at all")
    short.write_bytes(data.read_bytes()[:-9])
    for path in (data, text, short):
        before = path.read_bytes()
        assert score(model, data, flag, path) == 2
        assert "not written by `mixerflow score`" in capsys.readouterr().err.splitlines()[-1]
        assert path.read_bytes() == before
    os.mkfifo(tmp_path / "fifo.parquet")
    if flag == "--out":
        assert score(model, data, flag, tmp_path / "fifo.parquet") == 2
        assert "no plain file" in capsys.readouterr().err
    for path in (tmp_path / "empty.parquet", tmp_path / "new.parquet"):
        if path.stem == "empty":
            path.touch()
        assert score(model, data, flag, path) == 0
        assert score(model, data, flag, path) == 0


@pytest.mark.parametrize("content", [table_of(images(2).pixels), b"PAR1 cut short", b"text"])
def test_files_of_others_in_the_folder_of_parts_are_never_replaced(
    model, tmp_path, capsys, content
):
    data, out = shards_of(tmp_path / "set", images(9).pixels), tmp_path / "out"
    out.mkdir()
    foreign = out / "part-data-train-00001-of-00003.parquet"
    if isinstance(content, bytes):
        foreign.write_bytes(content)
    else:
        pq.write_table(content, foreign)
    before = foreign.read_bytes()
    for _ in range(2):  # the first command leaves nothing by which the file would be known
        assert score(model, data, "--out", out) == 2
        assert "not written by `mixerflow score`" in capsys.readouterr().err.splitlines()[-1]
    assert foreign.read_bytes() == before
    assert len(list(out.glob("part-*"))) == 1


def test_a_link_stays_and_its_file_is_written(model, tmp_path):
    np.save(tmp_path / "it.npy", images(3).pixels[:, 0])
    (tmp_path / "far").mkdir()
    for flag, name in (("--csv", "rows.csv"), ("--out", "rows.parquet")):
        link, target = tmp_path / name, tmp_path / "far" / name
        link.symlink_to(target)
        for _ in range(2):
            assert score(model, tmp_path / "it.npy", flag, link) == 0
            assert link.is_symlink()
            assert target.stat().st_size > 100


def test_devices_and_pipes_are_written_directly(model, tmp_path, capfd):
    np.save(tmp_path / "it.npy", images(3).pixels[:, 0])
    assert score(model, tmp_path / "it.npy", "--csv", tmp_path / "rows.csv") == 0
    expected, fifo, got = (tmp_path / "rows.csv").read_text(), tmp_path / "fifo", []
    os.mkfifo(fifo)
    reader = threading.Thread(target=lambda: got.append(fifo.read_text()))
    reader.start()
    assert score(model, tmp_path / "it.npy", "--csv", fifo) == 0
    reader.join()
    assert got == [expected]
    assert fifo.is_fifo()
    with (tmp_path / "open.csv").open("w") as file:
        assert score(model, tmp_path / "it.npy", "--csv", f"/dev/fd/{file.fileno()}") == 0
    assert (tmp_path / "open.csv").read_text() == expected
    capfd.readouterr()
    for name in ("/dev/stdout", "-"):
        assert score(model, tmp_path / "it.npy", "--csv", name) == 0
        assert capfd.readouterr().out == expected
    assert score(model, tmp_path / "it.npy", "--csv", "/dev/null") == 0
    assert Path("/dev/null").is_char_device()


def test_csv_on_stdout_is_the_file(model, tmp_path, capsys):
    names = ["line\u2028sep", "next\x85line", "a\nb", "c\r\nd", "tab\t", 'quote"', "plain"]
    table = table_of(images(7).pixels, id=names)
    pq.write_table(table, tmp_path / "it.parquet")
    assert score(model, tmp_path / "it.parquet", "--csv", tmp_path / "rows.csv") == 0
    capsys.readouterr()
    assert score(model, tmp_path / "it.parquet", "--csv", "-") == 0
    printed = capsys.readouterr().out
    assert printed == (tmp_path / "rows.csv").read_bytes().decode()
    assert [row["id"] for row in csv.DictReader(io.StringIO(printed, newline=""))] == names


@pytest.mark.parametrize(
    "labels",
    [
        [0.0, 1.7, 2.0],
        [True, False, True],
        [[0], [1], [2]],
        [{"k": 0}] * 3,
        [b"a"] * 3,
        [float("nan")] * 3,
    ],
)
def test_labels_that_are_no_classes(conditional, tmp_path, capsys, labels):
    pq.write_table(table_of(images(3).pixels, label=labels), tmp_path / "it.parquet")
    assert score(conditional, tmp_path / "it.parquet", "--labels") == 3
    error = capsys.readouterr().err.splitlines()[-1]
    assert "error: a label is " in error
    assert "no whole number and no name" in error


def test_whole_labels_of_floats_are_classes(conditional, tmp_path, capsys):
    pixels, printed = images(3).pixels, []
    for labels in ([0.0, 1.0, 2.0], [0, 1, 2]):
        pq.write_table(table_of(pixels, label=labels), tmp_path / "it.parquet")
        assert score(conditional, tmp_path / "it.parquet", "--labels", "--csv", "-") == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]


@pytest.mark.parametrize(
    ("table", "fragment"),
    [
        (
            lambda t: t.append_column("id", pa.array([b"\xff"] * 3, pa.binary()).view(pa.string())),
            "not UTF-8",
        ),
        (lambda t: t.append_column("image", t["image"]), "2 columns 'image'"),
        (lambda t: t.append_column("id", [[*"abc"]]).append_column("id", [[*"abc"]]), "2 columns"),
        (lambda t: t.append_column("id", [[[1], [2], [3]]]), "'id' is list<"),
        (lambda t: pa.table({"image": [1, 2, 3]}), "no column holds images; there are image (int"),
        (lambda t: pa.table({"image": [*"abc"]}), "no column holds images; there are image (str"),
    ],
)
@pytest.mark.parametrize("write", [arrow_file, lambda path, table: pq.write_table(table, path)])
def test_tables_that_cannot_be_read(model, tmp_path, capsys, table, fragment, write):
    write(tmp_path / "it.arrow", table(table_of(images(3).pixels)))
    assert score(model, tmp_path / "it.arrow") == 3
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if "error" in line] == lines[-1:]
    assert fragment in lines[-1]


@pytest.mark.parametrize("write", [arrow_file, lambda path, table: pq.write_table(table, path)])
def test_names_of_files_that_are_not_utf8(model, tmp_path, write):
    pixels = images(3).pixels
    path = tmp_path / "set" / os.fsdecode(b"a\xff.parquet")
    path.parent.mkdir()
    write(tmp_path / "it", table_of(pixels))
    (tmp_path / "it").rename(path)
    out = tmp_path / os.fsdecode(b"o\xff")
    for _ in range(2):
        assert score(model, path.parent, "--out", out) == 0
    out = out.rename(tmp_path / "out")  # as pyarrow's own functions need it
    agree(rows_of(out), pixels, model)


def test_nulls_in_columns_of_arrays_are_no_images(model, tmp_path):
    pixels = images(5, seed=1).pixels
    whole = tensors(pixels)
    cells = whole.storage.to_pylist()
    cells[1] = None
    cells[3] = [None, *cells[3][1:]]
    storage = pa.array(cells, whole.type.storage_type)
    column = pa.ExtensionArray.from_storage(whole.type, storage)
    pq.write_table(pa.table({"image": column}), tmp_path / "it.parquet")
    lists = pixels[:, 0].tolist()
    lists[1], lists[3][0][0] = None, None
    kind = pa.list_(pa.list_(pa.uint8()))
    pq.write_table(pa.table({"image": pa.array(lists, kind)}), tmp_path / "lists.parquet")
    for name in ("it", "lists"):
        words = ["--out", tmp_path / f"{name}-rows.parquet", "--on-bad-image", "skip"]
        assert score(model, tmp_path / f"{name}.parquet", *words) == 0
        rows = rows_of(words[1])
        assert [error is None for error in rows.pop("error")] == [True, False, True, False, True]
        good = [0, 2, 4]
        agree({k: [v[i] for i in good] for k, v in rows.items()}, pixels[good], model)


def test_ids_are_readable_and_those_of_shards_differ(model, tmp_path, capsys):
    pixels = images(3).pixels
    for ids, expected in (
        ([1.5, float("nan"), None], ["1.5", "1", "2"]),
        ([b"a", b"\xff", b"c"], ["a", "\\xff", "c"]),
    ):
        pq.write_table(table_of(pixels, id=ids), tmp_path / "it.parquet")
        assert score(model, tmp_path / "it.parquet", "--csv", "-") == 0
        rows = [*csv.DictReader(capsys.readouterr().out.splitlines())]
        assert [row["id"] for row in rows] == expected
    cells = [{"bytes": encoded(image), "path": f"{n}.png"} for n, image in enumerate(pixels[:, 0])]
    (tmp_path / "set").mkdir()
    for name in "ab":
        table = pa.table({"image": pa.array(cells, STRUCT)})
        pq.write_table(table, tmp_path / "set" / f"{name}.parquet")
    assert score(model, tmp_path / "set", "--csv", "-") == 0
    rows = [*csv.DictReader(capsys.readouterr().out.splitlines())]
    assert [row["id"] for row in rows] == [f"{s}.parquet:{n}.png" for s in "ab" for n in range(3)]


@pytest.mark.parametrize("out", ["set", "set/scores", "set/rows.parquet"])
def test_an_output_among_the_images_is_refused(model, tmp_path, capsys, out):
    data = shards_of(tmp_path / "set", images(6).pixels)
    (tmp_path / "link").symlink_to(data)
    for source in (data, tmp_path / "link"):
        assert score(model, source, "--out", tmp_path / out) == 2
        assert "the output lies in the folder of the images" in capsys.readouterr().err
    assert [path.name for path in data.iterdir()] == ["data"]


def test_errors_say_what_can_be_done(model, tmp_path, capsys):
    data = shards_of(tmp_path / "set", images(6).pixels)
    assert score(model, data, "--shard-images", 4, "--csv", "-") == 2
    assert "holds tables, of which each is a shard" in capsys.readouterr().err
    assert score(model, data, "--out", "/proc/no/such") == 5
    assert "error: cannot write (No such file or directory)" in capsys.readouterr().err
    assert score(model, "hf://a/b") == 3
    assert "not read from the hub: hf:/a/b: download them first" in capsys.readouterr().err
    (data / "gone.parquet").symlink_to(tmp_path / "nowhere")
    assert score(model, data) == 3
    assert "gone.parquet: correct the link, or remove it" in capsys.readouterr().err
