"""The weights of Deformable DETR: names in other layouts, config.json, published files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from opendetr.models import DeformableDETR, Detector
from opendetr.weights.detr import dc5_suffix
from opendetr.weights.family import HuggingFaceFormat, WeightFamily
from opendetr.weights.name_maps import BACKBONE, ENCODER, HF_DECODER, HF_ENCODER, Rows, below
from opendetr.weights.published import PublishedWeights

DEFORMABLE_PARTS: Rows = (
    ("level_embed", "level_embedding"),
    ("reference_points.", "reference_points."),
    ("enc_output.", "proposal_content."),
    ("enc_output_norm.", "proposal_content_norm."),
    ("pos_trans.", "proposal_query."),
    ("pos_trans_norm.", "proposal_query_norm."),
)
# With refinement: one head per layer. With two stages: one more for proposals. Else one head under several names.
DEFORMABLE_HEADS: Rows = (
    ("class_embed.{n}.", "class_heads.{n}."),
    ("class_embed.{n}.", "proposal_class_head."),
    ("class_embed.{n}.", "class_heads.0."),
    ("bbox_embed.{n}.", "box_heads.{n}."),
    ("bbox_embed.{n}.", "proposal_box_head."),
    ("bbox_embed.{n}.", "box_heads.0."),
)
DECODER_LAYER: Rows = (
    ("self_attn.", "self_attention."),
    ("cross_attn.", "cross_attention."),
    ("linear", "feed_forward.linear"),
    ("norm1.", "cross_attention_residual.norm."),
    ("norm2.", "self_attention_residual.norm."),
    ("norm3.", "feed_forward_residual.norm."),
)


OFFICIAL: Rows = (
    *BACKBONE,
    *ENCODER,
    *below("transformer.decoder.layers.{n}.", "decoder.layers.{n}.", DECODER_LAYER),
    *below("transformer.", "", DEFORMABLE_PARTS),
    *DEFORMABLE_HEADS,
    *below("transformer.decoder.", "", DEFORMABLE_HEADS),
    ("query_embed.", "queries."),
    ("input_proj.{n}.", "projections.{n}."),
)
HUGGING_FACE: Rows = (
    *HF_ENCODER,
    *HF_DECODER,
    *below("model.", "", DEFORMABLE_PARTS),
    *DEFORMABLE_HEADS,
    *below("model.decoder.", "", DEFORMABLE_HEADS),
    ("model.query_position_embeddings.", "queries."),
    ("model.input_proj.{n}.", "projections.{n}."),
)


def _num_heads(detector: Detector) -> int:
    """One head per decoder layer, and one more for proposals."""
    assert isinstance(detector, DeformableDETR)
    return len(detector.decoder.layers) + detector.has_proposals


def _absent(detector: Detector) -> tuple[str, ...]:
    """Only a decoder that refines boxes, or has proposals, contains its heads under a second name."""
    assert isinstance(detector, DeformableDETR)
    absent = () if detector.has_proposals else ("decoder.class_embed.",)
    return absent if detector.refine else (*absent, "decoder.bbox_embed.")


def _preset_name(model: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    if config.get("two_stage"):
        return "deformable-detr-r50-two-stage"
    if model["transformer"].get("num_levels") == 1:
        return f"deformable-detr-r50-single-scale{dc5_suffix(model)}"
    return "deformable-detr-r50-refine" if model.get("refine") else "deformable-detr-r50"


def _read_further(config: Mapping[str, Any], settings: dict[str, Any]) -> None:
    if config.get("two_stage"):
        settings["model"]["num_queries"] = config.get("two_stage_num_proposals", 300)


def _further_config(model: Mapping[str, Any], detector: Detector) -> dict[str, Any]:
    # The file contains the heads of all layers, which differ with refinement, so they are not tied.
    return {
        "two_stage": detector.has_proposals,
        "two_stage_num_proposals": model["num_queries"],
        "tie_word_embeddings": False,
    }


def _unsupported_reason(settings: Mapping[str, Any]) -> str | None:
    narrow = settings["model"]["transformer"]["width"] < 64
    return "transformers' group norm has 32 groups, so the width must be 64 or more" if narrow else None


def _published(name: str, identity: str, ap: float) -> PublishedWeights:
    place = f"https://drive.google.com/file/d/{identity}/view"
    return PublishedWeights(file=f"{name}.pth", place=place, licence="Apache-2.0", ap=ap)


FAMILY = WeightFamily(
    name="deformable-detr",
    official=OFFICIAL,
    num_heads=_num_heads,
    absent=_absent,
    huggingface=HuggingFaceFormat(
        model_type="deformable_detr",
        class_prefix="DeformableDetr",
        rows=HUGGING_FACE,
        settings=(
            ("transformer.num_levels", ("num_feature_levels",)),
            ("transformer.num_points", ("encoder_n_points", "decoder_n_points")),
            ("refine", ("with_box_refine",)),
        ),
        numbered_heads=("class_heads.", "box_heads."),
        preset_name=_preset_name,
        unsupported_reason=_unsupported_reason,
        read_further=_read_further,
        further_config=_further_config,
        num_backbone_levels=lambda model: min(model["transformer"]["num_levels"], 3),
        has_position_type=False,
    ),
    published={
        name: _published(name, identity, ap)
        for name, identity, ap in (
            ("deformable-detr-r50-single-scale", "1WEjQ9_FgfI5sw5OZZ4ix-OKk-IJ_-SDU", 0.394),
            ("deformable-detr-r50-single-scale-dc5", "1m_TgMjzH7D44fbA-c_jiBZ-xf-odxGdk", 0.415),
            ("deformable-detr-r50", "1nDWZWHuRwtwGden77NLM9JoWe-YisJnA", 0.445),
            ("deformable-detr-r50-refine", "1JYKyRYzUH7uo9eVfDaVCiaIGZb5YTCuI", 0.462),
            ("deformable-detr-r50-two-stage", "15I03A7hNTpwuLNdfuEmW9_taZMNVssEp", 0.469),
        )
    },
)
