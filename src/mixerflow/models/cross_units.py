"""The frame of DenseFlow: blocks of invertible units at several scales, with noise between units.

    pixels -> squeeze -> block -> squeeze -> factor out half -> block -> ... -> learned Gaussian

Reference: Grcić, Grubišić, Šegvić: Densely connected normalizing flows (2021), arXiv:2106.04627.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from mixerflow.core import Chain, MultiScale, Shape, Transform
from mixerflow.parts.image_nets import ImageNet, WideningConv
from mixerflow.parts.images import require_halvable
from mixerflow.parts.model import Model
from mixerflow.parts.pixels import Pixels, ScaledPixels, VariationalDequantizer
from mixerflow.transforms import (
    Affine,
    Augment,
    CrossUnits,
    DiagonalAffine,
    Elementwise,
    Squeeze,
)

Place = Literal["units", "input", "last"]


@dataclass(frozen=True)
class CrossUnitFlow(Model):
    """Base of models that add noise between invertible units; a subclass says what a unit is."""

    units: tuple[int, ...] = (6, 4, 1)
    """Units of each block; each block has half as many pixels a side as the one before."""
    modules: tuple[int, ...] = (5, 6, 20)
    """Modules of each unit of a block."""
    growth: int = 10
    """Channels of noise added between two units, unless `place` is elsewhere; 0 for none."""
    place: Place = "units"
    """Where noise is added: between the units of each block, or as many numbers, up to a whole
    channel, all before the first block ("input") or all before the last block ("last")."""
    noise_net: ImageNet | None = WideningConv()
    """Net of the noise's mean and scale, which reads earlier units; None for N(0, I)."""
    elementwise: Elementwise = Affine(2.0)
    """Transform of the noise, given its net."""
    pixels: Pixels = field(
        default=ScaledPixels(-0.5, 0.5, dequantizer=VariationalDequantizer()), kw_only=True
    )
    """How an image's values become real numbers."""

    def __post_init__(self) -> None:
        for name in ("units", "modules"):
            counts = getattr(self, name)
            if not counts or min(counts) < 1:
                what = f"{name} must be a number of at least 1 for each block; got {counts}"
                raise ValueError(f"{type(self).__name__}: {what}")
        if self.growth < 0:
            raise ValueError(f"{type(self).__name__}: growth must be at least 0; got {self.growth}")
        if self.place not in get_args(Place):
            what = f"place must be one of {', '.join(get_args(Place))}; got {self.place!r}"
            raise ValueError(f"{type(self).__name__}: {what}")

    @property
    def of_noise(self) -> Elementwise:
        """The transform of the noise, given its net."""
        return self.elementwise

    def unit(self, shape: Shape, block: int, numbers: range) -> Transform:
        """Return a unit of events `shape`, of the modules with these numbers, from 1, of all.

        Blocks are numbered from 0.
        """
        raise NotImplementedError

    def compose(self, shape: Shape) -> Transform:
        if len(self.units) != len(self.modules):
            what = f"as many modules as units; got {self.modules} for {self.units}"
            raise ValueError(f"{type(self).__name__}: takes {what}")
        require_halvable(shape, len(self.units), f"the blocks of units {self.units}")
        squeeze = Squeeze(shape)
        inner, scales = squeeze.latent_shape, []
        for number in range(len(self.units)):
            steps = [squeeze] if not scales else []
            block = self.block(inner, number)
            inner = block.out_shape(inner)
            if number + 1 < len(self.units):  # squeezed before half of the channels leave
                transition = Squeeze(inner)
                inner = transition.latent_shape
            else:
                transition = DiagonalAffine((inner[0], *(1,) * (len(inner) - 1)))
            scales.append(Chain(*steps, block, transition))
            inner = (inner[0] // 2, *inner[1:])
        return MultiScale(shape, scales)

    def block(self, shape: Shape, number: int) -> Transform:
        """Return the units of block `number`, from 0, of events `shape`, with noise among them."""
        first, growth = self._noise_of(number, axes=len(shape) - 1)
        before = [self.augment(shape, shape[0], first)] if first else []
        channels, *spatial = shape[0] + first, *shape[1:]
        pairs = zip(self.units[:number], self.modules[:number], strict=True)
        start, modules = 1 + sum(units * each for units, each in pairs), self.modules[number]
        made, augments, given = [], [], channels
        for unit in range(self.units[number]):
            wide = (channels + growth * unit, *spatial)
            numbers = range(start + unit * modules, start + (unit + 1) * modules)
            made.append(self.unit(wide, number, numbers))
            if growth and unit + 1 < self.units[number]:
                augments.append(self.augment(wide, given, growth))
                given += wide[0]
        inner = (channels, *spatial)
        block = CrossUnits(inner, made, augments) if growth else Chain(*made)
        return Chain(*before, block) if before else block

    def _noise_of(self, number: int, *, axes: int) -> tuple[int, int]:
        """Return channels of noise before the first unit of a block, and between its units."""
        if self.place == "units" or not self.growth:
            return 0, self.growth
        blocks = range(len(self.units))
        if number != (0 if self.place == "input" else blocks[-1]):
            return 0, 0
        # a block has 2^axes times as many pixels as the next
        pixels = [2 ** (axes * (blocks[-1] - block)) for block in blocks]
        sizes = zip(self.units, pixels, strict=True)
        whole = sum(self.growth * (units - 1) * size for units, size in sizes)
        return -(-whole // pixels[number]), 0

    def augment(self, shape: Shape, given: int, channels: int) -> Augment:
        """Return noise of `channels` beside events `shape`, whose net reads `given` channels."""
        if self.noise_net is None:
            return Augment(shape, channels)
        out = self.of_noise.params * channels
        net = self.noise_net.build(given, out, sides=shape[1:], context=self.context)
        return Augment(shape, channels, net, self.of_noise)
