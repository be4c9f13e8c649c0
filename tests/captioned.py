"""Inputs of any model of the catalogue: images alone, or with a caption each for a model that takes text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from opendetr.models import Detector
from opendetr.structures import Batch, CaptionBatch, ImageBatch, Output, Target

CAPTIONS = ("a red disc left of the large star", "two gears", "the heart")


def prompts(model: Detector, count: int, start: int = 0) -> tuple[Any, ...]:
    """What the model takes besides `count` images."""
    return (CAPTIONS[start : start + count],) if model.takes_text else ()


def run(model: Detector, images: ImageBatch) -> Output:
    """The output for images."""
    return model(images, *prompts(model, len(images)))


def batch_of(model: Detector, images: ImageBatch, targets: Sequence[Target], names: tuple[str, ...] = ()) -> Batch:
    """A training batch with what else the model and its losses need: captions, the tokens of each object, answers."""
    if not model.takes_text:
        return Batch(images, tuple(targets), names)
    captions = CAPTIONS[: len(images)]
    tokens = model.get_submodule(model.detector_part or "").tokenizer(captions)  # type: ignore[operator]
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
