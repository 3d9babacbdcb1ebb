"""A codec of tests, which needs no compiler: zlib in the place of the native one."""

import hashlib
import zlib

import numpy as np
from PIL import Image

from helpers import flow_of, settings
from mixerflow.compression import codec
from mixerflow.compression.engine import Block
from mixerflow.compression.program import Program
from mixerflow.data import load
from mixerflow.errors import DataError
from mixerflow.training import train


class ZlibEngine:
    """Codes a block with zlib, words of 4 bytes; the last k / 8 images are the first ones."""

    def __init__(self, program, k=16):
        self.program, self.k = program, k
        self.calls = []

    @property
    def fingerprint(self):
        return 0x0123456789ABCDEF + self.k

    def encode(self, pixels, classes=None, *, on_progress=None, trial=False):
        assert (classes is None) == (not self.program.classes)
        kept = b"" if classes is None else classes.astype("<i4").tobytes()
        data = zlib.compress(kept + pixels.astype("<u2").tobytes())
        data = len(data).to_bytes(4, "little") + data + bytes(-len(data) % 4)
        initial = min(self.k // 8, len(pixels))
        if on_progress is not None:
            on_progress(len(pixels))
        coded = len(pixels) - initial
        bits = {"flow_bits": 100.0 * coded * (1 + 2.0**-self.k), "initial_bits": 200.0 * initial}
        each = np.full(len(pixels), 100.0 * (1 + 2.0**-self.k))
        each[coded:] = -1
        return Block(data, initial, each, {"plain": 0.0, **bits})

    def decode(self, payload, images, initial, classes=None, *, on_progress=None):
        size = 2 * images * int(np.prod(self.program.shape))
        size += 0 if classes is None else 4 * images
        try:
            inflater = zlib.decompressobj()
            raw = inflater.decompress(payload[4 : 4 + int.from_bytes(payload[:4], "little")], size)
        except zlib.error as error:
            raise DataError("the words are not of this program") from error
        if len(raw) != size or not inflater.eof:
            raise DataError("the words are not of this program")
        if classes is not None and raw[: 4 * images] != classes.astype("<i4").tobytes():
            raise DataError("the words are not of this program")
        pixels = np.frombuffer(raw[0 if classes is None else 4 * images :], "<u2")
        return pixels.reshape(images, *self.program.shape)


def program_of(flow):
    """A program that is known by the flow's weights alone."""
    state = b"".join(t.cpu().numpy().tobytes() for t in flow.state_dict().values())
    words = np.frombuffer(hashlib.sha256(state).digest(), np.int32)
    classes = 0 if flow.context_net is None else flow.context_net.num_embeddings
    return Program(words, np.zeros(1), tuple(flow.shape), flow.levels, classes)


def use(monkeypatch):
    """Let `Codec` code with zlib."""
    monkeypatch.setattr(codec, "Engine", ZlibEngine)
    monkeypatch.setattr(codec, "program_of", program_of)


def trained(where):
    """A run of a few steps on images of two classes, "0" and "cat", in a folder beside it."""
    rng = np.random.default_rng(0)
    for name in ("0", "cat"):
        (where / "images" / name).mkdir(parents=True)
        for i in range(10):
            pixels = np.sort(rng.integers(0, 256, 16).astype(np.uint8)).reshape(4, 4)
            Image.fromarray(pixels).save(where / "images" / name / f"{i}.png")
    given = load(where / "images").train
    train(flow_of(), given, validation=given, out=where / "run", config=settings(steps=2))
    return where / "run"
