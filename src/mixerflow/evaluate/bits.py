"""Bits per dimension of a set of images under a flow."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from mixerflow.core import Density, Flow, Noise, as_tensor
from mixerflow.processes import ALONE, Processes


@dataclass(frozen=True)
class Bits:
    """A bits/dim figure with all that decides what it may be compared with.

    Attributes:
        bits_per_dim: mean over the images of ``-log2 p(x) / D``.
        standard_error: of that mean, over images; NaN for a single one.
        images: how many.
        density: whether log p is exact, a lower bound or an estimate.
        dequantization: "uniform" noise, one draw an image, or "none" for float data (whose figure
            depends on the unit of the data).
        importance_samples: draws that a bound is averaged over.
        dataset_id: the data; comparable with published figures only where the name is bare.
        split: which part of it.
        seed: of the dequantisation noise.
        per_image: each image's bits/dim, in order.
    """

    bits_per_dim: float
    standard_error: float
    images: int
    density: Density
    dequantization: Literal["uniform", "none"]
    importance_samples: int
    dataset_id: str
    split: str
    seed: int
    per_image: np.ndarray = field(repr=False)

    def as_dict(self) -> dict[str, Any]:
        """Everything but the images' own figures, for JSON."""
        fields = dataclasses.asdict(self)
        del fields["per_image"]
        if math.isnan(self.standard_error):
            fields["standard_error"] = None  # JSON has no NaN
        return fields

    def __str__(self) -> str:
        """The figure, its standard error and the number of images, in words."""
        error = "" if math.isnan(self.standard_error) else f" ± {self.standard_error:.3f}"
        plural = "" if self.images == 1 else "s"
        return f"{self.bits_per_dim:.3f}{error} bits/dim on {self.images} image{plural}"


def bits(
    flow: Flow,
    images: np.ndarray | Tensor,
    *,
    labels: np.ndarray | Tensor | None = None,
    batch: int = 128,
    seed: int = 0,
    dataset_id: str = "",
    split: str = "",
    on_batch: Callable[[int], None] | None = None,
    processes: Processes = ALONE,
) -> Bits:
    """Score images ``(N, *shape)`` in eval mode.

    The noise of image i is a function of `seed` and i: the figure does not depend on `batch`, nor
    on the number of processes.

    Args:
        flow: the model.
        images: integer images as the flow's levels say, or floats.
        labels: ``(N,)`` for a class-conditional flow.
        batch: images at a time, in each process.
        seed: of the dequantisation noise.
        dataset_id: recorded in the result.
        split: recorded in the result.
        on_batch: called with the number of images done, by all processes, after each batch.
        processes: that share the images; each is given all of them, and gets the figure of all.

    Raises:
        ValueError: no images, or images of the wrong shape.
    """
    if len(images) == 0:
        raise ValueError("bits: no images to score")
    each = np.zeros(len(images))
    for start in range(0, len(images), batch * processes.world):
        count = min(batch * processes.world, len(images) - start)
        # every process scores as often as the others, if only an empty part: layers may be sharded
        own = processes.share(count)
        rows = slice(start + own.start, start + own.stop)
        index = torch.arange(rows.start, rows.stop, device=flow.device)
        context = None if labels is None else as_tensor(labels[rows])
        scored = flow.bits_per_dim(images[rows], context, Noise(seed, index), batch=batch)
        each[rows] = scored.double().cpu().numpy()
        if on_batch is not None:
            on_batch(count)
    # each image was scored by one process and is 0 in the others
    each = processes.sum(torch.from_numpy(each)).numpy()
    error = each.std(ddof=1) / math.sqrt(len(each)) if len(each) > 1 else math.nan
    return Bits(
        bits_per_dim=float(each.mean()),
        standard_error=float(error),
        images=len(each),
        density=flow.density,
        dequantization="none" if flow.levels is None else "uniform",
        importance_samples=1,
        dataset_id=dataset_id,
        split=split,
        seed=seed,
        per_image=each,
    )
