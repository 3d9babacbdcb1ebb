"""The importance-weighted figures of a table, apart from its single-sample ones."""

from __future__ import annotations

import statistics
from typing import Any


def weighted_table(column: dict[str, Any]) -> tuple[list[str], list[list[str]]] | None:
    """Return head and rows of a column's importance-weighted figures; None where it has none.

    A gain is the mean over images of the single-sample figure less the importance-weighted one, of
    the same images with the first draw in common; beside it is its standard error over seeds.
    """
    rows, kinds = [], set()
    for row in column["rows"]:
        known = [run["weighted"] for run in row["runs"] if run.get("weighted")]
        if not known:
            continue
        kinds |= {(each["importance_samples"], each["images"]) for each in known}
        bits, gains = ([each[name] for each in known] for name in ("bits_per_dim", "gain"))
        single = [a + b for a, b in zip(bits, gains, strict=True)]
        error = statistics.stdev(gains) / len(gains) ** 0.5 if len(gains) > 1 else None
        gain = f"{statistics.fmean(gains):.4f}" + ("" if error is None else f" ± {error:.4f}")
        figures = (f"{statistics.fmean(each):.4f}" for each in (single, bits))
        rows.append([row["label"], *figures, gain, str(len(known))])
    if not rows:
        return None
    what = ", ".join(f"K = {draws:,}, {images:,} images" for draws, images in sorted(kinds))
    head = ["row", "single-sample, these images", f"importance-weighted ({what})", "gain", "seeds"]
    return head, rows
