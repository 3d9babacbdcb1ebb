"""The run folder: ``run.json``, the metrics, and the lock that lets one process write.

Nothing here imports torch, so that a table of a hundred runs reads quickly.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from mixerflow.errors import CheckpointError, ConfigError, first_line
from mixerflow.runs.files import lock, sealed, unsealed, write_atomically, writing
from mixerflow.runs.kinds import RECORD, STARTED_KINDS, misfit
from mixerflow.runs.reading import LARGEST, parse_json, read_file

FORMAT = 3
"""Format of ``run.json`` and of cards. Whoever changes it adds a run folder to the tests."""


class RunFolder:
    """The folder of one training run.

    Args:
        path: the folder; the first write makes it.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.metadata_path = self.path / "run.json"
        self.metrics_path = self.path / "metrics.jsonl"

    def write_metadata(self, metadata: dict[str, Any]) -> None:
        """Write ``run.json`` whole.

        Args:
            metadata: values that JSON can hold.

        Raises:
            ResourceError: the folder cannot be written.
        """
        data = sealed(metadata)
        with writing(self.path, lambda: len(data)):
            self.path.mkdir(parents=True, exist_ok=True)
            write_atomically(self.metadata_path, data)

    def read_metadata(self) -> dict[str, Any]:
        """Read ``run.json``.

        Raises:
            ConfigError: this is no run folder.
            CheckpointError: ``run.json`` is damaged.
        """
        try:
            metadata = parse_json(read_file(self.metadata_path, largest=LARGEST))
            if not isinstance(metadata, dict):
                raise ValueError("not a JSON object")
        except (FileNotFoundError, NotADirectoryError):
            remedy = "name a folder that training has made"
            raise ConfigError("no run.json, so no run", self.path, remedy) from None
        except OSError as error:
            raise _unreadable(self.metadata_path, error) from error
        except ValueError as error:
            raise self._damaged(first_line(error)) from error
        written = metadata.get("format")
        if written != FORMAT:
            newer = isinstance(written, int) and written > FORMAT
            remedy = "update mixerflow" if newer else "use the mixerflow that wrote it"
            what = f"written in format {written}, this mixerflow reads format {FORMAT}"
            raise CheckpointError(what, self.metadata_path, remedy)
        try:
            metadata = unsealed(metadata)
        except ValueError as error:
            raise self._damaged(str(error)) from error
        if entry := misfit(metadata):
            raise self._damaged(f"its entry {entry} is missing or of another kind")
        return metadata

    def read_started(self) -> dict[str, Any]:
        """Read the ``run.json`` of a run that training began, which has all that one needs.

        It raises what `read_metadata` does.
        """
        metadata = self.read_metadata()
        if missing := misfit(metadata, STARTED_KINDS):
            raise self._damaged(f"it has no entry {missing}")
        return metadata

    def _damaged(self, why: str) -> CheckpointError:
        remedy = (
            "put a copy back, or train again in a new folder; after a change by hand delete its "
            "entry crc32"
        )
        return CheckpointError(f"run.json is damaged ({why})", self.metadata_path, remedy)

    def update(self, changes: dict[str, Any]) -> None:
        """Change some entries of ``run.json``, the status for one, and keep the others.

        Raises:
            ConfigError: this is no run folder.
            CheckpointError: ``run.json`` is damaged.
            ResourceError: the folder cannot be written.
        """
        self.write_metadata(self.read_metadata() | changes)

    def append(self, record: dict[str, Any]) -> None:
        """Add one line to ``metrics.jsonl``.

        Raises:
            ResourceError: the folder cannot be written.
        """
        line = sealed(record, indent=None)
        with writing(self.path, lambda: len(line)), open(self.metrics_path, "ab") as file:
            file.write(line)

    def read_metrics(self) -> list[dict[str, Any]]:
        """Read ``metrics.jsonl``, without a last line that a killed process left half written.

        Raises:
            CheckpointError: another line is damaged.
        """
        return [record for _, record in self._lines()]

    def cut_back(self, step: int) -> None:
        """Remove the records after ``step``, a half-written last line, and later sample grids.

        Args:
            step: records with a greater ``"step"`` are removed; those without one stay.

        Raises:
            CheckpointError: a line other than the last is damaged.
            ResourceError: the folder cannot be written.
        """
        if self.metrics_path.exists():
            kept = [line for line, record in self._lines() if record.get("step", step) <= step]
            data = b"".join(kept)
            with writing(self.path, lambda: len(data)):
                write_atomically(self.metrics_path, data)
        with writing(self.path):
            for grid in (self.path / "samples").glob("step-*.png"):  # of a run that is no more
                number = grid.stem.removeprefix("step-")
                if number.isdecimal() and int(number) > step:
                    grid.unlink(missing_ok=True)

    def _lines(self) -> Iterator[tuple[bytes, dict[str, Any]]]:
        try:
            data = read_file(self.metrics_path)
        except FileNotFoundError:
            return
        except OSError as error:
            raise _unreadable(self.metrics_path, error) from error
        # A record ends with its newline: text after the last one is torn, or empty.
        for number, line in enumerate(data.split(b"\n")[:-1], start=1):
            try:
                record = unsealed(parse_json(line))
                if entry := misfit(record, RECORD):
                    raise ValueError(f"its entry {entry} is of another kind")
            except ValueError as error:
                where = f"{self.metrics_path}, line {number}"
                raise CheckpointError("damaged metrics", where, "delete that line") from error
            yield line + b"\n", record

    def lock(self) -> AbstractContextManager[None]:
        """Make this process the only writer, in a ``with`` block; reading needs no lock.

        Raises:
            InUseError: another process holds the folder.
            ResourceError: it cannot be written.
        """
        return lock(self.path)


def _unreadable(path: Path, error: OSError) -> CheckpointError:
    remedy = "make it readable, or name another run"
    return CheckpointError(f"cannot read ({error.strerror})", path, remedy)
