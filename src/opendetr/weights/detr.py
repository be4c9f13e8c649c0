"""The weights of DETR: names in other layouts, config.json, published files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from opendetr.weights.family import HuggingFaceFormat, WeightFamily
from opendetr.weights.name_maps import (
    BACKBONE,
    DECODER,
    ENCODER,
    HF_DECODER,
    HF_ENCODER,
    HF_SINGLE_HEADS,
    SINGLE_HEADS,
    Rows,
    below,
)
from opendetr.weights.published import PublishedWeights

OFFICIAL: Rows = (
    *BACKBONE,
    ("backbone.1.", "position."),
    *ENCODER,
    *DECODER,
    ("transformer.decoder.layers.{n}.multihead_attn.", "decoder.layers.{n}.cross_attention."),
    *SINGLE_HEADS,
)
# The original DETR's wrapper for Detectron2: the ResNet has Detectron2's names, the rest has the original names.
DETECTRON2_BACKBONE: Rows = below(
    "detr.backbone.0.backbone.",
    "backbone.body.",
    (
        ("stem.conv1.norm.", "bn1."),
        ("stem.conv1.", "conv1."),
        *(
            (f"res{stage + 1}.{{n}}.{left}", f"layer{stage}.{{n}}.{right}")
            for stage in range(1, 5)
            for left, right in (
                *((f"conv{index}.norm.", f"bn{index}.") for index in range(1, 4)),
                *((f"conv{index}.", f"conv{index}.") for index in range(1, 4)),
                ("shortcut.norm.", "downsample.1."),
                ("shortcut.", "downsample.0."),
            )
        ),
    ),
)
DETECTRON2: Rows = (*DETECTRON2_BACKBONE, *below("detr.", "", OFFICIAL))


def dc5_suffix(model: Mapping[str, Any]) -> str:
    """The suffix of the model name for a dilated backbone."""
    return "-dc5" if model["backbone"]["dilation"] else ""


def part_without_counterpart(settings: Mapping[str, Any]) -> str | None:
    """The part of a model that no other implementation has; None if they have it all."""
    model = settings["model"]
    if model["transformer"].get("ffn_width") == 0:
        return "a transformer without feed-forward blocks"
    placement = model.get("placement") or {}
    return "the placement of its position encodings" if set(placement.values()) - {"attention"} else None


def unsupported_transformer_reason(settings: Mapping[str, Any]) -> str | None:
    """The reason why transformers does not support the transformer of a single-level model; None if it does."""
    part, model = part_without_counterpart(settings), settings["model"]
    if part is not None:
        return f"{part} exists only in OpenDETR"
    if model["transformer"]["norm_first"]:
        return "transformers has no pre-norm layers"
    return None if model["position"] == "sine" else "transformers has other learned positions"


def _preset_name(model: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    return f"detr-r{101 if model['backbone']['depth'] == 101 else 50}{dc5_suffix(model)}"


def published(
    file: str, ap: float, megabytes: int, *, mask_ap: float | None = None, pq: float | None = None
) -> PublishedWeights:
    """A file published by DETR's authors. Its name contains its hash."""
    place = f"https://dl.fbaipublicfiles.com/detr/{file}"
    return PublishedWeights(
        file=file, place=place, licence="Apache-2.0", ap=ap, mask_ap=mask_ap, pq=pq, megabytes=megabytes,
        is_checked=True,
    )  # fmt: skip


FAMILY = WeightFamily(
    name="detr",
    official=OFFICIAL,
    detectron2=DETECTRON2,
    huggingface=HuggingFaceFormat(
        model_type="detr",
        class_prefix="Detr",
        rows=(*HF_ENCODER, *HF_DECODER, *HF_SINGLE_HEADS),
        preset_name=_preset_name,
        unsupported_reason=unsupported_transformer_reason,
    ),
    published={
        "detr-r50": published("detr-r50-e632da11.pth", 0.420, 159),
        "detr-r50-dc5": published("detr-r50-dc5-f0fb7ef5.pth", 0.433, 159),
        "detr-r101": published("detr-r101-2c7b67e5.pth", 0.435, 232),
        "detr-r101-dc5": published("detr-r101-dc5-a2e86def.pth", 0.449, 232),
    },
)
