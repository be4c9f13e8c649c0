"""The inputs of the models of the catalogue: images, and what some models need besides them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from opendetr.models import MOTR, Detector, TrackQueries, TransTrack, TransTrackState
from opendetr.structures import Batch, CaptionBatch, ImageBatch, Output, PatchBatch, Target

PATCH_SIZE = 32
CAPTIONS = ("a red disc left of the large star", "two gears", "the heart")


def further_inputs(model: Detector, num_images: int, start: int = 0) -> tuple[Any, ...]:
    """The positional arguments of a model after the images: patches, the same for every image, or captions.

    `start` is the number of the first image, which determines its caption.
    """
    if model.max_patches:
        return (_patches(model, num_images),)
    return (CAPTIONS[start : start + num_images],) if model.takes_text else ()


def run_model(model: Detector, images: ImageBatch, *, continued: bool = False) -> Output:
    """The output of a model for images and its further inputs.

    If `continued`, a tracker gets a state of the frame before, too. By default the images are first frames.
    """
    state = _state_for(model, images) if continued else None
    if state is not None:
        return model(images, state)
    return model(images, *further_inputs(model, len(images)))


def batch_for(model: Detector, images: ImageBatch, targets: Sequence[Target], names: tuple[str, ...] = ()) -> Batch:
    """A training batch of a model, with all that the model and its losses need."""
    if model.max_patches:
        return _patch_batch(_patches(model, len(images)), images, targets, names)
    if model.takes_text:
        return _caption_batch(model, images, targets, names)
    return Batch(images, tuple(targets), names)


def _patches(model: Detector, num_images: int) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    patches = torch.randn(1, model.max_patches, 3, PATCH_SIZE, PATCH_SIZE, generator=generator)
    return patches.expand(num_images, -1, -1, -1, -1)


def _patch_batch(patches: Tensor, images: ImageBatch, targets: Sequence[Target], names: tuple[str, ...]) -> PatchBatch:
    """An image has at most as many objects as patches."""
    count = patches.shape[1]
    kept = tuple(
        replace(target, labels=target.labels[:count], boxes=target.boxes[:count], masks=None) for target in targets
    )
    return PatchBatch(images, kept, names, patches=patches, sample_seeds=tuple(range(len(images))))


def _caption_batch(
    model: Detector, images: ImageBatch, targets: Sequence[Target], names: tuple[str, ...]
) -> CaptionBatch:
    """Captions, random tokens of each object, and answers."""
    captions = CAPTIONS[: len(images)]
    tokens = model.get_submodule(model.detector_part or "").tokenizer(captions)
    generator = torch.Generator().manual_seed(len(targets[0]))
    with_tokens = tuple(
        replace(
            target,
            token_map=torch.rand(len(target), tokens.num_tokens, generator=generator) > 0.5,
            is_final=torch.arange(len(target)) % 2 == 0,
            answers={"type": 1, "attr": 2, "total": 3},
        )
        for target in targets
    )
    return CaptionBatch(images, with_tokens, names, captions=captions, tokens=tokens)


def _state_for(model: Detector, images: ImageBatch) -> TransTrackState | TrackQueries | None:
    """A state of the frame before, of random numbers; None for other models. Calls only the backbone."""
    if not isinstance(model, TransTrack | MOTR):
        return None
    generator = torch.Generator().manual_seed(3)
    count, width = len(images), model.queries.embedding_dim // 2

    def random(*shape: int) -> Tensor:
        return torch.randn(count, *shape, generator=generator)

    if isinstance(model, TransTrack):
        return TransTrackState(
            model.backbone(images)[-3:], random(model.num_queries, width), random(model.num_queries, 4).sigmoid()
        )
    ids = torch.arange(3).repeat(count, 1)
    padding = torch.zeros(count, 3, dtype=torch.bool)
    padding[0, -1] = True
    ids = ids.masked_fill(padding, -1)
    return TrackQueries(random(3, width), random(3, width), random(3, width), random(3, 2).sigmoid(), ids, padding)
