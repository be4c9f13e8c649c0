"""Building blocks for all models: layers, position encodings, attention, transformer, backbone."""

from opendetr.nn.attention import (
    AttentionModule,
    MultiHeadAttention,
    attention_weights,
    scaled_dot_product_attention,
)
from opendetr.nn.backbone import (
    AnyBackboneConfig,
    Backbone,
    BackboneConfig,
    ResNetBackbone,
    fixed_norms,
    resize_padding,
)
from opendetr.nn.deformable_attention import DeformableAttention, DeformableWeights, Shapes, sample_and_sum
from opendetr.nn.inspection import AttentionWeights, collect_attention
from opendetr.nn.layers import (
    MLP,
    FeedForward,
    GroupNorm,
    Residual,
    convolve,
    full_precision,
    group_norm,
    weights_dtype,
    xavier_initialise,
)
from opendetr.nn.position import LearnedPosition, SinePosition, embed_coordinates
from opendetr.nn.transformer import Decoder, Encoder, TransformerConfig

__all__ = [
    "MLP",
    "AnyBackboneConfig",
    "AttentionModule",
    "AttentionWeights",
    "Backbone",
    "BackboneConfig",
    "Decoder",
    "DeformableAttention",
    "DeformableWeights",
    "Encoder",
    "FeedForward",
    "GroupNorm",
    "LearnedPosition",
    "MultiHeadAttention",
    "ResNetBackbone",
    "Residual",
    "Shapes",
    "SinePosition",
    "TransformerConfig",
    "attention_weights",
    "collect_attention",
    "convolve",
    "embed_coordinates",
    "fixed_norms",
    "full_precision",
    "group_norm",
    "resize_padding",
    "sample_and_sum",
    "scaled_dot_product_attention",
    "weights_dtype",
    "xavier_initialise",
]
