"""Files that hold many images: npz, npy, idx, and batches of rows."""

import gzip
import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest

from mixerflow.data import load
from mixerflow.data.batch_files import read_pickle
from mixerflow.errors import DataError

RNG = np.random.default_rng(0)


def pixels(*shape, dtype=np.uint8):
    return RNG.integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)


GREY = pixels(2, 4, 4)


def refused(path: Path, *fragments: str) -> None:
    """Loading fails in one line that has these fragments, each."""
    with pytest.raises(DataError) as caught:
        load(str(path))
    line = str(caught.value)
    assert "\n" not in line, line
    for fragment in fragments:
        assert fragment in line, (fragment, line)


# --- npz, npy


def test_npz_of_splits(tmp_path):
    train, test = pixels(5, 4, 3, 3), pixels(2, 4, 3, 3)
    labels = np.array([0, 1, 2, 0, 1], np.uint8)
    path = tmp_path / "set.npz"
    np.savez(path, train_images=train, test_images=test, train_labels=labels)
    splits = load(str(path))
    assert splits.train.shape == (3, 4, 3) and splits.train.pixels.flags.c_contiguous
    assert np.array_equal(np.moveaxis(splits.train.pixels, 1, -1), train)
    assert np.array_equal(np.moveaxis(splits.test.pixels, 1, -1), test)
    assert splits.train.labels.dtype == np.int64 and splits.train.labels.tolist() == [0, 1, 2, 0, 1]
    assert splits.test.labels is None and splits.train.dataset_id == "npz:set.npz"


@pytest.mark.parametrize("key", ["images", "arr_0"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, ">u2"])
def test_npz_of_one_set_of_grey_images(tmp_path, key, dtype):
    array = pixels(3, 4, 5, dtype=np.dtype(dtype).newbyteorder("=")).astype(dtype)
    np.savez(tmp_path / "a.npz", **{key: array})
    train = load(str(tmp_path / "a.npz")).train
    assert train.shape == (1, 4, 5) and train.levels == 256**array.itemsize
    assert np.array_equal(train.pixels[:, 0], array) and train.pixels.dtype.isnative


def test_npy_is_mapped(tmp_path):
    array = pixels(3, 4, 5)
    np.save(tmp_path / "a.npy", array)
    train = load(str(tmp_path / "a.npy")).train
    assert isinstance(train.pixels, np.memmap) and np.array_equal(train.pixels[:, 0], array)


class Bomb:
    """What a pickle of it does on loading: leave a file behind."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize(
    ("arrays", "fragments"),
    [
        ({"a": pixels(2, 4, 4), "b": pixels(2, 4, 4)}, ["a, b", "train_images"]),
        ({"images": np.zeros((2, 4, 4))}, ["float64", "* 255).astype('uint8')"]),
        ({"images": np.full((2, 4, 4), 200.0)}, ["numpy.rint(images).astype"]),
        ({"images": np.full((2, 4, 4), -1.0)}, ["127.5"]),
        ({"images": np.zeros((2, 4, 4), np.int64)}, ["int64", "astype('uint8')"]),
        ({"images": np.zeros((2, 4, 4), bool)}, ["bool", "* 255"]),
        ({"images": np.zeros((2, 4, 4), "U1")}, ["<U1", "uint8 or uint16"]),
        ({"images": np.zeros((0, 4, 4), np.uint8)}, ["no images", "(0, 4, 4)"]),
        ({"images": np.zeros((2, 0, 4), np.uint8)}, ["no images", "(2, 0, 4)"]),
        ({"images": pixels(2, 3, 8, 8)}, ["channels first", "moveaxis"]),
        ({"images": pixels(2, 48)}, ["(2, 48)", "(N, H, W)"]),
        ({"images": pixels(2, 4, 4), "labels": np.arange(3)}, ["(3,)", "2 images"]),
        ({"images": pixels(2, 4, 4), "labels": np.zeros(2)}, ["float64", "whole number"]),
        ({"images": pixels(2, 4, 4), "labels": np.array([0, -2])}, ["-2", "from 0"]),
        ({"train_images": pixels(2, 4, 4), "test_images": pixels(2, 5, 4)}, ["(1, 5, 4)"]),
        ({"train_images": GREY, "test_images": GREY.astype(np.uint16)}, ["levels"]),
        ({"images": np.array([None])}, ["Python objects"]),
    ],
)  # fmt: skip
def test_arrays_that_are_not_images(tmp_path, arrays, fragments):
    np.savez(tmp_path / "a.npz", **arrays)
    refused(tmp_path / "a.npz", "a.npz", *fragments)


@pytest.mark.parametrize("name", ["a.npz", "a.npy"])
def test_damaged_archives(tmp_path, name):
    np.savez(tmp_path / "good.npz", images=pixels(20, 8, 8))
    content = (tmp_path / "good.npz").read_bytes()
    for bad in (b"", b"text", content[:-100]):
        (tmp_path / name).write_bytes(bad)
        refused(tmp_path / name, name, "damaged")


def test_a_pickle_in_an_archive_is_not_run(tmp_path):
    trace = tmp_path / "trace"
    np.savez(tmp_path / "a.npz", images=np.array([Bomb(trace)], object))
    refused(tmp_path / "a.npz", "Python objects")
    assert not trace.exists()
    np.savez(tmp_path / "a.npz", images=GREY, notes=np.array([Bomb(trace)], object))
    assert len(load(str(tmp_path / "a.npz")).train) == 2  # what is not asked for is not read
    assert not trace.exists()


# --- idx


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.mark.parametrize("dot", [False, True])
@pytest.mark.parametrize("zipped", [False, True])
def test_a_folder_of_idx_files(tmp_path, dot, zipped):
    arrays = {
        "train-images-idx3-ubyte": pixels(5, 4, 3),
        "train-labels-idx1-ubyte": np.arange(5, dtype=np.uint8),
        "t10k-images-idx3-ubyte": pixels(2, 4, 3),
    }
    for name, array in arrays.items():
        name = name.replace("-idx", ".idx") if dot else name
        content = gzip.compress(idx(array)) if zipped else idx(array)
        (tmp_path / (name + ".gz" * zipped)).write_bytes(content)
    splits = load(str(tmp_path))
    assert np.array_equal(splits.train.pixels[:, 0], arrays["train-images-idx3-ubyte"])
    assert splits.train.labels.tolist() == [0, 1, 2, 3, 4]
    assert np.array_equal(splits.test.pixels[:, 0], arrays["t10k-images-idx3-ubyte"])
    assert splits.test.labels is None


def test_one_idx_file_under_any_name(tmp_path):
    array = pixels(2, 3, 4)
    (tmp_path / "some").write_bytes(gzip.compress(idx(array)))
    assert np.array_equal(load(str(tmp_path / "some")).train.pixels[:, 0], array)


def test_bad_idx_files(tmp_path):
    name = tmp_path / "train-images-idx3-ubyte"
    good = idx(pixels(2, 3, 4))
    name.write_bytes(good[:-1])
    refused(name, "23 bytes where the header says (2, 3, 4)", str(name))
    name.write_bytes(good[:6])
    refused(name, str(name), "header")
    name.write_bytes(gzip.compress(good)[:-9])
    refused(name, str(name), "damaged")
    name.write_bytes(b"\0\0\x0d" + good[3:])  # floats
    refused(tmp_path, "not an idx file of bytes", str(name))
    name.unlink()
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(np.arange(3, dtype=np.uint8)))
    refused(tmp_path, "labels without images", str(tmp_path))


# --- batches of rows


def rows(count: int) -> np.ndarray:
    return pixels(count, 3072)


def test_cifar10_binary(tmp_path):
    data = rows(25)
    labels = (np.arange(25) % 10).astype(np.uint8)
    for number in (10, 2, 1):  # in the order of the numbers, not of the names
        part = slice(*{1: (0, 10), 2: (10, 20), 10: (20, 25)}[number])
        table = np.concatenate([labels[part, None], data[part]], axis=1)
        table.tofile(tmp_path / f"data_batch_{number}.bin")
    np.concatenate([labels[:3, None], data[:3]], axis=1).tofile(tmp_path / "test_batch.bin")
    (tmp_path / "readme.html").write_text("about")
    splits = load(str(tmp_path))
    assert np.array_equal(splits.train.pixels, data.reshape(-1, 3, 32, 32))
    assert np.array_equal(splits.train.labels, labels) and len(splits.test) == 3
    assert len(load(str(tmp_path / "data_batch_2.bin")).train) == 10


def test_cifar100_binary_has_fine_labels(tmp_path):
    data = rows(4)
    labels = np.array([[1, 90], [2, 91], [3, 92], [4, 93]], np.uint8)
    np.concatenate([labels, data], axis=1).tofile(tmp_path / "train.bin")
    train = load(str(tmp_path)).train
    assert train.labels.tolist() == [90, 91, 92, 93]
    assert np.array_equal(train.pixels.reshape(4, -1), data)


def test_a_torn_binary_batch(tmp_path):
    for content in (b"", bytes(3072)):
        (tmp_path / "data_batch_1.bin").write_bytes(content)
        refused(tmp_path, "data_batch_1.bin", "rows of 3073")


def python2_pickle(data: np.ndarray, labels: list[int]) -> bytes:
    """As Python 2's numpy wrote CIFAR's batches: byte strings all over, protocol 2."""

    def short(text: bytes) -> bytes:
        return b"U" + bytes([len(text)]) + text

    def integer(value: int) -> bytes:
        return b"J" + struct.pack("<i", value)

    dtype = b"cnumpy\ndtype\n(" + short(b"u1") + b"K\0K\1tR"
    dtype += b"(K\3" + short(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\0t" + short(b"b") + b"tR"
    array += b"(K\1(" + b"".join(map(integer, data.shape)) + b"t" + dtype + b"I00\n"
    array += b"T" + struct.pack("<i", data.nbytes) + data.tobytes() + b"tb"
    listed = b"](" + b"".join(map(integer, labels)) + b"e"
    content = short(b"batch_label") + short(b"one") + short(b"data") + array
    return b"\x80\2}(" + content + short(b"labels") + listed + b"u."


@pytest.mark.parametrize("protocol", [None, 0, 1, 2, 3, 4, 5])
def test_pickled_batches_of_any_age(tmp_path, protocol):
    data, labels = rows(3), [7, 0, 9]
    if protocol is None:
        content = python2_pickle(data, labels)
    else:
        content = pickle.dumps({b"data": data, b"labels": labels, b"batch_label": "x"}, protocol)
    (tmp_path / "data_batch_1").write_bytes(content)
    (tmp_path / "test_batch").write_bytes(content)
    splits = load(str(tmp_path))
    assert np.array_equal(splits.train.pixels.reshape(3, -1), data)
    assert splits.train.labels.tolist() == labels and len(splits.test) == 3


@pytest.mark.parametrize("protocol", [2, 5])
def test_pickled_arrays_in_column_order(tmp_path, protocol):
    data = rows(3)
    content = pickle.dumps({"data": np.asfortranarray(data), "labels": [0, 1, 2]}, protocol)
    (tmp_path / "test_batch").write_bytes(content)
    assert np.array_equal(load(tmp_path).train.pixels.reshape(3, -1), data)


def test_old_names_of_numpys_modules(tmp_path):
    content = pickle.dumps({"data": rows(2), "fine_labels": [1, 99]}, 2)
    assert b"numpy._core.multiarray" in content
    content = content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    (tmp_path / "train").write_bytes(content)
    assert load(str(tmp_path)).train.labels.tolist() == [1, 99]


class Evaluates:
    """A pickle of it would evaluate an expression."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return eval, (f"open({str(self.path)!r}, 'w').close()",)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("kind", [Bomb, Evaluates])
def test_a_malicious_pickle_does_nothing(tmp_path, protocol, kind):
    trace = tmp_path / "trace"
    content = pickle.dumps({"data": rows(1), "labels": [kind(trace)]}, protocol)
    pickle.loads(content)
    assert trace.exists()  # it would have worked
    (trace.rmdir if trace.is_dir() else trace.unlink)()
    (tmp_path / "data_batch_1").write_bytes(content)
    refused(tmp_path, "data_batch_1", "which is not run")
    assert not trace.exists()


@pytest.mark.parametrize(
    "content",
    [b"", b"text", pickle.dumps([1]), pickle.dumps({"data": rows(2)})[:-50], b"\x80\2}q"],
)
def test_torn_and_other_pickles(tmp_path, content):
    (tmp_path / "data_batch_1").write_bytes(content)
    refused(tmp_path, str(tmp_path / "data_batch_1"))


def test_pickled_objects_and_floats_are_refused(tmp_path):
    for array in (np.array([None]), np.zeros(2)):
        (tmp_path / "a").write_bytes(pickle.dumps({"data": array}))
        with pytest.raises(DataError, match="numbers of type"):
            read_pickle(tmp_path / "a")


@pytest.mark.parametrize(
    ("content", "fragment"),
    [
        ({"labels": [1]}, "no 'data'"),
        ({"data": rows(2), "labels": [1]}, "(1,) for 2 images"),
        ({"data": pixels(2, 3071), "labels": [1, 2]}, "(2, 3071)"),
        ({"data": pixels(3072), "labels": [1]}, "(3072,)"),
    ],
)
def test_batches_that_do_not_fit(tmp_path, content, fragment):
    (tmp_path / "data_batch_1").write_bytes(pickle.dumps(content))
    refused(tmp_path, "data_batch_1", fragment)


def test_batches_in_two_formats(tmp_path):
    np.zeros(3073, np.uint8).tofile(tmp_path / "data_batch_1.bin")
    (tmp_path / "data_batch_1").write_bytes(b"")
    refused(tmp_path, "more than one format", str(tmp_path))


def test_small_imagenet_archives_count_their_labels_from_0(tmp_path):
    data = rows(2)
    for name in ("train_data_batch_1", "train_data_batch_2", "val_data"):
        np.savez(tmp_path / f"{name}.npz", data=data, labels=np.array([1, 1000]))
    splits = load(str(tmp_path))
    assert splits.train.labels.tolist() == [0, 999, 0, 999] and len(splits.test) == 2
    assert np.array_equal(splits.test.pixels.reshape(2, -1), data)
