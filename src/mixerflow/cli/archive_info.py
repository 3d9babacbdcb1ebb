"""What ``mixerflow info`` says of an archive of images: its header, and what its bytes are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mixerflow.cli.compress import figures_of, lines_of
from mixerflow.cli.parse import ComputingArguments, parse
from mixerflow.compression import Archive, Totals
from mixerflow.compression.encoding import sections
from mixerflow.runs.files import json_text
from mixerflow.terminal import say


@dataclass(frozen=True, kw_only=True)
class _ArchiveArguments(ComputingArguments):
    """Show what an archive of images says, and what its bytes are."""

    json: bool = False
    """Print JSON."""


def print_archive(path: Path, arguments: list[str]) -> int:
    """Print an archive's header and figures; no image is decoded."""
    given = parse(_ArchiveArguments, arguments, prog="mixerflow info")
    with Archive(path) as archive:
        header, index = archive.header, archive.index
        weights = sections(archive.weights())
        totals = Totals.of(header, index.blocks, archive.size, weights, index.report)
    said = header.weights
    if given.json:
        record = figures_of(totals) | {"header": header.__dict__ | {"shape": list(header.shape)}}
        say(*json_text(record).splitlines())
        return 0
    say(f"{path}: {lines_of(totals)[0]}", *lines_of(totals)[1:])
    size = " x ".join(map(str, (*header.shape[1:][::-1], header.shape[0])))
    kind = f"vectors of {header.vectors} numbers" if header.vectors else ""
    classes = f"{len(header.classes)} classes" if header.classes else kind
    say(f"images of {size}, {header.levels:,} levels{', ' if classes else ''}{classes}")
    inside = ", inside" if said["embedded"] else ""
    say(f"weights {said['name'] or 'of a flow'}{inside}, SHA-256 {said['sha256']}")
    say(f"written by mixerflow {header.mixerflow}, arithmetic {header.fingerprint}")
    return 0
