"""Evaluation: compute metrics of results against the ground truth of a dataset."""

from opendetr.evaluation.coco import METRICS, CocoEvaluator
from opendetr.evaluation.detection import DetectionEvaluator, Evaluation, ImageResult, headline_names, metric_names
from opendetr.evaluation.evaluator import Evaluator
from opendetr.evaluation.names import CLASS_PREFIX, meaning
from opendetr.evaluation.panoptic import PANOPTIC_METRICS, PanopticEvaluation
from opendetr.evaluation.report import write_report
from opendetr.evaluation.thresholds import OperatingPoint, OperatingPoints, match_boxes

__all__ = [
    "CLASS_PREFIX",
    "METRICS",
    "PANOPTIC_METRICS",
    "CocoEvaluator",
    "DetectionEvaluator",
    "Evaluation",
    "Evaluator",
    "ImageResult",
    "OperatingPoint",
    "OperatingPoints",
    "PanopticEvaluation",
    "headline_names",
    "match_boxes",
    "meaning",
    "metric_names",
    "write_report",
]
