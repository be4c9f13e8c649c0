"""The presets of DETR."""

from __future__ import annotations

from opendetr.data import DataConfig
from opendetr.models import DETRConfig
from opendetr.nn import BackboneConfig, TransformerConfig
from opendetr.presets.preset import Preset
from opendetr.recipe import Recipe


def detr_r50() -> Preset:
    """DETR with ResNet-50, the paper's baseline."""
    return Preset(name="detr-r50")


def detr_r101() -> Preset:
    """DETR with ResNet-101."""
    return Preset(name="detr-r101", model=DETRConfig(backbone=BackboneConfig(depth=101)))


def detr_r50_dc5() -> Preset:
    """DETR-DC5: ResNet-50 with a dilated last stage, for twice the feature resolution."""
    return Preset(name="detr-r50-dc5", model=DETRConfig(backbone=BackboneConfig(dilation=True)))


def detr_r101_dc5() -> Preset:
    """DETR-DC5 with ResNet-101."""
    return Preset(name="detr-r101-dc5", model=DETRConfig(backbone=BackboneConfig(depth=101, dilation=True)))


def detr_r18() -> Preset:
    """DETR with ResNet-18, a smaller backbone."""
    return Preset(name="detr-r18", model=DETRConfig(backbone=BackboneConfig(depth=18)))


def detr_tiny() -> Preset:
    """A DETR with 4 million parameters, for small images and training from scratch without a GPU."""
    return Preset(
        name="detr-tiny",
        model=DETRConfig(
            backbone=BackboneConfig(depth=18, half_width=True, dilation=True),
            transformer=TransformerConfig(width=128, ffn_width=512, encoder_layers=3, decoder_layers=3, dropout=0.0),
            num_queries=50,
        ),
        # Partly padded cells at the edge shift the boxes on small feature maps, and few shapes are faster on a CPU.
        data=DataConfig(side_multiple=32).resized(256),
        recipe=Recipe(
            learning_rate=5e-4,
            backbone_learning_rate=5e-4,
            batch_size=8,
            epochs=50,
            schedule="cosine",
            warmup_steps=None,
            ema_decay=None,
            fit_to_data=True,
            clip_norm=1.0,
            precision="auto",
        ),
    )
