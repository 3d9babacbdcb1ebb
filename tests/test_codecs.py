"""Codecs beside a flow: a sample of the images, lengths that are kept, and what is not mixed."""

import io
import json
import os
import signal
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from helpers import small_run
from mixerflow import pictures
from mixerflow.cli import main
from mixerflow.cli.codecs import code_images, larger_sample, print_codecs
from mixerflow.cli.frechet import frechet
from mixerflow.core import Flow
from mixerflow.data import make_images
from mixerflow.evaluate import codecs
from mixerflow.runs.files import sealed
from mixerflow.signals import Stopped
from mixerflow.transforms import ShufflePixels


def images_of(seed, count=12, dtype=np.uint8):
    pixels = np.random.default_rng(seed).integers(0, 99, (count, 3, 6, 5)).astype(dtype)
    return make_images(pixels, None, dataset_id="drawn")


@pytest.fixture(autouse=True)
def two(monkeypatch):
    """PNG and WebP alone, whatever is installed here."""
    for module in ("evaluate", "cli"):
        monkeypatch.setattr(f"mixerflow.{module}.codecs.installed", lambda: ("png", "webp"))


def decoded(file, channels):
    """The pixels ``(H, W, C)`` of a picture's file, which may be RGB for grey ones."""
    image = Image.open(io.BytesIO(file))
    pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    return pixels.reshape(image.height, image.width, channels)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("codec", ["png", "webp", "jxl"])
def test_files_hold_every_pixel(codec, channels):
    if codec == "jxl":
        pytest.importorskip("pillow_jxl")
    pixels = np.random.default_rng(0).integers(0, 256, (7, 9, channels)).astype(np.uint8)
    pixels[2:5] = 7
    assert np.array_equal(decoded(pictures.encoded(pixels, codec), channels), pixels)


def test_jpeg_xl_has_rows_where_it_is_installed(monkeypatch, capsys):
    pytest.importorskip("pillow_jxl")
    images = images_of(0)
    flow = Flow(ShufflePixels((3, 6, 5), seed=3), (3, 6, 5), levels=256)
    print_codecs(codecs.codec_rows(images, count=3), flow, images)
    assert "no JPEG XL: pip install 'mixerflow[codec]'" in capsys.readouterr().out
    monkeypatch.setattr("mixerflow.evaluate.codecs.installed", pictures.installed)
    rows = by_name(codecs.codec_rows(images, count=3))
    sample = images.pixels[codecs.sample_of(images, 3)]
    assert len(rows) == 6
    for sheet, name in ((False, "jxl, a file an image"), (True, "jxl, one sheet")):
        bits = pictures.codec_bits(sample, "jxl", sheet=sheet)
        assert rows[name].bits_per_dim == pytest.approx(bits, abs=1e-12)


def test_jpeg_xl_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_jxl", None)
    with pytest.raises(ValueError, match=r"pip install 'mixerflow\[codec\]'"):
        pictures.encoded(np.zeros((4, 4, 3), np.uint8), "jxl")


@pytest.fixture
def coded(monkeypatch):
    """The codecs of the pictures that were coded, beside one of each codec that is tried first."""
    names = []

    def counted(picture, codec):
        names.append(codec)
        return pictures.encoded(picture, codec)

    monkeypatch.setattr(codecs, "encoded", counted)
    return names


def by_name(rows):
    return {row.name: row for row in rows}


@pytest.mark.parametrize("threads", [1, 2])
def test_rows_are_the_codecs_bits_on_the_sample(threads):
    images = images_of(0)
    rows = by_name(codecs.codec_rows(images, count=5, threads=threads))
    sample = images.pixels[codecs.sample_of(images, 5)]
    for codec in ("png", "webp"):
        apart, sheet = rows[f"{codec}, a file an image"], rows[f"{codec}, one sheet"]
        each = [pictures.codec_bits(one[None], codec, sheet=False) for one in sample]
        assert apart.bits_per_dim == pytest.approx(np.mean(each), abs=1e-12)
        assert apart.standard_error == pytest.approx(np.std(each, ddof=1) / 5**0.5, abs=1e-12)
        assert sheet.bits_per_dim == pictures.codec_bits(sample, codec, sheet=True)
        assert (apart.images, sheet.images, sheet.standard_error) == (5, 5, None)


def test_a_codec_without_such_images_has_no_figure():
    pixels = np.arange(0, 48_000, 1000, dtype=np.uint16).reshape(3, 1, 4, 4)
    deep = make_images(pixels, None, dataset_id="deep")
    rows = by_name(codecs.codec_rows(deep))
    assert rows["webp, one sheet"].bits_per_dim is None
    assert rows["png, a file an image"].bits_per_dim > 8


def test_a_larger_sample_goes_on_and_the_same_codes_nothing(coded, tmp_path):
    images = images_of(0)
    small = set(codecs.sample_of(images, 4))
    assert small < set(codecs.sample_of(images, 9)) and len(small) == 4
    codecs.codec_rows(images, count=4, cache=tmp_path)
    coded.clear()
    rows = codecs.codec_rows(images, count=9, cache=tmp_path)
    assert len(coded) == 2 * (1 + 5 + 1)  # tried, files, a sheet
    assert rows == codecs.codec_rows(images, count=9)
    coded.clear()
    assert codecs.codec_rows(images, count=9, cache=tmp_path) == rows and len(coded) == 2


def test_a_stopped_call_goes_on(coded, tmp_path):
    images, told = images_of(0), []

    def stop(done, total):
        told.append((done, total))
        if done == 7:
            raise Stopped(15)

    with pytest.raises(Stopped):
        codecs.codec_rows(images, cache=tmp_path, on_file=stop)
    assert told == [(done, 26) for done in range(8)]
    coded.clear()
    rows = codecs.codec_rows(images, cache=tmp_path)
    assert 2 <= len(coded) <= 2 + 26 - 7, "what was being coded at the stop is kept too"
    assert rows == codecs.codec_rows(images)


def test_other_images_orders_and_damaged_files_are_not_used(coded, tmp_path):
    images = images_of(0)
    codecs.codec_rows(images, cache=tmp_path)
    for other, words in ((images_of(1), {}), (images, {"order": "another"})):
        coded.clear()
        rows = codecs.codec_rows(other, cache=tmp_path, **words)
        assert len(coded) == 2 + 26 and rows == codecs.codec_rows(other)
    kept = sorted(tmp_path.iterdir())
    whole = kept[0].read_bytes()
    kept[0].write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    kept[1].write_bytes(kept[2].read_bytes())  # of another key
    with pytest.warns(UserWarning, match="SHA-256 differs") as caught:
        for each in ({}, {"order": "another"}):
            assert codecs.codec_rows(images, cache=tmp_path, **each) == rows
        codecs.codec_rows(images_of(1), cache=tmp_path)
    assert len(caught) == 2


def test_a_folder_that_cannot_be_written_is_a_warning(tmp_path):
    (tmp_path / "file").touch()
    with pytest.warns(UserWarning, match="not kept"):
        rows = codecs.codec_rows(images_of(0), count=2, cache=tmp_path / "file")
    assert rows == codecs.codec_rows(images_of(0), count=2)


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_images_are_coded_as_the_model_sees_them(cache, capsys):
    images = images_of(0)
    flow = Flow(ShufflePixels((3, 6, 5), seed=3), (3, 6, 5), levels=256)
    rows = code_images(flow, images, count=3, quiet=True)
    sample = torch.from_numpy(images.pixels[codecs.sample_of(images, 3)])
    shuffled = flow.transform.shuffle(sample).numpy()
    for row in rows:
        bits = pictures.codec_bits(shuffled, row.codec, sheet=row.sheet)
        assert row.bits_per_dim == pytest.approx(bits, abs=1e-12)
    print_codecs(rows, flow, images)
    assert "shuffled" in capsys.readouterr().out


def test_evaluate_shows_a_sample_after_the_flow(cache, tmp_path, capsys):
    words = ["evaluate", str(small_run(tmp_path))]
    assert main([*words, "--codec-images", "3", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    errors = result["codec_sample"].pop("standard_errors")
    assert result["codec_sample"] == {"images": 3, "of": 12}
    assert [name for name, error in errors.items() if error] == [
        "png, a file an image",
        "webp, a file an image",
    ]
    assert main([*words, "--codec-images", "3"]) == 0
    told = capsys.readouterr().out
    assert told.index("single-sample") < told.index("lossless code")
    assert "a sample of the 12 images; --codec-images 0 codes all" in told
    assert f"{result['codecs']['webp, one sheet']:.3f}" in told
    assert main([*words, "--codec-images", "0"]) == 0
    assert "a sample" not in capsys.readouterr().out
    assert main([*words, "--codec-images", "-1"]) == 2
    assert "--codec-images: give at least 1, or 0 for all" in capsys.readouterr().err


def test_codec_rows_stay_after_an_evaluation_without_them(cache, tmp_path, capsys):
    run = small_run(tmp_path)

    def kept():
        (path,) = (run / "evaluations").glob("*.json")
        return path, json.loads(path.read_text())

    assert main(["evaluate", str(run)]) == 0
    path, first = kept()
    assert first["codecs"]["webp, one sheet"] > 0 and first["codec_sample"]["of"] == 12
    assert main(["evaluate", str(run), "--no-codecs"]) == 0
    assert kept()[1] == first
    assert main(["evaluate", str(run), "--codec-images", "2"]) == 0
    assert kept()[1] == first, "a smaller sample replaces none"
    forged = {"codecs": {"webp, one sheet": "many"}, "codec_sample": ["anything"]}
    for damage in ({"images_sha256": "of others"}, forged, {"codecs": []}):
        path.write_bytes(sealed(first | damage))
        assert main(["evaluate", str(run), "--no-codecs"]) == 0
        assert kept()[1]["codecs"] == {}
    path.write_text("[" * 1000)
    assert main(["evaluate", str(run), "--codec-images", "2"]) == 0
    assert kept()[1]["codec_sample"]["images"] == 2


def test_flags_without_an_effect_are_refused(cache, tmp_path, capsys):
    run = str(small_run(tmp_path))
    assert main(["evaluate", run, "--no-codecs", "--codec-images", "9"]) == 2
    assert "--codec-images: leave out --no-codecs" in capsys.readouterr().err
    assert main(["evaluate", run, "--trust"]) == 2
    assert "nothing is compared: --trust: give --fid too" in capsys.readouterr().err


def test_images_that_no_codec_has_are_told(capsys):
    pixels = np.zeros((3, 2, 4, 4), np.uint16)
    images = make_images(pixels, None, dataset_id="deep")
    flow = Flow(ShufflePixels((2, 4, 4), seed=3), (2, 4, 4), levels=256)
    print_codecs(codecs.codec_rows(images, count=2), flow, images)
    told = "png and webp: no files of images with 2 channels of uint16\n"
    assert capsys.readouterr().out == told
    with pytest.raises(ValueError, match="at least 1"):
        codecs.codec_rows(images_of(0), count=0)


def test_a_single_image_has_no_standard_error(cache, tmp_path, capsys):
    run = str(small_run(tmp_path))
    assert main(["evaluate", run, "--images", "1", "--importance-samples", "2"]) == 0
    told = capsys.readouterr().out
    assert "nan" not in told and "gain" in told


def test_a_signal_during_codecs_keeps_the_figure(cache, tmp_path, capsys, monkeypatch):
    run = small_run(tmp_path)

    def signalled(*given, **settings):
        os.kill(os.getpid(), signal.SIGTERM)
        return codecs.coded_as_seen(*given, **settings)

    monkeypatch.setattr("mixerflow.cli.codecs.coded_as_seen", signalled)
    assert main(["evaluate", str(run)]) == 143
    assert "stopped after 0 of 26 files: the same command goes on" in capsys.readouterr().err
    (kept,) = (run / "evaluations").glob("*.json")
    assert json.loads(kept.read_text())["codecs"] == {}


def test_a_signal_while_samples_are_drawn_is_told(cache, tmp_path, capsys, monkeypatch):
    def signalled(*_given, on_batch, batch, **_settings):
        assert batch == 5
        os.kill(os.getpid(), signal.SIGTERM)
        on_batch(4)

    monkeypatch.setattr("mixerflow.cli.frechet.compare", signalled)
    images, settings = images_of(0), {"samples": 4, "seed": 0, "split": "", "batch": 5}
    with pytest.raises(Stopped) as stopped:
        frechet(None, images, None, **settings, quiet=True)
    assert stopped.value.exit_code == 143
    assert "stopped after 4 of 16 images and samples: the figure is kept" in capsys.readouterr().err


def test_an_older_file_that_is_none_is_passed_over(tmp_path):
    path, result = tmp_path / "old.json", {"images_sha256": "same", "codecs": {}}
    entries = {"codecs": {"png, one sheet": 3.0}, "codec_sample": {"images": 5}}
    path.write_bytes(sealed({"images_sha256": "same"} | entries))
    assert larger_sample(path, result) == entries
    for forged in ({"codec_sample": {"images": "many"}}, {"codec_sample": [1]}, {"codecs": 3}):
        path.write_bytes(sealed({"images_sha256": "same"} | entries | forged))
        assert larger_sample(path, result) == {}
    path.unlink()
    os.mkfifo(path)  # reading it would not end
    assert larger_sample(path, result) == {}
    path.unlink()
    path.symlink_to("/dev/zero")
    assert larger_sample(path, result) == {}
