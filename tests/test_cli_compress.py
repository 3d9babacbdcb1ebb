"""``mixerflow compress``, ``decompress`` and ``info ARCHIVE``: words to files and back."""

import json
import os
import signal
import zipfile

import numpy as np
import pytest
from PIL import Image

from coding import trained
from mixerflow import progress
from mixerflow.cli import main, unpacked
from mixerflow.compression import Archive, Codec
from mixerflow.compression.coded import Part
from mixerflow.compression.layout import Header
from mixerflow.data import load
from mixerflow.errors import ConfigError, DataError

HEADER = Header((1, 4, 4), 256, 16, "", "", {"name": "", "sha256": "", "embedded": False})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("compress"))


@pytest.fixture(scope="module")
def archive(run, tmp_path_factory):
    """Its own images, in blocks of 5."""
    to = tmp_path_factory.mktemp("archive") / "x.mfa"
    assert main([str(word) for word in [*given(run), "--out", to, "--block", 5]]) == 0
    return to


def given(run):
    return ["compress", run, "--data", run.parent / "images"]


@pytest.fixture
def told(capsys):
    def tell(*words):
        capsys.readouterr()
        code = main([str(word) for word in words])
        said = capsys.readouterr()
        return code, said.out, said.err.splitlines()

    return tell


def damaged(archive, to, *, block=1):
    with Archive(archive) as opened:
        place = opened._places[block]
    data = bytearray(archive.read_bytes())
    data[place + 100] ^= 1
    to.write_bytes(data)
    return to


def test_a_folder_comes_back_file_by_file(run, archive, tmp_path, told):
    code, out, _ = told("decompress", archive, "--out", tmp_path / "back")
    assert code == 0 and out.startswith(f"20 images in {tmp_path / 'back'}, ")
    before, after = (load(folder).train for folder in (run.parent / "images", tmp_path / "back"))
    assert after.files == before.files and after.classes == before.classes
    assert np.array_equal(after.pixels, before.pixels)
    assert np.array_equal(after.labels, before.labels) and not after.skipped
    assert [path.name for path in tmp_path.iterdir()] == ["back"]


def test_arrays_come_back_as_they_are_read(run, archive, tmp_path, told):
    before = load(run.parent / "images").train
    assert told("decompress", archive, "--out", tmp_path / "x.npz")[0] == 0
    after = load(tmp_path / "x.npz").train
    assert np.array_equal(after.pixels, before.pixels)
    assert np.array_equal(after.labels, before.labels)
    with np.load(tmp_path / "x.npz") as arrays:
        assert tuple(arrays["names"]) == before.files and tuple(arrays["classes"]) == ("0", "cat")
    code, _, lines = told("decompress", archive, "--out", tmp_path / "x.npy", "--start", 7)
    assert code == 0 and lines == [f"{tmp_path / 'x.npy'} has no labels; an .npz file would"]
    assert np.array_equal(load(tmp_path / "x.npy").train.pixels, before.pixels[7:])
    # and the archive of the arrays has the labels as a table
    again = tmp_path / "again.mfa"
    assert told("compress", run, "--data", tmp_path / "x.npz", "--out", again)[0] == 0
    assert told("decompress", again, "--out", tmp_path / "f", "--start", 3, "--stop", 5)[0] == 0
    assert sorted(path.name for path in (tmp_path / "f").iterdir()) == [
        "00003.png",
        "00004.png",
        "labels.csv",
    ]
    head, first, _ = (tmp_path / "f" / "labels.csv").read_text().splitlines()
    assert head == "image,file,label,class" and first == "3,00003.png,0,"


def test_a_summary_and_info_count_names_labels_and_weights_apart(run, tmp_path, told):
    to = tmp_path / "x.mfa"
    code, out, _ = told(*given(run), "--out", to, "--weights", "embed", "--json")
    found, size = json.loads(out), to.stat().st_size
    assert code == 0 and found["bytes"] == size and found["images"] == 20
    apart = sum(found[f"bytes_for_{each}"] for each in ("images", "names", "labels", "weights"))
    assert apart == size and found["bytes_for_weights"] > 1000
    assert found["bits_per_dim"] == 8 * found["bytes_for_images"] / (20 * 16)
    code, out, _ = told("info", to, "--json")
    shown = json.loads(out)
    assert (
        code == 0
        and {k: v for k, v in found.items() if k in shown} | {"header": shown["header"]} == shown
    )
    code, out, _ = told("info", to)
    assert code == 0 and f"{to}: 20 images, {size:,} bytes, 1 block, k = 12" in out
    assert "inside, SHA-256" in out and "images of 4 x 4 x 1, 256 levels, 2 classes" in out
    run.rename(run.with_name("gone"))  # what is inside is enough
    try:
        assert told("decompress", to, "--out", tmp_path / "x.npy")[0] == 0
    finally:
        run.with_name("gone").rename(run)
    bare = tmp_path / "bare.mfa"
    assert told(*given(run), "--out", bare, "--no-names", "--no-labels")[0] == 0
    found = json.loads(told("info", bare, "--json")[1])
    assert found["bytes_for_names"] == found["bytes_for_labels"] == 0


def test_a_lost_block_is_named_and_the_others_are_written(archive, tmp_path, told):
    bad = damaged(archive, tmp_path / "bad.mfa")
    code, out, lines = told("decompress", bad, "--out", tmp_path / "x.npy")
    assert code == 3 and out.startswith("15 images in ")
    lost = "lost: images 5 to 9, block 1: the digest of its payload differs"
    assert lost in lines and lines[-1] == (
        f"error: 5 of 20 images are lost, the others are in {tmp_path / 'x.npy'}: {bad}: "
        "fetch the archive again"
    )
    with Archive(archive) as opened:
        pixels = Codec.of(opened).decode(archive).images
    assert np.array_equal(
        np.load(tmp_path / "x.npy")[:, None], np.delete(pixels, range(5, 10), axis=0)
    )
    assert told("decompress", bad, "--out", tmp_path / "x.npz")[0] == 3
    assert len(np.load(tmp_path / "x.npz")["labels"]) == 15
    code, _, lines = told("decompress", bad, "--out", tmp_path / "f")
    assert code == 3 and len([*(tmp_path / "f").rglob("*.png")]) == 15
    assert told("decompress", bad, "--out", tmp_path / "g", "--start", 10)[0] == 0
    code, _, lines = told("decompress", bad, "--out", tmp_path / "h", "--start", 6, "--stop", 8)
    assert code == 3 and not (tmp_path / "h").exists() and "block 1" in lines[-1]


def test_an_archive_that_was_cut_short(archive, tmp_path, told):
    cut = tmp_path / "cut.mfa"
    with Archive(archive) as opened:
        cut.write_bytes(archive.read_bytes()[: opened._places[3] + 99])
    code, _, lines = told("decompress", cut, "--out", tmp_path / "x.npy")
    assert code == 3 and lines == [
        f"error: archive damaged (cut short): {cut}: fetch or write it again, or read what is left "
        "with --rescue"
    ]
    assert told("info", cut)[0] == 3
    code, out, lines = told("decompress", cut, "--out", tmp_path / "x.npy", "--rescue")
    assert code == 0 and lines[0].startswith("rescued: 3 blocks, up to image 14")
    assert out.startswith("15 images in ")


@pytest.mark.parametrize(
    ("words", "line", "code"),
    [
        (["--data", "X.npz", "--block", 0], "0: --block: give at least 1", 2),
        (["--data", "X.npz", "--k", 25], "25: --k: give 1 to 24", 2),
        (["--data", "X.npz", "--images", 0], "0 images: --images: give at least 1", 2),
        (
            ["--data", "two.npz"],
            "several parts: training, test: npz:two.npz: give --split train",
            2,
        ),
        (["--data", "wide.npz"], "images are (1, 4, 5), the run's are (1, 4, 4)", 3),
        (["--data", "deep.npz"], "pixels have 65,536 levels, the run's have 256", 3),
        (["--data", "X.npz", "--split", "validation"], "no validation images", 2),
        (["--out", "X.npz"], "another file is there, no archive: X.npz: name another", 2),
        (["--out", "images/x.mfa"], "the output lies in the folder of the images", 2),
        (["--weights", "inside"], "'inside' does not fit --weights", 2),
    ],
)
def test_mistakes_of_compress(words, line, code, run, told, monkeypatch):
    monkeypatch.chdir(run.parent)
    x = np.zeros((3, 4, 4), np.uint8)
    np.savez("X.npz", images=x)
    np.savez("two.npz", train_images=x, test_images=x)
    np.savez("wide.npz", images=np.zeros((3, 4, 5), np.uint8))
    np.savez("deep.npz", images=x.astype(np.uint16))
    out = [] if "--out" in words else ["--out", "x.mfa"]
    data = [] if "--data" in words else ["--data", "images"]
    found, _, lines = told("compress", "run", *words, *out, *data)
    assert found == code and line in lines[-1] and not os.path.exists("x.mfa")


def test_a_model_that_the_codec_does_not_take(tmp_path, told):
    from helpers import small_run

    run = small_run(tmp_path)  # whose couplings are no affine ones
    code, _, lines = told("compress", run, "--out", tmp_path / "x.mfa")
    assert code == 2 and lines[-1].startswith("error: the codec does not take a model that has ")


@pytest.mark.parametrize(
    ("words", "line", "code"),
    [
        (["--stop", 21], "no images from 0 to before 21: --stop: the archive has 20", 2),
        (["--start", 20], "no images from 20 to before 20: --start: the archive has 20", 2),
        (["--start", -1], "no images from -1", 2),
        (["--out", "full"], "other files are there: --out full: name a new folder", 2),
        (["--out", "full/a"], "a file is there: --out full/a: name a new folder", 2),
        (["--weights", "weights/digits-affine"], "other weights than the archive's", 4),
        (["--weights", "nothing"], "no run here: nothing", 4),
        (["--out", "full/a.npy"], "a file is there: --out full/a.npy: name a new one", 2),
        (["--out", "full/a.NPZ"], "a file is there: --out full/a.NPZ: name a new one", 2),
        (["--out", "full/link.npz"], "a file is there: --out full/link.npz: name a new one", 2),
    ],
)
def test_mistakes_of_decompress(words, line, code, archive, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    there = ["a", "a.NPZ", "a.npy"]
    for name in there:
        (tmp_path / "full" / name).write_text("kept")
    (tmp_path / "full" / "link.npz").symlink_to("a")
    out = [] if "--out" in words else ["--out", "x.npy"]
    found, _, lines = told("decompress", archive, *words, *out)
    assert found == code and line in lines[-1]
    assert [*os.listdir()] == ["full"] and sorted(os.listdir("full")) == [*there, "link.npz"]
    assert {(tmp_path / "full" / name).read_text() for name in there} == {"kept"}


def test_no_archive(tmp_path, told):
    for path, line in (("none", "no such file"), (".", "no file"), ("a.png", "no archive of")):
        (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
        code, _, lines = told("decompress", tmp_path / path, "--out", tmp_path / "x")
        assert code == 3 and lines[-1].startswith(f"error: {line}")
    os.mkfifo(tmp_path / "pipe")
    assert told("decompress", tmp_path / "pipe", "--out", tmp_path / "x")[0] == 3


@pytest.mark.parametrize(
    "name",
    ["../x", "/x", "a/../../x", "a//b", "", ".", "a/.", "x\0y", "a" * 252 + ".jpg", "a/", "./a"],
)
def test_names_that_leave_their_folder_are_refused(name):
    with pytest.raises(DataError) as caught:
        unpacked.file_name(name)
    assert caught.value.exit_code == 3 and "\n" not in str(caught.value)


def test_a_file_that_appears_meanwhile_is_kept_and_a_pipe_is_written(tmp_path):
    part = Part(0, 0, np.zeros((2, 1, 4, 4), np.uint8), None, (), 0)
    for name in ("x.npy", "x.npz"):
        with pytest.raises(ConfigError, match="a file is there"):
            with unpacked.open_output(tmp_path / name, HEADER, 2) as output:
                output.add(part)
                (tmp_path / name).write_text("kept")
        assert (tmp_path / name).read_text() == "kept"
    assert len([*tmp_path.iterdir()]) == 2
    (tmp_path / "null.npy").symlink_to("/dev/null")
    (tmp_path / "x").touch()
    unpacked.require_output(tmp_path / "null.npy", HEADER, tmp_path / "x")
    with unpacked.open_output(tmp_path / "null.npy", HEADER, 2) as output:
        output.add(part)


@pytest.mark.parametrize(
    ("names", "line"),
    [
        (("labels.csv/b", "a"), "an image has the name 'labels.csv/b.png', and the labels go to"),
        (("x.bmp.png", "x.bmp"), "the name 'x.bmp.png', or it lies in an image; one of them is"),
        (("a" * 251 + ".bmp", "b"), "name, with .png at its end, is longer than 255 bytes: 'aaa"),
        (("a/" * 2040 + "b", "b"), "is no file's here (File name too long)"),
    ],
)
def test_names_that_no_folder_can_have_name_themselves(names, line, tmp_path):
    part = Part(0, 0, np.zeros((2, 1, 4, 4), np.uint8), np.array([1, 2]), names, 0)
    with pytest.raises(DataError) as caught:
        with unpacked.open_output(tmp_path / "out", HEADER, 2) as output:
            output.add(part)
    said = str(caught.value)
    assert line in said and ".tmp-" not in said and said.endswith("FILE.npz")
    assert not [*tmp_path.iterdir()]


def test_names_of_files():
    assert unpacked.file_name("a/b.png") == "a/b.png"
    assert unpacked.file_name("a/b.jpg") == "a/b.jpg.png"
    assert unpacked.file_name("..b/...PNG") == "..b/...PNG"


def test_equal_names_and_links_overwrite_nothing(tmp_path):
    pixels = np.zeros((2, 1, 4, 4), np.uint8)
    for names in (("a.png", "a.png"), ("a.png", "a.png/b")):
        part = Part(0, 0, pixels, None, names, 0)
        out = tmp_path / "out"
        with pytest.raises(DataError, match="two images have the name"):
            with unpacked.open_output(out, HEADER, 2) as output:
                output.add(part)
        assert not [*tmp_path.iterdir()]
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("there")
    with unpacked.open_output(tmp_path / "link", HEADER, 2) as output:
        output.add(Part(0, 0, pixels, None, (), 0))
    assert len([*(tmp_path / "there").iterdir()]) == 2 and (tmp_path / "link").is_symlink()


@pytest.mark.parametrize("shape", [(2, 4, 4), (4, 4, 4), (1, 16), (1, 2, 2, 4)])
def test_images_that_png_does_not_have_go_to_arrays(shape, tmp_path):
    header = Header(shape, 256, 16, "", "", HEADER.weights)
    with pytest.raises(Exception, match="PNG has no images") as caught:
        unpacked.require_output(tmp_path / "f", header, tmp_path / "x")
    assert caught.value.exit_code == 2
    pixels = np.random.default_rng(0).integers(0, 256, (3, *shape)).astype(np.uint8)
    with unpacked.open_output(tmp_path / "x.npy", header, 5) as output:
        output.add(Part(0, 0, pixels, None, (), 0))
    assert np.array_equal(np.load(tmp_path / "x.npy"), np.moveaxis(pixels, 1, -1))


def test_sixteen_bits_as_png_and_arrays(tmp_path):
    header = Header((1, 4, 4), 65536, 16, "", "", HEADER.weights)
    pixels = np.random.default_rng(0).integers(0, 65536, (2, 1, 4, 4)).astype(np.uint16)
    for name in ("f", "x.npy", "x.npz"):
        unpacked.require_output(tmp_path / name, header, tmp_path / "x")
        with unpacked.open_output(tmp_path / name, header, 2) as output:
            output.add(Part(0, 0, pixels, None, (), 0))
        assert np.array_equal(load(tmp_path / name).train.pixels, pixels)
    with Image.open(tmp_path / "f" / "00000.png") as image:
        assert image.mode == "I;16"
    with zipfile.ZipFile(tmp_path / "x.npz") as packed:
        assert packed.namelist() == ["images.npy"]


@pytest.mark.parametrize("command", ["compress", "decompress"])
def test_a_signal_ends_quietly_and_leaves_nothing(
    command, run, archive, tmp_path, told, monkeypatch
):
    from mixerflow.compression import coded

    tell = coded.Watch.tell

    def signalled(watch):
        os.kill(os.getpid(), signal.SIGINT)
        tell(watch)

    monkeypatch.setattr(coded.Watch, "tell", signalled)
    out = ["--out", tmp_path / "x.npy"]
    words = given(run) if command == "compress" else [command, archive]
    code, said, lines = told(*words, *out)
    assert code == 130 and not said and not [*tmp_path.iterdir()]
    assert lines[-1].endswith("of 20 images: nothing is kept")


def test_classes_of_other_images_are_told(archive, told, tmp_path):
    """A class-conditional model and images without classes, or with others."""
    np.savez(tmp_path / "x.npz", images=np.zeros((2, 32, 32, 3), np.uint8), labels=[3, 12])
    given = ["--data", tmp_path / "x.npz", "--out", tmp_path / "x.mfa"]
    code, _, lines = told("compress", "weights/cifar10", *given)
    assert code == 0
    assert "the images' classes are not the run's: the likeliest is chosen for each" in lines
    np.savez(tmp_path / "y.npz", images=np.zeros((2, 32, 32, 3), np.uint8), labels=[3, 9])
    of_run = ["--data", tmp_path / "y.npz", "--out", tmp_path / "y.mfa", "--verify"]
    code, out, lines = told("compress", "weights/cifar10", *of_run)
    assert code == 0 and "verified: each block was decoded again, to the same pixels" in out
    assert "labels without names are the run's classes, 0 to 9" in lines
    with Archive(tmp_path / "y.mfa") as opened:
        assert opened.read(0).classes is None and opened.read(0).labels.tolist() == [3, 9]
    code, _, lines = told("compress", "weights/cifar10", *given, "--no-labels")
    assert code == 0
    found = Codec.of(tmp_path / "x.mfa").decode(tmp_path / "x.mfa")
    assert found.labels is None and not found.images.any()


def test_the_bar_tells_no_time_before_it_has_one(capsys, monkeypatch):
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", 0.0)
    with progress.ProgressBar("image", 10) as bar:
        bar.wait("choosing k on a sample")
        bar.update(0, "figures")
        bar.update(5, "figures")
    lines = capsys.readouterr().err.splitlines()
    assert lines[:2] == ["image 0/10  choosing k on a sample", "image 0/10  figures"]
    assert lines[2] == "image 5/10  figures  0:00:00 left"
