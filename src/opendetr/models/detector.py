"""The base class of all detectors, and the interface that the rest of the library uses."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import Field
from typing import Any, ClassVar, Protocol

from torch import Tensor, nn

from opendetr.nn import AnyBackboneConfig, Backbone
from opendetr.recipe import ParameterRate
from opendetr.structures import FeatureMap, ImageBatch, Output, Scoring


class TransformerSizes(Protocol):
    """The sizes of a transformer that other code uses. Implementations are frozen dataclasses."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @property
    def width(self) -> int:
        """D, features of a token."""
        ...

    @property
    def encoder_layers(self) -> int:
        """The number of encoder layers."""
        ...

    @property
    def decoder_layers(self) -> int:
        """L, the number of decoder layers."""
        ...


class ModelConfig(Protocol):
    """The configuration of a detector. Implementations are frozen dataclasses; further fields are their own."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @property
    def backbone(self) -> AnyBackboneConfig:
        """The CNN."""
        ...

    @property
    def transformer(self) -> TransformerSizes:
        """Encoder and decoder."""
        ...

    @property
    def num_queries(self) -> int:
        """Q, the maximum number of detections per image."""
        ...

    def build(self, num_logits: int, scoring: Scoring) -> Detector:
        """The model, randomly initialised, with C outputs of a class head."""
        ...


class Detector(nn.Module):
    """Images in, predictions of every decoder layer out.

    Attributes:
        family: name of the weight family, which defines the parameter names in other layouts.
        detector_part: name of the submodule that is a complete detector, if the model wraps one; else None.
        class_rows: names of the tensors with one row per class.
        objectness_rows: names of tensors with as many rows, of which only the first is used, for "any object".
        fixed_classes: whether the weights fit no other classes than those that they were trained on.
        query_rows: names of the tensors with one row per learned query.
        added_parts: names of submodules, at any depth, that the detector lacks on which the model builds. The model can
            start from the weights of such a detector; see `completed`.
        has_masks: whether the output has `masks`, which computes the masks of queries.
        has_proposals: whether the output has `proposals`, boxes of the encoder with their own loss.
        max_patches: the largest number of patches that the model locates in an image; 0 if it takes no patches.
        takes_text: whether the model takes a caption with each image.
        answer_names: names of the heads that answer questions; empty if the model answers none.
        has_nms: whether the model applies non-maximum suppression; see `set_nms`.
        recomputes_whole: whether activation checkpointing recomputes the whole model instead of each of its blocks. A
            video model runs once per frame, so it stores only the images and the state of each frame.
        first_level: the backbone stage (0 to 3) of the finest projected features.
        parameter_rates: learning rates that differ from that of the recipe. By default the backbone and learned
            position encodings have that of the backbone, as published, and sampling points of deformable attention have
            a fraction of it.
        scoring: how class logits become scores. The predictions carry it along.
        backbone: the CNN.
    """

    family: str
    class_rows: tuple[str, ...]
    objectness_rows: tuple[str, ...] = ()
    fixed_classes: bool = False
    query_rows: tuple[str, ...] = ("queries.weight",)
    detector_part: str | None = None
    added_parts: frozenset[str] = frozenset()
    has_masks: bool = False
    has_proposals: bool = False
    max_patches: int = 0
    takes_text: bool = False
    answer_names: tuple[str, ...] = ()
    has_nms: bool = False
    recomputes_whole: bool = False
    first_level: int = 3
    parameter_rates: tuple[ParameterRate, ...] = (
        ParameterRate(names=frozenset({"backbone", "position"}), rate=lambda recipe: recipe.backbone_learning_rate),
        ParameterRate(
            names=frozenset({"sampling_offsets", "reference_points"}),
            rate=lambda recipe: recipe.learning_rate * recipe.sampling_rate_factor,
        ),
    )
    scoring: Scoring
    backbone: Backbone

    @property
    @abstractmethod
    def num_queries(self) -> int:
        """Q, the maximum number of detections per image."""

    @property
    def num_logits(self) -> int:
        """C, the number of outputs of a class head."""
        return len(self.get_parameter(self.class_rows[0]))

    @abstractmethod
    def project_features(
        self, features: tuple[FeatureMap, ...], padding: Tensor | None = None
    ) -> tuple[FeatureMap, ...]:
        """Backbone features -> projected features, the encoder's input: levels (B, D, h, w), fine to coarse.

        Args:
            features: backbone features, fine to coarse.
            padding: (B, H, W) bool, padding of the images, for models that add levels coarser than the backbone's. By
                default that of the finest features.
        """

    @abstractmethod
    def encode(self, projected: tuple[FeatureMap, ...]) -> tuple[FeatureMap, ...]:
        """Projected features -> memory of the same shapes, with its position encoding."""

    @abstractmethod
    def decode(self, memory: tuple[FeatureMap, ...], features: tuple[FeatureMap, ...] = ()) -> Output:
        """Memory -> predictions of every decoder layer. `features` become part of the output."""

    def set_nms(self, iou: float) -> None:
        """Change the IoU above which non-maximum suppression drops a detection; 1 switches it off.

        Raises:
            ValueError: the model has no non-maximum suppression.
        """
        raise ValueError(f"{type(self).__name__} has no non-maximum suppression")

    def completed(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights of a detector without `added_parts`, in our layout -> the same with those of this model."""
        added = {name: value for name, value in self.state_dict().items() if self.added_parts & set(name.split("."))}
        return added | dict(state)

    def from_features(self, features: tuple[FeatureMap, ...], padding: Tensor | None = None) -> Output:
        """Backbone features -> predictions of every decoder layer; `padding` as in `project_features`."""
        return self.decode(self.encode(self.project_features(features, padding)), features)

    def forward(self, images: ImageBatch) -> Output:
        """Images -> predictions of every decoder layer: logits (B, Q, C), boxes (B, Q, 4) cxcywh in 0..1."""
        return self.from_features(self.backbone(images), images.padding)
