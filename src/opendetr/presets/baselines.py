"""The presets of the convolutional detectors that DETR is compared with. The catalogue does not list them.

The "-r50" models have torchvision's architecture and published training: SGD with momentum, and 3 times the usual
schedule of 12 epochs. The "+" model has what the DETR paper gives Faster R-CNN for a fair comparison: a GIoU loss,
DETR's random crops, and 9 times the usual schedule. The "-tiny" models have the backbone and the number of parameters
of detr-tiny, and start from random weights.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Self, cast

from opendetr.data import AugmentationConfig, DataConfig
from opendetr.losses import CriterionConfig
from opendetr.models import (
    BaselineConfig,
    BaselineDetector,
    Detector,
    FasterRCNNConfig,
    RetinaNetConfig,
    SSDConfig,
)
from opendetr.nn import BackboneConfig
from opendetr.presets.preset import FOCAL_CRITERION, Preset
from opendetr.recipe import Recipe
from opendetr.tasks import BaselineTask

# Faster R-CNN (Lin et al., 2017) is trained on images of one size, and only flips them.
_FLIPS = DataConfig(augmentation=AugmentationConfig(multi_scale=False, crop=False))
_RECIPE = Recipe(
    optimizer="sgd",
    learning_rate=0.02,
    backbone_learning_rate=0.02,
    batch_size=16,
    epochs=37,
    step_at=34 / 37,
    clip_norm=0.0,
    warmup_steps=1000,
)
_TINY_RECIPE = replace(
    _RECIPE,
    batch_size=8,
    epochs=50,
    schedule="cosine",
    warmup_steps=None,
    ema_decay=None,
    fit_to_data=True,
    clip_norm=10.0,
)


@dataclass(frozen=True, kw_only=True)
class BaselinePreset(Preset):
    """The configuration of a convolutional detector and its training; the fields are those of `Preset`.

    The model computes its own losses, so `criterion`, `dense` and `masks` have no effect and keep their defaults.
    """

    model: BaselineConfig = field(default_factory=FasterRCNNConfig)
    criterion: CriterionConfig = field(default_factory=lambda: FOCAL_CRITERION)

    def __post_init__(self) -> None:
        super().__post_init__()
        fixed = {"criterion": self.criterion == FOCAL_CRITERION, "dense": self.dense.weight == 0}
        fixed["masks"] = not self.has_masks
        for name, is_default in fixed.items():
            if not is_default:
                raise ValueError(f"{name}: does not apply to {self.name}, which is no DETR; leave it out")

    def build_task(self, model: Detector, num_classes: int) -> BaselineTask:
        """The model with torchvision's losses, ready for the trainer."""
        return BaselineTask(cast(BaselineDetector, model))

    def trained_from_nothing(self) -> Self:
        """The preset for training from scratch: a backbone with trainable batch norm and no frozen stages."""
        backbone = self.model.backbone.trained_from_nothing()
        return replace(self, model=replace(cast(Any, self.model), backbone=backbone))

    def miniature(self) -> Self:
        """The preset with smaller sizes, for tests. The components stay the same."""
        smaller: dict[str, Any] = {"width": 32, "anchor_size": 8, "num_queries": 12}
        if isinstance(self.model, FasterRCNNConfig):
            smaller |= {"head_width": 32, "num_proposals": 50, "num_samples": 32}
        return replace(
            self,
            model=replace(cast(Any, self.model), backbone=self.model.backbone.miniature(), **smaller),
            data=replace(self.data.resized(64), num_workers=0),
            recipe=replace(self.recipe, batch_size=2, epochs=1),
        )


_TINY_BACKBONE = BackboneConfig(depth=18, half_width=True)
_TINY_DATA = replace(_FLIPS.resized(256), side_multiple=32)


def faster_rcnn_r50() -> BaselinePreset:
    """Faster R-CNN with a feature pyramid and ResNet-50."""
    return BaselinePreset(name="faster-rcnn-r50", data=_FLIPS, recipe=_RECIPE)


def faster_rcnn_plus_r50() -> BaselinePreset:
    """Faster R-CNN with a GIoU loss, DETR's random crops and a longer schedule."""
    recipe = replace(_RECIPE, epochs=109, step_at=106 / 109)
    return BaselinePreset(
        name="faster-rcnn-plus-r50", model=FasterRCNNConfig(box_loss="giou"), data=DataConfig(), recipe=recipe
    )


def faster_rcnn_tiny() -> BaselinePreset:
    """A Faster R-CNN with 4 million parameters, for small images and training from scratch without a GPU."""
    model = FasterRCNNConfig(
        backbone=_TINY_BACKBONE, width=64, head_width=256, anchor_size=16, num_proposals=200, num_samples=64
    )
    return BaselinePreset(name="faster-rcnn-tiny", model=model, data=_TINY_DATA, recipe=_TINY_RECIPE)


def faster_rcnn_plus_tiny() -> BaselinePreset:
    """faster-rcnn-tiny with a GIoU loss and DETR's random crops."""
    tiny = faster_rcnn_tiny()
    data = replace(tiny.data, augmentation=AugmentationConfig())
    model = replace(cast(FasterRCNNConfig, tiny.model), box_loss="giou")
    return replace(tiny, name="faster-rcnn-plus-tiny", model=model, data=data)


def retinanet_r50() -> BaselinePreset:
    """RetinaNet with ResNet-50."""
    recipe = replace(_RECIPE, learning_rate=0.01, backbone_learning_rate=0.01)
    return BaselinePreset(name="retinanet-r50", model=RetinaNetConfig(), data=_FLIPS, recipe=recipe)


def retinanet_tiny() -> BaselinePreset:
    """A RetinaNet with 4 million parameters, for small images and training from scratch without a GPU."""
    model = RetinaNetConfig(backbone=_TINY_BACKBONE, width=96, anchor_size=16)
    recipe = replace(_TINY_RECIPE, learning_rate=0.01, backbone_learning_rate=0.01)
    return BaselinePreset(name="retinanet-tiny", model=model, data=_TINY_DATA, recipe=recipe)


def ssd_r50() -> BaselinePreset:
    """SSD with ResNet-50, which replaces the VGG-16 of the paper."""
    model = SSDConfig(anchor_size=56)
    recipe = replace(_RECIPE, learning_rate=0.002, backbone_learning_rate=0.002, weight_decay=5e-4, epochs=120)
    recipe = replace(recipe, batch_size=32, step_at=80 / 120)
    return BaselinePreset(name="ssd-r50", model=model, data=replace(_FLIPS, augment="colour"), recipe=recipe)


def ssd_tiny() -> BaselinePreset:
    """An SSD with 4 million parameters, for small images and training from scratch without a GPU."""
    model = SSDConfig(backbone=_TINY_BACKBONE, width=128, anchor_size=18)
    recipe = replace(_TINY_RECIPE, learning_rate=0.01, backbone_learning_rate=0.01, weight_decay=5e-4)
    return BaselinePreset(name="ssd-tiny", model=model, data=_TINY_DATA, recipe=recipe)
