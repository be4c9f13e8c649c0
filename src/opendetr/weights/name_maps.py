"""Translates parameter names between other layouts and ours, with tables of prefixes.

A row of a table is a pair of prefixes, theirs and ours. `{n}` stands for a number that is the same on both sides. The
first row that matches and leads to a parameter of the model is used. So one table serves models that share a head
between layers and models that do not.

Hugging Face also stores the query, key and value projections of an attention separately. The other layouts store them
as the rows of one tensor. `pack_projections` and `unpack_projections` convert between the two.

Each family has its tables in its own module. This module holds the tables that several families share.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from functools import lru_cache

import torch
from torch import Tensor

Rows = tuple[tuple[str, str], ...]


def below(theirs: str, ours: str, rows: Rows) -> Rows:
    """The rows with a prefix added to each side."""
    return tuple((theirs + left, ours + right) for left, right in rows)


BACKBONE: Rows = (("backbone.0.body.", "backbone.body."),)
ENCODER: Rows = (
    ("transformer.encoder.layers.{n}.self_attn.", "encoder.layers.{n}.attention."),
    ("transformer.encoder.layers.{n}.linear", "encoder.layers.{n}.feed_forward.linear"),
    ("transformer.encoder.layers.{n}.norm1.", "encoder.layers.{n}.attention_residual.norm."),
    ("transformer.encoder.layers.{n}.norm2.", "encoder.layers.{n}.feed_forward_residual.norm."),
    ("transformer.encoder.norm.", "encoder.norm."),
)
DECODER: Rows = (
    ("transformer.decoder.layers.{n}.self_attn.", "decoder.layers.{n}.self_attention."),
    ("transformer.decoder.layers.{n}.linear", "decoder.layers.{n}.feed_forward.linear"),
    ("transformer.decoder.layers.{n}.norm1.", "decoder.layers.{n}.self_attention_residual.norm."),
    ("transformer.decoder.layers.{n}.norm2.", "decoder.layers.{n}.cross_attention_residual.norm."),
    ("transformer.decoder.layers.{n}.norm3.", "decoder.layers.{n}.feed_forward_residual.norm."),
    ("transformer.decoder.norm.", "decoder.norm."),
)
SINGLE_HEADS: Rows = (
    ("class_embed.", "class_head."),
    ("bbox_embed.", "box_head."),
    ("query_embed.", "queries."),
    ("input_proj.", "project."),
)


# A ResNet in a Hugging Face file has torchvision's names (via timm) or those of transformers' own ResNet.
HF_TIMM: Rows = (("model.backbone.conv_encoder.model.", "backbone.body."),)
HF_RESNET: Rows = below(
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
# `attention.q_proj`, `k_proj` and `v_proj` become the rows of our `attention.in_proj`, in this order.
HF_ENCODER: Rows = below(
    "model.encoder.layers.{n}.",
    "encoder.layers.{n}.",
    (
        ("self_attn.", "attention."),
        ("self_attn_layer_norm.", "attention_residual.norm."),
        ("fc", "feed_forward.linear"),
        ("final_layer_norm.", "feed_forward_residual.norm."),
    ),
)
HF_DECODER: Rows = (
    *below(
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
HF_SINGLE_HEADS: Rows = (
    ("class_labels_classifier.", "class_head."),
    ("bbox_predictor.", "box_head."),
    ("model.query_position_embeddings.", "queries."),
    ("model.input_projection.", "project."),
)


def our_name(name: str, rows: Rows, own: Collection[str]) -> str:
    """Our name of a parameter. A name that no row matches is returned unchanged.

    Args:
        name: the name in the other layout.
        rows: a table of the model's family.
        own: the names of the model's parameters and buffers.
    """
    candidates = [pattern.sub(ours, name, count=1) for pattern, ours in _compiled(rows) if pattern.match(name)]
    return next((candidate for candidate in candidates if candidate in own), candidates[0] if candidates else name)


def their_names(own: Collection[str], rows: Rows, num_heads: int = 1) -> dict[str, str]:
    """Map every name of the other layout to our name. A shared head has several names there.

    Args:
        own: the names of the model's parameters and buffers.
        rows: a table of the model's family.
        num_heads: how many numbers to insert in rows with `{n}` on their side only.
    """
    return {
        theirs: name
        for name in own
        for theirs in _candidates(name, rows, num_heads)
        if our_name(theirs, rows, own) == name
    }


def _candidates(name: str, rows: Rows, num_heads: int) -> Iterator[str]:
    """The possible names of our `name` in the other layout, from the rows with the longest matching prefix."""
    matches = [(match, theirs) for pattern, theirs in _inverted(rows) if (match := pattern.match(name))]
    longest = max((match.end() for match, _ in matches), default=0)
    for match, theirs in matches:
        if match.end() == longest:
            numbers = match.groups() or (range(num_heads) if "{n}" in theirs else ("",))
            yield from (theirs.replace("{n}", str(number)) + name[longest:] for number in numbers)


def pack_projections(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Join the separate query, key and value projections of each attention into one tensor, as rows."""
    joined = dict(state)
    for name in state:
        names = [name.replace(".q_proj.", f".{part}_proj.") for part in "qkv"]
        if ".q_proj." in name and all(part in joined for part in names):
            joined[name.replace(".q_proj.", ".in_proj_")] = torch.cat([joined.pop(part) for part in names])
    return joined


def unpack_projections(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `pack_projections`."""
    separate: dict[str, Tensor] = {}
    for name, value in state.items():
        if ".in_proj_" in name:
            separate |= {
                name.replace(".in_proj_", f".{part}_proj."): rows
                for part, rows in zip("qkv", value.chunk(3), strict=True)
            }
        else:
            separate[name] = value
    return separate


@lru_cache
def _compiled(rows: Rows) -> tuple[tuple[re.Pattern[str], str], ...]:
    return tuple(
        (re.compile("^" + re.escape(theirs).replace(r"\{n\}", r"(\d+)")), ours.replace("{n}", r"\1"))
        for theirs, ours in rows
    )


@lru_cache
def _inverted(rows: Rows) -> tuple[tuple[re.Pattern[str], str], ...]:
    return tuple((re.compile("^" + re.escape(ours).replace(r"\{n\}", r"(\d+)")), theirs) for theirs, ours in rows)
