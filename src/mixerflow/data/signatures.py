"""What a file is, by its first bytes; a name decides only where these say nothing."""

from __future__ import annotations

import functools
import mimetypes
import os
import re
from pathlib import Path

from PIL import Image

READ_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""The formats that are read, in Pillow's names; PPM is PBM, PGM and PPM."""

READ_ENDINGS = frozenset(
    ".png .jpg .jpeg .jpe .jfif .webp .bmp .gif .tif .tiff .pbm .pgm .ppm .pnm".split()
)
"""Usual endings of these formats; a file of such a format is read under any name."""

HEAD = 256
"""Bytes that `sniff` reads, and that tell a format."""
_BYTES = os.O_RDONLY | getattr(os, "O_BINARY", 0)  # else Windows would read text

# A raw photograph starts as a TIFF file whose first page is a preview.
_RAW = frozenset(
    ".3fr .arw .cr2 .cr3 .crw .dcr .dng .erf .fff .iiq .k25 .kdc .mef .mos .mrw .nef .nrw .orf"
    " .pef .raf .raw .rw2 .rwl .sr2 .srf .srw .x3f".split()
)
# Image formats that neither Pillow nor Python's table of MIME types has.
_OTHER_ENDINGS = _RAW | frozenset(
    ".ai .astc .avci .avcs .bpg .cin .dcm .dicom .djv .djvu .dpx .exr .flif .hdp .hdr .heics"
    " .heifs .hif .j2c .jbig .jbig2 .jls .jng .jph .jxl .jxr .ktx .ktx2 .kra .mng .nii .ora .pam"
    " .pct .pgx .pic .pict .psb .pvr .rgbe .svg .svgz .vtf .wbmp .wdp .xcf .xcfgz .xwd".split()
)

_SIGNATURES = (
    ("PNG", rb"\x89PNG\r\n\x1a\n"),
    ("JPEG", rb"\xff\xd8\xff"),
    ("WEBP", rb"RIFF....WEBP"),
    ("GIF", rb"GIF8[79]a"),
    # The size of the second header tells a bitmap from a text that begins with BM.
    ("BMP", rb"BM.{12}[\x0c-\x80]\0\0\0"),
    ("PPM", rb"P[1-6]\s+(?:#|\d+\s+(?:#|\d+\s))"),
    ("Canon raw", rb"II\x2a\0.{4}CR|II\x1a\0\0\0HEAPCCDR|....ftypcrx "),
    ("TIFF", rb"II[\x2a\x2b]\0|MM\0[\x2a\x2b]|MM\x2a\0|II\0\x2a"),
    # From here on: formats that are not read.
    ("PFM", rb"P[fF]\s"),
    ("PAM", rb"P7\s"),
    ("JPEG 2000", rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51"),
    ("JPEG XL", rb"\xff\x0a|\0\0\0\x0cJXL \r\n\x87\n"),
    ("JPEG XR", rb"II\xbc"),
    ("AVIF", rb"....ftypavi[fs]"),
    ("HEIF", rb"....ftyp(?:he[iv][cmsx]|mif[12]|msf1|miaf|avc[is]|jpeg)"),
    ("Photoshop", rb"8BPS"),
    ("ICO", rb"\0\0[\x01\x02]\0[\x01-\xff]\0.{3}\0"),
    ("EPS", rb"%!PS(?!-AdobeFont)|\xc5\xd0\xd3\xc6"),
    ("PDF", rb"%PDF-"),
    ("SVG", rb"(?:\xef\xbb\xbf)?\s*(?:<\?xml.*?<svg|<!DOCTYPE svg|<!--.*?<svg|<svg)\b"),
    ("PCX", rb"\n[\0\x02-\x05]\x01[\x01\x02\x04\x08].{60}\0"),
    ("DCX", rb"\xb1\x68\xde\x3a"),
    ("TGA", rb".[\0\x01][\x01-\x03\x09-\x0b].{9}.{4}[\x08\x0f\x10\x18\x20][\0-\x3f]"),
    ("DDS", rb"DDS "),
    ("ICNS", rb"icns"),
    ("SGI", rb"\x01\xda[\0\x01][\x01\x02]"),
    ("Sun raster", rb"\x59\xa6\x6a\x95"),
    ("QOI", rb"qoif"),
    ("FITS", rb"SIMPLE  ="),
    ("OpenEXR", rb"v/1\x01"),
    ("Radiance", rb"#\?(?:RADIANCE|RGBE)"),
    ("WMF", rb"\xd7\xcd\xc6\x9a"),
    ("EMF", rb"\x01\0\0\0.{36} EMF"),
    ("XPM", rb"/\* XPM \*/"),
    ("XBM", rb"\s*#define\s+\w+_width\s+\d+\s+#define\s+\w+_height\s"),
    ("BLP", rb"BLP[12]"),
    ("MSP", rb"DanM|LinS"),
    ("FLI", rb".{4}[\x11\x12]\xaf"),
    ("MNG", rb"\x8a[MJ]NG\r\n"),
    ("BPG", rb"BPG\xfb"),
    ("FLIF", rb"FLIF"),
    ("DjVu", rb"AT&TFORM"),
    ("GIMP", rb"gimp xcf|.{20}GIMP"),
    ("raw photograph", rb"FUJIFILMCCD-RAW|II(?:RO|RS|U\0)|MMOR|\0MRM|FOVb"),
    ("DPX", rb"SDPX|XPDS"),
    ("DICOM", rb".{128}DICM"),
    ("texture", rb"\xabKTX |\x13\xab\xa1\x5c|PVR\x03|VTF\0|FTEX|FTU"),
)
# One expression with a group for each format; the formats' own parentheses are no groups.
_ANY = re.compile(b"|".join(b"(%b)" % pattern for _, pattern in _SIGNATURES), re.DOTALL)


def image_format(head: bytes) -> str | None:
    """Return the name of the image format that a file's first 256 bytes show, or None."""
    match = _ANY.match(head)
    return _SIGNATURES[match.lastindex - 1][0] if match and match.lastindex else None


def sniff(path: str | Path) -> bytes:
    """Return a file's first 256 bytes, or all of a shorter one; OSError if it cannot be read."""
    file = os.open(path, _BYTES)  # for a folder's million files: 5 times as fast as `open`
    try:
        return os.read(file, HEAD)
    finally:
        os.close(file)


def has_image_ending(path: str | Path) -> bool:
    """Whether a name ends as that of an image does, in a format that is read here or not."""
    ending = os.path.splitext(path)[1].lower()
    return bool(ending) and _is_image_ending(ending)


def is_raw_photograph(path: Path) -> bool:
    """Whether a name ends as that of a camera's raw file, whose content may look like TIFF."""
    return path.suffix.lower() in _RAW


@functools.cache
def _is_image_ending(ending: str) -> bool:
    if ending in _OTHER_ENDINGS or ending in Image.registered_extensions():
        return True
    kind, _ = mimetypes.guess_type(f"name{ending}")
    return kind is not None and kind.startswith("image/")
