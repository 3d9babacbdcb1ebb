"""Arrays of every type and shape, and npz archives with any keys: read, refused or listed."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from mixerflow.data import load
from mixerflow.data.formats import read_npz
from mixerflow.errors import DataError, MixerFlowError

IMAGES = np.arange(5 * 4 * 3, dtype=np.uint8).reshape(5, 4, 3)
LABELS = np.arange(5)


def refused(path: Path, *fragments: str) -> None:
    with pytest.raises(MixerFlowError) as caught:
        load(path)
    for fragment in (str(path), *fragments):
        assert "\n" not in str(caught.value) and fragment in str(caught.value), str(caught.value)


def save(path: Path, array: np.ndarray) -> Path:
    np.savez(path, images=array) if path.suffix == ".npz" else np.save(path, array)
    return path


@pytest.mark.parametrize("name", ["a.npz", "a.npy"])
@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((2, 4, 4), np.complex64), "complex64"),
        (np.array([None, 1]), "Python objects"),
        (np.full((2, 4, 4), None), "Python objects"),
        (np.zeros((2, 4, 4), [("r", "u1"), ("g", object)]), "Python objects"),
        (np.uint8(3), "shape ()"),
        (np.zeros(4, np.uint8), "shape (4,)"),
        (np.zeros((1, 2, 3, 4, 5), np.uint8), "shape (1, 2, 3, 4, 5)"),
        (np.zeros((2, 4, 0), np.uint8), "(2, 4, 0)"),
        (np.zeros((2, 4, 4, 0), np.uint8), "(2, 4, 4, 0)"),
        (np.zeros((0, 4, 4), np.uint8), "(0, 4, 4)"),
        (np.zeros((2, 4, 4), [("r", "u1"), ("g", "u1")]), "'r'"),
        (np.zeros((2, 4, 4), "M8[s]"), "datetime64"),
        (np.zeros((2, 4, 4), "S2"), "|S2"),
        (np.zeros((2, 4, 4), "V2"), "|V2"),
        (np.zeros((2, 4, 4), np.uint32), "uint32"),
        (np.zeros((2, 4, 4), ">i2"), ">i2"),
        (np.zeros((2, 3, 8, 9), np.uint8), "channels first"),
        (np.zeros((2, 1, 8, 8), np.uint8), "channels first"),
        (np.zeros((2, 4, 8, 8), np.uint8), "channels first"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_arrays_that_are_no_images(tmp_path, name, array, words):
    refused(save(tmp_path / name, array), words)


@pytest.mark.parametrize("name", ["a.npz", "a.npy", "a"])
@pytest.mark.parametrize("kind", [np.uint8, "<u2", ">u2"])
@pytest.mark.parametrize(
    "shape",
    [(2, 2, 2, 3), (2, 4, 4, 16), (2, 1, 1, 5), (2, 3, 3, 7), (2, 3, 5, 4), (2, 5, 2), (1, 1, 1)],
)
def test_arrays_that_are_images(tmp_path, name, kind, shape):
    array = np.arange(np.prod(shape), dtype=np.dtype(kind)).reshape(shape)
    with (tmp_path / name).open("wb") as file:
        np.savez(file, array) if name == "a.npz" else np.save(file, array)
    pixels = load(tmp_path / name).train.pixels
    expected = np.moveaxis(array, -1, 1) if array.ndim == 4 else array[:, None]
    assert pixels.dtype.isnative and np.array_equal(pixels, expected)


@pytest.mark.parametrize(
    "names",
    [
        ("train_images", "train_labels", "test_images", "test_labels", "val_images", "val_labels"),
        ("x_train", "y_train", "x_test", "y_test", "x_valid", "y_valid"),
        ("X-Train", "Y-Train", "X-Test", "Y-Test", "X-Validation", "Y-Validation"),
        ("images", "labels", "test_images", "test_labels", "val_images", "val_labels"),
        ("training.data", "training.targets", "testing.data", "testing.targets", "val.data",
         "val.targets"),
    ],
)  # fmt: skip
def test_all_usual_names_are_known(tmp_path, names):
    counts = (5, 3, 2)
    np.savez(
        tmp_path / "a.npz",
        **{name: (IMAGES, LABELS)[n % 2][: counts[n // 2]] for n, name in enumerate(names)},
    )
    raw = read_npz(tmp_path / "a.npz")
    for split, count in zip(raw, counts, strict=True):
        assert np.array_equal(split.pixels[:, 0], IMAGES[:count])
        assert split.labels.tolist() == list(range(count)) and split.skipped == ()


def test_arrays_that_are_not_used_are_listed(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, images=IMAGES, notes=np.array([None]), test_labels=LABELS, x=IMAGES)
    raw = read_npz(path)
    assert raw.test is None and raw.train.labels is None
    assert raw.train.skipped == (f"{path}: arrays not used: notes, test_labels, x",)
    np.savez(path, **{"images": IMAGES, "a\nb\x1b[31m": LABELS})
    (line,) = load(path).train.skipped
    assert line.endswith(r"'a\nb\x1b[31m'")
    np.savez(path, **{"a\nb": IMAGES, "c": IMAGES})
    refused(path, r"'a\nb'")


def test_splits_without_training_images(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, test_images=IMAGES, test_labels=LABELS)
    assert load(path).train.labels.tolist() == LABELS.tolist()
    np.savez(path, test_images=IMAGES, val_images=IMAGES)
    refused(path, "test and validation images without training images")
    np.savez(path)
    refused(path, "no images among the arrays (none)")
    np.savez(path, images=IMAGES, labels=np.int64(3))
    refused(path, "labels is int64 () for 5 images")


def archive(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        for name, content in members.items():
            file.writestr(name, content)
    return out.getvalue()


def header(shape: str, kind: str = "|u1") -> bytes:
    text = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}"
    return b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text.encode()


HOSTILE = {
    "no array": archive({"images.npy": b"text"}),
    "another file": archive({"images.npy": header("(1, 1, 1)") + b"a", "images": b"text"}),
    "too large": archive({"images.npy": header("(9, 65536, 1048576)")}),
    "far too large": archive({"images.npy": header("(99999999999, 99999999999, 9)")}),
    "negative": archive({"images.npy": header("(-1, 2, 3)")}),
    "no shape": archive({"images.npy": header("'text'")}),
    "no kind": archive({"images.npy": header("(1, 1, 1)", "nonsense")}),
    "program": archive({"images.npy": header("(1, 1, 1)", "|O") + b"cos\nsystem\n(S'false'\ntR."}),
    "cut": archive({"images.npy": header("(1, 2, 1)") + b"a"}),
    "encrypted": archive({"images.npy": header("(1, 1, 1)") + b"a"})
    .replace(b"PK\1\2\x14\3\x14\0\0\0", b"PK\1\2\x14\3\x14\0\1\0")
    .replace(b"PK\3\4\x14\0\0\0", b"PK\3\4\x14\0\1\0"),
    "unknown compression": archive({"images.npy": header("(1, 1, 1)") + b"a"})
    .replace(b"PK\1\2\x14\3\x14\0\0\0\0\0", b"PK\1\2\x14\3\x14\0\0\0\x63\0")
    .replace(b"PK\3\4\x14\0\0\0\0\0", b"PK\3\4\x14\0\0\0\x63\0"),
}


@pytest.mark.parametrize("name", sorted(set(HOSTILE) - {"another file"}))
def test_hostile_archives_are_refused_in_one_line(tmp_path, name):
    path = tmp_path / "a.npz"
    path.write_bytes(HOSTILE[name])
    refused(path)
    if name in ("too large", "far too large", "negative", "no shape", "no kind", "cut"):
        with zipfile.ZipFile(path) as file:
            (tmp_path / "a.npy").write_bytes(file.read("images.npy"))
        refused(tmp_path / "a.npy")


def test_another_file_in_an_archive_is_no_array(tmp_path):
    (tmp_path / "a.npz").write_bytes(archive({"a.txt": b"text", "b.npy": b"text"}))
    refused(tmp_path / "a.npz", "a.txt")
    (tmp_path / "a.npz").write_bytes(archive({"images": b"text"}))
    refused(tmp_path / "a.npz", "not an array")
    (tmp_path / "a.zip").write_bytes(archive({"a.png": b"text"}))
    with pytest.raises(DataError, match="not a file of images"):
        load(tmp_path / "a.zip")
