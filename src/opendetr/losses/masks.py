"""Mask losses: focal and dice loss of the matched queries of the last layer (DETR, section 4.2).

Shape letters: m matches, n of them in one image, h w cells of the predicted masks, H W pixels of the padded batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from opendetr.losses.class_terms import sigmoid_focal
from opendetr.losses.term import Normaliser
from opendetr.nn import full_precision
from opendetr.structures import Matches, Output, Target


@dataclass(frozen=True, kw_only=True)
class MaskCriterionConfig:
    """Weights of the mask losses.

    Attributes:
        mask_weight: weight of the focal loss.
        dice_weight: weight of the dice loss.
    """

    mask_weight: float = 1.0
    dice_weight: float = 1.0


class MaskLoss:
    """The losses between predicted and ground-truth masks in the last layer, a loss term.

    Args:
        config: weights.
    """

    def __init__(self, config: MaskCriterionConfig) -> None:
        self.config = config

    @property
    def weights(self) -> Mapping[str, float]:
        """The weights of "mask" and "dice"."""
        return {"mask": self.config.mask_weight, "dice": self.config.dice_weight}

    def __call__(
        self, output: Output, targets: Sequence[Target], matches: Matches, normaliser: Normaliser
    ) -> dict[str, Tensor]:
        """ "mask" and "dice", (1,) each.

        Masks are computed only for matched queries. They are compared at the size of the padded batch, including the
        padding, as published.

        Raises:
            ValueError: a target has no masks.
        """
        assert output.masks is not None
        final = matches.of_layer(len(output.layers) - 1)
        masks = output.masks(final.image, final.query)
        counts = final.image.bincount(minlength=len(targets)).tolist()
        sums = masks[:0].sum().expand(2)  # zeros that give the head a gradient even without matches
        per_image = zip(masks.split(counts), final.target.split(counts), targets, strict=True)
        for logits, chosen, target in per_image:
            if len(chosen):
                # The full-size maps of an image are recomputed in the backward pass to save memory.
                of_image = checkpoint(
                    _sums,
                    logits,
                    _target_masks(target)[chosen],
                    output.masks.size,
                    use_reentrant=False,
                    preserve_rng_state=False,
                )
                sums = sums + of_image
        focal, overlap = (sums / normaliser.objects).unbind()
        return {"mask": focal[None], "dice": overlap[None]}


def _target_masks(target: Target) -> Tensor:
    if target.masks is None:
        raise ValueError(
            f"image {target.image_id}: its objects have no masks; set data.masks to auto, or train a model "
            "without a mask head"
        )
    return target.masks


def _sums(logits: Tensor, truth: Tensor, size: tuple[int, int]) -> Tensor:
    """Logits (n, h, w) and masks (n, H', W') bool of the unpadded image -> (2,): focal and dice loss, summed."""
    with torch.autocast(logits.device.type, enabled=False):
        logits = full_precision(logits)[:, None]
        logits = F.interpolate(logits, size=size, mode="bilinear", align_corners=False).flatten(1)
        height, width = truth.shape[-2:]
        padded = F.pad(truth, (0, size[1] - width, 0, size[0] - height)).flatten(1).to(logits)
        return torch.stack((sigmoid_focal(logits, padded).mean(1).sum(), dice(logits, padded).sum()))


def dice(logits: Tensor, targets: Tensor) -> Tensor:
    """Dice loss of soft masks, smoothed by 1 (Milletari et al., V-Net, 2016, section 3).

    Args:
        logits: (..., N).
        targets: the same shape, 0 or 1.

    Returns:
        (...), in 0..1.
    """
    probability = logits.sigmoid()
    return 1 - (2 * (probability * targets).sum(-1) + 1) / (probability.sum(-1) + targets.sum(-1) + 1)
