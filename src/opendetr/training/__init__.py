"""Training: a run from start to end, the trainer and its parts."""

from opendetr.training.callbacks import read_metrics
from opendetr.training.checkpoint import CheckpointError, find_checkpoint, load_checkpoint
from opendetr.training.diagnosis import Cause, Diagnosis, diagnose, report_lines
from opendetr.training.events import (
    BatchLoaded,
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
from opendetr.training.run import Run, counting_from, has_ended, pretrain, resume, train
from opendetr.training.run_facts import RunFacts, collect_facts
from opendetr.training.signals import StopSignal
from opendetr.training.trainer import Trainer

__all__ = [
    "BatchLoaded",
    "Callback",
    "Cause",
    "CheckpointError",
    "CheckpointSaved",
    "Diagnosis",
    "EpochEnded",
    "Evaluated",
    "NonFiniteFound",
    "PlanFixed",
    "Run",
    "RunEnded",
    "RunFacts",
    "RunStarted",
    "StepTaken",
    "StopSignal",
    "Trainer",
    "collect_facts",
    "counting_from",
    "diagnose",
    "find_checkpoint",
    "has_ended",
    "load_checkpoint",
    "pretrain",
    "read_metrics",
    "report_lines",
    "resume",
    "train",
]
