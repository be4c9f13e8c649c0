"""Tasks: models with their losses."""

from opendetr.tasks.base import COUNT, Task
from opendetr.tasks.detection import DetectionTask
from opendetr.tasks.masks import MaskHeadTask
from opendetr.tasks.pretraining import PretrainingTask

__all__ = ["COUNT", "DetectionTask", "MaskHeadTask", "PretrainingTask", "Task"]
