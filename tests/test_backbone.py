"""The backbone where its kernels are at their limits, and another backbone in its place."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import nn

from captioned import batch_of
from opendetr.categories import coco_categories
from opendetr.config import ConfigError, replaced
from opendetr.export import export_official
from opendetr.nn import Backbone, resize_padding
from opendetr.nn.backbone import _convolve
from opendetr.presets import build_model, build_task, get_preset, list_models, miniature, trained_from_nothing
from opendetr.structures import FeatureMap, ImageBatch, Target
from opendetr.training.starting_weights import IMAGENET, load_start
from opendetr.training.train_step import keep_freed_memory
from opendetr.weights import WeightsError

bfloat16 = partial(torch.autocast, "cpu", torch.bfloat16)


@pytest.mark.parametrize("width", [1, 2, 3])
@pytest.mark.parametrize("norm", [nn.BatchNorm2d, nn.Identity])
def test_narrow_maps_are_convolved_in_float32(width, norm):
    """Wider ones in bfloat16, which has three digits."""
    torch.manual_seed(0)
    convolution = nn.Conv2d(64, 128, 3, stride=2, padding=1)
    x = torch.randn(2, 64, 7, width)
    layer = norm(128) if norm is nn.BatchNorm2d else norm()
    with torch.no_grad():
        expected = _convolve(convolution, layer, x)
        with bfloat16():
            found = _convolve(convolution, layer, x)
    error = (found.float() - expected).abs().max().item()
    assert (error < 1e-6) == (width < 3)
    assert error < 0.1


def test_nothing_beyond_a_narrow_map_gets_into_it():
    """Freed memory that holds no numbers is what the next arrays are made of."""
    keep_freed_memory()
    torch.manual_seed(0)
    model = build_model(miniature("deformable-detr-tiny"), 3).train()
    images = ImageBatch.from_images([torch.randn(3, 101, 59), torch.randn(3, 90, 30)])
    for _ in range(5):
        junk = [torch.full((size,), torch.nan) for size in (100, 1000, 10_000, 100_000) for _ in range(8)]
        del junk
        with bfloat16():
            final = model(images).final
        (final.logits.square().mean() + final.boxes.square().mean()).backward()
        assert final.logits.isfinite().all()
        assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in model.parameters())


@dataclass(frozen=True, kw_only=True)
class PlainConfig:
    """A backbone that is not a ResNet: a convolution per level. No part of the package knows it."""

    width: int = 4
    is_frozen: bool = True

    def build(self) -> PlainBackbone:
        return PlainBackbone(self)

    def describe(self) -> str:
        return f"a convolution per level, {self.width} wide"

    def imagenet_url(self) -> None:
        return None

    def without_counterpart(self) -> str:
        return "a plain backbone"

    def trained_from_nothing(self) -> PlainConfig:
        return replace(self, is_frozen=False)

    def frozen(self) -> PlainConfig:
        return self

    def miniature(self) -> PlainConfig:
        return replace(self, width=2)


class PlainBackbone(Backbone):
    def __init__(self, config: PlainConfig) -> None:
        super().__init__()
        widths = [3, *(config.width * 2**level for level in range(4))]
        strides = (4, 2, 2, 2)
        self.body = nn.ModuleList(nn.Conv2d(a, b, s, s) for (a, b), s in zip(pairwise(widths), strides, strict=True))
        self.body.requires_grad_(not config.is_frozen)
        self.num_channels = tuple(widths[1:])

    def forward(self, images: ImageBatch) -> tuple[FeatureMap, ...]:
        levels, x = [], images.pixels
        for convolution in self.body:
            x = convolution(x)
            levels.append(FeatureMap(x, resize_padding(images.padding, x)))
        return tuple(levels)


@pytest.mark.parametrize("name", list_models())
def test_every_model_takes_another_backbone(name, tmp_path):
    preset = get_preset(name)
    preset = replace(preset, model=replace(preset.model, backbone=PlainConfig())).miniature()
    preset = trained_from_nothing(replaced(preset, {"model": {"backbone": {"width": 3}}}))
    model = build_model(preset, 4)
    assert isinstance(model.backbone, PlainBackbone) and model.backbone.num_channels == (3, 6, 12, 24)
    assert all(parameter.requires_grad for parameter in model.backbone.parameters())
    task = build_task(preset, model, 4)
    images = ImageBatch.from_images([torch.rand(3, 64, 96), torch.rand(3, 96, 64)])
    targets = tuple(
        Target(torch.tensor([1]), torch.tensor([[0.5, 0.5, 0.4, 0.4]]), (h, w), (h, w), index,
               masks=torch.ones(1, h, w, dtype=torch.bool))
        for index, (h, w) in enumerate(((64, 96), (96, 64)))
    )  # fmt: skip
    task.total(task(batch_of(task.model, images, targets))).backward()
    assert all(parameter.grad is not None for parameter in model.backbone.parameters())
    with pytest.raises(WeightsError, match="no ImageNet weights for its a convolution per level, 3 wide"):
        load_start(model, IMAGENET, preset, coco_categories())
    if not preset.has_masks:
        with pytest.raises(ConfigError, match="a plain backbone exists only in OpenDETR"):
            export_official(model, preset, tmp_path / "model.pth")
