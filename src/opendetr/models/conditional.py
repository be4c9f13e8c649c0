"""Conditional DETR (Meng et al., "Conditional DETR for Fast Training Convergence", 2021).

DETR's queries learn slowly where to look, because in its decoder one sum of content and position has to say both what
is sought and where. Here the two are projected apart and compared apart: every query has a reference point, the point
is encoded as the cells of the image are, what the query has gathered so far scales that encoding, and the boxes are
offsets from the point. All else is DETR, with a sigmoid a class instead of "no object".

Shape letters: B batch, Q queries, L decoder layers, N tokens of the memory, D width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from opendetr.models.detr import DETR, DETRConfig
from opendetr.nn.attention import AttentionModule, attention_weights, scaled_dot_product_attention
from opendetr.nn.layers import MLP, FeedForward, Residual, full_precision, weights_dtype, xavier_initialise
from opendetr.nn.position import embed_coordinates
from opendetr.nn.transformer import TransformerConfig
from opendetr.structures import Scoring

_PRIOR = 0.01  # the class probability of an untrained query, which keeps the many empty ones quiet
_EPSILON = 1e-5  # the original's, where a reference point becomes a logit


@dataclass(frozen=True, kw_only=True)
class ConditionalDETRConfig(DETRConfig):
    """What a Conditional DETR is made of; the defaults are the published R50.

    Attributes:
        num_queries: Q, the most objects that an image can have.
    """

    num_queries: int = 300

    def build(self, num_logits: int, scoring: Scoring) -> ConditionalDETR:
        """The model, randomly initialised."""
        return ConditionalDETR(self, num_logits, scoring)


class QueryAttention(AttentionModule):
    """Self-attention among the queries: content and position have projections of their own, whose results are added."""

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
        """Content and position of the queries, (B, Q, D) each -> (B, Q, D)."""
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
    """Cross-attention in which content is compared with content and place with place.

    A head's features of place lie beside its features of content, so its score is the sum of two products, and queries
    and keys are twice as wide as values.

    Args:
        width: D.
        num_heads: heads.
        dropout: probability of dropping an attention weight while training.
        is_first: whether queries have no content yet; then their position and that of the cells is added to content.
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
        """Look at the memory.

        Args:
            content: (B, Q, D), what each query has gathered so far.
            query_position: (B, Q, D), the object queries.
            query_place: (B, Q, D), encoding of where each query looks.
            memory: (B, N, D), the encoder's output.
            position: (B, N, D), encoding of where each token lies.
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
        """The attention weights for the arguments of `forward`, of content and place together.

        Returns:
            (B, heads, Q, N) float32, without dropout. Each row sums to 1 over the tokens; padded tokens have 0.
        """
        query, key = self._project(content, query_position, query_place, memory, position)
        return attention_weights(query, key, self.num_heads, padding)

    def spatial_weights(self, query_place: Tensor, position: Tensor, padding: Tensor | None) -> Tensor:
        """The softmax of the spatial half of the scores alone, the maps of figure 1 of the paper.

        The scale is that of both halves together. So `weights` is, row by row, in proportion to these weights times
        those of the content half.

        Args:
            query_place, position, padding: as in `forward`.

        Returns:
            (B, heads, Q, N) float32. Each row sums to 1 over the tokens; padded tokens have 0.
        """
        query = self.query_place(query_place) / math.sqrt(2)  # both halves have twice the width of one
        return attention_weights(query, self.key_place(position), self.num_heads, padding)

    def _project(
        self, content: Tensor, query_position: Tensor, query_place: Tensor, memory: Tensor, position: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Projected queries (B, Q, 2 D) and keys (B, N, 2 D), content and place of each head side by side."""
        query, key = self.query_content(content), self.key_content(memory)
        key_place = self.key_place(position)
        if self.query_position is not None:
            query, key = query + self.query_position(query_position), key + key_place
        return self._beside(query, self.query_place(query_place)), self._beside(key, key_place)

    def _beside(self, content: Tensor, place: Tensor) -> Tensor:
        """(B, N, D) twice -> (B, N, 2 D): head by head, its features of content and then its features of place."""
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
        self.feed_forward = FeedForward(width, config.ffn_width, dropout)
        self.feed_forward_residual = Residual(width, dropout, config.norm_first)

    def forward(
        self,
        content: Tensor,
        query_position: Tensor,
        query_place: Tensor,
        memory: Tensor,
        position: Tensor,
        padding: Tensor | None,
    ) -> Tensor:
        """One round of looking; the arguments are those of `ConditionalAttention`."""

        def exchange(x: Tensor) -> Tensor:
            return self.self_attention(x, query_position)

        def look(x: Tensor) -> Tensor:
            return self.cross_attention(x, query_position, query_place, memory, position, padding)

        content = self.self_attention_residual(content, exchange)
        content = self.cross_attention_residual(content, look)
        return self.feed_forward_residual(content, self.feed_forward)


class ConditionalDecoder(nn.Module):
    """The decoder layers, the reference points of the queries, and what scales the encoding of these."""

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
        """Object queries (..., D) -> (..., 2) float32: x, y in 0..1 of the point that each belongs to."""
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
    """The detector; its arguments are DETR's."""

    family = "conditional-detr"
    decoder_type: ClassVar = ConditionalDecoder
    decoder: ConditionalDecoder

    def __init__(self, config: ConditionalDETRConfig, num_logits: int, scoring: Scoring) -> None:
        super().__init__(config, num_logits, scoring)
        nn.init.constant_(self.class_head.bias, math.log(_PRIOR / (1 - _PRIOR)))
        for parameter in self.box_head.layers[-1].parameters():
            nn.init.zeros_(parameter)  # a box starts around its query's reference point

    def predict_boxes(self, queries: Tensor, query_position: Tensor) -> Tensor:
        """The decoder's output (L, B, Q, D) -> boxes (L, B, Q, 4), centred at an offset from the reference points."""
        reference = torch.logit(self.decoder.reference_points(query_position), eps=_EPSILON)
        boxes = full_precision(self.box_head(queries))
        return torch.cat((boxes[..., :2] + reference, boxes[..., 2:]), -1).sigmoid()
