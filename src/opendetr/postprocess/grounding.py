"""Convert the output of a model that takes captions to detections, each with the phrase that names it.

Shape letters: B batch, Q queries, C class logits, T tokens, n phrases.
"""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import shorten

import torch
from torch import Tensor
from torch.nn import functional as F

from opendetr.boxes import cxcywh_to_xyxy
from opendetr.postprocess.finishing import ImageMasks
from opendetr.postprocess.finite import require_finite
from opendetr.structures import GroundingOutput, Predictions

PHRASE_PROBABILITY = 0.1
"""A token with a higher probability belongs to the phrase of a query, as in the authors' notebook."""
_LONGEST_CAPTION = 80  # characters of a caption that stands for a phrase


@torch.no_grad()
def object_scores(predictions: Predictions) -> Tensor:
    """The probability of each query that it is an object, whatever names it: (B, Q)."""
    return 1 - predictions.logits.float().softmax(-1)[..., -1]


@torch.no_grad()
def referred_scores(output: GroundingOutput) -> Tensor:
    """The probability of each query that the caption as a whole refers to its object: (B, Q).

    Without a head for it, it is that of an object.
    """
    scores = object_scores(output.final)
    return scores if output.is_final is None else scores * output.is_final[-1].float().sigmoid()


@torch.no_grad()
def phrase_scores(logits: Tensor, token_map: Tensor) -> Tensor:
    """How probable it is that each query of an image is what a phrase names: the most probable of its tokens.

    Args:
        logits: (Q, C) of one image.
        token_map: (n, T) bool, the tokens of n phrases.

    Returns:
        (n, Q).
    """
    probabilities = logits.float().softmax(-1)
    kept = token_map[:, : logits.shape[1] - 1]
    return (probabilities[None, :, : kept.shape[1]] * kept[:, None].to(probabilities)).amax(-1)


@torch.no_grad()
def boxes_in_pixels(predictions: Predictions, sizes: Tensor) -> Tensor:
    """The boxes (B, Q, 4), xyxy in pixels of the original images, whose heights and widths are `sizes` (B, 2).

    Raises NonFiniteError if a logit or a box is not finite.
    """
    require_finite("a class logit or box", predictions.logits, predictions.boxes)
    height, width = sizes.to(predictions.boxes.device, torch.float32).unbind(1)
    return cxcywh_to_xyxy(predictions.boxes.float()) * torch.stack((width, height, width, height), 1)[:, None]


@torch.no_grad()
def published_masks(masks: ImageMasks) -> Tensor:
    """The masks of the requested queries by the rule of MDETR's code, (n, H, W) bool; `ImageMasks.instances` has ours.

    The logits are resized bilinearly to the padded batch, cropped to the image, and resized bilinearly once more.
    """
    frame = masks.frame
    kept = torch.empty(len(masks.query_logits), *frame.original, dtype=torch.bool)
    for chunk in frame.chunks(len(kept)):
        logits = F.interpolate(masks.query_logits[chunk][:, None].float(), frame.padded, mode="bilinear")
        height, width = frame.processed
        kept[chunk] = F.interpolate(logits[..., :height, :width], frame.original, mode="bilinear")[:, 0] > 0
    return kept


@torch.no_grad()
def phrases(output: GroundingOutput, captions: Sequence[str], queries: Sequence[Tensor]) -> list[list[str]]:
    """The phrase of each of some queries: the characters of the tokens that the query names, in their order.

    Neighbouring tokens, and tokens that only a space separates, form one part of a phrase; other parts are joined by
    "...". A query that names no token has the caption as its phrase, shortened.

    Args:
        output: the model's output for B images.
        captions: B captions.
        queries: for each image, the indices of queries.
    """
    spans, padding = output.tokens.spans.cpu(), output.tokens.padding.cpu()
    found = []
    for index, (caption, chosen) in enumerate(zip(captions, queries, strict=True)):
        probabilities = output.final.logits[index].float().softmax(-1)[chosen.to(output.final.logits.device)].cpu()
        num_tokens = min(int((~padding[index]).sum()), probabilities.shape[1] - 1)
        named = probabilities[:, :num_tokens] > PHRASE_PROBABILITY
        own = spans[index, :num_tokens].tolist()
        whole = shorten(caption, _LONGEST_CAPTION)
        rows = ([own[token] for token in row.nonzero()[:, 0].tolist()] for row in named)
        found.append([_phrase(caption, spans_of_row) or whole for spans_of_row in rows])
    return found


def _phrase(caption: str, spans: Sequence[Sequence[int]]) -> str:
    parts: list[list[int]] = []
    for begin, end in spans:
        if begin == end:
            continue
        if parts and not caption[parts[-1][1] : begin].strip():
            parts[-1][1] = end
        else:
            parts.append([begin, end])
    return " ... ".join(caption[begin:end] for begin, end in parts)
