"""Inference may have state: a session takes images one batch after another and gives the output of each.

An image detector has no state, so its session forgets what was before; that of a tracker does not.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch

from opendetr.models import Detector
from opendetr.structures import ImageBatch, Output


class Session(Protocol):
    """Runs a model on a stream of images."""

    def step(self, images: ImageBatch, prompt: Any = None) -> Output:
        """The output for the next images of the stream.

        Args:
            images: on the model's device.
            prompt: what the model is asked for besides, such as captions or patches; None where it takes none.
        """
        ...

    def reset(self) -> None:
        """Begin a new stream: whatever is kept of earlier images is dropped."""
        ...


class ImageSession:
    """The session of a model without state.

    Args:
        model: in evaluation mode.
    """

    def __init__(self, model: Detector) -> None:
        self._model = model

    @torch.inference_mode()
    def step(self, images: ImageBatch, prompt: Any = None) -> Output:
        """The output for some images; a detector takes no prompt."""
        assert prompt is None
        return self._model(images)

    def reset(self) -> None:
        """There is nothing to drop."""
