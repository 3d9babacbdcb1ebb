"""A model fitted to images: what only they tell of it, such as the number of classes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from mixerflow.data import Images, Splits
from mixerflow.errors import ConfigError, DataError
from mixerflow.parts import LinearHead, Model
from mixerflow.registry import evolve


def with_data(model: Model, splits: Splits, *, head: bool = False) -> Model:
    """Set in a model what only images tell: their number of levels, and of classes or numbers.

    With `head` it gets a linear head, unless it has another.

    Raises:
        ConfigError: images that do not fit the model's settings.
        DataError: labels that are no numbers of classes.
    """
    images = splits.train
    levels = model.pixels.levels
    if images.levels is None:
        if levels is not None:
            what = f"these are floats, and the model takes pixels of {levels} levels"
            remedy = "set it to none, or convert pixels to uint8"
            raise ConfigError(what, "--model.pixels.levels", remedy)
    elif levels == 256 != images.levels:
        levels = images.levels
        model = evolve(model, {"pixels.levels": levels})
    if images.levels is not None and (levels is None or levels < images.levels):
        what = f"images have {images.levels} levels, the model {levels}"
        raise ConfigError(what, "--model.pixels.levels", f"set it to {images.levels}")
    if head and model.head is None:
        model = replace(model, head=LinearHead())
    if model.head is not None and model.head.classes is None:
        model = evolve(model, {"head.classes": _head_classes(splits.train)})
    if model.classes is not None:
        count = _class_count(splits, model.classes.count)
        model = evolve(model, {"classes.count": count})
    if model.vectors is not None:
        model = evolve(model, {"vectors.length": _vector_length(splits, model.vectors.length)})
    return model


def _head_classes(images: Images) -> int:
    """Return the number of classes of the training images, which a head is to tell.

    Raises:
        ConfigError: images without class labels.
        DataError: images of one class.
    """
    if images.labels is None or images.vector_length is not None:
        what, remedy = "training images without class labels", "give images with class labels"
        raise ConfigError(what, "--objective", remedy)
    _require_numbered(images)
    count = len(images.classes) or int(images.labels.max()) + 1
    if count < 2 or len(np.unique(images.labels[images.labels >= 0])) < 2:
        what = "labels of fewer than two classes, of which a head can tell nothing"
        raise DataError(what, images.dataset_id, "give images of several classes")
    return count


def _require_numbered(images: Images) -> None:
    """Raise a DataError for labels that cannot be the numbers of classes."""
    if images.labels is not None and (highest := int(images.labels.max())) >= len(images):
        what = f"a label is {highest}, of {len(images):,} images"
        raise DataError(what, images.dataset_id, "number the classes 0, 1, 2, ...")


def _class_count(splits: Splits, given: int | None) -> int:
    """Return the number of classes that was given, or else that of the images of all splits.

    Classes with names are as many as the names; others go up to the highest label.

    Raises:
        ConfigError: images without class labels, or of more classes than were given.
    """
    count = len(splits.train.classes)
    for name, images in splits.parts().items():
        if images.labels is None or images.vector_length is not None:
            has = "without labels" if images.labels is None else "with vectors for labels"
            raise ConfigError(f"{name} images {has}", "--model.classes", "set it to none")
        highest = int(images.labels.max()) + 1
        if given is not None and highest > given:
            what = f"labels of {highest} classes in {name} images"
            raise ConfigError(what, "--model.classes.count", f"set it to {highest}")
        count = max(count, highest)
    if given is None:
        _require_numbered(splits.train)
    return count if given is None else given


def _vector_length(splits: Splits, given: int | None) -> int:
    """Return the length of the vectors that was given, or else that of the images' vectors.

    Raises:
        ConfigError: images without vectors, or with vectors of another length.
    """
    for name, images in splits.parts().items():
        length = images.vector_length
        if length is None:
            remedy = "give an .npz file with vectors, or set it to none"
            raise ConfigError(f"{name} images without vectors", "--model.vectors", remedy)
        given = length if given is None else given
        if length != given:
            what = f"vectors of {length} numbers in {name} images, and not {given}"
            raise ConfigError(what, "--model.vectors", f"set its length to {length}")
    assert given is not None
    return given
