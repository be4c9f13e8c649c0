"""Models: one file per family. Images in, `Output` out."""

from opendetr.models.baselines import (
    SSD,
    BaselineConfig,
    BaselineDetector,
    BaselineOutput,
    FasterRCNN,
    FasterRCNNConfig,
    RetinaNet,
    RetinaNetConfig,
    SSDConfig,
)
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
from opendetr.models.detr import DETR, DETRConfig, PositionConfig
from opendetr.models.masks import INSIDE, WITH_MASKS, MaskedDetector, MaskHeadConfig
from opendetr.models.mdetr import ANSWER_HEADS, MDETR, AnswerHead, EncodedText, GroundingSession, MDETRConfig
from opendetr.models.motr import MOTR, MOTRConfig, MOTROutput, QueryInteraction, TrackQueries
from opendetr.models.session import ControlledPatches, ImageSession, PatchSession, Session
from opendetr.models.tracking import (
    BoxAssociation,
    QueryLifetime,
    RulesSweep,
    TrackerConfig,
    TrackingRules,
    TrackingSession,
    VideoModel,
)
from opendetr.models.transtrack import TransTrack, TransTrackConfig, TransTrackOutput, TransTrackState
from opendetr.models.up_detr import UPDETR, ControlledOutput, PatchOutput, UPDETRConfig

__all__ = [
    "ANSWER_HEADS",
    "DETR",
    "INSIDE",
    "MDETR",
    "MOTR",
    "SSD",
    "UPDETR",
    "WITH_MASKS",
    "AnswerHead",
    "BaselineConfig",
    "BaselineDetector",
    "BaselineOutput",
    "BoxAssociation",
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
    "EncodedText",
    "FasterRCNN",
    "FasterRCNNConfig",
    "GroundingSession",
    "ImageSession",
    "LayerStack",
    "MDETRConfig",
    "MOTRConfig",
    "MOTROutput",
    "MaskHeadConfig",
    "MaskedDetector",
    "ModelConfig",
    "PatchOutput",
    "PatchSession",
    "PositionConfig",
    "QueryInteraction",
    "QueryLifetime",
    "RetinaNet",
    "RetinaNetConfig",
    "RulesSweep",
    "SSDConfig",
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
    "UPDETRConfig",
    "VideoModel",
]
