"""Models: one file per family. Images in, `Output` out."""

from opendetr.models.conditional import ConditionalDETR, ConditionalDETRConfig
from opendetr.models.deformable import DeformableDETR, DeformableDETRConfig, TwoStageDETR, TwoStageDETRConfig
from opendetr.models.detector import Detector
from opendetr.models.detr import DETR, DETRConfig
from opendetr.models.masks import MaskedDetector, MaskHeadConfig

__all__ = [
    "DETR",
    "ConditionalDETR",
    "ConditionalDETRConfig",
    "DETRConfig",
    "DeformableDETR",
    "DeformableDETRConfig",
    "Detector",
    "MaskHeadConfig",
    "MaskedDetector",
    "TwoStageDETR",
    "TwoStageDETRConfig",
]
