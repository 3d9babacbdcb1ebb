"""What the tables start from: budgets, the paper's models and their small twins, and changes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from mixerflow.experiments.table import Budget, Setup
from mixerflow.models import Config, MAFConfig, MixerFlowConfig
from mixerflow.training import TrainConfig

# The CPU budgets: every row of a table trains this many steps.
TABLE_3_STEPS = 800
TABLE_8_STEPS = 800
TABLE_10_STEPS = 1500
NORMS_STEPS = 1500
APPENDIX_D_STEPS = 500

CPU = TrainConfig(
    batch=32,
    lr=5e-3,
    betas=(0.9, 0.99),
    warmup=20,
    ema=0.99,
    initial=1000,
    evaluate_images=500,
    keep=1,
)
CPU_IMAGES, CPU_TIME = 2000, "minutes"
TINY = replace(CPU, steps=6, batch=8, initial=8, warmup=1, evaluate_every=3, evaluate_images=8)
TINY_IMAGES, TINY_TIME = 20, "seconds"
GPU_TIME = "days on one GPU"


def setups(
    paper: Setup, twin: MixerFlowConfig, steps: int, cpu: TrainConfig = CPU
) -> dict[Budget, Setup]:
    """The three budgets of a column."""
    tiny = replace(twin, layers=2, hidden=8, flow_layers=2)
    return {
        "tiny": Setup(tiny, TINY, TINY_IMAGES, TINY_TIME),
        "cpu": Setup(twin, replace(cpu, steps=steps), CPU_IMAGES, CPU_TIME),
        "gpu": paper,
    }


CIFAR10 = TrainConfig(steps=400_000, batch=512, lr=1e-3)
MNIST = TrainConfig(steps=50_000, batch=512, lr=5e-4)
MNIST_SHAPE, CIFAR10_SHAPE = (1, 28, 28), (3, 32, 32)

PAPER = MixerFlowConfig()
TWIN = MixerFlowConfig(layers=4, hidden=64, shift_every=2, scale_bound=2.0)
BASIC = replace(PAPER, linear="none", shift=0)
BASIC_TWIN = replace(TWIN, linear="none", shift=0)
PAPER_TWIN = replace(TWIN, shift=1)
PAPER_MNIST = MixerFlowConfig(hidden=64, shift=0, linear="RLU")
TWIN_MNIST = replace(TWIN, shift=0, linear="RLU")


def changed(**settings: object) -> Callable[[Config], Config]:
    """The base with some settings changed."""
    return lambda model: replace(model, **settings)  # pyright: ignore[reportArgumentType]


def deeper(model: Config) -> Config:
    """With twice the layers."""
    return replace(model, layers=2 * model.layers)


def shifted_twice_as_often(model: Config) -> Config:
    """With a shift layer where there was none between two."""
    assert isinstance(model, MixerFlowConfig)
    return replace(model, shift_every=model.shift_every // 2)


def whole(layers: int) -> Callable[[Config], Config]:
    """MAF over whole images, with nets eight times as wide as the mixer's."""

    def change(model: Config) -> Config:
        photographs = isinstance(model, MixerFlowConfig) and model.linear != "RLU"
        return MAFConfig(
            layers=layers,
            hidden=min(1024, 8 * model.hidden),
            batch_norm=layers > 1,
            order="random" if photographs else "sequential",
            alpha=0.05 if photographs else 1e-6,
        )

    return change
