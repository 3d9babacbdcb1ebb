"""TensorBoard's event files: curves of all figures, sample grids, and distributions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL.Image import Image

from mixerflow.core import Flow
from mixerflow.errors import ConfigError
from mixerflow.training.parallel import local


class Curves:
    """Writes event files into a folder.

    Args:
        folder: the folder, of this and of earlier parts of a run.
        step: the last step done; what earlier parts wrote of later steps is void.

    Raises:
        ConfigError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path, step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            remedy = "pip install 'mixerflow[tensorboard]'"
            raise ConfigError("TensorBoard is missing", "--train.tensorboard", remedy) from error
        self._writer = SummaryWriter(str(folder), purge_step=step + 1)

    def close(self) -> None:
        """Close the file."""
        self._writer.close()

    def record(self, record: dict[str, Any]) -> None:
        """Add the numbers of a record to their curves, ``KIND/NAME``."""
        for name, value in record.items():
            if isinstance(value, (int, float)) and name != "step":
                self._writer.add_scalar(f"{record['kind']}/{name}", value, record["step"])

    def evaluation(
        self, step: int, flow: Flow, bits_per_dim: np.ndarray, samples: Image | None
    ) -> None:
        """Add what an evaluation knows beside its record.

        Args:
            step: steps done.
            flow: the averaged weights; a histogram shows the Euclidean norm of each parameter that
                no process shards.
            bits_per_dim: of each validation image ``(N,)``, for a histogram.
            samples: a grid of samples, if there is one.
        """
        whole = [p.detach() for p in flow.parameters() if local(p) is p]
        norms = [float(torch.linalg.vector_norm(p.float())) for p in whole]
        self._histogram("weights/norms", np.array(norms), step)
        self._histogram("validation/bits_per_dim_of_images", bits_per_dim, step)
        if samples is not None:
            self._writer.add_image(
                "samples", np.asarray(samples.convert("RGB")), step, dataformats="HWC"
            )

    def _histogram(self, name: str, values: np.ndarray, step: int) -> None:
        finite = values[np.isfinite(values)]
        if len(finite):
            self._writer.add_histogram(name, finite, step)
