"""MixerFlow in DenseFlow: mixer layers as the units between which noise widens the image.

    pixels -> squeeze -> block -> squeeze -> factor out half -> block -> learned Gaussian

A block is a number of units, and noise between them widens the image; all earlier units of the
block condition it, as in DenseFlow. A unit here is image couplings, whose nets have DenseFlow's
dense block beside Nyström attention, and then mixer layers.

References:
    English et al., MixerFlow: MLP-Mixer meets normalising flows (2023), section 7, which suggests
    such combinations, arXiv:2310.16777.
    Grcić et al., Densely connected normalizing flows (2021), arXiv:2106.04627.
    Neither has this model: its settings are ours.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from mixerflow.core import Chain, Shape, Transform
from mixerflow.models.cross_units import CrossUnitFlow
from mixerflow.parts.image_nets import DenseAttention
from mixerflow.parts.images import GlowSteps
from mixerflow.parts.mixing import Mixing
from mixerflow.parts.patching import Patching
from mixerflow.registry import register
from mixerflow.transforms import Affine


@register("mixerflow-dense")
@dataclass(frozen=True)
class MixerDenseFlow(CrossUnitFlow):
    """Settings of a MixerFlow in DenseFlow's frame; a module is a mixer layer."""

    units: tuple[int, ...] = (4, 2)
    """Units of each block; each block has half as many pixels a side as the one before."""
    modules: tuple[int, ...] = (4, 4)
    """Mixer layers of each unit of a block."""
    growth: int = 4
    """Channels of noise added between two units; 0 for none."""
    mixing: Mixing = Mixing(patching=Patching(2, shift=(0, 1)))
    """The mixer layers, which are numbered through all units; several sizes of patches are those of
    the blocks, one for each, and single pixels do not shift."""
    coupling: GlowSteps | None = GlowSteps(
        elementwise=Affine(2.0), net=DenseAttention(48, growth=32, depth=4), squeeze=1
    )
    """Image couplings at the start of each unit; None for none."""

    def unit(self, shape: Shape, block: int, numbers: range) -> Transform:
        """Return the image couplings and the mixer layers of a unit."""
        steps = [] if self.coupling is None else self.coupling.on_image(shape, self.context)
        mixing = replace(self.mixing, patching=self._patching_of(block))
        mixing.require_even_reversals(shape, numbers[-1])
        layers = (mixing.mixer_layer(shape, n, layers=n, context=self.context) for n in numbers)
        return Chain(*steps, *layers)

    def _patching_of(self, block: int) -> Patching:
        """Return the patching of a block, whose patches do not shift if they are single pixels."""
        sizes, shifts = self.mixing.patching.size, self.mixing.patching.shift
        assert isinstance(sizes, tuple)
        if len(sizes) not in (1, len(self.units)):
            what = f"{len(sizes)} sizes of patches for {len(self.units)} blocks"
            raise ValueError(f"MixerDenseFlow: {what}: mixing.patching.size takes one for each")
        size = sizes[block % len(sizes)]
        return replace(self.mixing.patching, size=(size,), shift=0 if size == 1 else shifts)
