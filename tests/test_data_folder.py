"""Folders of images: what is read, in what order, and what is refused in one line."""

import hashlib
import os
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mixerflow.caches import user_cache
from mixerflow.data import hold_out, load, pixel_cache
from mixerflow.data.decode import read_image
from mixerflow.errors import ConfigError, DataError, ResourceError

RNG = np.random.default_rng(0)


def picture(*shape, dtype=np.uint8):
    return RNG.integers(0, np.iinfo(dtype).max, shape or (6, 5, 3), dtype=dtype, endpoint=True)


def put(path: Path, array=None, **options) -> np.ndarray:
    array = picture() if array is None else array
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return array


def refused(root: Path, *fragments: str, **options) -> DataError:
    """Loading fails in one line that has these fragments, each."""
    with pytest.raises(DataError) as caught:
        load(str(root), **options)
    line = str(caught.value)
    assert "\n" not in line and line.count(": ") >= 2, line
    for fragment in fragments:
        assert fragment in line, (fragment, line)
    return caught.value


# --- what is read


def test_pixels_are_those_of_the_files_in_the_order_of_their_names(tmp_path):
    arrays = {name: put(tmp_path / name) for name in ("b.png", "a.png", "sub/c.BMP")}
    train = load(str(tmp_path)).train
    assert train.shape == (3, 6, 5) and train.levels == 256 and train.labels is None
    for row, name in enumerate(("a.png", "b.png", "sub/c.BMP")):
        assert np.array_equal(train.pixels[row], np.moveaxis(arrays[name], -1, 0))
    assert train.dataset_id == f"folder:{tmp_path.name}"


def test_each_image_has_the_name_of_its_file(tmp_path):
    sides = {f"{number}.png": put(tmp_path / f"{number}.png")[0, 0] for number in range(12)}
    (tmp_path / "10.png").write_bytes(b"")
    train = load(str(tmp_path), on_bad_image="skip").train
    text_order = ["0.png", "1.png", "11.png", *(f"{number}.png" for number in range(2, 10))]
    assert list(train.files) == text_order
    for pixels, name in zip(train.pixels, train.files, strict=True):
        assert np.array_equal(pixels[:, 0, 0], sides[name]), name
    some = train.take(np.array([5, 2]))
    assert some.files == ("4.png", "11.png") and train.first(2).files == ("0.png", "1.png")
    odd = np.arange(11) % 2 == 1
    assert train.take(odd).files == train.files[1::2]
    for part in hold_out(train, 0.3):
        assert len(part.files) == len(part)
        for pixels, name in zip(part.pixels, part.files, strict=True):
            assert np.array_equal(pixels[:, 0, 0], sides[name]), name
    with pytest.raises(DataError, match="2 files for 11 images"):
        replace(train, files=("a.png", "b.png"))


def test_files_are_named_within_the_folder_that_was_given(tmp_path):
    for name in ("train/a/1.png", "train/b/1.png", "test/b/1.png", "test/a/2.png"):
        put(tmp_path / name)
    splits = load(str(tmp_path))
    assert splits.train.files == ("train/a/1.png", "train/b/1.png")
    assert splits.test.files == ("test/a/2.png", "test/b/1.png")
    renamed = splits.test.with_classes(("b", "a"))
    assert renamed.files == splits.test.files and renamed.labels.tolist() == [1, 0]
    assert load(str(tmp_path / "train" / "a" / "1.png")).train.files == ("1.png",)
    np.save(tmp_path / "many.npy", np.zeros((3, 6, 5), np.uint8))
    assert load(str(tmp_path / "many.npy")).train.files == ()


def test_classes_are_first_level_subfolders(tmp_path):
    for name in ("dog/deep/1.png", "cat/1.png", "cat/2.png"):
        put(tmp_path / name)
    train = load(str(tmp_path)).train
    assert train.classes == ("cat", "dog") and train.labels.tolist() == [0, 0, 1]


@pytest.mark.parametrize(
    "names", [("train", "test"), ("training", "val"), ("train_8x8", "valid_8x8")]
)
def test_split_folders(tmp_path, names):
    for split, count in zip(names, (3, 2), strict=True):
        for index in range(count):
            put(tmp_path / split / "ab"[index % 2] / f"{index}.png")
    splits = load(str(tmp_path))
    assert (len(splits.train), len(splits.test)) == (3, 2)
    assert splits.train.classes == splits.test.classes == ("a", "b")
    assert splits.test.labels.tolist() == [0, 1]


def test_a_test_class_is_a_training_class(tmp_path):
    for name in ("train/a/1.png", "train/b/1.png", "test/c/1.png"):
        put(tmp_path / name)
    refused(tmp_path, "'c'", str(tmp_path / "test" / "c"), "a, b")


def test_train_beside_other_classes_is_a_class(tmp_path):
    for name in ("train/1.png", "car/1.png"):
        put(tmp_path / name)
    splits = load(str(tmp_path))
    assert splits.test is None and splits.train.classes == ("car", "train")


def test_an_image_outside_the_splits_is_not_lost(tmp_path):
    for name in ("train/1.png", "test/1.png", "more/1.png"):
        put(tmp_path / name)
    refused(tmp_path, "more/1.png", "train/ and test/")


def test_links_are_followed_and_loops_end(tmp_path):
    put(tmp_path / "elsewhere" / "a.png")
    root = tmp_path / "root"
    put(root / "b.png")
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "loop").symlink_to(root)
    (tmp_path / "elsewhere" / "back").symlink_to(root)
    assert len(load(str(root)).train) == 2


def test_grey_of_16_bits_keeps_its_levels_in_either_byte_order(tmp_path):
    array = picture(4, 3, dtype=np.uint16)
    put(tmp_path / "a.png", array)
    Image.frombytes("I;16B", (3, 4), array.astype(">u2").tobytes()).save(tmp_path / "b.tif")
    train = load(str(tmp_path)).train
    assert train.levels == 65536 and train.pixels.dtype == np.uint16
    assert np.array_equal(train.pixels[0, 0], array) and np.array_equal(train.pixels[1, 0], array)


def test_palettes_become_rgb_and_two_levels_0_and_255(tmp_path):
    rgb = np.array([[[255, 0, 0], [0, 9, 0]]], np.uint8)
    (tmp_path / "p").mkdir()
    Image.fromarray(rgb).quantize(2).save(tmp_path / "p" / "a.png")
    assert np.array_equal(load(str(tmp_path / "p")).train.pixels[0], np.moveaxis(rgb, -1, 0))
    put(tmp_path / "two" / "a.png", np.array([[True, False]]))
    two = load(str(tmp_path / "two")).train
    assert two.pixels.tolist() == [[[[255, 0]]]] and two.levels == 256


@pytest.mark.parametrize("ending", ["png", "jpg"])
def test_exif_rotation_is_applied(tmp_path, ending):
    array = np.zeros((16, 32), np.uint8)
    array[:, :16] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn to the right brings it upright
    put(tmp_path / f"a.{ending}", array, exif=exif)
    upright = load(str(tmp_path)).train.pixels[0, 0]
    assert upright.shape == (32, 16)
    assert upright[:8].min() > 200 and upright[-8:].max() < 50


# --- what is refused


def test_no_images(tmp_path):
    (tmp_path / "README.txt").write_text("nothing")
    refused(tmp_path, "no images", str(tmp_path), ".png")


def spoil(tmp_path: Path, kind: str) -> Path:
    """A folder of one good image, and a bad one whose path is returned."""
    put(tmp_path / "good.png")
    bad = tmp_path / ("bad.jpg" if kind == "cut jpg" else "bad.png")
    put(bad, picture(40, 40, 3))
    content = bytearray(bad.read_bytes())
    if kind == "flipped":
        content[len(content) // 2] ^= 1
    bad.write_bytes(
        {"empty": b"", "text": b"not an image", "flipped": content}.get(
            kind, content[: len(content) // 2]
        )
    )
    return bad


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        ("empty", "empty file"),
        ("text", "not an image"),
        ("cut png", "truncated or corrupt"),
        ("cut jpg", "truncated or corrupt"),
        ("flipped", "truncated or corrupt"),
    ],
)
def test_bad_files_stop_or_are_skipped(tmp_path, kind, what):
    bad = spoil(tmp_path, kind)
    refused(tmp_path, what, str(bad))
    train = load(str(tmp_path), on_bad_image="skip").train
    (line,) = train.skipped
    assert len(train) == 1 and line.startswith(f"{bad}: ") and what in line


def test_no_flipped_bit_of_a_png_gets_through(tmp_path):
    put(tmp_path / "a.png", np.arange(75, dtype=np.uint8).reshape(5, 5, 3))
    good = (tmp_path / "a.png").read_bytes()
    for bit in range(8 * good.index(b"IDAT"), 8 * good.index(b"IEND") - 32):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        (tmp_path / "a.png").write_bytes(bad)
        with pytest.raises(DataError):  # Pillow's own loading lets some of them pass
            read_image(tmp_path / "a.png")


def test_skipping_keeps_the_commonest_form_and_the_right_labels(tmp_path):
    for name in ("a/1.png", "b/1.png", "b/3.png"):
        put(tmp_path / name)
    put(tmp_path / "a" / "0.png", picture(7, 7, 3))
    put(tmp_path / "b" / "2.png", picture(6, 5))
    train = load(str(tmp_path), on_bad_image="skip").train
    assert train.labels.tolist() == [0, 1, 1] and train.shape == (3, 6, 5)
    assert [line.split(": ")[0] for line in train.skipped] == [
        str(tmp_path / name) for name in ("a/0.png", "b/2.png")
    ]


def test_nothing_left_after_skipping(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    refused(tmp_path, "none of 1 images", "a.png", "empty file", on_bad_image="skip")


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (picture(5, 6, 3), "5 x 6 RGB of 8 bits and 6 x 5 RGB of 8 bits"),
        (picture(6, 5), "grey"),
        (picture(6, 5, dtype=np.uint16), "16 bits"),
    ],
    ids=["size", "grey", "depth"],
)
def test_images_that_differ_are_both_named(tmp_path, other, words):
    put(tmp_path / "a.png")
    put(tmp_path / "b.png", other)
    refused(tmp_path, words, str(tmp_path / "a.png"), str(tmp_path / "b.png"), "on_bad_image skip")


def test_splits_that_differ(tmp_path):
    put(tmp_path / "train" / "a.png")
    put(tmp_path / "test" / "a.png", picture(4, 4, 3))
    refused(tmp_path, "(3, 6, 5)", "(3, 4, 4)")


def transparent(tmp_path: Path, mode: str) -> None:
    half = Image.fromarray(np.array([[[200, 100, 0, 0], [200, 100, 0, 255]]], np.uint8), "RGBA")
    if mode == "P":
        image = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
        image.putpalette([200, 100, 0, 200, 100, 0])
        image.save(tmp_path / "a.png", transparency=0)
    elif mode == "RGB":
        rgb = Image.fromarray(np.array([[[1, 2, 3], [200, 100, 0]]], np.uint8))
        rgb.save(tmp_path / "a.png", transparency=(1, 2, 3))
    else:
        half.save(tmp_path / "a.png")


@pytest.mark.parametrize("mode", ["RGBA", "P", "RGB"])
def test_transparency_is_refused_or_put_on_the_colour(tmp_path, mode):
    transparent(tmp_path, mode)
    refused(tmp_path, "transparency", "a.png", "transparency '#ffffff'")
    train = load(str(tmp_path), transparency="#0000ff").train
    assert np.moveaxis(train.pixels[0], 0, -1).tolist() == [[[0, 0, 255], [200, 100, 0]]]


def test_grey_with_alpha_stays_grey_on_grey_only(tmp_path):
    array = np.array([[[9, 0], [9, 255]]], np.uint8)
    Image.fromarray(array, "LA").save(tmp_path / "a.png")
    refused(tmp_path, "transparency")
    assert load(str(tmp_path), transparency="#ffffff").train.pixels.tolist() == [[[[255, 9]]]]
    assert load(str(tmp_path), transparency="red").train.shape == (3, 1, 2)


@pytest.mark.parametrize("text", ["purpel", "#ffffff80", ""])
def test_a_colour_that_is_none(tmp_path, text):
    put(tmp_path / "a.png")
    with pytest.raises(ConfigError, match=": transparency: "):
        load(str(tmp_path), transparency=text)


@pytest.mark.parametrize("ending", ["gif", "png", "webp", "tif"])
def test_more_than_one_frame(tmp_path, ending):
    frames = [Image.fromarray(picture(8, 8, 3)) for _ in range(2)]
    frames[0].save(tmp_path / f"a.{ending}", save_all=True, append_images=frames[1:])
    refused(tmp_path, "more than one frame", f"a.{ending}")


def png_chunk(name: bytes, content: bytes) -> bytes:
    sum_ = struct.pack(">I", zlib.crc32(name + content))
    return struct.pack(">I", len(content)) + name + content + sum_


def raw_png(width: int, height: int, depth: int, kind: int, pixels: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(pixels)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)


@pytest.mark.parametrize(("kind", "channels"), [(2, 3), (4, 2), (6, 4)])
def test_colour_of_16_bits_is_not_cut_to_8(tmp_path, kind, channels):
    pixels = b"\0" + bytes(range(2 * channels))
    (tmp_path / "a.png").write_bytes(raw_png(1, 1, 16, kind, pixels))
    refused(tmp_path, "cut to 8", "a.png", transparency="#ffffff")


def test_pnm_of_16_bits_is_not_cut_to_8(tmp_path):
    (tmp_path / "a.ppm").write_bytes(b"P6 1 1 1023\n" + bytes(6))
    refused(tmp_path, "cut to 8", "a.ppm")


def test_a_bomb_is_refused_from_its_header(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(raw_png(60_000, 60_000, 8, 0, b""))
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("decoded"))
    refused(tmp_path, "too many pixels", "a.png")


def test_a_bomb_that_pillow_only_warns_of_is_refused(tmp_path):
    (tmp_path / "a.png").write_bytes(raw_png(10_000, 10_000, 8, 0, b""))
    refused(tmp_path, "too many pixels", "a.png")


@pytest.mark.parametrize("mode", ["CMYK", "I", "F", "YCbCr"])
def test_other_modes(tmp_path, mode):
    Image.new(mode, (4, 4)).save(tmp_path / "a.tif")
    refused(tmp_path, f"mode {mode}", "a.tif")


def test_broken_links(tmp_path):
    put(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to(tmp_path / "gone.png")
    refused(tmp_path, "broken link", "b.png")
    (tmp_path / "b.png").unlink()
    (tmp_path / "b.png").symlink_to(tmp_path / "b.png")
    refused(tmp_path, "broken link", "b.png")


def test_unreadable_files_and_folders(tmp_path, monkeypatch):
    put(tmp_path / "a.png")
    put(tmp_path / "sub" / "b.png")

    def denied(*_args):
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", denied)
        refused(tmp_path, "Permission denied", "a.png")
    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", denied)
        refused(tmp_path, "Permission denied", str(tmp_path))


# --- the cache of large folders


@pytest.fixture
def tiny_memory(monkeypatch):
    monkeypatch.setattr(pixel_cache, "MEMORY_LIMIT", 100)


def test_large_folders_are_decoded_once_and_mapped(tmp_path, tiny_memory, monkeypatch):
    root, cache = tmp_path / "root", tmp_path / "cache"
    array = put(root / "a" / "1.png")
    put(root / "b" / "1.png")
    (root / "b" / "2.png").write_bytes(b"")
    first = load(str(root), on_bad_image="skip", cache=cache).train
    monkeypatch.setattr(Image, "open", lambda *_: pytest.fail("decoded again"))
    again = load(str(root), on_bad_image="skip", cache=cache).train
    assert isinstance(again.pixels, np.memmap) and not again.pixels.flags.writeable
    assert np.array_equal(again.pixels[0], np.moveaxis(array, -1, 0))
    assert again.fingerprint() == first.fingerprint()
    assert again.skipped == first.skipped and len(again.skipped) == 1
    assert again.labels.tolist() == [0, 1] and again.classes == ("a", "b")
    assert again.files == first.files == ("a/1.png", "b/1.png")


def test_a_broken_link_that_comes_later_moves_no_name_in_the_cache(tmp_path, tiny_memory):
    root, cache = tmp_path / "root", tmp_path / "cache"
    arrays = {name: put(root / name) for name in ("a/2.png", "b/1.png")}
    load(str(root), on_bad_image="skip", cache=cache)
    (root / "a" / "1.png").symlink_to(root / "gone.png")
    train = load(str(root), on_bad_image="skip", cache=cache).train
    assert train.files == tuple(arrays) and train.labels.tolist() == [0, 1]
    for pixels, name in zip(train.pixels, train.files, strict=True):
        assert np.array_equal(pixels, np.moveaxis(arrays[name], -1, 0))


def test_the_cache_s_key_of_whole_folders_stays(tmp_path):
    put(tmp_path / "a.png")
    os.utime(tmp_path / "a.png", ns=(0, 12345))
    size = (tmp_path / "a.png").stat().st_size
    content = f"3 settings {tmp_path.resolve()}\0a.png\0{size}\x0012345".encode()
    wanted = hashlib.sha256(content).hexdigest()[:32]
    assert pixel_cache.cache_key(tmp_path, [tmp_path / "a.png"], "settings") == wanted


def test_a_changed_file_is_decoded_anew(tmp_path, tiny_memory):
    root, cache = tmp_path / "root", tmp_path / "cache"
    put(root / "a.bmp")
    put(root / "b.bmp")
    load(str(root), cache=cache)
    array = put(root / "b.bmp")  # of the same size
    os.utime(root / "b.bmp", ns=(0, 12345))
    pixels = load(str(root), cache=cache).train.pixels
    assert np.array_equal(pixels[1], np.moveaxis(array, -1, 0))


def test_a_broken_off_or_damaged_cache(tmp_path, tiny_memory, monkeypatch):
    root, cache = tmp_path / "root", tmp_path / "cache"
    put(root / "a.png")
    (root / "b.png").write_bytes(b"")
    refused(root, "empty file", "b.png", cache=cache)
    assert list(cache.iterdir()) == []  # no half entry stays
    put(root / "b.png")
    load(str(root), cache=cache)
    (entry,) = cache.iterdir()
    (entry / "pixels.npy").write_bytes((entry / "pixels.npy").read_bytes()[:-1])
    refused(root, "damaged cache", str(entry), cache=cache)


def test_a_cache_that_cannot_be_written(tmp_path, tiny_memory):
    put(tmp_path / "root" / "a.png")
    put(tmp_path / "root" / "b.png")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ResourceError, match="file"):
        load(str(tmp_path / "root"), cache=tmp_path / "file")


def test_the_default_cache_is_the_users(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert user_cache() == tmp_path / "mixerflow"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # to be ignored, says the standard
    assert user_cache() == Path.home() / ".cache" / "mixerflow"
