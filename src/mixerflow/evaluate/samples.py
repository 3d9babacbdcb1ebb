"""Images drawn from a flow, and the visibility of a model's patch grid in its images."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mixerflow.core import Flow, Samples, Shape, as_tensor

_BATCH = 1024
"""Number of images converted to float64 at a time."""

_PART = 512
"""Images that one seed draws where they are drawn in parts, whatever the batch."""

_MAGENTA = (255, 0, 255)
"""Colour of a pixel that is not finite."""


@dataclass(frozen=True)
class GridArtefacts:
    """Differences of neighbouring pixels across patch borders, relative to those inside patches.

    `ratio` divides the mean squared differences; it is 1 if the grid is invisible. The standard
    error of the ratio is over images, and NaN for a single one.
    """

    ratio: float
    standard_error: float

    def __str__(self) -> str:
        error = "" if math.isnan(self.standard_error) else f" ± {self.standard_error:.3f}"
        return f"{self.ratio:.3f}{error} across patch borders"


def grid_artefacts(images: Tensor | np.ndarray, patch: int | Shape) -> GridArtefacts:
    """Divide the mean squared difference of neighbours across patch borders by that inside patches.

    ``ratio = sum_i b_i / sum_i m_i``, for image i's means b_i across borders and m_i inside. Every
    spatial axis with both has the same weight, so that images smoother along one axis than along
    another have ratio 1 too. The standard error is the delta method's,
    ``sqrt(sum_i (b_i - ratio m_i)^2 / (N (N - 1))) / mean m``, over independent images.

    Args:
        images: ``(N, C, *spatial)``, integers or floats.
        patch: a patch's side, or its side on each spatial axis; the grid starts at pixel 0.

    Raises:
        ValueError: no image, a patch without an inside (1) or without a border (the whole image),
            or images that are constant inside every patch.
    """
    x = as_tensor(images)
    if x.dim() < 3 or len(x) == 0:
        raise ValueError(f"grid_artefacts: takes images (N, C, *spatial), N > 0; got {(*x.shape,)}")
    sides = (patch,) * (x.dim() - 2) if isinstance(patch, int) else tuple(patch)
    if len(sides) != x.dim() - 2 or min(sides) < 1:
        raise ValueError(
            f"grid_artefacts: patch {sides} must be {x.dim() - 2} sides of at least 1, one for "
            f"each spatial axis of images {(*x.shape[1:],)}"
        )
    axes = [a for a, (n, p) in enumerate(zip(x.shape[2:], sides, strict=True), 2) if 1 < p < n]
    if not axes:
        raise ValueError(
            f"grid_artefacts: patches {sides} of images {(*x.shape[1:],)} have no inside or no "
            "border to compare: use a side from 2 to less than the image's on some axis"
        )
    parts = [_means(part.double(), sides, axes) for part in x.split(_BATCH)]
    across, inside = torch.cat(parts, 1)
    mean = inside.mean()
    if mean == 0:
        raise ValueError(
            "grid_artefacts: the images are constant inside every patch, so borders cannot be "
            "compared with the inside: use other images, or another patch"
        )
    ratio = across.mean() / mean
    n = len(across)
    residual = (across - ratio * inside).square().sum()
    error = (residual / (n * (n - 1))).sqrt() / mean if n > 1 else torch.tensor(math.nan)
    return GridArtefacts(ratio.item(), error.item())


def _means(x: Tensor, sides: Shape, axes: list[int]) -> Tensor:
    """Return mean squared differences across borders and inside, summed over axes: ``(2, N)``."""
    means = torch.zeros(2, len(x), dtype=x.dtype, device=x.device)
    for axis in axes:
        squares = x.diff(dim=axis).square()
        by_place = squares.movedim(axis, 1).flatten(2).mean(2)  # (N, n - 1)
        is_border = torch.arange(1, x.shape[axis], device=x.device) % sides[axis - 2] == 0
        means[0] += by_place[:, is_border].mean(1)
        means[1] += by_place[:, ~is_border].mean(1)
    return means


def high_frequency_power(images: Tensor | np.ndarray) -> float:
    """Return the mean power of images ``(N, C, *spatial)`` in the upper half of frequencies.

    ``sum_k |F x|_k^2 / n^2`` for the n pixels of a channel, averaged over images and channels,
    with F the discrete Fourier transform and k the frequencies that are at least a quarter of a
    cycle a pixel along some axis. By Parseval's theorem all k together give the mean square.

    Raises:
        ValueError: no image, or no spatial axis.
    """
    x = as_tensor(images)
    if x.dim() < 3 or len(x) == 0:
        what = f"takes images (N, C, *spatial), N > 0; got {(*x.shape,)}"
        raise ValueError(f"high_frequency_power: {what}")
    axes, spatial = tuple(range(2, x.dim())), x.shape[2:]
    grids = torch.meshgrid(*(torch.fft.fftfreq(n, device=x.device) for n in spatial), indexing="ij")
    high = torch.stack(grids).abs().amax(0) >= 0.25
    power = 0.0
    for part in x.split(_BATCH):
        spectrum = torch.fft.fftn(part.double(), dim=axes, norm="forward")
        power += (spectrum.abs().square() * high).sum().item()
    return power / (x.shape[0] * x.shape[1])


class DrawnPixels(NamedTuple):
    """Images for display, and what is wrong with them.

    Attributes:
        pixels: uint8 or uint16 ``(n, C, *spatial)``, as `to_pixels` returns them.
        clamped: number of values that were clamped into the flow's levels.
        nonfinite: number of values that are NaN or infinite in each image ``(n,)``.
        values: number of values of all images.
    """

    pixels: np.ndarray
    clamped: int
    nonfinite: np.ndarray
    values: int

    @property
    def nonfinite_values(self) -> int:
        """Number of values that are NaN or infinite."""
        return int(self.nonfinite.sum())

    @property
    def nonfinite_images(self) -> int:
        """Number of images with such a value."""
        return int((self.nonfinite > 0).sum())

    def __str__(self) -> str:
        share = 100 * self.clamped / max(self.values, 1)
        text = f"{self.clamped} of {self.values} values clamped ({share:.3g} %)"
        if not self.nonfinite_values:
            return text
        images = f"{self.nonfinite_images} of {len(self.nonfinite)} images"
        return f"{text}; {self.nonfinite_values} values in {images} not finite, shown in magenta"


def has_pictures(flow: Flow) -> bool:
    """Whether images of a flow are pictures: not features, floats of more than four channels."""
    return flow.levels is not None or flow.shape[0] <= 4


def draw_pixels(
    flow: Flow,
    n: int,
    *,
    seed: int,
    temperature: float = 1.0,
    label: Tensor | int | None = None,
    examples: np.ndarray | None = None,
) -> DrawnPixels:
    """Draw `n` images as `to_pixels` returns them; count values clamped, and values not finite.

    A class-conditional flow draws its classes in turn, and any other conditional flow is given
    `examples`, the contexts of images, in turn, unless `label` names one context, or one an image.
    """
    drawn = draw_values(flow, n, seed=seed, temperature=temperature, label=label, examples=examples)
    nonfinite = drawn.nonfinite.flatten(1).sum(1).cpu().numpy()
    return DrawnPixels(to_pixels(flow, drawn), drawn.clamped, nonfinite, drawn.images.numel())


def draw_values(
    flow: Flow,
    n: int,
    *,
    seed: int,
    temperature: float = 1.0,
    label: Tensor | int | None = None,
    examples: np.ndarray | None = None,
) -> Samples:
    """Draw what `draw_pixels` draws, as the flow's own values."""
    generator = torch.Generator(flow.device).manual_seed(int(seed))
    context = contexts_in_turn(flow, n, examples) if label is None else label
    return flow.draw(n, context, temperature=temperature, generator=generator)


def draw_in_parts(
    flow: Flow,
    count: int,
    *,
    seed: int,
    temperature: float = 1.0,
    examples: np.ndarray | None = None,
) -> Iterator[tuple[Samples, Tensor | None]]:
    """Yield `count` images as `draw_values` draws them, with their contexts, in parts.

    Each part has a seed of its own. `examples` are contexts of images, see `contexts_in_turn`.
    """
    for start in range(0, count, _PART):
        n = min(_PART, count - start)
        own = int(np.random.SeedSequence([seed, start]).generate_state(1, np.uint64)[0] >> 1)
        label = contexts_in_turn(flow, n, examples, start=start)
        yield draw_values(flow, n, seed=own, temperature=temperature, label=label), label


def contexts_in_turn(
    flow: Flow, n: int, examples: np.ndarray | None = None, *, start: int = 0
) -> Tensor | None:
    """Return contexts of the samples ``start, ..., start + n - 1``; None for an unconditional flow.

    They are its classes in turn, or the contexts `examples` ``(N, ...)`` of images in turn.
    """
    numbers = torch.arange(start, start + n)
    if isinstance(flow.context_net, torch.nn.Embedding):
        return numbers % flow.context_net.num_embeddings
    if flow.context_net is None or examples is None:
        return None
    return as_tensor(examples)[numbers % len(examples)]


def to_pixels(flow: Flow, images: Samples | Tensor) -> np.ndarray:
    """Turn a flow's images into uint8 or uint16 arrays ``(n, C, *spatial)`` for display.

    Float images are scaled from their smallest and largest finite value, integer images from the
    flow's levels, to 8 or 16 bits. Features, floats of more than four channels, are shown by the
    root mean square of their channels. Where a pixel has a value that is not finite, all images are
    8 bits of at least three channels, and the pixel is magenta.
    """
    given = images if isinstance(images, Samples) else Samples(images, 0, ~images.isfinite())
    values, wrong = given.images.cpu().numpy(), given.nonfinite.cpu().numpy()
    if flow.levels is None:
        values = values.astype(np.float64)  # the range of float32 values may not be a float32
        if not has_pictures(flow):
            wrong = np.asarray(wrong.any(axis=1, keepdims=True))
            values = np.sqrt(np.square(values).mean(axis=1, keepdims=True))
        values, finite = np.where(wrong, 0.0, values), values[~wrong]
        low, high = (finite.min(), finite.max()) if finite.size else (0.0, 0.0)
        values, top, bits = (values - low).clip(0, high - low), max(high - low, 1e-12), 8
    else:
        top = flow.levels - 1
        bits = 16 if top > 255 else 8
    dtype = np.uint16 if bits == 16 else np.uint8
    pixels = np.round(values * ((2**bits - 1) / top)).astype(dtype)
    return _marked(pixels, wrong) if wrong.any() else pixels


def _marked(pixels: np.ndarray, wrong: np.ndarray) -> np.ndarray:
    """Return the images in 8 bits, at least RGB, with pixels magenta where a value is `wrong`."""
    pixels = pixels if pixels.dtype == np.uint8 else (pixels >> 8).astype(np.uint8)
    if pixels.shape[1] < 3:
        pixels = pixels[:, :1].repeat(3, axis=1)
    places = np.moveaxis(pixels, 1, -1)
    places[wrong.any(axis=1)] = [*_MAGENTA, *[0] * (pixels.shape[1] - 3)]
    return pixels
