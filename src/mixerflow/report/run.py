"""A run as one page: curves, figures, samples, reconstructions, extremes, settings."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mixerflow import page
from mixerflow.core import Flow
from mixerflow.data import Images
from mixerflow.errors import CheckpointError
from mixerflow.evaluate import Bits, DrawnPixels, bits, draw_pixels, kind_of, probes_of
from mixerflow.evaluate.codecs import CodecBits, sample_of
from mixerflow.report import sections
from mixerflow.report.outliers import section_of_run, threshold_of_bits
from mixerflow.report.sections import Section, body_of
from mixerflow.runs import InsideFit, RunFolder, device_of, kept_fit, labels_of, read_weights
from mixerflow.runs.weights import Weights

SCORED = 500
"""Images of a set that the page is about."""
_TEMPERATURES = (0.7, 1.0)


@dataclass(frozen=True)
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


def make_report(
    run: Path,
    images: Images,
    parts: Mapping[str, Images] | None = None,
    *,
    most: int = SCORED,
    code: Callable[[Flow, Images], list[CodecBits]] | None = None,
) -> Report:
    """Score images of the shape of the run's, and make the run's page.

    Of more than `most` images a sample is taken, the same each time.

    Args:
        run: the run folder.
        images: what the page is about.
        parts: sets whose bits/dim are compared, by name, `images` perhaps among them.
        most: images of each set that are scored.
        code: codes images of a flow with lossless codecs; without it the page has no codecs.
    """
    folder = RunFolder(run)
    metadata, records = folder.read_started(), folder.read_metrics()
    weights = read_weights(run)
    flow = weights.flow(device_of("cpu"))
    shown = _shown(flow, metadata, images, most)
    figure = _score(flow, shown)
    figures = {
        name: figure if each is images else _score(flow, _shown(flow, metadata, each, most))
        for name, each in (parts or {"": images}).items()
    }
    order = figure.per_image.argsort()
    drawn = _drawn(flow, shown)
    first, rest = _outliers(run, weights, flow, shown, figures)
    if code is not None:
        rest.append(sections.codecs(flow, shown, figure, code(flow, shown)))
    body = body_of(
        [
            sections.training(records),
            first,
            *rest,
            *(sections.samples(each, t, flow.levels) for t, each in drawn.items()),
            sections.reconstructions(flow, shown),
            sections.extremes("Fewest bits/dim", flow, shown, figure, order),
            sections.extremes("Most bits/dim", flow, shown, figure, order[::-1]),
            _settings(metadata, drawn),
        ]
    )
    name = run.resolve().name
    heading = page.heading(str(metadata.get("recipe") or name), level=1)
    return Report(figure, name, [heading, _headline(metadata), *body])


def _drawn(flow: Flow, images: Images) -> dict[float, DrawnPixels]:
    """Return samples by temperature, of the contexts of images if the flow takes some."""
    examples = None if flow.context_net is None else images.labels
    return {
        temperature: draw_pixels(flow, 64, seed=1, temperature=temperature, examples=examples)
        for temperature in _TEMPERATURES
    }


def _outliers(
    run: Path, weights: Weights, flow: Flow, images: Images, figures: Mapping[str, Bits]
) -> tuple[Section, list[Section]]:
    """Return the histogram of the figures, and what the thresholds say that the run keeps."""
    fit, why = _kept(run, weights)
    if fit is None:
        rest = [Section("Outliers", [page.paragraph(why)])] if why else []
        return sections.distributions(figures), rest
    limit = threshold_of_bits(flow, fit.fitted)
    return sections.distributions(figures, limit), section_of_run(flow, images, fit)


def _settings(metadata: dict[str, Any], drawn: Mapping[float, DrawnPixels]) -> Section:
    rows = [[key, _setting(value)] for key, value in metadata.items()]
    rows += [[f"samples at {t:g}", sections.setting_of(each)] for t, each in drawn.items()]
    return Section("Settings", [page.table([], rows, label="Settings")])


def _kept(run: Path, weights: Weights) -> tuple[InsideFit | None, str]:
    """Return the outlier scores that a run keeps for these weights; and why it has none of use."""
    try:
        fit = kept_fit(run)
    except CheckpointError as error:
        return None, f"The thresholds of outliers cannot be used: {error}."
    if fit is None:
        return None, ""
    if fit.key.get("weights_sha256") != weights.sha256:
        return None, "The thresholds of outliers are of other weights: fit them again."
    return fit, ""


def _shown(flow: Flow, metadata: dict[str, Any], images: Images, most: int) -> Images:
    """Return the images of a page, in their old order, with labels in the flow's numbering."""
    if len(images) > most:
        images = images.take(np.sort(sample_of(images, most)))
    if flow.context_net is None:
        return images
    return replace(images, labels=labels_of(flow, metadata, images))


def _score(flow: Flow, images: Images) -> Bits:
    return bits(flow, images, labels=None if flow.context_net is None else images.labels)


def _headline(metadata: dict[str, Any]) -> str:
    result = metadata.get("result")
    if not result:
        return page.paragraph(f"status: {metadata.get('status')}")
    if result["bits_per_dim"] is None:
        return page.paragraph(f"not finite on {result['images']} validation images")
    accuracy = result.get("accuracy")
    told = "" if accuracy is None else f", {100 * accuracy:.1f} % of their classes told right"
    kind = ", ".join(filter(None, (kind_of(result), probes_of(result))))
    return (
        f"<p><span class='big'>{result['bits_per_dim']:.3f} bits/dim</span> ± "
        f"{result['standard_error'] or 0:.3f} on {result['images']} validation images of "
        f"{page.escape(result['dataset_id'])}: {kind}{told}, after "
        f"{metadata.get('steps')} steps and {metadata.get('seconds', 0) / 60:.1f} minutes; "
        f"{metadata.get('parameters', 0):,} parameters.</p>"
    )


def _setting(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {json.dumps(each)}" for name, each in value.items())
    return value if isinstance(value, str) else json.dumps(value)
