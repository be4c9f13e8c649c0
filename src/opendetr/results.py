"""What users receive: the detections of an image, or its panoptic map.

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
    """The objects found in one image.

    Attributes:
        boxes: (n, 4) float, xyxy in pixels of the original image.
        scores: (n,) float in 0..1.
        labels: (n,) int64 in 0..K-1.
        categories: gives names, dataset ids and colours to the labels.
        size: height and width of the original image, in pixels.
        image: (H, W, 3) uint8 RGB, the image itself if it was kept, for `plot`.
        masks: (n, H, W) bool in the original image, or None.
        track_ids: (n,) int64, the same for one object in all frames of a video. A tracker sets them; None from a
            detector.
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
        """The image with masks or boxes, names and scores drawn on it, as a PIL image.

        Args:
            image: (H, W, 3) uint8 RGB or a PIL image to draw on; the one that was kept when omitted.
            min_score: detections below it are not drawn.
        """
        return draw_detections(self, image, min_score=min_score)

    def to_coco(self, image_id: int = 0) -> list[dict[str, Any]]:
        """Rows of a COCO results file: category ids of the dataset, boxes as x, y, w, h in pixels, masks as RLE."""
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
        """The same as `supervision.Detections`, with the names under `data["class_name"]`.

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
        categories: gives names, dataset ids and colours to the labels.
        size: height and width of the original image, in pixels.
        image: (H, W, 3) uint8 RGB, the image itself if it was kept, for `plot`.
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
        """The image with its segments and their names drawn on it, as a PIL image.

        Args:
            image: (H, W, 3) uint8 RGB or a PIL image to draw on; the one that was kept when omitted.
        """
        return draw_panoptic(self, image)

    def to_coco(self, image_id: int = 0) -> dict[str, Any]:
        """An annotation of a COCO panoptic file, category ids those of the dataset; `segments` is its image."""
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


def draw_detections(
    detections: Detections, image: Any = None, *, min_score: float = 0.0, scale: float | None = None
) -> Image.Image:
    """The image with the box, name and score of every detection; where it has a mask, that instead of the box.

    Args:
        detections: what was found in one image.
        image: (H, W, 3) uint8 RGB or a PIL image to draw on; `detections.image` when omitted.
        min_score: detections below it are not drawn.
        scale: enlargement of the image; small images are enlarged to about 720 pixels when omitted.

    Raises:
        ValueError: there is no image, or it is of another size than the one the detections were found in.
    """
    picture = _own_image("draw_detections", "detections", detections.image if image is None else image, detections)
    shown = detections[detections.scores >= min_score]
    captions = [f"{name} {score:.2f}" for name, score in zip(shown.names, shown.scores.tolist(), strict=True)]
    colours = [shown.categories.colours[label] for label in shown.labels.tolist()]
    masks = None if shown.masks is None else shown.masks.cpu().numpy()
    return visualize.draw_boxes(
        picture, shown.boxes.detach().cpu().numpy(), captions, colours, masks=masks, scale=scale
    )


def draw_panoptic(found: Panoptic, image: Any = None, *, scale: float | None = None) -> Image.Image:
    """The image with every segment of a panoptic map in its colour, and their names.

    Args:
        found: the map of one image.
        image: (H, W, 3) uint8 RGB or a PIL image to draw on; `found.image` when omitted.
        scale: as in `draw_detections`.

    Raises:
        ValueError: there is no image, or it is of another size than the map.
    """
    picture = _own_image("draw_panoptic", "map", found.image if image is None else image, found)
    labels = {segment.id: segment.label for segment in found.info}
    return visualize.draw_segments(picture, found.segments.cpu().numpy(), labels, found.categories, scale=scale)


def _own_image(function: str, what: str, image: Any, found: Detections | Panoptic) -> Image.Image:
    """The image as an image. Raises ValueError when it is missing, or of another size than what was found in it."""
    if image is None:
        raise ValueError(f"{function}: the {what} hold{'' if what.endswith('s') else 's'} no image; pass the one of it")
    picture = visualize.as_image(image)
    height, width = found.size
    if picture.size != (width, height):
        raise ValueError(
            f"{function}: the image is {picture.width} x {picture.height}, but the {what} "
            f"{'are' if what.endswith('s') else 'is'} of one of {width} x {height}; pass that one"
        )
    return picture
