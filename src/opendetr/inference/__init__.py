"""Inference: predict detections and panoptic maps from images, and follow objects through videos."""

from opendetr.inference.comparison import SHOWN_SCORE, TitledImages, compare, comparisons
from opendetr.inference.history import Explanation, TrackHistory
from opendetr.inference.predictor import DETECTION_SCORE, Predictor, load
from opendetr.inference.tracker import Tracker

__all__ = [
    "DETECTION_SCORE",
    "SHOWN_SCORE",
    "Explanation",
    "Predictor",
    "TitledImages",
    "TrackHistory",
    "Tracker",
    "compare",
    "comparisons",
    "load",
]
