"""What every member of the family has in common, and all that the rest of the library asks of one."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor, nn

from opendetr.nn import Backbone
from opendetr.structures import FeatureMap, ImageBatch, Output, Scoring


class Detector(nn.Module):
    """Images in, predictions of every decoder layer out.

    Attributes:
        family: under which name `weights` knows the names of the parameters in other layouts.
        detector_part: the submodule that is a detector by itself, in a model around one; else None.
        class_rows: names of the tensors that have a row a class.
        objectness_rows: names of the tensors that have as many rows, of which only the first is used: whether there is
            an object of any class.
        query_rows: names of the tensors that have a row a learned query.
        has_masks: whether the output has `masks`, which computes the masks of queries.
        has_proposals: whether the output has `proposals`, boxes of the encoder that are trained as well.
        first_level: the stage of the backbone (0 to 3) that the finest projected features are made from.
        scoring: what the class logits mean; it travels with the predictions.
        backbone: the CNN.
    """

    family: str
    class_rows: tuple[str, ...]
    objectness_rows: tuple[str, ...] = ()
    query_rows: tuple[str, ...] = ("queries.weight",)
    detector_part: str | None = None
    has_masks: bool = False
    has_proposals: bool = False
    first_level: int = 3
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
    def project_features(
        self, features: tuple[FeatureMap, ...], padding: Tensor | None = None
    ) -> tuple[FeatureMap, ...]:
        """Backbone features -> projected features, the encoder's input: levels (B, D, h, w), fine to coarse.

        Args:
            features: of the backbone, fine to coarse.
            padding: (B, H, W) bool of the images, for members that make coarser levels than the backbone has; the
                finest features' own when omitted.
        """

    @abstractmethod
    def encode(self, projected: tuple[FeatureMap, ...]) -> tuple[FeatureMap, ...]:
        """Projected features -> memory of the same shapes, with its position encoding."""

    @abstractmethod
    def decode(self, memory: tuple[FeatureMap, ...], features: tuple[FeatureMap, ...] = ()) -> Output:
        """Memory -> predictions of every decoder layer; `features` are handed on to the output."""

    def from_features(self, features: tuple[FeatureMap, ...], padding: Tensor | None = None) -> Output:
        """Backbone features -> predictions of every decoder layer; `padding` as in `project_features`."""
        return self.decode(self.encode(self.project_features(features, padding)), features)

    def forward(self, images: ImageBatch) -> Output:
        """Images -> predictions of every decoder layer: logits (B, Q, C), boxes (B, Q, 4) cxcywh in 0..1."""
        return self.from_features(self.backbone(images), images.padding)


def tokens_of(features: Tensor) -> Tensor:
    """(B, D, h, w) -> (B, h w, D), row by row."""
    return features.flatten(2).transpose(1, 2)
