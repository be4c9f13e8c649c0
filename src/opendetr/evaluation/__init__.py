"""Evaluation: metrics that compare predictions with the ground truth of a dataset."""

from opendetr.evaluation.coco import DETECTION_METRICS, CocoEvaluator
from opendetr.evaluation.detection import (
    DetectionEvaluator,
    Evaluation,
    ImageResult,
    class_differences,
    headline_names,
    metric_names,
)
from opendetr.evaluation.evaluator import Evaluator
from opendetr.evaluation.grounding import (
    GROUNDING_METRICS,
    GroundingEvaluation,
    GroundingEvaluator,
    GroundingResult,
    blank_expressions,
    flickr_recall,
    grounding_metrics,
)
from opendetr.evaluation.matching import box_overlaps, match_overlaps
from opendetr.evaluation.names import CLASS_PREFIX, describe_metric
from opendetr.evaluation.panoptic import PANOPTIC_METRICS, PanopticEvaluator
from opendetr.evaluation.patches import PATCH_METRICS, PatchEvaluation, PatchEvaluator
from opendetr.evaluation.report import (
    chart_figure,
    images_section,
    note,
    value_table,
    write_page,
    write_report,
)
from opendetr.evaluation.switches import REASONS, Switch, explain_switches
from opendetr.evaluation.thresholds import (
    Matched,
    OperatingPoint,
    OperatingPoints,
    concatenate_matches,
    match_boxes,
    operating_points,
)
from opendetr.evaluation.tracking import TRACKING_METRICS, TrackingMetrics, TrackingReport, Tracks, TrueTracks
from opendetr.evaluation.videos import (
    TrackingEvaluation,
    TrackingEvaluator,
    VideoTracks,
    tracking_metric_names,
    true_tracks,
)

__all__ = [
    "CLASS_PREFIX",
    "DETECTION_METRICS",
    "GROUNDING_METRICS",
    "PANOPTIC_METRICS",
    "PATCH_METRICS",
    "REASONS",
    "TRACKING_METRICS",
    "CocoEvaluator",
    "DetectionEvaluator",
    "Evaluation",
    "Evaluator",
    "GroundingEvaluation",
    "GroundingEvaluator",
    "GroundingResult",
    "ImageResult",
    "Matched",
    "OperatingPoint",
    "OperatingPoints",
    "PanopticEvaluator",
    "PatchEvaluation",
    "PatchEvaluator",
    "Switch",
    "TrackingEvaluation",
    "TrackingEvaluator",
    "TrackingMetrics",
    "TrackingReport",
    "Tracks",
    "TrueTracks",
    "VideoTracks",
    "blank_expressions",
    "box_overlaps",
    "chart_figure",
    "class_differences",
    "concatenate_matches",
    "describe_metric",
    "explain_switches",
    "flickr_recall",
    "grounding_metrics",
    "headline_names",
    "images_section",
    "match_boxes",
    "match_overlaps",
    "metric_names",
    "note",
    "operating_points",
    "tracking_metric_names",
    "true_tracks",
    "value_table",
    "write_page",
    "write_report",
]
