"""`Codec`: images to an archive, and back, by a flow."""

from __future__ import annotations

import io
import operator
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np
from torch import Tensor

from mixerflow.compression import held
from mixerflow.compression.archive import Archive, Source
from mixerflow.compression.coded import Decoded, Lost, OnProgress, Part, Totals, Watch
from mixerflow.compression.decoding import decoded_parts, require_arithmetic, require_same
from mixerflow.compression.encoding import Encoder, header_of, sections
from mixerflow.compression.engine import Engine
from mixerflow.compression.given import Given, context_of
from mixerflow.compression.lowering import program_of
from mixerflow.compression.program import Program
from mixerflow.compression.writing import ArchiveWriter
from mixerflow.core import Flow
from mixerflow.errors import ConfigError
from mixerflow.processes import cores
from mixerflow.runs.files import replacing, writing
from mixerflow.runs.weights import Which
from mixerflow.temporary import sweep

_SHOWN = 100  # characters of a value that an error has


class Codec:
    """Lossless compression of images by a flow: `compress` to a file, `encode` to bytes, `decode`.

    An image ``(C, *spatial)`` takes about ``-log2 p(x)`` bits, as `mixerflow evaluate` has it, and
    an archive decodes to the same pixels on every machine.

    Args:
        run: a run folder or published weights; a name, ``weights/NAME`` or ``hf://OWNER/NAME``; or
            a flow.
        k: bits below a pixel, 1 to 24; by default the smallest of 4 to 20 that costs at most 0.1 %
            more than 24 does on a sample of the images, and 12 for less than 2,000 images.
        block: images of a block, which is decoded as a whole; by default so many that those at its
            end, which the flow does not code, cost less than 0.1 %, or 0.3 % where there would be
            fewer than four blocks; less than 2,000 images are one block.
        threads: blocks at a time; by default the number of cores. The archive is the same.
        embed: put the weights, rounded to 16 bits, into archives.
        which: the checkpoint of a run.
        average: take the averaged weights rather than the raw ones.
        verify: decode each block of an archive again after it was coded, and compare its pixels:
            twice the time. A difference is a ResourceError, and there is no archive.

    Raises:
        ConfigError: a flow that the codec does not take, or a setting that cannot be.
        CheckpointError: no weights there, or damaged ones.
    """

    def __init__(
        self,
        run: Path | str | Flow,
        *,
        k: int | None = None,
        block: int | None = None,
        threads: int | None = None,
        embed: bool = False,
        which: Which = "best",
        average: bool = True,
        verify: bool = False,
    ) -> None:
        k, block = _whole(k, "k", 24), _whole(block, "block")
        threads = _whole(threads, "threads", 1024)
        if isinstance(run, Flow):
            if embed:
                what, remedy = (
                    "a flow has no card to put inside",
                    "give a run, or published weights",
                )
                raise ConfigError(what, "embed", remedy)
            weights = held.of_flow(run)
        else:
            weights = held.of_run(run, which=which, average=average, embed=embed)
        self._set(weights, k, block, threads, verify=verify)

    def _set(
        self,
        weights: held.Held,
        k: int | None,
        block: int | None,
        threads: int | None,
        *,
        verify: bool = False,
    ) -> None:
        self.k, self.block, self.threads = k, block, threads or cores()
        self.verify = verify
        self._held, self._engines, self._lock = weights, dict[int, Engine](), threading.Lock()

    @classmethod
    def of(
        cls,
        archive: Source | Archive,
        weights: Path | str | None = None,
        *,
        threads: int | None = None,
    ) -> Codec:
        """Return the codec that decodes an archive.

        Args:
            archive: the file, or all its bytes.
            weights: a run folder, or published weights, that it was made with; by default those
                inside, or those that it names.
            threads: blocks at a time.

        Raises:
            CheckpointError: no such weights here, or others.
            DataError: no archive, or a damaged one.
        """
        if not isinstance(archive, Archive):
            with Archive(archive) as opened:
                return cls.of(opened, weights, threads=threads)
        codec = cls.__new__(cls)
        threads = _whole(threads, "threads", 1024)
        codec._set(held.of_archive(archive, weights), archive.header.k, None, threads)
        return codec

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Codec cannot be copied or pickled: make another one of the same weights")

    @property
    def flow(self) -> Flow:
        """The flow."""
        return self._held.flow

    @property
    def metadata(self) -> dict[str, object]:
        """The content of the run's ``run.json``, or of the card."""
        return self._held.metadata

    @cached_property
    def program(self) -> Program:
        """The flow as operations on integers."""
        return program_of(self.flow)

    def engine(self, k: int) -> Engine:
        """Return the native codec for a k."""
        with self._lock:
            if k not in self._engines:
                self._engines[k] = Engine(self.program, k)
            return self._engines[k]

    def context_of(
        self, labels: np.ndarray | None, classes: Sequence[str] = ()
    ) -> tuple[np.ndarray | None, str]:
        """Return the classes ``(N,)`` that labels are for the flow, and a line that says so.

        Names of classes are looked up among the run's. Labels without names are its classes if all
        of them are, or -1 for unknown ones. None stands for no classes: the likeliest are taken.
        """
        data: Any = self.metadata["data"]
        return context_of(self.flow, data["classes"], labels, classes)

    def compress(
        self,
        images: np.ndarray,
        to: Path | str,
        *,
        labels: np.ndarray | None = None,
        names: Sequence[str] = (),
        classes: Sequence[str] = (),
        context: np.ndarray | None = None,
        on_progress: OnProgress | None = None,
    ) -> Totals:
        """Write images ``(N, *shape)`` to an archive, which is there when it is whole, or not.

        Args:
            images: integers, perhaps a memory map; a few blocks of them are in memory.
            to: the file.
            labels: kept with the images: integers ``(N,)``, or floats ``(N, K)``, in float32.
            names: kept with the images, as paths with `/`.
            classes: names of the labels 0, 1, ..., kept too.
            context: classes ``(N,)`` that a class-conditional flow is given, -1 for unknown ones,
                which become the likeliest; by default the labels, as `context_of` has them.
            on_progress: see `OnProgress`; what it raises stops the work, and there is no file.

        Raises:
            DataError: images that the flow does not take, or labels and names that do not fit.
            ResourceError: the file cannot be written, or a block does not decode (`verify`).
        """
        path = Path(to)
        given = self._checked(Given.of(images, labels, names, classes, context))
        with writing(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            sweep(path.parent)
            with replacing(path, named=True) as file:
                return self._write(file, given, on_progress)

    def encode(
        self,
        images: np.ndarray | Tensor,
        labels: np.ndarray | Tensor | None = None,
        names: Sequence[str] = (),
    ) -> bytes:
        """Return an archive of images ``(N, *shape)``; the arguments are those of `compress`."""
        buffer = io.BytesIO()
        self._write(buffer, self._checked(Given.of(images, labels, names)), None)
        return buffer.getvalue()

    def decode(
        self,
        archive: Source,
        start: int = 0,
        stop: int | None = None,
        *,
        keep_going: bool = False,
    ) -> Decoded:
        """Return the images of an archive from number `start` to before `stop`.

        Args:
            archive: the file, or all its bytes.
            start: the first image.
            stop: the number after the last one; by default all.
            keep_going: leave out the images of damaged blocks, which `Decoded.lost` names.

        Raises:
            DataError: no archive, a damaged one or block, images that it does not have, or one that
                this machine's arithmetic does not decode.
            CheckpointError: an archive of other weights.
        """
        with Archive(archive) as opened:
            parts = []
            for part in self.parts(opened, start, stop):
                if isinstance(part, Lost) and not keep_going:
                    raise part.error(opened.where)
                parts.append(part)
            return Decoded.of(parts, opened.header)

    def parts(
        self,
        archive: Archive,
        start: int = 0,
        stop: int | None = None,
        on_progress: OnProgress | None = None,
    ) -> Iterator[Part | Lost]:
        """Yield the decoded blocks of an open archive, and those that are lost; see `decode`."""
        header, where = archive.header, archive.where
        require_same(header, self.program, where)
        engine = self.engine(header.k)
        require_arithmetic(header, engine, where)
        stop = archive.images if stop is None else stop
        return decoded_parts(archive, engine, start, stop, self.threads, Watch(on_progress))

    def _checked(self, given: Given) -> Given:
        given.check(self.flow)
        if given.context is not None:
            return given
        return replace(given, context=self.context_of(given.labels, given.classes)[0])

    def _write(self, file: BinaryIO, given: Given, on_progress: OnProgress | None) -> Totals:
        encoder = Encoder(
            self.flow, self.engine, self.k, self.block, self.threads, verify=self.verify
        )
        watch = Watch(on_progress)
        k, block = encoder.settings(given, watch)
        files, program = self._held.files, self.program.sha256
        header = header_of(self.flow, self.engine(k), program, k, self._held.said, given)
        writer = ArchiveWriter(file, header, files)
        return encoder.write(writer, given, block, sections(files), watch)


def _whole(value: int | None, name: str, most: int | None = None) -> int | None:
    """Return a setting as a whole number; a ConfigError unless it is one from 1 on."""
    if value is None:
        return None
    try:
        number = 0 if isinstance(value, (bool, np.bool_)) else operator.index(value)
    except TypeError:
        number = 0
    if not 1 <= number <= (most or number):
        remedy = f"give 1 to {most:,}" if most else "give at least 1"
        whole = "" if type(value) is int else ", a whole number"
        raise ConfigError(f"{value!r}"[:_SHOWN], f"--{name}", f"{remedy}{whole}")
    return number
