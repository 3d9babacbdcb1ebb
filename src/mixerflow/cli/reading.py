"""The flags that say how images are read, and the lines that say what was read."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from mixerflow.data import Images, Reading, Splits, load
from mixerflow.data.sources import path_of, require_data
from mixerflow.errors import ConfigError, DataError
from mixerflow.runs import reading_of
from mixerflow.terminal import tell

_SHOWN = 5  # names of classes in a line


@dataclass(frozen=True, kw_only=True)
class ReadingFlags:
    """How images are read: as the run does where a flag is absent, and in a new run unchanged."""

    transparency: str | None = None
    """Transparent images: refuse, or the colour to put them on, such as '#ffffff'."""
    on_bad_image: Literal["stop", "skip"] | None = None
    """A bad image file: stop, or skip and list it."""
    crop: str | None = None
    """Centred part of each image to keep: 148x148 (width, height) for pixels, 1:1 for the largest
    of a ratio, or none."""
    resize: str | None = None
    """Width and height to scale images down to, after the crop: 64x64, 64, or none."""
    filter: Literal["box", "bilinear", "hamming", "bicubic", "lanczos"] | None = None
    """Filter of --resize, antialiased; lanczos unless given."""
    grey: bool | None = None
    """Turn colour to grey, ITU-R 601-2 luma; --no-grey undoes it."""

    def reading(self, metadata: dict[str, Any]) -> Reading:
        """Return the flags' settings, and for absent ones those of a run's images.

        Args:
            metadata: the content of ``run.json``; empty for a new run.

        Raises:
            ConfigError: a setting that cannot be, or a filter without a size.
        """
        own = reading_of(metadata)
        names = [field.name for field in fields(Reading)]
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        reading = replace(own, **given)
        if self.filter not in (None, own.filter) and reading.resize == "none":
            raise ConfigError("a filter and nothing to scale", "--filter", "give --resize too")
        return reading


def own_data(metadata: dict[str, Any]) -> str:
    """Return what names a run's own images.

    Raises:
        ConfigError: nothing does.
        DataError: they are no longer where they were.
    """
    spec = (metadata.get("source") or {}).get("data")
    if spec is None:
        raise ConfigError("no images named", "--data", "name a folder, a file or a set")
    try:
        require_data(spec)
    except DataError as error:
        what = f"the run's own images are not here ({error.what})"
        raise DataError(what, spec, "name images with --data") from error
    return spec


def require_apart(out: Path | None, spec: str) -> None:
    """Refuse an output among the images, where the next command would take it for one of them."""
    data = path_of(spec)
    if out is None or data is None or not data.is_dir():
        return
    folder = data.resolve()
    if folder in (out.resolve(), *out.resolve().parents):
        remedy = "name a folder, or a file, outside of it"
        raise ConfigError(f"the output lies in the folder of the images, {data}", "--out", remedy)


def load_run_data(
    metadata: dict[str, Any],
    data: str | None,
    flags: ReadingFlags,
    *,
    measured: tuple[int, ...] | None = None,
) -> Splits:
    """Load images as the run of this ``run.json`` did, unless the flags differ.

    `measured` is the shape of images that are measurements of the run's images.

    Raises:
        ConfigError: neither `data` nor ``run.json`` names images.
        DataError: the images cannot be found, read or used, or are of another shape.
    """
    spec = own_data(metadata) if data is None else data
    splits = load(spec, reading=flags.reading(metadata))
    announce(splits)
    own = tuple((metadata.get("data") or {}).get("shape", splits.train.shape))
    shape = own if measured is None else tuple(measured)
    if splits.train.shape != shape:
        whose = "the run's" if measured is None else "measurements of the run's images"
        what = f"images are {splits.train.shape}, {whose} are {shape}"
        remedy = "give images of that shape; --crop, --resize and --grey change it"
        raise DataError(what, splits.train.dataset_id, remedy)
    levels = (metadata.get("data") or {}).get("levels")
    if measured is None and levels and (splits.train.levels or levels) < levels:
        what = f"pixels have {splits.train.levels:,} levels, those of the run's images {levels:,}"
        raise DataError(what, splits.train.dataset_id, "give images of as many levels")
    return splits


def announce(splits: Splits, validation: str = "") -> None:
    """Say on stderr, once for all processes, what was read and what was not."""
    if os.environ.get("RANK", "0") != "0":
        return
    for images in splits.parts().values():
        for line in images.skipped:
            tell(f"skipped {line}")
    labelled = splits.train.labels is not None
    counts = [_count(name, images, labelled=labelled) for name, images in splits.parts().items()]
    plural = "" if len(splits.train) == len(counts) == 1 else "s"
    shape = " x ".join(map(str, (*splits.train.shape[1:][::-1], splits.train.shape[0])))
    line = f"{splits.train.dataset_id}: {', '.join(counts)} image{plural} of {shape}"
    line += f"; {_classes(splits)}"
    tell(line + (f"; validation on {validation}" if validation else ""))


def _count(name: str, images: Images, *, labelled: bool) -> str:
    """Return the number of a split's images, and whether its labels differ from the training's."""
    other = "" if (images.labels is not None) == labelled else " (without labels)"
    if other and images.labels is not None:
        other = " (labels not used)"
    return f"{len(images):,} {name}{other}"


def _classes(splits: Splits) -> str:
    names, labels = splits.train.classes, splits.train.labels
    if labels is None:
        return "no classes"
    if splits.train.vector_length is not None:
        return f"vectors of length {splits.train.vector_length}"
    if not names:
        return f"labels {labels.min()} to {labels.max()}, without names"
    more = ", ..." if len(names) > _SHOWN else ""
    return f"{len(names)} classes: {', '.join(names[:_SHOWN])}{more}"
