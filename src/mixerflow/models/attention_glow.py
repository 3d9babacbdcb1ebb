"""Attention Glow: Glow whose steps end in invertible attention between places of the image.

    step = ActNorm -> 1x1 convolution -> affine coupling -> attention

A token is a square of the squeezed image, all channels of it. Attention reads the half of the
channels that the coupling has changed, x_a, and changes the other half, x_b, so that a step changes
all of them. It is one of two kinds, or both, map attention first:

    map attention: each token by a weight of its own    z_b = m(x_a) x_b
    token attention: all tokens are mixed               z_b = (I + g (softmax(Q K^T) - I)) x_b

Q and K are linear in x_a.

Both have exact log-dets; that of token attention is a determinant of a matrix tokens x tokens for
each image and head, whose cost grows with the third power of the tokens. So squares are as small as
keeps the tokens of a scale to `tokens`: at 32x32 pixels these are squares of 2x2 of 16x16 pixels,
then pixels of 8x8 and of 4x4.

Reference: Sukthanker et al., Generative flows with invertible attentions (2022), arXiv:2106.03959.

Departs from the paper:
    - both kinds may follow each other in a step; the paper's models have the one or the other;
    - the halves are halves of the channels, the paper's a checkerboard of the numbers;
    - the matrix of token attention is the identity at the start and never singular, and has heads;
      map attention has a floor: see `mixerflow.transforms.attention`;
    - tokens may be squares of several pixels;
    - the settings of the Glow around it are those of `mixerflow.models.glow`: the count of
      parameters is ours, as is the recipe's training.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from mixerflow.core import Inverse, Layer, Shape, Transform
from mixerflow.models.glow import Glow
from mixerflow.registry import register
from mixerflow.transforms import MapAttention, Patchify, TokenAttention


@register("attention-glow")
@dataclass(frozen=True)
class AttentionGlow(Glow):
    """Settings of an Attention Glow: those of a Glow, and of the attention in each step."""

    attention: Literal["map", "token", "both"] = "token"
    """Kind of attention: a weight for each token, a matrix that mixes tokens, or first the one and
    then the other. Weights of tokens cost little, but far latents get far faster in the inverse."""
    tokens: int = 64
    """Largest number of tokens of a scale; squares of pixels are made large enough."""
    heads: int = 1
    """Heads of token attention, a divisor of half of a token's numbers: each mixes its share."""
    width: int = 16
    """Length of the queries and keys of token attention, for each head."""

    def step(self, shape: Shape, scale: int) -> Transform:
        step = super().step(shape, scale)
        assert isinstance(step, Layer)
        return Layer(*step, *self.attend(shape))

    def attend(self, shape: Shape) -> list[Transform]:
        """Return the attention of a step on the squeezed image ``(C, *spatial)``."""
        cut = Patchify(shape, (square_of(shape, self.tokens),) * (len(shape) - 1))
        n, flip = cut.matrix[1], not self.flip
        steps: list[Transform] = [cut]
        if self.attention in ("map", "both"):
            steps.append(MapAttention(n, flip=flip))
        if self.attention in ("token", "both"):
            steps.append(TokenAttention(n, heads=self.heads, width=self.width, flip=flip))
        return [*steps, Inverse(cut, shape)]


def square_of(shape: Shape, tokens: int) -> int:
    """Return the least side of the squares of which images ``(C, *spatial)`` have at most `tokens`.

    Raises:
        ValueError: no square whose side divides those of the images is large enough.
    """
    common = math.gcd(*shape[1:])
    for side in range(1, common + 1):
        if common % side == 0 and math.prod(n // side for n in shape[1:]) <= tokens:
            return side
    least = math.prod(n // common for n in shape[1:])
    raise ValueError(f"tokens must be at least {least} for images {shape}; got {tokens}")
