"""Patches of images, the training data of UP-DETR: cut at random, to be located in the image they were cut from.

Shape letters: B batch, M patches of an image, H W image, h w patch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor
from torchvision.transforms.v2 import functional

from opendetr.boxes import xyxy_to_cxcywh
from opendetr.data.augmentation import training_transform
from opendetr.data.collate import collate_samples
from opendetr.data.config import AugmentationConfig, DataConfig
from opendetr.data.records import unknown_split
from opendetr.data.resizing import normalise, resize, resize_fast
from opendetr.data.transforms import LabelledImage, PredictionTransform, TransformAround, evaluation_transform
from opendetr.structures import PatchBatch, Sample

if TYPE_CHECKING:
    from pathlib import Path

    from opendetr.data.config import Masks
    from opendetr.data.records import DetectionData

MIN_PATCH_SIDE = 8
"""The shortest side of a patch, and the smallest distance of its side from that of the image, in pixels."""
PATCH_LABEL = 1  # as in the published models; label 0 is not used

_IMAGE_SIZE, _MAX_SIZE = 480, 600  # of the published evaluation
_PUBLISHED_SCALES = (320, 336, 352, 368, 400, 416, 432, 448, 464, 480)
_REFERENCE_SIZE = 800  # the lengths of `AugmentationConfig` are for images of this short side


@dataclass(frozen=True, kw_only=True)
class PatchAugmentationConfig:
    """Changes of the colours of a training patch; those of the image it is cut from stay. The defaults are published.

    Attributes:
        jitter: fraction of the patches whose brightness, contrast, saturation and hue change, in a random order.
        brightness: maximum change of the factor from 1.
        contrast: likewise.
        saturation: likewise.
        hue: maximum shift, in turns of the colour circle.
        grey: fraction of the patches without colour.
        blur: fraction of the patches that are blurred.
        blur_radius: minimum and maximum standard deviation of the blur, in pixels of the resized patch.
    """

    jitter: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    grey: float = 0.2
    blur: float = 0.5
    blur_radius: tuple[float, float] = (0.1, 2.0)

    def __post_init__(self) -> None:
        for name in ("jitter", "grey", "blur"):
            self._expect(name, 0 <= getattr(self, name) <= 1, "a fraction from 0 to 1")
        for name in ("brightness", "contrast", "saturation"):
            self._expect(name, 0 <= getattr(self, name) <= 1, "a number from 0 to 1")
        self._expect("hue", 0 <= self.hue <= 0.5, "a number from 0 to 0.5")
        self._expect("blur_radius", 0 <= self.blur_radius[0] <= self.blur_radius[1], "the smaller radius first")

    def _expect(self, name: str, fulfilled: bool, expected: str) -> None:
        if not fulfilled:
            raise ValueError(f"data.patch_augmentation.{name}: expected {expected}, got {getattr(self, name)}")

    def apply(self, pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """(h, w, 3) uint8 RGB -> the changed patch."""
        patch = Image.fromarray(pixels)
        if rng.random() < self.jitter:
            changes = (
                (functional.adjust_brightness, rng.uniform(1 - self.brightness, 1 + self.brightness)),
                (functional.adjust_contrast, rng.uniform(1 - self.contrast, 1 + self.contrast)),
                (functional.adjust_saturation, rng.uniform(1 - self.saturation, 1 + self.saturation)),
                (functional.adjust_hue, rng.uniform(-self.hue, self.hue)),
            )
            for index in rng.permutation(len(changes)):
                change, amount = changes[index]
                patch = change(patch, amount)
        if rng.random() < self.grey:
            patch = patch.convert("L").convert("RGB")
        if rng.random() < self.blur:
            patch = patch.filter(ImageFilter.GaussianBlur(rng.uniform(*self.blur_radius)))
        return np.array(patch)


def _published_augmentation() -> AugmentationConfig:
    """Only the size of an image changes, to one of the published ones if `image_size` is 480."""
    scales = tuple(round(size * _REFERENCE_SIZE / _IMAGE_SIZE) for size in _PUBLISHED_SCALES)
    return AugmentationConfig(flip=False, crop=False, scales=scales)


@dataclass(frozen=True, kw_only=True)
class PatchDataConfig(DataConfig):
    """How images without annotations become training data: patches are cut from them, and are to be located in them.

    The patches are cut from the original image, before it is resized. Their sides and places are uniformly random.
    Images are only resized in training; flips and crops would change what the patches show. The defaults are those of
    UP-DETR.

    Attributes:
        num_patches: M, the number of patches of an image.
        patch_size: height and width that every patch is resized to, in pixels. Its aspect ratio changes.
        patch_augmentation: changes of the colours of the training patches.

    Raises:
        ValueError: a field is out of its range, or changes the images in a way that the patches do not follow.
    """

    image_size: int = _IMAGE_SIZE
    max_size: int = _MAX_SIZE
    augmentation: AugmentationConfig = field(default_factory=_published_augmentation)
    num_patches: int = 10
    patch_size: int = 128
    patch_augmentation: PatchAugmentationConfig = field(default_factory=PatchAugmentationConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("num_patches", "patch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"data.{name}: expected at least 1, got {getattr(self, name)}")
        for name in ("flip", "flip_vertical", "crop"):
            if getattr(self.augmentation, name):
                raise ValueError(f"data.augmentation.{name}: patches do not change with the image; set it to false")
        if self.augment != "detr":
            raise ValueError(f"data.augment: images without annotations support 'detr' only, got {self.augment!r}")
        if self.masks != "none":
            raise ValueError(f"data.masks: images without annotations support 'none' only, got {self.masks!r}")

    def resized(self, image_size: int) -> PatchDataConfig:
        """A copy for another short side. The maximum long side is 600 / 480 of it, as in UP-DETR."""
        return replace(self, image_size=image_size, max_size=round(image_size * _MAX_SIZE / _IMAGE_SIZE))

    def sized_like(self, trained: DataConfig) -> Self:
        """A copy with the sizes of images and patches, and the number of patches, of a trained model."""
        sized = super().sized_like(trained)
        if not isinstance(trained, PatchDataConfig):
            return sized
        return replace(sized, num_patches=trained.num_patches, patch_size=trained.patch_size)

    def open_splits(self, folder: Path) -> dict[str, DetectionData]:
        """The images of a folder, "train" and "val"; see `open_images`. Raises DataError."""
        from opendetr.data.formats.unlabelled import open_images

        return open_images(
            folder,
            val_fraction=self.val_fraction,
            train_split=self.train_split,
            val_split=self.val_split,
            strict=self.strict,
        )

    def open_split(self, folder: Path, split: str, masks: Masks | None = None) -> DetectionData:
        """The images of one split of a folder. Raises DataError."""
        from opendetr.data.formats.unlabelled import open_images

        splits = open_images(folder, val_fraction=self.val_fraction, strict=self.strict)
        if split not in splits:
            raise unknown_split(folder, split, splits)
        return splits[split]

    def training_transform(self, data: DetectionData | None = None) -> PatchTransform:
        """Resizes an image, and cuts changed patches from it."""
        return PatchTransform(training_transform(self), self.num_patches, self.patch_size, self.patch_augmentation)

    def evaluation_transform(self) -> PatchEvaluationTransform:
        """Resizes an image, and cuts unchanged patches from it and from another image."""
        return PatchEvaluationTransform(evaluation_transform(self), self.num_patches, self.patch_size)

    def patch_input(self, patch: np.ndarray) -> Tensor:
        """(H, W, 3) uint8 RGB patch of a user -> (3, patch_size, patch_size) normalised float, for prediction."""
        resized = resize(patch, self.patch_size, self.patch_size)
        return normalise(torch.from_numpy(resized).permute(2, 0, 1))

    def collate(self, samples: Sequence[Sample], shape: tuple[int, int], device: torch.device) -> PatchBatch:
        """Make a batch of samples of one of the two transforms; see `data.collate.Collate`."""
        plain = collate_samples(samples, shape, device)

        def stacked(name: str) -> Tensor:
            patches = torch.stack([sample.extras[name] for sample in samples])
            return normalise(patches.to(device))

        patches = stacked("patches")
        if "control" in samples[0].extras:
            return PatchEvaluationBatch(
                plain.images, plain.targets, plain.names, patches=patches, control=stacked("control")
            )
        seeds = tuple(sample.extras["seed"] for sample in samples)
        return PatchBatch(plain.images, plain.targets, plain.names, patches=patches, sample_seeds=seeds)


@dataclass(frozen=True)
class PatchEvaluationBatch(PatchBatch):
    """Validation images with their own patches, and with those of other images.

    Attributes:
        control: (B, M, 3, h, w), patches of another image. A model that locates patches by what they show cannot tell
            from them where the patches of the image itself are.
    """

    control: Tensor = field(kw_only=True)


def patch_boxes(height: int, width: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """Draw patches of an image, (count, 4) int64, xyxy in pixels.

    Width and height of a patch are uniform from 8 to the side of the image minus 8, both ends included. Its place is
    uniform, without the last one.
    """
    sides = [rng.integers(MIN_PATCH_SIDE, side - MIN_PATCH_SIDE, count, endpoint=True) for side in (width, height)]
    starts = [rng.integers(0, side - length) for side, length in zip((width, height), sides, strict=True)]
    return np.stack([*starts, *(start + length for start, length in zip(starts, sides, strict=True))], axis=1)


@dataclass(frozen=True)
class PatchTransform(TransformAround):
    """Cuts patches from a training image; they become its target.

    Attributes:
        plain: the transform of the image; it only resizes.
        num_patches: M.
        patch_size: height and width of the resized patches.
        augmentation: changes of the colours of the patches.
    """

    num_patches: int
    patch_size: int
    augmentation: PatchAugmentationConfig

    def __call__(self, image: LabelledImage, rng: np.random.Generator, others: Sequence[LabelledImage] = ()) -> Sample:
        """The sample: `extras` has the patches (M, 3, h, w) uint8 and a seed for the draws of the model."""
        sample = self.plain(image, rng, others)
        boxes = patch_boxes(*image.original_size, self.num_patches, rng)
        patches = [
            self.augmentation.apply(resize_fast(cut, self.patch_size, self.patch_size), rng)
            for cut in _cut(image, boxes)
        ]
        return _with_patches(sample, boxes, patches=_stacked(patches), seed=int(rng.integers(2**63)))


@dataclass(frozen=True)
class PatchEvaluationTransform(TransformAround):
    """Cuts patches from a validation image. They depend only on the id of the image.

    The attributes are those of `PatchTransform`.
    """

    plain: PredictionTransform
    num_patches: int
    patch_size: int

    def pixels(self, image: np.ndarray) -> Tensor:
        """(H, W, 3) uint8 RGB image -> (3, h, w) normalised float, for prediction."""
        return self.plain.pixels(image)

    def __call__(self, image: LabelledImage, rng: np.random.Generator, others: Sequence[LabelledImage] = ()) -> Sample:
        """The sample: `extras` has the patches, and those of the next image as "control", (M, 3, h, w) uint8 each."""
        sample = self.plain(image, rng, others)
        boxes, patches = self._patches(image)
        _, control = self._patches(others[(image.index + 1) % len(others)])
        return _with_patches(sample, boxes, patches=patches, control=control)

    def _patches(self, image: LabelledImage) -> tuple[np.ndarray, Tensor]:
        rng = np.random.default_rng(image.image_id)
        boxes = patch_boxes(*image.original_size, self.num_patches, rng)
        return boxes, _stacked([resize(cut, self.patch_size, self.patch_size) for cut in _cut(image, boxes)])


def _cut(image: LabelledImage, boxes: np.ndarray) -> list[np.ndarray]:
    """The pixels of each box, (h, w, 3) uint8 each."""
    return [np.ascontiguousarray(image.pixels[top:bottom, left:right]) for left, top, right, bottom in boxes.tolist()]


def _stacked(patches: Sequence[np.ndarray]) -> Tensor:
    """M patches (h, w, 3) -> (M, 3, h, w) uint8."""
    return torch.from_numpy(np.stack(patches)).permute(0, 3, 1, 2)


def _with_patches(sample: Sample, boxes: np.ndarray, **extras: Any) -> Sample:
    """The sample with patches as its objects; `boxes` are in pixels of the original image."""
    height, width = sample.target.original_size
    fractions = torch.from_numpy(boxes / np.array([width, height] * 2))
    target = replace(
        sample.target,
        labels=torch.full((len(boxes),), PATCH_LABEL, dtype=torch.int64),
        boxes=xyxy_to_cxcywh(fractions).float(),
    )
    return replace(sample, target=target, extras={**sample.extras, **extras})
