"""Tasks: models with their losses."""

from opendetr.tasks.base import COUNT, Task
from opendetr.tasks.detection import DetectionTask
from opendetr.tasks.grounding import GroundingMaskTask, GroundingTask
from opendetr.tasks.masks import MaskHeadTask
from opendetr.tasks.pretraining import PretrainingTask

__all__ = [
    "COUNT",
    "DetectionTask",
    "GroundingMaskTask",
    "GroundingTask",
    "MaskHeadTask",
    "PretrainingTask",
    "Task",
]
