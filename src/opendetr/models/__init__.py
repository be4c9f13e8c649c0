"""Models: one file per family. Images in, `Output` out."""

from opendetr.models.conditional import ConditionalDETR, ConditionalDETRConfig
from opendetr.models.deformable import (
    DeformableDETR,
    DeformableDETRConfig,
    DeformableTransformerConfig,
    TwoStageDETR,
    TwoStageDETRConfig,
)
from opendetr.models.detector import Detector, ModelConfig, TransformerSizes
from opendetr.models.detr import DETR, DETRConfig
from opendetr.models.masks import INSIDE, WITH_MASKS, MaskedDetector, MaskHeadConfig

__all__ = [
    "DETR",
    "INSIDE",
    "WITH_MASKS",
    "ConditionalDETR",
    "ConditionalDETRConfig",
    "DETRConfig",
    "DeformableDETR",
    "DeformableDETRConfig",
    "DeformableTransformerConfig",
    "Detector",
    "MaskHeadConfig",
    "MaskedDetector",
    "ModelConfig",
    "TransformerSizes",
    "TwoStageDETR",
    "TwoStageDETRConfig",
]
