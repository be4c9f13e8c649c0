"""The data types that pass between the layers of the library.

Shape letters: B batch, Q queries, L decoder layers, C class logits, D width, H W image, h w features, n objects,
m matches.
Frames: inside models and targets a box is (cx, cy, w, h) in 0..1 of the unpadded image; outside it is (x0, y0, x1, y1)
in pixels of the original image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol, Self

import torch
from torch import Tensor

if TYPE_CHECKING:
    from opendetr.categories import Categories


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


def _expect(condition: bool, type_name: str, field: str, expected: str, actual: Any) -> None:
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
        _expect(self.pixels.ndim == 4, "ImageBatch", "pixels", "(B, 3, H, W)", self.pixels)
        b, _, h, w = self.pixels.shape
        _expect(tuple(self.sizes.shape) == (b, 2), "ImageBatch", "sizes", f"({b}, 2)", self.sizes)
        if self.padding is not None:
            _expect(tuple(self.padding.shape) == (b, h, w), "ImageBatch", "padding", f"({b}, {h}, {w})", self.padding)

    def __len__(self) -> int:
        return self.pixels.shape[0]

    @classmethod
    def from_images(cls, images: Sequence[Tensor]) -> ImageBatch:
        """Pad `images`, each (3, h, w) normalised, to their common maximum. Raises ValueError when there is none."""
        if not images:
            raise ValueError("ImageBatch.from_images: expected at least one image, got none")
        for image in images:
            _expect(image.ndim == 3, "ImageBatch", "from_images", "images of (3, h, w)", image)
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
        _expect(self.labels.ndim == 1, "Target", "labels", "(n,)", self.labels)
        _expect(tuple(self.boxes.shape) == (n, 4), "Target", "boxes", f"({n}, 4)", self.boxes)
        if self.masks is not None:
            _expect(self.masks.ndim == 3 and len(self.masks) == n, "Target", "masks", f"({n}, h, w)", self.masks)
        for name in ("area", "crowd", "track_ids"):
            value = getattr(self, name)
            _expect(value is None or tuple(value.shape) == (n,), "Target", name, f"({n},)", value)

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
        _expect(len(self.targets) == len(self.images), "Batch", "targets", f"{len(self.images)}", len(self.targets))

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
            _expect(tuple(self.boxes.shape) == shape, "Predictions", "boxes", str(shape), self.boxes)


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


@dataclass(frozen=True)
class Detections(Movable):
    """The objects found in one image.

    Attributes:
        boxes: (n, 4) float, xyxy in pixels of the original image.
        scores: (n,) float in 0..1.
        labels: (n,) int64 in 0..K-1.
        categories: gives names, data set ids and colours to the labels.
        size: height and width of the original image, in pixels.
        image: (H, W, 3) uint8 RGB, the picture itself if it was kept, for `plot`.
        masks: (n, H, W) bool in the original image, or None.
        track_ids: (n,) int64, or None.
        source: where the image came from (a path), or None.
        frame: the image's number in a video, from 0, or None.
        time: its time in the video, in seconds, or None.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    categories: Categories
    size: tuple[int, int]
    image: Any = None
    masks: Tensor | None = None
    track_ids: Tensor | None = None
    source: str | None = None
    frame: int | None = None
    time: float | None = None

    def __post_init__(self) -> None:
        n = len(self.scores)
        _expect(tuple(self.boxes.shape) == (n, 4), "Detections", "boxes", f"({n}, 4)", self.boxes)
        _expect(tuple(self.labels.shape) == (n,), "Detections", "labels", f"({n},)", self.labels)
        if self.masks is not None:
            shape = (n, *self.size)
            _expect(tuple(self.masks.shape) == shape, "Detections", "masks", str(shape), self.masks)

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, chosen: Tensor | slice | int | Sequence[int]) -> Detections:
        """The detections that a mask, a slice, an index or a list of indices chooses: `d[d.scores > 0.5]`."""
        if isinstance(chosen, int):
            chosen = [chosen]
        if isinstance(chosen, Sequence):
            chosen = torch.as_tensor(chosen, dtype=torch.int64, device=self.scores.device)
        per_object: dict[str, Any] = {
            name: None if (value := getattr(self, name)) is None else value[chosen]
            for name in ("boxes", "scores", "labels", "masks", "track_ids")
        }
        return replace(self, **per_object)

    def __iter__(self) -> Iterator[Detections]:
        return (self[index] for index in range(len(self)))

    @property
    def names(self) -> list[str]:
        """The category name of each detection."""
        return [self.categories.names[label] for label in self.labels.tolist()]

    def plot(self, image: Any = None, *, min_score: float = 0.0) -> Any:
        """The picture with masks or boxes, names and scores drawn on it, as a PIL image.

        Args:
            image: (H, W, 3) uint8 RGB or a PIL image to draw on; the one that was kept when omitted.
            min_score: detections below it are not drawn.
        """
        from opendetr import visualize  # the one arrow that points up, when it is called

        return visualize.draw_detections(self, image, min_score=min_score)

    def to_coco(self, image_id: int = 0) -> list[dict[str, Any]]:
        """Rows of a COCO results file: category ids of the data set, boxes as x, y, w, h in pixels, masks as RLE."""
        x0, y0, x1, y1 = self.boxes.detach().cpu().double().unbind(1)
        boxes = torch.stack((x0, y0, x1 - x0, y1 - y0), 1).tolist()
        ids = [self.categories.ids[label] for label in self.labels.tolist()]
        rows: list[dict[str, Any]] = [
            {"image_id": image_id, "category_id": category_id, "bbox": box, "score": score}
            for category_id, box, score in zip(ids, boxes, self.scores.tolist(), strict=True)
        ]
        if self.masks is not None:
            for row, mask in zip(rows, self.masks, strict=True):
                row["segmentation"] = run_lengths(mask)
        return rows

    def to_supervision(self) -> Any:
        """The same as `supervision.Detections`, with the names under `data["class_name"]`."""
        import numpy as np
        import supervision

        return supervision.Detections(
            xyxy=self.boxes.detach().cpu().numpy(),
            confidence=self.scores.detach().cpu().numpy(),
            class_id=self.labels.cpu().numpy(),
            mask=None if self.masks is None else self.masks.cpu().numpy(),
            tracker_id=None if self.track_ids is None else self.track_ids.cpu().numpy(),
            data={"class_name": np.array(self.names)},
        )


def run_lengths(mask: Tensor) -> dict[str, Any]:
    """COCO's compressed run lengths of an (H, W) bool mask: `size` and, as text, `counts`."""
    from faster_coco_eval.core import mask as coder

    columns = mask.t().contiguous().cpu().numpy()  # run lengths go down the columns
    (encoded,) = coder.encode(columns.view("uint8").T[..., None])
    return {"size": list(encoded["size"]), "counts": encoded["counts"].decode("ascii")}


@dataclass(frozen=True)
class Segment:
    """One region of a panoptic map.

    Attributes:
        id: its value in the map, from 1.
        label: its class, in 0..K-1.
        isthing: whether it is one countable thing; else it is all the stuff of its class in the image.
        area: in pixels of the original image.
        score: in 0..1; of stuff that several queries found, the best.
    """

    id: int
    label: int
    isthing: bool
    area: int
    score: float


class Semantic(NamedTuple):
    """The class of every pixel.

    Attributes:
        labels: (H, W) int64 in 0..K-1, -1 where nothing was found.
        scores: (H, W) float in 0..1: the score of the pixel's segment times the probability that its mask holds there.
    """

    labels: Tensor
    scores: Tensor


@dataclass(frozen=True)
class Panoptic(Movable):
    """Every pixel of an image with the thing or the stuff that it belongs to.

    Attributes:
        segments: (H, W) int32 in the original image: ids of `info`, 0 where nothing was found.
        info: what the ids stand for, in the order of the ids.
        mask_scores: (H, W) float in 0..1, the probability that the mask of the pixel's segment holds there.
        categories: gives names, data set ids and colours to the labels.
        size: height and width of the original image, in pixels.
        image: (H, W, 3) uint8 RGB, the picture itself if it was kept, for `plot`.
        source: where the image came from (a path), or None.
        frame: the image's number in a video, from 0, or None.
        time: its time in the video, in seconds, or None.
    """

    segments: Tensor
    info: tuple[Segment, ...]
    mask_scores: Tensor
    categories: Categories
    size: tuple[int, int]
    image: Any = None
    source: str | None = None
    frame: int | None = None
    time: float | None = None

    def __post_init__(self) -> None:
        for name in ("segments", "mask_scores"):
            value = getattr(self, name)
            _expect(tuple(value.shape) == tuple(self.size), "Panoptic", name, str(tuple(self.size)), value)

    def __len__(self) -> int:
        return len(self.info)

    @property
    def names(self) -> list[str]:
        """The category name of each segment."""
        return [self.categories.names[segment.label] for segment in self.info]

    @property
    def semantic(self) -> Semantic:
        """The class of every pixel with its score."""
        last = max((segment.id for segment in self.info), default=0)
        labels = torch.full((last + 1,), -1, dtype=torch.int64)
        scores = torch.zeros(last + 1)
        for segment in self.info:
            labels[segment.id], scores[segment.id] = segment.label, segment.score
        index = self.segments.long()
        return Semantic(labels.to(index.device)[index], scores.to(index.device)[index] * self.mask_scores)

    def plot(self, image: Any = None) -> Any:
        """The picture with its segments and their names drawn on it, as a PIL image.

        Args:
            image: (H, W, 3) uint8 RGB or a PIL image to draw on; the one that was kept when omitted.
        """
        from opendetr import visualize  # as for `Detections.plot`

        return visualize.draw_panoptic(self, image)

    def to_coco(self, image_id: int = 0) -> dict[str, Any]:
        """An annotation of a COCO panoptic file, category ids those of the data set; `segments` is its picture."""
        from scipy.ndimage import find_objects

        places = find_objects(self.segments.cpu().numpy())
        rows = [
            {
                "id": segment.id,
                "category_id": self.categories.ids[segment.label],
                "isthing": int(segment.isthing),
                "iscrowd": 0,
                "area": segment.area,
                "bbox": _pixel_box(places[segment.id - 1]),
                "score": segment.score,
            }
            for segment in self.info
        ]
        return {"image_id": image_id, "segments_info": rows}


def _pixel_box(place: tuple[slice, slice]) -> list[int]:
    """x, y, w, h in whole pixels of a region's rows and columns."""
    rows, columns = place
    return [columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start]
