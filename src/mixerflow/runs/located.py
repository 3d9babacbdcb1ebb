"""Where weights lie that are named by a path, by their name in the package, or on the hub."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from mixerflow import hub
from mixerflow.errors import CheckpointError, ConfigError, ResourceError
from mixerflow.named import CARD, FOLDER, HubName, hub_name, require_known, shipped_path
from mixerflow.runs.files import read_record, sealed, write_synced, writing
from mixerflow.runs.kinds import CARD_KINDS, misfit
from mixerflow.runs.manifest import MODEL, Damage, read_verified, unseal
from mixerflow.runs.reading import LARGEST
from mixerflow.temporary import sweep, temporary_path

SOURCE = "source.json"
"""The file of a local folder that says where its weights were brought from."""
_LARGEST_MODEL = 1 << 31
_OTHERS = {
    "card.md": 1 << 20,
    "samples.png": 16 << 20,
    "outliers/fitted.json": LARGEST,
    "outliers/inside.safetensors": 256 << 20,
}
"""The files beside `CARD` and `MODEL`, with the most bytes that are fetched of each."""
FILES = (CARD, MODEL, *_OTHERS)
"""All files of published weights that are fetched, brought and pushed."""


@dataclass(frozen=True)
class Located:
    """The folder that holds weights.

    Attributes:
        path: a run folder, or one of published weights.
        source: the name that the weights have in the package or on the hub, ``weights/NAME`` or
            ``hf://OWNER/NAME``; empty for weights that were never brought from there.
        revision: the commit on the hub; empty for others.
    """

    path: Path
    source: str = ""
    revision: str = ""

    def named(self) -> dict[str, str]:
        """Return the entries that say in results where the weights are from; those that are set."""
        given = {"source": self.source, "revision": self.revision}
        return {key: value for key, value in given.items() if value}


_fetched: dict[HubName, Located] = {}


def locate(path: Path | str) -> Located:
    """Return where the weights of a name or a path lie; those on the hub are fetched.

    A path that is there comes first. A process fetches a name of the hub once: it sees one commit.

    Raises:
        CheckpointError: an unknown name that is like one that ships, or no weights at that name of
            the hub.
        ConfigError: a malformed name of the hub, one that is not there, or no package for the hub.
        ResourceError: the hub cannot be reached, or a file there is too large.
    """
    if (name := hub_name(path)) is not None:
        if name not in _fetched:
            _fetched[name] = _fetch(name)
        return _fetched[name]
    if (folder := shipped_path(path)) is not None:
        return Located(folder, "/".join(Path(path).parts))
    require_known(path)
    return Located(Path(path), **_source_of(Path(path)))


def spelled(path: Path | str) -> str:
    """Return the text of a path, or of a name; ``Path`` takes a slash from ``hf://``."""
    name = hub_name(path)
    return str(path) if name is None else str(name)


def shown(path: Path) -> Path | str:
    """Return a path for an error, or the name that it stands for."""
    return path if hub_name(path) is None else spelled(path)


def bring(name: str) -> tuple[Path, str]:
    """Bring the weights of a name to a folder of the present folder, so that results have a place.

    That is ``weights/NAME``, or ``weights/OWNER/NAME`` for weights of the hub. It is written at
    once, by another name first. One that is there is taken as it is.

    Returns:
        The folder, and what to tell: what was brought from where; empty for nothing.

    Raises:
        CheckpointError: no such weights.
        ConfigError: the folder there has another revision than the name asks for.
        ResourceError: the folder cannot be written, or what `locate` raises.
    """
    wanted = hub_name(name)
    to = Path(FOLDER, *(wanted.repository.split("/") if wanted else Path(name).parts[1:]))
    if wanted and os.path.lexists(to):
        return to, _same(to, wanted)
    at = locate(name)
    files = [file for file in FILES if (at.path / file).is_file()]
    with writing(to.parent):
        to.parent.mkdir(parents=True, exist_ok=True)
        sweep(to.parent)
        made = temporary_path(to)
        try:
            size = sum(_copy(at.path / file, made / file) for file in files)
            write_synced(made / SOURCE, sealed(dict(at.named())))
            try:
                made.rename(to)
            except OSError:
                if not (to / CARD).exists():  # no other process has brought them meanwhile
                    raise
        finally:
            shutil.rmtree(made, ignore_errors=True)
    revision = f", revision {at.revision}" if at.revision else ""
    whence = at.source if wanted else "the package"
    return to, f"brought to {to} from {whence}{revision}: {len(files)} files, {size:,} bytes"


def _same(to: Path, wanted: HubName) -> str:
    """Return what to tell of a local folder that is there; raise for one of another revision."""
    there = _source_of(to)
    if there.get("source") != wanted.plain:
        if wanted.revision:
            remedy = "move it elsewhere, or leave @REVISION out to use it"
            raise ConfigError(f"other weights than {wanted} are there", to, remedy)
        return f"{to}, which is here, is used; it was not brought from {wanted}"
    commit = there.get("revision", "")
    if wanted.revision and not (len(wanted.revision) > 6 and commit.startswith(wanted.revision)):
        asked = hub.fetch(wanted, {CARD: LARGEST}).revision
        if asked != commit:
            what = f"revision {commit[:12]} is there, and {wanted.revision} is {asked[:12]}"
            remedy = f"move it elsewhere, or leave @{wanted.revision} out to use it"
            raise ConfigError(what, to, remedy)
    return ""


def _copy(source: Path, to: Path) -> int:
    to.parent.mkdir(parents=True, exist_ok=True)
    data = source.read_bytes()
    write_synced(to, data)
    return len(data)


def _source_of(path: Path) -> dict[str, str]:
    """Return where a local folder's weights were brought from, as `Located` has it."""
    there = os.path.lexists(path / SOURCE)
    record = read_record(path / SOURCE, "delete this file") if there else None
    names = ("source", "revision")
    return {name: str(record[name]) for name in names if record and name in record}


def _fetch(name: HubName) -> Located:
    """Fetch all files that weights have, and verify them by their card, which says their size."""
    card = hub.fetch(name, {CARD: LARGEST})
    pinned = HubName(name.repository, card.revision)
    try:
        content = unseal(card.folder / CARD)
        if entry := misfit(content, CARD_KINDS):
            raise Damage(f"its entry {entry} is missing or of another kind", card.folder / CARD)
        model = content["files"][MODEL]
        if model["bytes"] > _LARGEST_MODEL:
            what = f"weights of {model['bytes']:,} bytes, of at most {_LARGEST_MODEL:,}"
            raise ResourceError(what, name, "fetch them by hand, and give the folder")
        hub.fetch(pinned, {CARD: LARGEST, MODEL: model["bytes"], **_OTHERS})
        read_verified(card.folder / MODEL, model)
    except Damage as damage:
        what = f"published weights damaged ({damage.path.name}: {damage.what})"
        remedy = "name another revision, or remove this one from the hub's cache and try again"
        raise CheckpointError(what, pinned, remedy) from damage
    return Located(card.folder, name.plain, card.revision)
