"""Tasks: models with their losses."""

from opendetr.tasks.base import Task
from opendetr.tasks.detection import DetectionTask
from opendetr.tasks.masks import MaskHeadTask

__all__ = ["DetectionTask", "MaskHeadTask", "Task"]
