"""``mixerflow outliers`` on a flow of each place by itself: maps of scores, masks of defects."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mixerflow.core import Shape
from mixerflow.data import Images
from mixerflow.data.formats import unreadable
from mixerflow.detection import Measured, detection
from mixerflow.errors import ConfigError, DataError


@dataclass(frozen=True, kw_only=True)
class PlacesFlags:
    """What is known of the places of images."""

    masks: Path | None = None
    """Of a run that scores each place: an .npy file (N, H, W) for the images of --data, 0 at good
    places and else 1, for the AUROC of places."""

    def load_masks(self, images: Images, *, places: bool) -> np.ndarray | None:
        """Return the masks ``(N, *spatial)`` as bool, if they are named.

        Raises:
            ConfigError: the run has no scores of places.
            DataError: a file without masks of these images, or with places of one kind only.
        """
        if self.masks is None:
            return None
        if not places:
            remedy = "leave it out, or name a run of feature maps"
            raise ConfigError("the run scores no places", "--masks", remedy)
        try:
            masks = np.load(self.masks, allow_pickle=False)
        except Exception as error:  # headers are texts that numpy evaluates: almost anything
            raise unreadable(self.masks, error) from error
        wanted = (len(images), *images.shape[1:])
        if not isinstance(masks, np.ndarray) or masks.dtype.kind not in "biu":
            raise DataError("no masks of whole numbers", self.masks, "give 0 and 1")
        if masks.shape != wanted:
            what = f"masks {masks.shape} for images with places {wanted}"
            raise DataError(what, self.masks, "give one number for each place")
        if masks.astype(bool).all() or not masks.any():
            raise DataError("all places alike", self.masks, "give good places and defects")
        return masks.astype(bool)


def compare_places(measured: Measured, masks: np.ndarray) -> dict[str, Any]:
    """Return how well scores tell the places of the masks from all others, for JSON.

    There are no standard errors: neighbouring places depend on each other.
    """
    assert measured.places is not None
    wrong = masks.reshape(len(masks), -1)
    found = detection(measured.places[~wrong], measured.places[wrong], resamples=0).as_dict()
    return {name: value for name, value in found.items() if not name.endswith("_error")}


def places_line(found: Mapping[str, Any]) -> str:
    """Return the figures of places as a line."""
    return (
        f"places: AUROC {100 * found['auroc']:.1f} %, AUPR {100 * found['aupr']:.1f} %, "
        f"of {found['outside']:,} places of defects beside {found['inside']:,} others"
    )


def maps_of(measured: Measured, shape: Shape) -> bytes:
    """Return an .npy file of the scores ``(N, *spatial)`` in nats, float32."""
    assert measured.places is not None
    buffer = io.BytesIO()
    np.save(buffer, measured.places.reshape(-1, *shape[1:]).astype(np.float32))
    return buffer.getvalue()
