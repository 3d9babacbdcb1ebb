"""The page of outliers: most and least outlying images, scores and thresholds, what they mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mixerflow import page, plots
from mixerflow.core import Flow
from mixerflow.data import Images
from mixerflow.detection import (
    GROUPS,
    Detection,
    Fitted,
    Measured,
    Outliers,
    Threshold,
    is_mixture,
    note_of,
    outliers,
    percent,
    second_half,
)
from mixerflow.report.sections import Section, body_of
from mixerflow.report.shown import grid, visible
from mixerflow.runs import InsideFit

HEAD = ["score", "threshold", "images beyond", "false alarms asked for (95 % interval)"]
"""Columns of `beyond_rows`."""
SHOWN = 16
"""Images of a grid."""
_CURVES = 6
"""Classes that have a histogram each."""
_ROWS = 100
"""Classes that have a row each."""
WARNING = (
    "A likely image need not come from the inside. Simple images (smooth, dark, or of few colours) "
    "can have fewer bits/dim than the images that a flow was trained on, whatever they show "
    "(Nalisnick et al. 2019, arXiv:1810.09136): the score bits alone overlooks them. Typicality "
    "calls what is too likely an outlier too; complexity, ratio and mixture correct for how simple "
    "an image is. A score below its threshold says only that this score sees nothing unusual."
)


def make_outliers_page(
    path: Path,
    flow: Flow,
    images: Images,
    found: Outliers,
    *,
    title: str,
    by: str,
    inside: Measured | None = None,
    compared: Mapping[str, Detection] | None = None,
    against: str = "these images",
    maps: Sequence[tuple[str, bytes]] = (),
    origin: Mapping[str, Any] | None = None,
    weights: str = "",
) -> Path:
    """Write the page of the outliers among images, and return its path.

    Args:
        path: the page's file.
        flow: the flow that the scores are of.
        images: the images ``(N, *shape)`` that were scored, perhaps with classes.
        found: their scores, and what was fitted.
        title: what the page is called, such as the run's name.
        by: the score that orders the images, such as "complexity".
        inside: what is known of the inside images that the scores were fitted to; of the half that
            gave the thresholds there are histograms beside.
        compared: score -> how well it tells these images from inside ones.
        against: words for the images that `compared` takes as outliers.
        maps: captions and PNG files of pictures that show where in an image the outlier lies.
        origin: what is known of where the inside images are from: their "dataset_id" and "split".
        weights: words for the flow's weights, such as "best checkpoint, averaged".

    Raises:
        ValueError: not one score for each image.
        ResourceError: the page cannot be written.
    """
    if len(images) != len(found):
        raise ValueError(f"make_outliers_page: {len(found)} scores of {len(images)} images")
    order = found.order(by)
    known = None
    if inside is not None:
        known = Outliers.of(second_half(inside), found.fitted)
    sections = [
        _beyond(found),
        _ordered("Most outlying", flow, images, found, by, order[:SHOWN]),
        _ordered("Least outlying", flow, images, found, by, order[::-1][:SHOWN]),
    ]
    if maps:
        pairs = [(page.picture(png, words), page.note(words)) for words, png in maps]
        sections.append(Section("Where they lie", [each for pair in pairs for each in pair]))
    sections.append(_histograms(images, found, known))
    if (labels := _classes(images)) and len(labels) <= _ROWS:
        sections.append(_by_class(labels, found))
    if compared:
        sections.append(_compared(compared, against))
    sections += [_thresholds(found.fitted, origin), _meanings(found.fitted)]
    count = f"{len(images):,} image{'' if len(images) == 1 else 's'} of {images.dataset_id}"
    start = [page.heading(f"Outliers: {title}", level=1)]
    told = f" Weights of the flow: {weights}." if weights else ""
    start.append(page.paragraph(f"{count}. A larger score is more outlying.{told}"))
    start += [page.paragraph(f"{words[0].upper()}{words[1:]}.")] if (words := note_of(flow)) else []
    start.append(page.paragraph(WARNING))
    return page.write(path, f"Outliers: {title}", [*start, *body_of(sections)])


def section_of_run(flow: Flow, images: Images, fit: InsideFit) -> list[Section]:
    """Say how many images of a run's page lie beyond the thresholds that were fitted for the run.

    Scores that need a background flow are left out.
    """
    fitted = fit.fitted
    pairs = zip(fitted.scores, fitted.thresholds, strict=True)
    kept = [pair for pair in pairs if "background" not in pair[0].needs]
    if not kept:
        words = "All thresholds that the run keeps are of scores that need a background flow."
        return [Section("Outliers", [page.paragraph(words)])]
    scores, thresholds = zip(*kept, strict=True)
    fewer = replace(fitted, scores=scores, thresholds=thresholds)
    without = flow.context_net is None or is_mixture(flow)
    labels = None if without else images.labels
    found = outliers(flow, images.pixels, fewer, labels=labels)
    table = page.table(HEAD, beyond_rows(found), label="Images beyond each threshold")
    note = f"Of the page's images. A larger score is more outlying. {WARNING}"
    origin = page.paragraph(_inside_words(fitted, fit.images))
    return [Section("Outliers", [table, origin, page.note(note)])]


def threshold_of_bits(flow: Flow, fitted: Fitted) -> Threshold | None:
    """Return the threshold of plain bits/dim, if that is among the scores.

    There is none for a class-conditional flow, whose thresholds are of the mixture of its classes.
    """
    if is_mixture(flow):
        return None
    pairs = zip(fitted.scores, fitted.thresholds, strict=True)
    return next((threshold for score, threshold in pairs if score.name == "bits"), None)


def beyond_rows(found: Outliers) -> list[list[str]]:
    """Return a row for each score: its name, its threshold, and how many images lie beyond."""
    rows = []
    for name in found.scores:
        threshold = found.fitted.threshold(name)
        low, high = map(percent, threshold.interval())
        rate = f"{100 * threshold.false_alarms:g} % ({low} to {high} %)"
        rows.append([name, f"{threshold.value:.4g}", _share(found.flags(name)), rate])
    return rows


def _share(flags: np.ndarray) -> str:
    return f"{flags.sum():,} of {len(flags):,} ({100 * flags.mean():.3g} %)"


def _beyond(found: Outliers) -> Section:
    """Say how many images lie beyond each threshold, and how many groups of them."""
    parts = [page.table(HEAD, beyond_rows(found), label="Images beyond each threshold")]
    limit, size = found.fitted.group_threshold, found.fitted.group
    groups = found.groups()
    if limit is not None and len(groups):
        together = f"Groups of {size} images in their order, by the mean of their bits/dim"
        share = _share(limit.flags(groups))
        parts.append(page.paragraph(f"{together}: {share} groups lie beyond {limit.value:.4g}."))
    nan = np.any([np.isnan(each) for each in found.scores.values()], axis=0)
    if nan.any():
        words = f"{nan.sum():,} images have a score that is not a number: they count as outliers."
        parts.append(page.paragraph(words))
    return Section("Images beyond the thresholds", parts)


def _ordered(
    title: str, flow: Flow, images: Images, found: Outliers, by: str, order: np.ndarray
) -> Section:
    """Show images in an order, with all their scores."""
    chosen, flags = images.take(order), {name: found.flags(name) for name in found.scores}
    rows = []
    for number in order:
        marks = {name: " *" if each[number] else "" for name, each in flags.items()}
        words = [f"{each[number]:.4g}{marks[name]}" for name, each in found.scores.items()]
        file = images.files[number : number + 1]
        rows.append([f"{number:,}", *file, *_class_of(images, number), *words])
    head = ["image", *(["file"] if images.files else [])]
    head += [*(["class"] if _classes(images) else []), *found.scores]
    alt = f"The {len(order)} {title.lower()} images by the score {by}"
    note = f"In order by {by}; images are counted from 0; * is beyond the score's threshold."
    table = page.table(head, rows, label=f"Scores of the {title.lower()} images")
    return Section(title, [grid(visible(flow, chosen), alt, 8), page.note(note), table])


def _classes(images: Images) -> dict[str, np.ndarray]:
    """Return which images ``(N,)`` have each class, by name; nothing where there are no classes."""
    labels = images.labels
    if labels is None or labels.ndim > 1:
        return {}
    return {_name(images, int(each)): labels == each for each in np.unique(labels)}


def _class_of(images: Images, number: int) -> list[str]:
    labels = images.labels
    return [] if labels is None or labels.ndim > 1 else [_name(images, int(labels[number]))]


def _name(images: Images, label: int) -> str:
    if label < 0:
        return "without a class"
    return images.classes[label] if label < len(images.classes) else f"class {label}"


def _histograms(images: Images, found: Outliers, inside: Outliers | None) -> Section:
    """Show each score of the images, by class where there are few, and of inside ones beside."""
    classes = _classes(images)
    by_class = 1 < len(classes) <= _CURVES
    around, parts = None if inside is None else "inside images", []
    for name, scores in found.scores.items():
        sets = {} if inside is None else {"inside images": inside.scores[name]}
        given = {f"these, {each}": scores[mask] for each, mask in classes.items()}
        sets |= given if by_class else {"these images": scores}
        limit = found.fitted.threshold(name).value
        drawn = plots.histogram(sets, label=f"score: {name}", threshold=limit, around=around)
        told = f"{drawn} The line is the threshold, {limit:.4g}."
        alt = f"Histogram of the score {name}. {told}"
        parts += [page.heading(name, level=3), page.picture(drawn.png, alt, "plot")]
        parts.append(page.note(told))
    if inside is not None:
        half = f"Inside images are the {len(inside):,} that gave the thresholds"
        parts.append(page.note(f"{half}; no score was fitted to them."))
    return Section("Scores", parts)


def _by_class(classes: Mapping[str, np.ndarray], found: Outliers) -> Section:
    """Say which share of each class lies beyond each threshold."""
    flags = {name: found.flags(name) for name in found.scores}
    rows = [
        [name, f"{mask.sum():,}", *(f"{100 * each[mask].mean():.3g} %" for each in flags.values())]
        for name, mask in classes.items()
    ]
    head = ["class", "images", *flags]
    title = "Images beyond the thresholds, by class"
    return Section(title, [page.table(head, rows, label=title)])


def _compared(compared: Mapping[str, Detection], against: str) -> Section:
    """Show how well each score tells these images from inside ones."""
    rows, sizes = [], set()
    for name, each in compared.items():
        figures = ((each.auroc, each.auroc_error), (each.aupr, each.aupr_error))
        figures += ((each.fpr95, each.fpr95_error),)
        rows.append([name, *(_figure(*pair) for pair in figures)])
        if name != GROUPS:
            sizes.add(f"{each.outside:,} outliers beside {each.inside:,} images of the inside")
    head = ["score", "AUROC", "AUPR", "FPR95"]
    note = (
        f"As if outliers were {against}: {' or '.join(sorted(sizes))}. An outlier is the positive "
        "class; ± is a standard error over images. AUROC: chance is 0.5, and below it the score is "
        "the wrong way round. "
        "FPR95: the share of inside images that are flagged where 95 % of the outliers are."
    )
    table = page.table(head, rows, label="How well each score tells outliers")
    return Section("How well the scores tell them", [table, page.note(note)])


def _figure(value: float, error: float) -> str:
    return f"{value:.3f}" if np.isnan(error) else f"{value:.3f} ± {error:.3f}"


def _inside_words(fitted: Fitted, origin: Mapping[str, Any]) -> str:
    """Say how many inside images gave the thresholds, of which set, and of which part of it."""
    name, split = origin.get("dataset_id"), origin.get("split")
    told = f"The inside: {fitted.images:,} images of "
    if name is None:
        return f"{told}a set whose name is not kept."
    return f"{told}{name}." if split in (None, "all") else f"{told}{name}, its {split} part."


def _thresholds(fitted: Fitted, origin: Mapping[str, Any] | None) -> Section:
    """Say what the thresholds mean, and which images gave them."""
    pairs = zip(fitted.scores, fitted.thresholds, strict=True)
    words = [] if origin is None else [_inside_words(fitted, origin)]
    words += [f"{score.name}, {threshold}." for score, threshold in pairs]
    if fitted.group_threshold is not None:
        groups = str(fitted.group_threshold).replace(" images", " groups")
        words.append(f"Groups of {fitted.group} images, {groups}.")
    note = (
        f"Half of {fitted.images:,} inside images taught the scores, the others gave the "
        "thresholds. A score above its threshold is an outlier's. A false alarm is an inside image "
        "above it; the interval is of the true rate of false alarms, for images drawn as those "
        "were, not for other cameras, sets or times."
    )
    return Section("Thresholds", [*map(page.paragraph, words), page.note(note)])


def _meanings(fitted: Fitted) -> Section:
    """Say what each score is, and who proposed it."""
    rows = [[each.name, each.equation, each.source] for each in fitted.scores]
    table = page.table(["score", "equation", "source"], rows, label="What the scores are")
    note = f"Mean bits/dim of the inside images that taught the scores: {fitted.entropy:.3f}."
    return Section("What the scores are", [table, page.note(note)])
