"""Samples of a flow beside images, by features of both: FID, precision and recall."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from mixerflow.caches import store, without_digest
from mixerflow.core import Flow
from mixerflow.data import Images
from mixerflow.errors import CheckpointError, ConfigError, DataError
from mixerflow.evaluate.features import Features, FileFeatures, digest_of, features_of
from mixerflow.evaluate.frechet import Statistics, precision_recall
from mixerflow.evaluate.samples import draw_in_parts, to_pixels

FID = "FID"
"""Name of the distance by the features of the published Inception net."""
SAMPLES = 10_000
"""Number of samples by default, where there are as many images, and most that are compared one by
one for precision and recall."""
NEIGHBORS = 3
_PART = 512
"""Images whose statistics are merged at once, whatever the batch: a merge of many features takes as
long as the net takes for some images."""


@dataclass(frozen=True)
class FrechetFigure:
    """Frechet distance of samples and images, with all that decides what is comparable.

    Attributes:
        name: "FID" for the published Inception net, else "Frechet distance (FEATURES)".
        distance: `frechet_distance` of all images and all samples.
        precision: `precision_recall` of the first `compared` of both.
        recall: the same.
        neighbors: neighbours that give the radius of a ball.
        compared: number of images, and of samples, in precision and recall.
        dimensions: number d of features; of fewer images or samples the covariance has no full
            rank, and the distance is far from that of many.
        images: number of images.
        samples: number of samples.
        nonfinite: samples with a value that is not finite, which are counted with magenta there.
        seed: seed of the samples.
        temperature: of the samples.
        dataset_id: the data.
        split: the part of the data. Papers take the training images or the test images.
        images_sha256: digest of the images.
        features: name of the features.
        features_sha256: digest of their weights; None where it is not known.
    """

    name: str
    distance: float
    precision: float
    recall: float
    neighbors: int
    compared: int
    dimensions: int
    images: int
    samples: int
    nonfinite: int
    seed: int
    temperature: float
    dataset_id: str
    split: str
    images_sha256: str
    features: str
    features_sha256: str | None

    def as_dict(self) -> dict[str, Any]:
        """Return all fields, for JSON."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, eq=False)
class Reference:
    """What a comparison needs of the images: their statistics, and features of some of them.

    Attributes:
        statistics: of the features of all images.
        rows: features ``(k, d)`` of k images, drawn without replacement.
    """

    statistics: Statistics
    rows: Tensor

    def save(self, path: Path, key: dict[str, Any]) -> None:
        """Write a file that only `load` with the same `key` takes; its folder is made."""
        mean, covariance = self.statistics.mean, self.statistics.covariance
        tensors = {"mean": mean, "covariance": covariance, "rows": self.rows.contiguous()}
        entries = {"key": json.dumps(key), "count": str(self.statistics.count)}
        data = safetensors.torch.save(tensors, entries)
        store(path, data)

    @staticmethod
    def load(path: Path, key: dict[str, Any]) -> Reference:
        """Read what `save` wrote.

        Raises:
            CheckpointError: a damaged file.
            DataError: it is of another key; names the first entry that differs.
            OSError: no file, or one that cannot be read.
        """
        data = without_digest(path.read_bytes())
        if data is None:
            raise CheckpointError("SHA-256 differs", path, "delete this file")
        length = int.from_bytes(data[:8], "little")
        entries = json.loads(data[8 : 8 + length])["__metadata__"]
        own = json.loads(entries["key"])
        for name in key:
            if own.get(name) != key[name]:
                what = f"of other {name}, {own.get(name)} and not {key[name]}"
                raise DataError(what, path, "delete this file, or give the same images and net")
        tensors = safetensors.torch.load(data)
        statistics = Statistics(int(entries["count"]), tensors["mean"], tensors["covariance"])
        return Reference(statistics, tensors["rows"])


def compare(
    flow: Flow,
    images: Images,
    features: Features,
    *,
    samples: int | None = None,
    seed: int = 0,
    split: str = "",
    batch: int = 32,
    cache: Path | None = None,
    on_batch: Callable[[int], None] | None = None,
) -> FrechetFigure:
    """Draw samples of a flow at temperature 1, and compare them with images by features of both.

    A class-conditional flow draws its classes in turn. Samples with values that are not finite are
    kept, magenta there, as in grids. Images and samples are 8 bits with 3 channels to the features:
    of 16 bits the upper 8 count, and grey is repeated.

    Args:
        flow: a flow with levels.
        images: images of the flow's shape.
        features: the features, on the flow's device.
        samples: number of samples; by default that of the images, at most 10,000.
        seed: seed of the samples, which do not depend on `batch`.
        split: name of the part of the data.
        batch: images at a time.
        cache: folder that keeps what is known of the images, for the next call; where the digest of
            the features is not known, nothing is kept. What cannot be written is a warning.
        on_batch: called with the number of images and of samples done since the last call.

    Raises:
        ConfigError: a flow of floats, too few samples, or features that cannot be used.
        DataError: images of another shape, too few, or not of 1 or 3 channels.
    """
    count = require_comparable(flow, images, features, samples)
    if batch < 1:
        raise ConfigError(f"{batch} images at a time", "batch", "give at least 1")
    compared = min(SAMPLES, len(images), count)
    report = on_batch or (lambda _: None)
    key = {
        "format": 1,
        "features": features.name,
        "features_sha256": digest_of(features),
        "images_sha256": images.fingerprint(),
        "levels": flow.levels,
    }
    reference = _reference(flow, images, features, key, compared, batch, cache, report)
    nonfinite = 0

    def drawn() -> Iterator[Tensor]:
        nonlocal nonfinite
        for pixels, wrong in _drawn(flow, count, seed, images.labels):
            nonfinite += wrong
            yield _features(features, pixels, flow.device, batch, report)

    statistics, rows = _collect(drawn(), compared)
    precision, recall = precision_recall(reference.rows[:compared], rows, NEIGHBORS)
    published = isinstance(features, FileFeatures) and features.published
    name = FID if published else f"Frechet distance ({features.name})"
    return FrechetFigure(
        name=name,
        distance=reference.statistics.distance(statistics),
        precision=precision,
        recall=recall,
        neighbors=NEIGHBORS,
        compared=compared,
        dimensions=len(statistics.mean),
        images=len(images),
        samples=count,
        nonfinite=nonfinite,
        seed=seed,
        temperature=1.0,
        dataset_id=images.dataset_id,
        split=split,
        images_sha256=key["images_sha256"],
        features=features.name,
        features_sha256=key["features_sha256"],
    )


def require_comparable(
    flow: Flow, images: Images, features: Features, samples: int | None = None
) -> int:
    """Return the number of samples that `compare` draws, after it has tried the net on images.

    Raises as `compare` does, without its long work.
    """
    count = min(SAMPLES, len(images)) if samples is None else samples
    if flow.levels is None or images.levels is None:
        remedy = "use images of 8 or 16 bits"
        raise ConfigError("floats have no range of pixels", images.dataset_id, remedy)
    if images.shape != flow.shape:
        what = f"images are {images.shape}, the flow's are {flow.shape}"
        raise DataError(what, images.dataset_id, "give images of that shape")
    if len(images) <= NEIGHBORS:
        remedy = f"give more than {NEIGHBORS}"
        raise DataError(f"only {len(images)} images", images.dataset_id, remedy)
    if count <= NEIGHBORS:
        raise ConfigError(f"{count} samples", "--fid-samples", f"give more than {NEIGHBORS}")
    few = torch.from_numpy(images.pixels[:NEIGHBORS].astype(np.int32))
    features_of(features, to_pixels(flow, few), flow.device)
    return count


def _reference(
    flow: Flow,
    images: Images,
    features: Features,
    key: dict[str, Any],
    rows: int,
    batch: int,
    cache: Path | None,
    report: Callable[[int], None],
) -> Reference:
    """Return what the cache holds of the images, or compute it and keep it there."""
    path = None
    if cache is not None and key["features_sha256"] is not None:
        name = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]
        path = cache / f"{name}.features"
        try:
            found = Reference.load(path, key)
            if len(found.rows) >= rows:
                report(len(images))
                return found
        except FileNotFoundError:
            pass
        except (OSError, CheckpointError) as error:
            warnings.warn(f"computed again: {error}", stacklevel=3)
    # In another order than the data's, which may be sorted by class, and always the same one.
    order = np.random.default_rng(0).permutation(len(images))

    def parts() -> Iterator[Tensor]:
        for start in range(0, len(images), _PART):
            part = torch.from_numpy(images.pixels[order[start : start + _PART]].astype(np.int32))
            pixels = to_pixels(flow, part)
            yield _features(features, pixels, flow.device, batch, report)

    reference = Reference(*_collect(parts(), rows))
    if path is not None:
        try:
            reference.save(path, key)
        except OSError as error:
            warnings.warn(f"the images' features are not kept: {error}", stacklevel=3)
    return reference


def _features(
    features: Features,
    pixels: np.ndarray,
    device: torch.device,
    batch: int,
    report: Callable[[int], None],
) -> Tensor:
    """Return the features ``(n, d)`` of pixels ``(n, C, H, W)``, `batch` images at a time."""
    found = []
    for start in range(0, len(pixels), batch):
        found.append(features_of(features, pixels[start : start + batch], device))
        report(len(found[-1]))
    return torch.cat(found)


def _collect(batches: Iterable[Tensor], rows: int) -> tuple[Statistics, Tensor]:
    """Return the statistics of batches of features, and the first `rows` of them."""
    kept: list[Tensor] = []

    def passing() -> Iterator[Tensor]:
        left = rows
        for batch in batches:
            if left > 0:
                kept.append(batch[:left].float().clone())
                left -= len(kept[-1])
            yield batch

    return Statistics.of_batches(passing()), torch.cat(kept)


def _drawn(
    flow: Flow, count: int, seed: int, examples: np.ndarray | None
) -> Iterator[tuple[np.ndarray, int]]:
    """Yield samples, and how many of them have a value that is not finite."""
    for drawn, _ in draw_in_parts(flow, count, seed=seed, examples=examples):
        yield to_pixels(flow, drawn), int(drawn.nonfinite.flatten(1).any(1).sum())
