"""The card of published weights for people; ``card.json`` has all of it, and more."""

from __future__ import annotations

from typing import Any

from mixerflow.evaluate import kind_of
from mixerflow.markdown import table
from mixerflow.runs.manifest import MODEL
from mixerflow.runs.metadata import model_settings


def card_text(name: str, card: dict[str, Any]) -> str:
    """The card as Markdown, under the weights' name."""
    figure, model, file = card["figure"], card["model"], card["files"][MODEL]
    settings = model_settings(model)
    named = (f"{key.removeprefix('model.')} {_plain(value)}" for key, value in settings.items())
    rows = {
        "recipe": card["recipe"] or "none",
        "model": ", ".join(named),
        "images": " x ".join(map(str, model["shape"])),
        "parameters": f"{card['parameters']:,}",
        "trained on": f"{card['data']['training_images']:,} images of {card['data']['dataset_id']}",
        "objective": card["objective"],
        "weights": "their moving average" if card["averaged"] else "raw, not averaged",
        "steps": f"{card['steps']:,}",
        "restarts": card["restarts"],
        "command": f"`{card['command']}`" if card["command"] else "mixerflow.train",
        "hardware": card["pieces"][-1]["device"],
        "versions": _versions(card["versions"]),
        "file": f"`{MODEL}`, {file['bytes']:,} bytes",
        "SHA-256": f"`{file['sha256']}`",
    }
    head = ["steps", "from, to, of", "batch", "lr", "seed", "precision", "device", "began from"]
    lines = [
        f"# {name}",
        "",
        f"**{_figure(figure)} bits/dim** on {figure['images']:,} images of "
        f"{figure['dataset_id']}, {figure['split']}: {_kind(figure)}. The weights in float32, "
        f"before they were rounded for this file, have {_figure(card['float32'], 5)}; these have "
        f"{_figure(figure, 5)}.",
        "",
        table(["", ""], [[key, str(value)] for key, value in rows.items()]),
        "",
        "## The runs that led here",
        "",
        "Each began from weights of the one before, with Adam's moments at zero.",
        "",
        table(head, map(_piece, card["pieces"])),
        "",
    ]
    return "\n".join(lines)


def _piece(piece: dict[str, Any]) -> list[str]:
    start, steps = piece["start"], piece["steps"]
    whole = piece["whole"] or start + (piece["of"] or steps)
    begun = f"`{piece['from_sha256'][:12]}`" if piece["from_sha256"] else "new weights"
    cells = [f"{steps:,}", f"{start:,}, {start + steps:,}, {whole:,}"]
    cells += [str(piece[key]) for key in ("batch", "lr", "seed", "precision", "device")]
    return [*cells, begun]


def _kind(figure: dict[str, Any]) -> str:
    seed = "" if figure["dequantization"] == "none" else f" of seed {figure['seed']}"
    return kind_of(figure) + seed


def _figure(figure: dict[str, Any], digits: int = 3) -> str:
    error = figure["standard_error"]
    shown = f"{figure['bits_per_dim']:.{digits}f}"
    return shown if error is None else f"{shown} ± {error:.3f}"


def _versions(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _plain(value: object) -> str:
    return "/".join(map(str, value)) or "none" if isinstance(value, (list, tuple)) else str(value)
