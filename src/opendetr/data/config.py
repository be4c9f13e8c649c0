"""Configuration of data loading: image sizes, augmentation, splits and loader processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, Self, get_args

from opendetr.config import SettingError, unknown
from opendetr.data.faults import FaultKind

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from opendetr.data.batching import Batches, Shapes
    from opendetr.data.records import DetectionData
    from opendetr.data.transforms import PredictionTransform, Transform
    from opendetr.structures import Batch, Sample

Augment = Literal["detr", "colour", "mosaic", "copy-paste", "strong"]
Masks = Literal["none", "auto", "instances", "panoptic"]

# DETR's published lengths are for this short side. They are scaled for other image sizes.
_REFERENCE_SIZE = 800
_MIN_IMAGE_SIZE = 32  # pixels; the size of a cell of the coarsest features
_REFERENCE_MAX_SIZE = 1333
SINGLE_IMAGE_AUGMENTS = ("detr", "colour")
"""Values of `augment` that do not mix images. Masks and captions need one of them."""


@dataclass(frozen=True, kw_only=True)
class AugmentationConfig:
    """DETR's training augmentation (section A.4 of the paper), in pixels of images whose short side is 800.

    Half of the images are flipped horizontally. Half of the images are cropped: they are resized to one of
    `scales_before_crop` and then cropped at random. Finally, all images are resized to one of `scales`.

    Attributes:
        flip: flip half of the images horizontally.
        flip_vertical: also flip half of the images vertically, for images without a fixed up direction (microscopes,
            satellites). DETR does not.
        multi_scale: resize to a random one of `scales`; if False, to the image size.
        crop: crop half of the images.
        keep_objects: choose crops that contain a part of every object, as MDETR does for captions. A crop that cannot
            is enlarged, at most to the image. DETR's crops may drop objects.
        scales: short sides to resize to.
        scales_before_crop: short sides before a crop.
        crop_sides: minimum and maximum height and width of a crop, each drawn uniformly.
    """

    flip: bool = True
    flip_vertical: bool = False
    multi_scale: bool = True
    crop: bool = True
    keep_objects: bool = False
    scales: tuple[int, ...] = tuple(range(480, 801, 32))
    scales_before_crop: tuple[int, ...] = (400, 500, 600)
    crop_sides: tuple[int, int] = (384, 600)

    def __post_init__(self) -> None:
        for name in ("scales", "scales_before_crop", "crop_sides"):
            lengths = getattr(self, name)
            if not lengths or min(lengths) < 1:
                raise ValueError(f"augmentation: {name} is {lengths}; give lengths of 1 or more pixels")
        if self.crop_sides[0] > self.crop_sides[1]:
            raise ValueError(f"augmentation: crop_sides is {self.crop_sides}; give the smaller length first")

    def scaled(self, image_size: int) -> AugmentationConfig:
        """A copy for images whose short side is `image_size`: all lengths are multiplied by image_size / 800."""

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
        image_size: short side of the images in evaluation, in pixels. The training augmentation is scaled to it.
        max_size: maximum long side in training and evaluation, in pixels.
        side_multiple: round heights and widths to the nearest multiple of this number of pixels, in training and
            evaluation. This changes the aspect ratio slightly. With 1, sides are not rounded, as in DETR. If it is the
            largest stride of the backbone, the edge of an image is also an edge of a cell of every feature map. Batches
            also have fewer different shapes, which is faster on a CPU, and less padding.
        augmentation: DETR's flips, crops and sizes for training, for a short side of 800; it is scaled to `image_size`.
        augment: name of an extra augmentation, applied before `augmentation`: "detr" adds nothing; "colour" changes
            brightness, contrast, saturation and hue; "mosaic" combines four images; "copy-paste" pastes objects of
            other images; "strong" does all three (see `data.augmentation`).
        batch_pixels: maximum number of pixels of a training batch, padding included. The batch size is then the maximum
            number of images of a batch, and an epoch begins with its largest batch. None sets no limit.
        train_split: the split to train on; by default "train", "trainval" or the only split.
        val_split: the split to evaluate on during training; by default "val".
        val_fraction: fraction of the training images to hold out if the dataset has no validation split.
        num_workers: maximum number of loader processes; there is at most one for each usable CPU core. 0 loads in the
            calling process. The batches are the same for every number.
        cache: "ram" decodes every image once, when the run starts, and keeps it in memory: height x width x 3 bytes
            each. It is an error if they need more than half of the machine's memory. Forked loader processes (Linux)
            share the cache; spawned ones (Windows, macOS) have a copy each.
        strict: raise an error for faulty annotations and unreadable images instead of skipping them.
        allow: kinds of faults that stop training because the annotations probably do not mean what is read, and that
            do not stop it now, such as "normalised_boxes" (see `FaultKind.allowable`). With "crowd_only", the crowd
            regions of classes without any other object are read as objects.
        masks: where the masks of objects are read from, for models with masks: "instances" reads outlines (polygons or
            RLE); "panoptic" reads panoptic maps, with things and stuff; "auto" reads panoptic maps if the
            dataset has them, otherwise outlines; "none" reads no masks. With masks, `augment` must be "detr" or
            "colour".

    Raises:
        ValueError: a field is out of its range.
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
    allow: tuple[str, ...] = ()
    masks: Masks = "none"

    def __post_init__(self) -> None:
        if not 1 <= self.image_size <= self.max_size:
            raise ValueError(f"data.image_size: expected 1 to max_size ({self.max_size}) pixels, got {self.image_size}")
        if self.side_multiple < 1:
            raise ValueError(f"data.side_multiple: expected at least 1, got {self.side_multiple}")
        if not 0 < self.val_fraction < 1:
            raise ValueError(f"data.val_fraction: expected a fraction between 0 and 1, got {self.val_fraction}")
        if self.num_workers < 0:
            raise ValueError(f"data.num_workers: expected at least 0, got {self.num_workers}")
        if self.augment not in get_args(Augment):
            raise ValueError(f"data.augment: expected one of {', '.join(get_args(Augment))}, got {self.augment!r}")
        if self.batch_pixels is not None and self.batch_pixels < 1:
            raise ValueError(f"data.batch_pixels: expected at least 1, got {self.batch_pixels}")
        for name in self.allow:
            if name not in FaultKind.allowable():
                raise ValueError(f"data.allow: {unknown(name, FaultKind.allowable())}")
        if self.masks not in get_args(Masks):
            raise ValueError(f"data.masks: expected one of {', '.join(get_args(Masks))}, got {self.masks!r}")
        if self.masks != "none" and self.augment not in SINGLE_IMAGE_AUGMENTS:
            raise ValueError(
                f"data.augment: {self.augment!r} does not support masks; with masks give "
                f"{' or '.join(SINGLE_IMAGE_AUGMENTS)}"
            )
        if self.cache not in ("none", "ram"):
            raise ValueError(f"data.cache: expected none or ram, got {self.cache!r}")

    def resized(self, image_size: int) -> DataConfig:
        """A copy for another short side. The maximum long side is 1333 / 800 of it, as in DETR."""
        max_size = round(image_size * _REFERENCE_MAX_SIZE / _REFERENCE_SIZE)
        return replace(self, image_size=image_size, max_size=max_size)

    def require_trainable_size(self) -> None:
        """Raise SettingError if images of this size are too small to train on."""
        if self.image_size < _MIN_IMAGE_SIZE:
            raise SettingError(
                f"{self.image_size} pixels are too few to detect anything; give at least {_MIN_IMAGE_SIZE}",
                setting="data.image_size",
            )

    def sized_like(self, trained: DataConfig) -> Self:
        """A copy with the image size of a trained model, whose predictions are worse at other sizes."""
        return replace(
            self, image_size=trained.image_size, max_size=trained.max_size, side_multiple=trained.side_multiple
        )

    # What is read, and factories of samples and batches. A model with other data (images without annotations,
    # patches, captions, clips) overrides these.

    def open_splits(self, folder: Path) -> dict[str, DetectionData]:
        """The splits of a dataset, "train" and "val" among them; see `open_data`. Raises DataError."""
        from opendetr.data.formats.recognise import open_data

        return open_data(
            folder,
            val_fraction=self.val_fraction,
            train_split=self.train_split,
            val_split=self.val_split,
            strict=self.strict,
            allow=self.allow,
            masks=self.masks,
        )

    def open_split(self, folder: Path, split: str, masks: Masks | None = None) -> DetectionData:
        """One split of a dataset; see `open_split`. `masks` are those to read, by default the own ones."""
        from opendetr.data.formats.recognise import open_split

        return open_split(
            folder,
            split,
            val_fraction=self.val_fraction,
            strict=self.strict,
            allow=self.allow,
            masks=masks or self.masks,
        )

    def training_transform(self, data: DetectionData | None = None) -> Transform:
        """The transform from images to training samples.

        Args:
            data: the split that it is applied to. A transform that uses several images of a split needs it.
        """
        from opendetr.data.augmentation import training_transform

        return training_transform(self)

    def evaluation_transform(self) -> PredictionTransform:
        """The transform from images to evaluation samples, and to the input of the model for prediction."""
        from opendetr.data.transforms import evaluation_transform

        return evaluation_transform(self)

    def evaluation_groups(self, data: DetectionData, shapes: Shapes, batch_size: int) -> list[Batches]:
        """The evaluation batches, in groups that one process evaluates in order.

        A group can be a video: the session of the model is reset at the beginning of each group.

        Args:
            data: the split.
            shapes: height and width of each image after the evaluation transform.
            batch_size: maximum number of images in a batch.
        """
        from opendetr.data.batching import same_shape_groups

        return same_shape_groups(range(len(data)), shapes, batch_size)

    def evaluation_subset(self, data: DetectionData, num_images: int) -> DetectionData:
        """At most `num_images` images of a split, for an evaluation that takes less time."""
        from opendetr.data.records import spread

        return data.subset(spread(data.images, num_images), data.split)

    # What changes during a run.

    def at_progress(self, batch: Batch, progress: float) -> Batch:
        """The part of a training batch that is used after a fraction of the run: by default the whole batch."""
        return batch

    def work(self, progress: float) -> float:
        """The relative duration of a train step after a fraction of the run."""
        return 1.0

    def collate(self, samples: Sequence[Sample], shape: tuple[int, int], device: torch.device) -> Batch:
        """Make a batch of samples; see `data.collate.Collate`."""
        from opendetr.data.collate import collate_samples

        return collate_samples(samples, shape, device)
