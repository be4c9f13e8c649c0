"""Models: one file per family. Images in, `Output` out."""

from opendetr.models.conditional import ConditionalDETR, ConditionalDETRConfig
from opendetr.models.deformable import (
    DecoderLayer,
    DeformableDETR,
    DeformableDETRConfig,
    DeformableTransformerConfig,
    LayerStack,
    TwoStageDETR,
    TwoStageDETRConfig,
)
from opendetr.models.detector import Detector, ModelConfig, TransformerSizes
from opendetr.models.detr import DETR, DETRConfig
from opendetr.models.masks import INSIDE, WITH_MASKS, MaskedDetector, MaskHeadConfig
from opendetr.models.session import ControlledPatches, ImageSession, PatchSession, Session
from opendetr.models.up_detr import UPDETR, ControlledOutput, PatchOutput, UPDETRConfig

__all__ = [
    "DETR",
    "INSIDE",
    "UPDETR",
    "WITH_MASKS",
    "ConditionalDETR",
    "ConditionalDETRConfig",
    "ControlledOutput",
    "ControlledPatches",
    "DETRConfig",
    "DecoderLayer",
    "DeformableDETR",
    "DeformableDETRConfig",
    "DeformableTransformerConfig",
    "Detector",
    "ImageSession",
    "LayerStack",
    "MaskHeadConfig",
    "MaskedDetector",
    "ModelConfig",
    "PatchOutput",
    "PatchSession",
    "Session",
    "TransformerSizes",
    "TwoStageDETR",
    "TwoStageDETRConfig",
    "UPDETRConfig",
]
