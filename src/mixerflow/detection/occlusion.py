"""Maps of images by occlusion: bits saved where a window is replaced by what surrounds it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mixerflow.core import Context, Flow, Shape
from mixerflow.detection.maps import OnBatch, OutlierMap, log_density
from mixerflow.detection.windows import Window, filled, windows_of
from mixerflow.errors import ConfigError
from mixerflow.registry import register


@register("occlusion")
@dataclass(frozen=True)
class OcclusionMap(OutlierMap):
    """Bits that are saved where a window is replaced by what surrounds it.

    For a window w of d values, and the image with w filled in from around it,

        s(w) = (log2 p(x with w filled) - log2 p(x)) / d    bits per replaced dimension.

    The rest of the image is the same in both, so s is how much likelier the filling is than what
    the window shows, given the rest: ``(log2 p(filling | rest) - log2 p(w | rest)) / d``. A pixel's
    value is the mean of s over the windows that cover it.

    The filling is harmonic: each pixel is the mean of its neighbours, so the window takes
    over the ring of pixels around it without a step. Windows are squares that lie inside the image;
    along an axis that is shorter than `patch` they are as long as the axis.

    Reference:
        Zeiler & Fergus, Visualizing and understanding convolutional networks (2014),
        arXiv:1311.2901, for occlusion.
    """

    patch: int = 12
    """Side of the windows in pixels."""
    stride: int = 4
    """Distance of neighbouring windows in pixels, at most their side."""

    def __post_init__(self) -> None:
        if self.patch < 1:
            raise ConfigError(f"windows of {self.patch} pixels", "--patch", "give at least 1")
        if not 1 <= self.stride <= self.patch:
            what = f"{self.stride} pixels between windows of {self.patch}"
            raise ConfigError(what, "--stride", f"give 1 to {self.patch}")

    def check(self, shape: Shape) -> None:
        super().check(shape)
        if self.patch >= max(shape[1:]):
            size = " x ".join(map(str, shape[1:]))
            what = f"a window of {self.patch} pixels leaves nothing of images of {size} around it"
            raise ConfigError(what, "--patch", f"give less than {max(shape[1:])}")

    def windows(self, shape: Shape) -> list[Window]:
        """Return all windows of images of an event shape, row by row."""
        return windows_of(shape[1], shape[2], self.patch, self.stride)

    def evaluations(self, shape: Shape) -> int:
        return 1 + len(self.windows(shape))

    def values(
        self, density: Flow, x: Tensor, context: Context, batch: int, on_batch: OnBatch
    ) -> Tensor:
        windows = self.windows(tuple(x.shape[1:]))
        return spread(self.saved(density, x, context, batch, on_batch), windows, x)

    @torch.no_grad()
    def saved(
        self, density: Flow, x: Tensor, context: Context, batch: int, on_batch: OnBatch
    ) -> Tensor:
        """Return the bits saved per replaced dimension by each window, ``(N, windows)`` float64.

        The windows of all images share batches: `batch` images with one window filled in each.
        """
        windows, count = self.windows(tuple(x.shape[1:])), len(x)
        scores = torch.empty(1 + len(windows), count, dtype=torch.float64, device=x.device)
        flat = scores.view(-1)  # all images as they are, then with the first window filled, ...
        for start in range(0, flat.numel(), batch):
            row = torch.arange(start, min(start + batch, flat.numel()), device=x.device)
            number, image = row // count, row % count
            given = x[image]
            for which in number.unique().tolist():
                if which:
                    rows = number == which
                    given[rows] = filled(given[rows], windows[which - 1])
            labels = None if context is None else context[image.to(context.device)]
            flat[row] = log_density(density, given, labels)
            on_batch(len(row))
        nats = [math.log(2) * x.shape[1] * w.height * w.width for w in windows]
        return ((scores[1:] - scores[0]) / scores.new_tensor(nats)[:, None]).T


def spread(saved: Tensor, windows: list[Window], like: Tensor) -> Tensor:
    """Return maps ``(N, H, W)`` of images `like`: each pixel's mean over the windows around it."""
    total = saved.new_zeros(len(saved), *like.shape[2:])
    count = saved.new_zeros(like.shape[2:])
    for number, window in enumerate(windows):
        total[:, *window.slices] += saved[:, number, None, None]
        count[window.slices] += 1
    return total / count
