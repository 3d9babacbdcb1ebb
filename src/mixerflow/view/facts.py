"""What a model is, in words: the line at the end of the page."""

from __future__ import annotations

from typing import Any

from mixerflow.detection import is_mixture
from mixerflow.errors import printable
from mixerflow.evaluate import kind_of
from mixerflow.runs import kept_fit
from mixerflow.view.model import Viewed


def about(viewed: Viewed) -> dict[str, Any]:
    """Return what the model and the set are, and what the page can offer for them."""
    scorer, flow = viewed.scorer, viewed.flow
    metadata, images = scorer.weights.metadata, viewed.examples
    return {
        "title": printable(scorer.run.resolve().name),
        "shape": list(flow.shape),
        "facts": [[key, printable(value)] for key, value in _facts(viewed, metadata)],
        "classes": list(viewed.drawn_classes),
        "inTurn": is_mixture(flow),
        "maps": list(viewed.maps),
        "examples": 0 if images is None else len(images),
        "set": None if images is None else images.dataset_id,
        "searched": 0 if viewed.searched is None else len(viewed.searched),
        "thresholds": _thresholds(viewed),
    }


def _facts(viewed: Viewed, metadata: dict[str, Any]) -> list[tuple[str, str]]:
    weights, flow = viewed.scorer.weights, viewed.flow
    data, colour = metadata["data"], "grey" if flow.shape[0] == 1 else "colour"
    figure = metadata.get("figure") or metadata.get("result")
    given = ", given the class" if is_mixture(flow) else ""
    facts = [
        ("recipe", str(metadata.get("recipe") or "none, a model of its own")),
        ("weights", weights.kind),
        ("parameters", f"{metadata.get('parameters') or 0:,}"),
        ("training", f"{weights.steps:,} steps on {data['dataset_id']}"),
        ("images", f"{flow.shape[2]} x {flow.shape[1]}, {colour}"),
        ("bits/dim", "not scored yet" if not figure else _figure(figure, given)),
        ("kind of figures", _kind(viewed)),
        ("SHA-256 of the weights", weights.sha256),
    ]
    return [(name, value) for name, value in facts if value]


def _figure(figure: dict[str, Any], given: str) -> str:
    value, error = figure.get("bits_per_dim"), figure.get("standard_error")
    told = "not finite" if value is None else f"{value:.3f}"
    told += "" if value is None or error is None else f" ± {error:.3f}"
    where = f"{figure.get('dataset_id', '')}, {figure.get('split', '')}"
    return f"{told} on {figure.get('images', 0):,} images of {where} ({kind_of(figure)}{given})"


def _kind(viewed: Viewed) -> str:
    """Return the kind of figure that the page shows of an image."""
    flow = viewed.flow
    words = kind_of({"density": flow.density, "dequantization": flow.dequantization})
    if is_mixture(flow):
        words += f", of the mixture of {len(viewed.drawn_classes)} equally frequent classes"
    return words


def _thresholds(viewed: Viewed) -> str:
    """Return words for the images that gave the thresholds, or for how to have some."""
    run, fit = viewed.scorer.run, kept_fit(viewed.scorer.run)
    if viewed.inside is not None and fit is not None:
        origin = f"{fit.images.get('dataset_id')}, {fit.images.get('split')}"
        return printable(f"{len(viewed.inside):,} inside images ({origin})")
    why = "fits some" if fit is None else "fits others: those kept are of other weights"
    return printable(f"No thresholds: `mixerflow outliers {run} --inside DATA` {why}.")
