"""What the codec refuses before it writes: what no reader would take, and what would be changed."""

import copy
import io
import pickle

import numpy as np
import pytest
import torch

from coding import use
from helpers import SHAPE, flow_of, images
from mixerflow import Codec
from mixerflow.compression import Archive, encoding, given, side, writing
from mixerflow.compression.given import context_of
from mixerflow.compression.layout import Header
from mixerflow.compression.writing import ArchiveWriter
from mixerflow.errors import ConfigError, DataError, ResourceError
from mixers import mixer

WEIGHTS = {"name": "", "sha256": "", "embedded": False}


@pytest.fixture(scope="module")
def flow():
    return flow_of().eval()


@pytest.fixture
def codec(flow, monkeypatch):
    """A codec of zlib."""
    use(monkeypatch)
    return Codec(flow, threads=2)


def of_levels(levels):
    model = mixer(layers=1, flow_layers=1, hidden=4, patch=2, norm="none", levels=levels)
    return flow_of(model).eval()


def line_of(work, kind):
    with pytest.raises(kind) as caught:
        work()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("kind", "levels", "value"),
    [
        (np.int8, 256, -128),
        (np.int8, 100, 100),
        (np.int16, 65536, -1),
        (np.int16, 40000, -30000),
        (np.int64, 256, -1),
        (np.uint8, 255, 255),
        (np.uint16, 256, 256),
    ],
)
def test_no_pixel_is_changed_by_its_type(kind, levels, value, monkeypatch):
    use(monkeypatch)
    codec, pixels = Codec(of_levels(levels)), np.zeros((5, *SHAPE), kind)
    assert np.array_equal(codec.decode(codec.encode(pixels)).images, pixels)
    pixels[3, 0, 1, 1] = value
    assert line_of(lambda: codec.encode(pixels), DataError).startswith("image 3 has a pixel beyond")


def test_a_wrong_pixel_of_the_sample_has_the_number_of_its_image(codec):
    pixels = np.zeros((2000, *SHAPE), np.int8)
    pixels[1999] = -1
    said = line_of(lambda: codec.encode(pixels), DataError)
    assert said.startswith("image 1,999 has a pixel beyond")


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"images": np.zeros((), np.uint8)}, "images (), the flow's are"),
        ({"images": [[1], [2, 3]]}, "images that are no array"),
        ({"labels": 3}, "labels are int64 ()"),
        ({"labels": np.array([2**63 + 5, 2, 3], np.uint64)}, "give labels less than 2^63"),
        ({"labels": ["a", "b", "c"]}, "labels are <U1 (3,)"),
        ({"labels": [True, False, True]}, "labels are bool (3,)"),
        ({"labels": [{}, 1, 2]}, "labels are object (3,)"),
        ({"labels": np.zeros((3, 0))}, "labels are float64 (3, 0)"),
        ({"labels": np.zeros((3, 70000))}, "vectors of 70,000 numbers"),
        ({"labels": np.full((3, 2), 1e300)}, "labels beyond float32"),
        ({"names": "abc"}, "names that are one text"),
        ({"names": [1, 2, 3]}, "number 0 of the names is int"),
        ({"names": 7}, "names are int"),
        ({"names": ["a", "\ud800", "c"]}, "a name that is no text in UTF-8"),
        ({"names": ["a", "\udcc3\udca9", "c"]}, "a name that is no text in UTF-8"),  # would be é
        ({"names": ["a", "b\0", "c"]}, "with a zero in it"),
    ],
)
def test_what_cannot_be_kept(changes, line, codec):
    words = {"images": images(3).pixels} | changes
    assert line in line_of(lambda: codec.encode(**words), DataError)


def test_classes_of_compress(codec, flow, tmp_path):
    def compress(**words):
        return codec.compress(images(3).pixels, tmp_path / "x.mfa", **words)

    said = line_of(lambda: compress(classes=range(10)), DataError)
    assert "number 0 of the classes is int" in said
    assert "takes none" in line_of(lambda: compress(context=[0, 1, 2]), DataError)
    said = line_of(lambda: compress(classes=["x" * (17 << 20)]), DataError)
    assert said.startswith("no archive can have these images (a section of 17,")
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("name", ["k", "block", "threads"])
def test_settings_are_whole_numbers(name, flow):
    for value in (True, 12.5, "7", np.float64(3)):
        said = line_of(lambda value=value: Codec(flow, **{name: value}), ConfigError)
        assert f": {name}: give " in said and said.endswith(", a whole number")
    assert getattr(Codec(flow, **{name: np.int64(7)}), name) == 7


def test_blocks_have_so_few_images_that_names_and_vectors_fit(codec, monkeypatch):
    monkeypatch.setattr(given, "LARGEST_BLOCK", 1000)
    monkeypatch.setattr(side, "LARGEST_BLOCK", 1000)
    pixels, names = images(60).pixels, [f"{n:03}" * 13 for n in range(60)]
    vectors = np.random.default_rng(0).normal(size=(60, 25)).astype(np.float32)
    for words, most in (({"names": names}, 25), ({"labels": vectors}, 10), ({}, 62)):
        data = codec.encode(pixels, **words)
        with Archive(data) as archive:
            assert max(head.images for head in archive.index.blocks) <= most
        found = codec.decode(data)
        assert np.array_equal(found.images, pixels) and not found.lost
    said = line_of(lambda: codec.encode(pixels, np.zeros((60, 300))), DataError)
    assert said.startswith("images too large for a block")


def test_no_more_blocks_than_an_index_has(flow, monkeypatch):
    use(monkeypatch)
    monkeypatch.setattr(encoding, "MOST_BLOCKS", 3)
    said = line_of(lambda: Codec(flow, block=10).encode(images(40).pixels), DataError)
    assert said.startswith("4 blocks, and an archive has 3 at most")
    assert "give a block of at least 14" in said
    assert Codec(flow, block=14).encode(images(40).pixels)


def test_the_writer_takes_what_a_reader_takes(monkeypatch):
    header = Header(SHAPE, 256, 16, "", "", WEIGHTS)
    pixels = np.zeros((2, *SHAPE), np.uint8)
    for changes in ({"k": True}, {"k": 25}, {"vectors": 70000}, {"shape": [1, 4, 4]}):
        wrong = Header(**(header.__dict__ | changes))
        line_of(lambda wrong=wrong: ArchiveWriter(io.BytesIO(), wrong), DataError)

    def add(**words):
        return ArchiveWriter(io.BytesIO(), header).add(b"1234", pixels, 1, **words)

    assert add(names=("a", "b"))
    monkeypatch.setattr(side, "LARGEST_BLOCK", 10)
    said = line_of(lambda: add(names=("a" * 6, "b" * 6)), DataError)
    assert said.endswith("give a smaller block, or shorter names")
    line_of(lambda: add(names=("a",)), DataError)
    line_of(lambda: add(labels=np.zeros(3, int)), DataError)
    line_of(lambda: add(labels=np.zeros((2, 2), np.float32)), DataError)  # the header has none
    writer = ArchiveWriter(io.BytesIO(), header)
    for _ in range(9):
        writer.add(b"1234", pixels, 1)
    monkeypatch.setattr(writing, "LARGEST_JSON", 200)
    assert "give a larger block" in line_of(lambda: writer.finish({}), DataError)


def test_bytes_of_any_kind_are_read(codec):
    pixels = images(9).pixels
    data = codec.encode(pixels)
    for kind in (bytearray, memoryview):
        assert np.array_equal(codec.decode(kind(data)).images, pixels)
    vectors = torch.randn(9, 2, requires_grad=True)  # and labels of a tensor are taken
    found = codec.decode(codec.encode(pixels, vectors)).labels
    assert np.array_equal(found, vectors.detach().numpy())


def test_copies_are_refused(codec):
    for way in (copy.copy, copy.deepcopy, pickle.dumps):
        assert "cannot be copied or pickled" in line_of(lambda way=way: way(codec), TypeError)


def test_what_is_no_archive_and_what_is_behind_its_end(codec):
    data = codec.encode(images(9).pixels)
    for other in (b"abc", b"\n", b"PK\3\4"):
        line = line_of(lambda other=other: Archive(other), DataError)
        assert line.startswith("no archive of images")
    for more in (b"\0", b"x" * 3000, data[-8:] * 40, bytes(1 << 21)):
        line = line_of(lambda more=more: Archive(data + more), DataError)
        assert f"({len(more):,} bytes behind its end)" in line
        with Archive(data + more, rescue=True) as archive:
            assert archive.images == 9


def test_labels_that_are_the_flows_classes():
    flow = flow_of(mixer(layers=1, flow_layers=1, hidden=4, patch=2, norm="none", classes=3))
    labels, known = np.array([2, 0, -1, 1]), ["a", "b", "c"]

    def found(labels, classes=(), known=known):
        context, words = context_of(flow, known, labels, classes)
        return None if context is None else context.tolist(), words

    assert found(labels) == ([2, 0, -1, 1], "labels without names are the run's classes, 0 to 2")
    assert found(labels, known=()) == ([2, 0, -1, 1], "")
    assert found(labels, ["a", "b", "c"]) == ([2, 0, -1, 1], "")
    assert found(labels, ["c", "a", "b"]) == ([1, 2, -1, 0], "")
    for wrong in ((labels + 1,), (labels - 1,), (np.full(4, -1),), (labels, ["a", "b", "x"])):
        assert found(*wrong) == (
            None,
            "the images' classes are not the run's: the likeliest is chosen for each",
        )
    for none in (None, np.zeros((4, 2), np.float32)):
        assert found(none)[1].startswith("images without classes: ")
    assert context_of(flow_of(), known, labels, ()) == (None, "")


def test_each_block_is_decoded_again_if_asked(flow, monkeypatch, tmp_path):
    pixels = images(50).pixels
    plain = Codec(flow, block=20, threads=2).encode(pixels)
    seen = []
    verified = Codec(flow, block=20, threads=2, verify=True)
    verified.compress(pixels, tmp_path / "x.mfa", on_progress=seen.append)
    assert (tmp_path / "x.mfa").read_bytes() == plain and seen[-1].images == 50
    (tmp_path / "x.mfa").unlink()
    engine = verified.engine(12)
    right = engine.decode

    def wrong(payload, images, initial, classes=None, **words):
        found = right(payload, images, initial, classes, **words)
        found[5] ^= images == 17  # of blocks 1 and 2
        return found

    def damaged(*_, **__):
        raise DataError("a block is damaged")

    for decode, number in ((wrong, 21), (damaged, 0)):
        monkeypatch.setattr(engine, "decode", decode)
        said = line_of(lambda: verified.compress(pixels, tmp_path / "x.mfa"), ResourceError)
        assert f"does not decode to its images, from image {number} on" in said
        assert not [*tmp_path.iterdir()]


def test_the_choice_of_k_is_told_and_can_be_stopped(codec):
    pixels, seen = np.tile(images(100).pixels, (30, 1, 1, 1)), []

    def stop(progress):
        seen.append(progress)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        codec._write(io.BytesIO(), codec._checked(given.Given.of(pixels)), stop)
    assert seen == [(0, 0, 0, True)]
    seen.clear()
    codec._write(io.BytesIO(), codec._checked(given.Given.of(pixels)), seen.append)
    choosing = [each.choosing for each in seen]
    assert choosing == sorted(choosing, reverse=True) and choosing[0] and not choosing[-1]
