"""What every member of the family has in common, and all that the rest of the library asks of one."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

from torch import nn

from opendetr.nn.backbone import Backbone
from opendetr.structures import FeatureMap, ImageBatch, Output, Scoring


class Detector(nn.Module):
    """Images in, predictions of every decoder layer out.

    Attributes:
        family: under which name `layouts` knows the official names of the parameters.
        class_rows: names of the tensors that have a row a class.
        scoring: what the class logits mean; it travels with the predictions.
        backbone: the CNN.
    """

    family: ClassVar[str]
    class_rows: tuple[str, ...]
    scoring: Scoring
    backbone: Backbone

    @property
    @abstractmethod
    def num_queries(self) -> int:
        """Q, the most objects that an image can have."""

    @property
    def num_logits(self) -> int:
        """C, outputs of a class head."""
        return len(self.get_parameter(self.class_rows[0]))

    @abstractmethod
    def answer(self, features: tuple[FeatureMap, ...]) -> Output:
        """Backbone features, fine to coarse -> predictions of every decoder layer."""

    def forward(self, images: ImageBatch) -> Output:
        """Images -> predictions of every decoder layer: logits (B, Q, C), boxes (B, Q, 4) cxcywh in 0..1."""
        return self.answer(self.backbone(images))
