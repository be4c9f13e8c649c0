"""Weight families of detectors with a mask head. Their names contain the detector under a prefix."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, cast

from opendetr.categories import Categories, coco_panoptic_categories
from opendetr.models import INSIDE, WITH_MASKS, Detector, MaskedDetector
from opendetr.weights import detr
from opendetr.weights.detr import dc5_suffix, published, unsupported_transformer_reason
from opendetr.weights.family import NO_FORMAT, HuggingFaceFormat, WeightFamily
from opendetr.weights.huggingface import UNUSED
from opendetr.weights.name_maps import Rows, below
from opendetr.weights.published import PublishedWeights

_INSIDE_OTHERS = "detr."  # the prefix of the detector in other layouts
_GENERIC = "LABEL_"  # the prefix of transformers' placeholder class names

# The mask head: the attention maps, the convolutions, the adapters of the backbone levels.
MASKS: Rows = (
    ("bbox_attention.q_linear.", "attention.query."),
    ("bbox_attention.k_linear.", "attention.key."),
    *((f"mask_head.lay{number + 1}.", f"head.convolutions.{number}.") for number in range(5)),
    *((f"mask_head.gn{number + 1}.", f"head.norms.{number}.") for number in range(5)),
    *((f"mask_head.adapter{number + 1}.", f"head.adapters.{number}.") for number in range(3)),
    ("mask_head.out_lay.", "head.out."),
)
# The names in transformers from version 5 on. Published files keep the names above.
HF_MASKS: Rows = (
    ("bbox_attention.q_proj.", "attention.query."),
    ("bbox_attention.k_proj.", "attention.key."),
    *(
        (f"mask_head.{theirs}.{kind}.", f"head.{ours}.{number}.")
        for number, theirs in enumerate(("conv1", "conv2", *(f"fpn_stages.{stage}.refine" for stage in range(3))))
        for kind, ours in (("conv", "convolutions"), ("norm", "norms"))
    ),
    *((f"mask_head.fpn_stages.{stage}.fpn_adapter.", f"head.adapters.{stage}.") for stage in range(3)),
    ("mask_head.output_conv.", "head.out."),
)


def has_masks(names: Iterable[str]) -> bool:
    """Whether these names, in any layout, belong to a detector with a mask head."""
    return any(name.startswith(INSIDE) or "bbox_attention." in name for name in names)


def of_detector(names: Iterable[str]) -> dict[str, str]:
    """Map the detector's names in a model with a mask head, in any layout, to its names without one."""
    prefixes = INSIDE, _INSIDE_OTHERS
    inside = {name: name.removeprefix(prefix) for name in names for prefix in prefixes if name.startswith(prefix)}
    return {name: alone for name, alone in inside.items() if not alone.startswith(("bbox_attention.", "mask_head."))}


def _around(rows: Rows, masks: Rows = MASKS) -> Rows:
    return (*below(_INSIDE_OTHERS, INSIDE, rows), *masks)


def with_masks(
    family: WeightFamily,
    *,
    huggingface: HuggingFaceFormat | None = None,
    no_huggingface: str = NO_FORMAT,
    published: Mapping[str, PublishedWeights] | None = None,
) -> WeightFamily:
    """The weight family of a family's detectors with a mask head."""

    def num_heads(detector: Detector) -> int:
        return family.num_heads(cast(MaskedDetector, detector).detector)

    def absent(detector: Detector) -> tuple[str, ...]:
        return family.absent(cast(MaskedDetector, detector).detector)

    return replace(
        family,
        name=f"{family.name}{WITH_MASKS}",
        official=_around(family.official),
        detectron2=None if family.detectron2 is None else _around(family.detectron2, below("detr.", "", MASKS)),
        huggingface=huggingface,
        no_huggingface=no_huggingface,
        published=published or {},
        num_heads=num_heads,
        absent=absent,
    )


def _preset_name(model: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    return "detr-r101-panoptic" if model["backbone"]["depth"] == 101 else f"detr-r50{dc5_suffix(model)}-panoptic"


def _unsupported_reason(settings: Mapping[str, Any]) -> str | None:
    num_heads = settings["model"]["transformer"]["num_heads"]
    if settings["masks"]["num_heads"] != num_heads:
        return f"transformers needs as many mask attention heads as encoder heads, {num_heads}"
    return unsupported_transformer_reason(settings)


def _read_further(config: Mapping[str, Any], settings: dict[str, Any]) -> None:
    settings["masks"] = {"num_heads": settings["model"]["transformer"].get("num_heads", 8)}
    settings["data"] = {"masks": "auto"}


def _categories(named: Categories) -> Categories:
    """COCO panoptic's classes if the file's names fit them: published files do not name every row."""
    known = coco_panoptic_categories()
    fits = len(named) == len(known) and all(
        name in (other, UNUSED) or name.startswith(_GENERIC)
        for name, other in zip(named.names, known.names, strict=True)
    )
    return known if fits else named


assert detr.FAMILY.huggingface is not None
DETR = with_masks(
    detr.FAMILY,
    huggingface=replace(
        detr.FAMILY.huggingface,
        rows_around=(_INSIDE_OTHERS, INSIDE),
        read_rows=(*MASKS, *HF_MASKS),
        written_rows=MASKS,
        class_suffix="ForSegmentation",
        annotations="coco_panoptic",
        preset_name=_preset_name,
        unsupported_reason=_unsupported_reason,
        read_further=_read_further,
        categories=_categories,
        num_backbone_levels=lambda model: 4,
    ),
    published={
        "detr-r50-panoptic": published("detr-r50-panoptic-00ce5173.pth", 0.388, 165, mask_ap=0.311, pq=0.434),
        "detr-r50-dc5-panoptic": published("detr-r50-dc5-panoptic-da08f1b1.pth", 0.402, 165, mask_ap=0.319, pq=0.446),
        "detr-r101-panoptic": published("detr-r101-panoptic-40021d53.pth", 0.401, 237, mask_ap=0.330, pq=0.451),
    },
)
