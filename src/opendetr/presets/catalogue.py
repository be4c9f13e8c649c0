"""The catalogue: one plain function per model, the only place that pairs a model with losses, data and recipe."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any

from torch import Tensor

from opendetr.categories import Categories, coco_categories, coco_panoptic_categories
from opendetr.config import ConfigError, replaced
from opendetr.data.config import DataConfig
from opendetr.losses.class_terms import SigmoidFocalClassification
from opendetr.losses.criterion import CriterionConfig, SetCriterion
from opendetr.losses.dense import DenseConfig, DenseSupervision
from opendetr.losses.masks import MaskCriterion, MaskCriterionConfig
from opendetr.losses.matcher import MatcherConfig
from opendetr.models.conditional import ConditionalDETRConfig
from opendetr.models.deformable import DeformableDETRConfig, DeformableTransformerConfig, TwoStageDETRConfig
from opendetr.models.detector import Detector
from opendetr.models.detr import DETRConfig
from opendetr.models.masks import MaskHeadConfig
from opendetr.nn.backbone import BackboneConfig
from opendetr.nn.transformer import TransformerConfig
from opendetr.recipe import Recipe
from opendetr.tasks.detection import DetectionTask, MaskHeadTask, MaskTask, TwoStageTask
from opendetr.weights import load_weights
from opendetr.weights.published import PUBLISHED

DEFAULT_MODEL = "deformable-detr-tiny"  # what is trained and used where no model is named
_WITH_MASKS = "-panoptic"  # at the end of the name of a detector that has a mask head
_DETECTOR = "detector"  # the part of a model with a mask head that is the model without


@dataclass(frozen=True, kw_only=True)
class Preset:
    """One run as one tree: everything that a model and its training are made of.

    Attributes:
        name: the catalogue's name, from which the tree started.
        model: the architecture of the detector.
        masks: the mask head around it, or None.
        criterion: the set loss.
        mask_criterion: the losses of masks beside it, where there is a mask head.
        dense: supervision of the encoder beside it, off as published.
        data: sizes and augmentation.
        recipe: optimiser, schedule, length.
    """

    name: str
    model: DETRConfig | DeformableDETRConfig = field(default_factory=DETRConfig)
    masks: MaskHeadConfig | None = None
    criterion: CriterionConfig = field(default_factory=CriterionConfig)
    mask_criterion: MaskCriterionConfig = field(default_factory=MaskCriterionConfig)
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
        # Small feature maps whose last cells are half filled place boxes wrongly; and a CPU likes few shapes.
        data=DataConfig(side_multiple=32).resized(256),
        recipe=Recipe(
            learning_rate=5e-4,
            backbone_learning_rate=5e-4,
            batch_size=8,
            epochs=50,
            schedule="cosine",
            warmup_steps=200,
            clip_norm=1.0,
            precision="auto",
        ),
    )


_FOCAL_CRITERION = CriterionConfig(
    classification=SigmoidFocalClassification(), matcher=MatcherConfig(class_cost=2.0), class_weight=2.0
)


def _conditional(name: str, backbone: BackboneConfig, batch_size: int) -> Preset:
    """A published Conditional DETR with the recipe of its authors."""
    return Preset(
        name=name,
        model=ConditionalDETRConfig(backbone=backbone),
        criterion=_FOCAL_CRITERION,
        recipe=Recipe(batch_size=batch_size, epochs=50, step_at=40 / 50),
    )


def conditional_detr_r50() -> Preset:
    """Conditional DETR with ResNet-50."""
    return _conditional("conditional-detr-r50", BackboneConfig(), batch_size=16)


def conditional_detr_r50_dc5() -> Preset:
    """Conditional DETR-DC5: the last stage dilated, twice the resolution."""
    return _conditional("conditional-detr-r50-dc5", BackboneConfig(dilation=True), batch_size=8)


def conditional_detr_r101() -> Preset:
    """Conditional DETR with ResNet-101."""
    return _conditional("conditional-detr-r101", BackboneConfig(depth=101), batch_size=16)


def conditional_detr_r101_dc5() -> Preset:
    """Conditional DETR-DC5 with ResNet-101."""
    return _conditional("conditional-detr-r101-dc5", BackboneConfig(depth=101, dilation=True), batch_size=8)


def conditional_detr_tiny() -> Preset:
    """A Conditional DETR of the size of `detr_tiny`, trained as that is."""
    model = ConditionalDETRConfig(
        backbone=BackboneConfig(depth=18, half_width=True, dilation=True),
        transformer=TransformerConfig(width=128, ffn_width=512, encoder_layers=3, decoder_layers=3, dropout=0.0),
        num_queries=50,
    )
    return replace(detr_tiny(), name="conditional-detr-tiny", model=model, criterion=_FOCAL_CRITERION)


def _deformable(name: str, model: DeformableDETRConfig) -> Preset:
    """A published Deformable DETR with the recipe of its authors."""
    recipe = Recipe(
        learning_rate=2e-4,
        backbone_learning_rate=2e-5,
        sampling_rate_factor=0.1,
        batch_size=32,
        epochs=50,
        step_at=40 / 50,
    )
    return Preset(name=name, model=model, criterion=_FOCAL_CRITERION, recipe=recipe)


_SINGLE_SCALE = DeformableTransformerConfig(num_levels=1)


def deformable_detr_r50_single_scale() -> Preset:
    """Deformable DETR that reads the coarsest level alone."""
    return _deformable("deformable-detr-r50-single-scale", DeformableDETRConfig(transformer=_SINGLE_SCALE))


def deformable_detr_r50_single_scale_dc5() -> Preset:
    """Deformable DETR that reads the coarsest level alone, dilated to twice the resolution."""
    model = DeformableDETRConfig(transformer=_SINGLE_SCALE, backbone=BackboneConfig(dilation=True))
    return _deformable("deformable-detr-r50-single-scale-dc5", model)


def deformable_detr_r50() -> Preset:
    """Deformable DETR with ResNet-50 and four levels."""
    return _deformable("deformable-detr-r50", DeformableDETRConfig())


def deformable_detr_r50_refine() -> Preset:
    """Deformable DETR with iterative box refinement."""
    return _deformable("deformable-detr-r50-refine", DeformableDETRConfig(refine=True))


def deformable_detr_r50_two_stage() -> Preset:
    """Deformable DETR with refinement and proposals of the encoder."""
    return _deformable("deformable-detr-r50-two-stage", TwoStageDETRConfig())


def deformable_detr_tiny() -> Preset:
    """A two-stage Deformable DETR about the size of `detr_tiny`, for small images and no GPU."""
    tiny = detr_tiny()
    model = TwoStageDETRConfig(
        backbone=BackboneConfig(depth=18, half_width=True),
        transformer=DeformableTransformerConfig(
            width=128, num_heads=4, ffn_width=512, encoder_layers=2, decoder_layers=3, dropout=0.0
        ),
        num_queries=60,
    )
    recipe = replace(tiny.recipe, batch_size=4)  # learns more from as many images than with 8, as DETR does not
    return replace(tiny, name="deformable-detr-tiny", model=model, criterion=_FOCAL_CRITERION, recipe=recipe)


def _with_masks(detector: Preset, masks: MaskHeadConfig) -> Preset:
    """A detector with a mask head, trained on panoptic annotations, or on instances where there are no others."""
    data = replace(detector.data, masks="auto")
    recipe = replace(detector.recipe, best_by="auto")
    return replace(detector, name=f"{detector.name}{_WITH_MASKS}", masks=masks, data=data, recipe=recipe)


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
    """`deformable_detr_tiny` with a mask head that begins at stride 16."""
    return _with_masks(deformable_detr_tiny(), MaskHeadConfig(level=2, attention_gain=2000.0))


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
    (DEFAULT_MODEL, f"{DEFAULT_MODEL}{_WITH_MASKS}"), "scenes-deformable-detr-tiny-panoptic.safetensors"
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
    published = PUBLISHED.get(name)
    return published.place if published and (published.is_checked or published.path.is_file()) else None


def published_weights(name: str) -> Path | None:
    """The weights of a catalogue model: from the package, or downloaded once; None where there are none.

    Raises:
        WeightsError: they cannot be downloaded, or only by hand.
    """
    return PUBLISHED[name].fetch() if name in PUBLISHED else shipped_weights(name)


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


def with_frozen_detector(preset: Preset) -> Preset:
    """The second stage of training masks (DETR, section 4.2): the trained detector frozen, its mask head in 25 epochs.

    Raises:
        ConfigError: there is no mask head to train.
    """
    if preset.masks is None:
        raise ConfigError(f"{preset.name}: has no mask head to train; choose a model whose name ends in {_WITH_MASKS}")
    return frozen(replace(preset, recipe=replace(preset.recipe, epochs=25, step_at=15 / 25)))


def frozen(preset: Preset) -> Preset:
    """The preset with the detector in it frozen, so that its mask head alone is trained."""
    freeze = tuple(dict.fromkeys((*preset.recipe.freeze, _DETECTOR)))
    return replace(preset, recipe=replace(preset.recipe, freeze=freeze))


def has_frozen_detector(preset: Preset) -> bool:
    """Whether the mask head alone is trained."""
    return preset.masks is not None and _DETECTOR in preset.recipe.freeze


def name_with_masks(name: str) -> str:
    """The catalogue's name of a detector with its mask head.

    Raises:
        ConfigError: there is none.
    """
    if name.endswith(_WITH_MASKS):
        return name
    if f"{name}{_WITH_MASKS}" not in _PRESETS:
        known = ", ".join(each for each in _PRESETS if each.endswith(_WITH_MASKS))
        raise ConfigError(f"{name}: the catalogue has it without a mask head only; there are {known}")
    return f"{name}{_WITH_MASKS}"


def name_without_masks(name: str) -> str:
    """The catalogue's name of the detector that a name is about."""
    return name.removesuffix(_WITH_MASKS)


def detector_alone(preset: Preset) -> Preset:
    """The preset of the detector that a model with a mask head has in it."""
    plain = get_preset(name_without_masks(preset.name))
    return replace(preset, name=plain.name, masks=None, data=replace(preset.data, masks=plain.data.masks))


def published_categories(name: str) -> Categories:
    """The classes of the published weights of a model: COCO panoptic's with a mask head, else those of COCO."""
    return coco_categories() if get_preset(name).masks is None else coco_panoptic_categories()


def miniature(name: str) -> Preset:
    """A preset shrunk to test size; what it is composed of stays."""
    preset = get_preset(name)
    model: Any = preset.model  # every member's config has these fields, whatever else it has
    transformer = replace(model.transformer, width=32, num_heads=4, ffn_width=32, encoder_layers=2, decoder_layers=2)
    backbone = replace(model.backbone, depth=18, half_width=True)
    return replace(
        preset,
        model=replace(model, backbone=backbone, transformer=transformer, num_queries=12),
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
        ConfigError: strict about "no object", and the model has no such class.
    """
    scoring = preset.criterion.classification.scoring()
    if strict_no_object:
        try:
            scoring = scoring.strictly()
        except ValueError as error:
            raise ConfigError(f"{preset.name}: {error}") from None
    num_logits = scoring.num_logits(num_classes)
    if preset.masks is None:
        return preset.model.build(num_logits, scoring)
    try:
        return preset.masks.build(preset.model, num_logits, scoring)
    except ValueError as error:
        raise ConfigError(f"{preset.name}: {error}") from None


_TASKS: dict[type, type[DetectionTask]] = {TwoStageDETRConfig: TwoStageTask}


def build_task(preset: Preset, model: Detector, num_classes: int) -> DetectionTask | MaskTask:
    """What the trainer trains: the model with the losses of its preset."""
    is_frozen = has_frozen_detector(preset)
    dense = None
    if preset.dense.weight > 0 and not is_frozen:
        dense = DenseSupervision(preset.dense, preset.model.transformer.width, num_classes)
    task = _TASKS.get(type(preset.model), DetectionTask)(model, SetCriterion(preset.criterion), dense)
    if preset.masks is None:
        return task
    with_masks = MaskHeadTask if is_frozen else MaskTask
    return with_masks(task, MaskCriterion(preset.mask_criterion))


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


def create_task(name: str, model: Detector | None = None, num_classes: int | None = None) -> DetectionTask | MaskTask:
    """The published losses around a model; a new one with `num_classes`, as in `create`, when `model` is omitted."""
    count = len(published_categories(name)) if num_classes is None else num_classes
    return build_task(get_preset(name), create(name, num_classes=count) if model is None else model, count)
