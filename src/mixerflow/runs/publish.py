"""Published weights: the weights of a run as one small file, with a card for programs and people.

Matrices are kept in 16 bits, all else as it is. Conditioners' matrices, most of the file, are
bfloat16. Those that a flow multiplies its data with are float16, which takes as many bytes and
rounds to an eighth: in bfloat16 they alone would cost ten times the bits/dim of all conditioners.
A kernel of a convolution, ``(out, in, *kernel)``, is a matrix whose rows are as long as its fan-in,
``in * prod(kernel)``: it is a sum of so many products, over which roundings average out.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mixerflow import markdown
from mixerflow.core import Flow, Transform
from mixerflow.errors import CheckpointError, ConfigError
from mixerflow.evaluate import Bits, estimator_of, kind_of, probes_of
from mixerflow.runs.evaluations import Evaluator
from mixerflow.runs.files import require_writable, without_nan, write_atomically, writing
from mixerflow.runs.folder import FORMAT
from mixerflow.runs.manifest import MODEL, entry, pack_tensors, seal
from mixerflow.runs.metadata import device_name, model_settings, versions
from mixerflow.runs.weights import (
    CARD,
    Weights,
    Which,
    device_of,
    is_published,
    read_metadata,
    read_weights,
)
from mixerflow.temporary import sweep

_SMALL = 1024
"""Numbers below which a matrix is not worth rounding: the colour transform has nine."""


def is_large(weight: Tensor) -> bool:
    """Whether it is a matrix, or a convolution's kernel, that is worth rounding.

    What has a number for each channel, ``(C, 1, 1)`` say, has a fan-in of 1 and is neither.
    """
    fan_in = weight.shape[1:].numel()
    return fan_in > 1 and weight.numel() >= _SMALL


def rounded(flow: Flow) -> dict[str, Tensor]:
    """A flow's state dict as it is published: its large matrices in 16 bits."""
    weights = flow.state_dict()
    for prefix, module in flow.named_modules(remove_duplicate=False):
        kind = torch.float16 if isinstance(module, Transform) else torch.bfloat16
        for name, matrix in module.named_parameters(prefix, recurse=False):
            if is_large(matrix):
                half = matrix.detach().to(kind)
                if half.isfinite().all():  # float16 ends at 65504
                    weights[name] = half
    return weights


def publish(
    run: Path,
    to: Path,
    evaluator: Evaluator,
    *,
    which: Which = "best",
    average: bool = True,
    limit_mb: float = 25.0,
    force: bool = False,
    on_card: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Write a run's weights to a folder: `MODEL`, `CARD`, and the card for people.

    A kill leaves each file whole or absent; the card is written last. Weights that their card does
    not verify are replaced by the same call again.

    Args:
        run: the run folder.
        to: the folder to write; published weights there are replaced only by better ones.
        evaluator: scores the weights, rounded and in float32.
        which: the checkpoint.
        average: publish the averaged weights, not the raw ones.
        limit_mb: largest size of the file, in millions of bytes.
        force: replace published weights whatever their bits/dim.
        on_card: called with the card before anything is written.

    Returns:
        The card.

    Raises:
        ConfigError: no run folder, too large a file, or the published weights are better.
        CheckpointError: the run's checkpoint, or the published weights, are damaged.
        DataError: images that do not fit.
        ResourceError: the folder cannot be written.
    """
    if is_published(run):
        raise ConfigError("these weights are published already", run, "name a run folder")
    held = read_weights(run, which=which, average=average)
    before = _published(to, force=force)
    require_writable(to / MODEL)
    flow = held.flow(device_of(evaluator.device))
    half = rounded(flow)
    data = pack_tensors(half)
    if len(data) > 1e6 * limit_mb:
        what = f"{len(data) / 1e6:.1f} MB of weights are more than {limit_mb:g}"
        raise ConfigError(what, run, "publish a smaller model, or raise --limit-mb")
    flow.load_state_dict(half)
    figure = evaluator.score(flow, held.metadata)
    if not math.isfinite(figure.bits_per_dim):
        what = f"{figure.bits_per_dim} bits/dim on {figure.dataset_id}"
        raise CheckpointError(what, held.path, "publish another checkpoint")
    scored = figure.as_dict() | {
        "images_sha256": evaluator.images.fingerprint(),
        "device": device_name(flow.device),
        "versions": versions(),
    }
    _compare(before, scored, to)
    flow.load_state_dict(held.tensors)
    exact = evaluator.score(flow, held.metadata)
    card = without_nan(_card(held, scored, exact, data) | {"averaged": average})
    if on_card is not None:
        on_card(card)
    _write(to, card, data)
    return card


def _published(to: Path, *, force: bool) -> dict[str, Any] | None:
    """Return the card of the weights to replace; None where any weights may be written."""
    if (to / "run.json").exists():
        raise ConfigError("a run is there", to, "publish to a folder of its own")
    return None if force or not is_published(to) else read_metadata(to)


def _compare(before: dict[str, Any] | None, scored: dict[str, Any], to: Path) -> None:
    """Raise a ConfigError unless the published weights are worse."""
    if before is None:
        return
    old = before["figure"]
    images = f"{old['images']} images of {old['dataset_id']}, {old['split']}"
    judged = {
        images: old["images_sha256"] == scored["images_sha256"],
        f"noise of seed {old['seed']}": old["seed"] == scored["seed"],
        kind_of(old): kind_of(old) == kind_of(scored),
    }
    other = [by for by, same in judged.items() if not same]
    if other:
        what = f"what is published was judged by {other[0]}"
        remedy = "give the same --data, --split, --images and --seed, or replace it with --force"
        raise ConfigError(what, to, remedy)
    if old["bits_per_dim"] <= scored["bits_per_dim"]:
        what = (
            f"what is published has {old['bits_per_dim']:.5f} bits/dim, "
            f"this run {scored['bits_per_dim']:.5f}"
        )
        raise ConfigError(what, to, "train further, or replace it with --force")


def _card(weights: Weights, scored: dict[str, Any], exact: Bits, data: bytes) -> dict[str, Any]:
    kept = ("recipe", "command", "source", "model", "train", "data", "parameters", "versions")
    pieces = weights.pieces
    return {
        "format": FORMAT,
        "status": "published",
        **{key: weights.metadata.get(key) for key in (*kept, "machine")},
        "objective": weights.metadata.get("objective") or "likelihood",
        "steps": sum(piece["steps"] for piece in pieces),
        "seconds": sum(piece["seconds"] or 0 for piece in pieces),
        "restarts": len(pieces) - 1,
        "pieces": pieces,
        "figure": scored,
        "float32": {
            "bits_per_dim": exact.bits_per_dim,
            "standard_error": exact.as_dict()["standard_error"],
        },
        "files": {MODEL: entry(data)},
    }


def _write(to: Path, card: dict[str, Any], data: bytes) -> None:
    with writing(to, lambda: len(data)):
        to.mkdir(parents=True, exist_ok=True)
        sweep(to)
        write_atomically(to / MODEL, data)
        text = _card_text(to.resolve().name, card)
        write_atomically(to / "card.md", text.encode("utf-8", "backslashreplace"))
        write_atomically(to / CARD, seal(card))


def _card_text(name: str, card: dict[str, Any]) -> str:
    """Return the card as Markdown, under the weights' name."""
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
    lines = [
        f"# {markdown.plain(name)}",
        "",
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
