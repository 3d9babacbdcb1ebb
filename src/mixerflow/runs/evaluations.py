"""How a run's weights are scored on images, and the draws that a long evaluation keeps."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from mixerflow.caches import source_sha256, with_digest, without_digest
from mixerflow.core import Flow, as_tensor
from mixerflow.data import Images
from mixerflow.errors import DataError, ResourceError
from mixerflow.evaluate import (
    Bits,
    Draws,
    Passes,
    bits,
    exact_cost,
    passes_for,
    require_small,
)
from mixerflow.processes import SINGLE, Processes, first_to_report
from mixerflow.runs.files import require_writable, write_atomically, writing
from mixerflow.runs.fitting import labels_of, require_levels
from mixerflow.runs.reading import read_file
from mixerflow.runs.weights import Weights
from mixerflow.temporary import sweep
from mixerflow.terminal import tell

_SECONDS_BETWEEN_SAVES = 30.0


@dataclass(frozen=True)
class Evaluator:
    """Images to score weights on, and how.

    Attributes:
        images: images of the model's shape.
        split: name of the part of their data.
        seed: seed of the noise.
        batch: images at a time.
        device: name of the device.
        importance_samples: draws of noise an image.
        probes: estimates an image, where the density is an estimate; None is the default of `bits`.
        on_batch: called with the number of draws or probes done, one an image.
        processes: processes that share the images.
    """

    images: Images
    split: str
    seed: int = 0
    batch: int = 128
    device: str = "cpu"
    importance_samples: int = 1
    probes: int | None = None
    on_batch: Callable[[int], None] | None = None
    processes: Processes = SINGLE

    def passes(self, flow: Flow) -> int:
        """Return the passes an image: K draws, or R probes.

        Raises:
            ConfigError: so many draws, or probes, mean nothing for the flow.
        """
        return passes_for(flow, self.importance_samples, self.probes)[1]

    def score(self, flow: Flow, metadata: dict[str, Any], draws: Passes | None = None) -> Bits:
        """Return the bits/dim of a flow whose run has this metadata; go on with `draws` if given.

        Raises:
            DataError: images of another shape, or without the labels that the flow needs.
        """
        self._require_fit(flow)
        images = self.images
        return bits(
            flow,
            images.pixels,
            labels=self._labels(flow, metadata),
            batch=self.batch,
            importance_samples=self.importance_samples,
            probes=self.probes,
            seed=self.seed,
            dataset_id=images.dataset_id,
            split=self.split,
            draws=draws,
            on_batch=self.on_batch,
            processes=self.processes,
        )

    def exactly(self, flow: Flow, metadata: dict[str, Any]) -> tuple[Flow, Evaluator]:
        """Return `Flow.exact` of a flow, and an evaluator with a batch that its memory allows.

        Raises:
            ConfigError: exact log-dets are beyond reason, see `mixerflow.evaluate.exact`.
            DataError: images that `score` refuses.
        """
        self._require_fit(flow)
        labels = self._labels(flow, metadata)
        context = None if labels is None else as_tensor(labels[:1])
        cost = exact_cost(flow, as_tensor(self.images.pixels[:1]), context)
        require_small(cost)
        return flow.exact(), replace(self, batch=min(self.batch, cost.batch))

    def kept(self, flow: Flow, weights: Weights, folder: Path) -> KeptDraws:
        """Return the draws or probes of these weights, and of their flow, that `folder` keeps.

        Raises:
            ConfigError: so many mean nothing for the flow.
        """
        kind, passes = passes_for(flow, self.importance_samples, self.probes)
        labels = self._labels(flow, weights.metadata)
        key = {
            "format": 1,
            "code_sha256": source_sha256(),  # other code may draw otherwise
            "model": weights.metadata["model"],
            "density": flow.density,  # of one model there are an estimate and an exact one
            "weights_sha256": weights.sha256,
            "images_sha256": self.images.fingerprint(),
            "labels_sha256": None if labels is None else _sha256(labels.tobytes()),
            "dataset_id": self.images.dataset_id,
            "split": self.split,
            "images": len(self.images),
            "seed": self.seed,
        }
        return KeptDraws(folder, key, len(self.images), passes, self.processes, kind=kind)

    def _require_fit(self, flow: Flow) -> None:
        images = self.images
        if images.shape != flow.shape:
            what = f"images are {images.shape}, the run's are {flow.shape}"
            raise DataError(what, images.dataset_id, "give images of that shape")
        require_levels(flow, images)

    def _labels(self, flow: Flow, metadata: dict[str, Any]) -> np.ndarray | None:
        return None if flow.context_net is None else labels_of(flow, metadata, self.images)


class KeptDraws:
    """The draws of a long evaluation, or its probes, and the files that let a stopped one go on.

    Each process writes a file ``draws-KEY-K-PROCESS``. KEY stands for all that a draw depends on,
    not for K, the number that was asked for. An evaluation goes on with what the files of its key
    hold, however many processes wrote them, if their K is not larger than its own. Files of a
    larger K are left alone: they may have too many draws for this figure, and their own command
    goes on with them.

    A file begins with the SHA-256 of its key, its K and its content. One of another SHA-256 is left
    out, with a line on stderr.

    Where the folder cannot be written, or the disk is full, the draws are in memory only, and a
    warning says so: a figure is not lost because it cannot be kept.

    Args:
        folder: where the files are; made if need be.
        key: all that a draw depends on, for JSON.
        images: number of images.
        importance_samples: K; of an estimate, its number of probes.
        processes: the processes that share the images.
        kind: what is kept of them: `Draws`, or `Estimates`.

    Attributes:
        draws: what the files held, equal in all processes; `bits` advances it.
        lost: why this process keeps no draws; empty while it does.
    """

    def __init__(
        self,
        folder: Path,
        key: dict[str, Any],
        images: int,
        importance_samples: int,
        processes: Processes = SINGLE,
        *,
        kind: type[Passes] = Draws,
    ) -> None:
        self._folder, self._asked = folder, importance_samples
        self._key = json.dumps(key, sort_keys=True)
        self._name = f"draws-{_sha256(self._key.encode())[:16]}"
        self._path = folder / f"{self._name}-{importance_samples}-{processes.rank}"
        self.lost = ""
        with self._keeping():
            require_writable(self._path)
            with writing(folder):
                folder.mkdir(parents=True, exist_ok=True)
            if processes.main:
                sweep(folder)
        self.draws = kind.none(images)
        read = (self._read(path, asked) for path, asked in self._files().items())
        found = [draws for draws in read if draws is not None]
        for part in processes.collect(found):  # another machine may see other files
            for draws in part:
                self.draws.merge(draws)
        self._saved_at = time.monotonic()

    def save(self) -> None:
        """Write this process's file, unless that has failed before."""
        if self.lost:
            return
        data = safetensors.numpy.save(self.draws.arrays())
        with self._keeping(), writing(self._folder, lambda: len(data)):
            write_atomically(self._path, with_digest(data, self._seal(self._asked)))
        self._saved_at = time.monotonic()

    def save_sometimes(self) -> None:
        """Write it if the last time is long ago."""
        if time.monotonic() - self._saved_at >= _SECONDS_BETWEEN_SAVES:
            self.save()

    def finish(self) -> None:
        """Remove the files that this evaluation went on from: the figure is known.

        For K > 1 the file of process 0, which has all draws, stays: a larger K goes on from it.
        """
        kept = self._folder / f"{self._name}-{self._asked}-0" if self._asked > 1 else None
        with contextlib.suppress(OSError):  # what cannot be removed does no harm
            for path in self._files():
                if path != kept:
                    path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _keeping(self) -> Iterator[None]:
        """Go on without files after a failure to write one."""
        try:
            yield
        except ResourceError as error:
            self.lost = str(error)
            message = f"no draws are kept, so the evaluation cannot go on after a stop: {error}"
            if first_to_report(message):
                warnings.warn(message, stacklevel=4)

    def _files(self) -> dict[Path, int]:
        """The files of this key whose K is not larger, each with its K."""
        names = re.compile(rf"{self._name}-(\d+)-\d+")
        try:
            paths = sorted(self._folder.iterdir())
        except OSError:
            return {}
        matches = ((path, names.fullmatch(path.name)) for path in paths)
        asked = {path: int(match[1]) for path, match in matches if match}
        return {path: number for path, number in asked.items() if number <= self._asked}

    def _read(self, path: Path, asked: int) -> Passes | None:
        try:
            data = without_digest(read_file(path), self._seal(asked))
        except OSError as error:
            return _ignore(path, f"cannot be read, {error.strerror}")
        if data is None:
            return _ignore(path, "SHA-256 differs")
        try:
            arrays = safetensors.numpy.load(data)
        except Exception:  # whoever knows the key can write a digest: the content may be anything
            return _ignore(path, "no draws")
        kinds = {name: (each.shape, each.dtype) for name, each in self.draws.arrays().items()}
        if {name: (each.shape, each.dtype) for name, each in arrays.items()} != kinds:
            return _ignore(path, "no draws of these images")
        return type(self.draws)(**arrays)

    def _seal(self, asked: int) -> bytes:
        return f"{self._key} {asked} ".encode()


def _ignore(path: Path, why: str) -> None:
    line = f"{path}: {why}: its draws are drawn again"
    if first_to_report(line):
        tell(line)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
