"""A flow back from its run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch

from mixerflow.core import Flow
from mixerflow.errors import CheckpointError
from mixerflow.models import build, from_spec
from mixerflow.training.checkpoint import Checkpoints
from mixerflow.training.folder import RunFolder


def load(
    run: Path | str,
    *,
    which: Literal["best", "last"] | int = "best",
    average: bool = True,
    device: torch.device | str = "cpu",
) -> Flow:
    """The flow of a run folder, in eval mode.

    Args:
        run: the folder.
        which: the step with the lowest validation bits/dim, the last, or a step's number.
        average: the averaged weights, with which the published figures are made, not the raw ones.
        device: where to put it.

    Raises:
        CheckpointError: no run there, or a damaged one; names the file and what to do.
    """
    folder = RunFolder(Path(run))
    if not folder.config_path.exists():
        raise CheckpointError(
            "no run here", folder.path, "name a folder that `mixerflow train` made"
        )
    spec = folder.read_config().get("model")
    if spec is None:
        remedy = "build the flow yourself and load model.safetensors into it"
        raise CheckpointError("a flow of your own code", folder.path, remedy)
    config, shape = from_spec(spec)
    checkpoints = Checkpoints(folder.path / "checkpoints")
    if which == "best" and not (checkpoints.root / "best").exists():
        which = "last"  # nothing was validated before the run stopped
    checkpoint = checkpoints.load(which, weights_only=True)
    with torch.device("meta"):
        flow = build(config, shape)
    weights = checkpoint.ema if average and checkpoint.ema is not None else checkpoint.model
    flow = flow.to_empty(device="cpu")
    try:
        flow.load_state_dict(weights)
    except RuntimeError as error:
        what = "the weights do not fit run.json's model"
        raise CheckpointError(what, checkpoint.path, "restore run.json from a copy") from error
    return flow.to(device).eval()
