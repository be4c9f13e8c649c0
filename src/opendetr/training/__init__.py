"""Training: a run from start to end, the trainer and its parts."""

from opendetr.training.checkpoint import CheckpointError
from opendetr.training.run import resume, train
from opendetr.training.trainer import NonFiniteError

__all__ = ["CheckpointError", "NonFiniteError", "resume", "train"]
