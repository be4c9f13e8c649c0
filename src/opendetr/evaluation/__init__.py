"""Scores of results against a data set's own records."""

from opendetr.evaluation.coco import METRICS, CocoEvaluator
from opendetr.evaluation.panoptic import PANOPTIC_METRICS, PanopticEvaluation

__all__ = ["METRICS", "PANOPTIC_METRICS", "CocoEvaluator", "PanopticEvaluation"]
