"""Tasks: models with their losses."""

from opendetr.tasks.base import COUNT, Task
from opendetr.tasks.baselines import BaselineTask
from opendetr.tasks.detection import DetectionTask
from opendetr.tasks.grounding import GroundingMaskTask, GroundingTask
from opendetr.tasks.masks import MaskHeadTask
from opendetr.tasks.pretraining import PretrainingTask
from opendetr.tasks.tracking import ClipConfig, MOTRTask, PairConfig, TransTrackTask

__all__ = [
    "COUNT",
    "BaselineTask",
    "ClipConfig",
    "DetectionTask",
    "GroundingMaskTask",
    "GroundingTask",
    "MOTRTask",
    "MaskHeadTask",
    "PairConfig",
    "PretrainingTask",
    "Task",
    "TransTrackTask",
]
