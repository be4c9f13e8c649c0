"""Refuses outputs that are not finite. Otherwise they would become empty predictions."""

from __future__ import annotations

import torch
from torch import Tensor

from opendetr.structures import NonFiniteError


def require_finite(what: str, *values: Tensor) -> None:
    """Raise NonFiniteError if a value is NaN or infinite.

    The minimum and the maximum are finite only if all values are. One pass computes both, with one synchronisation.

    Args:
        what: the name of one value, for the message.
        values: tensors of any shape.
    """
    extremes = [extreme for tensor in values if tensor.numel() for extreme in tensor.detach().aminmax()]
    if extremes and not torch.stack([extreme.float() for extreme in extremes]).isfinite().all():
        raise NonFiniteError(
            f"{what} is not finite: the activations of the model overflow, so it cannot predict; use the weights of an "
            "earlier checkpoint, or train again with a lower learning rate"
        )
