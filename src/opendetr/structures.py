"""The data types that pass between the layers of the library.

Shape letters: B batch, Q queries, L decoder layers, C class logits, D width, H W image, h w features, n objects,
m matches.
Frames: inside models and targets a box is (cx, cy, w, h) in 0..1 of the unpadded image; outside it is (x0, y0, x1, y1)
in pixels of the original image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Protocol, Self

import torch
from torch import Tensor


def _moved(value: Any, device: torch.device | str) -> Any:
    """The value with every tensor in it on `device`: tensors, our data types and tuples of them."""
    if isinstance(value, Tensor | Movable):
        return value.to(device)
    if isinstance(value, tuple):
        return tuple(_moved(item, device) for item in value)
    return value


class Movable:
    """Gives a frozen dataclass `.to(device)`: a copy whose tensors, nested ones too, lie on the device."""

    def to(self, device: torch.device | str) -> Self:
        """A copy on `device`."""
        changes = {field.name: _moved(getattr(self, field.name), device) for field in fields(self)}  # type: ignore[arg-type]
        return replace(self, **changes)  # type: ignore[type-var]


def expect_shape(condition: bool, type_name: str, field: str, expected: str, actual: Any) -> None:
    """Raise ValueError with the expected and the actual shape; no check runs while exporting or compiling."""
    if not condition:
        shown = tuple(actual.shape) if isinstance(actual, Tensor) else actual
        raise ValueError(f"{type_name}.{field}: expected {expected}, got {shown}")


def _checked() -> bool:
    return not (torch.jit.is_tracing() or torch.compiler.is_compiling())


@dataclass(frozen=True)
class ImageBatch(Movable):
    """Images of different sizes in one tensor, padded with zeros at the right and at the bottom.

    Attributes:
        pixels: (B, 3, H, W) float, RGB normalised with ImageNet's mean and std.
        padding: (B, H, W) bool, True where padded; None when nothing is padded.
        sizes: (B, 2) int64, height and width of each image before padding, in pixels.
    """

    pixels: Tensor
    padding: Tensor | None
    sizes: Tensor

    def __post_init__(self) -> None:
        if not _checked():
            return
        expect_shape(self.pixels.ndim == 4, "ImageBatch", "pixels", "(B, 3, H, W)", self.pixels)
        b, _, h, w = self.pixels.shape
        expect_shape(tuple(self.sizes.shape) == (b, 2), "ImageBatch", "sizes", f"({b}, 2)", self.sizes)
        if self.padding is not None:
            expect_shape(
                tuple(self.padding.shape) == (b, h, w), "ImageBatch", "padding", f"({b}, {h}, {w})", self.padding
            )

    def __len__(self) -> int:
        return self.pixels.shape[0]

    @classmethod
    def from_images(cls, images: Sequence[Tensor]) -> ImageBatch:
        """Pad `images`, each (3, h, w) normalised, to their common maximum. Raises ValueError when there is none."""
        if not images:
            raise ValueError("ImageBatch.from_images: expected at least one image, got none")
        for image in images:
            expect_shape(image.ndim == 3, "ImageBatch", "from_images", "images of (3, h, w)", image)
        sizes = torch.tensor([image.shape[-2:] for image in images], dtype=torch.int64, device=images[0].device)
        height, width = sizes.amax(0).tolist()
        if all(tuple(image.shape[-2:]) == (height, width) for image in images):
            return cls(torch.stack(tuple(images)), None, sizes)
        pixels = images[0].new_zeros(len(images), images[0].shape[0], height, width)
        padding = torch.ones(len(images), height, width, dtype=torch.bool, device=pixels.device)
        for index, image in enumerate(images):
            h, w = image.shape[-2:]
            pixels[index, :, :h, :w] = image
            padding[index, :h, :w] = False
        return cls(pixels, padding, sizes)


@dataclass(frozen=True)
class Target(Movable):
    """What is to be found in one image, in the frame of the image that the model sees.

    Attributes:
        labels: (n,) int64 in 0..K-1.
        boxes: (n, 4) float, cxcywh in 0..1 of the unpadded image.
        size: height and width of the image as the model sees it, in pixels, before padding.
        original_size: height and width of the image as it lies on disk (orientation applied), in pixels.
        image_id: the data set's own id of the image.
        masks: (n, h, w) bool at `size`, or None.
        area: (n,) float, area of each object in pixels of `size`, or None.
        crowd: (n,) bool, or None when nothing is crowd.
        track_ids: (n,) int64, or None outside video.
    """

    labels: Tensor
    boxes: Tensor
    size: tuple[int, int]
    original_size: tuple[int, int]
    image_id: int
    masks: Tensor | None = None
    area: Tensor | None = None
    crowd: Tensor | None = None
    track_ids: Tensor | None = None

    def __post_init__(self) -> None:
        if not _checked():
            return
        n = len(self.labels)
        expect_shape(self.labels.ndim == 1, "Target", "labels", "(n,)", self.labels)
        expect_shape(tuple(self.boxes.shape) == (n, 4), "Target", "boxes", f"({n}, 4)", self.boxes)
        if self.masks is not None:
            expect_shape(self.masks.ndim == 3 and len(self.masks) == n, "Target", "masks", f"({n}, h, w)", self.masks)
        for name in ("area", "crowd", "track_ids"):
            value = getattr(self, name)
            expect_shape(value is None or tuple(value.shape) == (n,), "Target", name, f"({n},)", value)

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Batch(Movable):
    """One step's input: images and, image by image, their targets.

    Attributes:
        images: the B images.
        targets: B targets, in the order of the images.
        names: where each image came from (file names), for messages.
    """

    images: ImageBatch
    targets: tuple[Target, ...]
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        expect_shape(
            len(self.targets) == len(self.images), "Batch", "targets", f"{len(self.images)}", len(self.targets)
        )

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class FeatureMap(Movable):
    """One level of features with what attention needs to know about it.

    Attributes:
        values: (B, C, h, w) float.
        padding: (B, h, w) bool, True where padded; None when nothing is padded.
        position: (B, D, h, w) float position encoding, or None where none was asked for.
    """

    values: Tensor
    padding: Tensor | None = None
    position: Tensor | None = None


class Scoring(Protocol):
    """How class logits become scores: an object, so that nothing else asks which family a model is of.

    Attributes:
        panoptic_score: queries that score less have no part in a panoptic map, unless another threshold is given.
    """

    panoptic_score: ClassVar[float]

    def probabilities(self, logits: Tensor) -> Tensor:
        """(..., C) logits -> (..., K) probabilities of the K classes, no-object left out."""
        ...

    def best(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """(..., C) logits -> score and label of the best class, (...) each; 0 where "no object" is better still."""
        ...

    def select(self, logits: Tensor, k: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """(B, Q, C) logits -> scores, labels, query indices, each (B, k), as the published post-processing picks."""
        ...


@dataclass(frozen=True)
class Predictions(Movable):
    """What one decoder layer says.

    Attributes:
        logits: (B, Q, C) float class logits; what the columns mean is `scoring`'s to know.
        boxes: (B, Q, 4) float, cxcywh in 0..1 of the unpadded image.
        scoring: turns the logits into probabilities and picks.
    """

    logits: Tensor
    boxes: Tensor
    scoring: Scoring

    def __post_init__(self) -> None:
        if _checked():
            shape = (*self.logits.shape[:2], 4)
            expect_shape(tuple(self.boxes.shape) == shape, "Predictions", "boxes", str(shape), self.boxes)


@dataclass(frozen=True)
class Output(Movable):
    """What a model returns for a batch of images, in training and in evaluation alike.

    Attributes:
        layers: the predictions of every decoder layer, first to last.
        queries: (L, B, Q, D) float, the decoder's normalised output that the heads read.
        features: the backbone's levels, fine to coarse.
        memory: the encoder's output, one map per level.
    """

    layers: tuple[Predictions, ...]
    queries: Tensor
    features: tuple[FeatureMap, ...]
    memory: tuple[FeatureMap, ...]

    @property
    def final(self) -> Predictions:
        """The last layer's predictions: the model's answer."""
        return self.layers[-1]


@dataclass(frozen=True)
class Matches(Movable):
    """Which query answers for which object, over all layers and images, sorted by (layer, image, query).

    Attributes:
        layer, image, query, target: (m,) int64 each; `target` counts within its image.
    """

    layer: Tensor
    image: Tensor
    query: Tensor
    target: Tensor

    def __len__(self) -> int:
        return len(self.layer)

    def of_layer(self, layer: int) -> Matches:
        """The matches of one decoder layer."""
        chosen = self.layer == layer
        return Matches(self.layer[chosen], self.image[chosen], self.query[chosen], self.target[chosen])
