"""Evaluation: metrics that compare predictions with the ground truth of a dataset."""

from opendetr.evaluation.coco import DETECTION_METRICS, CocoEvaluator
from opendetr.evaluation.detection import DetectionEvaluator, Evaluation, ImageResult, headline_names, metric_names
from opendetr.evaluation.evaluator import Evaluator
from opendetr.evaluation.names import CLASS_PREFIX, describe_metric
from opendetr.evaluation.panoptic import PANOPTIC_METRICS, PanopticEvaluator
from opendetr.evaluation.report import write_report
from opendetr.evaluation.thresholds import OperatingPoint, OperatingPoints, match_boxes
from opendetr.evaluation.tracking import TRACKING_METRICS, TrackingMetrics, TrackingReport, Tracks, TrueTracks

__all__ = [
    "CLASS_PREFIX",
    "DETECTION_METRICS",
    "PANOPTIC_METRICS",
    "TRACKING_METRICS",
    "CocoEvaluator",
    "DetectionEvaluator",
    "Evaluation",
    "Evaluator",
    "ImageResult",
    "OperatingPoint",
    "OperatingPoints",
    "PanopticEvaluator",
    "TrackingMetrics",
    "TrackingReport",
    "Tracks",
    "TrueTracks",
    "describe_metric",
    "headline_names",
    "match_boxes",
    "metric_names",
    "write_report",
]
