"""Subfolders by their names: splits, classes, folders of other programs, and what is asked."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mixerflow.data import load
from mixerflow.errors import DataError

RNG = np.random.default_rng(0)


def folder(root: Path, *names: str, each: int = 2) -> Path:
    """A folder with images in subfolders of these names."""
    for name in names:
        (root / name).mkdir(parents=True, exist_ok=True)
        for index in range(each):
            pixels = RNG.integers(0, 256, (4, 4, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{index}.png")
    return root


def parts(root: Path) -> dict[str, int]:
    return {name: len(images) for name, images in load(root).parts().items()}


@pytest.mark.parametrize(
    "names",
    [
        ("train", "test"),
        ("Train", "Valid"),
        ("TRAINING", "Testing"),
        ("train2017", "val2017"),
        ("train2014", "test2015"),
        ("trainA", "testA"),
        ("train-images", "test-images"),
        ("training_set", "test_set"),
        ("TrainingSet", "ValidationSet"),
        ("train_64x64", "valid_64x64"),
        ("train", "holdout"),
        ("train", "held-out"),
        ("train", "Hold_Out"),
        ("train_clean", "dev_clean"),
        ("train-noisy-100", "eval-noisy-100"),
        ("seg_train", "seg_test"),
        ("imagesTr", "imagesTs"),
        ("trainset", "testset"),
        ("trainval", "test"),
        ("train", "test-dev2017"),
        ("DIV2K_train_HR", "DIV2K_valid_HR"),
        ("bounding_box_train", "bounding_box_test"),
    ],
)
def test_names_of_splits(tmp_path, names):
    train, held_out = names
    folder(tmp_path, train, each=3)
    folder(tmp_path, held_out)
    assert parts(tmp_path) == {"training": 3, "test": 2}
    assert load(tmp_path).train.labels is None


@pytest.mark.parametrize(
    "names",
    [
        ("train", "dev", "eval"),
        ("train", "val", "test"),
        ("train2014", "val2014", "test2015"),
        ("Training", "Validation", "HoldOut"),
        ("train_clean", "dev_clean", "test_clean"),
    ],
)
def test_three_splits(tmp_path, names):
    for each, name in enumerate(names, 2):
        folder(tmp_path, f"{name}/a", f"{name}/b", each=each)
    assert parts(tmp_path) == {"training": 4, "validation": 6, "test": 8}
    assert load(tmp_path).validation.classes == ("a", "b")


@pytest.mark.parametrize(
    "names",
    [
        ("bus", "car", "train"),
        ("bus_station", "train_station"),
        ("pen", "test_tube"),
        ("pen", "test_tube", "train"),
        ("cable_car", "train", "train_station"),
        ("contest", "pytest"),
        ("devil", "valley", "evaluate_me", "trainer"),
        ("masks", "photos"),
    ],
)
def test_classes_are_no_splits(tmp_path, names):
    images = load(folder(tmp_path, *names)).train
    assert images.classes == tuple(sorted(names)) and len(images) == 2 * len(names)


@pytest.mark.parametrize(
    "names",
    [
        ("trainA", "trainB"),
        ("trainA", "trainB", "testA", "testB"),
        ("train1", "train2", "test"),
        ("Training", "PublicTest", "PrivateTest"),
        ("train", "val", "dev", "test"),
        ("train_noisy", "dev_quiet"),
        ("dev_clean", "test_clean"),
        ("train", "train_test"),
        ("test",),
        ("bus", "val"),
        ("cat", "dog", "held_out"),
        ("photos", "test_images"),
        ("cat/train", "cat/test", "dog/train", "dog/test"),
        ("data/images/train", "data/images/test"),
        ("a/deep/val", "b"),
    ],
)
def test_held_out_images_are_never_trained_on_unasked(tmp_path, names):
    folder(tmp_path, *names)
    with pytest.raises(DataError, match="named like") as caught:
        load(tmp_path)
    line = str(caught.value)
    assert "\n" not in line and "name the folder of the images itself" in line
    named = Path(line.split("such as ")[1].split(",")[0])
    assert named.is_dir() and named.is_relative_to(tmp_path)


def test_an_empty_split_is_not_passed_over(tmp_path):
    folder(tmp_path, "train")
    (tmp_path / "test").mkdir()
    with pytest.raises(DataError, match=r"no images: .*test"):
        load(tmp_path)


def test_a_folder_of_texts_beside_train_is_no_class(tmp_path):
    folder(tmp_path, "train/a", "train/b")
    (tmp_path / "notes").mkdir()
    assert load(tmp_path).train.classes == ("a", "b")


@pytest.mark.parametrize("masks", ["ground_truth", "GT", "masks", "annotations"])
def test_defects_of_the_test_images_and_their_masks(tmp_path, masks):
    folder(tmp_path, "train/good", "test/good", "test/broken_large", f"{masks}/broken_large")
    splits = load(tmp_path)
    assert (len(splits.train), len(splits.test)) == (2, 4) and splits.test.labels is None
    (line,) = splits.train.skipped
    assert line.startswith(f"{tmp_path / masks}: not used")


FOREIGN = ["@eaDir", "__MACOSX", ".thumbnails", ".ipynb_checkpoints", "lost+found", "#recycle"]
FOREIGN += ["$RECYCLE.BIN", "System Volume Information", "__pycache__", ".git", "@Recycle"]


@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.parametrize("where", ["", "cat/"])
def test_folders_of_other_programs(tmp_path, name, where):
    folder(tmp_path, "cat", "dog", f"{where}{name}/cat.png", each=1)
    images = load(tmp_path).train
    assert images.classes == ("cat", "dog") and len(images) == 2
    (line,) = images.skipped
    reason = "hidden" if name.startswith(".") else "of a system or another program"
    assert line == f"{tmp_path / where / name}: {reason}"


def test_many_folders_of_other_programs_are_one_line(tmp_path):
    folder(tmp_path, "cat", "cat/@eaDir", "dog", "dog/@eaDir", ".thumbnails")
    (tmp_path / "loop").symlink_to(tmp_path)
    foreign, hidden = load(tmp_path).train.skipped
    assert foreign.startswith(f"{tmp_path / 'cat' / '@eaDir'} and 1 more folder: ")
    assert hidden == f"{tmp_path / '.thumbnails'}: hidden"


@pytest.mark.parametrize(
    ("names", "classes"),
    [
        (map(str, range(1, 13)), tuple(map(str, range(1, 13)))),
        (("10", "9", "007"), ("007", "9", "10")),
        (("10", "9", "a"), ("10", "9", "a")),
        (("1.5", "10", "9"), ("1.5", "10", "9")),
    ],
)
def test_whole_numbers_are_in_the_order_of_numbers(tmp_path, names, classes):
    images = load(folder(tmp_path, *names, each=1)).train
    assert images.classes == classes
    in_the_order_of_files = [classes[label] for label in images.labels]
    assert in_the_order_of_files == sorted(classes)


def test_classes_below_a_wrapping_folder_and_classes_without_a_good_image(tmp_path):
    """Archives unpack to set/set/class; a class whose images are all skipped stays a class."""
    for split in ("training_set", "test_set"):
        folder(tmp_path / "a" / split / split, "cats", "dogs", each=1)
    splits = load(tmp_path / "a")
    assert splits.train.classes == splits.test.classes == ("cats", "dogs")
    assert splits.test.labels.tolist() == [0, 1]
    folder(tmp_path / "b", "x", "z", each=1)
    (tmp_path / "b" / "y").mkdir()
    (tmp_path / "b" / "y" / "1.heic").write_bytes(b"\0\0\0\x18ftypheic")
    images = load(tmp_path / "b", on_bad_image="skip").train
    assert images.classes == ("x", "y", "z") and images.labels.tolist() == [0, 2]
    (tmp_path / "b" / "bad.png").write_bytes(b"")  # skipped, beside the classes
    images = load(tmp_path / "b", on_bad_image="skip").train
    assert images.classes == ("x", "y", "z") and images.labels.tolist() == [0, 2]


def test_test_images_alone_say_that_they_are(tmp_path):
    pixels, labels = np.zeros((3, 4, 4), np.uint8), np.arange(3)
    np.savez(tmp_path / "a.npz", test_images=pixels, test_labels=labels)
    (line,) = load(tmp_path / "a.npz").train.skipped
    assert "test images alone" in line
