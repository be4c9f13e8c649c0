"""DETR: object detection as set prediction (Carion et al., "End-to-End Object Detection with Transformers", 2020).

A CNN sees the image, an encoder lets its cells talk to each other, a decoder lets learned object queries look at them,
and each query answers with one class and one box. No anchors, no suppression: the loss has every object answered once.

Shape letters: B batch, Q queries, L decoder layers, C class logits, D width, H W image, h w features.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from opendetr.models.detector import Detector
from opendetr.nn.backbone import Backbone, BackboneConfig
from opendetr.nn.layers import MLP
from opendetr.nn.position import LearnedPosition, SinePosition
from opendetr.nn.transformer import Decoder, Encoder, TransformerConfig
from opendetr.structures import FeatureMap, Output, Predictions, Scoring


@dataclass(frozen=True, kw_only=True)
class DETRConfig:
    """What a DETR is made of; the defaults are the published R50.

    Attributes:
        backbone: the CNN.
        transformer: encoder and decoder.
        position: how a cell's place is encoded.
        num_queries: Q, the most objects that an image can have.
    """

    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    transformer: TransformerConfig = field(default_factory=TransformerConfig)
    position: Literal["sine", "learned"] = "sine"
    num_queries: int = 100

    def build(self, num_logits: int, scoring: Scoring) -> DETR:
        """The model, randomly initialised."""
        return DETR(self, num_logits, scoring)


_POSITIONS = {"sine": SinePosition, "learned": LearnedPosition}


class DETR(Detector):
    """The detector.

    Args:
        config: what it is made of.
        num_logits: C, outputs of the class head (no-object among them, for a scoring that has one).
        scoring: what the logits mean.
    """

    family: ClassVar = "detr"
    class_rows = ("class_head.weight", "class_head.bias")

    def __init__(self, config: DETRConfig, num_logits: int, scoring: Scoring) -> None:
        super().__init__()
        width = config.transformer.width
        self.scoring = scoring
        self.backbone = Backbone(config.backbone)
        self.position = _POSITIONS[config.position](width)
        self.project = nn.Conv2d(self.backbone.num_channels[-1], width, kernel_size=1)
        self.encoder = Encoder(config.transformer)
        self.queries = nn.Embedding(config.num_queries, width)
        self.decoder = Decoder(config.transformer)
        self.class_head = nn.Linear(width, num_logits)
        self.box_head = MLP(width, width, 4, num_layers=3)

    @property
    def num_queries(self) -> int:
        """Q."""
        return self.queries.num_embeddings

    def encode(self, features: FeatureMap) -> FeatureMap:
        """The coarsest features (B, D_backbone, h, w) -> memory (B, D, h, w) with its position encoding."""
        position = self.position(features).to(features.values.dtype)
        projected = self.project(features.values)
        padding = None if features.padding is None else features.padding.flatten(1)
        tokens = self.encoder(_tokens(projected), _tokens(position), padding)
        return FeatureMap(tokens.transpose(1, 2).unflatten(2, projected.shape[-2:]), features.padding, position)

    def decode(self, memory: FeatureMap) -> Tensor:
        """Memory (B, D, h, w) -> what every query knows after every layer, (L, B, Q, D)."""
        assert memory.position is not None
        queries = self.queries.weight.expand(len(memory.values), -1, -1)
        padding = None if memory.padding is None else memory.padding.flatten(1)
        return self.decoder(queries, _tokens(memory.values), _tokens(memory.position), padding)

    def answer(self, features: tuple[FeatureMap, ...]) -> Output:
        """Backbone features -> predictions of every decoder layer."""
        return self.read(self.encode(features[-1]), features)

    def read(self, memory: FeatureMap, features: tuple[FeatureMap, ...]) -> Output:
        """Memory -> predictions of every decoder layer; `features` are handed on."""
        queries = self.decode(memory)
        with torch.autocast(queries.device.type, enabled=False):  # a box needs more digits than bfloat16 has
            queries = queries.float()
            logits, boxes = self.class_head(queries), self.box_head(queries).sigmoid()
        layers = tuple(Predictions(*layer, self.scoring) for layer in zip(logits, boxes, strict=True))
        return Output(layers, queries, features, (memory,))


def _tokens(features: Tensor) -> Tensor:
    """(B, D, h, w) -> (B, h w, D), row by row."""
    return features.flatten(2).transpose(1, 2)
