"""Training: a run from start to end, the trainer, and its parts."""

from opendetr.training.checkpoint import CheckpointError
from opendetr.training.run import resume, train

__all__ = ["CheckpointError", "resume", "train"]
