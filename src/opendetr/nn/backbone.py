"""Backbones: their interface, and ResNets of torchvision's layers with configurable norm, dilation and width.

Shape letters: B batch, H W image, h w features.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import Field, dataclass, replace
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import get_model_weights
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
from torchvision.ops import FrozenBatchNorm2d

from opendetr.nn.layers import convolve, group_norm, weights_dtype
from opendetr.structures import FeatureMap, ImageBatch


class Backbone(nn.Module):
    """Images to features at several strides.

    Attributes:
        body: the network, with the parameter names of its ImageNet weights.
        num_channels: channels of the levels, fine to coarse.
    """

    body: nn.Module
    num_channels: tuple[int, ...]

    @abstractmethod
    def forward(self, images: ImageBatch) -> tuple[FeatureMap, ...]:
        """Images -> feature maps, fine to coarse, each with the padding mask at its own size."""


class AnyBackboneConfig(Protocol):
    """The configuration of a backbone. Implementations are frozen dataclasses; the fields are their own."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    def build(self) -> Backbone:
        """The backbone, randomly initialised."""
        ...

    def describe(self) -> str:
        """The kind of backbone in a few words."""
        ...

    def imagenet_url(self) -> str | None:
        """The address of ImageNet weights for `Backbone.body`; None if there are none."""
        ...

    def without_counterpart(self) -> str | None:
        """What the backbones of other implementations do not have, in a few words; None if they have it all."""
        ...

    def trained_from_nothing(self) -> AnyBackboneConfig:
        """The backbone for training without pretrained weights."""
        ...

    def frozen(self) -> AnyBackboneConfig:
        """The backbone with batch norm as frozen batch norm, which has the same tensors and the same evaluation."""
        ...

    def miniature(self) -> AnyBackboneConfig:
        """The backbone with the smallest sizes, for tests."""
        ...


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """Configuration of a ResNet.

    Attributes:
        depth: 18, 50 or 101 layers.
        dilation: whether the last stage has dilated convolutions instead of a stride (DC5), for a stride of 16.
        half_width: whether every stage has half the channels, for small models.
        norm: "frozen" (batch norm with fixed statistics and scale, as published), "batch", or "group" (32 groups).
        frozen_stages: how many of stem, stage 1, ... 4 are frozen; 2 as published, 0 without pretrained weights.
    """

    depth: Literal[18, 50, 101] = 50
    dilation: bool = False
    half_width: bool = False
    norm: Literal["frozen", "batch", "group"] = "frozen"
    frozen_stages: int = 2

    def build(self) -> ResNetBackbone:
        """The backbone, randomly initialised."""
        return ResNetBackbone(self)

    def describe(self) -> str:
        """The kind of backbone in a few words, such as "ResNet-18 of half width, dilated"."""
        half = " of half width" if self.half_width else ""
        group = " with group norm" if self.norm == "group" else ""
        return f"ResNet-{self.depth}{half}{group}{', dilated' if self.dilation else ''}"

    def imagenet_url(self) -> str | None:
        """The address of torchvision's ImageNet weights for `Backbone.body`; None if there are none."""
        if self.half_width or self.norm == "group":
            return None
        return get_model_weights(f"resnet{self.depth}")["IMAGENET1K_V1"].url

    def without_counterpart(self) -> str | None:
        """What the backbones of other implementations do not have, in a few words; None if they have it all."""
        return "group norm in a backbone" if self.norm == "group" else None

    def trained_from_nothing(self) -> BackboneConfig:
        """The backbone for training without pretrained weights: trainable batch norm and no frozen stages."""
        return replace(self, norm="batch", frozen_stages=0)

    def frozen(self) -> BackboneConfig:
        """The backbone with batch norm as frozen batch norm, which has the same tensors and the same evaluation."""
        return replace(self, norm="frozen") if self.norm == "batch" else self

    def miniature(self) -> BackboneConfig:
        """The backbone with the smallest depth and width, for tests."""
        return replace(self, depth=18, half_width=True)


_NORMS: dict[str, Callable[[int], nn.Module]] = {
    "frozen": FrozenBatchNorm2d,
    "batch": nn.BatchNorm2d,
    "group": group_norm,
}


def _convolve(convolution: nn.Conv2d, norm: nn.Module, x: Tensor) -> Tensor:
    """Convolution and norm. A frozen norm is an affine map: folded into the kernel it costs no pass over x."""
    if not isinstance(norm, FrozenBatchNorm2d):
        return norm(convolve(convolution, x))
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    shift = norm.bias - norm.running_mean * scale
    return convolve(convolution, x, convolution.weight * scale[:, None, None, None], shift)


def _shortcut(downsample: nn.Sequential | None, x: Tensor) -> Tensor:
    if downsample is None:
        return x
    convolution, norm = downsample
    assert isinstance(convolution, nn.Conv2d)
    return _convolve(convolution, norm, x)


class _BasicBlock(BasicBlock):
    """torchvision's block with frozen norms folded into the convolutions, and with support for dilation."""

    def __init__(self, inplanes: int, planes: int, stride: int = 1, downsample: nn.Module | None = None,
                 groups: int = 1, base_width: int = 64, dilation: int = 1,
                 norm_layer: Callable[..., nn.Module] | None = None) -> None:  # fmt: skip
        super().__init__(inplanes, planes, stride, downsample, groups, base_width, 1, norm_layer)
        for convolution in (self.conv1, self.conv2):
            convolution.dilation = convolution.padding = (dilation, dilation)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C', h', w')."""
        out = F.relu(_convolve(self.conv1, self.bn1, x), inplace=True)
        out = _convolve(self.conv2, self.bn2, out)
        return F.relu(out.add_(_shortcut(self.downsample, x)), inplace=True)


class _Bottleneck(Bottleneck):
    """torchvision's block with frozen norms folded into the convolutions."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C', h', w')."""
        out = F.relu(_convolve(self.conv1, self.bn1, x), inplace=True)
        out = F.relu(_convolve(self.conv2, self.bn2, out), inplace=True)
        out = _convolve(self.conv3, self.bn3, out)
        return F.relu(out.add_(_shortcut(self.downsample, x)), inplace=True)


class _HalfWidthResNet(ResNet):
    """A ResNet with half the channels in the stem and in every stage."""

    def __init__(self, block: type, layers: list[int], norm_layer: Callable[..., nn.Module], **options: Any) -> None:
        super().__init__(block, layers, norm_layer=norm_layer, **options)
        self.conv1 = nn.Conv2d(3, 32, kernel_size=7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
        self.bn1 = norm_layer(32)

    def _make_layer(self, block: type, planes: int, *rest: Any, **options: Any) -> nn.Sequential:
        if planes == 64:  # the input of the first stage is the narrow stem
            self.inplanes = 32
        return super()._make_layer(block, planes // 2, *rest, **options)


_STAGES: dict[int, tuple[type[BasicBlock | Bottleneck], list[int]]] = {
    18: (_BasicBlock, [2, 2, 2, 2]),
    50: (_Bottleneck, [3, 4, 6, 3]),
    101: (_Bottleneck, [3, 4, 23, 3]),
}


class ResNetBackbone(Backbone):
    """Images to four levels of features at strides 4, 8, 16 and 32 (16 with dilation)."""

    body: ResNet

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        block, layers = _STAGES[config.depth]
        network = _HalfWidthResNet if config.half_width else ResNet
        self.body = network(
            block, layers, norm_layer=_NORMS[config.norm], replace_stride_with_dilation=[False, False, config.dilation]
        )
        del self.body.fc, self.body.avgpool
        widths = (32, 64, 128, 256) if config.half_width else (64, 128, 256, 512)
        self.num_channels = tuple(width * block.expansion for width in widths)
        self._freeze(config.frozen_stages)
        self.to(memory_format=torch.channels_last)  # the fastest layout for convolutions, on CPU and GPU

    def _stages(self) -> tuple[nn.Module, ...]:
        return self.body.layer1, self.body.layer2, self.body.layer3, self.body.layer4

    def _freeze(self, num_stages: int) -> None:
        for stage in (nn.ModuleList((self.body.conv1, self.body.bn1)), *self._stages())[:num_stages]:
            stage.requires_grad_(False)

    def forward(self, images: ImageBatch) -> tuple[FeatureMap, ...]:
        """Images -> four feature maps, fine to coarse, each with the padding mask at its own size."""
        pixels = images.pixels
        if pixels.is_floating_point():
            pixels = pixels.to(weights_dtype(self.body))
        x = pixels.contiguous(memory_format=torch.channels_last)
        x = F.relu(_convolve(self.body.conv1, self.body.bn1, x), inplace=True)
        x = self.body.maxpool(x)
        levels = []
        for stage in self._stages():
            x = stage(x)
            levels.append(FeatureMap(x, resize_padding(images.padding, x)))
        return tuple(levels)


def resize_padding(padding: Tensor | None, features: Tensor) -> Tensor | None:
    """Resize padding (B, H, W) bool -> (B, h, w) bool, by the nearest pixel above and to the left, as the original."""
    if padding is None:
        return None
    return F.interpolate(padding[:, None].float(), size=features.shape[-2:], mode="nearest")[:, 0].bool()
