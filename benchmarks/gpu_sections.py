"""The tables of `benchmarks.gpu`: of which parts each is, and how its rows become cells."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.common import figure

Row = dict[str, Any]
Cell = Callable[[Row], str]


def _plain(name: str) -> Cell:
    return lambda row: str(row[name])


def _number(name: str) -> Cell:
    def cell(row: Row) -> str:
        value = row[name]
        return "-" if value is None else figure(value) if value >= 0.01 else f"{value:.1e}"

    return cell


def _share(name: str) -> Cell:
    return lambda row: "-" if row[name] is None else f"{row[name]:.0%}"


def _spread(name: str) -> Cell:
    """Median, least and most, mean."""

    def cell(row: Row) -> str:
        median, least, most, mean = (
            figure(row[name][key]) for key in ("median", "least", "most", "mean")
        )
        return f"**{median}** ({least}-{most}), {mean}"

    return cell


def _memory(row: Row) -> str:
    return f"{row['peak_gib']:.2f} / {row['reserved_gib']:.2f}" if "peak_gib" in row else "-"


def _paths(row: Row) -> str:
    return "; ".join(f"{n} {path}" for path, n in row["paths"].items())


def _floor(row: Row) -> str:
    us = row["floor_us"]
    return f"{figure(us['overlap'])} / {figure(us['serial'])} ({row['bound']})"


Section = tuple[str, str, dict[str, Cell]]
SECTIONS: tuple[Section, ...] = (
    (
        "Right? Errors over what is allowed: below 1",
        "proof",
        {
            "kind": _plain("kind"),
            "length": _plain("length"),
            "precision": _plain("precision"),
            "keep": _plain("keep"),
            "error / allowed": _number("worst_error"),
            "right": _plain("right"),
        },
    ),
    (
        "Right? Bits/dim of a whole flow",
        "whole",
        {
            "images": _plain("images"),
            "kernels": _number("kernels"),
            "operators": _number("operators"),
            "operators, float32": _number("float32"),
            "kernels off by at most": _number("most"),
            "operators off by": _number("operators_most"),
            "paths": _paths,
        },
    ),
    (
        "Right? Gradients of a whole flow",
        "whole",
        {
            "kernels off by, relative": _number("relative_error"),
            "operators off by": _number("operators_error"),
            "twice the same": _plain("twice_the_same"),
        },
    ),
    ("Ceilings: copy", "ceilings", {"TB/s, read and written": _number("tbs")}),
    ("Ceilings: products", "ceilings", {"of": _plain("what"), "TFLOP/s": _number("tflops")}),
    ("Ceilings: a kernel in a graph", "ceilings", {"us": _spread("us")}),
    (
        "Floors of a training step at these rates",
        "floors",
        {
            "precision": _plain("precision"),
            "batch": _plain("batch"),
            "how": _plain("how"),
            "ms": _number("ms"),
            "images/s": _number("images_per_second"),
        },
    ),
    (
        "Training",
        "train",
        {
            "batch": _plain("batch"),
            "images/s": _number("images_per_second"),
            "ms: median (least-most), mean": _spread("ms"),
            "steps": _plain("steps"),
            "peak GiB / reserved": _memory,
            "finite": _plain("finite"),
            "paths": _paths,
        },
    ),
    (
        "Where the flagship's time goes",
        "profile",
        {
            "busy us": _number("busy_us"),
            "wall us": _number("wall_us"),
            "kernels a step": _number("kernels"),
        },
    ),
    (
        "Where the flagship's time goes, by kernel, a step",
        "profile",
        {
            "kernel": lambda row: f"`{row['kernel'][:60]}`",
            "calls": _number("calls"),
            "us": _number("us"),
            "share": _share("share"),
        },
    ),
    (
        "Row-flow steps: us measured, and floors (overlap / serial)",
        "kernels",
        {
            "kind": _plain("kind"),
            "kernels of the": _plain("part"),
            "us": _number("us"),
            "floor us": _floor,
            "of the floor": _share("of_floor"),
            "of the matrix peak": _share("of_matrix_peak"),
            "steps": _plain("steps"),
        },
    ),
    (
        "Kernels one by one",
        "kernels",
        {
            "kind": _plain("kind"),
            "kernel": _plain("kernel"),
            "launches": _plain("launches"),
            "us: median (least-most), mean": _spread("us"),
        },
    ),
    (
        "Scoring and sampling",
        "infer",
        {
            "flow": _plain("flow"),
            "job": lambda row: row["job"] + (", graph" if row["graph"] else ""),
            "images/s": _number("images_per_second"),
            "ms: median (least-most), mean": _spread("ms"),
            "peak GiB / reserved": _memory,
        },
    ),
    (
        "Sizes and precisions",
        "sweep",
        {
            "setup": _plain("setup"),
            "kind": _plain("kind"),
            "kernel": _plain("kernel"),
            "us: median (least-most), mean": _spread("us"),
        },
    ),
    (
        "Memory of a training step",
        "memory",
        {
            "layers": _plain("layers"),
            "batch": _plain("batch"),
            "keep": _plain("keep"),
            "memory": _plain("memory"),
            "peak GiB / reserved": _memory,
            "beyond weights, gradients, moments": lambda row: str(row.get("beyond_gib", "-")),
            "finite": _plain("finite"),
        },
    ),
    (
        "Other libraries",
        "rival",
        {
            "model": _plain("model"),
            "precision": _plain("precision"),
            "job": _plain("job"),
            "images/s": _number("images_per_second"),
            "ms: median (least-most), mean": _spread("ms"),
        },
    ),
)
