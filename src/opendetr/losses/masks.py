"""The losses of masks: focal and dice, of the matched queries of the last layer (DETR, section 4.2).

Shape letters: m matches, n of them in one image, h w cells of the predicted masks, H W pixels of the padded batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from opendetr.losses.class_terms import sigmoid_focal
from opendetr.structures import Matches, Target


@dataclass(frozen=True, kw_only=True)
class MaskCriterionConfig:
    """Weights of the losses of masks.

    Attributes:
        mask_weight: of the focal loss.
        dice_weight: of the dice loss.
    """

    mask_weight: float = 1.0
    dice_weight: float = 1.0


class MaskCriterion:
    """Losses of masks against those of the matched objects.

    Args:
        config: weights.
    """

    def __init__(self, config: MaskCriterionConfig) -> None:
        self.config = config

    def losses(
        self, masks: Tensor, matches: Matches, targets: Sequence[Target], num_objects: float, size: tuple[int, int]
    ) -> dict[str, Tensor]:
        """Unweighted losses. Masks are compared at the size of the padded batch, padding included, as published.

        Args:
            masks: (m, h, w) logits of the matched queries.
            matches: of one layer, sorted by image.
            targets: B targets, with masks where they have objects.
            num_objects: divisor, so that a step computed in parts adds up.
            size: height and width of the padded batch, in pixels.

        Returns:
            "mask" and "dice", (1,) each.

        Raises:
            ValueError: objects without masks.
        """
        counts = matches.image.bincount(minlength=len(targets)).tolist()
        sums = masks[:0].sum().expand(2)  # 0, through which the head gets a gradient where nothing was matched
        per_image = zip(masks.split(counts), matches.target.split(counts), targets, strict=True)
        for logits, chosen, target in per_image:
            if len(chosen):
                # The full-size maps of an image are computed again in the backward pass, not kept.
                of_image = checkpoint(
                    _sums, logits, _truth(target)[chosen], size, use_reentrant=False, preserve_rng_state=False
                )
                sums = sums + of_image
        focal, overlap = (sums / num_objects).unbind()
        return {"mask": focal[None], "dice": overlap[None]}

    def total(self, losses: dict[str, Tensor]) -> Tensor:
        """The weighted sum of "mask" and "dice", a scalar."""
        return (self.config.mask_weight * losses["mask"] + self.config.dice_weight * losses["dice"]).sum()


def _truth(target: Target) -> Tensor:
    if target.masks is None:
        raise ValueError(
            f"image {target.image_id}: its objects have no masks to learn from; set data.masks to auto, or train a "
            "model without a mask head"
        )
    return target.masks


def _sums(logits: Tensor, truth: Tensor, size: tuple[int, int]) -> Tensor:
    """Logits (n, h, w) and masks (n, H', W') bool of the unpadded image -> (2,): focal and dice loss, summed."""
    with torch.autocast(logits.device.type, enabled=False):
        logits = F.interpolate(logits.float()[:, None], size=size, mode="bilinear", align_corners=False).flatten(1)
        height, width = truth.shape[-2:]
        padded = F.pad(truth, (0, size[1] - width, 0, size[0] - height)).flatten(1).to(logits)
        return torch.stack((sigmoid_focal(logits, padded).mean(1).sum(), dice(logits, padded).sum()))


def dice(logits: Tensor, truth: Tensor) -> Tensor:
    """One minus the overlap of soft masks, smoothed by 1 (Milletari et al., V-Net, 2016, section 3).

    Args:
        logits: (..., N).
        truth: the same shape, 0 or 1.

    Returns:
        (...), in 0..1.
    """
    probability = logits.sigmoid()
    return 1 - (2 * (probability * truth).sum(-1) + 1) / (probability.sum(-1) + truth.sum(-1) + 1)
