"""The catalogue: every preset by its name, with its weights and classes."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

from torch import Tensor

from opendetr.categories import Categories, coco_categories, coco_panoptic_categories
from opendetr.config import ConfigError, replaced
from opendetr.models import Detector
from opendetr.presets.conditional import (
    conditional_detr_r50,
    conditional_detr_r50_dc5,
    conditional_detr_r101,
    conditional_detr_r101_dc5,
    conditional_detr_tiny,
)
from opendetr.presets.deformable import (
    deformable_detr_r50,
    deformable_detr_r50_refine,
    deformable_detr_r50_single_scale,
    deformable_detr_r50_single_scale_dc5,
    deformable_detr_r50_two_stage,
    deformable_detr_tiny,
)
from opendetr.presets.detr import detr_r18, detr_r50, detr_r50_dc5, detr_r101, detr_r101_dc5, detr_tiny
from opendetr.presets.panoptic import (
    deformable_detr_tiny_panoptic,
    detr_r50_dc5_panoptic,
    detr_r50_panoptic,
    detr_r101_panoptic,
    detr_tiny_panoptic,
)
from opendetr.presets.preset import Preset, build_model, build_task
from opendetr.tasks import Task
from opendetr.weights import load_weights, published_files

DEFAULT_MODEL = "deformable-detr-tiny"  # what is trained and used where no model is named


_PRESETS: dict[str, Callable[[], Preset]] = {
    make().name: make
    for make in (
        detr_r50,
        detr_r101,
        detr_r50_dc5,
        detr_r101_dc5,
        detr_r18,
        detr_tiny,
        detr_r50_panoptic,
        detr_r101_panoptic,
        detr_r50_dc5_panoptic,
        detr_tiny_panoptic,
        conditional_detr_r50,
        conditional_detr_r101,
        conditional_detr_r50_dc5,
        conditional_detr_r101_dc5,
        conditional_detr_tiny,
        deformable_detr_r50_single_scale,
        deformable_detr_r50_single_scale_dc5,
        deformable_detr_r50,
        deformable_detr_r50_refine,
        deformable_detr_r50_two_stage,
        deformable_detr_tiny,
        deformable_detr_tiny_panoptic,
    )
}


_SHIPPED = dict.fromkeys(
    ("deformable-detr-tiny", "deformable-detr-tiny-panoptic"), "scenes-deformable-detr-tiny-panoptic.safetensors"
)


def shipped_weights(name: str) -> Path | None:
    """The weights of a catalogue model that come with the package, or None."""
    if name not in _SHIPPED:
        return None
    path = Path(str(resources.files("opendetr") / "assets" / _SHIPPED[name]))
    return path if path.is_file() else None


def weights_origin(name: str) -> str | None:
    """Where the weights of a catalogue model come from: "package", an address, or None where they are not to be had.

    Weights that are downloaded only by hand count when they lie in the cache.
    """
    if shipped_weights(name):
        return "package"
    published = published_files().get(name)
    return published.place if published and (published.is_checked or published.path.is_file()) else None


def published_weights(name: str) -> Path | None:
    """The weights of a catalogue model: from the package, or downloaded once; None where there are none.

    Raises:
        WeightsError: they cannot be downloaded, or only by hand.
    """
    published = published_files().get(name)
    return shipped_weights(name) if published is None else published.fetch()


def list_models() -> list[str]:
    """The names of all models of the catalogue."""
    return list(_PRESETS)


def get_preset(name: str) -> Preset:
    """The preset of a name.

    Raises:
        ConfigError: when there is none, with the nearest names.
    """
    if name not in _PRESETS:
        near = difflib.get_close_matches(name, _PRESETS, n=3, cutoff=0.3) or list(_PRESETS)
        raise ConfigError(f"{name!r} is no model of the catalogue; did you mean {' or '.join(near)}?")
    return _PRESETS[name]()


def preset_from_dict(record: Mapping[str, Any]) -> Preset:
    """The inverse of `config.to_dict`: starts from the preset of the record's name and replaces fields.

    Raises:
        ConfigError: no or an unknown name, an unknown key, a value of the wrong kind.
    """
    if "name" not in record:
        raise ConfigError("config: the key 'name' is missing; give the name of a model of the catalogue")
    return replaced(get_preset(str(record["name"])), dict(record))


def name_with_masks(name: str) -> str:
    """The catalogue's name of a detector with its mask head.

    Raises:
        ConfigError: there is none.
    """
    if get_preset(name).has_masks:
        return name
    twins = {get_preset(each).without_masks: each for each in _PRESETS}
    if name not in twins:
        known = ", ".join(each for without, each in twins.items() if without is not None)
        raise ConfigError(f"{name}: the catalogue has it without a mask head only; there are {known}")
    return twins[name]


def name_without_masks(name: str) -> str:
    """The catalogue's name of the detector of a model, which is the model itself where it has no mask head."""
    return get_preset(name).detector_name


def detector_alone(preset: Preset) -> Preset:
    """The preset of the detector that a model with a mask head has in it."""
    plain = get_preset(preset.detector_name)
    return replace(
        preset,
        name=plain.name,
        without_masks=None,
        masks=plain.masks,
        freeze_detector=False,
        data=replace(preset.data, masks=plain.data.masks),
    )


def published_categories(name: str) -> Categories:
    """The classes of the published weights of a model: COCO panoptic's with a mask head, else those of COCO."""
    return coco_panoptic_categories() if get_preset(name).has_masks else coco_categories()


def miniature(name: str) -> Preset:
    """A preset shrunk to test size; see `Preset.miniature`."""
    return get_preset(name).miniature()


def create(
    name: str, weights: str | Path | Mapping[str, Tensor] | None = None, num_classes: int | None = None
) -> Detector:
    """A model with the published architecture.

    Args:
        name: of the catalogue.
        weights: a file or state dict to load strictly; None leaves the random initialisation. Nothing is downloaded.
        num_classes: K; when omitted, as many as the published models count: COCO's 91 rows, or the 250 of COCO
            panoptic.

    Raises:
        ConfigError: an unknown name.
        WeightsError: weights that do not fit.

    Example:
        >>> model = create("detr-tiny", num_classes=3)
        >>> model.num_queries
        50
    """
    preset = get_preset(name)
    model = build_model(preset, len(published_categories(name)) if num_classes is None else num_classes)
    if weights is not None:
        load_weights(model, weights)
    return model


def create_task(name: str, model: Detector | None = None, num_classes: int | None = None) -> Task:
    """The published losses around a model; a new one with `num_classes`, as in `create`, when `model` is omitted."""
    count = len(published_categories(name)) if num_classes is None else num_classes
    return build_task(get_preset(name), create(name, num_classes=count) if model is None else model, count)
