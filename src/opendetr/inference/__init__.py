"""Inference: images in, detections and panoptic maps out."""

from opendetr.inference.comparison import compare
from opendetr.inference.predictor import Predictor, load

__all__ = [
    "Predictor",
    "compare",
    "load",
]
