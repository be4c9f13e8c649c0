"""Sessions run a model on a stream of images, one batch after another.

The session of an image detector has no state. The session of a tracker keeps its state from one batch to the next.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from opendetr.models.detector import Detector
from opendetr.models.up_detr import UPDETR
from opendetr.structures import ImageBatch, Output


class Session(Protocol):
    """Runs a model on a stream of images."""

    def step(self, images: ImageBatch, prompt: Any = None) -> Output:
        """Return the output for the next images of the stream.

        Args:
            images: the next images, on the model's device.
            prompt: an input besides the images, such as captions or patches. None for models that take no prompt.
        """
        ...

    def reset(self) -> None:
        """Discard the state of earlier images. The next batch starts a new stream."""
        ...


class ImageSession:
    """The session of a model without state.

    Args:
        model: the model, in evaluation mode.
    """

    def __init__(self, model: Detector) -> None:
        self._model = model

    @torch.inference_mode()
    def step(self, images: ImageBatch, prompt: Any = None) -> Output:
        """Return the output for a batch of images. `prompt` must be None."""
        assert prompt is None
        return self._model(images)

    def reset(self) -> None:
        """Do nothing: there is no state."""


class ControlledPatches(NamedTuple):
    """The prompt of an evaluation: patches of the images, and as a control those of other images.

    Attributes:
        patches: (B, M, 3, h, w), normalised.
        control: likewise.
    """

    patches: Tensor
    control: Tensor


class PatchSession:
    """The session of a model that locates patches. It keeps the features of patches, but no state of the images.

    Args:
        model: the model, in evaluation mode.
    """

    def __init__(self, model: UPDETR) -> None:
        self._model = model
        self._encoded: tuple[Tensor, Tensor] | None = None

    @torch.inference_mode()
    def step(self, images: ImageBatch, prompt: Any = None) -> Output:
        """Return the output for a batch of B images.

        Args:
            images: the images.
            prompt: their patches (B, M, 3, h, w), normalised; or patches (M, 3, h, w) for all images, which are encoded
                once, also if later steps get the same tensor. For `ControlledPatches` the output is a
                `ControlledOutput`.
        """
        if isinstance(prompt, ControlledPatches):
            return self._model.controlled(images, prompt.patches, prompt.control)
        if isinstance(prompt, Tensor) and prompt.ndim == 4:
            features = self._features(prompt).expand(len(images), -1, -1)
            return self._model.locate(features, *self._model.encode_images(images))
        return self._model(images, prompt)

    def _features(self, patches: Tensor) -> Tensor:
        """Patches (M, 3, h, w) -> their features (1, M, F)."""
        if self._encoded is None or self._encoded[0] is not patches:
            self._encoded = (patches, self._model.encode_patches(patches[None]))
        return self._encoded[1]

    def reset(self) -> None:
        """Do nothing: there is no state of images."""
