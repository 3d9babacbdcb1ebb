"""Fitted outlier scores, with their thresholds, that a run folder keeps.

``outliers/fitted.json`` holds the scores and what they were fitted on, and
``outliers/inside.safetensors`` what was measured of each inside image, from which other rates and
groups are fitted without the images.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from mixerflow.detection import Fitted, Measured
from mixerflow.errors import CheckpointError
from mixerflow.registry import construct, describe
from mixerflow.runs.files import read_record, sealed, write_atomically, writing
from mixerflow.runs.located import locate
from mixerflow.runs.reading import read_file

_REMEDY = "`mixerflow outliers` fits and keeps others"


@dataclass(frozen=True, eq=False)
class InsideFit:
    """Scores fitted to inside images, with all that they depend on.

    Attributes:
        fitted: the scores with their thresholds.
        inside: what was measured of the inside images.
        key: SHA-256 of the weights ("weights_sha256") and of the background's
            ("background_sha256", or None), and the seed of the noise.
        images: the inside images' "dataset_id", "split", "images_sha256" and "compressor".
    """

    fitted: Fitted
    inside: Measured
    key: dict[str, Any]
    images: dict[str, Any]


def keep_fit(run: Path, fit: InsideFit) -> None:
    """Write a fit into the run folder, in place of an older one.

    Raises:
        ResourceError: the folder cannot be written.
    """
    folder = run / "outliers"
    data = safetensors.numpy.save(fit.inside.arrays())
    record = {
        "fitted": describe(fit.fitted),
        "dims": fit.inside.dims,
        "inside_sha256": hashlib.sha256(data).hexdigest(),
        "key": fit.key,
        "images": fit.images,
    }
    with writing(folder, lambda: len(data)):
        folder.mkdir(exist_ok=True)
        write_atomically(folder / "inside.safetensors", data)
        write_atomically(folder / "fitted.json", sealed(record))


def kept_fit(run: Path | str) -> InsideFit | None:
    """Return the fit that a run folder, or published weights, keep; None without one.

    A name of weights stands for their folder, as in `read_weights`. Whoever uses the fit compares
    its key with the weights at hand.

    Raises:
        CheckpointError: the files are damaged, or of another version.
    """
    path = locate(run).path / "outliers" / "fitted.json"
    record = read_record(path, _REMEDY)
    if record is None:
        if path.with_name("inside.safetensors").exists():
            raise CheckpointError("missing beside its inside images", path, _REMEDY)
        return None
    try:
        data = read_file(path.with_name("inside.safetensors"))
    except OSError as error:
        raise CheckpointError(f"no inside images ({error.strerror})", path, _REMEDY) from error
    if hashlib.sha256(data).hexdigest() != record.get("inside_sha256"):
        raise CheckpointError("its inside images' SHA-256 differs", path, _REMEDY)
    try:
        fitted = construct(record["fitted"], path, values=True)
        arrays = {
            name: each.astype(np.float64) for name, each in safetensors.numpy.load(data).items()
        }
        inside = Measured(int(record["dims"]), **arrays)
        if not isinstance(fitted, Fitted) or fitted.images != len(inside):
            raise ValueError("no fit of these images")
        return InsideFit(fitted, inside, dict(record["key"]), dict(record["images"]))
    except CheckpointError:
        raise
    except Exception as error:  # whoever can write the folder can write anything
        raise CheckpointError(f"no fitted scores ({error})", path, _REMEDY) from error
