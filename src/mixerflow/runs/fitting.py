"""Images that fit a run: their levels, labels in its classes' numbering, and its own images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import nn

from mixerflow.core import Flow, VectorNet
from mixerflow.data import Images, Reading, Splits, held_out
from mixerflow.detection import is_mixture
from mixerflow.errors import DataError
from mixerflow.registry import restore


def require_context(flow: Flow, images: Images) -> None:
    """Raise a DataError unless the labels of `images` are what a conditional flow takes.

    What a net of your own takes is not known: any labels will do.
    """
    net, length = flow.context_net, images.vector_length
    if images.labels is None:
        what, remedy = "a conditional flow needs labels of the images", "add class labels"
    elif isinstance(net, nn.Embedding) and length is not None:
        what, remedy = "the flow takes class labels, these are vectors", "give class numbers (N,)"
    elif isinstance(net, VectorNet) and length != net.length:
        given = "class labels" if length is None else f"of length {length}"
        what, remedy = f"the flow takes vectors of length {net.length}, these are {given}", ""
    else:
        return
    if isinstance(net, VectorNet):
        remedy = f"give vectors (N, {net.length})"
    raise DataError(what, images.dataset_id, remedy)


def require_levels(flow: Flow, images: Images) -> None:
    """Raise a DataError for images with more levels than a flow knows, or floats beside levels."""
    if (images.levels is None) != (flow.levels is None):
        words = [
            f"integers of {n:,} levels" if n else "floats" for n in (images.levels, flow.levels)
        ]
        what = f"these are {words[0]}, the run's images are {words[1]}"
        raise DataError(what, images.dataset_id, f"give {words[1].split(' of ')[0]}")
    if images.levels and flow.levels and images.levels > flow.levels:
        what = f"pixels have {images.levels:,} levels, the run's have {flow.levels:,}"
        raise DataError(what, images.dataset_id, "give images of as many levels")


def reading_of(metadata: dict[str, Any]) -> Reading:
    """Return how the images of a run, or of published weights, were read."""
    source = metadata.get("source") or {}
    return restore(Reading, {key: value for key, value in source.items() if key != "data"})


def labels_of(flow: Flow, metadata: dict[str, Any], images: Images) -> np.ndarray:
    """Return the labels of `images` for a conditional run: vectors, or numbers of its classes.

    Raises:
        DataError: images without labels, some or all, with vectors that do not fit the flow, or
            with classes that the run does not know.
    """
    require_context(flow, images)
    labels, net = numbered(metadata, images), flow.context_net
    if isinstance(net, nn.Embedding) and not 0 <= labels.min() <= labels.max() < net.num_embeddings:
        wrong = labels.max() if labels.min() >= 0 else labels.min()
        what = f"a label is {wrong}, and the run has the classes 0 to {net.num_embeddings - 1}"
        remedy = "give images of these classes, all of them with a label"
        raise DataError(what, images.dataset_id, remedy)
    return labels


def vectors_of(flow: Flow, metadata: dict[str, Any], images: Images) -> np.ndarray | None:
    """Return the labels of `images` for a flow that is no mixture of its classes without them.

    None for a class-conditional flow, and for one without a context. It raises what `labels_of`
    does.
    """
    without = flow.context_net is None or is_mixture(flow)
    return None if without else labels_of(flow, metadata, images)


def numbered(metadata: dict[str, Any], images: Images) -> np.ndarray:
    """Return the labels of images that have some, in the numbering of a run's classes.

    Raises:
        DataError: classes that the run does not know.
    """
    assert images.labels is not None
    known = list(metadata["data"]["classes"])
    if list(images.classes) == known:
        return images.labels
    numbers = renumbered(images.labels, images.classes, known)
    if numbers is None:
        what = f"classes {list(images.classes)} are not the run's {known}"
        raise DataError(what, images.dataset_id, "name the class folders as in training")
    return numbers


def renumbered(
    labels: np.ndarray, classes: Sequence[str], known: Sequence[str]
) -> np.ndarray | None:
    """Return labels of named classes in the numbering of `known` names; -1 where they have no name.

    None if there are no names, or one that is not known.
    """
    if not classes or not set(classes) <= set(known):
        return None
    named = (labels >= 0) & (labels < len(classes))
    return np.array([*map(list(known).index, classes), -1])[np.where(named, labels, -1)]


def own_parts(metadata: dict[str, Any], splits: Splits) -> dict[str, Images]:
    """Return which of the images a run was trained and validated on, known by their SHA-256.

    Args:
        metadata: the content of ``run.json``.
        splits: images, of which the run may have held a part out for validation.

    Returns:
        The parts "training" and "validation"; one that is not among the images is left out.
    """
    known, train = metadata.get("data") or {}, splits.train
    candidates = [train, *(each for each in (splits.validation, splits.test) if each is not None)]
    count = known.get("training_images"), known.get("validation_images")
    if sum(number or 0 for number in count) == len(train) > 1:
        mask = held_out(train, seed=(metadata.get("train") or {}).get("seed", 0))
        if count == ((~mask).sum(), mask.sum()):
            candidates = [train.take(np.flatnonzero(each)) for each in (~mask, mask)]
    found = {}
    for name, number in zip(("training", "validation"), count, strict=True):
        for images in candidates:
            same = len(images) == number and images.fingerprint() == known.get(f"{name}_sha256")
            if same:
                found.setdefault(name, images)
    return found
