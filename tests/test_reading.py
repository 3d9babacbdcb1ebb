"""How images are read: crop, resize, grey and colour, of every source, and the name they leave."""

import gzip
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mixerflow.data import Reading, load, pixel_cache, published_sets, sources
from mixerflow.data.published_sets import SETS
from mixerflow.errors import ConfigError, DataError

RNG = np.random.default_rng(0)
FILTERS = ("box", "bilinear", "hamming", "bicubic", "lanczos")


def image(channels=3, height=12, width=16, dtype=np.uint8):
    return RNG.integers(0, np.iinfo(dtype).max, (channels, height, width), dtype, endpoint=True)


def put(path: Path, pixels: np.ndarray, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    last = np.moveaxis(pixels, 0, -1)
    Image.fromarray(last[..., 0] if len(pixels) == 1 else last).save(path, **options)


# --- what is done to an image


@pytest.mark.parametrize(
    ("crop", "rows", "columns"),
    [
        ("6x4", (4, 8), (5, 11)),
        ("5x3", (4, 7), (5, 10)),  # odd margins: the larger half is right and below
        ("7", (2, 9), (4, 11)),
        ("16x12", (0, 12), (0, 16)),
        ("1:1", (0, 12), (2, 14)),
        ("2:1", (2, 10), (0, 16)),
        ("3:2", (0, 11), (0, 16)),  # 10.67 rows
        ("1:3", (0, 12), (6, 10)),
        ("none", (0, 12), (0, 16)),
    ],
)
def test_crop_keeps_the_centre(crop, rows, columns):
    pixels = image()
    cut = Reading(crop=crop).apply(pixels, "")
    assert np.array_equal(cut, pixels[:, slice(*rows), slice(*columns)])


KERNELS = {
    "box": (0.5, lambda x: (x > -0.5) & (x <= 0.5)),
    "bilinear": (1.0, lambda x: 1 - abs(x)),
    "hamming": (1.0, lambda x: np.sinc(x) * (0.54 + 0.46 * np.cos(np.pi * x))),
    "bicubic": (
        2.0,
        lambda x: np.where(
            abs(x) < 1,
            1.5 * abs(x) ** 3 - 2.5 * x**2 + 1,
            -0.5 * (abs(x) ** 3 - 5 * x**2 + 8 * abs(x) - 4),
        ),
    ),
    "lanczos": (3.0, lambda x: np.sinc(x) * np.sinc(x / 3)),
}


def weights(name: str, old: int, new: int) -> np.ndarray:
    """`(new, old)`: the filter widened by the scale, cut off at the edges, each row of sum 1."""
    support, kernel = KERNELS[name]
    scale = old / new
    offsets = (np.arange(old) + 0.5 - (np.arange(new)[:, None] + 0.5) * scale) / scale
    values = np.where(abs(offsets) <= support, kernel(offsets), 0.0)
    return values / values.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_resize_is_the_widened_filter_within_the_edges(name, dtype):
    pixels = image(2, 18, 24, dtype)
    scaled = Reading(resize="8x6", filter=name).apply(pixels, "")
    exact = weights(name, 18, 6) @ pixels @ weights(name, 24, 8).T
    exact = exact.clip(0, np.iinfo(dtype).max)
    assert scaled.shape == (2, 6, 8) and scaled.dtype == dtype
    # 8 bits are rounded after each of the two passes, 16 bits once
    assert abs(scaled - exact).max() < (1.6 if dtype == np.uint8 else 0.51)


@pytest.mark.parametrize("name", FILTERS)
def test_resize_of_colour_is_pillows(name):
    pixels = image()
    theirs = Image.fromarray(np.moveaxis(pixels, 0, -1)).resize(
        (8, 6), Image.Resampling[name.upper()]
    )
    ours = Reading(resize="8x6", filter=name).apply(pixels, "")
    assert np.array_equal(np.moveaxis(ours, 0, -1), np.asarray(theirs))


def test_grey_is_pillows_luma_and_the_same_at_16_bits():
    pixels = image(3, 50, 50)
    grey = Reading(grey=True).apply(pixels, "")
    assert np.array_equal(
        grey[0], np.asarray(Image.fromarray(np.moveaxis(pixels, 0, -1)).convert("L"))
    )
    deep = Reading(grey=True).apply(pixels.astype(np.uint16) * 257, "")
    assert deep.dtype == np.uint16 and abs(deep / 257 - grey).max() <= 0.51
    assert np.array_equal(Reading(grey=True).apply(grey, ""), grey)


def test_crop_then_grey_then_resize():
    pixels, reading = image(), Reading(crop="1:1", resize="4", filter="box", grey=True)
    steps = pixels
    for one in (Reading(crop="1:1"), Reading(grey=True), Reading(resize="4", filter="box")):
        steps = one.apply(steps, "")
    assert np.array_equal(reading.apply(pixels, ""), steps)
    assert reading.changes == "crop 1:1, grey, resize 4x4 box"


@pytest.mark.parametrize(
    ("settings", "size", "fragments"),
    [
        ({"crop": "17x12"}, (12, 16), ["16 x 12", "crop 17x12"]),
        ({"crop": "16x13"}, (12, 16), ["on_bad_image skip"]),
        ({"crop": "1:100"}, (12, 16), ["16 x 12"]),
        ({"resize": "32x24"}, (12, 16), ["fewer than resize 32x24"]),
        ({"resize": "8"}, (12, 16), ["distorted", "crop 1:1"]),
        ({"resize": "8"}, (8, 9), ["distorted", "crop 1:1"]),
        ({"resize": "12x8"}, (12, 16), ["distorted", "crop 3:2"]),
        ({"resize": "64"}, (100, 101), ["distorted"]),
        ({"grey": True}, (2, 2), ["grey of 4 channels"]),
    ],
)
def test_what_would_be_made_up_or_distorted_is_refused(settings, size, fragments):
    pixels = image(4 if "grey" in settings else 3, *size)
    with pytest.raises(DataError, match=r"^[^\n]*a.png[^\n]*$") as caught:
        Reading(**settings).apply(pixels, "a.png")
    assert all(each in str(caught.value) for each in fragments), caught.value


@pytest.mark.parametrize(
    ("size", "resize"), [((218, 178), "64x78"), ((100, 200), "33x16"), ((100, 200), "33x17")]
)
def test_rounding_is_no_distortion(size, resize):
    width, height = map(int, resize.split("x"))
    if size[1] > size[0]:
        width, height = width, height
    assert Reading(resize=resize).apply(image(1, *size), "").shape == (1, height, width)


@pytest.mark.parametrize("ratio", ["3:2", "4:3", "16:9", "1:1", "2:3"])
@pytest.mark.parametrize("size", [(97, 131), (131, 97), (100, 100), (61, 90)])
def test_a_cut_of_the_same_ratio_is_never_distorted(ratio, size):
    across, down = map(int, ratio.split(":"))
    for times in (1, 2, 3, 5):
        resize = f"{times * across}x{times * down}"
        scaled = Reading(crop=ratio, resize=resize).apply(image(1, *size), "")
        assert scaled.shape == (1, times * down, times * across)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("crop", ""),
        ("crop", "0x4"),
        ("crop", "4:0"),
        ("crop", "big"),
        ("crop", "4x4x4"),
        ("crop", "-4"),
        ("crop", "4.5"),
        ("resize", "1:1"),
        ("resize", "0"),
        ("resize", ""),
        ("resize", "\u0664"),
        ("filter", "nearest"),
        ("on_bad_image", "ignore"),
        ("transparency", "purpel"),
    ],
)
def test_settings_that_cannot_be(name, value):
    with pytest.raises(ConfigError, match=name):
        load("fashion-mini", **{name: value})


def test_one_meaning_has_one_spelling():
    assert (
        Reading(resize="8") == Reading(resize="8X8") == Reading(resize="8\N{MULTIPLICATION SIGN}8")
    )


# --- sources: each holds the same four images


def as_npz(root, pixels):
    np.savez(root / "a.npz", images=np.moveaxis(pixels, 1, -1))
    return root / "a.npz"


def as_npy(root, pixels):
    np.save(root / "a.npy", np.moveaxis(pixels, 1, -1))
    return root / "a.npy"


def as_folder(root, pixels):
    for index, each in enumerate(pixels):
        put(root / "images" / f"{index}.png", each)
    return root / "images"


def as_batches(root, pixels):
    rows = [b"\0" + each.tobytes() for each in pixels]
    (root / "data_batch_1.bin").write_bytes(b"".join(rows))
    return root


def as_idx(root, pixels):
    header = b"\0\0\x08\x03" + b"".join(n.to_bytes(4, "big") for n in pixels[:, 0].shape)
    content = gzip.compress(header + pixels[:, 0].tobytes())
    (root / "train-images-idx3-ubyte.gz").write_bytes(content)
    return root


MAKERS = (as_npz, as_npy, as_folder, as_batches, as_idx)


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize(
    "settings",
    [
        {"crop": "20x20"},
        {"resize": "16"},
        {"crop": "24x12", "resize": "8x4", "filter": "bicubic"},
        {"grey": True},
    ],
)
def test_every_source_is_read_so(tmp_path, make, settings):
    grey = make is as_idx
    pixels = np.stack([image(1 if grey else 3, 32, 32) for _ in range(4)])
    train = load(make(tmp_path, pixels), **settings).train
    wanted = [Reading(**settings).apply(each, "") for each in pixels]
    assert np.array_equal(train.pixels, wanted)
    same = grey and settings == {"grey": True}
    assert train.dataset_id.endswith("" if same else f" ({Reading(**settings).changes})")
    assert same == ("(" not in train.dataset_id)


@pytest.mark.parametrize("make", [as_npz, as_npy, as_folder])
def test_grey_of_16_bits_from_every_source_that_has_it(tmp_path, make):
    pixels = np.stack([image(1, 8, 8, np.uint16) for _ in range(3)])
    train = load(make(tmp_path, pixels), crop="6", resize="3", filter="box").train
    exact = pixels[:, :, 1:7, 1:7].reshape(3, 1, 3, 2, 3, 2).mean((3, 5))
    assert train.levels == 65536 and abs(train.pixels - exact).max() <= 0.5


def test_all_splits_are_read_so(tmp_path):
    for split, count in (("train", 3), ("val", 2), ("test", 1)):
        for index in range(count):
            put(tmp_path / split / f"{index}.png", image(3, 12 + index, 16))
    parts = load(tmp_path, crop="1:1", resize="8").parts()
    assert {name: len(each) for name, each in parts.items()} == {
        "training": 3,
        "test": 1,
        "validation": 2,
    }
    assert {each.shape for each in parts.values()} == {(3, 8, 8)}


def test_named_sets_are_read_so_and_lose_their_bare_name():
    splits = load("fashion-mini", reading=Reading(crop="4x4"), resize="2")
    assert splits.train.shape == splits.test.shape == (1, 2, 2)
    assert splits.test.dataset_id == "fashion-mini (crop 4x4, resize 2x2 lanczos)"
    assert splits.train.classes == SETS["fashion-mnist"].classes
    assert load("fashion-mini", crop="1:1", grey=True).train.dataset_id == "fashion-mini"


@pytest.fixture
def published(monkeypatch, tmp_path):
    """A set that is taken for CIFAR-10, as a file and on the hub."""
    pixels = np.stack([image(3, 8, 8) for _ in range(4)])
    digests = (published_sets.content_digest(pixels), "")
    known = SETS["cifar10"]
    small = {"shape": (3, 8, 8), "counts": (4, None), "digests": digests}
    monkeypatch.setitem(SETS, "cifar10", type(known)(**{**vars(known), **small}))
    raw = sources.RawSplits(sources.RawSplit(pixels, np.arange(4)))
    monkeypatch.setattr(sources, "fetch_from_hub", lambda *_, **__: raw)
    return pixels


@pytest.mark.parametrize("spec", ["cifar10", "cifar10:{}", "{}"])
@pytest.mark.parametrize("settings", [{"resize": "4"}, {"crop": "6x6"}, {"grey": True}])
def test_a_changed_set_is_not_the_published_one(tmp_path, monkeypatch, published, spec, settings):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    spec = spec.format(as_npz(tmp_path, published))
    assert load(spec).train.dataset_id == "cifar10"
    changed = load(spec, **settings).train
    assert changed.dataset_id not in SETS
    assert changed.dataset_id.endswith(f"({Reading(**settings).changes})")


def test_a_claimed_folder_is_checked_as_it_is_read(tmp_path, published):
    root = as_folder(tmp_path, published)
    assert load(f"cifar10:{root}", crop="1:1").train.dataset_id == "cifar10"
    with pytest.raises(DataError, match=r"not cifar10: .*\(3, 4, 4\)"):
        load(f"cifar10:{root}", resize="4")


# --- folders of photographs


def test_photographs_of_many_sizes(tmp_path):
    upright = np.zeros((3, 40, 30), np.uint8)
    upright[:, :20] = 255  # the upper half is white
    turned = np.rot90(upright, 1, axes=(1, 2))  # the camera lay on its side
    exif = Image.Exif()
    exif[0x0112] = 6
    put(tmp_path / "1.png", upright)
    put(tmp_path / "2.jpg", turned, exif=exif, quality=95)
    put(tmp_path / "sub" / "3.png", image(1, 35, 50))
    with pytest.raises(DataError, match=r"crop 1:1 resize 30x30") as caught:
        load(tmp_path)
    assert "30 x 40" in str(caught.value) or "50 x 35" in str(caught.value)
    train = load(tmp_path, crop="1:1", resize="16", grey=True).train
    assert train.shape == (1, 16, 16)
    for photograph in train.pixels[:2, 0].astype(int):
        assert photograph[:7].min() > 240 and photograph[9:].max() < 15


def test_small_photographs_are_named_or_left_out(tmp_path):
    for index, side in enumerate((20, 8, 20)):
        put(tmp_path / f"{index}.png", image(3, side, side))
    with pytest.raises(DataError, match=r"8 x 8 .*1\.png"):
        load(tmp_path, resize="16")
    train = load(tmp_path, resize="16", on_bad_image="skip").train
    (line,) = train.skipped
    assert len(train) == 2 and line.startswith(f"{tmp_path / '1.png'}: 8 x 8")


def test_the_cache_holds_each_reading_apart(tmp_path, monkeypatch):
    monkeypatch.setattr(pixel_cache, "MEMORY_LIMIT", 10)
    put(tmp_path / "images" / "a.png", image(3, 16, 16))
    settings = [{}, {"crop": "8"}, {"crop": "8", "resize": "4"}, {"grey": True}]
    settings += [{"resize": "8"}, {"resize": "8", "filter": "box"}]
    for _ in range(2):
        for each in settings:
            read = load(tmp_path / "images", cache=tmp_path / "cache", **each).train.pixels
            plain = load(tmp_path / "images", cache=tmp_path / "cache").train.pixels[0]
            assert np.array_equal(read[0], Reading(**each).apply(plain, ""))
    assert len(list((tmp_path / "cache").iterdir())) == len(settings)


# --- names of files and of data


ODD = [b"a\xff", b"a\nb", b"\x1b[31mred", b"caf\xc3\xa9", b"[bold]", b"tab\t", b"'quote\""]


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("limit", [10, 1 << 29])
def test_odd_names_of_files_classes_and_folders(tmp_path, monkeypatch, name, limit):
    monkeypatch.setattr(pixel_cache, "MEMORY_LIMIT", limit)
    odd = os.fsdecode(name)
    for each in (odd, "plain"):
        put(tmp_path / odd / each / f"{odd}.png", image(3, 4, 4))
    (tmp_path / odd / odd / "bad.png").write_bytes(b"")
    for _ in range(2):
        images = load(tmp_path / odd, on_bad_image="skip", cache=tmp_path / "cache").train
        assert images.classes == tuple(sorted((odd, "plain"))) and len(images) == 2
        assert images.dataset_id.isprintable() and images.dataset_id.startswith("folder:")
        assert any(odd in line for line in images.skipped)


@pytest.mark.parametrize(
    "spec", ["", " ", "cifar10:", "mnist: ", "fashion-mini:", "imagenet32-old:"]
)
def test_no_path_is_no_data(spec):
    with pytest.raises(DataError, match=r"^[^\n]+give a path[^\n]+$"):
        load(spec)


@pytest.mark.parametrize("name", ["mnist", "fashion-mini", "galaxy"])
@pytest.mark.parametrize("kind", ["folder", "file"])
def test_a_sets_name_that_is_a_path_here_asks(tmp_path, monkeypatch, name, kind):
    monkeypatch.chdir(tmp_path)
    if kind == "file":
        Path(name).write_bytes(b"")
    else:
        put(tmp_path / name / "a.png", image())
    with pytest.raises(DataError, match=rf"also a path here: {name}: give \./{name}"):
        load(name)
    if kind == "folder":
        assert load(f"./{name}").train.dataset_id == f"folder:{name}"
