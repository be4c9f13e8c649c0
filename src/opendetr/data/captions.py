"""Batches of images with captions, the input of models that detect what a caption names.

Shape letters: B batch, n objects, T tokens.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from opendetr.data.answers import Questions, encode_answer
from opendetr.data.collate import collate_samples
from opendetr.data.config import SINGLE_IMAGE_AUGMENTS, AugmentationConfig, DataConfig
from opendetr.data.formats.captions import CAPTION, IS_FINAL, SPANS
from opendetr.data.records import DataError
from opendetr.data.spans import Span, mirrored
from opendetr.data.transforms import Flip, LabelledImage, as_column
from opendetr.structures import CaptionBatch, Sample, Tokens

if TYPE_CHECKING:
    from pathlib import Path

    from opendetr.data.records import DetectionData
    from opendetr.data.transforms import EvaluationTransform, TrainingTransform

_REFERENCE_MAX_SIZE = 1333

CAUTIOUS = AugmentationConfig(flip=False, keep_objects=True, crop_sides=(384, _REFERENCE_MAX_SIZE))
"""MDETR's augmentation, which keeps captions true: no flips, and crops that keep all objects."""


@dataclass(frozen=True, kw_only=True)
class CaptionDataConfig(DataConfig):
    """How a dataset with captions becomes batches. A subclass names the tokenizer.

    Attributes:
        augmentation: by default MDETR's. With `flip`, flipped captions have "left" and "right" exchanged.
        questions: the kind of questions whose answers become targets; "none" ignores answers.
        needs_final: whether all objects must say if the caption as a whole refers to them.
    """

    augmentation: AugmentationConfig = field(default_factory=lambda: CAUTIOUS)
    questions: Questions = "none"
    needs_final: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.augment not in SINGLE_IMAGE_AUGMENTS:
            raise ValueError(
                f"data.augment: {self.augment!r} makes captions wrong; give {' or '.join(SINGLE_IMAGE_AUGMENTS)}"
            )
        if self.augmentation.flip_vertical:
            raise ValueError("data.augmentation.flip_vertical: makes captions wrong; set it to false")

    def open_splits(self, folder: Path) -> dict[str, DetectionData]:
        """The splits of a dataset; see `DataConfig.open_splits`.

        Raises DataError also if a split has no captions, an answer that the model cannot give, or objects that lack
        "isfinal" if the model predicts it.
        """
        splits = super().open_splits(folder)
        for role in ("train", "val"):
            require_captions(splits[role])
            for image in splits[role].images:
                encode_answer(self.questions, image.extras)
                if self.needs_final and any(IS_FINAL not in obj.extras for obj in image.objects):
                    raise DataError(f"{image.path}: its objects have no '{IS_FINAL}', which the model predicts; set "
                                    "model.predict_final to false, or add it to the annotations")  # fmt: skip
        return splits

    @abstractmethod
    def tokenize(self, captions: Sequence[str]) -> Tokens:
        """The tokens of B captions, as the model takes them."""

    def training_transform(self, data: DetectionData | None = None) -> TrainingTransform:
        """The transform from images to training samples with captions."""
        from opendetr.data.augmentation import training_transform

        return replace(training_transform(self), make_sample=MakeSample(self.questions), mirror=MirrorCaption())

    def evaluation_transform(self) -> EvaluationTransform:
        """The transform from images to evaluation samples with captions, and to the input of the model."""
        from opendetr.data.transforms import evaluation_transform

        return replace(evaluation_transform(self), make_sample=MakeSample(self.questions))

    def collate(self, samples: Sequence[Sample], shape: tuple[int, int], device: torch.device) -> CaptionBatch:
        """Make a batch of samples with captions. Targets get their token maps; see `data.collate.Collate`."""
        plain = collate_samples(samples, shape, device)
        captions = tuple(sample.extras[CAPTION] for sample in samples)
        tokens = self.tokenize(captions)
        targets = tuple(
            replace(target, token_map=tokens.map_of(index, target.spans or ()))
            for index, target in enumerate(plain.targets)
        )
        return CaptionBatch(
            plain.images, targets, plain.names, captions=captions, tokens=tokens.to(device), seed=plain.seed
        )


def require_captions(data: DetectionData) -> None:
    """Raise DataError if no image of a split has a caption."""
    if not any(CAPTION in image.extras for image in data.images):
        raise DataError(f"{data.folder}: the split '{data.split}' has no captions; this model needs them")


@dataclass(frozen=True)
class MakeSample:
    """Makes the sample of a captioned image: the spans and the answer of its annotations become those of the target.

    Attributes:
        questions: the kind of questions; see `CaptionDataConfig`.
    """

    questions: Questions = "none"

    def __call__(self, image: LabelledImage) -> Sample:
        """The sample. Raises DataError for an image without a caption, and for an unknown answer."""
        if CAPTION not in image.per_image:
            raise DataError(f"{image.name}: has no caption; this model needs images with captions")
        sample = image.sample()
        finals = image.per_object.get(IS_FINAL)
        target = replace(
            sample.target,
            spans=_spans_of(image),
            is_final=None if finals is None else torch.from_numpy(np.asarray(finals, dtype=bool)),
            answers=encode_answer(self.questions, image.per_image),
        )
        return replace(sample, target=target)


@dataclass(frozen=True)
class MirrorCaption(Flip):
    """Flips an image horizontally and exchanges "left" and "right" in its caption."""

    def apply(self, image: LabelledImage) -> LabelledImage:
        """The flipped image."""
        flipped = super().apply(image)
        if CAPTION not in image.per_image:
            return flipped
        caption, spans = mirrored(image.per_image[CAPTION], _spans_of(image))
        per_object = dict(flipped.per_object)
        if SPANS in per_object:
            per_object[SPANS] = as_column(spans)
        return replace(flipped, per_image={**image.per_image, CAPTION: caption}, per_object=per_object)


def _spans_of(image: LabelledImage) -> tuple[tuple[Span, ...], ...]:
    """The spans of each object."""
    values = image.per_object.get(SPANS, [()] * len(image.labels))
    return tuple(tuple((int(begin), int(end)) for begin, end in of_object) for of_object in values)
