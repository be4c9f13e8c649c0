"""The weights of Conditional DETR: names in other layouts, config.json, published files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from opendetr.weights.detr import dc5_suffix, unsupported_transformer_reason
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

CONDITIONAL_PROJECTIONS: Rows = (
    ("sa_qcontent_proj.", "self_attention.query_content."),
    ("sa_qpos_proj.", "self_attention.query_position."),
    ("sa_kcontent_proj.", "self_attention.key_content."),
    ("sa_kpos_proj.", "self_attention.key_position."),
    ("sa_v_proj.", "self_attention.value."),
    ("ca_qcontent_proj.", "cross_attention.query_content."),
    ("ca_qpos_proj.", "cross_attention.query_position."),
    ("ca_qpos_sine_proj.", "cross_attention.query_place."),
    ("ca_kcontent_proj.", "cross_attention.key_content."),
    ("ca_kpos_proj.", "cross_attention.key_place."),
    ("ca_v_proj.", "cross_attention.value."),
)
CONDITIONAL_DECODER: Rows = (
    *below("transformer.decoder.layers.{n}.", "decoder.layers.{n}.", CONDITIONAL_PROJECTIONS),
    ("transformer.decoder.ref_point_head.", "decoder.reference_head."),
    ("transformer.decoder.query_scale.", "decoder.query_scale."),
)
"""What the decoder has besides that of DETR."""

OFFICIAL: Rows = (
    *BACKBONE,
    ("backbone.1.", "position."),
    *ENCODER,
    *DECODER,
    ("transformer.decoder.layers.{n}.cross_attn.", "decoder.layers.{n}.cross_attention."),
    *CONDITIONAL_DECODER,
    *SINGLE_HEADS,
)
HUGGING_FACE: Rows = (
    *HF_ENCODER,
    *HF_DECODER,
    *below("model.decoder.layers.{n}.", "decoder.layers.{n}.", CONDITIONAL_PROJECTIONS),
    ("model.decoder.ref_point_head.", "decoder.reference_head."),
    ("model.decoder.query_scale.", "decoder.query_scale."),
    *HF_SINGLE_HEADS,
)


def _preset_name(model: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    return f"conditional-detr-r{101 if model['backbone']['depth'] == 101 else 50}{dc5_suffix(model)}"


def _published(variant: str, ap: float, hub: str | None = None) -> PublishedWeights:
    file = f"ConditionalDETR_{variant}_epoch50.pth"
    place = f"https://github.com/DeppMeng/ConditionalDETR/releases/download/v1.0/{file}"
    return PublishedWeights(file=file, place=place, licence="Apache-2.0", ap=ap, hub=hub)


FAMILY = WeightFamily(
    name="conditional-detr",
    official=OFFICIAL,
    huggingface=HuggingFaceFormat(
        model_type="conditional_detr",
        class_prefix="ConditionalDetr",
        rows=HUGGING_FACE,
        preset_name=_preset_name,
        unsupported_reason=unsupported_transformer_reason,
    ),
    published={
        "conditional-detr-r50": _published("r50", 0.410, hub="microsoft/conditional-detr-resnet-50"),
        "conditional-detr-r50-dc5": _published("r50dc5", 0.437),
        "conditional-detr-r101": _published("r101", 0.428),
        "conditional-detr-r101-dc5": _published("r101dc5", 0.450),
    },
)
