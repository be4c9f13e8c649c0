"""The inputs of the models of the catalogue: images, and what some models need besides them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from opendetr.models import Detector
from opendetr.structures import Batch, ImageBatch, Output, PatchBatch, Target

PATCH_SIZE = 32


def further_inputs(model: Detector, num_images: int) -> tuple[Any, ...]:
    """The positional arguments of a model after the images; the same for every image of a batch."""
    if model.max_patches:
        generator = torch.Generator().manual_seed(2)
        patches = torch.randn(1, model.max_patches, 3, PATCH_SIZE, PATCH_SIZE, generator=generator)
        return (patches.expand(num_images, -1, -1, -1, -1),)
    return ()


def run_model(model: Detector, images: ImageBatch) -> Output:
    """The output of a model for images and its further inputs."""
    return model(images, *further_inputs(model, len(images)))


def batch_for(model: Detector, images: ImageBatch, targets: Sequence[Target]) -> Batch:
    """A training batch of a model. An image of a model with patches has at most as many objects as patches."""
    inputs = further_inputs(model, len(images))
    if not inputs:
        return Batch(images, tuple(targets))
    (patches,) = inputs
    count = patches.shape[1]
    kept = tuple(
        replace(target, labels=target.labels[:count], boxes=target.boxes[:count], masks=None) for target in targets
    )
    return PatchBatch(images, kept, patches=patches, sample_seeds=tuple(range(len(images))))
