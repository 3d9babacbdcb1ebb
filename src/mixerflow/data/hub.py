"""Published sets fetched by name with Hugging Face's `datasets` (the extra `hub`)."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from mixerflow.data.decode import parse_transparency, to_array
from mixerflow.data.formats import Part, first_line
from mixerflow.data.known import SETS
from mixerflow.errors import DataError


def fetch(name: str, *, transparency: str = "refuse") -> tuple[Part, Part | None]:
    """Fetch a set of `known.SETS`, training and test images.

    Raises:
        DataError: the set is not on the hub, `datasets` is not installed, or fetching failed.
    """
    known = SETS[name]
    if known.repository is None:
        raise DataError("not to be had from the Hugging Face hub", name, known.remedy)
    try:
        datasets = importlib.import_module("datasets")
    except ImportError as error:
        remedy = f"pip install 'mixerflow[hub]'; {known.remedy}"
        raise DataError("the package 'datasets' is not installed", name, remedy) from error
    try:
        splits = datasets.load_dataset(known.repository)
    except Exception as error:  # network, hub and cache each raise kinds of their own
        what = f"cannot be fetched ({first_line(error)})"
        raise DataError(what, name, f"check the network; {known.remedy}") from error
    ground = parse_transparency(transparency)
    parts = [_read_split(splits[key], name, ground) for key in ("train", "test") if key in splits]
    if "train" not in splits:
        raise DataError("no training images", known.repository, known.remedy)
    return parts[0], parts[1] if len(parts) > 1 else None


def _read_split(rows: Any, name: str, ground: tuple[int, int, int] | None) -> Part:  # noqa: ANN401
    """One split, a sequence of rows `{column: picture, "label": number}`."""
    known = SETS[name]
    pixels = np.empty((len(rows), *known.shape), np.uint8)
    labels = []
    for index, row in enumerate(rows):
        where = f"{known.repository} [{index}]"
        image = to_array(row[known.column], where, ground)
        if image.shape != known.shape or image.dtype != np.uint8:
            what = f"an image of {image.shape} {image.dtype}, not {known.shape} uint8"
            raise DataError(what, where, known.remedy)
        pixels[index] = image
        labels.append(row.get("label"))
    if None in labels:
        return Part(pixels, None)
    return Part(pixels, np.array(labels, dtype=np.int64), known.classes)
