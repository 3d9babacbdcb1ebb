"""A run as one self-contained page: curves, samples, reconstructions, extremes, settings."""

from __future__ import annotations

import base64
import dataclasses
import html
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image

from mixerflow import pictures
from mixerflow.core import Flow, as_tensor
from mixerflow.data import Images
from mixerflow.evaluate import bits, draw_pixels, kind_of, to_pixels
from mixerflow.runs import RunFolder, labels_of, load
from mixerflow.runs.files import write_atomically

_SCORED, _SHOWN, _REBUILT = 500, 16, 10

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 62rem; margin: 2rem auto;
       padding: 0 1rem }
h1 { font-size: 1.6rem } h2 { font-size: 1.15rem; margin-top: 2.2rem }
img { max-width: 100%; image-rendering: pixelated } img.plot { image-rendering: auto }
p.note { color: #666; font-size: .9rem } table { border-collapse: collapse }
td { padding: .1rem 1rem .1rem 0; vertical-align: top; font-size: .9rem }
.big { font-size: 2rem; font-weight: 600 }
"""


def write_report(run: Path, images: Images) -> Path:
    """Write ``report.html`` into the run folder and return its path.

    Args:
        run: the run folder.
        images: of the run's shape; the first few hundred are scored for the page.

    Raises:
        CheckpointError: the run cannot be loaded.
        ResourceError: the page cannot be written.
    """
    folder = RunFolder(run)
    header, records = folder.read_metadata(), folder.read_metrics()
    flow = load(run)
    few = images.take(np.arange(min(_SCORED, len(images))))
    if flow.context_net is not None:
        few = dataclasses.replace(few, labels=labels_of(header, few))
    figure = bits(flow, few.pixels, labels=few.labels if flow.context_net is not None else None)
    order = figure.per_image.argsort()
    best, worst = order[:_SHOWN], order[::-1][:_SHOWN]
    temperatures = (0.7, 1.0)
    parts = [
        f"<h1>{html.escape(str(header.get('recipe') or run.name))}</h1>",
        _headline(header),
        _section("Training", _plot(records), "Validation uses the moving average of the weights."),
        *(
            _section(
                f"Samples at temperature {t:g}",
                _picture(draw_pixels(flow, 64, seed=1, temperature=t)[0]),
            )
            for t in temperatures
            if len(flow.shape) == 3
        ),
        _reconstructions(flow, few),
        _extremes("Fewest bits/dim", few, figure.per_image, best),
        _extremes("Most bits/dim", few, figure.per_image, worst),
        _section("Settings", _table(header)),
    ]
    page = (
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{html.escape(run.name)}"
        f"</title><style>{_STYLE}</style><body>{''.join(parts)}</body></html>\n"
    )
    path = run / "report.html"
    write_atomically(path, page.encode())
    return path


def _headline(header: dict[str, Any]) -> str:
    result = header.get("result")
    if not result:
        return f"<p>status: {html.escape(str(header.get('status')))}</p>"
    return (
        f"<p><span class='big'>{result['bits_per_dim']:.3f} bits/dim</span> ± "
        f"{result['standard_error'] or 0:.3f} on {result['images']} validation images of "
        f"{html.escape(result['dataset_id'])}: {kind_of(result)}, after "
        f"{header.get('steps')} steps and {header.get('seconds', 0) / 60:.1f} minutes; "
        f"{header.get('parameters', 0):,} parameters.</p>"
    )


def _section(title: str, body: str, note: str = "") -> str:
    note = f"<p class='note'>{html.escape(note)}</p>" if note else ""
    return f"<h2>{html.escape(title)}</h2>{body}{note}"


def _plot(records: list[dict[str, Any]]) -> str:
    """Bits/dim against steps."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.subplots()
    train = [r for r in records if r["kind"] == "train"]
    validation = [r for r in records if r["kind"] == "validation"]
    name = "bits_per_dim" if any("bits_per_dim" in r for r in train) else "objective"
    label = "training" if name == "bits_per_dim" else "training objective (batch norm)"
    axes.plot([r["step"] for r in train], [r[name] for r in train], lw=0.8, label=label)
    axes.plot(
        [r["step"] for r in validation],
        [r["bits_per_dim"] for r in validation],
        "o-",
        ms=4,
        label="validation",
    )
    values = sorted(r[name] for r in train) + [r["bits_per_dim"] for r in validation]
    if values:
        low, high = min(values), np.quantile(values, 0.98)
        axes.set_ylim(low - 0.05 * (high - low) - 0.01, high + 0.05 * (high - low) + 0.01)
    axes.set_xlabel("step")
    axes.set_ylabel("bits/dim")
    axes.grid(alpha=0.3)
    axes.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return _embed(buffer.getvalue(), "plot")


def _picture(pixels: np.ndarray, columns: int | None = None) -> str:
    scale = max(1, 64 // pixels.shape[-1])
    return _embed(_png(pictures.grid(pixels, columns=columns, scale=scale)))


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _embed(png: bytes, kind: str = "") -> str:
    data = base64.b64encode(png).decode()
    return f"<img class='{kind}' alt='' src='data:image/png;base64,{data}'>"


def _reconstructions(flow: Flow, images: Images) -> str:
    """Images, what comes back from their latents, and from latents moved towards the mean."""
    few = images.take(np.arange(min(_REBUILT, len(images))))
    context = None
    if flow.context_net is not None and few.labels is not None:
        context = torch.from_numpy(few.labels)
    x = as_tensor(few.pixels)
    z = flow.encode(x, context)
    back = flow.decode(z, context)
    shrunk = flow.decode(0.7 * z, context)
    wrong = int((back.to(torch.int64) != x.to(torch.int64)).sum())
    rows = np.concatenate([few.pixels, to_pixels(flow, back), to_pixels(flow, shrunk)])
    note = (
        f"From above: images; decoded from their latents ({wrong} of {x.numel():,} values differ); "
        "decoded from 0.7 times their latents."
    )
    return _section("Reconstructions", _picture(rows, columns=len(few)), note)


def _extremes(title: str, images: Images, per_image: np.ndarray, chosen: np.ndarray) -> str:
    figures = ", ".join(f"{per_image[i]:.2f}" for i in chosen)
    note = f"In order: {figures} bits/dim; of {len(images)} images of {images.dataset_id}."
    return _section(title, _picture(images.take(chosen).pixels, columns=_SHOWN // 2), note)


def _table(header: dict[str, Any]) -> str:
    rows = []
    for key, value in header.items():
        shown = value if isinstance(value, str) else json.dumps(value)
        if isinstance(value, dict):
            shown = ", ".join(f"{k} {json.dumps(v)}" for k, v in value.items())
        rows.append(f"<tr><td>{html.escape(key)}</td><td>{html.escape(shown)}</td></tr>")
    return f"<table>{''.join(rows)}</table>"
