"""Conditional DETR (Meng et al., "Conditional DETR for Fast Training Convergence", 2021).

DETR's queries learn slowly where to attend, because its decoder adds content and position before it compares queries
with keys. Conditional DETR projects and compares the two separately. Every query has a reference point, which is
encoded like the positions of the cells. The decoder output of the previous layer scales this encoding. Boxes are
offsets from the reference points. The rest is as in DETR, except that there is one sigmoid per class and no class "no
object".

Shape letters: B batch, Q queries, L decoder layers, N tokens of the memory, D width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from opendetr.models.detr import DETR, DETRConfig
from opendetr.nn import (
    MLP,
    AttentionModule,
    Residual,
    TransformerConfig,
    attention_weights,
    embed_coordinates,
    full_precision,
    scaled_dot_product_attention,
    weights_dtype,
    xavier_initialise,
)
from opendetr.structures import Scoring

_PRIOR = 0.01  # initial class probability, low because most queries match no object
_EPSILON = 1e-5  # as in the original, for the logits of reference points


@dataclass(frozen=True, kw_only=True)
class ConditionalDETRConfig(DETRConfig):
    """Configuration of a Conditional DETR. The defaults are those of the published R50 model.

    Attributes:
        num_queries: Q, the maximum number of detections per image.
    """

    num_queries: int = 300

    def build(self, num_logits: int, scoring: Scoring) -> ConditionalDETR:
        """The model, randomly initialised."""
        return ConditionalDETR(self, num_logits, scoring)


class QueryAttention(AttentionModule):
    """Self-attention among the queries, with separate projections of content and position that are added."""

    def __init__(self, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.query_content = nn.Linear(width, width)
        self.query_position = nn.Linear(width, width)
        self.key_content = nn.Linear(width, width)
        self.key_position = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, content: Tensor, position: Tensor) -> Tensor:
        """Content and position of the queries, (B, Q, D) each -> attention output (B, Q, D)."""
        query, key = self._project(content, position)
        dropout = self.dropout if self.training else 0.0
        attended = scaled_dot_product_attention(query, key, self.value(content), self.num_heads, dropout=dropout)
        return self.out_proj(attended)

    def weights(self, content: Tensor, position: Tensor) -> Tensor:
        """The attention weights for the arguments of `forward`.

        Returns:
            (B, heads, Q, Q) float32, without dropout. Each row sums to 1 over the queries that are attended to.
        """
        return attention_weights(*self._project(content, position), self.num_heads)

    def _project(self, content: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        """Projected queries and keys, (B, Q, D) each."""
        query = self.query_content(content) + self.query_position(position)
        key = self.key_content(content) + self.key_position(position)
        return query, key


class ConditionalAttention(AttentionModule):
    """Cross-attention that compares content with content and position with position.

    Each head concatenates its content and position features. Its score is the sum of the two dot products, and queries
    and keys are twice as wide as values.

    Args:
        width: D.
        num_heads: heads.
        dropout: probability of dropping an attention weight while training.
        is_first: whether this is the first layer, whose queries have no content yet. It also adds the positions of
            queries and cells to their content.
    """

    def __init__(self, width: int, num_heads: int, dropout: float, *, is_first: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.query_content = nn.Linear(width, width)
        self.query_position = nn.Linear(width, width) if is_first else None
        self.query_place = nn.Linear(width, width)
        self.key_content = nn.Linear(width, width)
        self.key_place = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)
        nn.init.zeros_(self.out_proj.bias)

    def forward(
        self,
        content: Tensor,
        query_position: Tensor,
        query_place: Tensor,
        memory: Tensor,
        position: Tensor,
        padding: Tensor | None,
    ) -> Tensor:
        """Attend to the memory.

        Args:
            content: (B, Q, D), decoder output of the previous layer.
            query_position: (B, Q, D), the object queries.
            query_place: (B, Q, D), scaled encoding of the reference points.
            memory: (B, N, D), the encoder's output.
            position: (B, N, D), position encoding of the tokens.
            padding: (B, N) bool, True where the memory is padding, or None.

        Returns:
            (B, Q, D).
        """
        query, key = self._project(content, query_position, query_place, memory, position)
        dropout = self.dropout if self.training else 0.0
        attended = scaled_dot_product_attention(query, key, self.value(memory), self.num_heads, padding, dropout)
        return self.out_proj(attended)

    def weights(
        self,
        content: Tensor,
        query_position: Tensor,
        query_place: Tensor,
        memory: Tensor,
        position: Tensor,
        padding: Tensor | None,
    ) -> Tensor:
        """The attention weights for the arguments of `forward`, from content and position together.

        Returns:
            (B, heads, Q, N) float32, without dropout. Each row sums to 1 over the tokens; padded tokens have 0.
        """
        query, key = self._project(content, query_position, query_place, memory, position)
        return attention_weights(query, key, self.num_heads, padding)

    def spatial_weights(
        self,
        content: Tensor,
        query_position: Tensor,
        query_place: Tensor,
        memory: Tensor,
        position: Tensor,
        padding: Tensor | None,
    ) -> Tensor:
        """The attention weights of the places alone: where each head looks, independent of the content of the image.

        They are the softmax of the spatial part of the scores, as in the paper's figure 1. The arguments are those of
        `forward`, and the content is not used.

        Returns:
            (B, heads, Q, N) float32, without dropout. Each row sums to 1 over the tokens; padded tokens have 0.
        """
        # The scores are divided by the root of the width of a whole key, which is twice that of its place.
        query, key = self.query_place(query_place) / math.sqrt(2), self.key_place(position)
        return attention_weights(query, key, self.num_heads, padding)

    def _project(
        self, content: Tensor, query_position: Tensor, query_place: Tensor, memory: Tensor, position: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Projected queries (B, Q, 2 D) and keys (B, N, 2 D), with content and position of each head concatenated."""
        query, key = self.query_content(content), self.key_content(memory)
        key_place = self.key_place(position)
        if self.query_position is not None:
            query, key = query + self.query_position(query_position), key + key_place
        return self._concatenate(query, self.query_place(query_place)), self._concatenate(key, key_place)

    def _concatenate(self, content: Tensor, place: Tensor) -> Tensor:
        """Concatenate the features of each head: content and position (B, N, D) -> (B, N, 2 D)."""
        heads = [features.unflatten(-1, (self.num_heads, -1)) for features in (content, place)]
        return torch.cat(heads, -1).flatten(-2)


class ConditionalDecoderLayer(nn.Module):
    """Self-attention among the queries, conditional attention to the memory, a feed-forward block."""

    def __init__(self, config: TransformerConfig, *, is_first: bool) -> None:
        super().__init__()
        width, dropout = config.width, config.dropout
        self.self_attention = QueryAttention(width, config.num_heads, dropout)
        self.self_attention_residual = Residual(width, dropout, config.norm_first)
        self.cross_attention = ConditionalAttention(width, config.num_heads, dropout, is_first=is_first)
        self.cross_attention_residual = Residual(width, dropout, config.norm_first)
        self.feed_forward, self.feed_forward_residual = config.feed_forward_block()

    def forward(
        self,
        content: Tensor,
        query_position: Tensor,
        query_place: Tensor,
        memory: Tensor,
        position: Tensor,
        padding: Tensor | None,
    ) -> Tensor:
        """Update the content of the queries; arguments and result as in `ConditionalAttention`."""

        def self_attention(x: Tensor) -> Tensor:
            return self.self_attention(x, query_position)

        def cross_attention(x: Tensor) -> Tensor:
            return self.cross_attention(x, query_position, query_place, memory, position, padding)

        content = self.self_attention_residual(content, self_attention)
        content = self.cross_attention_residual(content, cross_attention)
        return self.feed_forward_residual(content, self.feed_forward)


class ConditionalDecoder(nn.Module):
    """The decoder layers, the reference points of the queries, and the scale of their encoding."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        width = config.width
        self.layers = nn.ModuleList(
            ConditionalDecoderLayer(config, is_first=index == 0) for index in range(config.decoder_layers)
        )
        self.norm = nn.LayerNorm(width)
        self.reference_head = MLP(width, width, 2, num_layers=2)
        self.query_scale = MLP(width, width, width, num_layers=2)
        xavier_initialise(self)

    def reference_points(self, queries: Tensor) -> Tensor:
        """Object queries (..., D) -> reference points (..., 2) float32, x and y in 0..1."""
        with torch.autocast(queries.device.type, enabled=False):  # a place needs more digits than bfloat16 has
            return full_precision(self.reference_head(queries.to(weights_dtype(self.reference_head)))).sigmoid()

    def forward(self, query_position: Tensor, memory: Tensor, position: Tensor, padding: Tensor | None) -> Tensor:
        """Object queries (B, Q, D), memory and its positions (B, N, D), padding (B, N) or None -> (L, B, Q, D)."""
        y_before_x = self.reference_points(query_position).flip(-1)
        place = embed_coordinates(y_before_x, query_position.shape[-1] // 2).to(query_position.dtype)
        content = torch.zeros_like(query_position)
        outputs = []
        for index, layer in enumerate(self.layers):
            scaled = place * self.query_scale(content) if index else place
            content = layer(content, query_position, scaled, memory, position, padding)
            outputs.append(self.norm(content))
        return torch.stack(outputs)


class ConditionalDETR(DETR):
    """The Conditional DETR detector; the arguments are those of `DETR`."""

    family = "conditional-detr"
    decoder_type: ClassVar = ConditionalDecoder
    places_positions: ClassVar = False
    decoder: ConditionalDecoder

    def __init__(self, config: ConditionalDETRConfig, num_logits: int, scoring: Scoring) -> None:
        super().__init__(config, num_logits, scoring)
        nn.init.constant_(self.class_head.bias, math.log(_PRIOR / (1 - _PRIOR)))
        for parameter in self.box_head.layers[-1].parameters():
            nn.init.zeros_(parameter)  # so boxes are initially centred at the reference points

    def predict_boxes(self, queries: Tensor, query_position: Tensor) -> Tensor:
        """The decoder's output (L, B, Q, D) -> boxes (L, B, Q, 4), with centres relative to the reference points."""
        return boxes_at(self.decoder.reference_points(query_position), full_precision(self.box_head(queries)))


def boxes_at(reference_points: Tensor, offsets: Tensor) -> Tensor:
    """Outputs of a box head (L, B, Q, 4) -> boxes, with centres relative to the reference points (B, Q, 2)."""
    reference = torch.logit(reference_points, eps=_EPSILON)
    return torch.cat((offsets[..., :2] + reference, offsets[..., 2:]), -1).sigmoid()
