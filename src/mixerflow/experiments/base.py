"""What the tables start from: budgets, the paper's models and their small twins, and changes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from mixerflow.experiments.table import Budget, Setup
from mixerflow.models import MAF, MixerFlow
from mixerflow.models.mixerflow_recipes import CIFAR10_TRAINING, TABLE_8, TINY, TWIN_32
from mixerflow.parts import LogitPixels, Model, NoMap, Patching
from mixerflow.registry import evolve, settings_of
from mixerflow.train_config import TrainConfig

# The CPU budgets: every row of a table trains this many steps.
TABLE_3_STEPS = 800
TABLE_8_STEPS = 800
TABLE_10_STEPS = 1500
NORMS_STEPS = 1500
APPENDIX_D_STEPS = 500

CPU = replace(TINY, minutes=None, evaluate_images=500, keep=1)
CPU_IMAGES, CPU_TIME = 2000, "minutes"
_SECONDS = replace(CPU, steps=6, batch=8, initial=8, warmup=1, evaluate_every=3, evaluate_images=8)
TINY_IMAGES, TINY_TIME = 20, "seconds"
GPU_TIME = "days on one GPU"


def setups(paper: Setup, twin: Model, steps: int, cpu: TrainConfig = CPU) -> dict[Budget, Setup]:
    """The three budgets of a column."""
    tiny = evolve(twin, {"layers": 2, "flow_layers": 2, "flow.net.width": 8})
    return {
        "tiny": Setup(tiny, _SECONDS, TINY_IMAGES, TINY_TIME),
        "cpu": Setup(twin, replace(cpu, steps=steps), CPU_IMAGES, CPU_TIME),
        "gpu": paper,
    }


CIFAR10, MNIST = CIFAR10_TRAINING, TABLE_8
TWIN = replace(TWIN_32, patching=Patching(shift=(0, 1)))
BASIC, BASIC_TWIN = (
    evolve(model, {"linear": NoMap(), "patching.shift": (0,)}) for model in (MixerFlow(), TWIN)
)


def changed(**settings: object) -> Callable[[Model], Model]:
    """The base with some settings changed; two underscores stand for the dot of a part's path."""
    paths = {name.replace("__", "."): value for name, value in settings.items()}
    return lambda model: evolve(model, paths)


def deeper(model: Model) -> Model:
    """With twice the layers."""
    assert isinstance(model, MixerFlow)
    return replace(model, layers=2 * model.layers)


def shifted_twice_as_often(model: Model) -> Model:
    """With a shift layer where there was none between two."""
    assert isinstance(model, MixerFlow)
    shift = model.patching.shift
    assert isinstance(shift, tuple)
    return evolve(model, {"patching.shift": shift[len(shift) // 2 :]})


def whole(layers: int) -> Callable[[Model], Model]:
    """MAF over whole images, with nets eight times as wide as the mixer's."""

    def change(model: Model) -> Model:
        photographs = isinstance(model, MixerFlow) and not model.linear.reverses
        return MAF(
            layers=layers,
            width=min(1024, 8 * settings_of(model)["flow.net.width"]),
            batch_norm=layers > 1,
            order="random" if photographs else "sequential",
            pixels=LogitPixels(0.05 if photographs else 1e-6),
        )

    return change
