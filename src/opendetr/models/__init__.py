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
from opendetr.models.motr import MOTR, MOTRConfig, MOTROutput, QueryInteraction, TrackQueries
from opendetr.models.session import ImageSession, Session
from opendetr.models.tracking import BoxAssociation, QueryLifetime, TrackerConfig, TrackingRules, TrackingSession
from opendetr.models.transtrack import TransTrack, TransTrackConfig, TransTrackOutput, TransTrackState

__all__ = [
    "DETR",
    "INSIDE",
    "MOTR",
    "WITH_MASKS",
    "BoxAssociation",
    "ConditionalDETR",
    "ConditionalDETRConfig",
    "DETRConfig",
    "DecoderLayer",
    "DeformableDETR",
    "DeformableDETRConfig",
    "DeformableTransformerConfig",
    "Detector",
    "ImageSession",
    "LayerStack",
    "MOTRConfig",
    "MOTROutput",
    "MaskHeadConfig",
    "MaskedDetector",
    "ModelConfig",
    "QueryInteraction",
    "QueryLifetime",
    "Session",
    "TrackQueries",
    "TrackerConfig",
    "TrackingRules",
    "TrackingSession",
    "TransTrack",
    "TransTrackConfig",
    "TransTrackOutput",
    "TransTrackState",
    "TransformerSizes",
    "TwoStageDETR",
    "TwoStageDETRConfig",
]
