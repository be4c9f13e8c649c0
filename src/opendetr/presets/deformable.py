"""The presets of Deformable DETR."""

from __future__ import annotations

from dataclasses import replace

from opendetr.models import DeformableDETRConfig, DeformableTransformerConfig, TwoStageDETRConfig
from opendetr.nn import BackboneConfig
from opendetr.presets.detr import detr_tiny
from opendetr.presets.preset import FOCAL_CRITERION, Preset
from opendetr.recipe import Recipe


def _deformable(name: str, model: DeformableDETRConfig) -> Preset:
    """A published Deformable DETR with its authors' recipe."""
    recipe = Recipe(
        learning_rate=2e-4,
        backbone_learning_rate=2e-5,
        sampling_rate_factor=0.1,
        batch_size=32,
        epochs=50,
        step_at=40 / 50,
    )
    return Preset(name=name, model=model, criterion=FOCAL_CRITERION, recipe=recipe)


_SINGLE_SCALE = DeformableTransformerConfig(num_levels=1)


def deformable_detr_r50_single_scale() -> Preset:
    """Deformable DETR with ResNet-50 and only the coarsest level."""
    return _deformable("deformable-detr-r50-single-scale", DeformableDETRConfig(transformer=_SINGLE_SCALE))


def deformable_detr_r50_single_scale_dc5() -> Preset:
    """Single-scale Deformable DETR with a dilated last stage, for twice the feature resolution."""
    model = DeformableDETRConfig(transformer=_SINGLE_SCALE, backbone=BackboneConfig(dilation=True))
    return _deformable("deformable-detr-r50-single-scale-dc5", model)


def deformable_detr_r50() -> Preset:
    """Deformable DETR with ResNet-50 and four levels."""
    return _deformable("deformable-detr-r50", DeformableDETRConfig())


def deformable_detr_r50_refine() -> Preset:
    """Deformable DETR with iterative box refinement."""
    return _deformable("deformable-detr-r50-refine", DeformableDETRConfig(refine=True))


def deformable_detr_r50_two_stage() -> Preset:
    """Two-stage Deformable DETR: the encoder proposes boxes, and the decoder refines them."""
    return _deformable("deformable-detr-r50-two-stage", TwoStageDETRConfig())


def deformable_detr_tiny() -> Preset:
    """A two-stage Deformable DETR of about the size of `detr_tiny`, for small images and training without a GPU."""
    tiny = detr_tiny()
    model = TwoStageDETRConfig(
        backbone=BackboneConfig(depth=18, half_width=True),
        transformer=DeformableTransformerConfig(
            width=128, num_heads=4, ffn_width=512, encoder_layers=2, decoder_layers=3, dropout=0.0
        ),
        num_queries=60,
    )
    recipe = replace(tiny.recipe, batch_size=4)  # unlike DETR, it learns more from the same images than with 8
    return replace(tiny, name="deformable-detr-tiny", model=model, criterion=FOCAL_CRITERION, recipe=recipe)
