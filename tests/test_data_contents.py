"""Content decides what a file is; whatever lies in a folder is read, refused or listed."""

import gzip
import io
import mimetypes
import os
import pickle
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mixerflow.data import load, pixel_cache
from mixerflow.data.listing import count_line
from mixerflow.data.signatures import READ_ENDINGS
from mixerflow.errors import DataError

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (6, 5, 3), dtype=np.uint8)
READ = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
NOT_READ = ("TGA", "ICO", "PCX", "JPEG2000", "AVIF", "DDS", "SGI", "EPS", "PDF", "QOI", "XBM")
NOT_READ += ("MSP", "BLP")
START = {  # of formats that Pillow does not write
    "HEIF": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
    "Canon raw": b"\0\0\0\x18ftypcrx \0\0\0\1crx isom",
    "JPEG XL": b"\xff\x0a\x90\x01",
    "JPEG XL box": b"\0\0\0\x0cJXL \r\n\x87\n",
    "JPEG XR": b"II\xbc\x01",
    "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'>",
    "SVG with a head": b"<?xml version='1.0' encoding='UTF-8'?>\n<!-- one -->\n<svg width='2'>",
    "Photoshop": b"8BPS\0\1" + bytes(20),
    "OpenEXR": b"v/1\x01\2\0\0\0",
    "Radiance": b"#?RADIANCE\n",
    "FITS": b"SIMPLE  =                    T",
    "PAM": b"P7\nWIDTH 1\n",
    "PFM": b"PF\n1 1\n-1.0\n",
    "CUR": b"\0\0\2\0\1\0\x20\x20\0\0\0\0",
    "ICNS": b"icns\0\0\x10\0",
    "Fuji raw": b"FUJIFILMCCD-RAW 0201",
    "DICOM": bytes(128) + b"DICM",
}


def encoded(kind: str) -> bytes:
    out = io.BytesIO()
    image = Image.fromarray(RGB).resize((32, 32)) if kind == "ICO" else Image.fromarray(RGB)
    modes = {"XBM": "1", "MSP": "1", "BLP": "P"}
    image.convert(modes.get(kind, "RGB")).save(out, kind)
    return out.getvalue()


def put(path: Path, content: bytes | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded("PNG") if content is None else content)
    return path


def refused(path: Path, *fragments: str) -> None:
    with pytest.raises(DataError) as caught:
        load(path)
    for fragment in ("", *fragments):
        assert "\n" not in str(caught.value) and fragment in str(caught.value), str(caught.value)


@pytest.mark.parametrize(
    "name", ["a", "a.png", "a.jpg", "a.txt", "a.npy", "a.tga", "a.b.c", "train"]
)
@pytest.mark.parametrize("kind", READ)
def test_an_image_is_read_under_any_name_in_a_folder_and_alone(tmp_path, kind, name):
    path = put(tmp_path / "in" / name, encoded(kind))
    with Image.open(path) as image:
        expected = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    for spec in (tmp_path / "in", path):
        train = load(spec).train
        assert np.array_equal(train.pixels, expected[None]) and train.skipped == ()


@pytest.mark.parametrize("name", ["a", "a.png", "a.txt"])
@pytest.mark.parametrize("kind", [*NOT_READ, *START])
def test_other_formats_are_refused_by_name_under_any_name(tmp_path, kind, name, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a process"))
    put(tmp_path / "good.png")
    bad = put(tmp_path / name, START.get(kind) or encoded(kind))
    refused(tmp_path, str(bad), "not read here", "save it as PNG")
    refused(bad, str(bad), "not read here")
    train = load(tmp_path, on_bad_image="skip").train
    assert len(train) == 1 and any(str(bad) in line for line in train.skipped)


def image_endings() -> list[str]:
    table = [ending for ending, kind in mimetypes.types_map.items() if kind.startswith("image/")]
    more = (
        ".jxl .psd .exr .hdr .nef .cr2 .cr3 .dng .arw .raf .orf .rw2 .heics .dcm .xcf .svg".split()
    )
    return sorted({*Image.registered_extensions(), *table, *more} - READ_ENDINGS)


def test_unknown_content_under_an_images_ending_is_refused_by_name(tmp_path):
    put(tmp_path / "good.png")
    endings = image_endings()
    for index, ending in enumerate(endings):
        bad = put(tmp_path / f"{index}{ending.upper()}", b"unknown")
        refused(tmp_path, str(bad), "is a format that is not read here")
        bad.unlink()
    assert len(endings) > 60


@pytest.mark.parametrize("ending", [".nef", ".DNG", ".arw"])
def test_a_raw_photograph_is_not_its_preview(tmp_path, ending):
    refused(put(tmp_path / f"a{ending}", encoded("TIFF")), "not read here")


def test_what_is_no_image_is_listed_one_line_a_kind(tmp_path):
    put(tmp_path / "a.png")
    for name in ("README.txt", "sub/captions", "labels.csv", "empty", "archive.zip"):
        put(tmp_path / name, b"" if name == "empty" else b"a text, say")
    for name in (".DS_Store", "sub/._a.png", ".hidden/b.png"):
        put(tmp_path / name, b"x")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe")
    skipped = load(tmp_path).train.skipped
    assert skipped == (
        f"{tmp_path}: 3 files are hidden: .DS_Store, .hidden, sub/._a.png",
        f"{tmp_path}: 5 files are no images: README.txt, archive.zip, empty, labels.csv,"
        " sub/captions",
        f"{tmp_path}: 2 files are no regular files: gone, pipe",
    )


def test_a_line_names_ten_files_and_counts_all(tmp_path):
    names = [f"{index:04}.txt" for index in range(1204)]
    line = count_line(reversed(names), "no image", tmp_path)
    assert line == f"{tmp_path}: 1,204 files are no images: {', '.join(names[:10])}, ..."


def test_files_beside_split_folders_are_listed(tmp_path):
    for name in ("train/a.png", "test/a.png"):
        put(tmp_path / name)
    put(tmp_path / "README", b"text")
    put(tmp_path / "test" / "list", b"text")
    splits = load(tmp_path)
    assert splits.train.skipped == (f"{tmp_path}: 2 files are no images: README, test/list",)


def test_a_cached_folder_opens_only_files_without_an_images_ending(tmp_path, monkeypatch):
    monkeypatch.setattr(pixel_cache, "MEMORY_LIMIT", 1)
    put(tmp_path / "in" / "a.png")
    other = put(tmp_path / "in" / "b", b"text")
    load(tmp_path / "in", cache=tmp_path / "cache")
    opened = []
    monkeypatch.setattr("mixerflow.data.listing.sniff", lambda path: opened.append(path) or b"")
    train = load(tmp_path / "in", cache=tmp_path / "cache").train
    assert opened == [str(other)] and train.skipped == (f"{other}: no image",)
    monkeypatch.undo()
    monkeypatch.setattr(pixel_cache, "MEMORY_LIMIT", 1)
    put(other)  # now it is an image
    assert len(load(tmp_path / "in", cache=tmp_path / "cache").train) == 2


@pytest.mark.parametrize("kind", READ)
def test_only_the_decoder_of_the_content_is_tried(tmp_path, kind, monkeypatch):
    path, tried, opened = put(tmp_path / "a.eps", encoded(kind)), [], Image.open
    monkeypatch.setattr(
        Image,
        "open",
        lambda file, formats=None: tried.append(formats) or opened(file, "r", formats),
    )
    load(path)
    assert tried and set(tried) == {(kind,)}


def test_eps_in_disguise_starts_no_program(tmp_path):
    """In a process of its own: a system call for any other program is seen by an audit hook."""
    put(tmp_path / "a.png", encoded("EPS"))
    code = (
        "import sys\n"
        "from mixerflow.data import load\n"
        "seen = []\n"
        "sys.addaudithook(lambda name, _: seen.append(name) if name in"
        " ('subprocess.Popen', 'os.system', 'os.exec', 'os.posix_spawn', 'os.fork') else None)\n"
        "try: load(sys.argv[1])\n"
        "except Exception as error: print(error, seen)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True
    )
    assert "EPS is a format that is not read here" in done.stdout and "[]" in done.stdout


# --- names of published batches and idx files


@pytest.mark.parametrize(
    "name",
    [
        "train",
        "test",
        "meta",
        "data_batch_1",
        "test_batch",
        "train.bin",
        "val_data.npz",
        "train_data_batch_1",
        "train-images-idx3-ubyte",
        "t10k-labels.idx1-ubyte",
    ],
)
@pytest.mark.parametrize("content", [b"a.png\nb.png\n", None], ids=["list", "picture"])
def test_a_name_of_a_published_file_in_an_image_folder(tmp_path, name, content):
    put(tmp_path / "a.png")
    other = put(tmp_path / name, content)
    train = load(tmp_path).train
    assert len(train) == (2 if content is None else 1)
    assert train.skipped == (() if content is None else (f"{other}: no image",))


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def put_idx(folder: Path, prefix: str, count: int, test: str = "t10k", zipped=False) -> np.ndarray:
    pixels = RNG.integers(0, 256, (count, 4, 3), dtype=np.uint8)
    for split in ("train", test):
        for kind, array in (("images", pixels), ("labels", np.arange(count, dtype=np.uint8))):
            name = f"{prefix}{split}-{kind}-idx{array.ndim}-ubyte"
            content = gzip.compress(idx(array)) if zipped else idx(array)
            put(folder / (name + ".gz" * zipped), content)
    return pixels


@pytest.mark.parametrize(
    ("place", "prefix", "test", "zipped"),
    [
        ("", "emnist-letters-", "test", True),
        ("", "emnist-letters-", "test", False),
        ("", "", "t10k", True),
        ("raw", "", "t10k", False),
        ("raw", "emnist-digits-", "test", True),
        ("KMNIST/raw", "", "t10k", False),
        ("", "Kuzushiji-", "t10k", False),
        ("", "qmnist-", "test", True),
    ],
)
def test_idx_sets_by_any_of_their_names(tmp_path, place, prefix, test, zipped):
    pixels = put_idx(tmp_path / place, prefix, 3, test, zipped)
    splits = load(tmp_path)
    for split in (splits.train, splits.test):
        assert np.array_equal(split.pixels[:, 0], pixels) and split.labels.tolist() == [0, 1, 2]


def test_one_of_several_idx_sets_is_asked_for_and_can_be_named(tmp_path):
    sets = {"emnist-letters": put_idx(tmp_path, "emnist-letters-", 3)}
    sets |= {"emnist-digits": put_idx(tmp_path, "emnist-digits-", 4)}
    sets |= {"KMNIST": put_idx(tmp_path / "KMNIST" / "raw", "", 5)}
    refused(tmp_path, "3 sets", *(str(tmp_path / name) for name in sets))
    for name, pixels in sets.items():
        assert np.array_equal(load(tmp_path / name).train.pixels[:, 0], pixels)


def test_files_beside_idx_files_and_batches_are_listed(tmp_path):
    put_idx(tmp_path / "a", "", 2)
    put(tmp_path / "a" / "photo.png")
    assert load(tmp_path / "a").train.skipped == (f"{tmp_path / 'a' / 'photo.png'}: not used",)
    rows = {"data": RNG.integers(0, 256, (2, 3072), dtype=np.uint8), "labels": [1, 2]}
    put(tmp_path / "b" / "data_batch_1", pickle.dumps(rows))
    for name in ("readme.html", "batches.meta"):
        put(tmp_path / "b" / name, b"about")
    (line,) = load(tmp_path / "b").train.skipped
    assert line == f"{tmp_path / 'b'}: 2 files are not used: batches.meta, readme.html"
