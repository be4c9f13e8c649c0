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
from opendetr.nn.efficientnet import EfficientNetConfig
from opendetr.nn.inspection import AttentionWeights, collect_attention
from opendetr.nn.layers import (
    MLP,
    FeedForward,
    GroupNorm,
    Residual,
    convolve,
    full_precision,
    group_norm,
    tokens_of,
    weights_dtype,
    xavier_initialise,
)
from opendetr.nn.position import LearnedPosition, SinePosition, embed_coordinates
from opendetr.nn.text import (
    AnyTextConfig,
    RobertaTextConfig,
    TextEncoder,
    Tokenizer,
    TokenizerName,
    WordTextConfig,
    WordTokenizer,
    lost_text,
    new_tokenizer,
    text_fault,
    unknown_words,
)
from opendetr.nn.transformer import Decoder, Encoder, TransformerConfig

__all__ = [
    "MLP",
    "AnyBackboneConfig",
    "AnyTextConfig",
    "AttentionModule",
    "AttentionWeights",
    "Backbone",
    "BackboneConfig",
    "Decoder",
    "DeformableAttention",
    "DeformableWeights",
    "EfficientNetConfig",
    "Encoder",
    "FeedForward",
    "GroupNorm",
    "LearnedPosition",
    "MultiHeadAttention",
    "ResNetBackbone",
    "Residual",
    "RobertaTextConfig",
    "Shapes",
    "SinePosition",
    "TextEncoder",
    "Tokenizer",
    "TokenizerName",
    "TransformerConfig",
    "WordTextConfig",
    "WordTokenizer",
    "attention_weights",
    "collect_attention",
    "convolve",
    "embed_coordinates",
    "fixed_norms",
    "full_precision",
    "group_norm",
    "lost_text",
    "new_tokenizer",
    "resize_padding",
    "sample_and_sum",
    "scaled_dot_product_attention",
    "text_fault",
    "tokens_of",
    "unknown_words",
    "weights_dtype",
    "xavier_initialise",
]
