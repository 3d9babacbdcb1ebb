"""A run as one self-contained page: curves, samples, reconstructions, extremes, settings."""

from __future__ import annotations

import dataclasses
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from mixerflow import page, pictures
from mixerflow.core import Flow, Samples, as_tensor
from mixerflow.data import Images
from mixerflow.evaluate import Bits, bits, draw_pixels, has_pictures, kind_of, to_pixels
from mixerflow.runs import RunFolder, labels_of, load, require_levels

_SCORED, _EXTREMES, _RECONSTRUCTED = 500, 16, 10


@dataclasses.dataclass(frozen=True)
class Report:
    """The page of a run.

    Attributes:
        figure: bits/dim of the images that the page is about.
        title: name of the run.
        body: HTML fragments.
    """

    figure: Bits
    title: str
    body: list[str]

    def write(self, path: Path) -> Path:
        """Write the page and return its path.

        Raises:
            ResourceError: it cannot be written.
        """
        return page.write(path, self.title, self.body)


def make_report(run: Path, images: Images) -> Report:
    """Score the first few hundred `images`, of the shape of the run's, and make the run's page."""
    folder = RunFolder(run)
    metadata, records = folder.read_started(), folder.read_metrics()
    flow = load(run)
    require_levels(flow, images)
    scored = images.first(_SCORED)
    if flow.context_net is not None:
        scored = dataclasses.replace(scored, labels=labels_of(flow, metadata, scored))
    labels = None if flow.context_net is None else scored.labels
    figure = bits(flow, scored.pixels, labels=labels)
    order = figure.per_image.argsort()
    name = run.resolve().name
    body = [
        page.heading(str(metadata.get("recipe") or name), level=1),
        _headline(metadata),
        page.heading("Training"),
        *(page.picture(each, "plot") for each in (_curves(records), _accuracies(records)) if each),
        page.note(f"Validation uses the moving average of the weights{_validated(records)}."),
    ]
    for temperature in (0.7, 1.0) if has_pictures(flow) else ():
        drawn = draw_pixels(flow, 64, seed=1, temperature=temperature, examples=labels)
        heading = page.heading(f"Samples at temperature {temperature:g}")
        body += [heading, _grid(drawn.pixels), page.note(f"{drawn}.")]
    body += _reconstructions(flow, scored)
    body += _extremes("Fewest bits/dim", flow, scored, figure, order[:_EXTREMES])
    body += _extremes("Most bits/dim", flow, scored, figure, order[::-1][:_EXTREMES])
    settings = [[key, _setting(value)] for key, value in metadata.items()]
    body += [page.heading("Settings"), page.table([], settings)]
    return Report(figure, name, body)


def _headline(metadata: dict[str, Any]) -> str:
    result = metadata.get("result")
    if not result:
        return page.paragraph(f"status: {metadata.get('status')}")
    if result["bits_per_dim"] is None:
        return page.paragraph(f"not finite on {result['images']} validation images")
    accuracy = result.get("accuracy")
    told = "" if accuracy is None else f", {100 * accuracy:.1f} % of their classes told right"
    return (
        f"<p><span class='big'>{result['bits_per_dim']:.3f} bits/dim</span> ± "
        f"{result['standard_error'] or 0:.3f} on {result['images']} validation images of "
        f"{page.escape(result['dataset_id'])}: {kind_of(result)}{told}, after "
        f"{metadata.get('steps')} steps and {metadata.get('seconds', 0) / 60:.1f} minutes; "
        f"{metadata.get('parameters', 0):,} parameters.</p>"
    )


def _validated(records: list[dict[str, Any]]) -> str:
    """Return the kinds of the validation figures, after a colon."""
    kinds = sorted({kind_of(record) for record in records if record["kind"] == "validation"})
    return f": {'; '.join(kinds)}" if kinds else ""


def _curves(records: list[dict[str, Any]]) -> bytes:
    """Draw bits/dim against steps, as PNG."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.subplots()
    train = [record for record in records if record["kind"] == "train"]
    validation = [record for record in records if record["kind"] == "validation"]
    names = {"bits_per_dim": "training", "image_bits_per_dim": "training (of images)"}
    names["objective"] = "training objective"
    name = next(each for each in names if not train or each in train[-1])
    label = names[name]
    values = [_number(record.get(name)) for record in train]
    axes.plot([record["step"] for record in train], values, lw=0.8, label=label)
    validated = [_number(record["bits_per_dim"]) for record in validation]
    steps = [record["step"] for record in validation]
    axes.plot(steps, validated, "o-", ms=4, label="validation")
    if values := [value for value in values + validated if not math.isnan(value)]:
        page.finish_plot(axes, min(values), float(np.quantile(values, 0.98)))
    axes.set_ylabel("bits/dim")
    axes.legend()
    return page.png_of(figure)


def _accuracies(records: list[dict[str, Any]]) -> bytes:
    """Draw a head's accuracy against steps, as PNG; nothing for a run without a head."""
    found = [record for record in records if record.get("accuracy") is not None]
    if not found:
        return b""
    figure = Figure(figsize=(9, 2.6), layout="constrained")
    axes = figure.subplots()
    for kind, marks in (("train", "-"), ("validation", "o-")):
        points = [(r["step"], 100 * r["accuracy"]) for r in found if r["kind"] == kind]
        if points:
            axes.plot(*zip(*points, strict=True), marks, ms=4, lw=0.8, label=kind)
    page.finish_plot(axes, 0, 100)
    axes.set_ylabel("accuracy, %")
    axes.legend()
    return page.png_of(figure)


def _number(value: float | None) -> float:
    """Return a recorded figure; NaN, a gap in the curve, for one that is not finite."""
    return value if value is not None and math.isfinite(value) else math.nan


def _grid(pixels: np.ndarray, columns: int | None = None) -> str:
    buffer = io.BytesIO()
    scale = max(1, 64 // pixels.shape[-1])
    pictures.grid(pixels, columns=columns, scale=scale).save(buffer, "PNG")
    return page.picture(buffer.getvalue())


def _reconstructions(flow: Flow, images: Images) -> list[str]:
    """Show images, and images decoded from their latents and from latents nearer the mean."""
    images = images.first(_RECONSTRUCTED)
    context = None
    if flow.context_net is not None and images.labels is not None:
        context = torch.from_numpy(images.labels)
    x = as_tensor(images.pixels)
    z = flow.encode(x, context)
    decoded = flow.decode_samples(z, context)
    shrunk = flow.decode_samples(0.7 * z, context)
    if flow.levels is None:
        error = float((decoded.images.cpu() - x).abs().max())
        wrong = f"the largest difference is {error:.2g}"
    else:
        count = int((decoded.images.to(torch.int64) != x.to(torch.int64)).sum())
        wrong = f"{count} of {x.numel():,} values differ"
    parts = [Samples(x, 0, torch.zeros_like(x, dtype=torch.bool)), decoded, shrunk]
    shown = torch.cat([part.images.cpu() for part in parts])
    nonfinite = torch.cat([part.nonfinite.cpu() for part in parts])
    count = int(nonfinite.sum())
    note = (
        f"From above: images; decoded from their latents ({wrong}); "
        "decoded from 0.7 times their latents."
        + (f" {count} values are not finite, shown in magenta." if count else "")
    )
    if not has_pictures(flow):
        return [page.heading("Reconstructions"), page.note(f"Decoded from their latents: {wrong}.")]
    picture = _grid(to_pixels(flow, Samples(shown, 0, nonfinite)), columns=len(images))
    return [page.heading("Reconstructions"), picture, page.note(note)]


def _extremes(
    title: str, flow: Flow, images: Images, figure: Bits, indices: np.ndarray
) -> list[str]:
    figures = ", ".join(f"{figure.per_image[i]:.2f}" for i in indices)
    of = f"of {len(images)} images of {images.dataset_id}"
    note = f"In order: {figures} bits/dim; {of}: {figure.kind}."
    if not has_pictures(flow):
        numbers = ", ".join(map(str, indices))
        return [page.heading(title), page.note(f"Images {numbers}, from 0. {note}")]
    pixels = images.take(indices).pixels
    pixels = pixels if flow.levels is not None else to_pixels(flow, torch.from_numpy(pixels))
    picture = _grid(pixels, columns=_EXTREMES // 2)
    return [page.heading(title), picture, page.note(note)]


def _setting(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {json.dumps(each)}" for name, each in value.items())
    return value if isinstance(value, str) else json.dumps(value)
