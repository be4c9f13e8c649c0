"""How a dataset becomes batches: sizes, augmentation, reading."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    import torch

    from opendetr.data.transforms import Transform
    from opendetr.structures import Batch, Sample

Augment = Literal["detr", "colour", "mosaic", "copy-paste", "strong"]
Masks = Literal["none", "auto", "instances", "panoptic"]

# DETR's numbers are for this short side; other image sizes scale them.
_REFERENCE_SIZE = 800
_REFERENCE_MAX_SIZE = 1333
_AUGMENT_WITH_MASKS = ("detr", "colour")


@dataclass(frozen=True, kw_only=True)
class AugmentationConfig:
    """DETR's training augmentation (its section A.4), in pixels of images whose short side is 800.

    Half of the images are mirrored. Half are resized to a random scale; the other half are resized to a random scale
    of `scales_before_crop`, cropped at random, and then resized to a random scale.

    Attributes:
        flip: mirror half of the images left and right.
        flip_vertical: mirror half of the images top and bottom as well, where neither is up (microscopes, satellites);
            DETR does not.
        multi_scale: resize to a random one of `scales`; when off, to the image size.
        crop: crop half of the images.
        scales: short sides to resize to.
        scales_before_crop: short sides before a crop.
        crop_sides: least and greatest height and width of a crop, each drawn uniformly.
    """

    flip: bool = True
    flip_vertical: bool = False
    multi_scale: bool = True
    crop: bool = True
    scales: tuple[int, ...] = tuple(range(480, 801, 32))
    scales_before_crop: tuple[int, ...] = (400, 500, 600)
    crop_sides: tuple[int, int] = (384, 600)

    def __post_init__(self) -> None:
        for name in ("scales", "scales_before_crop", "crop_sides"):
            lengths = getattr(self, name)
            if not lengths or min(lengths) < 1:
                raise ValueError(f"augmentation: {name} is {lengths}; give lengths of 1 or more pixels")
        if self.crop_sides[0] > self.crop_sides[1]:
            raise ValueError(f"augmentation: crop_sides is {self.crop_sides}; give the smaller one first")

    def scaled(self, image_size: int) -> AugmentationConfig:
        """The same for images whose short side is `image_size`: its lengths times image_size / 800."""

        def scale(length: int) -> int:
            return max(1, round(length * image_size / _REFERENCE_SIZE))

        return replace(
            self,
            scales=tuple(map(scale, self.scales)),
            scales_before_crop=tuple(map(scale, self.scales_before_crop)),
            crop_sides=(scale(self.crop_sides[0]), scale(self.crop_sides[1])),
        )


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """How a dataset is split, read and made into batches.

    Attributes:
        image_size: short side of the images in evaluation, in pixels; training scales its augmentation to it.
        max_size: the long side is at most this, in training and evaluation.
        side_multiple: heights and widths are rounded to the nearest multiple of this many pixels, in training and
            evaluation, at the cost of another aspect ratio; 1 leaves them as DETR does. With the backbone's greatest
            stride every cell of a feature map is filled, so that positions in cells and in pixels agree; a CPU prepares
            its kernels for few shapes, and little or nothing of a batch is padding.
        augmentation: of training, written for a short side of 800 and scaled to `image_size`.
        augment: what training does to the images before `augmentation`: "detr" nothing; "colour" changes brightness,
            contrast, saturation and hue; "mosaic" puts four images together; "copy-paste" puts objects of other images
            into an image; "strong" does all three (see `data.augment`).
        batch_pixels: pixels, padding included, that a training batch may have; then the batch size is only the most
            images it may have, and an epoch begins with its largest batch. No limit when None.
        train_split: the split to train on; else "train", "trainval" or the only one.
        val_split: the split to score on while training; else "val".
        val_fraction: share of the training images set aside where a dataset has no validation split.
        num_workers: processes that load; 0 loads in the calling process, and gives the same batches.
        cache: "ram" decodes every image once, when the run starts, and keeps it: height x width x 3 bytes each, refused
            above half of the machine's memory. Where processes are forked (Linux) those that load share it, where they
            are spawned (Windows, macOS) each has a copy.
        strict: refuse faulty annotations and unreadable images instead of skipping them.
        masks: what the masks of objects are read from, for models that learn them or are scored by them: "instances"
            outlines (polygons, run lengths), "panoptic" panoptic maps, with things and stuff, "auto" such maps where
            the dataset has them, else outlines, "none" nothing. With masks `augment` is "detr" or "colour".
    """

    image_size: int = _REFERENCE_SIZE
    max_size: int = _REFERENCE_MAX_SIZE
    side_multiple: int = 1
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    augment: Augment = "detr"
    batch_pixels: int | None = None
    train_split: str | None = None
    val_split: str | None = None
    val_fraction: float = 0.1
    num_workers: int = 2
    cache: Literal["none", "ram"] = "none"
    strict: bool = False
    masks: Masks = "none"

    def __post_init__(self) -> None:
        if not 1 <= self.image_size <= self.max_size:
            raise ValueError(f"data: image_size {self.image_size} is not between 1 and max_size {self.max_size}")
        if self.side_multiple < 1:
            raise ValueError(f"data: side_multiple is {self.side_multiple}; give 1 or more pixels")
        if not 0 < self.val_fraction < 1:
            raise ValueError(f"data: val_fraction {self.val_fraction} is not between 0 and 1")
        if self.num_workers < 0:
            raise ValueError(f"data: num_workers is {self.num_workers}; give 0 or more")
        if self.augment not in get_args(Augment):
            raise ValueError(f"data: augment is {self.augment!r}; give one of {', '.join(get_args(Augment))}")
        if self.batch_pixels is not None and self.batch_pixels < 1:
            raise ValueError(f"data: batch_pixels is {self.batch_pixels}; give 1 or more")
        if self.masks not in get_args(Masks):
            raise ValueError(f"data: masks is {self.masks!r}; give one of {', '.join(get_args(Masks))}")
        if self.masks != "none" and self.augment not in _AUGMENT_WITH_MASKS:
            raise ValueError(
                f"data: augment {self.augment!r} puts boxes together, not masks; with masks give "
                f"{' or '.join(_AUGMENT_WITH_MASKS)}"
            )
        if self.cache not in ("none", "ram"):
            raise ValueError(f"data: cache is {self.cache!r}; give 'none' or 'ram'")

    def resized(self, image_size: int) -> DataConfig:
        """The same for another short side; the limit of the long side keeps DETR's proportion of 1333 to 800."""
        max_size = round(image_size * _REFERENCE_MAX_SIZE / _REFERENCE_SIZE)
        return replace(self, image_size=image_size, max_size=max_size)

    # What samples and batches are made by. A member with other inputs (patches, captions, clips) overrides these.

    def training_transform(self) -> Transform:
        """What makes the samples of training."""
        from opendetr.data.augmentation import training_transform

        return training_transform(self)

    def evaluation_transform(self) -> Transform:
        """What makes the samples of evaluation."""
        from opendetr.data.transforms import evaluation_transform

        return evaluation_transform(self)

    def collate(self, samples: Sequence[Sample], shape: tuple[int, int], device: torch.device) -> Batch:
        """What makes a batch of samples; see `data.collate.Collate`."""
        from opendetr.data.collate import collate

        return collate(samples, shape, device)
