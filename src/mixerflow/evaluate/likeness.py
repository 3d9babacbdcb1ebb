"""How much samples look like their data: by a small net trained on them, and by their pixels."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mixerflow.core import Flow, Samples, as_tensor
from mixerflow.data import Images
from mixerflow.errors import ConfigError, DataError
from mixerflow.evaluate.frechet import Statistics
from mixerflow.evaluate.judge import Judge, Judged, JudgeSettings, judge_of, unjudgeable
from mixerflow.evaluate.samples import draw_in_parts, high_frequency_power, to_pixels

SURE = 0.9
"""Probability of the likeliest class above which the net is sure."""
SAMPLES = 1000
"""Number of samples by default, where there are twice as many test images."""
_FEWEST = 8


@dataclass(frozen=True)
class Likeness:
    """Figures of a set of images; None where there is no judge, or for constant images.

    Attributes:
        name: of the set.
        images: number of images.
        nonfinite: samples that are left out, for values that are not finite.
        sure: share of the images whose likeliest class has a probability above `SURE`.
        classes: ``exp(-sum_k q_k log q_k)`` for the shares q_k of the images whose likeliest class
            is k: the number of classes, if all are alike.
        fewest: smallest q_k.
        right: share of the images whose likeliest class is theirs: of real images, and of samples
            that were drawn for a class.
        distance: squared Frechet distance to as many other test images, in the net's features.
        border: mean square of the pixels at the images' border over that inside, `border_ratio`.
        detail: power in the upper half of spatial frequencies, over that of the other test images.
    """

    name: str
    images: int
    nonfinite: int
    sure: float | None
    classes: float | None
    fewest: float | None
    right: float | None
    distance: float | None
    border: float | None
    detail: float | None


@dataclass(frozen=True)
class LikenessTable:
    """Test images, the yardstick, and samples, a row for each temperature.

    Attributes:
        dataset_id: the data.
        split: the part of the data.
        rows: figures of test images first.
        seed: of the samples, of the choice of the images and of the net.
        temperatures: of the samples, in the order of their rows.
        accuracy: of the net on all test images; None without one.
        without: why there is no net; empty with one.
    """

    dataset_id: str
    split: str
    rows: tuple[Likeness, ...]
    seed: int
    temperatures: tuple[float, ...]
    accuracy: float | None
    without: str

    def as_dict(self) -> dict[str, Any]:
        """Return all fields, for JSON."""
        return dataclasses.asdict(self)


def border_ratio(images: Tensor | np.ndarray) -> float | None:
    """Return the mean square of pixels at the border of images over that of those inside.

    The border is ``ceil(n / 16)`` pixels wide on each side of an axis of n pixels. None where the
    inside is 0 everywhere.

    Args:
        images: ``(N, C, *spatial)``, integers or floats, 0 is black.

    Raises:
        ValueError: no image, or an axis too short to have an inside.
    """
    x = as_tensor(images).double()
    widths = [math.ceil(n / 16) for n in x.shape[2:]]
    sides = list(zip(widths, x.shape[2:], strict=True))
    if x.dim() < 3 or len(x) == 0 or any(2 * w >= n for w, n in sides):
        what = f"takes images (N, C, *spatial), N > 0, with an inside; got {(*x.shape,)}"
        raise ValueError(f"border_ratio: {what}")
    places = (slice(w, n - w) for w, n in sides)
    inside = x[(..., *places)]
    squares, own = x.square().sum().item(), inside.square().sum().item()
    if own == 0:
        return None
    outside = x.numel() - inside.numel()
    return (squares - own) / outside / (own / inside.numel())


def likeness(
    name: str,
    pixels: np.ndarray,
    reference: np.ndarray,
    *,
    judge: Judge | None = None,
    labels: np.ndarray | None = None,
    nonfinite: int = 0,
) -> Likeness:
    """Return the figures of images beside reference images, see `Likeness`.

    Args:
        name: of the set.
        pixels: ``(N, C, H, W)``, uint8 or uint16.
        reference: test images of the same type and shape; for a comparison of several sets as many.
        judge: the net, see `judge_of`; None leaves out its figures.
        labels: the images' classes ``(N,)``, -1 for none.
        nonfinite: images that were left out.

    Raises:
        ValueError: no image.
    """
    power = high_frequency_power(reference)
    detail = high_frequency_power(pixels) / power if power else None
    figures: dict[str, Any] = dict.fromkeys(("sure", "classes", "fewest", "right", "distance"))
    if judge is not None:
        judged, real = judge.judged(pixels), judge.judged(reference)
        figures |= _judged(judged, judge.classes, labels)
        own, other = (Statistics.of(each.features) for each in (judged, real))
        figures["distance"] = own.distance(other)
    border = border_ratio(pixels)
    return Likeness(name, len(pixels), nonfinite, **figures, border=border, detail=detail)


def _judged(judged: Judged, classes: int, labels: np.ndarray | None) -> dict[str, float | None]:
    shares = torch.bincount(judged.predicted, minlength=classes).double() / len(judged.predicted)
    entropy = -torch.special.xlogy(shares, shares).sum().item()
    right = None
    if labels is not None and (known := torch.from_numpy(labels >= 0)).any():
        right = (judged.predicted == torch.from_numpy(labels))[known].double().mean().item()
    return {
        "sure": (judged.probabilities.amax(1) > SURE).double().mean().item(),
        "classes": math.exp(entropy),
        "fewest": shares.min().item(),
        "right": right,
    }


def require_likeness(flow: Flow, test: Images, samples: int | None = None) -> int:
    """Return the number of samples that `compare_likeness` draws for each temperature.

    Raises as `compare_likeness` does, before the long work.
    """
    if flow.levels is None or len(flow.shape) != 3 or test.levels is None:
        remedy = "use images of two axes, of 8 or 16 bits"
        raise ConfigError(f"images of shape {flow.shape} have no picture", "--likeness", remedy)
    if test.shape != flow.shape:
        what = f"images are {test.shape}, the flow's are {flow.shape}"
        raise DataError(what, test.dataset_id, "give images of that shape")
    if min(flow.shape[1:]) < 3:
        remedy = "give larger ones"
        raise ConfigError(f"images of shape {flow.shape} have no inside", "--likeness", remedy)
    half = len(test) // 2
    if half < _FEWEST:
        what = f"{len(test)} images, half of them to compare and half as the yardstick"
        raise DataError(what, test.dataset_id, f"give at least {2 * _FEWEST}")
    count = min(SAMPLES, half) if samples is None else samples
    if not _FEWEST <= count <= half:
        remedy = f"give {_FEWEST} to {half}, half of the {len(test)} images"
        raise ConfigError(f"{count} samples", "--likeness-samples", remedy)
    return count


def compare_likeness(
    flow: Flow,
    train: Images,
    test: Images,
    *,
    samples: int | None = None,
    temperatures: Sequence[float] = (1.0,),
    seed: int = 0,
    split: str = "",
    cache: Path | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> LikenessTable:
    """Draw samples, and compare them with test images; other test images are the yardstick.

    Three kinds of sets have equal numbers of images: the test images that all are compared with,
    other test images, whose row says what real images have, and the samples of each temperature.

    Args:
        flow: a flow with levels of images with two axes.
        train: images that train the net; without class labels there is none.
        test: images that the net did not see.
        samples: n of each set; by default 1,000, or half of the test images if they are fewer.
        temperatures: of the latents.
        seed: of samples, choice and net.
        split: the name of the test images' part of the data.
        cache: folder that keeps the net.
        on_progress: called with the images done, in training and among samples, and with all; an
            error that it raises stops.

    Raises:
        ConfigError: a flow whose images have no picture, or a number of samples that cannot be.
        DataError: too few images, or of another shape; or a net that is no better than chance.
    """
    count = require_likeness(flow, test, samples)
    report, settings = on_progress or (lambda done, total: None), JudgeSettings(seed=seed)
    without = unjudgeable(train) or unjudgeable(test)
    training = 0 if without else settings.seen(train)
    done, total = 0, training + count * len(temperatures)

    def advance(number: int) -> None:
        nonlocal done
        done += number
        report(done, total)

    judge, accuracy = None, None
    if not without:
        judge, accuracy = judge_of(train, test, settings, cache=cache, on_image=advance)
        done = training
    order = np.random.default_rng(seed).permutation(len(test))
    reference, yardstick = (
        test.take(np.sort(part)) for part in (order[:count], order[count : 2 * count])
    )
    shown, real = (
        to_pixels(flow, torch.from_numpy(each.pixels.astype(np.int32)))
        for each in (reference, yardstick)
    )
    labels = None if without else yardstick.labels
    rows = [likeness("test images", real, shown, judge=judge, labels=labels)]
    for temperature in temperatures:
        name = f"temperature {temperature:g}"
        pixels, asked, wrong = _drawn(flow, count, seed, temperature, test, advance)
        if len(pixels) < _FEWEST:
            rows.append(Likeness(name, len(pixels), wrong, *[None] * 7))
            continue
        found = likeness(name, pixels, shown, judge=judge, labels=asked, nonfinite=wrong)
        rows.append(found)
    return LikenessTable(
        test.dataset_id, split, tuple(rows), seed, tuple(temperatures), accuracy, without
    )


def _drawn(
    flow: Flow,
    count: int,
    seed: int,
    temperature: float,
    test: Images,
    advance: Callable[[int], None],
) -> tuple[np.ndarray, np.ndarray | None, int]:
    """Return the finite samples, the classes that were asked for if any, and how many are not."""
    pixels, labels = [], []
    asks = isinstance(flow.context_net, torch.nn.Embedding)
    parts = draw_in_parts(flow, count, seed=seed, examples=test.labels, temperature=temperature)
    for drawn, label in parts:
        wrong = drawn.nonfinite.flatten(1).any(1)
        kept = Samples(drawn.images[~wrong], 0, drawn.nonfinite[~wrong])
        pixels.append(to_pixels(flow, kept))
        if asks and label is not None:
            labels.append(label.cpu().numpy()[~wrong.cpu().numpy()])
        advance(len(wrong))
    found = np.concatenate(pixels)
    return found, np.concatenate(labels) if labels else None, count - len(found)
