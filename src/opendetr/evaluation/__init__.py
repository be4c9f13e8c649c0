"""Scores of results against a data set's own records."""

from opendetr.evaluation.coco import METRICS, CocoEvaluator

__all__ = ["METRICS", "CocoEvaluator"]
