"""The presets of Conditional DETR."""

from __future__ import annotations

from dataclasses import replace

from opendetr.models import ConditionalDETRConfig
from opendetr.nn import BackboneConfig, TransformerConfig
from opendetr.presets.detr import detr_tiny
from opendetr.presets.preset import FOCAL_CRITERION, Preset
from opendetr.recipe import Recipe


def _conditional(name: str, backbone: BackboneConfig, batch_size: int) -> Preset:
    """A published Conditional DETR with its authors' recipe."""
    return Preset(
        name=name,
        model=ConditionalDETRConfig(backbone=backbone),
        criterion=FOCAL_CRITERION,
        recipe=Recipe(batch_size=batch_size, epochs=50, step_at=40 / 50),
    )


def conditional_detr_r50() -> Preset:
    """Conditional DETR with ResNet-50."""
    return _conditional("conditional-detr-r50", BackboneConfig(), batch_size=16)


def conditional_detr_r50_dc5() -> Preset:
    """Conditional DETR-DC5: ResNet-50 with a dilated last stage, for twice the feature resolution."""
    return _conditional("conditional-detr-r50-dc5", BackboneConfig(dilation=True), batch_size=8)


def conditional_detr_r101() -> Preset:
    """Conditional DETR with ResNet-101."""
    return _conditional("conditional-detr-r101", BackboneConfig(depth=101), batch_size=16)


def conditional_detr_r101_dc5() -> Preset:
    """Conditional DETR-DC5 with ResNet-101."""
    return _conditional("conditional-detr-r101-dc5", BackboneConfig(depth=101, dilation=True), batch_size=8)


def conditional_detr_tiny() -> Preset:
    """A Conditional DETR with the size and the recipe of `detr_tiny`."""
    model = ConditionalDETRConfig(
        backbone=BackboneConfig(depth=18, half_width=True, dilation=True),
        transformer=TransformerConfig(width=128, ffn_width=512, encoder_layers=3, decoder_layers=3, dropout=0.0),
        num_queries=50,
    )
    return replace(detr_tiny(), name="conditional-detr-tiny", model=model, criterion=FOCAL_CRITERION)
