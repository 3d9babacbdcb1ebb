"""Names of weights: of those that ship with the package, and of those on the Hugging Face hub.

``weights/NAME`` is a folder of the package where no local path has that name, and
``hf://OWNER/NAME`` or ``hf://OWNER/NAME@REVISION`` a repository of the hub. Nothing here imports
torch or the hub's package, and nothing is fetched.
"""

from __future__ import annotations

import difflib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from mixerflow.errors import CheckpointError, ConfigError, nearest

SHIPPED = Path(__file__).parent / "weights"
"""The package's folder of weights, which has a folder for each name."""
CARD = "card.json"
"""The file that marks a folder of published weights: it holds the metadata of the others."""
ARCHIVE = b"\x89MIXFLO\n"
"""The first bytes of an archive of images."""
FOLDER = "weights"
"""First part of the names of shipped weights, and the folder to which commands bring weights."""

_PART = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?"
_HUB = re.compile(rf"hf:/+({_PART})/({_PART})(?:@([A-Za-z0-9_][A-Za-z0-9_./-]*))?")


@dataclass(frozen=True)
class HubName:
    """A repository of the Hugging Face hub, ``hf://OWNER/NAME[@REVISION]``.

    Attributes:
        repository: ``OWNER/NAME``.
        revision: a commit, branch or tag; empty for the newest commit of the branch `main`.
    """

    repository: str
    revision: str = ""

    @property
    def plain(self) -> str:
        """The name without its revision."""
        return f"hf://{self.repository}"

    def __str__(self) -> str:
        return self.plain + (f"@{self.revision}" if self.revision else "")


def hub_name(path: Path | str) -> HubName | None:
    """Return the repository that a path names; None for a path of another kind.

    ``Path("hf://a/b")`` is ``hf:/a/b``, which names the same.

    Raises:
        ConfigError: it begins as such a name and is none.
    """
    text = str(path)
    if not text.startswith("hf:/"):
        return None
    match = _HUB.fullmatch(text)
    if match is None or ".." in text or "--" in text.partition("@")[0]:
        remedy = "give hf://OWNER/NAME or hf://OWNER/NAME@REVISION"
        spelled = f"hf://{text[3:].lstrip('/')}"
        raise ConfigError("no name of a repository of the hub", spelled, remedy)
    return HubName(f"{match[1]}/{match[2]}", match[3] or "")


def shipped() -> dict[str, Path]:
    """Return the folders of the weights that ship with the package, by name, ``weights/NAME``."""
    folders = sorted(card.parent for card in SHIPPED.glob(f"*/{CARD}"))
    return {f"{FOLDER}/{folder.name}": folder for folder in folders}


def shipped_path(path: Path | str) -> Path | None:
    """Return the package's folder of the weights that a path names; None for all other paths.

    A local file or folder of that name comes first.
    """
    return shipped().get(_shipped_name(path))


def require_known(path: Path | str) -> None:
    """Raise a CheckpointError for ``weights/NAME`` that is neither a path nor a name that ships."""
    name, known = _shipped_name(path), shipped()
    if name and known and name not in known:
        last = {Path(each).name: each for each in known}
        near = difflib.get_close_matches(Path(name).name, last, n=1)
        remedy = f"did you mean {last[near[0]]}?" if near else nearest("", known)
        raise CheckpointError("no such weights", name, remedy)


def _shipped_name(path: Path | str) -> str:
    """Return ``weights/NAME`` for a path that is no local one; an empty text for all others."""
    parts = Path(path).parts
    named = len(parts) == 2 and parts[0] == FOLDER and not os.path.lexists(path)
    return "/".join(parts) if named else ""


def is_name(path: Path | str) -> bool:
    """Whether a path is no path but names weights; see `hub_name` and `shipped_path`."""
    return hub_name(path) is not None or shipped_path(path) is not None


def is_archive(path: Path | str) -> bool:
    """Whether a file begins as an archive of images."""
    try:
        if not Path(path).is_file():
            return False
        with open(path, "rb") as file:
            return file.read(len(ARCHIVE)) == ARCHIVE
    except (OSError, ValueError):
        return False
