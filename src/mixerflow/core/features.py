"""Features of images: what the layers of a flow make of them."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from mixerflow.core.noise import Centre
from mixerflow.core.transform import Context, PlacedLayer, Transform


def layer_number(layer: int, count: int) -> int:
    """Return the number of a layer among `count`; negative numbers count from the latent.

    Raises:
        ValueError: there is no such layer.
    """
    try:
        if isinstance(layer, bool):
            raise TypeError("no number")
        return range(count + 1)[layer]
    except (IndexError, TypeError):
        known = f"0 (the images) to {count} (the latent), or -1 (the latent) to {-count - 1}"
        raise ValueError(f"no layer {layer}: this flow has {known}") from None


def features_after(
    transform: Transform,
    placed: list[PlacedLayer],
    x: Tensor,
    context: Context,
    layers: Iterable[int] | None,
) -> dict[int, Tensor]:
    """Return what a transform has made of `x` after each of some layers, in one forward pass.

    Noise is at its centre.

    Args:
        transform: data to latent, in eval mode.
        placed: its layers.
        x: events ``(B, *shape)``.
        context: what the transform sees of it.
        layers: numbers as in `layer_number`; k is after the first k layers. None for all.

    Returns:
        Layer -> ``(B, F)``.
    """
    end, place = len(placed), -1
    numbers = {k: layer_number(k, end) for k in (range(end + 1) if layers is None else layers)}
    wanted, found = set(numbers.values()), {}

    def see(layer: Transform, before: Tensor, after: Tensor) -> None:
        nonlocal place
        # noise that is added between two units of a block is a layer that is not seen
        place = next(i for i in range(place + 1, end) if placed[i].layer is layer)
        if place in wanted:
            found.setdefault(place, before)
        if place + 1 in wanted:
            found[place + 1] = after

    z, _ = transform.watch(see, x, context, Centre())
    found |= {0: x.flatten(1).to(z.dtype), end: z.flatten(1)}
    return {layer: found[number] for layer, number in numbers.items()}
