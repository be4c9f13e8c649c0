"""Inference: predict detections and panoptic maps from images."""

from opendetr.inference.comparison import compare, comparisons
from opendetr.inference.predictor import Predictor, load

__all__ = [
    "Predictor",
    "compare",
    "comparisons",
    "load",
]
