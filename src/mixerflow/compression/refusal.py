"""What the codec says of a model that it does not take."""

from __future__ import annotations

from mixerflow.errors import ConfigError

TAKES = (
    "use uniform noise, pixels scaled or as normal scores, couplings (affine, bounded, floored, "
    "spline) of rows with MLPs and of images with residual convolutions, linear maps by triangles "
    "and matrices (lu, rlu, plu, matrix), ActNorm, batch norm, class labels, and latents that are "
    "normal, Student's t, a mixture of Gaussians"
)


def refused(what: str) -> ConfigError:
    """Return the error for a model that has `what`, with what the codec takes."""
    return ConfigError(f"the codec does not take a model that has {what}", "", TAKES)
