"""Outlier scores, as values: a larger score is more outlying.

Each has its equation and its source. A score that learns something of inside images is fitted by
`fitted`, which returns the score with what it has learned; the value goes to JSON as parts of a
model do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np

from mixerflow.detection.measured import Measured
from mixerflow.detection.mixture import PlaneMixture, fit_mixture
from mixerflow.registry import register

Need = Literal["complexity", "background", "places"]


@dataclass(frozen=True)
class Score:
    """A score ``(N,)`` of measured images.

    Attributes:
        name: in files, tables and flags.
        equation: in words.
        source: who proposed it.
        needs: what `Measured` must have.
        learns: whether inside images must fit it.
    """

    name: ClassVar[str]
    equation: ClassVar[str]
    source: ClassVar[str]
    needs: ClassVar[tuple[Need, ...]] = ()
    learns: ClassVar[bool] = False

    def fitted(self, inside: Measured) -> Score:
        """Return the score with what it learns of inside images; by default nothing."""
        return self

    def __call__(self, measured: Measured) -> np.ndarray:
        """Return the score of each image ``(N,)``."""
        raise NotImplementedError


def bits_of(measured: Measured, log_prob: np.ndarray | None = None) -> np.ndarray:
    """Return ``-log2 p(x) / D`` ``(N,)``, of `log_prob` in nats where it is given."""
    nats = measured.log_prob if log_prob is None else log_prob
    return -nats / (measured.dims * math.log(2))


@register("bits")
@dataclass(frozen=True)
class BitsPerDim(Score):
    """``-log2 p(x) / D``: the plain likelihood, which simple images defeat."""

    name: ClassVar[str] = "bits"
    equation: ClassVar[str] = "-log2 p(x) / D"
    source: ClassVar[str] = "Bishop 1994, doi:10.1049/ip-vis:19941330"

    def __call__(self, measured: Measured) -> np.ndarray:
        return bits_of(measured)


@register("typicality")
@dataclass(frozen=True)
class Typicality(Score):
    """``|-log2 p(x) / D - h|``, h the mean of the bits/dim of inside images, ``(N,)``.

    Images that are too likely are outliers too.
    """

    entropy: float | None = None
    """h, in bits/dim."""
    name: ClassVar[str] = "typicality"
    equation: ClassVar[str] = "|bits/dim - mean bits/dim of inside images|"
    source: ClassVar[str] = "Nalisnick et al. 2019, arXiv:1906.02994"
    learns: ClassVar[bool] = True

    def fitted(self, inside: Measured) -> Score:
        return replace(self, entropy=float(bits_of(inside).mean()))

    def __call__(self, measured: Measured) -> np.ndarray:
        if self.entropy is None:
            raise ValueError("typicality is not fitted")
        return np.abs(bits_of(measured) - self.entropy)


@register("complexity")
@dataclass(frozen=True)
class ComplexityCorrected(Score):
    """``(-log2 p(x) - L(x)) / D``, L the bits of a lossless file, ``(N,)``.

    It is a likelihood ratio whose background is the compressor: how much worse the flow codes the
    image than a compressor of any images does.
    """

    name: ClassVar[str] = "complexity"
    equation: ClassVar[str] = "(-log2 p(x) - bits of a lossless file) / D"
    source: ClassVar[str] = "Serra et al. 2020, arXiv:1909.11480"
    needs: ClassVar[tuple[Need, ...]] = ("complexity",)

    def __call__(self, measured: Measured) -> np.ndarray:
        assert measured.complexity is not None
        return bits_of(measured) - measured.complexity / measured.dims


@register("ratio")
@dataclass(frozen=True)
class LikelihoodRatio(Score):
    """``(log2 q(x) - log2 p(x)) / D``, q a background flow, ``(N,)``.

    The background is a flow of perturbed inside images (`Augmentation.mutation`), as Ren et al.
    have it, or of images of any kind, as Schirrmeister et al. do: what both know cancels.
    """

    name: ClassVar[str] = "ratio"
    equation: ClassVar[str] = "(log2 q(x) - log2 p(x)) / D, q the background flow"
    source: ClassVar[str] = (
        "Ren et al. 2019, arXiv:1906.02845; Schirrmeister et al. 2020, arXiv:2006.10848"
    )
    needs: ClassVar[tuple[Need, ...]] = ("background",)

    def __call__(self, measured: Measured) -> np.ndarray:
        assert measured.background is not None
        return bits_of(measured) - bits_of(measured, measured.background)


@register("mixture")
@dataclass(frozen=True)
class LatentMixture(Score):
    """``-log g(log p(z) / D, L(x) / D)``, g a mixture of Gaussians on the plane, ``(N,)``.

    Complexity is a variable of its own: an image is an outlier if its latent's density is unusual
    for an image of its complexity, or its complexity is unusual.

    Departs from the paper: `components` is ours, and L is the length of the file of
    `mixerflow.detection.complexity`.
    """

    components: int = 4
    """Gaussians of the mixture."""
    mixture: PlaneMixture | None = None
    """g, once fitted."""
    name: ClassVar[str] = "mixture"
    equation: ClassVar[str] = "-log g(log p(z) / D, bits of a lossless file / D), g the mixture"
    source: ClassVar[str] = "Osada et al. 2024, arXiv:2402.10477"
    needs: ClassVar[tuple[Need, ...]] = ("complexity",)
    learns: ClassVar[bool] = True

    def fitted(self, inside: Measured) -> Score:
        return replace(self, mixture=fit_mixture(self._points(inside), self.components))

    def __call__(self, measured: Measured) -> np.ndarray:
        if self.mixture is None:
            raise ValueError("mixture is not fitted")
        return -self.mixture.log_density(self._points(measured))

    @staticmethod
    def _points(measured: Measured) -> np.ndarray:
        assert measured.complexity is not None
        pair = (measured.log_base / math.log(2), measured.complexity)
        return np.stack(pair, 1) / measured.dims
