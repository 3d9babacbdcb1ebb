"""Latents of images: paths between two of them, and the images nearest to one."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from mixerflow.core import Flow

_BATCH = 64
_ROWS = 512
"""Rows that are compared with an image at a time."""


def straight(a: Tensor, b: Tensor, shares: Tensor) -> Tensor:
    """Return ``(1 - t) a + t b`` ``(n, D)`` for latents a and b ``(D,)`` and shares t ``(n,)``."""
    t = shares[:, None]
    return (1 - t) * a + t * b


def spherical(a: Tensor, b: Tensor, shares: Tensor) -> Tensor:
    """Return the latents ``(n, D)`` on the arc between two latents ``(D,)``, at shares t ``(n,)``.

    ``sin((1 - t) w) / sin(w) a + sin(t w) / sin(w) b`` with w the angle between a and b. In many
    dimensions nearly all of a Gaussian's latents have about one length. The arc keeps it, where the
    straight line passes through shorter ones. Latents that are (nearly) on one line have no arc,
    and the line is taken.

    Reference:
        Shoemake, Animating rotation with quaternion curves (1985), doi:10.1145/325165.325242.
    """
    one, two = a.double(), b.double()
    angle = ((one @ two) / (one.norm() * two.norm())).clamp(-1, 1).arccos()
    if not bool(angle.sin() > 1e-6):  # NaN where one is 0
        return straight(a, b, shares)
    t = shares.double()[:, None]
    along = (((1 - t) * angle).sin() * one + (t * angle).sin() * two) / angle.sin()
    return along.to(a.dtype)


WAYS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "spherical": spherical,
    "straight": straight,
}
"""Paths by name."""


def encoded(flow: Flow, pixels: np.ndarray, label: int | None) -> Tensor:
    """Return latents ``(n, D)`` of images, all as of the class `label` of a conditional flow."""
    context = None if label is None else torch.full((len(pixels),), label)
    return flow.encode(torch.tensor(pixels), context)  # a copy: files may be read-only maps


class LatentIndex:
    """Latents of a set's images, encoded a part at a time, as of one class.

    Args:
        flow: the flow.
        pixels: the images ``(N, C, H, W)``.
        label: the class; None for a flow without classes.

    Attributes:
        done: number of images encoded.
    """

    def __init__(self, flow: Flow, pixels: np.ndarray, label: int | None) -> None:
        self._flow, self._pixels, self._label = flow, pixels, label
        size = encoded(flow, pixels[:1], label).shape[1]
        self.latents = np.empty((len(pixels), size), np.float32)
        self.done = 0

    @property
    def complete(self) -> bool:
        """Whether all images are encoded."""
        return self.done == len(self._pixels)

    def advance(self, seconds: float) -> None:
        """Encode further images for about so many seconds, and one batch at least."""
        until = time.monotonic() + seconds
        while not self.complete:
            part = slice(self.done, self.done + _BATCH)
            z = encoded(self._flow, self._pixels[part], self._label)
            self.latents[part] = z.float().cpu().numpy()
            self.done = min(part.stop, len(self._pixels))
            if time.monotonic() >= until:
                return


def angles(rows: np.ndarray, point: np.ndarray) -> np.ndarray:
    """Return the angles ``(N,)`` in degrees between rows ``(N, D)`` and a point ``(D,)``.

    Latents of different images are nearly at right angles in many dimensions, and of different
    lengths; by the length of their difference, the shortest would be near to all.
    """
    lengths = np.linalg.norm(rows, axis=1) * np.linalg.norm(point)
    with np.errstate(invalid="ignore", divide="ignore"):  # a latent of 0 has no angle
        return np.degrees(np.arccos(((rows @ point) / lengths).clip(-1, 1)))


def differences(rows: np.ndarray, point: np.ndarray) -> np.ndarray:
    """Return the roots of mean squared differences ``(N,)`` of rows ``(N, D)`` and a point."""
    return np.sqrt(np.square(rows - point).mean(1))


def nearest(
    distance: Callable[[np.ndarray, np.ndarray], np.ndarray],
    rows: np.ndarray,
    point: np.ndarray,
    count: int,
) -> list[tuple[int, float]]:
    """Return the rows ``(N, ...)`` nearest to a point ``(...)``, and their distances, in order.

    A distance that is NaN is the largest.
    """
    point, found = point.reshape(-1).astype(np.float64), []
    for start in range(0, len(rows), _ROWS):
        part = rows[start : start + _ROWS]
        found.append(distance(part.reshape(len(part), -1).astype(np.float64), point))
    distances = np.nan_to_num(np.concatenate(found), nan=np.inf)
    order = np.argsort(distances, kind="stable")[:count]
    return [(int(i), float(distances[i])) for i in order]
