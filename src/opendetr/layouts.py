"""The names that other implementations give to the parameters of each family, as tables.

A row pairs the start of a name of theirs with the start of ours; `{n}` is a number, the same on both sides. The first
row that fits and leads to a parameter of the model counts, so that one table serves models that share a head between
layers and models that do not.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from functools import lru_cache

Rows = tuple[tuple[str, str], ...]

_BACKBONE: Rows = (("backbone.0.body.", "backbone.body."),)
_ENCODER: Rows = (
    ("transformer.encoder.layers.{n}.self_attn.", "encoder.layers.{n}.attention."),
    ("transformer.encoder.layers.{n}.linear", "encoder.layers.{n}.feed_forward.linear"),
    ("transformer.encoder.layers.{n}.norm1.", "encoder.layers.{n}.attention_residual.norm."),
    ("transformer.encoder.layers.{n}.norm2.", "encoder.layers.{n}.feed_forward_residual.norm."),
    ("transformer.encoder.norm.", "encoder.norm."),
)
_SINGLE_HEADS: Rows = (
    ("class_embed.", "class_head."),
    ("bbox_embed.", "box_head."),
    ("query_embed.", "queries."),
    ("input_proj.", "project."),
)

OFFICIAL: Mapping[str, Rows] = {
    "detr": (
        *_BACKBONE,
        ("backbone.1.", "position."),
        *_ENCODER,
        ("transformer.decoder.layers.{n}.self_attn.", "decoder.layers.{n}.self_attention."),
        ("transformer.decoder.layers.{n}.multihead_attn.", "decoder.layers.{n}.cross_attention."),
        ("transformer.decoder.layers.{n}.linear", "decoder.layers.{n}.feed_forward.linear"),
        ("transformer.decoder.layers.{n}.norm1.", "decoder.layers.{n}.self_attention_residual.norm."),
        ("transformer.decoder.layers.{n}.norm2.", "decoder.layers.{n}.cross_attention_residual.norm."),
        ("transformer.decoder.layers.{n}.norm3.", "decoder.layers.{n}.feed_forward_residual.norm."),
        ("transformer.decoder.norm.", "decoder.norm."),
        *_SINGLE_HEADS,
    ),
}


def is_official(names: Collection[str]) -> bool:
    """Whether names of a state dict are those of the original implementations."""
    return any(name.startswith(("transformer.", "backbone.0.")) for name in names)


def our_name(name: str, rows: Rows, own: Collection[str]) -> str:
    """Our name of a parameter that `rows` know; other names come back as they are.

    Args:
        name: theirs.
        rows: a table of this module.
        own: the names of the model's parameters and buffers.
    """
    candidates = [pattern.sub(ours, name, count=1) for pattern, ours in _compiled(rows) if pattern.match(name)]
    return next((candidate for candidate in candidates if candidate in own), candidates[0] if candidates else name)


@lru_cache
def _compiled(rows: Rows) -> tuple[tuple[re.Pattern[str], str], ...]:
    return tuple(
        (re.compile("^" + re.escape(theirs).replace(r"\{n\}", r"(\d+)")), ours.replace("{n}", r"\1"))
        for theirs, ours in rows
    )
