"""MOTR (Zeng et al., "MOTR: End-to-End Multiple-Object Tracking with Transformer", 2022).

A Deformable DETR in which a query that has found an object follows it through the video. The decoder gets the learned
queries, which find new objects, and the queries of the live tracks. Between two frames, the query interaction module
updates the queries of the tracks with their decoder output. Which tracks are alive is decided outside of the model: by
the ground truth in training, by thresholds in prediction (see `QueryLifetime`).

Shape letters: B batch, Q learned queries, T queries of tracks, R = Q + T, L decoder layers, D width.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from opendetr.models.deformable import (
    DecoderLayer,
    DeformableDETR,
    DeformableDETRConfig,
    DeformableTransformerConfig,
)
from opendetr.nn import (
    FeedForward,
    MultiHeadAttention,
    Residual,
    Shapes,
    full_precision,
    weights_dtype,
    xavier_initialise,
)
from opendetr.structures import FeatureMap, ImageBatch, Movable, Predictions, Scoring, TrackingOutput

_EPSILON = 1e-5  # as in the original, for the logits of reference points
_ABSENT_LOGIT = -1e4  # of rows that only fill up a batch: score, loss and gradient are exactly 0


@dataclass(frozen=True, kw_only=True)
class MOTRConfig(DeformableDETRConfig):
    """Configuration of a MOTR. The defaults are those of the published R50 model.

    Attributes:
        num_queries: Q, the number of learned queries: the maximum number of new objects in a frame.
        update_position: whether the query interaction module also updates the position part of the queries.
    """

    transformer: DeformableTransformerConfig = field(default_factory=lambda: DeformableTransformerConfig(dropout=0.0))
    refine: bool = True
    update_position: bool = True

    def build(self, num_logits: int, scoring: Scoring) -> MOTR:
        """The model, randomly initialised."""
        return MOTR(self, num_logits, scoring)


@dataclass(frozen=True)
class TrackQueries(Movable):
    """The queries of the tracks of B videos after a frame.

    Attributes:
        position, content: (B, T, D) each, the parts of the queries that entered the decoder.
        embedding: (B, T, D), their decoder output.
        points: (B, T, 2), the centres of their boxes in 0..1 of the unpadded image, without a gradient.
        ids: (B, T) int64, the track of each query; -1 for a query that is carried along without a track.
        padding: (B, T) bool, True for rows that only fill up the batch; None if there are none.
    """

    position: Tensor
    content: Tensor
    embedding: Tensor
    points: Tensor
    ids: Tensor
    padding: Tensor | None = None


@dataclass(frozen=True)
class MOTROutput(TrackingOutput):
    """The output of MOTR. The first Q of its R queries are the learned ones, and the others are those of the tracks.

    Attributes:
        state: the queries of the tracks that `track_ids` names. `MOTR.update` makes the state for other tracks.
        position, content: (B, R, D) each, the parts of the queries that entered the decoder.
        padding: (B, R) bool, True for rows that only fill up the batch, with score 0; None if there are none.
    """

    state: TrackQueries = field(kw_only=True)
    position: Tensor = field(kw_only=True)
    content: Tensor = field(kw_only=True)
    padding: Tensor | None = field(default=None, kw_only=True)


class TrackDecoderLayer(DecoderLayer):
    """A decoder layer in which the queries of tracks first attend to each other."""

    def __init__(self, config: DeformableTransformerConfig) -> None:
        super().__init__(config)
        self.track_attention = MultiHeadAttention(config.width, config.num_heads, config.dropout)
        self.track_attention_residual = Residual(config.width, config.dropout, norm_first=False)

    def forward(
        self,
        content: Tensor,
        query_position: Tensor,
        reference: Tensor,
        memory: Tensor,
        shapes: Shapes,
        padding: Tensor | None,
        query_padding: Tensor | None = None,
        num_learned: int | None = None,
    ) -> Tensor:
        """As `DecoderLayer`. The rows from `num_learned` on are those of tracks; by default there are none."""
        if num_learned is not None and num_learned < content.shape[1]:
            position = query_position[:, num_learned:]
            hidden = None if query_padding is None else query_padding[:, num_learned:]

            def attention(x: Tensor) -> Tensor:
                query = x + position
                return self.track_attention(query, query, x, hidden)

            tracks = self.track_attention_residual(content[:, num_learned:], attention)
            content = torch.cat((content[:, :num_learned], tracks), 1)
        return super().forward(content, query_position, reference, memory, shapes, padding, query_padding)


class QueryInteraction(nn.Module):
    """The query interaction module: updates the queries of tracks between two frames (section 3.4).

    Args:
        config: sizes.
        update_position: see `MOTRConfig`.
    """

    def __init__(self, config: DeformableTransformerConfig, *, update_position: bool) -> None:
        super().__init__()

        def residual() -> Residual:
            return Residual(config.width, config.dropout, norm_first=False)

        def feed_forward() -> FeedForward:
            return FeedForward(config.width, config.ffn_width, config.dropout)

        self.attention = MultiHeadAttention(config.width, config.num_heads, config.dropout)
        self.attention_residual = residual()
        self.feed_forward, self.feed_forward_residual = feed_forward(), residual()
        self.position_update: FeedForward | None = None
        if update_position:
            self.position_update, self.position_residual = feed_forward(), residual()
            self.unused_norm = nn.LayerNorm(config.width)  # the published weights have it, and no output depends on it
        self.content_update, self.content_residual = feed_forward(), residual()
        xavier_initialise(self)

    def forward(self, queries: TrackQueries) -> tuple[Tensor, Tensor]:
        """Queries after a frame -> their position and content for the next frame, (B, T, D) each."""
        dtype = weights_dtype(self)
        position, content, embedding = (
            part.to(dtype) for part in (queries.position, queries.content, queries.embedding)
        )
        query = position + embedding
        known = self.attention_residual(embedding, lambda x: self.attention(query, query, x, queries.padding))
        known = self.feed_forward_residual(known, self.feed_forward)
        if self.position_update is not None:
            change = self.position_update(known)
            position = self.position_residual(position, lambda x: change)
        learned = self.content_update(known)
        return position, self.content_residual(content, lambda x: learned)


class MOTR(DeformableDETR):
    """The MOTR model; its arguments are those of `DeformableDETR`.

    In training, gradients flow through the queries of tracks from frame to frame.
    """

    family = "motr"
    state_has_tracks = True
    decoder_layer = TrackDecoderLayer
    recomputes_whole = True
    added_parts = frozenset({"interaction", "track_attention", "track_attention_residual"})

    def __init__(self, config: MOTRConfig, num_logits: int, scoring: Scoring) -> None:
        super().__init__(config, num_logits, scoring)
        self.interaction = QueryInteraction(config.transformer, update_position=config.update_position)

    def decode(
        self,
        memory: tuple[FeatureMap, ...],
        features: tuple[FeatureMap, ...] = (),
        *,
        position: Tensor | None = None,
        content: Tensor | None = None,
        reference: Tensor | None = None,
        state: TrackQueries | None = None,
    ) -> MOTROutput:
        """Memory -> predictions of the learned queries and of the queries of tracks.

        Args:
            memory, features: as in `DeformableDETR`.
            position, content, reference: as in `DeformableDETR`, for the learned queries; `reference` must be points.
            state: the queries of tracks after the previous frame; None for first frames.
        """
        batch_size = len(memory[0].values)
        learned_position, learned_content = self.queries.weight.chunk(2, -1)
        position = (learned_position if position is None else position).expand(batch_size, -1, -1)
        content = (learned_content if content is None else content).expand(batch_size, -1, -1)
        reference = self.reference_of(position) if reference is None else reference.expand(batch_size, -1, -1)
        num_learned = position.shape[1]
        ids = torch.full((batch_size, num_learned), -1, device=position.device)
        padding = None
        if state is not None and state.ids.shape[1]:
            track_position, track_content = self.interaction(state)
            position = torch.cat((position, track_position), 1)
            content = torch.cat((content, track_content), 1)
            reference = torch.cat((reference, state.points.to(reference)), 1)
            ids = torch.cat((ids, state.ids), 1)
            padding = None if state.padding is None else F.pad(state.padding, (num_learned, 0), value=False)
        layers, queries = self.decode_queries(
            memory,
            position,
            content,
            reference,
            decoder=self.decoder,
            refine=self.refine,
            query_padding=padding,
            num_learned=num_learned,
        )
        if padding is not None:
            layers = tuple(_without_rows(layer, padding) for layer in layers)
        output = MOTROutput(
            layers,
            queries,
            features,
            memory,
            state=_no_queries(queries[-1]),
            track_ids=ids,
            position=position,
            content=content,
            padding=padding,
        )
        return replace(output, state=self.update(output, ids))

    def update(self, output: TrackingOutput, ids: Tensor, rows: Tensor | None = None) -> TrackQueries:
        """The state for the next frame.

        Args:
            output: the output for the current frame.
            ids: (B, R) int64, the track of each query, or -1. Queries with a track are kept, the others are not.
            rows: (B, T) int64, the queries to keep in their order instead, filled up with -1. Training also keeps
                queries without a track.
        """
        output = cast(MOTROutput, output)
        rows = rows_of(ids >= 0) if rows is None else rows
        if not rows.shape[1]:
            return _no_queries(output.queries[-1])
        absent = rows < 0
        index = rows.clamp(min=0)
        padding = absent if absent.any() else None

        def chosen(values: Tensor) -> Tensor:
            return values.gather(1, index[..., None].expand(-1, -1, values.shape[-1]))

        points = chosen(output.final.boxes[..., :2]).detach().clamp(_EPSILON, 1 - _EPSILON)
        return TrackQueries(
            chosen(output.position),
            chosen(output.content),
            chosen(output.queries[-1]),
            points,
            ids.gather(1, index).masked_fill(absent, -1),
            padding,
        )

    def forward(self, images: ImageBatch, state: TrackQueries | None = None) -> MOTROutput:
        """Frames of B videos -> predictions of the learned queries and of the queries of tracks.

        Args:
            images: the current frame of each video.
            state: `state` of the output for the previous frames, or that of `update`; None for first frames.
        """
        memory, features = self.encode_frames(images)
        return self.decode(memory, features, state=state)

    def encode_frames(
        self, images: ImageBatch, state: TrackQueries | None = None
    ) -> tuple[tuple[FeatureMap, ...], tuple[FeatureMap, ...]]:
        """The memory and the backbone features of the current frames. They do not depend on the state."""
        features = self.backbone(images)
        return self.encode(self.project_features(features, images.padding)), features


def rows_of(kept: Tensor) -> Tensor:
    """(B, R) bool -> (B, T) int64, the indices of the True entries in ascending order, filled up with -1."""
    counts = kept.sum(1)
    order = kept.long().argsort(dim=1, descending=True, stable=True)[:, : int(counts.max())]
    filled = torch.arange(order.shape[1], device=kept.device) < counts[:, None]
    return order.masked_fill(~filled, -1)


def _no_queries(embedding: Tensor) -> TrackQueries:
    """The state without tracks, for embeddings (B, R, D)."""
    nothing = embedding[:, :0]
    ids = torch.empty(nothing.shape[:2], dtype=torch.int64, device=nothing.device)
    return TrackQueries(nothing, nothing, nothing, full_precision(nothing[..., :2]), ids)


def _without_rows(predictions: Predictions, padding: Tensor) -> Predictions:
    """Predictions whose rows in `padding` (B, R) have score 0, and neither a loss nor a gradient."""
    logits = predictions.logits.masked_fill(padding[..., None], _ABSENT_LOGIT)
    return replace(predictions, logits=logits)
