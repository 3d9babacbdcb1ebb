"""The card of published weights for people: Markdown, and what the Hugging Face hub reads of it."""

from __future__ import annotations

import json
from typing import Any

from mixerflow import markdown
from mixerflow.data.published_sets import SETS
from mixerflow.evaluate import estimator_of, kind_of, probes_of
from mixerflow.runs.manifest import MODEL
from mixerflow.runs.metadata import model_settings

_TASK = "unconditional-image-generation"


def card_text(name: str, card: dict[str, Any]) -> str:
    """Return the card as Markdown, under the weights' name; with its picture, if it has one."""
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
    head = ["steps", "from, to, of", "batch", "lr", "training", "seed", "precision", "device"]
    head += ["began from"]
    lines = [f"# {markdown.plain(name)}", ""]
    if drawn := card.get("samples"):
        words = f"{drawn['images']} samples at temperature {drawn['temperature']:g}"
        lines += [f"![{words}](samples.png)", "", f"{words}, seed {drawn['seed']}.", ""]
    lines += [
        f"**{_figure(figure)} bits/dim** on {figure['images']:,} images of "
        f"{markdown.plain(figure['dataset_id'])}, {figure['split']}: {_kind(figure)}. The "
        f"weights in float32, before they were rounded for this file, have "
        f"{_figure(card['float32'], 5)}; these have {_figure(figure, 5)}.",
        "",
        markdown.table(["", ""], [[key, str(value)] for key, value in rows.items()]),
        "",
        "## The runs that led here",
        "",
        "Each began from weights of the run before; moments began at zero unless named.",
        "",
        markdown.table(head, map(_piece, card["pieces"])),
        "",
    ]
    return "\n".join(lines)


def front_matter(name: str, card: dict[str, Any], license: str = "") -> str:
    """Return the entries that the hub reads at the head of a model card, between lines of dashes.

    Each value is JSON, which is YAML too.

    Args:
        name: the weights' name.
        card: the content of ``card.json``.
        license: its identifier on the hub, ``apache-2.0`` say; empty for none.
    """
    figure = card["figure"]
    trained = _repository(card["data"]["dataset_id"])
    metric = {"type": "bits_per_dim", "value": figure["bits_per_dim"]}
    metric["name"] = f"bits/dim, {_kind(figure)}"
    dataset = {"name": figure["dataset_id"], "split": figure["split"]}
    dataset["type"] = _repository(figure["dataset_id"]) or figure["dataset_id"]
    result = {"task": {"type": _TASK}, "dataset": dataset, "metrics": [metric]}
    entries = {
        "license": license,
        "library_name": "mixerflow",
        "pipeline_tag": _TASK,
        "tags": ["normalizing-flow", "exact-likelihood", "density-estimation"],
        "datasets": [trained] if trained else [],
        "model-index": [{"name": name, "results": [result]}],
    }
    lines = [f"{key}: {json.dumps(value)}" for key, value in entries.items() if value]
    return "\n".join(["---", *lines, "---", "", ""])


def _repository(dataset_id: str) -> str | None:
    """Return the hub's repository of a published set; None for all other images."""
    known = SETS.get(dataset_id.removeprefix("hub:"))
    return None if known is None else known.repository


def _piece(piece: dict[str, Any]) -> list[str]:
    start, steps = piece["schedule_start"], piece["steps"]
    whole = piece["schedule_steps"] or start + (piece["of"] or steps)
    source = f"`{piece['from_sha256'][:12]}`" if piece["from_sha256"] else "new weights"
    source += ", with moments" if piece["moments"] else ""
    cells = [f"{steps:,}", f"{start:,}, {start + steps:,}, {whole:,}"]
    cells += [str(piece[key]) for key in ("batch", "lr")] + [_training(piece)]
    cells += [str(piece[key]) for key in ("seed", "precision", "device")]
    return [*cells, source]


def _training(piece: dict[str, Any]) -> str:
    """Name the optimiser, the schedule and what changes images; older pieces had no choice."""
    schedule = piece.get("schedule", {"type": "Cosine"})
    changes = piece.get("augmentation", {})
    optimizer = piece.get("optimizer", "adam")
    words = [optimizer if isinstance(optimizer, str) else optimizer["type"].lower()]
    words += [schedule["type"].lower()]
    words += ["flip"] if changes.get("flip") else []
    words += [f"shift {changes['shift']}"] if changes.get("shift") else []
    words += [f"mutation {changes['mutation']:g}"] if changes.get("mutation") else []
    return ", ".join(words)


def _kind(figure: dict[str, Any]) -> str:
    seed = f"noise of seed {figure['seed']}" if estimator_of(figure) else ""
    return ", ".join(filter(None, (kind_of(figure), probes_of(figure), seed)))


def _figure(figure: dict[str, Any], digits: int = 3) -> str:
    error = figure["standard_error"]
    if figure["bits_per_dim"] is None:
        return "not finite"
    shown = f"{figure['bits_per_dim']:.{digits}f}"
    return shown if error is None else f"{shown} ± {error:.3f}"


def _versions(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _plain(value: object) -> str:
    return "/".join(map(str, value)) or "none" if isinstance(value, (list, tuple)) else str(value)
