"""The results of prediction: the detections of an image, or its panoptic map.

Shape letters: H W original image, K classes, n detections.
Frames: a box is (x0, y0, x1, y1) in pixels of the original image.
"""

from __future__ import annotations

import io
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageShow
from torch import Tensor

from opendetr import visualize
from opendetr.categories import Categories
from opendetr.config import hint, needs_package
from opendetr.data import read_image, to_pixels
from opendetr.structures import Movable, expect_shape

_NUM_SHOWN = 10  # rows in the text of a result
_NOTEBOOK_SIDE = 1280  # longer side of an image in a notebook, in pixels

Selection = slice | int | Sequence[bool] | Sequence[int] | np.ndarray | Tensor
"""What selects detections: an index, a slice, a list, array or tensor of indices, or a mask: one of truth values."""


class Drawable(ABC):
    """Base class of results that can be drawn on their image: shows and saves the drawing."""

    image: Any

    if not TYPE_CHECKING:  # a type checker would take it for a class with any attribute

        def __getattr__(self, name: str) -> Any:
            """Raise AttributeError for an unknown attribute, with the nearest one."""
            text = f"{type(self).__name__} has no attribute {name!r}"
            if not name.startswith("_"):
                own = [each for each in dir(type(self)) if not each.startswith("_")]
                text += f"; {hint(name, [*self.__dataclass_fields__, *own])}"
            raise AttributeError(text)

    @abstractmethod
    def plot(self, image: Any = None, *, scale: float | None = 1) -> Image.Image:
        """Draw the result on the image."""

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Save the image with the result drawn on it, in the size of the image. Missing folders are created.

        Args:
            path: the file to write. Its suffix, such as .png or .jpg, decides the format.

        Returns:
            The path.

        Raises:
            ValueError: the image was not kept, or images have no format with this suffix.
            OSError: the file cannot be written.
        """
        path = Path(path)
        visualize.require_format(path)
        drawn = self.plot()
        path.parent.mkdir(parents=True, exist_ok=True)
        visualize.save_image(drawn, path)
        return path

    def show(self) -> None:
        """Show the drawing in the notebook, or in the image viewer of the system.

        Raises:
            ValueError: the image was not kept, or there is no display.
        """
        drawn = self.plot(scale=None)
        notebook = _notebook_display()
        if notebook is not None:
            notebook(drawn)
        elif not (_has_screen() and ImageShow.show(drawn)):
            raise ValueError("show: no display or image viewer here; write a file with save(path)")

    def _repr_png_(self) -> bytes | None:
        """The drawing as PNG for notebooks, at most 1280 pixels long; None if the image was not kept."""
        if self.image is None:
            return None
        drawn = self.plot(scale=None)
        drawn.thumbnail((_NOTEBOOK_SIDE, _NOTEBOOK_SIDE))
        content = io.BytesIO()
        drawn.save(content, "PNG")
        return content.getvalue()


def _notebook_display() -> Any:
    """IPython's `display` if this is a notebook, otherwise None."""
    if "IPython" not in sys.modules:
        return None
    from IPython import get_ipython
    from IPython.display import display

    return display if hasattr(get_ipython(), "kernel") else None


def _has_screen() -> bool:
    """Whether windows can be shown. Without one, viewers on Linux fail after they were started."""
    return not sys.platform.startswith("linux") or any(os.environ.get(n) for n in ("DISPLAY", "WAYLAND_DISPLAY"))


@dataclass(frozen=True, repr=False)
class Detections(Drawable, Movable):
    """The detections of one image.

    Its text has a line for each of the first ten. A notebook shows the image with the detections drawn on it.

    Attributes:
        boxes: (n, 4) float, xyxy in pixels of the original image. At its border they can reach outside, see `clip`.
        scores: (n,) float in 0..1.
        labels: (n,) int64 in 0..K-1.
        categories: the classes: names, dataset ids and colours of the labels.
        size: height and width of the original image, in pixels.
        image: (H, W, 3) uint8 RGB, the original image for `plot`, or None if it was not kept.
        masks: (n, H, W) bool in the original image, or None.
        track_ids: (n,) int64, the same for one object in all frames of a video. Set by a tracker; None from a
            detector.
        phrases: (n) the words of the text that name each object; None from a model that takes no text.
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
    phrases: tuple[str, ...] | None = None
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
        found = self.phrases
        expect_shape(found is None or len(found) == n, "Detections", "phrases", f"{n} entries", found)

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, chosen: Selection) -> Detections:
        """Select detections by a mask, a slice, an index or indices, such as `d[d.scores > 0.5]`, `d[:3]`, `d[[0, 2]]`.

        A mask is a list, array or tensor of n truth values. Negative indices count from the end.

        Raises:
            IndexError: an index is out of range.
            ValueError: `chosen` is something else, or a mask of another length.
        """
        indices = _selected(chosen, len(self)).to(self.scores.device)
        per_object: dict[str, Any] = {
            name: None if (value := getattr(self, name)) is None else value[indices]
            for name in ("boxes", "scores", "labels", "masks", "track_ids")
        }
        if self.phrases is not None:
            per_object["phrases"] = tuple(self.phrases[index] for index in indices.tolist())
        return replace(self, **per_object)

    def __iter__(self) -> Iterator[Detections]:
        return (self[index] for index in range(len(self)))

    def __repr__(self) -> str:
        shown = self[:_NUM_SHOWN]
        rows: list[tuple[str, ...]] = [
            (str(index), name, f"{score:.2f}", " ".join(f"{corner:6.1f}" for corner in box))
            for index, (name, score, box) in enumerate(
                zip(shown.names, shown.scores.tolist(), shown.boxes.tolist(), strict=True)
            )
        ]
        if shown.track_ids is not None:
            rows = [(*row, f"track {id_}") for row, id_ in zip(rows, shown.track_ids.tolist(), strict=True)]
        kind = "Detections" if self.masks is None else "Detections with masks"
        return _text(kind, "object", self, rows)

    @property
    def names(self) -> list[str]:
        """The category name of each detection, or the phrase that names it."""
        if self.phrases is not None:
            return list(self.phrases)
        return [self.categories.names[label] for label in self.labels.tolist()]

    def clip(self) -> Detections:
        """A copy whose boxes are clipped to the image. A box outside the image has no area then."""
        height, width = self.size
        limits = torch.tensor((width, height, width, height), dtype=self.boxes.dtype, device=self.boxes.device)
        return replace(self, boxes=self.boxes.clamp(min=0).minimum(limits))

    def plot(self, image: Any = None, *, min_score: float = 0.0, scale: float | None = 1) -> Image.Image:
        """Draw masks or boxes, names and scores on the image; returns a PIL image.

        Args:
            image: the image to draw on: its path, a PIL image, an array or a tensor; `self.image` by default.
            min_score: detections with a lower score are not drawn.
            scale: factor by which the image is enlarged before drawing. None: small images are enlarged to about 720
                pixels, to make labels legible.

        Raises:
            ValueError: there is no image, or its size is not `size`.
        """
        return draw_detections(self, image, min_score=min_score, scale=scale)

    def to_pandas(self) -> Any:
        """Convert to a `pandas.DataFrame` with a row for each detection and the columns of `predictions.csv`.

        The columns are file_name, frame, category_id, category, score, x_min, y_min, x_max, y_max in pixels, and
        track_id for a tracker's detections.

        Raises:
            ImportError: pandas is not installed.
        """
        x_min, y_min, x_max, y_max = self.boxes.detach().cpu().numpy().T
        columns = {
            "category_id": [self.categories.ids[label] for label in self.labels.tolist()],
            "category": self.names,
            "score": self.scores.detach().cpu().numpy(),
            "x_min": x_min,
            "y_min": y_min,
            "x_max": x_max,
            "y_max": y_max,
        }
        if self.track_ids is not None:
            columns["track_id"] = self.track_ids.cpu().numpy()
        return _data_frame(self, columns)

    def to_coco(self, image_id: int = 0) -> list[dict[str, Any]]:
        """Rows of a COCO results file: category ids of the dataset, boxes as x, y, w, h in pixels, masks as RLE.

        With `phrases`, each row has a "phrase".
        """
        x0, y0, x1, y1 = self.boxes.detach().cpu().double().unbind(1)
        boxes = torch.stack((x0, y0, x1 - x0, y1 - y0), 1).tolist()
        ids = [self.categories.ids[label] for label in self.labels.tolist()]
        rows: list[dict[str, Any]] = [
            {"image_id": image_id, "category_id": category_id, "bbox": box, "score": score}
            for category_id, box, score in zip(ids, boxes, self.scores.tolist(), strict=True)
        ]
        if self.phrases is not None:
            for row, phrase in zip(rows, self.phrases, strict=True):
                row["phrase"] = phrase
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
            text = f"to_supervision: {needs_package('supervision')}"
            raise ModuleNotFoundError(text, name="supervision") from None

        return supervision.Detections(
            xyxy=self.boxes.detach().cpu().numpy(),
            confidence=self.scores.detach().cpu().numpy(),
            class_id=self.labels.cpu().numpy(),
            mask=None if self.masks is None else self.masks.cpu().numpy(),
            tracker_id=None if self.track_ids is None else self.track_ids.cpu().numpy(),
            data={"class_name": np.array(self.names)},
        )


def _selected(chosen: Any, count: int) -> Tensor:
    """The indices (m,) int64 that a selection of `count` objects means; see `Detections.__getitem__`."""
    if isinstance(chosen, slice):
        return torch.tensor(range(count)[chosen], dtype=torch.int64)
    if isinstance(chosen, tuple):
        raise ValueError(f"detections[{', '.join(map(repr, chosen))}]: detections have one dimension; give a list")
    if isinstance(chosen, str):
        raise ValueError(
            f"detections[{chosen!r}]: detections are selected by numbers; write "
            f"d[[name == {chosen!r} for name in d.names]]"
        )
    array = _index_array(chosen)
    if array.dtype == bool and array.shape == (count,):
        return torch.from_numpy(np.flatnonzero(array))
    if array.dtype.kind not in "iu" or array.dtype == np.uint8 or array.ndim > 1:
        kind = array.dtype if array.dtype != object else type(chosen).__name__
        shape = f" of shape {array.shape}" if array.ndim else ""
        ambiguous = " (a mask or indices?)" if kind == np.uint8 else ""
        raise ValueError(
            f"detections[...]: {kind}{shape}{ambiguous} does not select from {count} detections; give an index, a "
            "slice, a list of indices, or a mask such as d.scores > 0.5"
        )
    indices = np.atleast_1d(array).astype(np.int64)
    outside = (indices < -count) | (indices >= count)
    if outside.any():
        raise IndexError(f"detections[{indices[outside][0]}]: there are {count} detections, numbered from 0")
    return torch.from_numpy(indices % max(count, 1))


def _index_array(chosen: Any) -> np.ndarray:
    """An array of a selection; of type object if it is none. NumPy would turn truth values among numbers to numbers."""
    if isinstance(chosen, Tensor):
        return chosen.detach().cpu().numpy()
    is_list = isinstance(chosen, list | range)
    if not (is_list or isinstance(chosen, int | np.generic) or hasattr(chosen, "__array__")):
        return np.array(chosen, dtype=object)
    if is_list and len({isinstance(item, bool | np.bool_) for item in chosen}) > 1:
        return np.array(chosen, dtype=object)
    try:
        return np.asarray(chosen, dtype=np.int64 if is_list and not len(chosen) else None)
    except ValueError:  # lists of different lengths
        return np.array(None, dtype=object)


def _text(kind: str, noun: str, result: Detections | Panoptic, rows: Sequence[tuple[str, ...]]) -> str:
    """The text of a result: a heading, and the rows in aligned columns."""
    count, (height, width) = len(result), result.size
    place = "" if result.source is None else f", {result.source}"
    place += "" if result.frame is None else f", frame {result.frame}"
    head = f"{kind}: {count} {noun if count == 1 else noun + 's'}, image of {width} x {height}{place}"
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
    more = [f"... and {count - len(rows)} more"] if count > len(rows) else []
    return "\n  ".join((head, *lines, *more))


def _data_frame(result: Detections | Panoptic, columns: dict[str, Any]) -> Any:
    """A pandas.DataFrame of the columns, with the file name and the frame in front. Raises ImportError."""
    try:
        import pandas
    except ImportError:
        raise ImportError(f"to_pandas: {needs_package('pandas')}") from None
    frame = pandas.DataFrame(columns)
    frame.insert(0, "file_name", result.source)
    frame.insert(1, "frame", result.frame)
    return frame


def run_lengths(mask: Tensor) -> dict[str, Any]:
    """COCO's compressed RLE (run-length encoding) of an (H, W) bool mask: `size`, and `counts` as text."""
    from faster_coco_eval.core import mask as coder

    columns = mask.t().contiguous().cpu().numpy()  # RLE goes down the columns
    (encoded,) = coder.encode(columns.view("uint8").T[..., None])
    return {"size": list(encoded["size"]), "counts": encoded["counts"].decode("ascii")}


@dataclass(frozen=True)
class Answer:
    """The answer to a question about an image.

    Attributes:
        text: the answer.
        score: its probability, in 0..1.
        question: the question.
        source: the path or address of the image, or None.
        frame: the number of the image in a video, from 0, or None.
    """

    text: str
    score: float
    question: str
    source: str | None = None
    frame: int | None = None

    def __str__(self) -> str:
        return self.text


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


@dataclass(frozen=True, repr=False)
class Panoptic(Drawable, Movable):
    """The panoptic map of an image: the thing or stuff that every pixel belongs to.

    Its text has a line for each of the ten largest segments. A notebook shows the map drawn on the image.

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

    def __repr__(self) -> str:
        largest = sorted(self.info, key=lambda segment: -segment.area)[:_NUM_SHOWN]
        pixels = max(self.size[0] * self.size[1], 1)
        rows = [
            (
                str(segment.id),
                self.categories.names[segment.label],
                f"{segment.score:.2f}",
                f"{segment.area / pixels:.1%} of the image",
                "thing" if segment.isthing else "stuff",
            )
            for segment in largest
        ]
        return _text("Panoptic", "segment", self, rows)

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

    def plot(self, image: Any = None, *, scale: float | None = 1) -> Image.Image:
        """Draw the segments and their names on the image; returns a PIL image.

        Args:
            image: the image to draw on: its path, a PIL image, an array or a tensor; `self.image` by default.
            scale: as in `Detections.plot`.

        Raises:
            ValueError: there is no image, or its size is not `size`.
        """
        return draw_panoptic(self, image, scale=scale)

    def to_pandas(self) -> Any:
        """Convert to a `pandas.DataFrame` with a row for each segment.

        The columns are file_name, frame, segment_id, category_id, category, isthing, score, and area in pixels.

        Raises:
            ImportError: pandas is not installed.
        """
        columns = {
            "segment_id": [segment.id for segment in self.info],
            "category_id": [self.categories.ids[segment.label] for segment in self.info],
            "category": self.names,
            "isthing": [segment.isthing for segment in self.info],
            "score": [segment.score for segment in self.info],
            "area": [segment.area for segment in self.info],
        }
        return _data_frame(self, columns)

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
    detections: Detections,
    image: Any = None,
    *,
    min_score: float = 0.0,
    scale: float | None = None,
    text: float = 1,
) -> Image.Image:
    """Draw the name, the score, and the mask (or the box without masks) of every detection on the image.

    Tracked objects have the colour and the number of their track, and objects that a text names the colour of their
    phrase.

    Args:
        detections: the detections of one image.
        image: the image to draw on: its path, a PIL image, an array or a tensor; `detections.image` by default.
        min_score: detections with a lower score are not drawn.
        scale: factor by which the image is enlarged. By default, small images are enlarged to about 720 pixels.
        text: factor on the size of labels and lines, for images that are shown smaller than they are.

    Raises:
        ValueError: there is no image, its size is not that of the detections, or `min_score` is not in 0..1.
    """
    if not 0 <= min_score <= 1:
        raise ValueError(f"draw_detections: min_score={min_score}: give a number in 0..1")
    canvas = _own_image("draw_detections", "detections", detections.image if image is None else image, detections)
    shown = detections[detections.scores >= min_score]
    captions = [f"{name} {score:.2f}" for name, score in zip(shown.names, shown.scores.tolist(), strict=True)]
    colours = [shown.categories.colours[label] for label in shown.labels.tolist()]
    if shown.phrases is not None:
        colours = [visualize.phrase_colour(phrase) for phrase in shown.phrases]
    if shown.track_ids is not None:
        ids = shown.track_ids.tolist()
        captions = [f"{id_} {caption}" for id_, caption in zip(ids, captions, strict=True)]
        colours = [visualize.track_colour(id_) for id_ in ids]
    masks = None if shown.masks is None else shown.masks.cpu().numpy()
    boxes = shown.boxes.detach().cpu().numpy()
    return visualize.draw_boxes(canvas, boxes, captions, colours, masks=masks, scale=scale, text=text)


def draw_panoptic(panoptic: Panoptic, image: Any = None, *, scale: float | None = None, text: float = 1) -> Image.Image:
    """Draw the segments of a panoptic map and their names on the image.

    Args:
        panoptic: the map of one image.
        image: the image to draw on: its path, a PIL image, an array or a tensor; `panoptic.image` by default.
        scale: as in `draw_detections`.
        text: as in `draw_detections`.

    Raises:
        ValueError: there is no image, or its size is not that of the map.
    """
    canvas = _own_image("draw_panoptic", "panoptic map", panoptic.image if image is None else image, panoptic)
    labels = {segment.id: segment.label for segment in panoptic.info}
    segments = panoptic.segments.cpu().numpy()
    return visualize.draw_segments(canvas, segments, labels, panoptic.categories, scale=scale, text=text)


def _own_image(function: str, noun: str, image: Any, result: Detections | Panoptic) -> Image.Image:
    """`image` as a PIL image. Raises ValueError if it is missing, or its size is not that of `result`."""
    if image is None:
        raise ValueError(f"{function}: no image was kept with the {noun}; pass the image")
    pixels = read_image(image) if isinstance(image, str | Path) else to_pixels(image)
    canvas = Image.fromarray(pixels)
    height, width = result.size
    if canvas.size != (width, height):
        raise ValueError(
            f"{function}: the image is {canvas.width} x {canvas.height}, but the size of the {noun} is "
            f"{width} x {height}; pass the original image"
        )
    return canvas
