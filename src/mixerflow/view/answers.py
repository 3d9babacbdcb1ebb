"""What a page is answered: functions of the model and of what the page sends, without any HTTP."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mixerflow import pictures
from mixerflow.core import is_estimated
from mixerflow.data import Images
from mixerflow.detection import rarity
from mixerflow.errors import ConfigError, DataError
from mixerflow.evaluate import bits, draw_values
from mixerflow.view import given as ask
from mixerflow.view.facts import about
from mixerflow.view.latents import WAYS, angles, differences, encoded, nearest
from mixerflow.view.model import Viewed
from mixerflow.view.uploads import read_upload

LARGEST_IMAGE = 16 << 20
"""Bytes of a file that a page may send."""
_BINS = 40
_TAIL = 0.5
"""Per cent of inside images in each of a histogram's end bins, at least."""
_SECONDS = 1.0
"""Time for which one answer encodes images to search."""
_SEEDS = 2**53 - 1


def score(viewed: Viewed, body: bytes) -> dict[str, Any]:
    """Answer with all that the model says of an image of its own kind; the body is a file."""
    return _scored(viewed, body, fit=False)


def score_fitted(viewed: Viewed, body: bytes) -> dict[str, Any]:
    """Answer as `score` does, of an image that is cut and scaled where it must be."""
    return _scored(viewed, body, fit=True)


def _scored(viewed: Viewed, body: bytes, *, fit: bool) -> dict[str, Any]:
    flow, reading = viewed.flow, viewed.scorer.reading
    image, done = read_upload(body, flow.shape, viewed.levels, reading, fit=fit)
    columns = viewed.scorer(image[None])
    bits_per_dim = float(columns["bits_per_dim"][0])
    names = viewed.scorer.classes
    return {
        "image": _png(image),
        "done": done,
        "bits_per_dim": _finite(bits_per_dim),
        "dims": flow.dims,
        "bytes": {"flow": _finite(bits_per_dim * flow.dims / 8), **_files(image)},
        "scores": _scores(viewed, columns),
        "classes": [[name, _finite(float(columns[f"p_{name}"][0]))] for name in names],
    }


def _files(image: np.ndarray) -> dict[str, int | None]:
    """Return the bytes of lossless files of an image; None where a codec has no such image."""
    sizes: dict[str, int | None] = {}
    for codec in ("png", "webp"):
        try:
            sizes[codec] = len(pictures.encoded(np.moveaxis(image, 0, -1), codec))
        except ValueError:
            sizes[codec] = None
    return sizes


def _scores(viewed: Viewed, columns: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """Return the score that orders images, and bits/dim, among those of the inside images."""
    inside = viewed.inside
    if inside is None:
        return []
    first, shown = inside.fitted.ordering, []
    others = ["bits"] if "bits" in inside.scores and first != "bits" else []
    for name in [first, *others]:
        known = inside.scores[name]
        values = columns["bits_per_dim" if name == "bits" else f"score_{name}"]
        low, high = np.percentile(known, (_TAIL, 100 - _TAIL))
        threshold = inside.fitted.threshold(name)
        low, high = float(low), max(float(high), threshold.value, float(low) + 1e-9)
        counts, edges = np.histogram(known.clip(low, high), _BINS, (low, high))
        shown.append(
            {
                "name": name,
                "equation": next(s for s in inside.fitted.scores if s.name == name).equation,
                "value": _finite(float(values[0])),
                "outlier": bool(columns[f"outlier_{name}"][0]),
                "rarity": float(rarity(known, values)[0]),
                "threshold": threshold.value,
                "false_alarms": threshold.false_alarms,
                "images": len(known),
                "counts": counts.tolist(),
                "low": float(edges[0]),
                "high": float(edges[-1]),
            }
        )
    return shown


def outlier_map(viewed: Viewed, body: bytes) -> dict[str, Any]:
    """Answer with a map of an image as heat: `image`, a file, and `map`, its word."""
    given = ask.parsed(body)
    kind = ask.word(given, "map", [*viewed.maps])
    image = _own(viewed, given, "image")[None]
    heat = viewed.maps[kind].map(viewed.flow, image).numpy()
    others, maps = viewed.beside(kind)
    shown = pictures.heat(np.concatenate([image, others]), np.concatenate([heat, maps]))
    source = "samples of the model"
    if viewed.searched is not None:
        source = f"{viewed.split[1]} images of {viewed.searched.dataset_id}"
    words = f"{kind}: colour begins at the 80th percentile of this map and of those of"
    return {"map": _png(shown[0]), "words": f"{words} {len(maps)} {source}"}


def example(viewed: Viewed, body: bytes) -> dict[str, Any]:
    """Answer with an image of the set: the one of this `number`."""
    images = viewed.examples
    if images is None:
        raise _without_images()
    number = ask.whole(ask.parsed(body), "number", 0, len(images) - 1)
    name = f"{viewed.split[0]} image {number} of {images.dataset_id}"
    return {"image": _png(images.pixels[number]), "name": name + _class(images, number)}


def samples(viewed: Viewed, body: bytes) -> dict[str, Any]:
    """Answer with `number` samples of a `temperature`, a `seed` and a `label`, -1 for all."""
    given, classes = ask.parsed(body), viewed.drawn_classes
    number = ask.whole(given, "number", 1, 64)
    label = ask.whole(given, "label", -1, len(classes) - 1)
    drawn = draw_values(
        viewed.flow,
        number,
        seed=ask.whole(given, "seed", 0, _SEEDS),
        temperature=ask.real(given, "temperature", 0, 4),
        label=None if label < 0 else label,
    )
    words = f"{100 * drawn.clamped / drawn.images.numel():.2g} % of the values clamped"
    if wrong := drawn.nonfinite_images:
        words += f"; {wrong} of {number} images have values that are not finite, shown as 0"
    return {"images": [_png(each) for each in _stored(viewed, drawn.images)], "words": words}


def path(viewed: Viewed, body: bytes) -> dict[str, Any]:
    """Answer with `number` images on the `way` from a `first` image to a `second`, in latents.

    A class-conditional flow encodes and decodes all of them as of the first one's likeliest class.
    """
    given = ask.parsed(body)
    way = ask.word(given, "way", [*WAYS])
    number = ask.whole(given, "number", 2, 33)
    ends = np.stack([_own(viewed, given, name) for name in ("first", "second")])
    label = viewed.label(ends[0])
    z = encoded(viewed.flow, ends, label)
    shares = torch.linspace(0, 1, number, dtype=z.dtype, device=z.device)
    context = None if label is None else torch.full((number,), label)
    decoded = viewed.flow.decode_samples(WAYS[way](z[0], z[1], shares), context)
    frames = _stored(viewed, decoded.images)
    figures = bits(
        viewed.flow,
        frames,
        labels=None if context is None else context.numpy(),
        seed=viewed.scorer.seed,
        probes=1 if is_estimated(viewed.flow.density) else None,
    )
    same = np.array_equal(frames[[0, -1]], ends)
    words = f"Its ends {'are' if same else 'are not'} the images, pixel for pixel"
    if label is not None:
        words += f"; all are encoded, decoded and scored as {viewed.drawn_classes[label]}"
    return {
        "images": [_png(frame) for frame in frames],
        "bits_per_dim": [_finite(float(value)) for value in figures.per_image],
        "words": words,
    }


def neighbours(viewed: Viewed, body: bytes) -> dict[str, Any]:
    """Answer with the `number` images of the set nearest to an `image`, in latents and in pixels.

    While the set is not encoded yet, the answer says how much of it is, and the page asks again.
    A class-conditional flow encodes all images as of the image's likeliest class.
    """
    given, images = ask.parsed(body), viewed.searched
    if images is None:
        raise _without_images()
    number = ask.whole(given, "number", 1, 24)
    image = _own(viewed, given, "image")
    label = viewed.label(image)
    index = viewed.latents(label)
    if not index.complete:
        index.advance(_SECONDS)
    if not index.complete:
        return {"done": index.done, "total": len(images)}
    point = encoded(viewed.flow, image[None], label)[0].float().cpu().numpy()

    def shown(found: list[tuple[int, float]]) -> list[dict[str, Any]]:
        return [
            {
                "image": _png(images.pixels[i]),
                "name": f"image {i}{_class(images, i)}",
                "distance": _finite(distance),
            }
            for i, distance in found
        ]

    words = f"of the first {len(images):,} {viewed.split[1]} images of {images.dataset_id}"
    if label is not None:
        words += f"; all are encoded as {viewed.drawn_classes[label]}"
    return {
        "latents": shown(nearest(angles, index.latents, point, number)),
        "pixels": shown(nearest(differences, images.pixels, image, number)),
        "words": words,
    }


def _without_images() -> ConfigError:
    remedy = "start it as `mixerflow view RUN --data SET`"
    return ConfigError("no images beside the model", "the page", remedy)


def _own(viewed: Viewed, given: ask.Given, name: str) -> np.ndarray:
    """Return an image that the page has from here, and which is of the model's kind."""
    content = ask.content(given, name)
    if not content:
        raise DataError("no image yet", name, "drop one, or choose a sample")
    settings = {"shape": viewed.flow.shape, "levels": viewed.levels}
    return read_upload(content, **settings, reading=viewed.scorer.reading, fit=False)[0]


def _stored(viewed: Viewed, images: torch.Tensor) -> np.ndarray:
    """Return a flow's integer images as files have them."""
    return images.cpu().numpy().astype(np.uint8 if viewed.levels <= 256 else np.uint16)


def _class(images: Images, number: int) -> str:
    """Return words for the class of an image of a set, if it has one."""
    if images.labels is None or images.labels.ndim != 1 or images.labels[number] < 0:
        return ""
    label = int(images.labels[number])
    return f" ({images.classes[label] if images.classes else f'class {label}'})"


def _png(image: np.ndarray) -> str:
    return base64.b64encode(pictures.png_bytes(image)).decode()


def _finite(value: float) -> float | None:
    """Return a number for JSON, which has neither NaN nor infinity."""
    return value if math.isfinite(value) else None


@dataclass(frozen=True)
class Route:
    """What the server answers at an address.

    Attributes:
        work: from the model and a request's body to what JSON can hold.
        file: whether the body is a file, and no JSON.
    """

    work: Callable[[Viewed, bytes], dict[str, Any]]
    file: bool = False

    def largest(self, viewed: Viewed) -> int:
        """Return the most bytes that a body may have: of JSON, for two images of the model."""
        if self.file:
            return LARGEST_IMAGE
        return (64 << 10) + 4 * viewed.flow.dims * (1 if viewed.levels <= 256 else 2)


ROUTES = {
    "/about": Route(lambda viewed, _: about(viewed) | {"largest": LARGEST_IMAGE}),
    "/score": Route(score, file=True),
    "/score-fitted": Route(score_fitted, file=True),
    "/map": Route(outlier_map),
    "/example": Route(example),
    "/samples": Route(samples),
    "/path": Route(path),
    "/neighbours": Route(neighbours),
}
"""The addresses that answer, and nothing else does."""
