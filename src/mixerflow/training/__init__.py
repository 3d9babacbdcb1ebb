"""Training: settings, the run, its checkpoints, and the way back from its folder."""

from mixerflow.train_config import TrainConfig
from mixerflow.training.checkpoint import Checkpoint, Checkpoints
from mixerflow.training.fit import Trained, train
from mixerflow.training.folder import RunFolder
from mixerflow.training.header import begun
from mixerflow.training.objective import Objective, likelihood
from mixerflow.training.origin import begin_from
from mixerflow.training.publish import Judge, publish
from mixerflow.training.restore import device_of, labels_of, load
from mixerflow.training.session import Session
from mixerflow.training.stored import is_published, read_header
from mixerflow.training.trainer import Trainer

__all__ = [
    "Checkpoint",
    "Checkpoints",
    "Judge",
    "Objective",
    "RunFolder",
    "Session",
    "TrainConfig",
    "Trained",
    "Trainer",
    "begin_from",
    "begun",
    "device_of",
    "is_published",
    "labels_of",
    "likelihood",
    "load",
    "publish",
    "read_header",
    "train",
]
