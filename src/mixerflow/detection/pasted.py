"""A test of maps: images with a patch of another image, and how well a map finds the patch."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mixerflow.core import as_tensor
from mixerflow.detection.metrics import detection
from mixerflow.errors import ConfigError


class Pasted(NamedTuple):
    """Images with foreign patches.

    Attributes:
        images: ``(N, C, H, W)``, of the type of the images that were pasted into.
        masks: ``(N, H, W)`` bool, True at the pixels of the patch.
    """

    images: np.ndarray
    masks: np.ndarray


def paste(images: np.ndarray, foreign: np.ndarray, *, side: int, seed: int = 0) -> Pasted:
    """Paste into each image a square of a foreign image, from a random place to a random place.

    The result is a function of the arguments alone. The foreign image, and both places, are drawn
    uniformly; no image is changed that is not inside the square.

    Args:
        images: ``(N, C, H, W)``.
        foreign: ``(M, C, h, w)`` of the same channels and type; other images than the first, if
            both are of one set.
        side: of the square, in pixels.
        seed: of the draws.

    Raises:
        ConfigError: foreign images of other channels or another type, or none; a square that does
            not fit in both, or that is a whole image.
    """
    if images.ndim != 4 or foreign.ndim != 4 or images.shape[1] != foreign.shape[1]:
        what = f"images {images.shape} and foreign ones {foreign.shape}"
        raise ConfigError(what, "paste", "give (N, C, H, W) of the same channels")
    if images.dtype != foreign.dtype:
        what = f"images of {images.dtype} and foreign ones of {foreign.dtype}"
        raise ConfigError(what, "paste", "give pixels of one type")
    least = min(*images.shape[2:], *foreign.shape[2:])
    if not len(foreign) or not 1 <= side <= least or images.shape[2:] == (side, side):
        what = f"a square of {side} pixels from {len(foreign)} foreign images"
        raise ConfigError(what, "paste", f"give at least one image, and a side up to {least}")
    rng, result = np.random.default_rng(seed), images.copy()
    masks = np.zeros((len(images), *images.shape[2:]), dtype=bool)
    for image, mask in zip(result, masks, strict=True):
        other = foreign[rng.integers(len(foreign))]
        (to_row, to_column), (row, column) = (
            [int(rng.integers(n - side + 1)) for n in each.shape[1:]] for each in (image, other)
        )
        place = (slice(to_row, to_row + side), slice(to_column, to_column + side))
        image[:, *place] = other[:, row : row + side, column : column + side]
        mask[place] = True
    return Pasted(result, masks)


def map_auroc(maps: Tensor | np.ndarray, masks: Tensor | np.ndarray) -> Tensor:
    """Return how well each map ``(N, H, W)`` tells the pixels of its mask from others: ``(N,)``.

    The area under the ROC curve over the pixels of an image: the probability that a pixel of the
    mask has a larger value than one outside, ties counted half (Mann and Whitney's U). 1/2 is
    chance. The mean over images and its standard error are `means.mean_and_error`'s.

    Raises:
        ValueError: other shapes, a value that is NaN, or a mask of all pixels or none.
    """
    values, inside = as_tensor(maps).flatten(1).double(), as_tensor(masks).flatten(1).bool()
    if values.shape != inside.shape or bool(values.isnan().any()):
        what = "NaN" if values.shape == inside.shape else f"masks {tuple(as_tensor(masks).shape)}"
        raise ValueError(f"map_auroc: maps {tuple(as_tensor(maps).shape)} with {what}")
    if not bool(inside.any(1).all()) or bool(inside.all(1).any()):
        raise ValueError("map_auroc: a mask has all pixels or none")
    pairs = zip(values.cpu().numpy(), inside.cpu().numpy(), strict=True)
    found = [detection(each[~mask], each[mask], resamples=0).auroc for each, mask in pairs]
    return torch.tensor(found, dtype=torch.float64)
