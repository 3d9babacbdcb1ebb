"""The tables of archives beside other codecs: what is measured adds up."""

import json
import sys

import numpy as np
import pytest
from benchmarks import codecs, compression, compression_parts

import mixerflow
from mixerflow import pictures
from mixerflow.data import make_images
from mixerflow.transforms.checks import perturb
from mixers import mixer


@pytest.fixture(scope="module")
def flow():
    flow = mixer(layers=2, patch=2, hidden=4).build((1, 4, 4))
    perturb(flow.transform, size=0.1)
    return flow.eval()


@pytest.fixture(scope="module")
def images():
    pixels = np.random.default_rng(0).integers(90, 166, (60, 1, 4, 4)).astype(np.uint8)
    return make_images(pixels, None, dataset_id="drawn")


@pytest.mark.parametrize("sheet", [False, True])
@pytest.mark.parametrize("codec", ["png", "webp"])
def test_a_codecs_row_is_its_files(images, codec, sheet):
    row = codecs.measured(images.pixels, codec, sheet=sheet)
    bits = pictures.codec_bits(images.pixels, codec, sheet=sheet)
    assert row["bits_per_dim"] == bits and row["files"] == (1 if sheet else 60)
    assert row["encode_images_per_second"] > 0 and row["decode_images_per_second"] > 0


def test_files_that_lose_pixels_end_all(images, monkeypatch):
    monkeypatch.setattr(codecs, "decoded", lambda file, like: like + 1)
    with pytest.raises(SystemExit, match="png is not lossless"):
        codecs.measured(images.pixels, "png", sheet=True)


def test_the_causes_of_an_archive_add_up_to_what_it_takes_beyond_the_bound(flow, images):
    row = compression.measured(flow, images, 1)
    assert row["bound"] == mixerflow.bits(flow, images).bits_per_dim
    assert row["bits_per_dim"] == 8 * row["bytes_of_images"] / images.pixels.size
    found = compression_parts.causes(row)
    assert list(found) == list(compression_parts.CAUSES)
    assert sum(found.values()) == pytest.approx(row["above_bound"], abs=1e-9)
    assert found["header, heads, index"] > 0.01 > abs(found["latents' tables"])


def test_a_coarser_lattice_costs_more_and_all_is_drawn(flow, images, tmp_path):
    found = compression_parts.depths(flow, images, 1)
    rows = found["k"]
    assert 0.01 > abs(rows["4"]["more"]) > 4 * abs(rows["12"]["more"]) and not rows["24"]["more"]
    row = compression.measured(flow, images, 1)
    result = {"sets": {"drawn": found}, "causes": {"drawn": compression_parts.causes(row)}}
    assert len(compression_parts.draw(result).axes) == 3


def test_tables_have_codecs_of_the_same_images_only(flow, images, tmp_path, monkeypatch, capsys):
    row = compression.measured(flow, images, 1) | {"weights": "weights/drawn"}
    (tmp_path / "table.json").write_text(json.dumps({"sets": {"a": row, "b": row}}))
    each = [
        codecs.measured(images.pixels, codec, sheet=sheet)
        for codec in ("png", "webp")
        for sheet in (False, True)
    ]
    beside = {name: {"dataset_id": i, "codecs": each} for name, i in (("a", "drawn"), ("b", "x"))}
    (tmp_path / "codecs.json").write_text(json.dumps({"sets": beside}))
    words = ["--out", f"{tmp_path}/table.json", "--codecs", f"{tmp_path}/codecs.json"]
    monkeypatch.setattr(sys, "argv", ["compression", *words])
    compression.main()
    said = capsys.readouterr().out.splitlines()
    png = f"{each[0]['bits_per_dim']:.3f} / {each[1]['bits_per_dim']:.3f}"
    (mine,) = (line for line in said if line.startswith("| a | 60"))
    (other,) = (line for line in said if line.startswith("| b | 60"))
    assert png in mine and png not in other and f"**{row['bits_per_dim']:.3f}**" in other
