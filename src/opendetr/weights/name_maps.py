"""The names that other implementations give to the parameters of each family, as tables.

A row pairs the start of a name of theirs with the start of ours; `{n}` is a number, the same on both sides. The first
row that fits and leads to a parameter of the model counts, so that one table serves models that share a head between
layers and models that do not. Only one thing is no matter of names: Hugging Face keeps the projections of an attention
apart that the others have as the rows of one (`packed`, `unpacked`).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from opendetr.models.masks import INSIDE, WITH_MASKS

Rows = tuple[tuple[str, str], ...]
_INSIDE_OTHERS = "detr."  # the same in the layouts of others
Layout = Literal["opendetr", "official", "detectron2", "huggingface"]

_BACKBONE: Rows = (("backbone.0.body.", "backbone.body."),)
_ENCODER: Rows = (
    ("transformer.encoder.layers.{n}.self_attn.", "encoder.layers.{n}.attention."),
    ("transformer.encoder.layers.{n}.linear", "encoder.layers.{n}.feed_forward.linear"),
    ("transformer.encoder.layers.{n}.norm1.", "encoder.layers.{n}.attention_residual.norm."),
    ("transformer.encoder.layers.{n}.norm2.", "encoder.layers.{n}.feed_forward_residual.norm."),
    ("transformer.encoder.norm.", "encoder.norm."),
)
_DECODER: Rows = (
    ("transformer.decoder.layers.{n}.self_attn.", "decoder.layers.{n}.self_attention."),
    ("transformer.decoder.layers.{n}.linear", "decoder.layers.{n}.feed_forward.linear"),
    ("transformer.decoder.layers.{n}.norm1.", "decoder.layers.{n}.self_attention_residual.norm."),
    ("transformer.decoder.layers.{n}.norm2.", "decoder.layers.{n}.cross_attention_residual.norm."),
    ("transformer.decoder.layers.{n}.norm3.", "decoder.layers.{n}.feed_forward_residual.norm."),
    ("transformer.decoder.norm.", "decoder.norm."),
)
_CONDITIONAL_PROJECTIONS: Rows = (
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
_SINGLE_HEADS: Rows = (
    ("class_embed.", "class_head."),
    ("bbox_embed.", "box_head."),
    ("query_embed.", "queries."),
    ("input_proj.", "project."),
)


def _below(theirs: str, ours: str, rows: Rows) -> Rows:
    """The rows with the start of a name put before each side."""
    return tuple((theirs + left, ours + right) for left, right in rows)


# Hugging Face files hold torchvision's names of a ResNet (by way of timm) or those of transformers' own ResNet.
_HF_TIMM: Rows = (("model.backbone.conv_encoder.model.", "backbone.body."),)
_HF_RESNET: Rows = _below(
    "model.backbone.conv_encoder.model.",
    "backbone.body.",
    (
        ("embedder.embedder.convolution.", "conv1."),
        ("embedder.embedder.normalization.", "bn1."),
        *(
            (f"encoder.stages.{stage}.layers.{{n}}.{left}", f"layer{stage + 1}.{{n}}.{right}")
            for stage in range(4)
            for left, right in (
                *((f"layer.{index}.convolution.", f"conv{index + 1}.") for index in range(3)),
                *((f"layer.{index}.normalization.", f"bn{index + 1}.") for index in range(3)),
                ("shortcut.convolution.", "downsample.0."),
                ("shortcut.normalization.", "downsample.1."),
            )
        ),
    ),
)
# `attention.q_proj`, `k_proj` and `v_proj` are rows of our `attention.in_proj`, in this order.
_HF_ENCODER: Rows = _below(
    "model.encoder.layers.{n}.",
    "encoder.layers.{n}.",
    (
        ("self_attn.", "attention."),
        ("self_attn_layer_norm.", "attention_residual.norm."),
        ("fc", "feed_forward.linear"),
        ("final_layer_norm.", "feed_forward_residual.norm."),
    ),
)
_HF_DECODER: Rows = (
    *_below(
        "model.decoder.layers.{n}.",
        "decoder.layers.{n}.",
        (
            ("self_attn.", "self_attention."),
            ("self_attn_layer_norm.", "self_attention_residual.norm."),
            ("encoder_attn.", "cross_attention."),
            ("encoder_attn_layer_norm.", "cross_attention_residual.norm."),
            ("fc", "feed_forward.linear"),
            ("final_layer_norm.", "feed_forward_residual.norm."),
        ),
    ),
    ("model.decoder.layernorm.", "decoder.norm."),
)
_HF_SINGLE_HEADS: Rows = (
    ("class_labels_classifier.", "class_head."),
    ("bbox_predictor.", "box_head."),
    ("model.query_position_embeddings.", "queries."),
    ("model.input_projection.", "project."),
)

_DEFORMABLE_PARTS: Rows = (
    ("level_embed", "level_embedding"),
    ("reference_points.", "reference_points."),
    ("enc_output.", "proposal_content."),
    ("enc_output_norm.", "proposal_content_norm."),
    ("pos_trans.", "proposal_query."),
    ("pos_trans_norm.", "proposal_query_norm."),
)
# A head a layer with refinement, one more for proposals in two stages, else one head under many names.
_DEFORMABLE_HEADS: Rows = (
    ("class_embed.{n}.", "class_heads.{n}."),
    ("class_embed.{n}.", "proposal_class_head."),
    ("class_embed.{n}.", "class_heads.0."),
    ("bbox_embed.{n}.", "box_heads.{n}."),
    ("bbox_embed.{n}.", "proposal_box_head."),
    ("bbox_embed.{n}.", "box_heads.0."),
)

# The mask head: the attention that its maps are of, its convolutions, the levels that are added between them.
_MASKS: Rows = (
    ("bbox_attention.q_linear.", "attention.query."),
    ("bbox_attention.k_linear.", "attention.key."),
    *((f"mask_head.lay{number + 1}.", f"head.convolutions.{number}.") for number in range(5)),
    *((f"mask_head.gn{number + 1}.", f"head.norms.{number}.") for number in range(5)),
    *((f"mask_head.adapter{number + 1}.", f"head.adapters.{number}.") for number in range(3)),
    ("mask_head.out_lay.", "head.out."),
)
# The same as transformers calls it since version 5; its files keep the names above.
_HF_MASKS: Rows = (
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


def _with_masks(tables: Mapping[str, Rows], prefixes: Mapping[str, str], masks: Rows = _MASKS) -> dict[str, Rows]:
    """Tables of detectors, and of those with a mask head, which hold the detector under a prefix."""
    around = {
        f"{family}{WITH_MASKS}": (*_below(prefix, INSIDE, tables[family]), *masks)
        for family, prefix in prefixes.items()
    }
    return {**tables, **around}


_OFFICIAL: Mapping[str, Rows] = {
    "detr": (
        *_BACKBONE,
        ("backbone.1.", "position."),
        *_ENCODER,
        *_DECODER,
        ("transformer.decoder.layers.{n}.multihead_attn.", "decoder.layers.{n}.cross_attention."),
        *_SINGLE_HEADS,
    ),
    "conditional-detr": (
        *_BACKBONE,
        ("backbone.1.", "position."),
        *_ENCODER,
        *_DECODER,
        ("transformer.decoder.layers.{n}.cross_attn.", "decoder.layers.{n}.cross_attention."),
        *_below("transformer.decoder.layers.{n}.", "decoder.layers.{n}.", _CONDITIONAL_PROJECTIONS),
        ("transformer.decoder.ref_point_head.", "decoder.reference_head."),
        ("transformer.decoder.query_scale.", "decoder.query_scale."),
        *_SINGLE_HEADS,
    ),
    "deformable-detr": (
        *_BACKBONE,
        *_ENCODER,
        ("transformer.decoder.layers.{n}.self_attn.", "decoder.layers.{n}.self_attention."),
        ("transformer.decoder.layers.{n}.cross_attn.", "decoder.layers.{n}.cross_attention."),
        ("transformer.decoder.layers.{n}.linear", "decoder.layers.{n}.feed_forward.linear"),
        ("transformer.decoder.layers.{n}.norm1.", "decoder.layers.{n}.cross_attention_residual.norm."),
        ("transformer.decoder.layers.{n}.norm2.", "decoder.layers.{n}.self_attention_residual.norm."),
        ("transformer.decoder.layers.{n}.norm3.", "decoder.layers.{n}.feed_forward_residual.norm."),
        *_below("transformer.", "", _DEFORMABLE_PARTS),
        *_DEFORMABLE_HEADS,
        *_below("transformer.decoder.", "", _DEFORMABLE_HEADS),
        ("query_embed.", "queries."),
        ("input_proj.{n}.", "projections.{n}."),
    ),
}
OFFICIAL = _with_masks(_OFFICIAL, dict.fromkeys(_OFFICIAL, _INSIDE_OTHERS))


_HF_HEADS: Mapping[str, Rows] = {
    "detr": (*_HF_ENCODER, *_HF_DECODER, *_HF_SINGLE_HEADS),
    "conditional-detr": (
        *_HF_ENCODER,
        *_HF_DECODER,
        *_below("model.decoder.layers.{n}.", "decoder.layers.{n}.", _CONDITIONAL_PROJECTIONS),
        ("model.decoder.ref_point_head.", "decoder.reference_head."),
        ("model.decoder.query_scale.", "decoder.query_scale."),
        *_HF_SINGLE_HEADS,
    ),
    "deformable-detr": (
        *_HF_ENCODER,
        *_HF_DECODER,
        *_below("model.", "", _DEFORMABLE_PARTS),
        *_DEFORMABLE_HEADS,
        *_below("model.decoder.", "", _DEFORMABLE_HEADS),
        ("model.query_position_embeddings.", "queries."),
        ("model.input_proj.{n}.", "projections.{n}."),
    ),
}


# The wrapper of the original DETR for Detectron2: Detectron2's names of a ResNet, all else as in the original.
_DETECTRON2_BACKBONE: Rows = _below(
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
_DETECTRON2: Mapping[str, Rows] = {"detr": (*_DETECTRON2_BACKBONE, *_below("detr.", "", OFFICIAL["detr"]))}
DETECTRON2 = _with_masks(_DETECTRON2, {"detr": "detr."}, _below("detr.", "", _MASKS))


def _huggingface(*backbones: Rows, masks: Rows = _MASKS) -> dict[str, Rows]:
    """Tables of all families, with these names of the backbone."""
    tables = {family: (*itertools.chain(*backbones), *heads) for family, heads in _HF_HEADS.items()}
    return _with_masks(tables, {"detr": "detr."}, masks)


HUGGING_FACE = _huggingface(_HF_RESNET, _HF_TIMM, masks=(*_MASKS, *_HF_MASKS))
# To write: with a backbone of timm, which alone can be dilated, or with transformers' own.
HUGGING_FACE_TIMM = _huggingface(_HF_TIMM)
HUGGING_FACE_RESNET = _huggingface(_HF_RESNET)

TABLES: Mapping[Layout, Mapping[str, Rows]] = {
    "official": OFFICIAL,
    "detectron2": DETECTRON2,
    "huggingface": HUGGING_FACE,
}
_SIGNS: Mapping[Layout, tuple[str, ...]] = {
    "official": ("transformer.", "backbone.0.", "detr.backbone.0.body."),
    "detectron2": ("detr.backbone.0.backbone.", "detr.detr.backbone.0.backbone."),
    "huggingface": ("model.encoder.", "model.decoder.", "model.backbone.", "detr.model."),
}


def layout_of(names: Collection[str]) -> Layout:
    """Whose names these are; ours where nobody else's."""
    return next(
        (layout for layout, signs in _SIGNS.items() if any(name.startswith(signs) for name in names)), "opendetr"
    )


def has_masks(names: Iterable[str]) -> bool:
    """Whether these names, of any layout, are those of a detector with a mask head."""
    return any(name.startswith(INSIDE) or "bbox_attention." in name for name in names)


def of_detector(names: Iterable[str]) -> dict[str, str]:
    """Of the names of a detector with a mask head, in any layout: those of the detector -> what it calls them alone."""
    prefixes = INSIDE, _INSIDE_OTHERS
    inside = {name: name.removeprefix(prefix) for name in names for prefix in prefixes if name.startswith(prefix)}
    return {name: alone for name, alone in inside.items() if not alone.startswith(("bbox_attention.", "mask_head."))}


def our_name(name: str, rows: Rows, own: Collection[str]) -> str:
    """Our name of a parameter that `rows` know; other names come back as they are.

    Args:
        name: theirs.
        rows: a table of this module.
        own: the names of the model's parameters and buffers.
    """
    candidates = [pattern.sub(ours, name, count=1) for pattern, ours in _compiled(rows) if pattern.match(name)]
    return next((candidate for candidate in candidates if candidate in own), candidates[0] if candidates else name)


def their_names(own: Collection[str], rows: Rows) -> dict[str, str]:
    """All names that `rows` have for the parameters of a model, each with ours; a head that is shared has several.

    Args:
        own: the names of the model's parameters and buffers.
        rows: a table of this module.
    """
    layers = {match[1] for name in own if (match := re.search(r"\bdecoder\.layers\.(\d+)\.", name))}
    num_heads = len(layers) + any("proposal_class_head." in name for name in own)
    return {
        theirs: name
        for name in own
        for theirs in _candidates(name, rows, num_heads)
        if our_name(theirs, rows, own) == name
    }


def _candidates(name: str, rows: Rows, num_heads: int) -> Iterator[str]:
    """What `rows` may call our `name`; of rows that fit, those that say most about it count."""
    matches = [(match, theirs) for pattern, theirs in _inverted(rows) if (match := pattern.match(name))]
    longest = max((match.end() for match, _ in matches), default=0)
    for match, theirs in matches:
        if match.end() == longest:
            numbers = match.groups() or (range(num_heads) if "{n}" in theirs else ("",))
            yield from (theirs.replace("{n}", str(number)) + name[longest:] for number in numbers)


def packed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The projections of each attention that Hugging Face keeps apart as the rows of one."""
    whole = dict(state)
    for name in state:
        names = [name.replace(".q_proj.", f".{part}_proj.") for part in "qkv"]
        if ".q_proj." in name and all(part in whole for part in names):
            whole[name.replace(".q_proj.", ".in_proj_")] = torch.cat([whole.pop(part) for part in names])
    return whole


def unpacked(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `packed`."""
    apart: dict[str, Tensor] = {}
    for name, value in state.items():
        if ".in_proj_" in name:
            apart |= {
                name.replace(".in_proj_", f".{part}_proj."): rows
                for part, rows in zip("qkv", value.chunk(3), strict=True)
            }
        else:
            apart[name] = value
    return apart


@lru_cache
def _compiled(rows: Rows) -> tuple[tuple[re.Pattern[str], str], ...]:
    return tuple(
        (re.compile("^" + re.escape(theirs).replace(r"\{n\}", r"(\d+)")), ours.replace("{n}", r"\1"))
        for theirs, ours in rows
    )


@lru_cache
def _inverted(rows: Rows) -> tuple[tuple[re.Pattern[str], str], ...]:
    return tuple((re.compile("^" + re.escape(ours).replace(r"\{n\}", r"(\d+)")), theirs) for theirs, ours in rows)
