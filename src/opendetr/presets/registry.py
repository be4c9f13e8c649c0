"""The catalogue: all presets by name, with their weights and classes."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

from torch import Tensor

from opendetr.categories import Categories
from opendetr.config import ConfigError, SettingError, replaced, suggesting
from opendetr.files import near_path
from opendetr.models import Detector
from opendetr.presets.baselines import (
    faster_rcnn_plus_r50,
    faster_rcnn_plus_tiny,
    faster_rcnn_r50,
    faster_rcnn_tiny,
    retinanet_r50,
    retinanet_tiny,
    ssd_r50,
    ssd_tiny,
)
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
from opendetr.presets.mdetr import (
    mdetr_enb3,
    mdetr_enb5,
    mdetr_r18_clevr,
    mdetr_r50,
    mdetr_r101,
    mdetr_r101_gqa,
    mdetr_r101_phrasecut,
    mdetr_tiny,
)
from opendetr.presets.motr import motr_r50, motr_tiny
from opendetr.presets.panoptic import (
    deformable_detr_tiny_panoptic,
    detr_r50_dc5_panoptic,
    detr_r50_panoptic,
    detr_r101_panoptic,
    detr_tiny_panoptic,
)
from opendetr.presets.preset import Preset, build_model, build_task, trained_from_nothing
from opendetr.presets.transtrack import transtrack_r50, transtrack_tiny
from opendetr.presets.up_detr import up_detr_r50, up_detr_r50_finetuned, up_detr_tiny
from opendetr.tasks import Task
from opendetr.weights import WeightsError, is_remote, load_weights, local_file, published_files

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
        up_detr_r50,
        up_detr_r50_finetuned,
        up_detr_tiny,
        mdetr_r50,
        mdetr_r101,
        mdetr_enb3,
        mdetr_enb5,
        mdetr_r101_phrasecut,
        mdetr_r101_gqa,
        mdetr_r18_clevr,
        mdetr_tiny,
        transtrack_r50,
        transtrack_tiny,
        motr_r50,
        motr_tiny,
    )
}


# Detectors for comparison: found by their names, but not listed among the models of the family.
_BASELINES: dict[str, Callable[[], Preset]] = {
    make().name: make
    for make in (
        faster_rcnn_r50,
        faster_rcnn_plus_r50,
        retinanet_r50,
        ssd_r50,
        faster_rcnn_tiny,
        faster_rcnn_plus_tiny,
        retinanet_tiny,
        ssd_tiny,
    )
}


_SHIPPED = dict.fromkeys(
    ("deformable-detr-tiny", "deformable-detr-tiny-panoptic"), "scenes-deformable-detr-tiny-panoptic.safetensors"
) | {"mdetr-tiny": "scenes-mdetr-tiny.safetensors"}


def register_preset(make: Callable[[], Preset]) -> None:
    """Add a model to the catalogue, so that `train`, `load` and the commands find it by its name.

    Args:
        make: builds the preset, under a name that the catalogue does not have yet.

    Raises:
        ValueError: the catalogue has a model of this name.
    """
    name = make().name
    if name in _PRESETS | _BASELINES:
        raise ValueError(f"{name}: the catalogue already has a model of this name; choose another name")
    _PRESETS[name] = make


def shipped_weights(name: str) -> Path | None:
    """The path of the weights that the package contains for a model, or None."""
    if name not in _SHIPPED:
        return None
    path = Path(str(resources.files("opendetr") / "assets" / _SHIPPED[name]))
    return path if path.is_file() else None


def weights_origin(name: str) -> str | None:
    """The origin of a model's weights: "package", a URL, or None if they are not available.

    Weights that must be downloaded manually are available if they are in the cache.
    """
    if shipped_weights(name):
        return "package"
    published = published_files().get(name)
    return published.place if published and (published.is_checked or published.path.is_file()) else None


def published_weights(name: str) -> Path | None:
    """The path of a model's weights, from the package or downloaded to the cache; None if there are none.

    Raises:
        WeightsError: the weights cannot be downloaded, or must be downloaded manually.
    """
    published = published_files().get(name)
    return shipped_weights(name) if published is None else published.fetch()


def list_models() -> list[str]:
    """The names of all models in the catalogue."""
    return list(_PRESETS)


def list_baselines() -> list[str]:
    """The names of the convolutional detectors for comparison, which `list_models` does not contain."""
    return list(_BASELINES)


def get_preset(name: str) -> Preset:
    """The preset with a name, of the catalogue or of `list_baselines`.

    Raises:
        SettingError: the name is unknown. The message suggests similar names.
    """
    presets = _PRESETS | _BASELINES
    if name not in presets:
        raise SettingError(f"{name!r} is not a model of the catalogue; {_model_hint(near_models(name))}")
    return presets[name]()


def describe(name: str) -> str:
    """What distinguishes a model from the others of its family, in a sentence. Raises ConfigError as `get_preset`."""
    get_preset(name)
    return inspect.getdoc((_PRESETS | _BASELINES)[name]) or ""


def near_models(name: str) -> list[str]:
    """At most three names of the catalogue that are similar to `name`, which other projects may use.

    Names of the same family come first: "detr-r50x" is more similar to "up-detr-r50" than to "detr-r101".
    """
    plain = re.sub(r"resnet-?", "r", name.lower().rpartition("/")[2].replace("_", "-"))
    near = difflib.get_close_matches(plain, _PRESETS, n=len(_PRESETS), cutoff=0.7)
    family = plain.partition("-")[0]
    return [plain] if plain in _PRESETS else sorted(near, key=lambda name: not name.startswith(family))[:3]


def weights_at(source: str | Path) -> Path:
    """The local path of weights that are not a name of the catalogue; see `weights.local_file`.

    Raises:
        WeightsError: there are no such weights. If the source could be a misspelt name, similar names are suggested.
    """
    path = Path(source)
    if not is_remote(source) and not path.exists() and not near_path(path) and path.parent == Path():
        near = near_models(path.stem)
        raise WeightsError(f"{source}: no such file or model; {_model_hint(near)}")
    return local_file(source)


def _model_hint(near: Sequence[str]) -> str:
    """What to do after a name that is not a model of the catalogue, with the names that are similar."""
    hint = f"did you mean {' or '.join(near)}?" if near else "OpenDETR has models of the DETR family:"
    return f"{hint} `opendetr models` lists them"


def preset_from_dict(record: Mapping[str, Any]) -> Preset:
    """Build a preset from plain values, the inverse of `config.to_dict`.

    The record's "name" selects a preset of the catalogue, and the other keys replace its fields.

    Raises:
        ConfigError: the name is missing or unknown, a key is unknown, or a value has the wrong type.
    """
    if "name" not in record:
        raise ConfigError("config: the key 'name' is missing; set it to the name of a model of the catalogue")
    try:
        return replaced(get_preset(str(record["name"])), dict(record))
    except SettingError as error:  # the settings are those of a file, not the user's
        raise ConfigError(str(error)) from None


def name_with_masks(name: str) -> str:
    """The catalogue's name of the same detector with a mask head.

    Raises:
        ConfigError: the catalogue has no such model.
    """
    if get_preset(name).has_masks:
        return name
    with_masks = {get_preset(other).without_masks: other for other in _PRESETS}
    if name not in with_masks:
        known = ", ".join(other for without, other in with_masks.items() if without is not None)
        raise ConfigError(f"{name}: the catalogue has no version with a mask head; choose one of {known}")
    return with_masks[name]


def name_without_masks(name: str) -> str:
    """The catalogue's name of the same detector without a mask head; the same name if it has none."""
    return get_preset(name).detector_name


def detector_alone(preset: Preset) -> Preset:
    """The preset of the detector inside a model with a mask head."""
    plain = get_preset(preset.detector_name)
    return replace(
        preset,
        name=plain.name,
        without_masks=None,
        masks=plain.masks,
        freeze_detector=False,
        data=replace(preset.data, masks=plain.data.masks),
    )


def fine_tuning(preset: Preset) -> Preset:
    """The preset of the detector that is trained from the weights of a model; the same preset for a detector.

    The detector has the architecture of the model, and otherwise the settings of the catalogue. If the backbone was
    trained from nothing, so is that of the detector; see `trained_from_nothing`.
    """
    into = preset.trained_into()
    if into is None:
        return preset
    name, model = into
    detector = replace(get_preset(name), model=model)
    is_from_nothing = preset.model.backbone == preset.model.backbone.trained_from_nothing()
    return trained_from_nothing(detector) if is_from_nothing else detector


def fine_tuned_name(name: str) -> str:
    """The catalogue's name of the detector that is trained from the weights of a model; its own name for a detector."""
    into = get_preset(name).trained_into()
    return name if into is None else into[0]


def published_categories(name: str) -> Categories:
    """The classes of a model's published weights; see `Preset.published_categories`."""
    return get_preset(name).published_categories()


def miniature(name: str) -> Preset:
    """A preset with smaller sizes, for tests; see `Preset.miniature`."""
    return get_preset(name).miniature()


@suggesting
def create(
    name: str, weights: str | Path | Mapping[str, Tensor] | None = None, num_classes: int | None = None
) -> Detector:
    """A model with the published architecture.

    Args:
        name: name of the model in the catalogue.
        weights: what to load, see `load_weights`; None for a random initialisation, without any download.
        num_classes: K, number of classes. By default that of the published models: 91 for COCO, 250 for COCO
            panoptic.

    Raises:
        ConfigError: the name is unknown.
        WeightsError: the weights do not fit the model.

    Example:
        >>> model = create("detr-tiny", num_classes=3)
        >>> model.num_queries
        50
    """
    preset = get_preset(name)
    model = build_model(preset, _num_classes(preset) if num_classes is None else num_classes)
    if weights is not None:
        load_weights(model, weights)
    return model


@suggesting
def create_task(name: str, model: Detector | None = None, num_classes: int | None = None) -> Task:
    """A model with its published losses. If `model` is omitted, a new one is created; `num_classes` as in `create`."""
    preset = get_preset(name)
    count = _num_classes(preset) if num_classes is None else num_classes
    return build_task(preset, create(name, num_classes=count) if model is None else model, count)


def _num_classes(preset: Preset) -> int:
    return preset.num_classes(preset.published_categories())
