"""EfficientNet backbones of timm, with frozen batch norm.

Shape letters: B batch, C channels, H W image, h w features.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from opendetr.config import MissingPackageError
from opendetr.nn.backbone import Backbone, resize_padding
from opendetr.nn.layers import weights_dtype
from opendetr.structures import FeatureMap, ImageBatch

_NAMES = {
    "b3": "tf_efficientnet_b3.ns_jft_in1k",
    "b5": "tf_efficientnet_b5.ns_jft_in1k",
    "test": "test_efficientnet.r160_in1k",
}
_EPSILON = 1e-5  # of the norms in MDETR; the networks of timm were trained with 1e-3


@dataclass(frozen=True, kw_only=True)
class EfficientNetConfig:
    """Configuration of an EfficientNet (Tan and Le, 2019; noisy student, Xie et al., 2020).

    Attributes:
        variant: its size; "test" is timm's smallest one.
        norm: "frozen" (batch norm with fixed statistics and scale, as published) or "batch".
    """

    variant: Literal["b3", "b5", "test"] = "b3"
    norm: Literal["frozen", "batch"] = "frozen"

    def build(self) -> EfficientNetBackbone:
        """The backbone, randomly initialised. Raises MissingPackageError without the extra `text`."""
        return EfficientNetBackbone(self)

    def describe(self) -> str:
        """The kind of backbone in a few words."""
        return f"EfficientNet-{self.variant.upper()}"

    def imagenet_url(self) -> str | None:
        """None: timm has the ImageNet weights."""
        return None

    def without_counterpart(self) -> str | None:
        """None: MDETR's authors use it, too."""
        return None

    def trained_from_nothing(self) -> EfficientNetConfig:
        """The backbone for training without pretrained weights: trainable batch norm."""
        return replace(self, norm="batch")

    def frozen(self) -> EfficientNetConfig:
        """The backbone with batch norm as frozen batch norm, which has the same tensors and the same evaluation."""
        return replace(self, norm="frozen")

    def miniature(self) -> EfficientNetConfig:
        """The backbone with the smallest size, for tests."""
        return replace(self, variant="test")


class _FrozenNormAct(FrozenBatchNorm2d):
    """Frozen batch norm and the activation after it, which timm has in one module.

    MDETR's authors used an older timm, in which the activation is a module of its own. There, replacing a norm by a
    frozen one keeps the activation.
    """

    def __init__(self, num_features: int, activation: nn.Module) -> None:
        super().__init__(num_features, eps=_EPSILON)
        self.act = activation

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> the same shape."""
        return self.act(super().forward(x))


class EfficientNetBackbone(Backbone):
    """Images to four levels of features at strides 4, 8, 16 and 32."""

    def __init__(self, config: EfficientNetConfig) -> None:
        super().__init__()
        try:
            import timm
        except ModuleNotFoundError:
            raise MissingPackageError("EfficientNet", "timm") from None
        body: Any = timm.create_model(_NAMES[config.variant], features_only=True, out_indices=(1, 2, 3, 4))
        self.body = body
        self.num_channels = tuple(body.feature_info.channels())
        _replace_norms(self.body, is_frozen=config.norm == "frozen")
        self.to(memory_format=torch.channels_last)

    def forward(self, images: ImageBatch) -> tuple[FeatureMap, ...]:
        """Images -> four feature maps, fine to coarse, each with the padding mask at its own size."""
        x = images.pixels.to(weights_dtype(self.body)).contiguous(memory_format=torch.channels_last)
        return tuple(FeatureMap(level, resize_padding(images.padding, level)) for level in self.body(x))


def _replace_norms(module: nn.Module, *, is_frozen: bool) -> None:
    """Give the norms of timm MDETR's epsilon, and freeze them if requested; each keeps its activation."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            child.eps = _EPSILON
            if is_frozen:
                activation = getattr(child, "act", nn.Identity())
                setattr(module, name, _FrozenNormAct(child.num_features, activation))
        else:
            _replace_norms(child, is_frozen=is_frozen)
