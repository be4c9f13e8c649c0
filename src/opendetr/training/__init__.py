"""Training: a run from start to end, the trainer and its parts."""

from opendetr.training.checkpoint import CheckpointError, find_checkpoint, load_checkpoint
from opendetr.training.events import (
    Callback,
    CheckpointSaved,
    EpochEnded,
    Evaluated,
    NonFiniteFound,
    PlanFixed,
    RunEnded,
    RunStarted,
    StepTaken,
)
from opendetr.training.run import Run, resume, train
from opendetr.training.signals import StopSignal

__all__ = [
    "Callback",
    "CheckpointError",
    "CheckpointSaved",
    "EpochEnded",
    "Evaluated",
    "NonFiniteFound",
    "PlanFixed",
    "Run",
    "RunEnded",
    "RunStarted",
    "StepTaken",
    "StopSignal",
    "find_checkpoint",
    "load_checkpoint",
    "resume",
    "train",
]
