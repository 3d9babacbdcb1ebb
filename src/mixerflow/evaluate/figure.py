"""A figure in bits per dimension, with all that decides which others are comparable, in words."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mixerflow.core import Density, Dequantization, is_estimated

_DENSITIES = {
    "exact": "exact density",
    "bound": "lower bound of the density",
    "estimate": "estimated density",
    "estimated bound": "estimated lower bound of the density",
}


@dataclass(frozen=True)
class Bound:
    """The figure of the first draws of every image.

    Attributes:
        importance_samples: n, the number of draws.
        bits_per_dim: mean over the images of ``-log2 mean_{k<n} p(x, noise_k) / D``.
        standard_error: of that mean, over images; NaN for a single one.
        gain: mean over the images of the single-sample figure minus this one. Both have the first
            draw in common, and the gain's error is far smaller than that of either.
        gain_error: standard error of the gain, over images; NaN for a single one.
        per_image: each image's bits/dim, in order.
    """

    importance_samples: int
    bits_per_dim: float
    standard_error: float
    gain: float
    gain_error: float
    per_image: np.ndarray = field(repr=False)

    def as_dict(self) -> dict[str, Any]:
        """Return all fields but `per_image`, for JSON."""
        return _plain(self)


@dataclass(frozen=True)
class Bits:
    """Bits per dimension, with all that decides which other values are comparable.

    Attributes:
        bits_per_dim: mean over the images of ``-log2 p(x) / D``.
        standard_error: of that mean, over images; NaN for a single one.
        images: their number.
        density: whether log p is exact, a lower bound, or an estimate of one of the two.
        dequantization: "uniform" or "variational" noise on integer images, or "none" for float data
            (whose figure depends on the unit of the data).
        importance_samples: K, the number of noise draws an image. With one, the figure is the
            single-sample bound that papers quote; with more it is importance-weighted,
            ``-log2 mean_k p(x, noise_k) / D``, a tighter bound.
        dataset_id: the data; comparable with published values only if the name has no suffix.
        split: the part of the data.
        seed: seed of the noise.
        per_image: each image's bits/dim, in order.
        curve: the figures of the first 1, 10, 100, ... draws of each image, and of all K.
        probes: R, the estimates of log p an image, whose mean the figure is made of; None where
            nothing is estimated.
        estimator_error: the part of `standard_error` that the probes cause, see
            `Estimates.error`; NaN for a single probe, and where nothing is estimated.
    """

    bits_per_dim: float
    standard_error: float
    images: int
    density: Density
    dequantization: Dequantization
    importance_samples: int
    dataset_id: str
    split: str
    seed: int
    per_image: np.ndarray = field(repr=False)
    curve: tuple[Bound, ...] = field(repr=False)
    probes: int | None = None
    estimator_error: float = math.nan

    def as_dict(self) -> dict[str, Any]:
        """Return all fields but `per_image`, for JSON.

        The curve is there only if it has several figures, the probes and their error only if
        something is estimated.
        """
        curve = [bound.as_dict() for bound in self.curve]
        record = _plain(self) | ({"curve": curve} if len(curve) > 1 else {})
        left_out = ("probes", "estimator_error") if self.probes is None else ()
        return {name: value for name, value in record.items() if name not in left_out}

    @property
    def kind(self) -> str:
        """The kind of figure in words: only figures of one kind are comparable."""
        return kind_of(self.as_dict())

    def __str__(self) -> str:
        error = "" if math.isnan(self.standard_error) else f" ± {self.standard_error:.3f}"
        plural = "" if self.images == 1 else "s"
        images = f"on {self.images} image{plural}"
        kind = "; ".join(filter(None, (self.kind, probes_of(self.as_dict()))))
        return f"{self.bits_per_dim:.3f}{error} bits/dim {images} ({kind})"


def _plain(record: Bits | Bound) -> dict[str, Any]:
    """Return a record's numbers and words; None for NaN, which JSON does not have."""
    names = [each.name for each in dataclasses.fields(record)]
    values = {name: getattr(record, name) for name in names if name not in ("per_image", "curve")}
    errors = {k: None for k, v in values.items() if k.endswith("_error") and math.isnan(v)}
    return values | errors


def kind_of(figure: Mapping[str, Any]) -> str:
    """Return the kind of figure in words, from the dict that `Bits.as_dict` made."""
    return ", ".join(filter(None, (density_of(figure), estimator_of(figure))))


def density_of(figure: Mapping[str, Any]) -> str:
    """Return the density that was scored in words: how exact, of which dequantised data."""
    noise = figure["dequantization"]
    return f"{_DENSITIES[figure['density']]}, {'no' if noise == 'none' else noise} dequantisation"


def estimator_of(figure: Mapping[str, Any]) -> str:
    """Return "single-sample" or "importance-weighted (K = n)"; "" where no noise is drawn."""
    if figure["dequantization"] == "none" and figure["density"] == "exact":
        return ""
    draws = figure.get("importance_samples", 1)
    return "single-sample" if draws == 1 else f"importance-weighted (K = {draws:,})"


def probes_of(figure: Mapping[str, Any]) -> str:
    """Return what is known of the error of an estimate, as in "estimate ± 0.002 by 2 probes".

    "" where nothing is estimated. Figures of other numbers of probes are of the same kind: their
    expectations are equal.
    """
    if not is_estimated(figure["density"]):
        return ""
    probes = figure.get("probes") or 1
    error = figure.get("estimator_error")
    told = "" if error is None else f" ± {error:.2g}"
    return f"estimate{told} by {probes:,} probe{'' if probes == 1 else 's'}"
