"""The weights of MOTR: the names in the authors' files, and the published file."""

from __future__ import annotations

from dataclasses import replace

from opendetr.weights import deformable
from opendetr.weights.family import NO_FORMAT
from opendetr.weights.name_maps import Rows, below
from opendetr.weights.published import PublishedWeights

INTERACTION: Rows = (
    ("self_attn.", "attention."),
    ("linear1.", "feed_forward.linear1."),
    ("linear2.", "feed_forward.linear2."),
    ("norm1.", "attention_residual.norm."),
    ("norm2.", "feed_forward_residual.norm."),
    ("norm3.", "unused_norm."),
    ("linear_pos1.", "position_update.linear1."),
    ("linear_pos2.", "position_update.linear2."),
    ("norm_pos.", "position_residual.norm."),
    ("linear_feat1.", "content_update.linear1."),
    ("linear_feat2.", "content_update.linear2."),
    ("norm_feat.", "content_residual.norm."),
)
OFFICIAL: Rows = (
    *deformable.OFFICIAL,
    *below(
        "transformer.decoder.layers.{n}.",
        "decoder.layers.{n}.",
        (("update_attn.", "track_attention."), ("norm4.", "track_attention_residual.norm.")),
    ),
    *below("track_embed.", "interaction.", INTERACTION),
)

FAMILY = replace(
    deformable.FAMILY,
    name="motr",
    official=OFFICIAL,
    huggingface=None,
    no_huggingface=NO_FORMAT,
    published={
        "motr-r50": PublishedWeights(
            file="motr_final.pth",
            place="https://drive.google.com/file/d/1K9AbtzTCBNsOD8LYA1k16kf4X0uJi8PC/view",
            licence="MIT",
            figures={"HOTA on MOT17": 0.578, "MOTA on MOT17": 0.734, "IDF1 on MOT17": 0.686},
        )
    },
)
