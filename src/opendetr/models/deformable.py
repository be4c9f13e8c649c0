"""Deformable DETR (Zhu et al., "Deformable DETR: Deformable Transformers for End-to-End Object Detection", 2021).

DETR's attention compares all cells with each other. This is too expensive for fine features, and slow to train. In
deformable attention, a query attends to a few points around a reference, on several levels at once. So the model can
use fine levels, and attention is local from the first step on. Boxes are offsets from the reference. With refinement,
every decoder layer starts from the boxes of the previous layer. In two stages, the encoder proposes the first boxes.

Shape letters: B batch, N tokens of all levels, Q queries, L levels, D width, C class logits, h w cells of a level.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from opendetr.models.detector import Detector
from opendetr.nn import (
    MLP,
    AnyBackboneConfig,
    BackboneConfig,
    DeformableAttention,
    FeedForward,
    MultiHeadAttention,
    Residual,
    Shapes,
    SinePosition,
    convolve,
    embed_coordinates,
    full_precision,
    group_norm,
    resize_padding,
    tokens_of,
    weights_dtype,
    xavier_initialise,
)
from opendetr.structures import FeatureMap, Output, Predictions, Scoring

_PRIOR = 0.01  # initial class probability, low because most queries match no object
_EPSILON = 1e-5  # as in the original, for the logits of references
_PROPOSAL_PARTS = ("proposal_",)  # of two stages; one stage has queries and reference points instead
_GRID_BOX = 0.2  # side of the boxes that learned queries stand for if they replace proposals
_PROPOSAL_SIZE = 0.05  # side of a proposal on the finest level; it doubles with each coarser level
_PROPOSAL_MARGIN = 0.01  # proposals closer to an edge of the image are excluded


@dataclass(frozen=True, kw_only=True)
class DeformableTransformerConfig:
    """Sizes of encoder and decoder.

    Attributes:
        width: D, features of a token.
        num_heads: attention heads.
        ffn_width: hidden features of the feed-forward blocks.
        encoder_layers, decoder_layers: blocks of each.
        dropout: probability, after attention, in and after the feed-forward blocks, in the decoder's self-attention.
        num_levels: L. 1 uses the backbone's last level and 3 its last three; 4 and 5 add coarser levels.
        num_points: sampled points per head and level.
        swap_offsets: whether offsets from a point are divided by (height, width) of the level instead of (width,
            height). The published weights of TransTrack need it. Predictions then depend on the amount of padding.
    """

    width: int = 256
    num_heads: int = 8
    ffn_width: int = 1024
    encoder_layers: int = 6
    decoder_layers: int = 6
    dropout: float = 0.1
    num_levels: int = 4
    num_points: int = 4
    swap_offsets: bool = False

    def attention(self) -> DeformableAttention:
        """A deformable attention of these sizes."""
        return DeformableAttention(
            self.width, self.num_heads, self.num_levels, self.num_points, swap_offsets=self.swap_offsets
        )

    def __post_init__(self) -> None:
        if self.ffn_width < 1:
            raise ValueError(f"model.transformer.ffn_width: expected at least 1, got {self.ffn_width}")
        if self.num_levels not in (1, 3, 4, 5):
            raise ValueError(f"model.transformer.num_levels: expected 1, 3, 4 or 5, got {self.num_levels}")


@dataclass(frozen=True, kw_only=True)
class DeformableDETRConfig:
    """Configuration of a Deformable DETR. The defaults are those of the published R50 model.

    Attributes:
        backbone: the CNN.
        transformer: encoder and decoder.
        num_queries: Q, the maximum number of detections per image.
        refine: whether every decoder layer has its own heads and starts from the boxes of the previous layer.
    """

    backbone: AnyBackboneConfig = field(default_factory=BackboneConfig)
    transformer: DeformableTransformerConfig = field(default_factory=DeformableTransformerConfig)
    num_queries: int = 300
    refine: bool = False

    def build(self, num_logits: int, scoring: Scoring) -> DeformableDETR:
        """The model, randomly initialised."""
        return DeformableDETR(self, num_logits, scoring)


@dataclass(frozen=True, kw_only=True)
class TwoStageDETRConfig(DeformableDETRConfig):
    """Configuration of a two-stage Deformable DETR. Its decoder refines the proposals.

    Attributes:
        refine: always True.
    """

    refine: bool = True

    def __post_init__(self) -> None:
        if not self.refine:
            raise ValueError("model.refine: a two-stage model refines its proposals; set it to true")

    def build(self, num_logits: int, scoring: Scoring) -> TwoStageDETR:
        """The model, randomly initialised."""
        return TwoStageDETR(self, num_logits, scoring)


@dataclass(frozen=True)
class TwoStageOutput(Output):
    """The output of a two-stage model.

    Attributes:
        proposals: predictions of every token of the memory, (B, N, C) logits and (B, N, 4) boxes. Only the first logit
            is used. It means "any object".
    """

    proposals: Predictions


class EncoderLayer(nn.Module):
    """Deformable attention among the tokens of all levels, then a feed-forward block."""

    def __init__(self, config: DeformableTransformerConfig) -> None:
        super().__init__()
        self.attention = config.attention()
        self.attention_residual = Residual(config.width, config.dropout, norm_first=False)
        self.feed_forward = FeedForward(config.width, config.ffn_width, config.dropout)
        self.feed_forward_residual = Residual(config.width, config.dropout, norm_first=False)

    def forward(
        self, tokens: Tensor, position: Tensor, reference: Tensor, shapes: Shapes, padding: Tensor | None
    ) -> Tensor:
        """Tokens and positions (B, N, D), references (B, N, L, 2), padding (B, N) or None -> (B, N, D)."""

        def attention(x: Tensor) -> Tensor:
            return self.attention(x + position, reference, x, shapes, padding)

        return self.feed_forward_residual(self.attention_residual(tokens, attention), self.feed_forward)


class DecoderLayer(nn.Module):
    """Self-attention among the queries, deformable attention to the memory, a feed-forward block."""

    def __init__(self, config: DeformableTransformerConfig) -> None:
        super().__init__()
        self.self_attention = MultiHeadAttention(config.width, config.num_heads, config.dropout)
        self.self_attention_residual = Residual(config.width, config.dropout, norm_first=False)
        self.cross_attention = config.attention()
        self.cross_attention_residual = Residual(config.width, config.dropout, norm_first=False)
        self.feed_forward = FeedForward(config.width, config.ffn_width, config.dropout)
        self.feed_forward_residual = Residual(config.width, config.dropout, norm_first=False)

    def forward(
        self,
        content: Tensor,
        query_position: Tensor,
        reference: Tensor,
        memory: Tensor,
        shapes: Shapes,
        padding: Tensor | None,
        query_padding: Tensor | None = None,
    ) -> Tensor:
        """Update the content of the queries.

        Args:
            content: (B, Q, D), output of the previous layer.
            query_position: (B, Q, D), position part of the queries.
            reference: (B, Q, L, 2 or 4), reference points or boxes, in 0..1 of each padded level.
            memory: (B, N, D), the encoder's output.
            shapes: h and w of each level.
            padding: (B, N) bool, True where the memory is padding, or None.
            query_padding: (B, Q) bool, True for queries that the others do not attend to, or None.

        Returns:
            (B, Q, D).
        """

        def self_attention(x: Tensor) -> Tensor:
            query = x + query_position
            return self.self_attention(query, query, x, query_padding)

        def cross_attention(x: Tensor) -> Tensor:
            return self.cross_attention(x + query_position, reference, memory, shapes, padding)

        content = self.self_attention_residual(content, self_attention)
        content = self.cross_attention_residual(content, cross_attention)
        return self.feed_forward_residual(content, self.feed_forward)


class LayerStack(nn.Module):
    """Consecutive layers. All matrices have Xavier initialisation, except those of the deformable attention."""

    def __init__(self, layers: Iterable[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        xavier_initialise(self)
        for module in self.modules():
            if isinstance(module, DeformableAttention):
                module.initialise()


@dataclass(frozen=True)
class _Tokens:
    """All levels as one sequence, fine to coarse.

    Attributes:
        values: (B, N, D).
        shapes: h and w of each level.
        padding: (B, N) bool, or None.
        valid: (B, L, 2) float, the share of each level's width and height without padding, or None for no padding.
    """

    values: Tensor
    shapes: Shapes
    padding: Tensor | None
    valid: Tensor | None

    @staticmethod
    def of(levels: Sequence[FeatureMap]) -> _Tokens:
        """Flatten levels (B, D, h, w) to tokens."""
        values = torch.cat([tokens_of(level.values) for level in levels], 1)
        shapes = [(level.values.shape[-2], level.values.shape[-1]) for level in levels]
        paddings = [level.padding for level in levels if level.padding is not None]
        if not paddings:
            return _Tokens(values, shapes, None, None)
        shares = [torch.stack((_share(padding[:, 0]), _share(padding[:, :, 0])), -1) for padding in paddings]
        return _Tokens(
            values, shapes, torch.cat([padding.flatten(1) for padding in paddings], 1), torch.stack(shares, 1)
        )

    def centres(self) -> Tensor:
        """(B or 1, N, 2), x and y of each token's centre in 0..1 of the unpadded image; above 1 in the padding."""
        grids = []
        for index, (h, w) in enumerate(self.shapes):
            y, x = torch.meshgrid(torch.arange(h) + 0.5, torch.arange(w) + 0.5, indexing="ij")
            grid = (torch.stack((x / w, y / h), -1).view(1, -1, 2)).to(self.values.device)
            grids.append(grid if self.valid is None else grid / self.valid[:, None, index])
        return torch.cat(grids, 1)

    def on_levels(self, reference: Tensor) -> Tensor:
        """References (B, Q, 2 or 4) in 0..1 of the unpadded image -> (B, Q, L, 2 or 4) in 0..1 of each level."""
        if self.valid is None:
            return reference[:, :, None].expand(-1, -1, len(self.shapes), -1)
        return reference[:, :, None] * self.valid.repeat(1, 1, reference.shape[-1] // 2)[:, None]


def _share(padding: Tensor) -> Tensor:
    """Padding (B, n) bool along an edge -> (B,), the share without padding, at least one cell to avoid infinities."""
    return (~padding).sum(1).clamp(min=1) / padding.shape[1]


class DeformableDETR(Detector):
    """The Deformable DETR detector.

    Args:
        config: architecture.
        num_logits: C, number of outputs of a class head.
        scoring: how class logits become scores.
    """

    family = "deformable-detr"
    decoder_layer: type[DecoderLayer] = DecoderLayer

    def __init__(self, config: DeformableDETRConfig, num_logits: int, scoring: Scoring) -> None:
        super().__init__()
        transformer, width = config.transformer, config.transformer.width
        self.scoring = scoring
        self.refine = config.refine
        self.first_level = 4 - min(transformer.num_levels, 3)
        self.backbone = config.backbone.build()
        self.position = SinePosition(width, shift=-0.5)
        self.projections = nn.ModuleList(_projections(self.backbone.num_channels, transformer.num_levels, width))
        self.level_embedding = nn.Parameter(torch.randn(transformer.num_levels, width))
        self.encoder = LayerStack(EncoderLayer(transformer) for _ in range(transformer.encoder_layers))
        self.decoder = LayerStack(self.decoder_layer(transformer) for _ in range(transformer.decoder_layers))
        num_heads = transformer.decoder_layers if config.refine else 1  # without refinement, all layers share one head
        class_head, box_head = _heads(width, num_logits)
        self.class_heads = nn.ModuleList(copy.deepcopy(class_head) for _ in range(num_heads))
        self.box_heads = nn.ModuleList(copy.deepcopy(box_head) for _ in range(num_heads))
        self.class_rows = tuple(f"class_heads.{n}.{row}" for n in range(num_heads) for row in ("weight", "bias"))
        self._make_queries(config, class_head, box_head)

    def _make_queries(self, config: DeformableDETRConfig, class_head: nn.Linear, box_head: MLP) -> None:
        """Create the learned queries (position, then content) and the layer that maps position to reference point."""
        width = config.transformer.width
        self.queries = nn.Embedding(config.num_queries, 2 * width)
        self.reference_points = nn.Linear(width, 2)
        nn.init.xavier_uniform_(self.reference_points.weight)
        nn.init.zeros_(self.reference_points.bias)
        with torch.no_grad():
            self.box_heads[0].layers[-1].bias[2:] = -2.0  # type: ignore[union-attr, index]  # small initial boxes

    @property
    def num_queries(self) -> int:
        """Q."""
        return self.queries.num_embeddings

    def completed(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """As `Detector.completed`. For a two-stage detector, learned queries replace the proposals.

        They are those that the detector would compute from proposals on a grid.
        """
        proposals = {name for name in state if name.startswith(_PROPOSAL_PARTS)}
        if not proposals:
            return super().completed(state)
        kept = {name: state[name] for name in state.keys() - proposals}
        return super().completed(kept | self._queries_on_grid(state))

    def _queries_on_grid(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights with which learned queries start as proposals of a two-stage detector, evenly spread over the image.

        The queries give points and not boxes, so the first layer adds the size of the proposals.
        """
        centres = _spread_points(self.num_queries)
        boxes = torch.cat((centres, torch.full_like(centres, _GRID_BOX)), 1)
        embedded = embed_coordinates(boxes, self.queries.weight.shape[1] // 4)
        made = F.linear(embedded, state["proposal_query.weight"].float(), state["proposal_query.bias"].float())
        norm = state["proposal_query_norm.weight"].float(), state["proposal_query_norm.bias"].float()
        queries = F.layer_norm(made, made.shape[1:], *norm)
        position = queries.chunk(2, 1)[0]
        points = torch.linalg.lstsq(position, centres.logit()).solution
        sizes = "box_heads.0.layers.2.bias"  # of the last layer
        offset = torch.tensor([0.0, 0.0, 1.0, 1.0]) * math.log(_GRID_BOX / (1 - _GRID_BOX))
        return {
            "queries.weight": queries,
            "reference_points.weight": points.T.contiguous(),
            "reference_points.bias": torch.zeros(2),
            sizes: state[sizes].float() + offset,
        }

    def project_features(
        self, features: tuple[FeatureMap, ...], padding: Tensor | None = None
    ) -> tuple[FeatureMap, ...]:
        """Project the last backbone features, and compute coarser levels from the coarsest of them."""
        if padding is None:
            padding = features[0].padding
        num_own = min(len(self.projections), 3)
        own = features[-num_own:]
        levels = [
            FeatureMap(project(level.values), level.padding)
            for project, level in zip(self.projections, own, strict=False)
        ]
        coarse = own[-1].values
        for project in self.projections[num_own:]:
            convolution, norm = project.children()
            assert isinstance(convolution, nn.Conv2d)
            coarse = norm(convolve(convolution, coarse))
            levels.append(FeatureMap(coarse, resize_padding(padding, coarse)))
        return tuple(levels)

    def encode(self, projected: tuple[FeatureMap, ...]) -> tuple[FeatureMap, ...]:
        """Projected features (B, D, h, w) -> memory of the same shapes, with its position encoding."""
        tokens = _Tokens.of(projected)
        positions = [
            (self.position(level) + embedding[:, None, None]).to(level.values.dtype)
            for level, embedding in zip(projected, self.level_embedding, strict=True)
        ]
        position = torch.cat([tokens_of(each) for each in positions], 1)
        reference = tokens.on_levels(tokens.centres().expand(len(tokens.values), -1, -1))
        values = tokens.values
        for layer in self.encoder.layers:
            values = layer(values, position, reference, tokens.shapes, tokens.padding)
        memory = values.split([h * w for h, w in tokens.shapes], 1)
        return tuple(
            FeatureMap(part.transpose(1, 2).unflatten(2, shape), level.padding, place)
            for part, shape, level, place in zip(memory, tokens.shapes, projected, positions, strict=True)
        )

    def decode(
        self,
        memory: tuple[FeatureMap, ...],
        features: tuple[FeatureMap, ...] = (),
        *,
        position: Tensor | None = None,
        content: Tensor | None = None,
        reference: Tensor | None = None,
    ) -> Output:
        """Memory -> predictions of every decoder layer.

        Args:
            memory: levels (B, D, h, w).
            features: backbone features, which become part of the output.
            position: (Q, D) or (B, Q, D), position part of the queries. By default the learned one.
            content: (Q, D) or (B, Q, D), initial content of the queries. By default the learned one.
            reference: (Q, 2 or 4) or (B, Q, 2 or 4), initial reference points or boxes, cxcywh in 0..1 of the unpadded
                image. By default the points that the model computes from `position`.
        """
        tokens = _Tokens.of(memory)
        learned_position, learned_content = self.queries.weight.chunk(2, -1)
        position = _per_image(learned_position if position is None else position, tokens)
        content = _per_image(learned_content if content is None else content, tokens)
        reference = self.reference_of(position) if reference is None else _per_image(reference, tokens)
        layers, queries = self._decode(tokens, position, content, reference, self.decoder, self.refine)
        return Output(layers, queries, features, memory)

    def reference_of(self, position: Tensor) -> Tensor:
        """Position part of queries (..., D) -> reference points (..., 2) in 0..1 of the unpadded image."""
        with torch.autocast(position.device.type, enabled=False):  # a point needs more digits than bfloat16 has
            return full_precision(self.reference_points(position)).sigmoid()

    def decode_queries(
        self,
        memory: tuple[FeatureMap, ...],
        position: Tensor,
        content: Tensor,
        reference: Tensor,
        *,
        decoder: LayerStack,
        refine: bool,
        **options: Any,
    ) -> tuple[tuple[Predictions, ...], Tensor]:
        """Decode queries with another decoder, which shares the heads of the model.

        Args:
            memory: levels (B, D, h, w).
            position: (B, Q, D), position part of the queries.
            content: (B, Q, D), initial content of the queries.
            reference: (B, Q, 2 or 4), initial reference points or boxes, in 0..1 of the unpadded image.
            decoder: at most as many `DecoderLayer` as the model has heads, if it refines boxes.
            refine: whether every layer starts from the boxes of the previous layer, and not from `reference`.
            options: further arguments of the layers.

        Returns:
            The predictions of every layer and the decoder output, (L, B, Q, D).
        """
        return self._decode(_Tokens.of(memory), position, content, reference, decoder, refine, **options)

    def _decode(
        self,
        tokens: _Tokens,
        position: Tensor,
        content: Tensor,
        reference: Tensor,
        decoder: LayerStack,
        refine: bool,
        **options: Any,
    ) -> tuple[tuple[Predictions, ...], Tensor]:
        """As `decode_queries`, for tokens of the memory."""
        predictions, queries = [], []
        for index, layer in enumerate(decoder.layers):
            placed = tokens.on_levels(reference)
            content = layer(content, position, placed, tokens.values, tokens.shapes, tokens.padding, **options)
            class_head = self.class_heads[min(index, len(self.class_heads) - 1)]
            box_head = self.box_heads[min(index, len(self.box_heads) - 1)]
            with torch.autocast(content.device.type, enabled=False):
                known = content.to(weights_dtype(class_head))
                boxes = _moved(full_precision(box_head(known)), reference)
                predictions.append(Predictions(full_precision(class_head(known)), boxes, self.scoring))
            queries.append(known)
            if refine:
                reference = boxes.detach()
        return tuple(predictions), torch.stack(queries)


class TwoStageDETR(DeformableDETR):
    """Two-stage Deformable DETR: the decoder refines the best boxes that the encoder proposes (section 4.2)."""

    has_proposals = True
    objectness_rows = ("proposal_class_head.weight", "proposal_class_head.bias")
    query_rows = ()

    def _make_queries(self, config: DeformableDETRConfig, class_head: nn.Linear, box_head: MLP) -> None:
        """Create the layers that make queries from proposals, and the heads of the proposals."""
        width = config.transformer.width
        self._num_queries = config.num_queries
        self.proposal_content = nn.Linear(width, width)
        self.proposal_content_norm = nn.LayerNorm(width)
        self.proposal_query = nn.Linear(2 * width, 2 * width)
        self.proposal_query_norm = nn.LayerNorm(2 * width)
        for linear in (self.proposal_content, self.proposal_query):
            nn.init.xavier_uniform_(linear.weight)
        self.proposal_class_head, self.proposal_box_head = class_head, box_head

    @property
    def num_queries(self) -> int:
        """Q."""
        return self._num_queries

    def decode(
        self,
        memory: tuple[FeatureMap, ...],
        features: tuple[FeatureMap, ...] = (),
        *,
        position: Tensor | None = None,
        content: Tensor | None = None,
        reference: Tensor | None = None,
    ) -> TwoStageOutput:
        """Memory -> predictions of every decoder layer, and proposals.

        Args:
            memory: levels (B, D, h, w).
            features: backbone features, which become part of the output.
            position, content, reference: as in `DeformableDETR`. By default the reference is the best proposals, and
                position and content are computed from the reference, which must be boxes.
        """
        tokens = _Tokens.of(memory)
        with torch.autocast(tokens.values.device.type, enabled=False):
            proposals, logit_boxes = self._propose(tokens)
            if reference is None:
                scores = proposals.logits[..., 0]
                if tokens.padding is not None:  # padded tokens come last, so the amount of padding has no effect
                    scores = scores.masked_fill(tokens.padding, -torch.inf)
                reference = self._best(scores, logit_boxes.detach()).sigmoid()
            reference = _per_image(reference, tokens)
            embedded = embed_coordinates(reference, tokens.values.shape[-1] // 2).to(weights_dtype(self.proposal_query))
            made_position, made_content = self.proposal_query_norm(self.proposal_query(embedded)).chunk(2, -1)
        position = made_position if position is None else _per_image(position, tokens)
        content = made_content if content is None else _per_image(content, tokens)
        layers, queries = self._decode(tokens, position, content, reference, self.decoder, self.refine)
        return TwoStageOutput(layers, queries, features, memory, proposals)

    def _propose(self, tokens: _Tokens) -> tuple[Predictions, Tensor]:
        """The proposals of all tokens, and their boxes before the sigmoid, (B, N, 4), infinite for excluded tokens."""
        centres = tokens.centres()
        sizes = [torch.full((h * w, 2), _PROPOSAL_SIZE * 2.0**level) for level, (h, w) in enumerate(tokens.shapes)]
        sides = torch.cat(sizes).to(centres).expand(len(centres), -1, -1)
        boxes = torch.cat((centres, sides), -1)
        silent = ~((boxes > _PROPOSAL_MARGIN) & (boxes < 1 - _PROPOSAL_MARGIN)).all(-1, keepdim=True)
        if tokens.padding is not None:
            silent = silent | tokens.padding[..., None]
        logit_boxes = boxes.logit().masked_fill(silent, torch.inf)
        content = tokens.values.to(weights_dtype(self.proposal_content)).masked_fill(silent, 0.0)
        content = self.proposal_content_norm(self.proposal_content(content))
        logit_boxes = full_precision(self.proposal_box_head(content)) + logit_boxes
        logits = full_precision(self.proposal_class_head(content))
        return Predictions(logits, logit_boxes.sigmoid(), self.scoring), logit_boxes

    def _best(self, scores: Tensor, boxes: Tensor) -> Tensor:
        """Scores (B, N) and boxes (B, N, 4) -> the boxes of the Q best tokens (B, Q, 4), fewer if N < Q."""
        chosen = scores.topk(min(self.num_queries, scores.shape[1]), dim=1).indices
        return boxes.gather(1, chosen[..., None].expand(-1, -1, 4))


def _spread_points(count: int) -> Tensor:
    """(count, 2) points that cover the unit square evenly for every count (the R2 sequence)."""
    ratio = 1.32471795724474602596  # the real root of x^3 = x + 1
    steps = torch.tensor([1 / ratio, 1 / ratio**2], dtype=torch.float64)
    return ((0.5 + torch.arange(1, count + 1, dtype=torch.float64)[:, None] * steps) % 1).float()


def _per_image(queries: Tensor, tokens: _Tokens) -> Tensor:
    """(Q, ...) or (B, Q, ...) -> (B, Q, ...)."""
    return queries.expand(len(tokens.values), -1, -1)


def _moved(offsets: Tensor, reference: Tensor) -> Tensor:
    """Add offsets (B, Q, 4) before the sigmoid to references (B, Q, 2 or 4) in 0..1 -> boxes (B, Q, 4)."""
    size = reference.shape[-1]
    start = torch.logit(reference.clamp(0, 1), eps=_EPSILON)
    return torch.cat((offsets[..., :size] + start, offsets[..., size:]), -1).sigmoid()


def _projections(num_channels: Sequence[int], num_levels: int, width: int) -> list[nn.Sequential]:
    """The projections to D features: 1x1 for levels of the backbone, 3x3 with stride 2 for each coarser level."""
    own = num_channels[-min(num_levels, 3) :]
    convolutions = [nn.Conv2d(channels, width, kernel_size=1) for channels in own]
    for index in range(num_levels - len(own)):
        channels = width if index else num_channels[-1]
        convolutions.append(nn.Conv2d(channels, width, kernel_size=3, stride=2, padding=1))
    for convolution in convolutions:
        nn.init.xavier_uniform_(convolution.weight)
        nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]
    return [nn.Sequential(convolution, group_norm(width)) for convolution in convolutions]


def _heads(width: int, num_logits: int) -> tuple[nn.Linear, MLP]:
    """A class head with low initial probabilities, and a box head with initial offsets of zero."""
    class_head, box_head = nn.Linear(width, num_logits), MLP(width, width, 4, num_layers=3)
    nn.init.constant_(class_head.bias, math.log(_PRIOR / (1 - _PRIOR)))
    for parameter in box_head.layers[-1].parameters():
        nn.init.zeros_(parameter)
    return class_head, box_head
