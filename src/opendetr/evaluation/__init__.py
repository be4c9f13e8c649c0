"""Evaluation: compute metrics of results against the ground truth of a dataset."""

from opendetr.evaluation.coco import METRICS, CocoEvaluator
from opendetr.evaluation.detection import DetectionEvaluator, Evaluation, ImageResult
from opendetr.evaluation.evaluator import Evaluator
from opendetr.evaluation.panoptic import PANOPTIC_METRICS, PanopticEvaluation

__all__ = [
    "METRICS",
    "PANOPTIC_METRICS",
    "CocoEvaluator",
    "DetectionEvaluator",
    "Evaluation",
    "Evaluator",
    "ImageResult",
    "PanopticEvaluation",
]
