"""How near images are to the truth, and how likely a flow finds them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mixerflow.core import Flow, evaluating
from mixerflow.errors import ConfigError
from mixerflow.means import mean_and_error
from mixerflow.restoration.fillings import best_filter
from mixerflow.restoration.measurements import Measurement, Noisy
from mixerflow.restoration.search import MARGIN


def psnr(images: Tensor, truth: Tensor, top: float = 255.0) -> Tensor:
    """Return the peak signal-to-noise ratio of each image ``(N,)``, in dB; infinity if equal.

    ``10 log10(top^2 / mean (x - truth)^2)`` over all values of an image, with x clamped to
    ``[0, top]`` and not rounded.
    """
    errors = (images.clamp(0, top) - truth).double().square().flatten(1).mean(1)
    return 10 * torch.log10(top**2 / errors)


@torch.no_grad()
def real_bits(
    flow: Flow, images: Tensor, *, labels: Tensor | None = None, batch: int = 128
) -> Tensor:
    """Return ``-log2 p(x) / D`` of images as real numbers ``(N,)``: no noise is added to them.

    Pixel values of ``[0, levels - 1]``, whole or not, are scored at the centres of their cells,
    ``x + 1/2``. The figure is no code length, and not comparable with `Flow.bits_per_dim`.
    """
    if flow.levels is not None:
        images = (images + 0.5).clamp(MARGIN, flow.levels - MARGIN)
    scores = []
    with evaluating(flow.continuous()) as density:
        for start in range(0, len(images), batch):
            part = slice(start, start + batch)
            context = None if labels is None else labels[part]
            scores.append(density.log_prob(images[part].to(flow.dtype), context).cpu())
    return -torch.cat(scores) / (flow.dims * math.log(2))


@dataclass(frozen=True)
class Row:
    """A way to restore images: its name, its images, and their scores.

    Attributes:
        name: "truth", "measurement", a filling or a filter, or "restored".
        images: ``(N, C, *spatial)`` in the unit of pixel values.
        bits_per_dim: as real numbers ``(N,)``, see `real_bits`.
        psnr: ``(N,)`` in dB; None for the truth, and where the truth is not known.
    """

    name: str
    images: Tensor
    bits_per_dim: Tensor
    psnr: Tensor | None

    def as_dict(self) -> dict[str, Any]:
        """Return means over the images, their standard errors, and each image's figures."""
        figures: dict[str, Any] = {"name": self.name}
        for name, values in (("psnr", self.psnr), ("bits_per_dim", self.bits_per_dim)):
            if values is not None:
                figures[name], figures[f"{name}_error"] = mean_and_error(values)
                figures[f"{name}_per_image"] = values.tolist()
        return figures


def compare(
    flow: Flow,
    measurement: Measurement,
    measured: Tensor,
    restored: Tensor,
    truth: Tensor | None = None,
    *,
    labels: Tensor | None = None,
) -> list[Row]:
    """Score restored images ``(N, C, *spatial)`` beside what the measurements give without a model.

    For noise the best Gaussian filter is among them if the truth is known; the truth chooses it.

    Raises:
        ConfigError: a flow of float data, which have no peak.
    """
    if flow.levels is None:
        raise ConfigError("float data have no peak signal", "compare", "compare them yourself")
    top = flow.levels - 1
    images = {} if truth is None else {"truth": truth}
    images |= measurement.simple(measured, flow.shape)
    if isinstance(measurement, Noisy) and truth is not None:
        width, filtered = best_filter(measured, truth, top)
        images[f"filter {width:g}"] = filtered
    images["restored"] = restored
    rows = []
    for name, each in images.items():
        near = None if truth is None or each is truth else psnr(each, truth, top)
        rows.append(Row(name, each, real_bits(flow, each, labels=labels), near))
    return rows
