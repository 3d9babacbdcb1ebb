"""Images of any kind as pictures of a page."""

from __future__ import annotations

import numpy as np

from mixerflow import page, pictures
from mixerflow.core import Flow, as_tensor
from mixerflow.data import Images
from mixerflow.evaluate import to_pixels


def grid(pixels: np.ndarray, alt: str, columns: int | None = None) -> str:
    """Return images for display ``(N, C, *spatial)``, uint8 or uint16, as one picture of a page.

    Volumes are shown by the middle plane of their first axis, sequences by a bar.
    """
    flat = planes(pixels)
    words = {5: ": the middle plane of each volume", 3: ": each bar is a sequence"}
    return page.picture(pictures.png_grid(flat, columns=columns), alt + words.get(pixels.ndim, ""))


def planes(pixels: np.ndarray) -> np.ndarray:
    """Return a picture ``(N, C, H, W)`` of each of ``(N, C, *spatial)``, of one to three axes."""
    if pixels.ndim == 3:
        return pixels[:, :, None, :].repeat(max(1, pixels.shape[-1] // 8), axis=2)
    return pixels[:, :, pixels.shape[2] // 2] if pixels.ndim == 5 else pixels


def visible(flow: Flow, images: Images) -> np.ndarray:
    """Return pixels for display; real numbers are scaled from the least to the largest of all."""
    if images.levels is not None:
        return images.pixels
    return to_pixels(flow, as_tensor(images.pixels))
