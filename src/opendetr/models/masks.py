"""Masks for any member of the family (DETR, Carion et al. 2020, section 4.2 and figure 8).

Where a query looks in the memory says where its object is, coarsely: the attention maps of the last layer's queries,
beside the features that the encoder reads, go through a small convolutional network that takes in the backbone's finer
levels one after another, and come out as one mask a query. The boxes are found without any of it, so masks are computed
afterwards, and for those queries only that are asked for.

What all queries of an image have in common is computed once. The first convolution reads D shared features and a few
attention maps a query; being linear, it is the sum of a convolution of either.

Shape letters: B batch, Q queries, D width, A heads of the attention, C channels, h w cells of a level, H W cells of the
finest level (stride 4), m queries that masks are asked for, n those of them in one image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from opendetr.models.conditional import ConditionalDETRConfig
from opendetr.models.deformable import DeformableDETRConfig
from opendetr.models.detector import Detector, tokens_of
from opendetr.models.detr import DETRConfig
from opendetr.nn.attention import AttentionModule
from opendetr.nn.layers import GroupNorm, full_precision
from opendetr.structures import FeatureMap, ImageBatch, LazyMasks, Output, Scoring

# A detector with a mask head is of a family of its own, and holds the detector without as a part.
WITH_MASKS = "-masks"
INSIDE = "detector."
_NUM_GROUPS = 8
# Values of the widest activation of the head that are computed at a time; more of them are slower on a CPU, too.
_CHUNK = 2**22


@dataclass(frozen=True, kw_only=True)
class MaskHeadConfig:
    """What is put around a detector so that it gives masks; the defaults are DETR's.

    Attributes:
        enabled: whether there is a mask head at all.
        num_heads: A, attention maps of a query; it divides the detector's width.
        level: the level that the attention looks at and the head begins with, by the backbone's stage: 1 to 3, strides
            8, 16 and 32 (16 with dilation). DETR's encoder reads 3 alone.
        attention_gain: by how much the weights that the first convolution has for attention maps are enlarged at
            first. All maps of a query sum to 1, so that a cell has some 1 / 2000; with the published 1 they begin as
            next to nothing beside the features, and it takes epochs until masks differ from query to query.
    """

    enabled: bool = False
    num_heads: int = 8
    level: int = 3
    attention_gain: float = 1.0

    def __post_init__(self) -> None:
        if self.num_heads < 1:
            raise ValueError(f"masks.num_heads: expected at least 1, got {self.num_heads}")
        if not 1 <= self.level <= 3:
            raise ValueError(f"masks.level: expected 1 to 3, got {self.level}")
        if self.attention_gain <= 0:
            raise ValueError(f"masks.attention_gain: expected more than 0, got {self.attention_gain}")

    def build(
        self, detector: DETRConfig | ConditionalDETRConfig | DeformableDETRConfig, num_logits: int, scoring: Scoring
    ) -> MaskedDetector:
        """The detector with a mask head, randomly initialised.

        Raises:
            ValueError: the detector's width or levels do not fit.
        """
        return MaskedDetector(self, detector.build(num_logits, scoring), detector.transformer.width)


class MaskAttention(AttentionModule):
    """Where queries look: attention weights whose softmax runs over all heads and cells together.

    Args:
        width: D.
        num_heads: A.
    """

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        for linear in (self.query, self.key):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, queries: Tensor, key: Tensor, padding: Tensor | None) -> Tensor:
        """Queries (n, D) and keys (h w, D) of one image, padding (h w,) bool -> (n, A, h w), summing to 1 a query."""
        query = self.query(queries).unflatten(-1, (self.num_heads, -1)).transpose(0, 1)
        keys = key.unflatten(-1, (self.num_heads, -1)).permute(1, 2, 0)
        weights = torch.matmul(query / math.sqrt(query.shape[-1]), keys).transpose(0, 1)
        if padding is not None:  # not minus infinity: an image that is all padding has a finite mask, too
            weights = weights.masked_fill(padding, torch.finfo(weights.dtype).min)
        return weights.flatten(1).softmax(-1).view(weights.shape)

    def weights(self, queries: Tensor, key: Tensor, padding: Tensor | None) -> Tensor:
        """The attention weights for the arguments of `forward`, which are its result.

        Returns:
            (n, A, h w) float32. Those of a query sum to 1 over heads and cells together; padded cells have 0, unless
            all cells are padded.
        """
        return full_precision(self.forward(queries, key, padding))


@dataclass(frozen=True)
class _Shared:
    """What all masks of one image have in common.

    Attributes:
        first: (1, D + A, h, w), what the first convolution makes of the features that the encoder reads.
        levels: (1, C, h, w) each, the adapted levels of the backbone, coarse to fine.
    """

    first: Tensor
    levels: tuple[Tensor, ...]


class MaskHead(nn.Module):
    """Attention maps to masks: 3x3 convolutions with group norm, between which ever finer levels are added.

    Args:
        width: D.
        num_heads: A.
        num_channels: of the backbone's levels that are added, fine to coarse; the width is halved for each.
    """

    def __init__(self, width: int, num_heads: int, num_channels: Sequence[int]) -> None:
        super().__init__()
        self.width = width
        added = num_channels[::-1]
        widths = [width + num_heads] * 2 + [width // 2**step for step in range(1, len(added) + 2)]
        self.convolutions = nn.ModuleList(nn.Conv2d(a, b, kernel_size=3, padding=1) for a, b in pairwise(widths))
        self.norms = nn.ModuleList(GroupNorm(math.gcd(_NUM_GROUPS, b), b) for b in widths[1:])
        self.adapters = nn.ModuleList(nn.Conv2d(a, b, kernel_size=1) for a, b in zip(added, widths[2:], strict=False))
        self.out = nn.Conv2d(widths[-1], 1, kernel_size=3, padding=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        self.to(memory_format=torch.channels_last)

    def of_attention(self) -> Tensor:
        """(D + A, A, 3, 3), the part of the first convolution's weights that reads attention maps."""
        first = self.convolutions[0]
        assert isinstance(first, nn.Conv2d)
        return first.weight[:, self.width :]

    def share(self, projected: Tensor, features: Sequence[Tensor]) -> _Shared:
        """What is computed once for an image.

        Args:
            projected: (1, D, h, w), what the encoder reads.
            features: (1, C, h, w) each, finer levels of the backbone, fine to coarse.
        """
        first = self.convolutions[0]
        assert isinstance(first, nn.Conv2d)
        levels = (adapt(level) for adapt, level in zip(self.adapters, reversed(features), strict=True))
        return _Shared(F.conv2d(projected, first.weight[:, : self.width], first.bias, padding=1), tuple(levels))

    def forward(self, shared: _Shared, attention: Tensor) -> Tensor:
        """What the masks of an image share, and attention maps (n, A, h, w) -> logits (n, H, W) float32."""
        height, width = shared.levels[-1].shape[-2:]
        at_once = max(1, _CHUNK // (2 * self.out.in_channels * height * width))
        return torch.cat([self._masks(shared, some) for some in attention.split(at_once)])

    def _masks(self, shared: _Shared, attention: Tensor) -> Tensor:
        others = self.convolutions[1:]
        first_norm, second_norm, *norms = self.norms
        attention = attention.contiguous(memory_format=torch.channels_last)
        x = F.conv2d(attention, self.of_attention(), padding=1) + shared.first
        x = F.relu(first_norm(x), inplace=True)
        x = F.relu(second_norm(others[0](x)), inplace=True)
        for level, convolution, norm in zip(shared.levels, others[1:], norms, strict=True):
            x = F.interpolate(x, size=level.shape[-2:], mode="nearest") + level
            x = F.relu(norm(convolution(x)), inplace=True)
        return full_precision(self.out(x)[:, 0])


class MaskedDetector(Detector):
    """A detector that can be asked for masks; it answers as the detector in it does.

    Args:
        config: what the masks are made by.
        detector: any member of the family.
        width: D, of the detector.

    Attributes:
        detector: that detector, as it is without masks.
        attention: where the queries look.
        head: attention maps to masks.

    Raises:
        ValueError: width or levels of the detector do not fit.
    """

    has_masks = True
    detector_part = "detector"

    def __init__(self, config: MaskHeadConfig, detector: Detector, width: int) -> None:
        super().__init__()
        if width % config.num_heads:
            raise ValueError(f"masks.num_heads: {config.num_heads} does not divide the detector's width of {width}")
        if width < 2 ** (config.level + 1):
            raise ValueError(
                f"masks: a width of {width} is too small for a head that halves it {config.level + 1} times"
            )
        if config.level < detector.first_level:
            expected = "3" if detector.first_level == 3 else f"{detector.first_level} to 3"
            raise ValueError(f"masks.level: expected {expected} for this detector, got {config.level}")
        self.level = config.level
        self.scoring = detector.scoring
        self.family = f"{detector.family}{WITH_MASKS}"
        self.first_level = detector.first_level
        self.has_proposals = detector.has_proposals
        self.class_rows = _inside(detector.class_rows)
        self.objectness_rows = _inside(detector.objectness_rows)
        self.query_rows = _inside(detector.query_rows)
        self.detector = detector
        self.attention = MaskAttention(width, config.num_heads)
        self.head = MaskHead(width, config.num_heads, detector.backbone.num_channels[: config.level])
        with torch.no_grad():
            self.head.of_attention().mul_(config.attention_gain)

    @property
    def backbone(self) -> nn.Module:  # type: ignore[override]
        """The CNN."""
        return self.detector.backbone

    @property
    def num_queries(self) -> int:
        """Q."""
        return self.detector.num_queries

    def project_features(
        self, features: tuple[FeatureMap, ...], padding: Tensor | None = None
    ) -> tuple[FeatureMap, ...]:
        """The detector's."""
        return self.detector.project_features(features, padding)

    def encode(self, projected: tuple[FeatureMap, ...]) -> tuple[FeatureMap, ...]:
        """The detector's."""
        return self.detector.encode(projected)

    def decode(self, memory: tuple[FeatureMap, ...], features: tuple[FeatureMap, ...] = ()) -> Output:
        """The detector's."""
        return self.detector.decode(memory, features)

    def forward(self, images: ImageBatch) -> Output:
        """Images -> the output of the detector, whose `masks` computes those of the queries that are asked for."""
        output = self.detector(images)
        return replace(output, masks=LazyMasks(partial(self.masks, output), images.shape))

    def masks(self, output: Output, image: Tensor, query: Tensor) -> Tensor:
        """The masks of some queries of the last layer; which others are asked for changes none of them.

        Args:
            output: of this model, with its features.
            image: (m,) int64, which image of the batch each query is of.
            query: (m,) int64, which of its queries.

        Returns:
            (m, H, W) float32 logits at stride 4 of the padded batch, the size of `output.features[0]`.
        """
        order = image.argsort(stable=True)
        counts = image.bincount(minlength=len(output.final.boxes)).tolist()
        projected = self.detector.project_features(output.features)[self.level - self.first_level].values
        asked = [index for index, count in enumerate(counts) if count] or [0]  # none asked for is an empty part
        per_image = query[order].split(counts)
        parts = [self._masks_of(output, projected, index, per_image[index]) for index in asked]
        return torch.cat(parts)[order.argsort()]

    def _masks_of(self, output: Output, projected: Tensor, image: int, query: Tensor) -> Tensor:
        """The masks of queries (n,) of one image, (n, H, W)."""
        here = slice(image, image + 1)
        memory = output.memory[self.level - self.first_level]
        padding = None if memory.padding is None else memory.padding[image].flatten()
        key = self.attention.key(tokens_of(memory.values[here])[0])
        attention = self.attention(output.queries[-1, image, query], key, padding)
        shared = self.head.share(projected[here], [level.values[here] for level in output.features[: self.level]])
        return self.head(shared, attention.unflatten(-1, memory.values.shape[-2:]))


def _inside(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"{INSIDE}{name}" for name in names)
