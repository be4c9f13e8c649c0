"""DETR: object detection as set prediction (Carion et al., "End-to-End Object Detection with Transformers", 2020).

A CNN computes features of the image. The encoder applies self-attention to the feature cells. In the decoder, learned
object queries attend to the encoder's output, and each query predicts one class and one box. There are no anchors and
no non-maximum suppression, because the loss matches each object with one query.

Shape letters: B batch, Q queries, L decoder layers, C class logits, D width, H W image, h w features.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from opendetr.models.detector import Detector
from opendetr.nn import (
    MLP,
    AnyBackboneConfig,
    BackboneConfig,
    Decoder,
    Encoder,
    LearnedPosition,
    SinePosition,
    TransformerConfig,
    full_precision,
    tokens_of,
    weights_dtype,
)
from opendetr.structures import FeatureMap, Output, Predictions, Scoring

Placement = Literal["attention", "input", "none"]


@dataclass(frozen=True, kw_only=True)
class PositionConfig:
    """Where the position encodings are added (DETR, table 3). The defaults are those of the published models.

    "attention" adds an encoding to the queries and keys of every attention, "input" only once to the input of the
    encoder or decoder, and "none" nowhere.

    Attributes:
        encoder: the position encoding of the cells, in the encoder.
        decoder: the same encoding, in the attention of the decoder to the encoder's output. "input" adds it to values
            as well as to keys.
        queries: the object queries, which are the position encoding of the decoder's output. Without them all
            predictions would be equal.
    """

    encoder: Placement = "attention"
    decoder: Placement = "attention"
    queries: Literal["attention", "input"] = "attention"


@dataclass(frozen=True, kw_only=True)
class DETRConfig:
    """Configuration of a DETR. The defaults are those of the published R50 model.

    Attributes:
        backbone: the CNN.
        transformer: encoder and decoder.
        position: type of the position encoding.
        placement: where position encodings are added. Models that build on DETR have the default.
        num_queries: Q, the maximum number of detections per image.
    """

    backbone: AnyBackboneConfig = field(default_factory=BackboneConfig)
    transformer: TransformerConfig = field(default_factory=TransformerConfig)
    position: Literal["sine", "learned"] = "sine"
    placement: PositionConfig = field(default_factory=PositionConfig)
    num_queries: int = 100

    def build(self, num_logits: int, scoring: Scoring) -> DETR:
        """The model, randomly initialised."""
        return DETR(self, num_logits, scoring)


_POSITIONS = {"sine": SinePosition, "learned": LearnedPosition}


def _placed(tokens: Tensor, position: Tensor, placement: Placement) -> tuple[Tensor, Tensor]:
    """The tokens (B, N, D) and the encoding that every attention adds to them, for their position encoding."""
    if placement == "attention":
        return tokens, position
    return tokens + position if placement == "input" else tokens, torch.zeros_like(position)


class DETR(Detector):
    """The DETR detector.

    Args:
        config: architecture.
        num_logits: C, number of outputs of the class head, including "no object" if the scoring has it.
        scoring: how class logits become scores.

    Attributes:
        decoder_type: class of the decoder, with the arguments of `Decoder`. A subclass may set another class.
        places_positions: whether the model supports `DETRConfig.placement`.
    """

    family = "detr"
    decoder_type: ClassVar[type[nn.Module]] = Decoder
    places_positions: ClassVar[bool] = True
    class_rows: tuple[str, ...] = ("class_head.weight", "class_head.bias")

    def __init__(self, config: DETRConfig, num_logits: int, scoring: Scoring) -> None:
        super().__init__()
        if config.placement != PositionConfig() and not self.places_positions:
            raise ValueError("model.placement: only DETR can place position encodings otherwise; leave it out")
        if config.position == "learned" and config.placement.encoder == config.placement.decoder == "none":
            raise ValueError("model.position: learned positions that are added nowhere cannot be trained; use sine")
        width = config.transformer.width
        self.placement = config.placement
        self.scoring = scoring
        self.backbone = config.backbone.build()
        self.position = _POSITIONS[config.position](width)
        self.project = nn.Conv2d(self.backbone.num_channels[-1], width, kernel_size=1)
        self.encoder = Encoder(config.transformer)
        self.queries = nn.Embedding(config.num_queries, width)
        self.decoder = self.decoder_type(config.transformer)
        self.class_head = nn.Linear(width, num_logits)
        self.box_head = MLP(width, width, 4, num_layers=3)

    @property
    def num_queries(self) -> int:
        """Q."""
        return self.queries.num_embeddings

    def project_features(
        self, features: tuple[FeatureMap, ...], padding: Tensor | None = None
    ) -> tuple[FeatureMap, ...]:
        """Project the coarsest backbone features; returns one level."""
        top = features[-1]
        return (FeatureMap(self.project(top.values), top.padding),)

    def encode(self, projected: tuple[FeatureMap, ...]) -> tuple[FeatureMap, ...]:
        """One level (B, D, h, w) -> memory of the same shape, with its position encoding."""
        (level,) = projected
        position = self.position(level).to(level.values.dtype)
        padding = None if level.padding is None else level.padding.flatten(1)
        placed = _placed(tokens_of(level.values), tokens_of(position), self.placement.encoder)
        tokens = self.encoder(*placed, padding)
        memory = tokens.transpose(1, 2).unflatten(2, level.values.shape[-2:])
        return (FeatureMap(memory, level.padding, position),)

    def decode(
        self,
        memory: tuple[FeatureMap, ...],
        features: tuple[FeatureMap, ...] = (),
        query_position: Tensor | None = None,
    ) -> Output:
        """Memory -> predictions of every decoder layer.

        Args:
            memory: one level (B, D, h, w) with its position encoding.
            features: backbone features, which become part of the output.
            query_position: (Q, D) or (B, Q, D), the object queries. By default the learned ones.
        """
        query_position = self.queries.weight if query_position is None else query_position
        return self.predict(self.decode_queries(memory[0], query_position), query_position, memory, features)

    def predict(
        self,
        queries: Tensor,
        query_position: Tensor,
        memory: tuple[FeatureMap, ...],
        features: tuple[FeatureMap, ...] = (),
    ) -> Output:
        """The decoder's output (L, B, Q, D) -> predictions of every layer; the other arguments as in `decode`."""
        with torch.autocast(queries.device.type, enabled=False):  # a box needs more digits than bfloat16 has
            queries = queries.to(weights_dtype(self.class_head))
            logits = full_precision(self.class_head(queries))
            boxes = self.predict_boxes(queries, query_position)
        layers = tuple(Predictions(*layer, self.scoring) for layer in zip(logits, boxes, strict=True))
        return Output(layers, queries, features, memory)

    def decode_queries(self, memory: FeatureMap, query_position: Tensor, **options: Any) -> Tensor:
        """Memory (B, D, h, w) and object queries (Q, D) or (B, Q, D) -> the decoder's output, (L, B, Q, D).

        `options` are further arguments of the decoder.
        """
        assert memory.position is not None
        queries = query_position.expand(len(memory.values), -1, -1)
        padding = None if memory.padding is None else memory.padding.flatten(1)
        if self.placement.queries == "input":
            options["content"], queries = _placed(torch.zeros_like(queries), queries, "input")
        placed = _placed(tokens_of(memory.values), tokens_of(memory.position), self.placement.decoder)
        return self.decoder(queries, *placed, padding, **options)

    def predict_boxes(self, queries: Tensor, query_position: Tensor) -> Tensor:
        """The decoder's output (L, B, Q, D) -> boxes (L, B, Q, 4), cxcywh in 0..1.

        Args:
            queries: the decoder's output.
            query_position: (Q, D) or (B, Q, D), the object queries, for models that predict boxes relative to them.
        """
        return full_precision(self.box_head(queries)).sigmoid()
