"""Write results as images: drawings, crops and panoptic maps. Threads write them while the model runs."""

from __future__ import annotations

import io
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from opendetr.categories import Categories
from opendetr.data import write_map
from opendetr.files import atomic_path, write_atomically
from opendetr.inference.writers.background import Background
from opendetr.inference.writers.names import FORMATS, FolderNames
from opendetr.inference.writers.tables import Entry, Sink
from opendetr.results import Detections, Panoptic


def drawn_images(folder: Path, background: Background) -> Sink[Detections | Panoptic]:
    """A sink that saves each image with its result drawn on it."""

    def add(entry: Entry[Detections | Panoptic]) -> None:
        if entry.result.frame is None:
            background.submit(partial(draw, folder / entry.name, entry.result), size=entry.num_bytes)

    return add


def draw(path: Path, result: Detections | Panoptic) -> None:
    """Save the image with the result drawn on it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _save(result.plot(), path)


def _save(image: Image.Image, path: Path) -> None:
    try:
        content = _encoded(image, FORMATS[path.suffix.lower()])
    except (OSError, ValueError):  # too many pixels for the format; viewers recognise PNG by its content
        content = _encoded(image, "PNG")
    write_atomically(path, content)


def _encoded(image: Image.Image, format_: str) -> bytes:
    content = io.BytesIO()
    image.save(content, format_)
    return content.getvalue()


def crops(folder: Path, categories: Categories, background: Background) -> Sink[Detections]:
    """A sink that saves the crop of each detection as `crops/CLASS/NAME-NUMBER`, numbered from 0, best first.

    CLASS is the phrase that names the detection, if it has one.
    """
    of_classes, of_phrases = FolderNames(categories.names), FolderNames()

    def add(entry: Entry[Detections]) -> None:
        detections = entry.result
        names = of_classes if detections.phrases is None else of_phrases
        folders = [folder / "crops" / names.of(name) for name in detections.names]
        background.submit(partial(_save_crops, entry, folders), size=entry.num_bytes)

    return add


def _save_crops(entry: Entry[Detections], folders: list[Path]) -> None:
    detections = entry.result
    image = Image.fromarray(np.ascontiguousarray(detections.image))
    suffix = entry.name.suffix if entry.name.suffix.lower() in FORMATS else ".jpg"
    for number, (folder, box) in enumerate(zip(folders, detections.boxes.tolist(), strict=True)):
        corners = _enclosing_pixels(box, image.size)
        if corners is not None:
            path = folder / entry.stem.with_name(f"{entry.stem.name}-{number}{suffix}")
            path.parent.mkdir(parents=True, exist_ok=True)
            _save(image.crop(corners), path)


def _enclosing_pixels(box: list[float], size: tuple[int, int]) -> tuple[int, int, int, int] | None:
    """The pixels of the image that a box touches, as x0, y0, x1, y1; None if it lies outside."""
    low = [max(0, int(np.floor(value))) for value in box[:2]]
    high = [min(limit, int(np.ceil(value))) for value, limit in zip(box[2:], size, strict=True)]
    return (low[0], low[1], high[0], high[1]) if low[0] < high[0] and low[1] < high[1] else None


def panoptic_maps(folder: Path, background: Background) -> Sink[Panoptic]:
    """A sink that saves each panoptic map as a PNG file in COCO's format, named by `panoptic_map_name`."""

    def add(entry: Entry[Panoptic]) -> None:
        segments = entry.result.segments
        background.submit(partial(_save_map, folder / panoptic_map_name(entry), segments), size=segments.nbytes)

    return add


def panoptic_map_name(entry: Entry[Panoptic]) -> str:
    """The file name of a panoptic map, relative to the folder of maps."""
    return entry.stem.with_name(entry.stem.name + ".png").as_posix()


def _save_map(path: Path, segments: Tensor) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        write_map(temporary, segments.numpy())
