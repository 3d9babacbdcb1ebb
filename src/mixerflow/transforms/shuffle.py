"""One fixed, random order of an image's pixels: locally, within patches, or of the whole image."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mixerflow.core import Context, FixedShape, Mapped, Noise, Shape, constant
from mixerflow.registry import register
from mixerflow.transforms.layout import Patchify


@register
class ShufflePixels(FixedShape):
    """Pixel i of z is pixel ``order[i]`` of x, for all channels and images; log-det 0.

    As a flow's first transform it makes a model of shuffled images out of any model: the flow takes
    images as they are, shows the shuffled ones to what follows, and puts samples back. A density is
    that of the shuffled image, and that of the image.

    Args:
        shape: ``(C, *spatial)``; pixels are counted along the last axis first.
        seed: draws the order.
        patch: None draws one order of all pixels, "global shuffling". A side cuts the image into
            patches and draws an order of the patches, and one order of the pixels in a patch, the
            same for each: "local shuffling".

    The order is a buffer, so it is saved with a flow's weights.

    Raises:
        ValueError: a patch side that does not divide the image's sides.

    Reference: English et al., MixerFlow (2023), section 5.4.1, arXiv:2310.16777.
    """

    rearranges = True
    order: Tensor

    def __init__(self, shape: Shape, seed: int = 0, patch: int | None = None) -> None:
        super().__init__(shape)
        if patch is not None and (patch < 1 or any(side % patch for side in shape[1:])):
            what = f"patch {patch} does not divide the sides of images {tuple(shape)}"
            raise ValueError(f"ShufflePixels: {what}")
        self.seed, self.patch = seed, patch
        order = _order(tuple(shape[1:]), seed, patch)
        self.register_buffer("order", torch.tensor(order.tolist()))

    def shuffle(self, images: Tensor) -> Tensor:
        """Shuffle images ``(B, C, *spatial)`` of any dtype."""
        return images.flatten(2)[..., self.order].reshape(images.shape)

    def put_back(self, images: Tensor) -> Tensor:
        """Undo `shuffle`."""
        return images.flatten(2)[..., self.order.argsort()].reshape(images.shape)

    def forward(self, x: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        self.check_data(x)
        return self.shuffle(x), constant(0.0, x)

    def inverse(self, z: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        self.check_latent(z)
        return self.put_back(z), constant(0.0, z)

    def extra_repr(self) -> str:
        kind = "global" if self.patch is None else f"local, patch={self.patch}"
        return f"{kind}, seed={self.seed}"


def _order(spatial: Shape, seed: int, patch: int | None) -> np.ndarray:
    """Draw the order: the place ``order[i]`` in the image of pixel i of the shuffled image."""
    generator = np.random.default_rng(seed)
    size = int(np.prod(spatial))
    if patch is None:
        return generator.permutation(size)
    with torch.device("cpu"):
        cut = Patchify((1, *spatial), (patch,) * len(spatial))
        places = cut(torch.arange(size).reshape(1, 1, *spatial))[0][0]  # (patches, pixels)
        patches, pixels = (generator.permutation(n) for n in places.shape)
        shuffled = places[torch.from_numpy(patches)][:, torch.from_numpy(pixels)]
        return cut.inverse(shuffled[None])[0].flatten().numpy()
