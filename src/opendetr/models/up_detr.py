"""UP-DETR: pre-training on unlabelled images (Dai et al., "UP-DETR: Unsupervised Pre-training for Object Detection with
Transformers", 2021).

Random patches are cropped from an image. The backbone computes the features of a patch, and their mean is added to the
object queries of a group. The model predicts where each patch is in the image. It also reconstructs the features of the
patch, so that the decoder keeps what distinguishes it. Queries of different patches do not attend to each other. Apart
from the patches, the model is a DETR, and a DETR is trained from its weights.

Shape letters: B batch, Q queries, L decoder layers, M patches of an image, D width, F backbone channels, h w patch.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from opendetr.models.detr import DETR, DETRConfig
from opendetr.nn import MLP, BackboneConfig, fixed_norms, full_precision
from opendetr.structures import FeatureMap, ImageBatch, Output, Predictions, Scoring, expect_shape


@dataclass(frozen=True, kw_only=True)
class UPDETRConfig(DETRConfig):
    """Configuration of a UP-DETR. The defaults are those of the published R50 model, except for its frozen backbone.

    Attributes:
        num_patches: M, patches of an image in pre-training. It divides `num_queries`.
        query_dropout: probability that a query does not get the features of its patch, in training.
        query_shuffle: whether the learned queries of an image are permuted at random in training. The authors found no
            benefit.
        reconstruct: whether the model reconstructs the features of the patches.
        patch_content: whether the features of its patch are also the initial content of a query, which is 0 as
            published. Then the decoder can compare the patch with what it attends to. Otherwise the patch only decides
            what it attends to.
        patch_norm: whether the features of the patches are standardised by a batch norm without parameters. The
            features of a randomly initialised backbone hardly differ between patches; most of them is their mean.
    """

    num_patches: int = 10
    query_dropout: float = 0.1
    query_shuffle: bool = False
    reconstruct: bool = True
    patch_content: bool = False
    patch_norm: bool = False

    def __post_init__(self) -> None:
        if self.num_patches < 1:
            raise ValueError(f"model.num_patches: expected at least 1, got {self.num_patches}")
        if self.num_queries % self.num_patches:
            raise ValueError(
                f"model.num_queries: {self.num_queries} queries cannot be divided equally among {self.num_patches} "
                f"patches; give a multiple of model.num_patches"
            )
        if not 0 <= self.query_dropout < 1:
            raise ValueError(f"model.query_dropout: expected at least 0 and below 1, got {self.query_dropout}")

    def detector(self) -> DETRConfig:
        """The detector with this architecture. A backbone that is frozen in pre-training is trained, as published."""
        own = {each.name: getattr(self, each.name) for each in fields(DETRConfig)}
        if isinstance(self.backbone, BackboneConfig):
            frozen_stages = min(self.backbone.frozen_stages, BackboneConfig().frozen_stages)
            own["backbone"] = replace(self.backbone, frozen_stages=frozen_stages)
        return DETRConfig(**own)

    def build(self, num_logits: int, scoring: Scoring) -> UPDETR:
        """The model, randomly initialised."""
        return UPDETR(self, num_logits, scoring)


@dataclass(frozen=True)
class PatchOutput(Output):
    """The output of a UP-DETR. The queries belong to the patches in equal groups, in the order of the patches.

    Attributes:
        patch_features: (B, M, F) float32, the mean of the backbone features of each patch; standardised if the model
            has a patch norm.
        reconstruction: (L, B, Q, F), the features of its patch that each query predicts; None without reconstruction.
    """

    patch_features: Tensor = field(kw_only=True)
    reconstruction: Tensor | None = field(kw_only=True)


@dataclass(frozen=True)
class ControlledOutput(PatchOutput):
    """The output for images with their patches, and with those of other images.

    Attributes:
        control: the predictions of the last layer if the images get the patches of other images.
    """

    control: Predictions = field(kw_only=True)


class UPDETR(DETR):
    """The pre-training model; the arguments are those of `DETR`."""

    family = "up-detr"
    places_positions: ClassVar = False

    def __init__(self, config: UPDETRConfig, num_logits: int, scoring: Scoring) -> None:
        super().__init__(config, num_logits, scoring)
        width, num_channels = config.transformer.width, self.backbone.num_channels[-1]
        self.max_patches = config.num_patches
        self.query_dropout = config.query_dropout
        self.query_shuffle = config.query_shuffle
        self.patch_content = config.patch_content
        self.patch_norm = nn.BatchNorm1d(num_channels, affine=False) if config.patch_norm else None
        self.patch_projection = nn.Linear(num_channels, width)
        self.feature_head = MLP(width, width, num_channels, num_layers=2) if config.reconstruct else None

    @property
    def queries_per_patch(self) -> int:
        """The number of queries in the group of a patch."""
        return self.num_queries // self.max_patches

    def draw(self, seeds: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        """What is drawn at random for each image of a training batch. It depends only on the seed of the image.

        Args:
            seeds: B seeds.

        Returns:
            `kept` and `order` of `forward`, on the CPU; `order` is None without query shuffle.
        """
        kept, order = [], []
        for seed in seeds:
            generator = torch.Generator().manual_seed(seed)
            kept.append(torch.rand(self.num_queries, generator=generator) >= self.query_dropout)
            order.append(torch.randperm(self.num_queries, generator=generator))
        return torch.stack(kept), torch.stack(order) if self.query_shuffle else None

    def forward(
        self, images: ImageBatch, patches: Tensor | None = None, kept: Tensor | None = None, order: Tensor | None = None
    ) -> PatchOutput:
        """Locate patches in images.

        Args:
            images: B images.
            patches: (B, M, 3, h, w) float, RGB normalised. With fewer patches than `num_patches`, there are
                proportionally fewer queries.
            kept: (B, Q) bool, the queries that get the features of their patch; all by default.
            order: (B, Q) int64, the learned query that each query has; by default its own.

        Returns:
            The output, with the queries of each patch one after another.

        Raises:
            ValueError: there are no patches, or more than `num_patches`, or the shape is another.
        """
        patches = self._expect_patches(images, patches)
        memory, features = self.encode_images(images)  # first: their statistics normalise the patches
        return self.locate(self.encode_patches(patches), memory, features, kept, order)

    def controlled(self, images: ImageBatch, patches: Tensor, control: Tensor) -> ControlledOutput:
        """Locate patches in images, and in place of them also patches of other images. Images are encoded once.

        Args:
            images: B images.
            patches: their patches, as in `forward`.
            control: patches of other images, of the same shape.
        """
        self._expect_patches(images, patches)
        memory, features = self.encode_images(images)
        output = self.locate(self.encode_patches(patches), memory, features)
        other = self.locate(self.encode_patches(control), memory, features)
        return ControlledOutput(**vars(output), control=other.final)

    def encode_images(self, images: ImageBatch) -> tuple[tuple[FeatureMap, ...], tuple[FeatureMap, ...]]:
        """Images -> memory and backbone features."""
        features = self.backbone(images)
        return self.encode(self.project_features(features, images.padding)), features

    def locate(
        self,
        patch_features: Tensor,
        memory: tuple[FeatureMap, ...],
        features: tuple[FeatureMap, ...] = (),
        kept: Tensor | None = None,
        order: Tensor | None = None,
    ) -> PatchOutput:
        """Patch features (B, M, F) and memory -> predictions; `kept` and `order` as in `forward`."""
        content = self.query_content(patch_features, kept)
        position = self.patch_queries(content, order)
        initial = content if self.patch_content else None
        queries = self.decode_queries(memory[0], position, content=initial)
        output = self.predict(queries, position, memory, features)
        reconstruction = None if self.feature_head is None else self.feature_head(output.queries)
        return PatchOutput(
            output.layers,
            output.queries,
            features,
            memory,
            patch_features=patch_features,
            reconstruction=reconstruction,
        )

    def _expect_patches(self, images: ImageBatch, patches: Tensor | None) -> Tensor:
        """The patches. Raises ValueError unless they fit the images."""
        if patches is None:
            raise ValueError("UP-DETR locates patches, and got none: pass patches (B, M, 3, h, w) with the images")
        expected = f"({len(images)}, M, 3, h, w) with M from 1 to {self.max_patches}"
        fits = patches.ndim == 5 and patches.shape[0] == len(images) and patches.shape[2] == 3
        expect_shape(fits and 1 <= patches.shape[1] <= self.max_patches, "UPDETR", "patches", expected, patches)
        return patches

    def encode_patches(self, patches: Tensor) -> Tensor:
        """Patches (B, M, 3, h, w) -> (B, M, F), the mean of their backbone features. All patches form one batch.

        Trained batch norms use their running statistics, also in training. Statistics of the patches would differ from
        those of images, and the running statistics, a mixture of both, would fit neither in evaluation.
        """
        flat = patches.flatten(0, 1)
        sizes = torch.tensor(flat.shape[-2:], device=flat.device).expand(len(flat), 2)
        with fixed_norms(self.backbone):
            top = self.backbone(ImageBatch(flat, None, sizes))[-1].values
        features = full_precision(top).mean((2, 3))
        if self.patch_norm is not None:
            features = self._standardise(self.patch_norm, features)
        return features.unflatten(0, patches.shape[:2])

    @staticmethod
    def _standardise(norm: nn.BatchNorm1d, features: Tensor) -> Tensor:
        """Features (N, F) -> (N, F). A single patch has no statistics of its own; it gets the running ones."""
        statistics = fixed_norms(norm) if len(features) == 1 else nullcontext()
        with statistics, torch.autocast(features.device.type, enabled=False):
            return full_precision(norm(features.to(next(norm.buffers()).dtype)))

    def query_content(self, patch_features: Tensor, kept: Tensor | None = None) -> Tensor:
        """Patch features (B, M, F) -> what each query gets of them (B, Q, D); `kept` as in `forward`."""
        content = self.patch_projection(patch_features.to(self.patch_projection.weight.dtype))
        content = content.repeat_interleave(self.queries_per_patch, 1)
        return content if kept is None else content * kept[:, : content.shape[1], None]

    def patch_queries(self, content: Tensor, order: Tensor | None = None) -> Tensor:
        """The result (B, Q, D) of `query_content` -> object queries (B, Q, D); `order` as in `forward`."""
        learned = self.queries.weight if order is None else self.queries.weight[order]
        return learned[..., : content.shape[1], :] + content

    def decode_queries(self, memory: FeatureMap, query_position: Tensor, **options: Any) -> Tensor:
        """As in `DETR`. A query attends only to the queries of the same patch."""
        num_groups = query_position.shape[-2] // self.queries_per_patch
        return super().decode_queries(memory, query_position, num_groups=num_groups, **options)
