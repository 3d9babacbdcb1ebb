"""The native codec of a program: blocks of images to bytes, and back."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from mixerflow.compiled import BuildError
from mixerflow.compression.library import library
from mixerflow.compression.program import Program
from mixerflow.errors import ConfigError, DataError, ResourceError

Progress = Callable[[int], None]
"""Is told how many images of a block are done, a few times a second; what it raises stops it."""

_WATCH = 0.1
"""Seconds between two looks at the progress."""
_MEMORY, _PROGRAM, _FULL, _DAMAGED, _STOPPED, _PIXELS = range(1, 7)


class _Report(ctypes.Structure):
    """`CodecReport` of native/codec.h."""

    _counts = ("done", "stop", "initial", "plain", "clamped", "escaped", "trial")
    _bits = (
        "initial_bits", "plain_bits", "flow_bits", "latent_bits", "ideal_latents", "scale_bits",
        "ideal_scales",
    )  # fmt: skip
    _fields_: ClassVar = [
        *((name, ctypes.c_int64) for name in _counts),
        *((name, ctypes.c_double) for name in _bits),
        ("each", ctypes.c_void_p),
    ]

    def counted(self) -> dict[str, float]:
        names = [
            name for name in (*self._counts, *self._bits) if name not in ("done", "stop", "trial")
        ]
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Block:
    """A coded block of images.

    Attributes:
        payload: the coder's words, little-endian.
        initial: images at the block's end that the predictor codes.
        bits: of each image ``(N,)``; -1 for initial images.
        report: what was counted, by name (see `native/codec.h`); bits are sums over the images.
    """

    payload: bytes
    initial: int
    bits: np.ndarray
    report: dict[str, float] = field(default_factory=dict)


class Engine:
    """The native codec of a program, with k bits below a pixel; many threads may use one.

    Args:
        program: what the flow does to integers.
        k: bits of noise below a pixel, 1 to 24. They are no cost, as they are taken from the images
            before; more of them follow the density more closely, and want more images at the
            beginning of a block that the flow does not code.

    Raises:
        ConfigError: there is no C compiler, or it fails; a k or a program that the codec refuses.
    """

    def __init__(self, program: Program, k: int = 16) -> None:
        if not 1 <= k <= 24:
            raise ConfigError(f"k is {k}", "the codec", "give 1 to 24 bits below a pixel")
        self.program, self.k = program, k
        try:
            self._library = library()
        except BuildError as error:
            fix = "install a C compiler, such as gcc, or name one in CC"
            raise ConfigError(f"the codec cannot be built: {error}", "this machine", fix) from error
        self._library.codec_fingerprint.restype = ctypes.c_uint64
        words = np.ascontiguousarray(program.words, np.int32)
        own = [program.levels, math.prod(program.shape), program.classes]
        if len(words) < 7 or [words[1], words[2], words[6]] != own:
            raise ValueError("the program's words are of other images than its shape and levels")
        numbers = np.ascontiguousarray(program.numbers, np.float64)
        self._codec = ctypes.c_void_p()
        error = self._library.codec_open(
            *_array(words), *_array(numbers), ctypes.c_int32(k), ctypes.byref(self._codec)
        )
        if error == _MEMORY:
            raise _no_memory()
        if error:
            what = "its numbers, or units that grow from layer to layer, are out of bounds"
            raise ConfigError(f"the codec cannot take this model: {what}", "the model", "train it")

    def __reduce__(self) -> tuple[type[Engine], tuple[Program, int]]:
        return Engine, (self.program, self.k)  # a copy has a native codec of its own

    def __del__(self) -> None:
        if getattr(self, "_codec", None):
            self._library.codec_close(self._codec)

    @property
    def fingerprint(self) -> int:
        """A 64-bit number of the arithmetic: machines that read each other's files agree on it."""
        return self._library.codec_fingerprint(self._codec)

    def encode(
        self,
        pixels: np.ndarray,
        classes: np.ndarray | None = None,
        *,
        on_progress: Progress | None = None,
        trial: bool = False,
    ) -> Block:
        """Code images ``(N, *shape)`` of integers, with their classes ``(N,)`` if it has any.

        A trial is for the bits alone: its noise is the same for every k, and its payload is none.

        Raises:
            ValueError: images of another shape or range, classes missing or out of range.
        """
        pixels = self._checked(pixels)
        classes = self._classes(classes, len(pixels))
        # a predictor's image may be longer than its pixels, and noise lies on top of the images
        size = self.program.words[2]
        capacity = int(len(pixels) * size + 4 * size + 4096)
        words = np.empty(capacity, np.uint32)
        bits = np.empty(len(pixels))
        report, count = _Report(each=_pointer(bits), trial=trial), ctypes.c_int64()
        error = self._call(
            report,
            on_progress,
            self._library.codec_encode,
            self._codec,
            _pointer(pixels),
            _pointer(classes),
            ctypes.c_int64(len(pixels)),
            *_array(words),
            ctypes.byref(count),
        )
        if error == _MEMORY:
            raise _no_memory()
        if error:
            raise RuntimeError(f"the codec failed to code images: {error}")
        payload = words[: count.value].astype("<u4", copy=False).tobytes()
        return Block(payload, report.initial, bits, report.counted())

    def decode(
        self,
        payload: bytes,
        images: int,
        initial: int,
        classes: np.ndarray | None = None,
        *,
        on_progress: Progress | None = None,
    ) -> np.ndarray:
        """Return the images ``(N, *shape)`` of a block, uint8 up to 256 levels, else uint16.

        Raises:
            DataError: the block is damaged, or of another program.
        """
        damaged = DataError(
            "a block is damaged, or of another model", "the archive", "copy it anew"
        )
        if len(payload) % 4 or len(payload) < 8 or not 0 <= initial <= images:
            raise damaged
        words = np.frombuffer(payload, "<u4").astype(np.uint32)
        pixels = np.empty((images, *self.program.shape), np.uint16)
        error = self._call(
            _Report(),
            on_progress,
            self._library.codec_decode,
            self._codec,
            *_array(words),
            ctypes.c_int64(images),
            ctypes.c_int64(initial),
            _pointer(self._classes(classes, images)),
            _pointer(pixels),
        )
        if error == _MEMORY:
            raise _no_memory()
        if error:
            raise damaged
        return pixels if self.program.levels > 256 else pixels.astype(np.uint8)

    def _call(
        self,
        report: _Report,
        on_progress: Progress | None,
        function: Callable[..., int],
        *arguments: object,
    ) -> int:
        """Call the library; watch it from here if someone wants to be told."""
        if on_progress is None:
            return function(*arguments, ctypes.byref(report))
        with ThreadPoolExecutor(1) as pool:
            running: Future[int] = pool.submit(function, *arguments, ctypes.byref(report))
            try:
                while not wait([running], _WATCH).done:
                    on_progress(report.done)
            except BaseException:
                report.stop = 1
                raise
            on_progress(report.done)
            return running.result()

    def _checked(self, pixels: np.ndarray) -> np.ndarray:
        shape, levels = self.program.shape, self.program.levels
        if pixels.shape[1:] != shape or pixels.dtype.kind not in "bui":
            got = f"{pixels.dtype} {pixels.shape}"
            raise ValueError(f"the codec takes images (N, {', '.join(map(str, shape))}); got {got}")
        if pixels.size and not (pixels.min() >= 0 and pixels.max() < levels):
            raise ValueError(f"the codec takes pixels 0..{levels - 1}")
        return np.ascontiguousarray(pixels, np.uint16)

    def _classes(self, classes: np.ndarray | None, images: int) -> np.ndarray | None:
        if not self.program.classes:
            if classes is not None:
                raise ValueError("this model has no classes, and got some")
            return None
        if classes is None or classes.shape != (images,) or classes.dtype.kind not in "ui":
            raise ValueError(f"this model has classes: give one number for each of {images} images")
        if images and not (classes.min() >= 0 and classes.max() < self.program.classes):
            raise ValueError(f"classes must lie in 0..{self.program.classes - 1}")
        return np.ascontiguousarray(classes, np.int32)


def _pointer(array: np.ndarray | None) -> ctypes.c_void_p:
    return ctypes.c_void_p() if array is None else array.ctypes.data_as(ctypes.c_void_p)


def _array(array: np.ndarray) -> tuple[ctypes.c_void_p, ctypes.c_int64]:
    return _pointer(array), ctypes.c_int64(array.size)


def _no_memory() -> ResourceError:
    return ResourceError("there is no memory for a block", "this machine", "code smaller blocks")
