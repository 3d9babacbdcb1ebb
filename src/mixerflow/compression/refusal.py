"""What the codec says of a model that it does not take."""

from __future__ import annotations

from mixerflow.errors import ConfigError

TAKES = (
    "use uniform noise on scaled pixels, affine couplings (affine, bounded, floored) of rows with "
    "MLPs, linear maps by triangles or a matrix (lu, rlu, plu, matrix), ActNorm, and latents that "
    "are normal, Student's t, a mixture of Gaussians"
)


def refused(what: str) -> ConfigError:
    """Return the error for a model that has `what`, with what the codec takes."""
    return ConfigError(f"the codec does not take a model that has {what}", "", TAKES)
