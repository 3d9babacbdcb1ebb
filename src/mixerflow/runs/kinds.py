"""The kinds of the entries of ``run.json`` and of cards, which may come from anybody.

Whatever reads these files may rely on the kinds, and on the entries that `Needs` names. Which
others there are depends on their age. Nothing here imports torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Kind = Any
"""A type; a dict of entries, or `Needs`; a list of one kind, for lists of it; a tuple of
alternatives; a frozenset of texts."""


@dataclass(frozen=True)
class Needs:
    """Entries, some of which must be there."""

    entries: dict[str, Kind]
    names: tuple[str, ...]


_TEXT, _NUMBER, _WHOLE = (str, None), (float, int, None), (int, None)
_FIGURE = {
    **dict.fromkeys(("bits_per_dim", "standard_error", "estimator_error"), _NUMBER),
    **dict.fromkeys(("images", "importance_samples", "probes", "seed"), int),
    **dict.fromkeys(("dataset_id", "split", "images_sha256"), str),
    "density": frozenset(("exact", "bound", "estimate", "estimated bound")),
    "dequantization": frozenset(("uniform", "variational", "none")),
}
_WHOLE_FIGURE = Needs(
    _FIGURE, ("bits_per_dim", "images", "dataset_id", "split", "density", "dequantization")
)
RECORD: Kind = {**_FIGURE, "kind": str, "step": int}
"""A line of metrics."""
FILE = Needs({"bytes": int, "sha256": str}, ("bytes", "sha256"))
"""What is said of a file beside it."""
_PIECE = {
    **dict.fromkeys(("steps", "schedule_start"), int),
    **dict.fromkeys(("of", "schedule_steps", "batch", "seed"), _WHOLE),
    **dict.fromkeys(("lr", "ema", "clip", "seconds"), _NUMBER),
    **dict.fromkeys(("from_sha256", "precision", "recipe", "command", "device"), _TEXT),
    "optimizer": ({"type": str}, str),  # older pieces have its word
    **{"schedule": {"type": str}, "augmentation": dict, "versions": (dict, None), "moments": bool},
}
KINDS: Kind = {
    "model": ({"shape": [int]}, None),
    "train": dict,
    **dict.fromkeys(("objective", "status", "recipe", "command"), _TEXT),
    **dict.fromkeys(("steps", "parameters", "restarts"), _WHOLE),
    "seconds": _NUMBER,
    "data": Needs(
        {
            **dict.fromkeys(("dataset_id", "training_sha256", "validation_sha256"), str),
            **dict.fromkeys(("training_images", "validation_images"), int),
            "shape": [int],
            "levels": _WHOLE,
            "classes": [str],
            "skipped": [str],
        },
        ("dataset_id", "classes"),
    ),
    "source": (
        Needs(
            {
                **dict.fromkeys(("data", "transparency", "on_bad_image", "crop", "resize"), str),
                **{"filter": str, "grey": bool},
            },
            ("data",),
        ),
        None,
    ),
    "versions": (dict, None),
    "machine": (dict, None),
    "result": (_WHOLE_FIGURE, None),
    "origin": (
        {
            **dict.fromkeys(("path", "source", "revision"), str),
            **{"sha256": _TEXT, "steps": int, "pieces": [_PIECE]},
        },
        None,
    ),
    "pieces": [_PIECE],
    "figure": _WHOLE_FIGURE,
    "samples": ({"images": int, "temperature": float, "seed": int}, None),
    "float32": {"bits_per_dim": _NUMBER, "standard_error": _NUMBER},
    "files": Needs({"model.safetensors": FILE}, ("model.safetensors",)),
}
STARTED_KINDS = Needs({"origin": (Needs({}, ("path", "pieces")), None)}, ("data", "model", "train"))
"""What every run has from its start, beside `KINDS`; with `origin`, it began from other weights."""
CARD_KINDS = Needs(KINDS, ("files", "figure", "model", "pieces", "steps", "train"))
"""A card of published weights."""


def misfit(value: object, kind: Kind = KINDS, path: str = "") -> str:
    """Return the path of the first entry that is missing or of another kind, or an empty text."""
    if isinstance(kind, Needs):
        missing = [n for n in kind.names if isinstance(value, dict) and n not in value]
        found = misfit(value, kind.entries, path)
        return found or "".join(f"{path}.{n}".lstrip(".") for n in missing[:1])
    if isinstance(kind, tuple):
        found = [misfit(value, each, path) for each in kind]
        return "" if "" in found else max(found, key=len)
    if isinstance(kind, dict) and isinstance(value, dict):
        pairs = [(f"{path}.{k}".lstrip("."), value[k], kind[k]) for k in kind if k in value]
    elif isinstance(kind, list) and isinstance(value, list):
        pairs = [(f"{path}.{n}", each, kind[0]) for n, each in enumerate(value)]
    else:
        if isinstance(kind, frozenset):
            fits = isinstance(value, str) and value in kind
        else:
            fits = value is None if kind is None else type(value) is kind
        return "" if fits else path or "the whole"
    return next(filter(None, (misfit(each, of, where) for where, each, of in pairs)), "")
