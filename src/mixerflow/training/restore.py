"""A flow back from its run folder, or from published weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from mixerflow.core import Flow
from mixerflow.data import Images
from mixerflow.errors import ConfigError, DataError
from mixerflow.training.stored import stored


def device_of(name: torch.device | str) -> torch.device:
    """The device of that name; "auto" is a GPU where there is one.

    Raises:
        ConfigError: this machine has no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda"):
            raise RuntimeError(f"flows run on cpu and cuda, not on {device.type}")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError("no such device here", f"--device {name}", "use cpu") from error
    return device


def load(
    run: Path | str,
    *,
    which: Literal["best", "last"] | int = "best",
    average: bool = True,
    device: torch.device | str = "cpu",
) -> Flow:
    """The flow of a run folder or of published weights, in eval mode.

    Args:
        run: the folder.
        which: the step with the lowest validation bits/dim, the last, or a step's number.
        average: the averaged weights, with which the published figures are made, not the raw ones.
        device: where to put it.

    Raises:
        CheckpointError: no run there, or a damaged one; names the file and what to do.
        ConfigError: a device or checkpoint that there is not.
    """
    if which not in ("best", "last") and not isinstance(which, int):
        raise ConfigError(f"no checkpoint is called {which!r}", "which", "best, last or a step")
    place = device_of(device)
    return stored(Path(run), which=which, average=average).flow(place)


def labels_of(header: dict[str, Any], images: Images) -> np.ndarray:
    """The labels of `images` in the numbering of the run whose ``run.json``, or card, is `header`.

    Raises:
        DataError: images without labels, or with classes that the run does not know.
    """
    if images.labels is None:
        raise DataError("a class-conditional run needs labels", images.dataset_id, "add them")
    known = list(header["data"]["classes"])
    if list(images.classes) == known:
        return images.labels
    unknown = sorted(set(images.classes) - set(known))
    if not images.classes or unknown:
        what = f"classes {list(images.classes)} are not the run's {known}"
        raise DataError(what, images.dataset_id, "name the class folders as in training")
    return np.array([known.index(name) for name in images.classes])[images.labels]
