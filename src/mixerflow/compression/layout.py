"""The bytes of an archive: its sections, the heads of its blocks, and the bounds of all of them.

    start        magic, format
    HEAD         a section: JSON, see `Header`
    CARD, MODL   two sections, of an archive with its weights
    blocks       each a head, a payload, and its names, labels and classes
    INDX         a section: JSON, the lengths in all heads
    end          the index's place, the file's length, magic

A section is a frame, with the length and the digest of what follows, and its content. Numbers are
little-endian. A digest is the first 16 bytes of the SHA-256, the check of a frame or head the first
4 of its own. Nothing is parsed before its digest is right, and no length is believed before it is
within its bound and within the file.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from mixerflow.runs.files import json_text
from mixerflow.runs.kinds import Needs, misfit
from mixerflow.runs.reading import parse_json
from mixerflow.version import __version__

FORMAT = 1
LAST = b"\nMIXEND\x89"
START = struct.Struct("<8sI")
FRAME = struct.Struct("<4sQ16s4s")
HEAD = struct.Struct("<4sQIIQIII16s16s16s4s")
END = struct.Struct("<QQ4s8s")
BLOCK = b"BLCK"
LARGEST_JSON = 16 << 20
"""Bytes of a section of JSON."""
MOST_BLOCKS = LARGEST_JSON // 64
"""Blocks that are written to an archive, whose index then has its bytes; more may be read."""
LARGEST_BLOCK = 64 << 20
"""Bytes of a block's pixels, and of its names."""
LONGEST_NAME = 4096
"""Bytes of an image's name."""
_CHECK, _SPARE = 4, 4096


class Broken(Exception):
    """Bytes that are not what an archive has there; its text is what is wrong, in a few words."""


def digest(data: bytes | memoryview) -> bytes:
    """Return the first 16 bytes of the SHA-256."""
    return hashlib.sha256(data).digest()[:16]


class BlockHead(NamedTuple):
    """What the head of a block says.

    Attributes:
        first: number of its first image.
        images: its images.
        initial: of these, those at its end that the predictor codes.
        payload: bytes of the coder's words.
        names: bytes of the names, compressed; 0 without.
        labels: of the labels.
        classes: of the classes that the flow is given; 0 where these are the labels, or none.
        payload_digest: digest of the payload.
        side_digest: digest of names, labels and classes, as they lie.
        pixels_digest: digest of the decoded pixels, little-endian.
    """

    first: int
    images: int
    initial: int
    payload: int
    names: int
    labels: int
    classes: int
    payload_digest: bytes = b""
    side_digest: bytes = b""
    pixels_digest: bytes = b""

    @property
    def side(self) -> int:
        """Bytes of names, labels and classes."""
        return self.names + self.labels + self.classes

    @property
    def size(self) -> int:
        """Bytes of the whole block."""
        return HEAD.size + self.payload + self.side

    def pack(self) -> bytes:
        """Return the head's bytes."""
        data = HEAD.pack(BLOCK, *self, bytes(_CHECK))[:-_CHECK]
        return data + digest(data)[:_CHECK]

    @classmethod
    def unpack(cls, data: bytes) -> BlockHead:
        """Return what a head says; `Broken` if it is none."""
        if len(data) < HEAD.size:
            raise Broken("cut short")
        if data[:4] != BLOCK or digest(data[:-_CHECK])[:_CHECK] != data[-_CHECK:]:
            raise Broken("its head's check differs")
        return cls(*HEAD.unpack(data)[1:-1])


def section(kind: bytes, content: bytes) -> bytes:
    """Return a section's bytes."""
    frame = FRAME.pack(kind, len(content), digest(content), bytes(_CHECK))[:-_CHECK]
    return frame + digest(frame)[:_CHECK] + content


def frame_of(data: bytes) -> tuple[bytes, int, bytes]:
    """Return kind, length and digest of a section by its frame; `Broken` if it is none."""
    if len(data) < FRAME.size:
        raise Broken("cut short")
    if digest(data[:-_CHECK])[:_CHECK] != data[-_CHECK:]:
        raise Broken("a section's check differs")
    kind, length, content, _ = FRAME.unpack(data)
    return kind, length, content


def pack_end(index: int, length: int) -> bytes:
    """Return the last bytes of an archive of this length, whose index begins there."""
    data = struct.pack("<QQ", index, length)
    return data + digest(data)[:_CHECK] + LAST


def unpack_end(data: bytes) -> tuple[int, int]:
    """Return the index's place and the file's length; `Broken` if these bytes are no end."""
    if len(data) < END.size or data[-8:] != LAST:
        raise Broken("cut short")
    if digest(data[:16])[:_CHECK] != data[16:20]:
        raise Broken("the end's check differs")
    return struct.unpack("<QQ", data[:16])


_WEIGHTS = Needs(
    {
        **dict.fromkeys(("name", "sha256", "source", "revision"), str),
        "checkpoint": (frozenset(("best", "last")), int),
        **dict.fromkeys(("averaged", "embedded"), bool),
    },
    ("name", "sha256", "embedded"),
)
_KINDS = Needs(
    {
        **{"mixerflow": str, "shape": [int], "levels": int, "k": int},
        **dict.fromkeys(("program", "fingerprint"), str),
        **{"weights": _WEIGHTS, "classes": [str], "vectors": int},
    },
    ("mixerflow", "shape", "levels", "k", "program", "fingerprint", "weights", "classes"),
)


@dataclass(frozen=True)
class Header:
    """What an archive says of all its images.

    Attributes:
        shape: of an image, ``(C, *spatial)``.
        levels: of a pixel.
        k: bits below a pixel.
        program: SHA-256 of the flow's program.
        fingerprint: of the arithmetic, 16 digits of base 16.
        weights: their "name", a path or a name; their "sha256"; "checkpoint" and "averaged" of a
            run; and whether they are "embedded".
        classes: names of the labels 0, 1, ...; empty where there are none.
        vectors: length of the labels that are vectors; 0 for numbers of classes.
        mixerflow: version that wrote it.
    """

    shape: tuple[int, ...]
    levels: int
    k: int
    program: str
    fingerprint: str
    weights: dict[str, Any]
    classes: tuple[str, ...] = ()
    vectors: int = 0
    mixerflow: str = __version__

    @property
    def dtype(self) -> np.dtype:
        """Of a pixel: uint8, or uint16 for more than 256 levels."""
        return np.dtype(np.uint8 if self.levels <= 256 else np.uint16)

    @property
    def dims(self) -> int:
        """Numbers of an image."""
        return math.prod(self.shape)

    @property
    def most(self) -> int:
        """Images that a block may have."""
        return LARGEST_BLOCK // (self.dims * self.dtype.itemsize)

    def pack(self) -> bytes:
        """Return it as JSON."""
        return json_text(self.__dict__, indent=None).encode()

    @classmethod
    def unpack(cls, data: bytes) -> Header:
        """Return what verified JSON says; `Broken` if it says what no archive can have."""
        value = _json(data)
        if entry := misfit(value, _KINDS):
            raise Broken(f"its header's {entry} is missing or of another kind")
        known = {name: value[name] for name in cls.__dataclass_fields__ if name in value}
        known |= {"shape": tuple(value["shape"]), "classes": tuple(value["classes"])}
        header = cls(**known)
        sides = header.shape
        if not 1 <= len(sides) <= 8 or min(sides) < 1 or max(sides) > LARGEST_BLOCK:
            raise Broken(f"images of shape {list(sides)[:8]}")
        if not 2 <= header.levels <= 65536 or not 1 <= header.k <= 24:
            raise Broken(f"{header.levels} levels and k = {header.k}")
        if header.most < 1 or not 0 <= header.vectors <= 1 << 16:
            raise Broken("images, or vectors, too large for any block")
        return header


@dataclass
class Index:
    """What an archive's end says: the lengths of its blocks, and what was counted.

    Attributes:
        blocks: heads of all blocks, in order, without digests.
        report: sums of what the codec counted, by name (see `native/codec.h`).
    """

    blocks: list[BlockHead] = field(default_factory=list)
    report: dict[str, float] = field(default_factory=dict)

    @property
    def images(self) -> int:
        """The archive's images."""
        return self.blocks[-1].first + self.blocks[-1].images if self.blocks else 0

    def pack(self) -> bytes:
        """Return it as JSON."""
        blocks = [list(each[1:7]) for each in self.blocks]
        return json_text({"blocks": blocks, "report": self.report}, indent=None).encode()

    @classmethod
    def unpack(cls, data: bytes, header: Header) -> Index:
        """Return what verified JSON says; `Broken` if no archive of this header can have it."""
        value = _json(data)
        kinds = Needs({"blocks": [[int]], "report": dict}, ("blocks", "report"))
        if entry := misfit(value, kinds):
            raise Broken(f"its index's {entry} is missing or of another kind")
        blocks, first = [], 0
        for row in value["blocks"]:
            if len(row) != 6:
                raise Broken("a row of its index has another length")
            blocks.append(within(BlockHead(first, *row), header))
            first += row[0]
        numbers = value["report"].items()
        report = {name: float(n) for name, n in numbers if isinstance(n, (int, float))}
        return cls(blocks, report)


def within(head: BlockHead, header: Header) -> BlockHead:
    """Return a block's head whose numbers are within their bounds; `Broken` if they are not."""
    if not 1 <= head.images <= header.most or not 0 <= head.initial <= head.images:
        raise Broken(f"a block of {head.images:,} images, {head.initial:,} of them at its end")
    words = (head.images + 4) * header.dims + _SPARE  # what the native codec writes at most
    if min(head[:7]) < 0 or head.payload % 4 or head.payload > 4 * words:
        raise Broken(f"a payload of {head.payload:,} bytes for {head.images:,} images")
    if head.side > 4 * LARGEST_BLOCK:
        raise Broken(f"names and labels of {head.side:,} bytes")
    return head


def _json(data: bytes) -> Any:  # noqa: ANN401
    try:
        return parse_json(data)
    except ValueError as error:
        raise Broken(f"no JSON that can be ({error})"[:200]) from error


def totals(blocks: Sequence[BlockHead]) -> dict[str, int]:
    """Return the bytes of all blocks' payloads, names, labels and classes."""
    fields = ("payload", "names", "labels", "classes")
    return {name: sum(getattr(each, name) for each in blocks) for name in fields}
