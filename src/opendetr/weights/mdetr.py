"""The weights of MDETR: names in the authors' files, published files."""

from __future__ import annotations

from opendetr.weights.conditional import CONDITIONAL_DECODER
from opendetr.weights.family import WeightFamily
from opendetr.weights.masks import with_masks
from opendetr.weights.name_maps import BACKBONE, ENCODER, SINGLE_HEADS, Rows
from opendetr.weights.published import PublishedWeights

_RECORD = "https://zenodo.org/record/4721981/files"

OFFICIAL: Rows = (
    *BACKBONE,
    *ENCODER,
    ("transformer.decoder.layers.{n}.self_attn.", "decoder.layers.{n}.self_attention."),
    ("transformer.decoder.layers.{n}.cross_attn_image.", "decoder.layers.{n}.cross_attention."),
    ("transformer.decoder.layers.{n}.linear", "decoder.layers.{n}.feed_forward.linear"),
    ("transformer.decoder.layers.{n}.norm1.", "decoder.layers.{n}.self_attention_residual.norm."),
    ("transformer.decoder.layers.{n}.norm3.", "decoder.layers.{n}.cross_attention_residual.norm."),
    ("transformer.decoder.layers.{n}.norm4.", "decoder.layers.{n}.feed_forward_residual.norm."),
    ("transformer.decoder.norm.", "decoder.norm."),
    *CONDITIONAL_DECODER,  # of a model with `conditional`, which the authors' code does not have
    ("transformer.CLS.", "pair_token."),
    ("transformer.text_encoder.", "text.body."),
    ("transformer.text_encoder.", "text."),  # an encoder that is not RoBERTa
    ("transformer.resizer.fc.", "text_project."),
    ("transformer.resizer.layer_norm.", "text_norm."),
    ("contrastive_projection_image.", "pair_image."),
    ("contrastive_projection_text.", "pair_caption."),
    ("contrastive_align_projection_image.", "align_queries."),
    ("contrastive_align_projection_text.", "align_tokens."),
    ("isfinal_embed.", "final_head."),
    ("qa_embed.", "answer_queries."),
    ("answer_head.", "answer_heads.total_head."),
    *(
        (f"answer_{name}_head.", f"answer_heads.{name}_head.")
        for name in ("type", "obj", "rel", "attr", "cat", "global", "binary", "reg")
    ),
    *SINGLE_HEADS,
)


def _published(file: str, megabytes: int | None, figures: dict[str, float]) -> PublishedWeights:
    """A file of the authors' record, which has no hash in its name. No source states the licence of the weights."""
    name = f"{file}_checkpoint.pth"
    return PublishedWeights(
        file=name, place=f"{_RECORD}/{name}", licence="not stated", megabytes=megabytes, figures=figures
    )


FAMILY = WeightFamily(
    name="mdetr",
    official=OFFICIAL,
    stray=(
        "text_encoder.embeddings.position_ids",  # constants that transformers stored in older versions
        # A detector with a mask head is trained without alignment, and starts from one that was trained with it.
        *(f"contrastive_align_projection_{of}.{kind}" for of in ("image", "text") for kind in ("weight", "bias")),
    ),
    published={
        "mdetr-r101": _published("pretrained_resnet101", 3072, {"RefCOCO P@1": 0.721, "Flickr R@1": 0.825}),
        "mdetr-enb3": _published("pretrained_EB3", 2458, {"RefCOCO P@1": 0.702, "Flickr R@1": 0.829}),
        "mdetr-enb5": _published("pretrained_EB5", 2765, {"RefCOCO P@1": 0.734, "Flickr R@1": 0.837}),
        "mdetr-r101-gqa": _published("gqa_resnet101", None, {"GQA test-dev accuracy": 0.6248}),
        "mdetr-r18-clevr": _published("clevr", 426, {"CLEVR accuracy": 0.997}),
    },
)
MASKS = with_masks(
    FAMILY,
    published={"mdetr-r101-phrasecut": _published("phrasecut_resnet101", 1536, {"PhraseCut mean IoU": 0.531})},
)
