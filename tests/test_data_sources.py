"""Named sets, what is recognised as one, the embedded set, and the parts of a set."""

import lzma
import os
import runpy
import subprocess
import sys
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mixerflow.data import Images, Splits, hold_out, load, names, published_sets
from mixerflow.data.published_sets import SETS, content_digest
from mixerflow.errors import ConfigError, DataError

RNG = np.random.default_rng(0)


def some(count=10, shape=(3, 4, 4), dtype=np.uint8) -> Images:
    pixels = RNG.integers(0, 256, (count, *shape)).astype(dtype)
    return Images(pixels, np.arange(count), (), "some")


# --- the embedded set


def test_the_embedded_set_is_balanced_and_whole():
    splits = load("fashion-mini")
    for images, each in ((splits.train, 400), (splits.test, 100)):
        assert images.shape == (1, 28, 28) and images.levels == 256
        assert np.bincount(images.labels).tolist() == [each] * 10
        assert images.dataset_id == "fashion-mini" and images.classes[9] == "Ankle boot"
    # Mean and deviation of all of Fashion-MNIST are 0.286 and 0.353.
    assert abs(splits.train.pixels.mean() / 255 - 0.286) < 0.005
    assert abs(splits.train.pixels.std() / 255 - 0.353) < 0.005
    train = {image.tobytes() for image in splits.train.pixels}
    assert len(train) == 4000 and not train & {image.tobytes() for image in splits.test.pixels}


def test_the_embedded_file_carries_its_licence_and_is_small():
    path = Path(published_sets.__file__).parent / "fashion_mini.npz"
    assert path.stat().st_size < 2_000_000
    with np.load(path, allow_pickle=False) as packed:
        text = "\n".join(packed["licence"])
    assert "MIT License" in text and "Zalando SE" in text and "WITHOUT WARRANTY" in text


@pytest.mark.slow
def test_the_embedded_file_can_be_made_again(tmp_path, monkeypatch):
    source = Path("/usr/share/datasets/fashion-mnist")
    if not source.is_dir():
        pytest.skip("needs Debian's package dataset-fashion-mnist")
    tool = Path(__file__).parents[1] / "tools" / "make_fashion_mini.py"
    monkeypatch.setattr(sys, "argv", [str(tool), str(source), str(tmp_path / "out.npz")])
    runpy.run_path(str(tool), run_name="__main__")
    kept = Path(published_sets.__file__).parent / "fashion_mini.npz"
    with np.load(tmp_path / "out.npz") as made, np.load(kept) as old:
        assert lzma.decompress(made["pixels_xz"]) == lzma.decompress(old["pixels_xz"])
        for key in ("shape", "labels", "train", "licence"):
            assert np.array_equal(made[key], old[key])


# --- names and paths


@pytest.mark.parametrize(
    ("spec", "fragments"),
    [
        ("fashon-mini", ["did you mean fashion-mini?"]),
        ("CIFAR10", ["did you mean cifar10?"]),
        ("imagenet32_old", ["did you mean imagenet32-old?"]),
        ("quite-another", ["quite-another", "fashion-mini, mnist"]),
        ("", ["give a path"]),
        ("mnist:", ["give a path"]),
        ("nul\0", ["nul"]),
    ],
)
def test_what_is_not_there(spec, fragments):
    with pytest.raises((DataError, ValueError)) as caught:
        load(spec)
    assert isinstance(caught.value, DataError)
    for fragment in fragments:
        assert fragment in str(caught.value)


def test_a_misspelt_path_and_a_file_of_another_kind(tmp_path):
    (tmp_path / "images.txt").write_text("text")
    with pytest.raises(DataError, match=r"did you mean .*images\.txt"):
        load(str(tmp_path / "imges.txt"))
    with pytest.raises(DataError, match=r"images\.txt.*npz"):
        load(str(tmp_path / "images.txt"))


@pytest.mark.parametrize(
    ("name", "fragment"),
    [
        ("imagenet32-old", "academictorrents.com"),
        ("imagenet64-old", "academictorrents.com"),
        ("imagenet32-new", "image-net.org"),
        ("imagenet64-new", "image-net.org"),
        ("celeba64", "CelebA"),
        ("anime-faces", "kaggle"),
        ("galaxy", "merger_transfer_learning"),
    ],
)
def test_sets_without_a_source_say_where_to_get_them(name, fragment):
    with pytest.raises(DataError, match=name) as caught:
        load(name)
    assert fragment in str(caught.value) and "\n" not in str(caught.value)


def save_set(path: Path, train: np.ndarray, test: np.ndarray) -> str:
    np.savez(path, train_images=np.moveaxis(train, 1, -1), test_images=np.moveaxis(test, 1, -1))
    return str(path)


def test_old_and_new_imagenet_are_told_apart_by_their_counts(tmp_path, monkeypatch):
    assert SETS["imagenet32-old"].counts == (1281149, 49999)
    assert SETS["imagenet64-new"].counts == (1281167, 50000)
    small = {"counts": (7, 3), "shape": (3, 4, 4)}
    monkeypatch.setitem(SETS, "galaxy", replace(SETS["galaxy"], **small))
    right = save_set(tmp_path / "a.npz", some(7).pixels, some(3).pixels)
    assert load(f"galaxy:{right}").train.dataset_id == "galaxy"
    assert load(right).train.dataset_id == "npz:a.npz"  # counts alone prove nothing
    for train, test, word in ((8, 3, "8 training"), (7, 4, "4 test")):
        wrong = save_set(tmp_path / "b.npz", some(train).pixels, some(test).pixels)
        with pytest.raises(DataError, match=word):
            load(f"galaxy:{wrong}")
    wrong = save_set(tmp_path / "c.npz", *(some(n, (3, 5, 5)).pixels for n in (7, 3)))
    with pytest.raises(DataError, match=r"\(3, 5, 5\)"):
        load(f"galaxy:{wrong}")


@pytest.fixture
def published(monkeypatch):
    """Two small splits that `published_sets` takes for CIFAR-10."""
    train, test = some(8).pixels, some(4).pixels
    digests = (content_digest(train), content_digest(test))
    small = replace(SETS["cifar10"], shape=(3, 4, 4), counts=(8, 4), digests=digests)
    monkeypatch.setitem(SETS, "cifar10", small)
    return train, test


def test_a_published_set_is_recognised_in_any_order_and_only_whole(tmp_path, published):
    train, test = published
    assert load(save_set(tmp_path / "a.npz", train[::-1], test)).train.dataset_id == "cifar10"
    changed = train.copy()
    changed[3, 0, 0, 0] ^= 1
    path = save_set(tmp_path / "b.npz", changed, test)
    assert load(path).train.dataset_id == "npz:b.npz"
    with pytest.raises(DataError, match="other training images"):
        load(f"cifar10:{path}")
    swapped = save_set(tmp_path / "c.npz", train, some(4).pixels)
    assert load(swapped).train.dataset_id == "npz:c.npz"


# --- the hub


def fake_hub(monkeypatch, splits=None, error=None):
    """Put a `datasets` in place whose `load_dataset` gives these splits, or fails."""
    calls = []

    def load_dataset(repository):
        calls.append(repository)
        if error:
            raise error
        return {
            key: [
                {"img": Image.fromarray(np.moveaxis(image, 0, -1)), "label": row % 10}
                for row, image in enumerate(pixels)
            ]
            for key, pixels in splits.items()
        }

    module = types.ModuleType("datasets")
    module.load_dataset = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", module)
    return calls


def test_a_set_from_the_hub(monkeypatch, published):
    train, test = published
    calls = fake_hub(monkeypatch, {"train": train, "test": test})
    splits = load("cifar10")
    assert calls == ["uoft-cs/cifar10"]
    assert np.array_equal(splits.train.pixels, train) and np.array_equal(splits.test.pixels, test)
    assert splits.train.labels.tolist() == list(range(8)) and splits.train.classes[0] == "airplane"
    assert splits.train.dataset_id == "cifar10"


def test_other_images_from_the_hub_do_not_get_the_name(monkeypatch, published):
    fake_hub(monkeypatch, {"train": published[0], "test": some(5).pixels})
    assert load("cifar10").test.dataset_id == "hub:cifar10"


def test_the_hub_fails_in_one_line(monkeypatch, published):
    fake_hub(monkeypatch, error=ConnectionError("no route\nto host"))
    with pytest.raises(DataError, match="no route") as caught:
        load("cifar10")
    assert "\n" not in str(caught.value) and "cifar10:FOLDER" in str(caught.value)
    fake_hub(monkeypatch, {"train": some(2, (3, 5, 5)).pixels})
    with pytest.raises(DataError, match=r"uoft-cs/cifar10 \[0\].*"):
        load("cifar10")
    fake_hub(monkeypatch, {"test": published[1]})
    with pytest.raises(DataError, match="no training images"):
        load("cifar10")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"mixerflow\[hub\]"):
        load("mnist")


def test_the_hub_is_imported_only_when_asked(tmp_path):
    assert names()[0] == "fashion-mini" and "mnist" in names()
    (tmp_path / "datasets.py").write_text("raise SystemExit('imported')")
    code = "from mixerflow.data import load; load('fashion-mini'); load({!r})"
    for spec, status in (("fashion-mini", 0), ("mnist", 1)):
        done = subprocess.run(
            [sys.executable, "-c", code.format(spec)],
            env={**os.environ, "PYTHONPATH": str(tmp_path)},
            stderr=subprocess.PIPE,
            text=True,
        )
        assert done.returncode == status and ("imported" in done.stderr) == bool(status)


# --- sets and their parts


def test_take_and_fingerprint():
    images = some()
    part = images.take(np.array([3, 1]))
    assert part.labels.tolist() == [3, 1] and len(part) == 2
    assert np.array_equal(part.pixels, images.pixels[[3, 1]])
    assert part.fingerprint() != images.take(np.array([1, 3])).fingerprint()
    assert images.fingerprint() == some_again(images).fingerprint()


def some_again(images: Images) -> Images:
    return replace(images, pixels=images.pixels.copy(), labels=None)


def test_the_fingerprint_knows_shape_and_type_and_reads_in_pieces(tmp_path, monkeypatch):
    images = some(shape=(1, 4, 6))
    whole = images.fingerprint()
    other = replace(images, pixels=images.pixels.reshape(10, 1, 6, 4)).fingerprint()
    deep = replace(images, pixels=images.pixels.astype(np.uint16)).fingerprint()
    assert len({whole, other, deep}) == 3
    np.save(tmp_path / "a.npy", images.pixels)
    mapped = replace(images, pixels=np.load(tmp_path / "a.npy", mmap_mode="r"))
    monkeypatch.setattr("mixerflow.data.dataset._CHUNK_BYTES", 50)
    assert mapped.fingerprint() == whole


@pytest.mark.parametrize(
    "change",
    [
        {"pixels": np.zeros((2, 4, 4), np.uint8)},
        {"pixels": np.zeros((2, 1, 4, 4))},
        {"pixels": np.zeros((0, 1, 4, 4), np.uint8)},
        {"pixels": np.zeros((10, 3, 4, 8), np.uint8)[..., ::2]},
        {"labels": np.arange(9)},
        {"labels": np.arange(10, dtype=np.uint8)},
        {"labels": np.arange(10) - 2},
        {"classes": ("a", "b")},
    ],
)
def test_arrays_that_do_not_fit_together(change):
    with pytest.raises(DataError, match="some"):
        replace(some(), **change)


def test_splits_of_one_shape_only():
    with pytest.raises(DataError, match="shape"):
        Splits(some(), some(shape=(3, 4, 5)))


@pytest.mark.parametrize(
    ("count", "fraction", "held"), [(100, 0.04, 4), (2, 0.01, 1), (3, 0.99, 2)]
)
def test_hold_out(count, fraction, held):
    images = some(count)
    train, validation = hold_out(images, fraction, seed=3)
    assert len(validation) == held and len(train) == count - held
    both = np.concatenate([train.labels, validation.labels])
    assert sorted(both) == list(range(count))  # disjoint, and nothing lost
    assert all(np.diff(train.labels) > 0) and all(np.diff(validation.labels) > 0)
    assert np.array_equal(images.pixels[validation.labels], validation.pixels)
    again = hold_out(images, fraction, seed=3)
    assert np.array_equal(again[1].labels, validation.labels)
    assert {len(hold_out(images, fraction, seed=seed)[1]) for seed in range(30)} == {held}


def test_hold_out_depends_on_the_seed_and_has_limits():
    images = some(200)
    drawn = {tuple(hold_out(images, seed=seed)[1].labels) for seed in range(3)}
    assert len(drawn) == 3
    with pytest.raises(DataError, match="two images"):
        hold_out(some(1))
    for fraction in (0.0, 1.0, -1.0, float("nan")):
        with pytest.raises(ConfigError):
            hold_out(images, fraction)
