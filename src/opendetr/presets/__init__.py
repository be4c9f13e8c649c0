"""The catalogue: one preset per model."""

from opendetr.presets.about import FAMILIES, RELATIVE_TIME
from opendetr.presets.preset import (
    Preset,
    build_model,
    build_task,
    trained_from_nothing,
    with_frozen_detector,
)
from opendetr.presets.registry import (
    create,
    create_task,
    describe,
    detector_alone,
    get_preset,
    list_models,
    miniature,
    name_with_masks,
    name_without_masks,
    preset_from_dict,
    published_categories,
    published_weights,
    register_preset,
    shipped_weights,
    weights_at,
    weights_origin,
)
from opendetr.recipe import DEFAULT_MODEL

__all__ = [
    "DEFAULT_MODEL",
    "FAMILIES",
    "RELATIVE_TIME",
    "Preset",
    "build_model",
    "build_task",
    "create",
    "create_task",
    "describe",
    "detector_alone",
    "get_preset",
    "list_models",
    "miniature",
    "name_with_masks",
    "name_without_masks",
    "preset_from_dict",
    "published_categories",
    "published_weights",
    "register_preset",
    "shipped_weights",
    "trained_from_nothing",
    "weights_at",
    "weights_origin",
    "with_frozen_detector",
]
