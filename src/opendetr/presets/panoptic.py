"""Presets of detectors with a mask head."""

from __future__ import annotations

from dataclasses import replace

from opendetr.models import MaskHeadConfig
from opendetr.presets.deformable import deformable_detr_tiny
from opendetr.presets.detr import detr_r50, detr_r50_dc5, detr_r101, detr_tiny
from opendetr.presets.preset import Preset


def _with_masks(detector: Preset, masks: MaskHeadConfig) -> Preset:
    """A detector with a mask head. It is trained on panoptic annotations, or on instance masks if there are none."""
    data = replace(detector.data, masks="auto")
    recipe = replace(detector.recipe, best_by="auto")
    return replace(
        detector,
        name=f"{detector.name}-panoptic",
        without_masks=detector.name,
        masks=replace(masks, enabled=True),
        data=data,
        recipe=recipe,
    )


def detr_r50_panoptic() -> Preset:
    """DETR with ResNet-50 and a mask head."""
    return _with_masks(detr_r50(), MaskHeadConfig())


def detr_r101_panoptic() -> Preset:
    """DETR with ResNet-101 and a mask head."""
    return _with_masks(detr_r101(), MaskHeadConfig())


def detr_r50_dc5_panoptic() -> Preset:
    """DETR-DC5 with a mask head."""
    return _with_masks(detr_r50_dc5(), MaskHeadConfig())


def detr_tiny_panoptic() -> Preset:
    """`detr_tiny` with a mask head."""
    return _with_masks(detr_tiny(), MaskHeadConfig(attention_gain=2000.0))


def deformable_detr_tiny_panoptic() -> Preset:
    """`deformable_detr_tiny` with a mask head that starts at stride 16."""
    return _with_masks(deformable_detr_tiny(), MaskHeadConfig(level=2, attention_gain=2000.0))
