"""TensorBoard's event files, for those who want them."""

from __future__ import annotations

from typing import Any

from mixerflow.errors import ConfigError
from mixerflow.runs.folder import RunFolder


class Scalars:
    """Writes each record's numbers as scalars below ``RUN/tensorboard``.

    Args:
        folder: the run folder; without one nothing is written.
        step: the step that the run goes on from: later events of an earlier attempt are dropped.
        enabled: False makes this do nothing.

    Raises:
        ConfigError: TensorBoard is not installed.
    """

    def __init__(self, folder: RunFolder | None, step: int, *, enabled: bool) -> None:
        self._writer = None
        if not enabled or folder is None:
            return
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            remedy = "pip install 'mixerflow[tensorboard]'"
            raise ConfigError("TensorBoard is missing", "--train.tensorboard", remedy) from error
        self._writer = SummaryWriter(str(folder.path / "tensorboard"), purge_step=step)

    def write(self, record: dict[str, Any]) -> None:
        """One point on each curve of the record's kind."""
        if self._writer is not None:
            for name, value in record.items():
                if isinstance(value, (int, float)) and name != "step":
                    self._writer.add_scalar(f"{record['kind']}/{name}", value, record["step"])

    def close(self) -> None:
        """Flush and end."""
        if self._writer is not None:
            self._writer.close()
