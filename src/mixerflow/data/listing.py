"""The files of a folder: the images among them, and a line for every kind of other file."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from mixerflow.data.formats import unreadable
from mixerflow.data.signatures import has_image_ending, image_format, sniff

_NAMED = 10  # files that a line names


class Listing(NamedTuple):
    """Paths of images, sorted by name, and lines on all other files."""

    images: list[Path]
    others: tuple[str, ...]


def list_images(root: Path, *, leave_out: Sequence[Path] = ()) -> Listing:
    """List the images under `root`, links followed: by ending, else by the first bytes.

    An image of a format that is not read is listed too: reading it is an error. Only files without
    an image's ending are opened. Folders of `leave_out` are not entered.

    Raises:
        DataError: a folder cannot be listed.
    """
    images: list[str] = []  # relative to the root, as the others
    others: dict[str, list[str]] = defaultdict(list)

    def refuse(error: OSError) -> None:
        raise error

    try:
        closed = {_identity(path) for path in leave_out}
        for name, subfolders, names in os.walk(root, followlinks=True, onerror=refuse):
            folder = Path(name)
            parents = [folder, *folder.parents][: 1 + len(folder.relative_to(root).parts)]
            closed_here = closed | {_identity(path) for path in parents}  # a link may lead there
            prefix = "" if folder == root else f"{folder.relative_to(root).as_posix()}/"
            others["hidden"] += [prefix + each for each in subfolders if each.startswith(".")]
            visible = [folder / each for each in subfolders if not each.startswith(".")]
            subfolders[:] = [path.name for path in visible if _identity(path) not in closed_here]
            for each in names:
                reason = "hidden" if each.startswith(".") else _no_image(os.path.join(name, each))
                (others[reason] if reason else images).append(prefix + each)
    except OSError as error:
        raise unreadable(Path(error.filename or root), error) from error
    lines = (count_line(others[reason], reason, root) for reason in sorted(others))
    return Listing([root / each for each in sorted(images)], tuple(line for line in lines if line))


def count_line(names: Iterable[str], reason: str, folder: Path) -> str:
    """Return one line on files that are left out, or an empty text: number, reason, first names."""
    names = sorted(names)
    if not names:
        return ""
    first = ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
    if len(names) == 1:
        return f"{folder / first}: {reason}"
    ending = "s" if reason.startswith("no ") else ""
    return f"{folder}: {len(names):,} files are {reason}{ending}: {first}"


def _no_image(path: str) -> str:
    """Return why a file is passed over; an empty text for one to be read, or refused by name."""
    if has_image_ending(path):
        return ""
    try:
        if not os.path.isfile(path):
            return "no regular file"
        return "" if image_format(sniff(path)) else "no image"
    except OSError:  # what cannot be read may be an image: an error, when it is
        return ""


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino
