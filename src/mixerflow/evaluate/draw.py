"""Images drawn from a flow, as arrays for display."""

from __future__ import annotations

import numpy as np
import torch

from mixerflow.core import Flow


def draw_pixels(
    flow: Flow, n: int, *, seed: int, temperature: float = 1.0, label: int | None = None
) -> tuple[np.ndarray, int]:
    """Draw `n` images as `to_pixels` returns them, and count the clamped values.

    A class-conditional flow draws its classes in turn unless `label` names one.
    """
    generator = torch.Generator(flow.device).manual_seed(seed)
    context: torch.Tensor | int | None = label
    if label is None and isinstance(flow.context_net, torch.nn.Embedding):
        context = torch.arange(n) % flow.context_net.num_embeddings
    drawn = flow.draw(n, context, temperature=temperature, generator=generator)
    return to_pixels(flow, drawn.images), drawn.clamped


def to_pixels(flow: Flow, images: torch.Tensor) -> np.ndarray:
    """Turn a flow's images into uint8 or uint16 arrays ``(n, C, H, W)`` for display.

    Float images are scaled from their smallest and largest value, integer images from the flow's
    levels, to 8 or 16 bits.
    """
    values = images.cpu().numpy()
    if flow.levels is None:
        low, high = values.min(), values.max()
        return np.round((values - low) / max(high - low, 1e-12) * 255).astype(np.uint8)
    top = flow.levels - 1
    if top > 255:
        return np.round(values * (65535 / top)).astype(np.uint16)
    return np.round(values * (255 / top)).astype(np.uint8)
