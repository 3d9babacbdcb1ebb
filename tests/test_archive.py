"""The archive: what is written comes back; damage is found, named, and loses one block alone."""

import io
import json
import random
import re
import zlib

import numpy as np
import pytest
from campaign.mutations import KINDS

from coding import use
from helpers import SHAPE, flow_of, images
from mixerflow.compression import Archive, Codec, Lost, held
from mixerflow.compression import layout as bytes_of
from mixerflow.compression.choice import USUAL
from mixerflow.compression.layout import BlockHead, Broken, Header, Index, digest, within
from mixerflow.compression.side import pack_names, pack_numbers, unpack_names, unpack_numbers
from mixerflow.compression.writing import ArchiveWriter
from mixerflow.errors import CheckpointError, DataError, MixerFlowError

NAMES = tuple(f"gr\u00fcn/{n}.png" for n in range(90))
LABELS = np.arange(90) % 7 - 1


@pytest.fixture(scope="module")
def coded():
    """A codec of zlib, the images, and an archive of three blocks with names and labels."""
    with pytest.MonkeyPatch.context() as patch:
        use(patch)
        codec = Codec(flow_of().eval(), block=30, threads=2)
        pixels = images(90).pixels
        yield codec, pixels, codec.encode(pixels, LABELS, NAMES)


def places(data):
    with Archive(data) as archive:
        return archive._places, archive.index.blocks


def message(work):
    with pytest.raises(MixerFlowError) as caught:
        work()
    assert "\n" not in str(caught.value)
    return str(caught.value), caught.value.exit_code


def test_all_comes_back(coded):
    codec, pixels, data = coded
    found = codec.decode(data)
    assert found.images.dtype == np.uint8 and np.array_equal(found.images, pixels)
    assert np.array_equal(found.labels, LABELS) and found.names == NAMES and not found.lost


@pytest.mark.parametrize(("start", "stop"), [(0, 1), (29, 31), (30, 60), (59, 90), (89, 90)])
def test_any_images_without_the_others(coded, start, stop):
    codec, pixels, data = coded
    found, (at, heads) = codec.decode(data, start, stop), places(data)
    here = slice(start, stop)
    assert np.array_equal(found.images, pixels[here]) and found.names == NAMES[here]
    assert np.array_equal(found.labels, LABELS[here])
    unused = bytearray(data)  # other blocks are not read
    for place, head in zip(at, heads, strict=True):
        if head.first >= stop or head.first + head.images <= start:
            unused[place : place + head.size] = bytes(head.size)
    assert np.array_equal(codec.decode(bytes(unused), start, stop).images, pixels[here])


@pytest.mark.parametrize(("start", "stop"), [(0, 91), (90, 91), (5, 5), (-1, 3), (7, 2)])
def test_images_that_are_not_there(coded, start, stop):
    codec, _, data = coded
    line, code = message(lambda: codec.decode(data, start, stop))
    assert "it has 90, from 0 on" in line and code == 3


@pytest.mark.parametrize("part", ["head", "payload", "side"])
def test_a_damaged_block_loses_itself_alone_and_is_named(coded, part):
    codec, pixels, data = coded
    at, heads = places(data)
    offset = {"head": 5, "payload": bytes_of.HEAD.size + 3, "side": heads[1].size - 2}[part]
    bad = bytearray(data)
    bad[at[1] + offset] ^= 16
    line, code = message(lambda: codec.decode(bytes(bad)))
    assert line.startswith("damaged: images 30 to 59, block 1: ") and code == 3
    found = codec.decode(bytes(bad), keep_going=True)
    assert np.array_equal(found.images, np.delete(pixels, range(30, 60), 0))
    assert found.names == NAMES[:30] + NAMES[60:] and len(found.labels) == 60
    assert [(each.first, each.stop) for each in found.lost] == [(30, 60)]
    assert np.array_equal(codec.decode(bytes(bad), 60).images, pixels[60:])


def test_pixels_that_differ_are_lost_whatever_the_native_codec_says(coded, monkeypatch):
    codec, _, data = coded
    engine = codec.engine(USUAL)
    wrong = engine.decode
    monkeypatch.setattr(engine, "decode", lambda *a, **k: wrong(*a, **k) ^ 1)
    line, _ = message(lambda: codec.decode(data))
    assert "the digest of its decoded pixels differs" in line


def test_every_truncation_is_refused_at_once(coded):
    _, _, data = coded
    for length in (*range(0, 700), *range(700, len(data), 37), *range(len(data) - 60, len(data))):
        line, code = message(lambda length=length: Archive(data[:length]))
        assert code == 3 and "cut short" in line
    line, code = message(lambda: Archive(data + b"\0"))
    assert code == 3


def test_every_flipped_bit_is_refused_or_loses_one_block(coded):
    """Each byte before the first block and behind the last one, and some of the blocks."""
    codec, pixels, data = coded
    at, heads = places(data)
    end = at[-1] + heads[-1].size
    for place in (*range(at[0]), *range(at[0], end, 41), *range(end, len(data))):
        bad = bytearray(data)
        bad[place] ^= 1 << place % 8
        try:
            found = codec.decode(bytes(bad), keep_going=True)
        except (DataError, CheckpointError):
            assert not at[0] <= place < end
            continue
        assert at[0] <= place < end
        ((first, stop),) = {(each.first, each.stop) for each in found.lost}
        assert np.array_equal(found.images, np.delete(pixels, range(first, stop), 0))


def test_what_is_left_of_a_file_that_was_cut_short(coded):
    codec, pixels, data = coded
    at, _ = places(data)
    cut = data[: at[2] + 50]
    line, _ = message(lambda: Archive(cut))
    assert "read what is left with rescue" in line
    with Archive(cut, rescue=True) as archive:
        (parts,) = [[*codec.parts(archive)]]
    assert np.array_equal(np.concatenate([part.pixels for part in parts]), pixels[:60])
    bad = bytearray(cut)  # and a head that is damaged too
    bad[at[0] + 20] ^= 1
    with Archive(bytes(bad), rescue=True) as archive:
        lost, part = codec.parts(archive)
    assert isinstance(lost, Lost) and (lost.first, lost.stop) == (0, 30)
    assert np.array_equal(part.pixels, pixels[30:60])
    line, _ = message(lambda: Archive(data[: at[0] + 5], rescue=True))
    assert "no whole block is left" in line


def test_a_file_of_false_heads_ends(coded):
    _, _, data = coded
    at, _ = places(data)
    junk = data[: at[0]] + b"BLCK" * 50_000
    message(lambda: Archive(junk, rescue=True))


def resealed(data, **changes):
    """The archive with another header, every check right."""
    with Archive(data) as archive:
        header, first = archive.header, archive._places[0]
    value = json.loads(header.pack()) | changes
    start = data[: bytes_of.START.size]
    head = start + bytes_of.section(b"HEAD", json.dumps(value).encode())
    blocks, index = data[first : -bytes_of.END.size], places(data)
    size = sum(each.size for each in index[1])
    content = blocks[size:]
    body = head + blocks[:size]
    return body + content + bytes_of.pack_end(len(body), len(body) + len(content) + 28)


@pytest.mark.parametrize(
    ("changes", "line", "code"),
    [
        ({"shape": [1, 4]}, r"images are \(1, 4\) of 256 levels, those of the weights", 4),
        ({"levels": 255}, "of 255 levels, those of the weights", 4),
        ({"shape": [1 << 40, 4, 4]}, "images of shape", 3),
        ({"shape": [65536, 65536]}, "too large for any block", 3),
        ({"shape": []}, "images of shape", 3),
        ({"shape": [1, -4, 4]}, "images of shape", 3),
        ({"levels": 1}, "1 levels", 3),
        ({"levels": True}, "header's levels", 3),
        ({"k": 25}, "k = 25", 3),
        ({"k": 0}, "k = 0", 3),
        ({"vectors": 1 << 40}, "too large for any block", 3),
        ({"weights": {"name": 3}}, "header's weights.name", 3),
        ({"classes": "abc"}, "header's classes", 3),
        ({"program": "0" * 64}, "an archive of other weights", 4),
        ({"program": "0" * 64, "mixerflow": "9.9"}, "mixerflow 9.9 made another program", 4),
        ({"fingerprint": "0" * 16}, "this machine computes otherwise than the one that wrote", 3),
    ],
)
def test_lies_in_a_header_whose_checks_are_right(coded, changes, line, code):
    codec, _, data = coded
    assert codec.decode(resealed(data)).images.size  # without a lie it is read
    said, found = message(lambda: codec.decode(resealed(data, **changes)))
    assert re.search(line, said), said
    assert found == code


def test_another_program_of_a_format_that_is_newer(coded):
    _, _, data = coded
    newer = bytes_of.START.pack(data[:8], 2) + data[12:]
    line, code = message(lambda: Archive(newer))
    assert line.startswith("an archive of format 2, and this mixerflow knows 1") and code == 3
    assert "use a newer mixerflow" in line
    line, code = message(lambda: Archive(b"\x89PNG\r\n\x1a\n" + bytes(200)))
    assert line.startswith("no archive of images") and code == 3


def test_lengths_are_bounded_before_anything_is_read():
    header = Header(SHAPE, 256, 16, "", "", {"name": "", "sha256": "", "embedded": False})
    assert header.most == bytes_of.LARGEST_BLOCK // 16
    within(BlockHead(0, header.most, 3, 8, 0, 0, 0), header)
    for changes in (
        {"images": header.most + 1},
        {"images": 0},
        {"initial": 11},
        {"payload": 4 * (14 * 16 + 4096) + 4},
        {"names": bytes_of.LARGEST_BLOCK * 4 + 1},
        {"payload": 3},
    ):
        with pytest.raises(Broken):
            within(BlockHead(0, 10, 3, 8, 0, 0, 0)._replace(**changes), header)
    for row in ([10, 3, -4, 0, 0, 0], [10, 3, 8, 0, 0], [10, 3, 8, 0, 0, -1]):
        with pytest.raises(Broken):
            Index.unpack(json.dumps({"blocks": [row], "report": {}}).encode(), header)
    for text in (b"[" * 10_000, b"{", b'{"blocks": [[1e400]], "report": {}}', b"[]"):
        with pytest.raises(Broken):
            Index.unpack(text, header)


def test_names_and_numbers_are_never_inflated_beyond_their_bound():
    bomb = zlib.compress(bytes(200 << 20))
    assert len(bomb) < 1 << 18
    with pytest.raises(Broken, match="more names"):
        unpack_names(bomb, 10)
    with pytest.raises(Broken, match="more numbers"):
        unpack_numbers(b"\0" + bomb, 10)
    names = ("a", "b/\u00e9", "c\udcff")
    packed = pack_names(names)
    assert unpack_names(packed, 3) == names
    for count in (2, 4):
        with pytest.raises(Broken):
            unpack_names(packed, count)
    for wrong in (packed[:-3], packed + b"x", b"junk"):
        with pytest.raises(Broken):
            unpack_names(wrong, 3)
    for name in ("a\0b", "a" * 4097):
        assert message(lambda name=name: pack_names([name]))[1] == 3


@pytest.mark.parametrize("bits", [7, 15, 31, 62])
def test_numbers_take_the_smallest_type(bits):
    numbers = np.array([-(2**bits), 2**bits - 1, 0])
    assert np.array_equal(unpack_numbers(pack_numbers(numbers), 3), numbers)
    assert pack_numbers(numbers)[0] == [7, 15, 31, 62].index(bits)
    vectors = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    assert np.array_equal(unpack_numbers(pack_numbers(vectors), 5, 3), vectors)
    with pytest.raises(Broken):
        unpack_numbers(pack_numbers(vectors), 5, 2)
    with pytest.raises(Broken):
        unpack_numbers(b"\7" + pack_numbers(numbers)[1:], 3)


def test_an_archive_is_none_before_its_end():
    header = Header(SHAPE, 256, 16, "", "", {"name": "", "sha256": "", "embedded": False})
    file = io.BytesIO()
    writer = ArchiveWriter(file, header)
    pixels = np.zeros((2, *SHAPE), np.uint8)
    head = writer.add(b"1234", pixels, 1, labels=np.array([1, 2]))
    assert head.pixels_digest == digest(pixels.tobytes()) and head.labels
    message(lambda: Archive(file.getvalue()))
    assert writer.finish({}) == len(file.getvalue())
    with Archive(file.getvalue()) as archive:
        assert archive.images == 2 and archive.read(0).payload == b"1234"


def test_weights_inside_that_lie():
    """A card of no model, or no JSON, whose checks are right."""
    said = {"name": "x", "sha256": "0" * 64, "embedded": True}
    for card in (b"{}", b"nonsense", b'{"model": null, "data": {}, "files": {}}'):
        file = io.BytesIO()
        header = Header(SHAPE, 256, 16, "", "", said)
        ArchiveWriter(file, header, (card, b"model")).finish({})
        with Archive(file.getvalue()) as archive:
            line, code = message(lambda archive=archive: held.of_archive(archive))
        assert line.startswith("the weights inside are damaged") and code == 3


def survives(codec, pixels, other, kinds, turns):
    """Whether all mutations are refused, decoded right, or lose blocks; how often each happened."""
    roll, known = random.Random(7), {image.tobytes() for image in pixels}
    data = codec.encode(pixels, LABELS, NAMES)
    known |= {image.tobytes() for image in other}
    second, seen = codec.encode(other), set()
    for _ in range(turns):
        mutated = roll.choice(kinds)(data, second, roll)
        try:
            with Archive(mutated.data, rescue=roll.random() < 0.2) as archive:
                parts = [*codec.parts(archive)] if archive.images else []
        except MixerFlowError as error:
            assert "\n" not in str(error)
            seen.add("refused")
            continue
        for part in parts:
            seen.add(type(part).__name__)
            for number, image in enumerate(() if isinstance(part, Lost) else part.pixels):
                assert image.tobytes() in known, mutated.words
                if mutated.placed:
                    assert np.array_equal(image, pixels[part.first + number]), mutated.words
    return seen


def test_what_is_not_what_was_written(coded):
    """As `python -m campaign archive`, with a codec that takes no time."""
    codec, pixels, _ = coded
    seen = survives(codec, pixels, images(90, seed=5).pixels, KINDS, 400)
    assert seen == {"refused", "Part", "Lost"}


@pytest.mark.slow
def test_what_is_not_what_was_written_by_the_native_codec():
    codec = Codec(flow_of().eval(), block=30, threads=1)
    given = (images(90, seed=seed).pixels for seed in (0, 5))
    assert survives(codec, *given, KINDS, 10_000) == {"refused", "Part", "Lost"}
