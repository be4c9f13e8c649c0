"""The registry of weight families: names in other layouts and published files, one object per family."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from opendetr.categories import Categories
from opendetr.models import Detector
from opendetr.weights.name_maps import HF_RESNET, HF_TIMM, Rows, below
from opendetr.weights.published import PublishedWeights

Layout = Literal["opendetr", "official", "detectron2", "huggingface"]
# Prefixes of names that identify the layouts.
_SIGNS: Mapping[Layout, tuple[str, ...]] = {
    "official": ("transformer.", "backbone.0.", "detr.backbone.0.body."),
    "detectron2": ("detr.backbone.0.backbone.", "detr.detr.backbone.0.backbone."),
    "huggingface": ("model.encoder.", "model.decoder.", "model.backbone.", "detr.model."),
}
LAYOUTS: tuple[Layout, ...] = tuple(_SIGNS)


# The default reason why a family has no `HuggingFaceFormat`.
NO_FORMAT = "transformers has no models of this family"


def _nothing(*_arguments: Any) -> None:
    """The default of `unsupported_reason` (no reason) and of `read_further` (nothing to add)."""


def _no_config(model: Mapping[str, Any], detector: Detector) -> dict[str, Any]:
    return {}


@dataclass(frozen=True, kw_only=True)
class HuggingFaceFormat:
    """How transformers represents the models of a family.

    Settings are plain values, either of the preset or of its model alone.

    Attributes:
        model_type: `model_type` in config.json.
        class_prefix, class_suffix: parts of the class names, as in DetrForObjectDetection.
        rows: names of the transformer and the heads.
        rows_around: prefixes (theirs, ours) of the detector's names; empty if the model is the detector itself.
        read_rows, written_rows: further names, accepted when reading and used when writing.
        settings: our settings and the corresponding names in config.json, beyond those that all families share.
        numbered_heads: prefixes of our names of heads, one head per layer. A file contains only the first head if all
            are equal.
        annotations: annotation format of the image processor.
        preset_name: (model settings, config.json) -> the nearest model of the catalogue.
        unsupported_reason: preset settings -> the reason why transformers does not support the model, or None.
        read_further: (config.json, preset settings) -> None; adds settings that need more than a renaming.
        categories: classes in config.json -> classes of the labels.
        further_config: (model settings, model) -> further keys of config.json.
        num_backbone_levels: model settings -> number of backbone levels that the model uses.
        has_position_type: whether config.json contains the type of position encoding, which must be "sine".
    """

    model_type: str
    class_prefix: str
    class_suffix: str = "ForObjectDetection"
    rows: Rows
    rows_around: tuple[str, str] = ("", "")
    read_rows: Rows = ()
    written_rows: Rows = ()
    settings: tuple[tuple[str, tuple[str, ...]], ...] = ()
    numbered_heads: tuple[str, ...] = ()
    annotations: str = "coco_detection"
    preset_name: Callable[[Mapping[str, Any], Mapping[str, Any]], str]
    unsupported_reason: Callable[[Mapping[str, Any]], str | None] = _nothing
    read_further: Callable[[Mapping[str, Any], dict[str, Any]], None] = _nothing
    categories: Callable[[Categories], Categories] = lambda named: named
    further_config: Callable[[Mapping[str, Any], Detector], dict[str, Any]] = _no_config
    num_backbone_levels: Callable[[Mapping[str, Any]], int] = lambda model: 1
    has_position_type: bool = True

    @property
    def architecture(self) -> str:
        """The name of the class in transformers."""
        return self.class_prefix + self.class_suffix

    def _table(self, backbones: Rows, further: Rows) -> Rows:
        return (*below(*self.rows_around, (*backbones, *self.rows)), *further)

    @property
    def reading(self) -> Rows:
        """The table of names accepted when reading a file."""
        return self._table((*HF_RESNET, *HF_TIMM), self.read_rows)

    def writing(self, *, timm: bool) -> Rows:
        """The table of names for writing a file, with a timm backbone (required for dilation) or transformers' own."""
        return self._table(HF_TIMM if timm else HF_RESNET, self.written_rows)


@dataclass(frozen=True, kw_only=True)
class WeightFamily:
    """The layouts and published files of a family's weights.

    Attributes:
        name: as in `Detector.family`.
        official: the names in the authors' files.
        detectron2: the names in the Detectron2 wrapper, if there is one.
        huggingface: the Hugging Face format, if transformers supports the family.
        no_huggingface: the reason why transformers does not support the family.
        stray: ends of the names of tensors in the authors' files that a model may lack: constants, and heads that only
            a loss uses.
        published: the authors' files, by the catalogue's name of the model.
        num_heads: model -> number of heads in official and Hugging Face files. A head that the model shares between
            layers has one entry per layer there.
        absent: model -> parts of official and Hugging Face names that its file does not contain.
    """

    name: str
    official: Rows
    detectron2: Rows | None = None
    huggingface: HuggingFaceFormat | None = None
    no_huggingface: str = NO_FORMAT
    stray: tuple[str, ...] = ()
    published: Mapping[str, PublishedWeights] = field(default_factory=dict)
    num_heads: Callable[[Detector], int] = lambda detector: 1
    absent: Callable[[Detector], tuple[str, ...]] = lambda detector: ()

    def table(self, layout: Layout) -> Rows | None:
        """The table of names of another layout; None if the family does not support it."""
        if layout == "official":
            return self.official
        if layout == "detectron2":
            return self.detectron2
        return None if self.huggingface is None else self.huggingface.reading


_FAMILIES: dict[str, WeightFamily] = {}


def register_family(family: WeightFamily) -> None:
    """Register a family, or replace the one of the same name. Models of other families have our own layout only."""
    _FAMILIES[family.name] = family


def family_of(detector: Detector) -> WeightFamily | None:
    """The weight family of a model; None if it is not registered."""
    return _FAMILIES.get(detector.family)


def families() -> Collection[WeightFamily]:
    """All registered families."""
    return _FAMILIES.values()


def published_files() -> dict[str, PublishedWeights]:
    """The published files of all families, by the catalogue's name of the model."""
    return {name: weights for family in families() for name, weights in family.published.items()}


def layout_of(names: Collection[str]) -> Layout:
    """The layout of these names; "opendetr" if it is none of the others."""
    return next(
        (layout for layout, signs in _SIGNS.items() if any(name.startswith(signs) for name in names)), "opendetr"
    )
