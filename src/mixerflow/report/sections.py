"""The sections of a run's page: each a title and HTML fragments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from mixerflow import page, plots
from mixerflow.core import Flow, Samples, as_tensor, is_estimated
from mixerflow.data import Images
from mixerflow.detection import Threshold
from mixerflow.evaluate import Bits, DrawnPixels, kind_of, to_pixels
from mixerflow.evaluate.codecs import CodecBits, sample_of, shuffle_of, without_files
from mixerflow.means import mean_and_error
from mixerflow.report.shown import grid, visible

EXTREMES, _RECONSTRUCTED = 16, 10


class Section(NamedTuple):
    """A section of a page.

    Attributes:
        title: its heading.
        parts: HTML fragments.
    """

    title: str
    parts: list[str]


def body_of(parts: list[Section]) -> list[str]:
    """Return links to the sections, and the sections."""
    body = [page.contents(part.title for part in parts)]
    for part in parts:
        body += [page.heading(part.title), *part.parts]
    return body


def training(records: Sequence[Mapping[str, Any]]) -> Section:
    """Show the curves of a run's metrics."""
    curves = page.picture(
        plots.training_plot(records), f"Bits/dim by step. {_ends(records)}", "plot"
    )
    parts = [curves]
    if accuracies := plots.accuracy_plot(records):
        parts.append(page.picture(accuracies, "Accuracy of the head by step", "plot"))
    kinds = sorted({kind_of(record) for record in records if record["kind"] == "validation"})
    told = f": {'; '.join(kinds)}" if kinds else ""
    words = f"Validation uses the moving average of the weights{told}."
    if any(record["kind"] == "train" and is_estimated(record.get("density")) for record in records):
        words += " The curve of training is of unbiased estimates too, one an image."
    note = page.note(words)
    return Section("Training", [*parts, note])


def _ends(records: Sequence[Mapping[str, Any]]) -> str:
    """Return the first and the last validation figure in words."""
    found = [record for record in records if record["kind"] == "validation"]
    known = [record for record in found if record["bits_per_dim"] is not None]
    if not known:
        return "No validation figure yet"
    words = (
        f"{each['bits_per_dim']:.3f} after step {each['step']}"
        for each in known[:: len(known) - 1 or 1]
    )
    return f"Validation: {', '.join(words)}"


def distributions(figures: Mapping[str, Bits], threshold: Threshold | None = None) -> Section:
    """Show the bits/dim of the images of several sets beside each other.

    Args:
        figures: name -> figures of its images.
        threshold: of bits/dim, beyond which an image is an outlier.
    """
    sets = {f"{name} images".strip(): figure.per_image for name, figure in figures.items()}
    limit = None if threshold is None else threshold.value
    drawn = plots.histogram(sets, label="bits/dim of an image", threshold=limit)
    kinds = sorted({figure.kind for figure in figures.values()})
    what = " and ".join(f"{len(each):,} {name}" for name, each in sets.items())
    note = f"{what}: {'; '.join(kinds)}. {drawn}"
    if {"training"} < {*figures}:
        note += " A flow over-fits where the training images have clearly fewer bits/dim."
    if threshold is not None:
        beyond = (
            f"{threshold.flags(each).sum():,} of {len(each):,} {k}" for k, each in sets.items()
        )
        note += f" Beyond the threshold of outliers, {limit:.4g}: {', '.join(beyond)}."
    alt = f"Histogram of bits/dim of {what}. {drawn}"
    return Section("Bits/dim of images", [page.picture(drawn.png, alt, "plot"), page.note(note)])


def codecs(flow: Flow, images: Images, figure: Bits, rows: Sequence[CodecBits]) -> Section:
    """Show PNG and WebP beside the flow on the same images.

    Args:
        flow: the flow.
        images: the page's images.
        figure: their figures.
        rows: codecs' figures of a sample of them, see `mixerflow.evaluate.codecs.sample_of`.
    """
    count = rows[0].images
    own = figure.per_image[sample_of(images, count)]
    figures = [("the flow, ideal", *mean_and_error(own))]
    figures += [(row.name, row.bits_per_dim, row.standard_error) for row in rows]
    lines = [
        [
            name,
            f"{mean:.3f}",
            "" if error is None else f"{error:.3f}",
            f"{mean * flow.dims / 8:,.1f}",
        ]
        for name, mean, error in figures
        if mean is not None
    ]
    head = ["lossless code", "bits/dim", "± s.e.", "bytes an image"]
    plural = "" if len(images) == 1 else "s"
    seen = ", coded shuffled, as the model sees them" if shuffle_of(flow) is not None else ""
    note = (
        f"Of {count:,} of the page's {len(images):,} image{plural}{seen}. Codecs' files "
        "count with their headers; a sheet is one picture of all images. The flow's bytes are "
        f"ideal, log2(1 / p(x)) / 8, without a coder ({figure.kind})."
    )
    parts = [page.table(head, lines, label="Lossless codecs beside the flow"), page.note(note)]
    if words := without_files([*rows], images):
        parts.append(page.paragraph(f"{words}."))
    return Section("Lossless codecs", parts)


def samples(drawn: DrawnPixels, temperature: float, levels: int | None) -> Section:
    """Show samples at a temperature, and say how many of their values are no values of images."""
    alt = f"Grid of {len(drawn.pixels)} samples at temperature {temperature:g}"
    note = page.note(words_of(drawn, levels))
    return Section(f"Samples at temperature {temperature:g}", [grid(drawn.pixels, alt), note])


def words_of(drawn: DrawnPixels, levels: int | None) -> str:
    """Return a sentence on sampled values outside the levels, and on those that are not finite."""
    share = _share(drawn.clamped, drawn.values)
    if levels is None:
        words = "The values are real numbers: none is clamped"
    else:
        words = (
            f"Before clamping, {share} of the sampled values lay outside the levels 0 to "
            f"{levels - 1:,}"
        )
    if not drawn.nonfinite_values:
        return f"{words}; all are finite."
    images = f"{drawn.nonfinite_images} of {len(drawn.nonfinite)} images"
    share = _share(drawn.nonfinite_values, drawn.values)
    return f"{words}; {share}, in {images}, are not finite, shown in magenta."


def setting_of(drawn: DrawnPixels) -> str:
    """Return the two shares for the table of settings."""
    clamped, nonfinite = _share(drawn.clamped, drawn.values), drawn.nonfinite_values
    return f"clamped {clamped}, not finite {_share(nonfinite, drawn.values)}"


def _share(count: int, of: int) -> str:
    return f"{100 * count / max(of, 1):.2g} % ({count:,} of {of:,})"


def reconstructions(flow: Flow, images: Images) -> Section:
    """Show images, and images decoded from their latents and from latents nearer the mean."""
    images = images.first(_RECONSTRUCTED)
    context = None
    if flow.context_net is not None and images.labels is not None:
        context = torch.from_numpy(images.labels)
    x = as_tensor(images.pixels)
    z = flow.encode(x, context)
    decoded = flow.decode_samples(z, context)
    shrunk = flow.decode_samples(0.7 * z, context)
    given = Samples(x, 0, torch.zeros_like(x, dtype=torch.bool))
    rows = (given, decoded, shrunk)
    shown = torch.cat([row.images.cpu() for row in rows])
    nonfinite = torch.cat([row.nonfinite.cpu() for row in rows])
    count = int(nonfinite.sum())
    note = (
        f"From above: images; decoded from their latents ({_difference(x, decoded)}); "
        "decoded from 0.7 times their latents."
        + (" What latents leave open is drawn." if flow.transform.inverse_draws else "")
        + (f" {count} values are not finite, shown in magenta." if count else "")
    )
    pixels = to_pixels(flow, Samples(shown, 0, nonfinite))
    alt = f"{len(images)} images, each above what is decoded from its latents"
    return Section("Reconstructions", [grid(pixels, alt, len(images)), page.note(note)])


def _difference(x: torch.Tensor, decoded: Samples) -> str:
    y = decoded.images.cpu()
    if x.is_floating_point():
        return f"the largest difference is {float((y - x).abs().max()):.2g}"
    wrong = int((y.to(torch.int64) != x.to(torch.int64)).sum())
    return f"{wrong} of {x.numel():,} values differ"


def extremes(title: str, flow: Flow, images: Images, figure: Bits, order: np.ndarray) -> Section:
    """Show the first images of an order, with their bits/dim."""
    indices = order[:EXTREMES]
    figures = ", ".join(f"{figure.per_image[i]:.2f}" for i in indices)
    of = f"of {len(images)} images of {images.dataset_id}"
    note = f"In order: {figures} bits/dim; {of}: {figure.kind}."
    chosen = visible(flow, images)[indices]
    alt = f"The {len(indices)} images with the {title.lower()}"
    return Section(title, [grid(chosen, alt, EXTREMES // 2), page.note(note)])
