"""What `benchmarks.gpu` measures, in order of importance."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.common import cores
from benchmarks.gpu_process import Part

_TRAINING = "benchmarks.gpu_train:training"
_FLAGSHIP = {"kernels": True, "precision": "bfloat16", "graph": True}
_OPERATORS = {"kernels": False, "precision": "bfloat16"}
_SINGLE = {"kernels": False, "precision": "float32"}
_BATCH = {"norm": "batch"}
_LOW = [{"precision": "bfloat16"}, {"precision": "bfloat16", "keep": "output"}]
_HIGH = [{"precision": "float32"}]


@dataclass(frozen=True)
class Given:
    """What all parts are given.

    Attributes:
        recipe: whose model and training.
        batches: images a step; the first is that of everything but training.
        seconds: about how long a figure is measured.
        norm: in the nets; one that kernels know.
        tiny: a small model, to see that everything runs.
        results: file of what was measured before.
    """

    recipe: str
    batches: tuple[int, ...]
    seconds: float
    norm: str
    tiny: bool
    results: str


def groups(given: Given) -> list[list[Part]]:
    """Parts that run at the same time, group by group.

    Kernels are timed after they were found to be right; those in float32, which take the longest to
    compile, come after all that can do without them.
    """
    return [
        [_part(given, "ceilings", "benchmarks.gpu_timing:ceilings", 60)],
        _shares(given, "compile bfloat16", "benchmarks.gpu_kernels:compiling", {"ways": _LOW}),
        _checks(given, _LOW),
        [_part(given, "floors", "benchmarks.gpu_micro:floors", 60)],
        *_one_by_one(_first(given), _looks(given), _infers(given)),
        _shares(given, "sweep compile", "benchmarks.gpu_micro:sweep_compiling", {"way": {}}),
        [_part(given, "sweep", "benchmarks.gpu_micro:sweep", 90, way={})],
        _shares(given, "compile float32", "benchmarks.gpu_kernels:compiling", {"ways": _HIGH}),
        _checks(given, _HIGH),
        *_one_by_one(_single(given), _others(given), _memory(given), _last(given), _rivals(given)),
    ]


def _one_by_one(*found: list[Part]) -> list[list[Part]]:
    return [[part] for parts in found for part in parts]


def _part(given: Given, name: str, run: str, limit: float, **more: Any) -> Part:  # noqa: ANN401
    return Part(name, run, asdict(given) | more, limit)


def _shares(given: Given, name: str, run: str, more: dict[str, Any]) -> list[Part]:
    """Of compiling, which would take minutes one by one, and fills a cache on the disk."""
    of = 1 if given.tiny else max(1, min(16, cores()))
    return [
        _part(given, f"{name} {i + 1}/{of}", run, 150, share=i, of=of, **more) for i in range(of)
    ]


def _checks(given: Given, ways: list[dict[str, Any]]) -> list[Part]:
    found = []
    for way in ways:
        words = " ".join(way.values())
        found.append(_part(given, f"proof {words}", "benchmarks.gpu_check:proofs", 120, way=way))
    words = ways[0]["precision"]
    run = "benchmarks.gpu_check:whole"
    return [*found, _part(given, f"whole {words}", run, 120, way=ways[0])]


def _trains(given: Given, name: str, way: dict[str, Any], limit: float = 75) -> Part:
    return _part(given, f"train {name}", _TRAINING, limit, way=way)


def _first(given: Given) -> list[Part]:
    """The flagship, and what it is to be compared with."""
    return [
        _trains(given, "kernels bfloat16 graph", _FLAGSHIP),
        _trains(given, "operators bfloat16 graph", _OPERATORS | {"graph": True}),
        _trains(given, "operators float32", _SINGLE),
        _trains(given, "operators bfloat16", _OPERATORS),
        _trains(given, "kernels bfloat16", _FLAGSHIP | {"graph": False}),
        _trains(given, "kernels bfloat16 graph, keeping outputs", _FLAGSHIP | {"keep": "output"}),
        _trains(given, "operators tf32", _SINGLE | {"tf32": True}),
    ]


def _looks(given: Given) -> list[Part]:
    """Where the flagship's time goes."""
    return [
        _part(given, "profile", "benchmarks.gpu_train:profiled", 60, way=_FLAGSHIP),
        _part(given, "kernels bfloat16", "benchmarks.gpu_micro:kernels", 90, way={}),
    ]


def _infers(given: Given) -> list[Part]:
    return [
        _infer(given, kernels=True, precision="bfloat16"),
        _infer(given, kernels=False, precision="bfloat16"),
        _infer(given, kernels=False, precision="float32"),
    ]


def _infer(given: Given, *, kernels: bool, precision: str) -> Part:
    name = f"infer {'kernels' if kernels else 'operators'} {precision}"
    way = {"kernels": kernels, "precision": precision}
    return _part(given, name, "benchmarks.gpu_infer:inference", 60, way=way)


def _single(given: Given) -> list[Part]:
    """Kernels in float32."""
    return [
        _trains(given, "kernels float32 graph", _FLAGSHIP | {"precision": "float32"}),
        _infer(given, kernels=True, precision="float32"),
    ]


def _others(given: Given) -> list[Part]:
    """More ways to train."""
    graph, nets = {"graph": True}, {"compiled": "nets"}
    return [
        _trains(given, "operators bfloat16 graph, batch norm", _OPERATORS | graph | _BATCH),
        _trains(given, "operators bfloat16, nets compiled", _OPERATORS | nets, 150),
    ]


def _last(given: Given) -> list[Part]:
    """More of them, which take long or tell less."""
    graph, flows = {"graph": True}, {"compiled": "flows"}
    high = {"precision": "float32"}
    return [
        _trains(given, "operators bfloat16 graph, flows compiled", _OPERATORS | graph | flows, 150),
        _trains(given, "operators bfloat16, flows compiled", _OPERATORS | flows, 150),
        _trains(given, "operators float32 graph", _SINGLE | graph),
        _trains(given, "operators tf32 graph", _SINGLE | graph | {"tf32": True}),
        _part(given, "kernels float32", "benchmarks.gpu_micro:kernels", 90, way=high),
    ]


def _memory(given: Given) -> list[Part]:
    layers = [2, 4] if given.tiny else [30, 60, 120]
    batch = 4 if given.tiny else 256
    ways = ({}, {"keep": "output"}, {"memory": "invert"}, {"keep": "output", "memory": "invert"})
    return [
        _part(
            given,
            f"memory {' '.join(way.values()) or 'inputs'}",
            "benchmarks.gpu_train:depths",
            60,
            way=way,
            layers=layers,
            batch=batch,
        )
        for way in ways
    ]


def _rivals(given: Given) -> list[Part]:
    return [
        _part(given, f"rival {name}", "benchmarks.gpu_infer:rivals", 120, library=name)
        for name in ("nflows", "normflows", "FrEIA")
    ]
