"""Training: settings, the run, its checkpoints, and the way back from its folder."""

from mixerflow.training.checkpoint import Checkpoint, Checkpoints
from mixerflow.training.config import TrainConfig
from mixerflow.training.fit import Trained, train
from mixerflow.training.folder import RunFolder
from mixerflow.training.restore import device_of, labels_of, load
from mixerflow.training.session import Session
from mixerflow.training.trainer import Trainer

__all__ = [
    "Checkpoint",
    "Checkpoints",
    "RunFolder",
    "Session",
    "TrainConfig",
    "Trained",
    "Trainer",
    "device_of",
    "labels_of",
    "load",
    "train",
]
