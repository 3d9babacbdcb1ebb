"""Group typicality: are these images together from the inside, though each alone could be?"""

from __future__ import annotations

import numpy as np

from mixerflow.detection.measured import Measured
from mixerflow.detection.scores import bits_of

SOURCE = "Nalisnick et al. 2019, arXiv:1906.02994"


def group_scores(measured: Measured, size: int, entropy: float) -> np.ndarray:
    """Return ``|mean bits/dim of the group - h|`` of each group of `size` images, in order.

    The mean over a group has less spread than an image has, so a small difference shows. Images
    that fill no group at the end are left out: ``(N // size,)``.

    Args:
        measured: images, whose order makes the groups.
        size: images of a group.
        entropy: h, the mean bits/dim of inside images.

    Raises:
        ValueError: a size below 1.

    References:
        Nalisnick, Matsukawa, Teh, Lakshminarayanan: Detecting out-of-distribution inputs to deep
            generative models using typicality (2019), arXiv:1906.02994.
    """
    if size < 1:
        raise ValueError(f"group_scores: groups of {size} images")
    bits = bits_of(measured)
    whole = len(bits) // size * size
    return np.abs(bits[:whole].reshape(-1, size).mean(1) - entropy)
