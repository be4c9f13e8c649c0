"""The catalogue: one plain function per model, the only place that pairs a model with losses, data and recipe."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any

from torch import Tensor

from opendetr.config import ConfigError, replaced
from opendetr.data.config import DataConfig
from opendetr.losses.criterion import CriterionConfig, SetCriterion
from opendetr.losses.dense import DenseConfig, DenseSupervision
from opendetr.models.detector import Detector
from opendetr.models.detr import DETRConfig
from opendetr.nn.backbone import BackboneConfig
from opendetr.nn.transformer import TransformerConfig
from opendetr.recipe import Recipe
from opendetr.tasks import DetectionTask
from opendetr.weights import download, load_weights


@dataclass(frozen=True, kw_only=True)
class Preset:
    """One run as one tree: everything that a model and its training are made of.

    Attributes:
        name: the catalogue's name, from which the tree started.
        model: the architecture.
        criterion: the set loss.
        dense: supervision of the encoder beside it, off as published.
        data: sizes and augmentation.
        recipe: optimiser, schedule, length.
    """

    name: str
    model: DETRConfig = field(default_factory=DETRConfig)
    criterion: CriterionConfig = field(default_factory=CriterionConfig)
    dense: DenseConfig = field(default_factory=DenseConfig)
    data: DataConfig = field(default_factory=DataConfig)
    recipe: Recipe = field(default_factory=Recipe)


def detr_r50() -> Preset:
    """DETR with ResNet-50, the paper's baseline."""
    return Preset(name="detr-r50")


def detr_r101() -> Preset:
    """DETR with ResNet-101."""
    return Preset(name="detr-r101", model=DETRConfig(backbone=BackboneConfig(depth=101)))


def detr_r50_dc5() -> Preset:
    """DETR-DC5: the last stage dilated, twice the resolution."""
    return Preset(name="detr-r50-dc5", model=DETRConfig(backbone=BackboneConfig(dilation=True)))


def detr_r101_dc5() -> Preset:
    """DETR-DC5 with ResNet-101."""
    return Preset(name="detr-r101-dc5", model=DETRConfig(backbone=BackboneConfig(depth=101, dilation=True)))


def detr_r18() -> Preset:
    """DETR with ResNet-18, for smaller machines."""
    return Preset(name="detr-r18", model=DETRConfig(backbone=BackboneConfig(depth=18)))


def detr_tiny() -> Preset:
    """A DETR of 4 million parameters for small images and no GPU; its recipe is made for training from nothing."""
    return Preset(
        name="detr-tiny",
        model=DETRConfig(
            backbone=BackboneConfig(depth=18, half_width=True, dilation=True),
            transformer=TransformerConfig(width=128, ffn_width=512, encoder_layers=3, decoder_layers=3, dropout=0.0),
            num_queries=50,
        ),
        data=DataConfig().resized(256),
        recipe=Recipe(
            learning_rate=5e-4,
            backbone_learning_rate=5e-5,
            batch_size=8,
            epochs=50,
            schedule="cosine",
            warmup_steps=200,
            clip_norm=1.0,
            precision="auto",
        ),
    )


_PRESETS: dict[str, Callable[[], Preset]] = {
    make().name: make for make in (detr_r50, detr_r101, detr_r50_dc5, detr_r101_dc5, detr_r18, detr_tiny)
}


_SHIPPED = {"detr-tiny": "scenes-detr-tiny.safetensors"}
_PUBLISHED = {
    name: f"https://dl.fbaipublicfiles.com/detr/{file}"
    for name, file in (
        ("detr-r50", "detr-r50-e632da11.pth"),
        ("detr-r50-dc5", "detr-r50-dc5-f0fb7ef5.pth"),
        ("detr-r101", "detr-r101-2c7b67e5.pth"),
        ("detr-r101-dc5", "detr-r101-dc5-a2e86def.pth"),
    )
}


def shipped_weights(name: str) -> Path | None:
    """The weights of a catalogue model that come with the package, or None."""
    if name not in _SHIPPED:
        return None
    path = Path(str(resources.files("opendetr") / "assets" / _SHIPPED[name]))
    return path if path.is_file() else None


def weights_origin(name: str) -> str | None:
    """Where the weights of a catalogue model come from: "package", a URL, or None where there are none."""
    return "package" if shipped_weights(name) else _PUBLISHED.get(name)


def published_weights(name: str) -> Path | None:
    """The weights of a catalogue model: from the package, or downloaded once; None where there are none.

    Raises:
        WeightsError: they cannot be downloaded.
    """
    return download(_PUBLISHED[name]) if name in _PUBLISHED else shipped_weights(name)


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


def trained_from_nothing(preset: Preset) -> Preset:
    """The preset with what a randomly initialised backbone needs.

    Trainable batch norm, no frozen stage, the full learning rate for the backbone, dense supervision of the encoder.
    """
    return replace(
        preset,
        model=replace(preset.model, backbone=replace(preset.model.backbone, norm="batch", frozen_stages=0)),
        dense=replace(preset.dense, weight=1.0),
        recipe=replace(preset.recipe, backbone_learning_rate=preset.recipe.learning_rate),
    )


def miniature(name: str) -> Preset:
    """A preset shrunk to test size; what it is composed of stays."""
    preset = get_preset(name)
    transformer = replace(
        preset.model.transformer, width=32, num_heads=4, ffn_width=32, encoder_layers=2, decoder_layers=2
    )
    backbone = replace(preset.model.backbone, depth=18, half_width=True)
    return replace(
        preset,
        model=replace(preset.model, backbone=backbone, transformer=transformer, num_queries=12),
        data=replace(preset.data.resized(64), num_workers=0),
        recipe=replace(preset.recipe, batch_size=2, epochs=1),
    )


def build_model(preset: Preset, num_classes: int, *, strict_no_object: bool = False) -> Detector:
    """The model of a preset, randomly initialised.

    Args:
        preset: gives the architecture.
        num_classes: K.
        strict_no_object: see `SoftmaxNoObject.strict`.

    Raises:
        ValueError: strict about "no object", and the model has no such class.
    """
    scoring = preset.criterion.classification.scoring()
    if strict_no_object:
        scoring = scoring.strictly()
    return preset.model.build(scoring.num_logits(num_classes), scoring)


def build_task(preset: Preset, model: Detector, num_classes: int) -> DetectionTask:
    """What the trainer trains: the model with the losses of its preset."""
    dense = None
    if preset.dense.weight > 0:
        dense = DenseSupervision(preset.dense, preset.model.transformer.width, num_classes)
    return DetectionTask(model, SetCriterion(preset.criterion), dense)


def create(name: str, weights: str | Path | Mapping[str, Tensor] | None = None, num_classes: int = 91) -> Detector:
    """A model with the published architecture.

    Args:
        name: of the catalogue.
        weights: a file or state dict to load strictly; None leaves the random initialisation. Nothing is downloaded.
        num_classes: K; 91 are COCO's rows as the published models count them.

    Raises:
        ConfigError: an unknown name.
        WeightsError: weights that do not fit.

    Example:
        >>> model = create("detr-tiny", num_classes=3)
        >>> model.num_queries
        50
    """
    model = build_model(get_preset(name), num_classes)
    if weights is not None:
        load_weights(model, weights)
    return model


def create_task(name: str, model: Detector | None = None, num_classes: int = 91) -> DetectionTask:
    """The published losses around a model; a new one with `num_classes` when `model` is omitted."""
    preset = get_preset(name)
    return build_task(preset, create(name, num_classes=num_classes) if model is None else model, num_classes)
