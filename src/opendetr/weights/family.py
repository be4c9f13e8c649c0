"""What the library knows about the weights of a family: one object per family, in one registry."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from opendetr.categories import Categories
from opendetr.models import Detector
from opendetr.weights.name_maps import HF_RESNET, HF_TIMM, Rows, below
from opendetr.weights.published import PublishedWeights

Layout = Literal["opendetr", "official", "detectron2", "huggingface"]
# Beginnings of names that tell the layouts apart.
_SIGNS: Mapping[Layout, tuple[str, ...]] = {
    "official": ("transformer.", "backbone.0.", "detr.backbone.0.body."),
    "detectron2": ("detr.backbone.0.backbone.", "detr.detr.backbone.0.backbone."),
    "huggingface": ("model.encoder.", "model.decoder.", "model.backbone.", "detr.model."),
}
LAYOUTS: tuple[Layout, ...] = tuple(_SIGNS)


# Why transformers cannot hold the models of a family that has no `HuggingFaceFormat`, where nothing else is said.
NO_FORMAT = "transformers has no models of this family"


def _nothing(*_given: Any) -> None:
    """There is no obstacle, and nothing further to read."""


def _no_config(model: Mapping[str, Any], detector: Detector) -> dict[str, Any]:
    return {}


@dataclass(frozen=True, kw_only=True)
class HuggingFaceFormat:
    """How transformers holds the models of a family.

    Settings are plain values: those of the preset, or those of its model alone.

    Attributes:
        model_type: the type in config.json.
        class_prefix, class_suffix: of the names of its classes, as in DetrForObjectDetection.
        rows: names of the transformer and the heads.
        rows_around: prefixes, theirs and ours, before the names of the detector; empty for a detector itself.
        read_rows, written_rows: further names, as they may stand in a file and as they are written.
        settings: settings of ours, and the names of theirs that mean them, beyond those that all families have.
        numbered_heads: starts of our names of heads, one per layer. A file has the first of them alone where all are
            equal.
        annotations: what the image processor is for.
        preset_name: settings of the model and config.json -> the nearest model of the catalogue.
        unwritable: settings of the preset -> why transformers cannot hold such a model, in a few words, or None.
        read_further: adds to settings of the preset what config.json says in another way.
        categories: the classes that config.json names -> what the labels stand for.
        further_config: settings of the model and the model -> further keys of config.json.
        num_backbone_levels: settings of the model -> how many levels of the backbone it takes.
        has_position_type: whether config.json has the type of position encoding, which must be "sine".
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
    unwritable: Callable[[Mapping[str, Any]], str | None] = _nothing
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
        """The table of names that a file may have."""
        return self._table((*HF_RESNET, *HF_TIMM), self.read_rows)

    def writing(self, *, timm: bool) -> Rows:
        """The table of names to write, with a backbone of timm, which alone can be dilated, or transformers' own."""
        return self._table(HF_TIMM if timm else HF_RESNET, self.written_rows)


@dataclass(frozen=True, kw_only=True)
class WeightFamily:
    """What is known about the weights of a family.

    Attributes:
        name: as in `Detector.family`.
        official: the names in the files of its authors.
        detectron2: the names in the wrapper for Detectron2, where there is one.
        huggingface: how transformers holds it, where it does.
        no_huggingface: why transformers does not hold it, where it does not.
        published: the files of its authors, by the catalogue's name of the model.
        num_heads: how many numbers a head has in official and Hugging Face names where a model shares one between
            layers.
        absent: parts of official and Hugging Face names that a model's file does not have.
    """

    name: str
    official: Rows
    detectron2: Rows | None = None
    huggingface: HuggingFaceFormat | None = None
    no_huggingface: str = NO_FORMAT
    published: Mapping[str, PublishedWeights] = field(default_factory=dict)
    num_heads: Callable[[Detector], int] = lambda detector: 1
    absent: Callable[[Detector], tuple[str, ...]] = lambda detector: ()

    def table(self, layout: Layout) -> Rows | None:
        """The names in a layout of others; None where there are none."""
        if layout == "official":
            return self.official
        if layout == "detectron2":
            return self.detectron2
        return None if self.huggingface is None else self.huggingface.reading


_FAMILIES: dict[str, WeightFamily] = {}


def register_family(family: WeightFamily) -> None:
    """Make a family known, in place of one of the same name. A model of an unknown family has our own layout only."""
    _FAMILIES[family.name] = family


def family_of(detector: Detector) -> WeightFamily | None:
    """What is known about the weights of a model; None for a family that is not registered."""
    return _FAMILIES.get(detector.family)


def families() -> Collection[WeightFamily]:
    """All families that are known."""
    return _FAMILIES.values()


def published_files() -> dict[str, PublishedWeights]:
    """The files of the authors of all families, by the catalogue's name of the model."""
    return {name: weights for family in families() for name, weights in family.published.items()}


def layout_of(names: Collection[str]) -> Layout:
    """The layout that these names are of; ours where it is none of the others."""
    return next(
        (layout for layout, signs in _SIGNS.items() if any(name.startswith(signs) for name in names)), "opendetr"
    )
