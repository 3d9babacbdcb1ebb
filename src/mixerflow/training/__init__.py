"""Training: the loop, its steps, and the objective that they make smaller."""

from mixerflow.train_config import TrainConfig
from mixerflow.training.fit import Trained, train
from mixerflow.training.loop import Session
from mixerflow.training.objective import Objective, likelihood
from mixerflow.training.trainer import Trainer

__all__ = ["Objective", "Session", "TrainConfig", "Trained", "Trainer", "likelihood", "train"]
