"""Masks for any member of the family (DETR, Carion et al. 2020, section 4.2 and figure 8).

The attention maps of a query show roughly where its object is. The mask head is a small convolutional network. It takes
the projected features and the attention maps of the last layer's queries, adds the backbone's finer levels one after
another, and predicts one mask per query. The boxes do not depend on it. So masks are computed afterwards, and only for
the requested queries.

Everything that the queries of an image share is computed once. The input of the first convolution is D shared features
and A attention maps per query. The convolution is linear, so it is computed as the sum of two convolutions.

Shape letters: B batch, Q queries, D width, A heads of the attention, C channels, h w cells of a level, H W cells of the
finest level (stride 4), m queries with requested masks, n those of them in one image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from opendetr.models.detector import Detector, ModelConfig
from opendetr.nn import AttentionModule, Backbone, GroupNorm, full_precision, tokens_of
from opendetr.structures import FeatureMap, ImageBatch, LazyMasks, Output, Scoring

# A detector with a mask head has its own weight family. The detector without masks is a submodule.
WITH_MASKS = "-masks"
INSIDE = "detector."
_NUM_GROUPS = 8
# Maximum size of the widest activation of the head. Larger chunks need more memory and are slower on a CPU.
_CHUNK = 2**22


@dataclass(frozen=True, kw_only=True)
class MaskHeadConfig:
    """Configuration of the mask head. The defaults are DETR's.

    Attributes:
        enabled: whether the model has a mask head.
        num_heads: A, attention maps per query; it divides the detector's width.
        softmax_per_head: one softmax over the cells for each attention head, as in MDETR; DETR has one over all heads
            and cells.
        level: the level at which the attention and the head start, by backbone stage: 1 to 3, with strides 8, 16 and 32
            (16 with dilation). DETR has level 3 only.
        attention_gain: factor of the initial weights for attention maps in the first convolution; 1 as published. The
            maps of a query sum to 1, so a cell has a value of about 1 / 2000. With a factor of 1 the maps are initially
            negligible next to the features, and it takes epochs until masks differ between queries.
    """

    enabled: bool = False
    num_heads: int = 8
    softmax_per_head: bool = False
    level: int = 3
    attention_gain: float = 1.0

    def __post_init__(self) -> None:
        if self.num_heads < 1:
            raise ValueError(f"masks.num_heads: expected at least 1, got {self.num_heads}")
        if not 1 <= self.level <= 3:
            raise ValueError(f"masks.level: expected 1 to 3, got {self.level}")
        if self.attention_gain <= 0:
            raise ValueError(f"masks.attention_gain: expected more than 0, got {self.attention_gain}")

    def build(self, detector: ModelConfig, num_logits: int, scoring: Scoring) -> MaskedDetector:
        """The detector with a mask head, randomly initialised.

        Raises:
            ValueError: the configuration does not fit the detector's width or levels.
        """
        return MaskedDetector(self, detector.build(num_logits, scoring), detector.transformer.width)


class MaskAttention(AttentionModule):
    """The attention maps of queries: attention weights with one softmax over all heads and cells.

    Args:
        width: D.
        num_heads: A.
        softmax_per_head: one softmax over the cells for each head instead.
    """

    def __init__(self, width: int, num_heads: int, *, softmax_per_head: bool = False) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.softmax_per_head = softmax_per_head
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        for linear in (self.query, self.key):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, queries: Tensor, key: Tensor, padding: Tensor | None) -> Tensor:
        """Queries (n, D), keys (h w, D) and padding (h w,) of one image -> (n, A, h w); sums are 1."""
        query = self.query(queries).unflatten(-1, (self.num_heads, -1)).transpose(0, 1)
        keys = key.unflatten(-1, (self.num_heads, -1)).permute(1, 2, 0)
        weights = torch.matmul(query / math.sqrt(query.shape[-1]), keys).transpose(0, 1)
        if padding is not None:  # not minus infinity, so that the result is finite if all cells are padded
            weights = weights.masked_fill(padding, torch.finfo(weights.dtype).min)
        if self.softmax_per_head:
            return weights.softmax(-1)
        return weights.flatten(1).softmax(-1).view(weights.shape)

    def weights(self, queries: Tensor, key: Tensor, padding: Tensor | None) -> Tensor:
        """The attention weights for the arguments of `forward`, the same as its result.

        Returns:
            (n, A, h w) float32. The weights of a query sum to 1 over all heads and cells, or over the cells of each
            head. Padded cells have 0, unless all cells are padded.
        """
        return full_precision(self.forward(queries, key, padding))


@dataclass(frozen=True)
class _Shared:
    """The part of the computation that all masks of one image share.

    Attributes:
        first: (1, D + A, h, w), output of the first convolution for the projected features.
        levels: (1, C, h, w) each, adapted levels of the backbone, coarse to fine.
    """

    first: Tensor
    levels: tuple[Tensor, ...]


class MaskHead(nn.Module):
    """Attention maps to masks: 3x3 convolutions with group norm, between which finer and finer levels are added.

    Args:
        width: D.
        num_heads: A.
        num_channels: channels of the added backbone levels, fine to coarse. Each level halves the width.
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
        """(D + A, A, 3, 3), the weights of the first convolution for the attention maps."""
        first = self.convolutions[0]
        assert isinstance(first, nn.Conv2d)
        return first.weight[:, self.width :]

    def share(self, projected: Tensor, features: Sequence[Tensor]) -> _Shared:
        """Compute what all masks of an image share.

        Args:
            projected: (1, D, h, w), projected features of the start level.
            features: (1, C, h, w) each, finer levels of the backbone, fine to coarse.
        """
        first = self.convolutions[0]
        assert isinstance(first, nn.Conv2d)
        levels = (adapt(level) for adapt, level in zip(self.adapters, reversed(features), strict=True))
        return _Shared(F.conv2d(projected, first.weight[:, : self.width], first.bias, padding=1), tuple(levels))

    def forward(self, shared: _Shared, attention: Tensor) -> Tensor:
        """The shared part and the attention maps (n, A, h, w) of an image -> logits (n, H, W) float32."""
        height, width = shared.levels[-1].shape[-2:]
        chunk_size = max(1, _CHUNK // (2 * self.out.in_channels * height * width))
        return torch.cat([self._masks(shared, chunk) for chunk in attention.split(chunk_size)])

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
    """A detector with a mask head. Its classes and boxes are those of the detector.

    Args:
        config: configuration of the mask head.
        detector: any member of the family.
        width: D of the detector.

    Attributes:
        detector: the detector without masks.
        attention: computes the attention maps.
        head: computes the masks.

    Raises:
        ValueError: the configuration does not fit the detector's width or levels.
    """

    has_masks = True
    detector_part = "detector"
    parameter_rates = ()  # those of the detector

    def __init__(self, config: MaskHeadConfig, detector: Detector, width: int) -> None:
        super().__init__()
        if width % config.num_heads:
            raise ValueError(f"masks.num_heads: {config.num_heads} does not divide the detector's width of {width}")
        if width < 2 ** (config.level + 1):
            raise ValueError(
                f"masks: a width of {width} is too small for the mask head, which halves it {config.level + 1} times; "
                "use a wider detector"
            )
        if config.level < detector.first_level:
            expected = "3" if detector.first_level == 3 else f"{detector.first_level} to 3"
            raise ValueError(f"masks.level: expected {expected} for this detector, got {config.level}")
        self.level = config.level
        self.scoring = detector.scoring
        self.family = f"{detector.family}{WITH_MASKS}"
        self.first_level = detector.first_level
        self.has_proposals = detector.has_proposals
        self.takes_text = detector.takes_text
        self.answer_names = detector.answer_names
        self.class_rows = _inside(detector.class_rows)
        self.objectness_rows = _inside(detector.objectness_rows)
        self.query_rows = _inside(detector.query_rows)
        self.detector = detector
        self.attention = MaskAttention(width, config.num_heads, softmax_per_head=config.softmax_per_head)
        self.head = MaskHead(width, config.num_heads, detector.backbone.num_channels[: config.level])
        with torch.no_grad():
            self.head.of_attention().mul_(config.attention_gain)

    @property
    def backbone(self) -> Backbone:  # type: ignore[override]
        """The CNN."""
        return self.detector.backbone

    @property
    def num_queries(self) -> int:
        """Q."""
        return self.detector.num_queries

    def project_features(
        self, features: tuple[FeatureMap, ...], padding: Tensor | None = None
    ) -> tuple[FeatureMap, ...]:
        """As in the detector."""
        return self.detector.project_features(features, padding)

    def encode(self, projected: tuple[FeatureMap, ...]) -> tuple[FeatureMap, ...]:
        """As in the detector."""
        return self.detector.encode(projected)

    def decode(self, memory: tuple[FeatureMap, ...], features: tuple[FeatureMap, ...] = ()) -> Output:
        """As in the detector."""
        return self.detector.decode(memory, features)

    @property
    def num_logits(self) -> int:
        """C."""
        return self.detector.num_logits

    def forward(self, images: ImageBatch, *inputs: Any) -> Output:
        """Images, and what else the detector takes -> its output, with `masks`, which computes the masks of queries."""
        output = self.detector(images, *inputs)
        return replace(output, masks=LazyMasks(partial(self.masks, output), images.shape))

    def masks(self, output: Output, image: Tensor, query: Tensor) -> Tensor:
        """The masks of the requested queries of the last layer. Each mask is independent of the other requests.

        Args:
            output: the model's output, including its features.
            image: (m,) int64, index of the image of each requested query.
            query: (m,) int64, index of the query in its image.

        Returns:
            (m, H, W) float32 logits at stride 4 of the padded batch, the size of `output.features[0]`.
        """
        order = image.argsort(stable=True)
        counts = image.bincount(minlength=len(output.final.boxes)).tolist()
        projected = self.detector.project_features(output.features)[self.level - self.first_level].values
        indices = [index for index, count in enumerate(counts) if count] or [0]  # no query gives an empty result
        per_image = query[order].split(counts)
        parts = [self._masks_of(output, projected, index, per_image[index]) for index in indices]
        return torch.cat(parts)[order.argsort()]

    def _masks_of(self, output: Output, projected: Tensor, image: int, query: Tensor) -> Tensor:
        """Queries (n,) of one image -> their masks (n, H, W)."""
        here = slice(image, image + 1)
        memory = output.memory[self.level - self.first_level]
        padding = None if memory.padding is None else memory.padding[image].flatten()
        key = self.attention.key(tokens_of(memory.values[here])[0])
        attention = self.attention(output.queries[-1, image, query], key, padding)
        shared = self.head.share(projected[here], [level.values[here] for level in output.features[: self.level]])
        return self.head(shared, attention.unflatten(-1, memory.values.shape[-2:]))


def _inside(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"{INSIDE}{name}" for name in names)
