"""Refuses outputs that are not finite, which would otherwise become images in which nothing is found."""

from __future__ import annotations

import torch
from torch import Tensor

from opendetr.structures import NonFiniteError


def require_finite(what: str, *values: Tensor) -> None:
    """Raise NonFiniteError when one of these numbers is NaN or infinite.

    The least and the greatest number tell. One pass finds both, and a GPU is waited for once.

    Args:
        what: a single one of the numbers in words, for the message.
        values: of a batch, any shapes.
    """
    extremes = [extreme for each in values if each.numel() for extreme in each.detach().aminmax()]
    if extremes and not torch.stack([extreme.float() for extreme in extremes]).isfinite().all():
        raise NonFiniteError(
            f"{what} is not finite: the activations of the model overflow, so it cannot predict; use the weights of an "
            "earlier checkpoint, or train again with a lower learning rate"
        )
