"""Archives of images that are no longer what was written, some with every digest right."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Mutated:
    """Bytes that are no archive that was written, and whether its images have their places."""

    data: bytes
    placed: bool
    words: str


def _cut(data: bytes, other: bytes, roll: random.Random) -> Mutated:
    length = roll.randrange(len(data))
    return Mutated(data[:length], True, f"cut to {length}")


def _flip(data: bytes, other: bytes, roll: random.Random) -> Mutated:
    flipped, bits = bytearray(data), []
    for _ in range(roll.choice((1, 1, 2, 8))):
        bits.append(roll.randrange(8 * len(data)))
        flipped[bits[-1] // 8] ^= 1 << bits[-1] % 8
    return Mutated(bytes(flipped), True, f"bits {bits}")


def _overwrite(data: bytes, other: bytes, roll: random.Random) -> Mutated:
    place, length = roll.randrange(len(data)), roll.choice((1, 4, 8, 64, 300))
    new = roll.choice((bytes(length), b"\xff" * length, roll.randbytes(length)))
    written = (data[:place] + new + data[place + length :])[: len(data)]
    return Mutated(written, True, f"{length} bytes at {place}")


def _splice(data: bytes, other: bytes, roll: random.Random) -> Mutated:
    first, second = roll.randrange(len(data)), roll.randrange(len(other))
    if roll.random() < 0.5:
        second = min(first, len(other))
    return Mutated(data[:first] + other[second:], False, f"spliced at {first} and {second}")


_NUMBERS = (0, 1, -1, 2, 3, 7, 25, 255, 1 << 16, 1 << 31, (1 << 32) - 1, 1 << 40, 1 << 63)
_OTHERS = ("", "x", "../x", None, True, [], {}, [[1]], 1.5, 1e300)


def _lied(value: Any, roll: random.Random) -> Any:  # noqa: ANN401
    """Return JSON with one value, anywhere in it, that is another one."""
    if isinstance(value, dict) and value and roll.random() < 0.95:
        key = roll.choice(sorted(value))
        if roll.random() < 0.05:
            return {k: v for k, v in value.items() if k != key}
        return value | {key: _lied(value[key], roll)}
    if isinstance(value, list) and value and roll.random() < 0.95:
        place = roll.randrange(len(value))
        return [*value[:place], _lied(value[place], roll), *value[place + 1 :]]
    if type(value) is int and roll.random() < 0.8:
        return roll.choice((value + 1, value - 1, 2 * value, roll.choice(_NUMBERS)))
    return roll.choice((*_NUMBERS, *_OTHERS))


def _sections(data: bytes) -> tuple[list[tuple[bytes, bytes]], list[list[bytes]], dict[str, Any]]:
    """Return the sections before the blocks, the blocks' heads and bodies, and the index."""
    from mixerflow.compression import Archive, layout

    with Archive(data) as archive:
        places, heads = archive._places, archive.index.blocks
    at, sections = layout.START.size, []
    while at < places[0]:
        kind, length, _ = layout.frame_of(data[at : at + layout.FRAME.size])
        at += layout.FRAME.size
        sections.append((kind, data[at : at + length]))
        at += length
    blocks = [
        [data[place : place + layout.HEAD.size], data[place + layout.HEAD.size : place + head.size]]
        for place, head in zip(places, heads, strict=True)
    ]
    end = places[-1] + heads[-1].size
    return sections, blocks, json.loads(data[end + layout.FRAME.size : -layout.END.size])


def _sealed(data: bytes, other: bytes, roll: random.Random) -> Mutated:
    """A lie with every digest and check right: in the JSON, in a head, in a payload, in names."""
    from mixerflow.compression import layout

    sections, blocks, index = _sections(data)
    what = roll.choice(("header", "index", "head", "payload", "side", "order", "card", "model"))
    number, words = roll.randrange(len(blocks)), what
    if what == "card" and len(sections) > 1:
        sections[1] = (b"CARD", json.dumps(_lied(json.loads(sections[1][1]), roll)).encode())
    elif what == "model" and len(sections) > 1:
        model = bytearray(sections[2][1])
        model[roll.randrange(len(model))] ^= 1 << roll.randrange(8)
        sections[2] = _with_model(sections, bytes(model))
    elif what in ("header", "card", "model"):
        sections[0] = (b"HEAD", json.dumps(_lied(json.loads(sections[0][1]), roll)).encode())
    elif what == "index":
        index = _lied(index, roll)
    elif what == "order":
        chosen = [roll.randrange(len(blocks)) for _ in range(roll.randrange(1, 6))]
        blocks = [list(blocks[each]) for each in chosen]
        index = index | {"blocks": [index["blocks"][each] for each in chosen]}
    else:
        words += f" of block {number}"
        blocks[number], row = _block(blocks[number], what, roll)
        if roll.random() < 0.9:
            rows = [*index["blocks"]]
            rows[number] = row
            index = index | {"blocks": rows}
    start = data[: layout.START.size]
    body = start + b"".join(layout.section(kind, content) for kind, content in sections)
    if what == "order":  # the numbers of the images follow the order
        blocks = [_renumbered(each, blocks[:place]) for place, each in enumerate(blocks)]
    body += b"".join(part for block in blocks for part in block)
    tail = layout.section(b"INDX", json.dumps(index).encode())
    size = len(body) + len(tail) + layout.END.size
    return Mutated(body + tail + layout.pack_end(len(body), size), False, words)


def _with_model(sections: list[tuple[bytes, bytes]], model: bytes) -> tuple[bytes, bytes]:
    """Return a section of other weights, which the card and the header have the digest of."""
    from mixerflow.runs.manifest import MODEL, entry

    card = json.loads(sections[1][1]) | {"files": {MODEL: entry(model)}}
    header = json.loads(sections[0][1])
    header["weights"]["sha256"] = entry(model)["sha256"]
    sections[0] = (b"HEAD", json.dumps(header).encode())
    sections[1] = (b"CARD", json.dumps(card).encode())
    return b"MODL", model


def _block(block: list[bytes], what: str, roll: random.Random) -> tuple[list[bytes], list[int]]:
    """Return a block that lies, and its row of the index."""
    from mixerflow.compression import layout

    head, body = layout.BlockHead.unpack(block[0]), block[1]
    payload, side = body[: head.payload], body[head.payload :]
    if what == "payload":
        payload = _words(payload, roll)
    elif what == "side":
        side = _other_bytes(side, roll)
    elif what == "head":
        name = roll.choice(("first", "images", "initial", "names", "labels", "classes", "payload"))
        value = getattr(head, name)
        wrong = roll.choice((value + 1, max(value - 1, 0), 2 * value, 0, roll.randrange(1 << 31)))
        head = head._replace(**{name: wrong})
    if what != "head":
        lengths = {"payload": len(payload)}
        if len(side) != head.side:
            lengths |= {"names": len(side), "labels": 0, "classes": 0}
        digests = {"payload_digest": layout.digest(payload), "side_digest": layout.digest(side)}
        head = head._replace(**lengths, **digests)
    return [head.pack(), payload + side], [*head[1:7]]


def _renumbered(block: list[bytes], before: list[list[bytes]]) -> list[bytes]:
    from mixerflow.compression import layout

    first = sum(layout.BlockHead.unpack(each[0]).images for each in before)
    return [layout.BlockHead.unpack(block[0])._replace(first=first).pack(), block[1]]


def _words(payload: bytes, roll: random.Random) -> bytes:
    """Return other words of the coder."""
    kind = roll.randrange(4)
    if kind == 0:
        return payload[: 4 * roll.randrange(len(payload) // 4)]
    if kind == 1:
        return payload + roll.randbytes(4 * roll.randrange(1, 50))
    if kind == 2:
        return roll.randbytes(4 * roll.randrange(1, len(payload) // 2))
    flipped = bytearray(payload)
    for _ in range(roll.choice((1, 3, 40))):
        flipped[roll.randrange(len(payload))] ^= 1 << roll.randrange(8)
    return bytes(flipped)


def _other_bytes(side: bytes, roll: random.Random) -> bytes:
    if roll.random() < 0.3:
        return roll.randbytes(roll.randrange(1, 200))
    flipped = bytearray(side)
    flipped[roll.randrange(len(side))] ^= 1 << roll.randrange(8)
    return bytes(flipped)


KINDS: tuple[Callable[[bytes, bytes, random.Random], Mutated], ...] = (
    *(_cut, _flip, _overwrite, _splice),
    *(_sealed,) * 4,
)
