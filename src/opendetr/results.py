"""The results of prediction: the detections of an image, or its panoptic map.

Shape letters: H W original image, K classes, n detections.
Frames: a box is (x0, y0, x1, y1) in pixels of the original image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from opendetr import visualize
from opendetr.categories import Categories
from opendetr.structures import Movable, expect_shape

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class Detections(Movable):
    """The detections of one image.

    Attributes:
        boxes: (n, 4) float, xyxy in pixels of the original image.
        scores: (n,) float in 0..1.
        labels: (n,) int64 in 0..K-1.
        categories: the classes: names, dataset ids and colours of the labels.
        size: height and width of the original image, in pixels.
        image: (H, W, 3) uint8 RGB, the original image for `plot`, or None if it was not kept.
        masks: (n, H, W) bool in the original image, or None.
        track_ids: (n,) int64, the same for one object in all frames of a video. Set by a tracker; None from a
            detector.
        source: the path or address of the image, or None.
        frame: the number of the image in a video, from 0, or None.
        time: the time of the image in a video, in seconds, or None.

    Raises:
        ValueError: a tensor has the wrong shape.
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
        expect_shape(tuple(self.boxes.shape) == (n, 4), "Detections", "boxes", f"({n}, 4)", self.boxes)
        expect_shape(tuple(self.labels.shape) == (n,), "Detections", "labels", f"({n},)", self.labels)
        if self.masks is not None:
            shape = (n, *self.size)
            expect_shape(tuple(self.masks.shape) == shape, "Detections", "masks", str(shape), self.masks)
        ids = self.track_ids
        expect_shape(ids is None or tuple(ids.shape) == (n,), "Detections", "track_ids", f"({n},)", ids)

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, chosen: Tensor | slice | int | Sequence[int]) -> Detections:
        """Select detections by a mask, a slice, an index or a list of indices, such as `d[d.scores > 0.5]`."""
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
        """Draw masks or boxes, names and scores on the image; returns a PIL image.

        Args:
            image: (H, W, 3) uint8 RGB or a PIL image to draw on; `self.image` by default.
            min_score: detections with a lower score are not drawn.

        Raises:
            ValueError: there is no image, or its size is not `size`.
        """
        return draw_detections(self, image, min_score=min_score)

    def to_coco(self, image_id: int = 0) -> list[dict[str, Any]]:
        """Rows of a COCO results file, with dataset category ids, boxes as x, y, w, h in pixels, and masks as RLE."""
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
        """Convert to `supervision.Detections`, with the names in `data["class_name"]`.

        Raises:
            ModuleNotFoundError: the extra `supervision` is not installed.
        """
        import numpy as np

        try:
            import supervision
        except ModuleNotFoundError as error:
            if error.name != "supervision":
                raise
            raise ModuleNotFoundError(
                "to_supervision needs supervision; install it with `python -m pip install 'opendetr[supervision]'`",
                name="supervision",
            ) from None

        return supervision.Detections(
            xyxy=self.boxes.detach().cpu().numpy(),
            confidence=self.scores.detach().cpu().numpy(),
            class_id=self.labels.cpu().numpy(),
            mask=None if self.masks is None else self.masks.cpu().numpy(),
            tracker_id=None if self.track_ids is None else self.track_ids.cpu().numpy(),
            data={"class_name": np.array(self.names)},
        )


def run_lengths(mask: Tensor) -> dict[str, Any]:
    """COCO's compressed run lengths of an (H, W) bool mask: `size`, and `counts` as text."""
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
        isthing: True for one countable thing, False for all stuff of its class in the image.
        area: in pixels of the original image.
        score: in 0..1. For stuff predicted by several queries, their highest score.
    """

    id: int
    label: int
    isthing: bool
    area: int
    score: float


class Semantic(NamedTuple):
    """The class of every pixel.

    Attributes:
        labels: (H, W) int64 in 0..K-1, -1 where no segment is predicted.
        scores: (H, W) float in 0..1: the score of the pixel's segment times the probability of its mask at the pixel.
    """

    labels: Tensor
    scores: Tensor


@dataclass(frozen=True)
class Panoptic(Movable):
    """The panoptic map of an image: the thing or stuff that every pixel belongs to.

    Attributes:
        segments: (H, W) int32 in the original image: ids of segments in `info`, 0 where no segment is predicted.
        info: the segments, in the order of their ids.
        mask_scores: (H, W) float in 0..1, the probability of the mask of the pixel's segment at the pixel.
        categories: the classes: names, dataset ids and colours of the labels.
        size: height and width of the original image, in pixels.
        image: (H, W, 3) uint8 RGB, the original image for `plot`, or None if it was not kept.
        source: the path or address of the image, or None.
        frame: the number of the image in a video, from 0, or None.
        time: the time of the image in a video, in seconds, or None.

    Raises:
        ValueError: a tensor has the wrong shape.
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
            expect_shape(tuple(value.shape) == tuple(self.size), "Panoptic", name, str(tuple(self.size)), value)

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
        """Draw the segments and their names on the image; returns a PIL image.

        Args:
            image: (H, W, 3) uint8 RGB or a PIL image to draw on; `self.image` by default.

        Raises:
            ValueError: there is no image, or its size is not `size`.
        """
        return draw_panoptic(self, image)

    def to_coco(self, image_id: int = 0) -> dict[str, Any]:
        """An annotation of a COCO panoptic file, with dataset category ids. Its PNG is `segments`."""
        from scipy.ndimage import find_objects

        regions = find_objects(self.segments.cpu().numpy())
        rows = [
            {
                "id": segment.id,
                "category_id": self.categories.ids[segment.label],
                "isthing": int(segment.isthing),
                "iscrowd": 0,
                "area": segment.area,
                "bbox": _pixel_box(regions[segment.id - 1]),
                "score": segment.score,
            }
            for segment in self.info
        ]
        return {"image_id": image_id, "segments_info": rows}


def _pixel_box(region: tuple[slice, slice]) -> list[int]:
    """x, y, w, h in pixels of a region given by its rows and columns."""
    rows, columns = region
    return [columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start]


def draw_detections(
    detections: Detections, image: Any = None, *, min_score: float = 0.0, scale: float | None = None
) -> Image.Image:
    """Draw the name, the score, and the mask (or the box without masks) of every detection on the image.

    Args:
        detections: the detections of one image.
        image: (H, W, 3) uint8 RGB or a PIL image to draw on; `detections.image` by default.
        min_score: detections with a lower score are not drawn.
        scale: factor by which the image is enlarged. By default, small images are enlarged to about 720 pixels.

    Raises:
        ValueError: there is no image, or its size is not that of the detections.
    """
    canvas = _own_image("draw_detections", "detections", detections.image if image is None else image, detections)
    shown = detections[detections.scores >= min_score]
    captions = [f"{name} {score:.2f}" for name, score in zip(shown.names, shown.scores.tolist(), strict=True)]
    colours = [shown.categories.colours[label] for label in shown.labels.tolist()]
    masks = None if shown.masks is None else shown.masks.cpu().numpy()
    return visualize.draw_boxes(canvas, shown.boxes.detach().cpu().numpy(), captions, colours, masks=masks, scale=scale)


def draw_panoptic(panoptic: Panoptic, image: Any = None, *, scale: float | None = None) -> Image.Image:
    """Draw the segments of a panoptic map and their names on the image.

    Args:
        panoptic: the map of one image.
        image: (H, W, 3) uint8 RGB or a PIL image to draw on; `panoptic.image` by default.
        scale: as in `draw_detections`.

    Raises:
        ValueError: there is no image, or its size is not that of the map.
    """
    canvas = _own_image("draw_panoptic", "panoptic map", panoptic.image if image is None else image, panoptic)
    labels = {segment.id: segment.label for segment in panoptic.info}
    return visualize.draw_segments(canvas, panoptic.segments.cpu().numpy(), labels, panoptic.categories, scale=scale)


def _own_image(function: str, noun: str, image: Any, result: Detections | Panoptic) -> Image.Image:
    """`image` as a PIL image. Raises ValueError if it is missing, or its size is not that of `result`."""
    if image is None:
        raise ValueError(f"{function}: no image was kept with the {noun}; pass the image")
    canvas = visualize.as_image(image)
    height, width = result.size
    if canvas.size != (width, height):
        raise ValueError(
            f"{function}: the image is {canvas.width} x {canvas.height}, but the size of the {noun} is "
            f"{width} x {height}; pass the original image"
        )
    return canvas
