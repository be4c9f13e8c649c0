"""Tasks: models with their losses."""

from opendetr.tasks.base import COUNT, Task
from opendetr.tasks.detection import DetectionTask
from opendetr.tasks.masks import MaskHeadTask
from opendetr.tasks.tracking import ClipConfig, MOTRTask, PairConfig, TransTrackTask

__all__ = ["COUNT", "ClipConfig", "DetectionTask", "MOTRTask", "MaskHeadTask", "PairConfig", "Task", "TransTrackTask"]
