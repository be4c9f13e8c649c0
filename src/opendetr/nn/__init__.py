"""Building blocks for all models: layers, position encodings, attention, transformer, backbone."""

from opendetr.nn.attention import (
    AttentionModule,
    MultiHeadAttention,
    attention_weights,
    scaled_dot_product_attention,
)
from opendetr.nn.deformable_attention import DeformableAttention, DeformableWeights
from opendetr.nn.inspection import AttentionWeights, collect_attention

__all__ = [
    "AttentionModule",
    "AttentionWeights",
    "DeformableAttention",
    "DeformableWeights",
    "MultiHeadAttention",
    "attention_weights",
    "collect_attention",
    "scaled_dot_product_attention",
]
