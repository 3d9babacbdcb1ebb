"""Pictures of which Pillow would change or drop something are refused; harmless ones are read."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mixerflow.data.decode import read_image
from mixerflow.errors import DataError

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (6, 5, 3), dtype=np.uint8)


def tiff(samples: np.ndarray, order: str = "<", **changes: tuple[int, ...]) -> bytes:
    """An uncompressed TIFF of `(H, W, bands)` samples; `changes` are tags named t262 and so on."""
    height, width, bands = samples.shape
    bits = (8 * samples.itemsize,) * bands
    tags = {256: (width,), 257: (height,), 258: bits, 259: (1,), 262: (1 if bands < 3 else 2,)}
    tags |= {273: (0,), 277: (bands,), 278: (height,), 279: (samples.nbytes,)}
    tags |= {int(name[1:]): value for name, value in changes.items()}
    tags = {tag: value for tag, value in sorted(tags.items()) if value}
    pixels = samples.astype(samples.dtype.newbyteorder(order)).tobytes()
    after = 8 + len(pixels) + 2 + 12 * len(tags) + 4
    entries, long = b"", b""
    for tag, values in tags.items():
        values = (8,) if tag == 273 else values
        kind = "H" if tag in (258, 320, 338, 339) else "I"
        packed = struct.pack(f"{order}{len(values)}{kind}", *values)
        if len(packed) > 4:
            long, packed = long + packed, struct.pack(f"{order}I", after + len(long))
        entries += struct.pack(f"{order}HHI", tag, 3 if kind == "H" else 4, len(values))
        entries += packed.ljust(4, b"\0")
    start = b"II*\0" if order == "<" else b"MM\0*"
    start += struct.pack(f"{order}I", 8 + len(pixels)) + pixels
    return start + struct.pack(f"{order}H", len(tags)) + entries + bytes(4) + long


def png(depth: int, kind: int, rows: bytes, width: int, *chunks: tuple[bytes, bytes]) -> bytes:
    def chunk(name: bytes, content: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + crc

    header = (b"IHDR", struct.pack(">IIBBBBB", width, 1, depth, kind, 0, 0, 0))
    parts = (header, *chunks, (b"IDAT", zlib.compress(b"\0" + rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def bmp(bits: int, compression: int, body: bytes, *, size=(2, 2), extra: bytes = b"") -> bytes:
    offset = 14 + 40 + len(extra)
    colors = len(extra) // 4 if bits <= 8 else 0
    header = struct.pack(
        "<IiiHHIIiiII", 40, *size, 1, bits, compression, len(body), 0, 0, colors, 0
    )
    return struct.pack("<2sIHHI", b"BM", offset + len(body), 0, 0, offset) + header + extra + body


def saved(image: Image.Image, kind: str, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def mpo(second: Image.Image, kind: int, xmp: bytes = b"") -> bytes:
    """A JPEG of 48 x 32 with a second picture of this kind behind it."""
    first = Image.fromarray(np.arange(32 * 48, dtype=np.uint32).reshape(32, 48).astype(np.uint8))
    second.encoderinfo = {"xmp": xmp} if xmp else {}
    content = saved(first, "MPO", save_all=True, append_images=[second])
    entry = content.index(struct.pack("<L", 0x030000), content.index(b"0100")) + 16
    assert content[entry : entry + 4] == bytes(4)
    return content[:entry] + struct.pack("<L", kind) + content[entry + 4 :]


GREY8, GREY16 = RGB[..., :1], RGB[..., :1].astype(np.uint16) * 200
EIGHT_BITS = tuple(257 * (n % 256) for n in range(768))
PALETTE = tuple(RNG.integers(0, 65536, 768).tolist())
RED_BLUE = bytes([0, 0, 255, 0, 255, 0, 0, 0])
LOST = {
    "signed": (tiff(GREY8, t339=(2,)), "signed"),
    "signed 16": (tiff(GREY16, t339=(2,)), "signed"),
    "signed 16 big-endian": (tiff(GREY16, ">", t339=(2,)), "signed"),
    "float": (tiff(GREY8.astype(np.float32), t339=(3,)), "floating"),
    "two bands": (tiff(RGB[..., :2], t338=(0,)), "2 samples a pixel of which 1"),
    "four bands": (tiff(np.dstack([RGB, GREY8]), t338=(0,)), "4 samples a pixel of which 3"),
    "five bands": (tiff(np.dstack([RGB, RGB[..., :2]]), t338=(0, 0)), "5 samples"),
    "six bands big-endian": (tiff(np.dstack([RGB, RGB]), ">", t338=(0, 0, 0)), "6 samples"),
    "alpha and a band": (tiff(np.dstack([RGB, RGB[..., :2]]), t338=(2, 0)), "5 samples"),
    "16-bit colour": (tiff(RGB.astype(np.uint16)), "cut to 8"),
    "white is 0": (tiff(GREY16, t262=(0,)), "white as 0"),
    "12 bits": (tiff(np.zeros((4, 3, 1), np.uint8), t256=(2,), t258=(12,)), "12 bits"),
    "no photometric": (tiff(GREY8, t262=()), "black or white"),
    "16-bit palette": (tiff(GREY8, t262=(3,), t320=PALETTE), "palette of 16 bits"),
    "preview first": (tiff(RGB, t254=(1,)), "preview"),
    "raw photograph": (tiff(RGB, t50706=(1,)), "preview"),
    "sub-picture": (tiff(RGB, t330=(8,)), "sub-directory"),
    "volume": (tiff(RGB, t32997=(2,)), "2 slices"),
    "16-bit PNG": (png(16, 2, bytes(range(6)), 1), "cut to 8"),
    "16-bit PNG with alpha": (png(16, 6, bytes(range(8)), 1), "cut to 8"),
    "16-bit grey PNG with alpha": (png(16, 4, bytes(range(4)), 1), "cut to 8"),
    "transparent level": (png(16, 0, b"\1\2\3\4", 2, (b"tRNS", b"\3\4")), "transparency in 16"),
    "palette too short": (png(8, 3, b"\0\5", 2, (b"PLTE", bytes(6))), "colour 5 of a palette"),
    **{
        f"{kind} up to {top}": (f"{kind} 1 1 {top}\n".encode() + b"1 1 1 ", str(top))
        for kind in ("P2", "P3", "P5", "P6")
        for top in (1, 15, 100, 254, 256, 1023, 4095, 65534)
        if not (kind in ("P3", "P6") and top > 255)
    },
    **{
        f"{kind} of 16 bits": (f"{kind} 1 1 {top}\n".encode() + b"1 1 1 ", "cut to 8")
        for kind in ("P3", "P6")
        for top in (256, 65535)
    },
    "two pictures in one PGM": (2 * b"P5 2 1 255\nab", "more than one frame"),
    "two pictures in one PBM": (2 * b"P4 8 1\nb", "more than one frame"),
    "part of a GIF": (
        saved(Image.new("L", (4, 4)), "GIF").replace(b",\0\0\0\0\4\0\4", b",\1\0\0\0\3\0\4"),
        "covers (1, 0, 4, 4)",
    ),
    "fourth channel": (bmp(32, 0, bytes(range(16))), "fourth channel"),
    "BMP that jumps": (bmp(8, 1, b"\0\2\1\1\2\1\0\1", extra=RED_BLUE), "do not fill"),
    "BMP of short lines": (bmp(8, 1, b"\1\1\0\0\2\1\0\1", extra=RED_BLUE), "do not fill"),
    "BMP palette too short": (bmp(8, 0, b"\0\1\0\0\0\7\0\0", extra=RED_BLUE), "colour 7"),
    "stereo pair": (mpo(Image.new("L", (48, 32)), 0x020002), "2 pictures"),
    "panorama": (mpo(Image.new("L", (24, 16)), 0x020001), "2 pictures"),
    "second view": (mpo(Image.new("L", (48, 32)), 0), "2 pictures"),
    "other shape": (mpo(Image.new("L", (16, 16)), 0), "2 pictures"),
    "CMYK": (saved(Image.new("CMYK", (4, 4)), "JPEG"), "mode CMYK"),
    "12-bit JPEG": (b"\xff\xd8\xff\xc0\0\x0b\x0c\0\1\0\1\1\1\x11\0\xff\xd9", "12-bit"),
}  # fmt: skip


@pytest.mark.parametrize("name", LOST)
def test_what_would_be_lost_is_refused_by_name(tmp_path, name):
    content, words = LOST[name]
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(DataError, match=str(tmp_path / "a")) as caught:
        read_image(tmp_path / "a", (255, 255, 255))
    assert words in caught.value.what, str(caught.value)


def grey(*values: int) -> np.ndarray:
    return np.array([[values]], np.uint8)


OPAQUE = np.dstack([RGB, np.full((6, 5, 1), 255, np.uint8)])
FIRST = np.asarray(Image.open(io.BytesIO(mpo(Image.new("L", (24, 16)), 0))))[None]
GAIN_MAP = b'<x xmlns:hdrgm="http://ns.adobe.com/hdr-gain-map/1.0/"/>'
KEPT = {
    "TIFF": (tiff(RGB), RGB.transpose(2, 0, 1)),
    "grey 16": (tiff(GREY16), GREY16.transpose(2, 0, 1)),
    "grey 16 big-endian": (tiff(GREY16, ">"), GREY16.transpose(2, 0, 1)),
    "white is 0 in 8 bits": (tiff(GREY8, t262=(0,)), 255 - GREY8.transpose(2, 0, 1)),
    "4 bits": (png(4, 0, b"\x0f\x80", 4), grey(0, 255, 8 * 17, 0)),
    "2 bits": (png(2, 0, b"\x1b", 4), grey(0, 85, 170, 255)),
    "1 bit": (png(1, 0, b"\x50", 4), grey(0, 255, 0, 255)),
    "8-bit palette as 16": (
        tiff(grey(0, 1).transpose(1, 2, 0), t262=(3,), t320=EIGHT_BITS),
        np.array([[[0, 1]]] * 3, np.uint8).reshape(3, 1, 2),
    ),
    "16-bit PGM": (b"P5 2 1 65535\n\1\2\xff\xff", np.array([[[258, 65535]]], np.uint16)),
    "16-bit plain PGM": (b"P2 2 1 65535\n258 65535\n", np.array([[[258, 65535]]], np.uint16)),
    "PGM with comments": (b"P5\n# one\n2 1\n#two\n255\nab", grey(97, 98)),
    "plain PBM": (b"P1\n2 1\n1 0\n", grey(0, 255)),
    "5-6-5": (
        bmp(16, 3, struct.pack("<2H", 0xF800, 0x07E0), size=(2, 1),
            extra=struct.pack("<III", 0xF800, 0x7E0, 0x1F)),
        np.array([[[255, 0]], [[0, 255]], [[0, 0]]], np.uint8),
    ),
    "unused fourth byte": (
        bmp(32, 0, bytes([1, 2, 3, 9] * 4)),
        np.full((3, 2, 2), 1, np.uint8) * np.array([3, 2, 1], np.uint8)[:, None, None],
    ),
    "BMP of runs": (bmp(8, 1, b"\2\1\0\0\1\0\1\1\0\1", extra=RED_BLUE[:4] + b"\xff\xff\xff\0"),
                    np.array([[[255, 255], [255, 255]], [[0, 255], [255, 255]],
                              [[0, 255], [255, 255]]], np.uint8)),
    "opaque RGBA": (saved(Image.fromarray(OPAQUE), "PNG"), RGB.transpose(2, 0, 1)),
    "lossless WebP": (saved(Image.fromarray(RGB), "WEBP", lossless=True), RGB.transpose(2, 0, 1)),
    "opaque RGBA TIFF": (tiff(OPAQUE, t338=(2,)), RGB.transpose(2, 0, 1)),
    "opaque premultiplied": (tiff(OPAQUE, t338=(1,)), RGB.transpose(2, 0, 1)),
    "opaque LA": (png(8, 4, b"\7\xff\x09\xff", 2), grey(7, 9)),
    "opaque palette": (
        png(8, 3, b"\0\1", 2, (b"PLTE", b"abcdef"), (b"tRNS", b"\xff\xff\x00")),
        np.array([[[97, 100]], [[98, 101]], [[99, 102]]], np.uint8),
    ),
    "no pixel of the transparent level": (png(8, 0, b"\7\x09", 2, (b"tRNS", b"\0\1")), grey(7, 9)),
    "no pixel of it in 16 bits": (
        png(16, 0, b"\1\2\3\4", 2, (b"tRNS", b"\0\1")),
        np.array([[[258, 772]]], np.uint16),
    ),
    "preview": (mpo(Image.new("L", (24, 16)), 0), FIRST),
    "thumbnail": (mpo(Image.new("L", (30, 30)), 0x010001), FIRST),
    "gain map": (mpo(Image.new("L", (12, 12)), 0, GAIN_MAP), FIRST),
    "gain map of the new standard": (mpo(Image.new("L", (24, 16)), 0x050000), FIRST),
}  # fmt: skip


@pytest.mark.parametrize("name", KEPT)
def test_what_loses_nothing_is_read(tmp_path, name):
    content, expected = KEPT[name]
    (tmp_path / "a").write_bytes(content)
    array = read_image(tmp_path / "a")
    assert array.dtype == expected.dtype
    assert np.array_equal(array, expected)


def test_a_tiff_is_turned_once(tmp_path):
    (tmp_path / "a").write_bytes(tiff(GREY8, t274=(6,)))  # a quarter turn to the right
    assert np.array_equal(read_image(tmp_path / "a")[0], np.rot90(GREY8[..., 0], -1))


def test_remarks_of_the_decoder_do_not_leak(tmp_path, recwarn, capfd):
    exif = b"Exif\0\0II*\0\x08\0\0\0\xff\xff"
    image = Image.fromarray(RGB)
    Path(tmp_path / "a").write_bytes(saved(image, "JPEG", exif=exif))
    assert read_image(tmp_path / "a").shape == (3, 6, 5)
    animation = (b"acTL", struct.pack(">II", 0, 0))
    (tmp_path / "a").write_bytes(png(8, 0, b"ab", 2, animation))
    with pytest.raises(DataError, match="Invalid APNG"):
        read_image(tmp_path / "a")
    (tmp_path / "a").write_bytes(tiff(GREY8, t277=(65535,)))
    with pytest.raises(DataError, match="samples per pixel"):
        read_image(tmp_path / "a")
    assert not recwarn.list and capfd.readouterr() == ("", "")
