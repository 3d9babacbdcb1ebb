"""The weights of a codec: a run's, published ones, those inside an archive, or a flow's own."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from mixerflow.compression.archive import Archive
from mixerflow.compression.layout import Header
from mixerflow.core import Flow
from mixerflow.errors import CheckpointError, ConfigError, DataError
from mixerflow.named import CARD, hub_name, shipped_path
from mixerflow.runs.files import json_text
from mixerflow.runs.kinds import KINDS, Needs, misfit
from mixerflow.runs.located import spelled
from mixerflow.runs.manifest import MODEL, Damage, entry, pack_tensors, parse
from mixerflow.runs.publish import rounded
from mixerflow.runs.reading import parse_json
from mixerflow.runs.weights import Weights, Which, is_published, read_weights

_CPU = torch.device("cpu")
_SHOWN = 200  # characters of a name that an error has
_CARD = Needs(KINDS, ("data", "files", "model"))


@dataclass(frozen=True, eq=False)
class Held:
    """A flow, and what an archive says of its weights.

    Attributes:
        flow: on the CPU, in eval mode.
        said: the entry "weights" of an archive's header.
        metadata: of the run, or the card; "data" has "classes".
        files: the card and the safetensors file that an archive takes inside; None for none.
    """

    flow: Flow
    said: dict[str, Any]
    metadata: dict[str, Any]
    files: tuple[bytes, bytes] | None = None


def of_run(run: Path | str, *, which: Which, average: bool, embed: bool) -> Held:
    """Return the weights of a run folder, or published ones; to embed a run's they are rounded.

    Raises:
        CheckpointError: no weights there, or damaged ones.
    """
    path = Path(run)
    weights = read_weights(path, which=which, average=average)
    said: dict[str, Any] = {"name": spelled(path), "sha256": weights.sha256, "embedded": embed}
    said |= weights.located.named() if weights.located is not None else {}
    if not weights.published:
        said |= {"checkpoint": which, "averaged": average}
    if not embed:
        return Held(weights.flow(_CPU), said, weights.metadata)
    tensors = weights.tensors if weights.published else rounded(weights.flow(_CPU))
    model = pack_tensors(tensors)
    card = _card(weights, model)
    said["sha256"] = entry(model)["sha256"]
    flow = replace(weights, tensors=tensors).flow(_CPU)
    return Held(flow, said, card, (json_text(card, indent=None).encode(), model))


def of_flow(flow: Flow) -> Held:
    """Return a flow's own weights, which have no name."""
    sha256 = entry(pack_tensors(flow.state_dict()))["sha256"]
    return Held(flow, {"name": "", "sha256": sha256, "embedded": False}, {"data": {"classes": []}})


def of_archive(archive: Archive, run: Path | str | None = None) -> Held:
    """Return the weights that decode an archive: those of `run`, or inside, or of its name there.

    Of names, those of weights that ship and of local folders are looked up; nothing is fetched from
    a hub that nobody but the archive has named.

    Raises:
        CheckpointError: no such weights, damaged ones, or others.
        DataError: the weights inside are damaged.
    """
    said = archive.header.weights
    return (
        _inside(archive)
        if run is None and said["embedded"]
        else _named(archive.header, run, archive.where)
    )


def _named(header: Header, run: Path | str | None, where: object) -> Held:
    said = header.weights
    name, which, average = said["name"], said.get("checkpoint", "best"), said.get("averaged", True)
    short = said["sha256"][:12]
    if run is None:
        local = any(os.path.isfile(f"{name}/{file}") for file in ("run.json", CARD))
        if not name or hub_name(name) is not None or not (local or shipped_path(name)):
            shown, commit = name if len(name) <= _SHOWN else "", said.get("revision", "")
            what = f"the archive's weights {shown and f'{shown} '}(SHA-256 {short}...) are not here"
            plain = shown and (shown if not commit or "@" in shown else f"{shown}@{commit}")
            remedy = "name a run or a folder of these weights with --weights PATH"
            if hub_name(name) is not None:
                remedy = f"name them with --weights {plain}"
            elif shown:
                remedy = f"bring the folder {shown} here, or {remedy}"
            raise CheckpointError(what, where, remedy)
    path = Path(name if run is None else run)
    own = is_published(path) or shipped_path(path) is not None or hub_name(path) is not None
    settings = {} if own else {"which": which, "average": average}
    weights = read_weights(path, **settings)
    tensors, sha256 = weights.tensors, weights.sha256
    if said["embedded"] and not weights.published:  # what is inside was rounded
        tensors = rounded(weights.flow(_CPU))
        sha256 = entry(pack_tensors(tensors))["sha256"]
    if sha256 != said["sha256"]:
        what = f"other weights than the archive's (SHA-256 {sha256[:12]}..., not {short}...)"
        own = f"the archive's own, {name}," if name else "the archive's own"
        remedy = f"name {own} with --weights"
        raise CheckpointError(what, spelled(path), remedy)
    return Held(replace(weights, tensors=tensors).flow(_CPU), said, weights.metadata)


def _card(weights: Weights, model: bytes) -> dict[str, Any]:
    """Return a card for weights inside an archive: of a run, what names and builds its model."""
    if weights.metadata["model"] is None:
        remedy = "leave the weights out: --weights name"
        raise ConfigError("a flow of classes not registered cannot travel", weights.path, remedy)
    if weights.published:
        card = dict(weights.metadata)
        card.pop("sha256", None)
    else:
        kept = ("format", "recipe", "model", "data", "parameters", "versions", "command")
        card = {key: weights.metadata.get(key) for key in kept}
    return card | {"files": {MODEL: entry(model)}}


def _inside(archive: Archive) -> Held:
    """Return the weights inside an archive, whose digests are right but which may be anybody's."""
    found = archive.weights()
    assert found is not None
    content, model = found
    path = Path(archive.where) if isinstance(archive.where, Path) else Path("archive")
    try:
        card = parse_json(content)
        if wrong := misfit(card, _CARD):
            raise Damage(f"the entry {wrong} of its card is missing or of another kind", path)
        if entry(model) != card["files"][MODEL]:
            raise Damage("other weights than its card says", path)
        if entry(model)["sha256"] != archive.header.weights["sha256"]:
            raise Damage("other weights than its header says", path)
        tensors = parse(path, model)
    except (Damage, ValueError) as error:
        what = error.what if isinstance(error, Damage) else f"no JSON that can be ({error})"[:200]
        what, remedy = f"the weights inside are damaged ({what})", "give its weights with --weights"
        raise DataError(what, archive.where, remedy) from error
    weights = Weights(card, path, tensors, 0, published=True)
    return Held(weights.flow(_CPU), archive.header.weights, card)
