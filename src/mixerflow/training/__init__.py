"""Training: the loop, its steps, and the objective that they make smaller."""

from mixerflow.augmentation import Augmentation
from mixerflow.objectives import Frozen, Hybrid, Likelihood, Objective, likelihood
from mixerflow.optimizers import Adam, Adamax, AdamW, Muon, Optimizer
from mixerflow.schedule import Constant, Cosine, Schedule
from mixerflow.train_config import TrainConfig
from mixerflow.training.fit import Trained, train
from mixerflow.training.loop import Loop
from mixerflow.training.trainer import Trainer

__all__ = [
    "Adam",
    "AdamW",
    "Adamax",
    "Augmentation",
    "Constant",
    "Cosine",
    "Frozen",
    "Hybrid",
    "Likelihood",
    "Loop",
    "Muon",
    "Objective",
    "Optimizer",
    "Schedule",
    "TrainConfig",
    "Trained",
    "Trainer",
    "likelihood",
    "train",
]
