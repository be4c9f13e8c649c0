"""What was found as images: drawn, cut out, or as a map; threads do it beside the model."""

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
from opendetr.inference.writers.names import FORMATS, class_folders
from opendetr.inference.writers.tables import Entry, Sink
from opendetr.results import Detections, Panoptic


def drawn_images(folder: Path, background: Background) -> Sink[Detections | Panoptic]:
    """Saves each image with what was found drawn on it."""

    def add(entry: Entry[Detections | Panoptic]) -> None:
        if entry.found.frame is None:
            background.submit(partial(draw, folder / entry.name, entry.found), size=entry.num_bytes)

    return add


def draw(path: Path, found: Detections | Panoptic) -> None:
    """Save the image with what was found drawn on it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _save(found.plot(), path)


def _save(picture: Image.Image, path: Path) -> None:
    try:
        content = _encoded(picture, FORMATS[path.suffix.lower()])
    except (OSError, ValueError):  # more pixels a side than the format has; viewers go by the content, not by the name
        content = _encoded(picture, "PNG")
    write_atomically(path, content)


def _encoded(picture: Image.Image, form: str) -> bytes:
    content = io.BytesIO()
    picture.save(content, form)
    return content.getvalue()


def crops(folder: Path, categories: Categories, background: Background) -> Sink[Detections]:
    """Saves each detection, cut out of its image, as `crops/CLASS/NAME-NUMBER`; numbers count from 0, best first."""
    folders = [folder / "crops" / name for name in class_folders(categories)]

    def add(entry: Entry[Detections]) -> None:
        background.submit(partial(_cut, entry, folders), size=entry.num_bytes)

    return add


def _cut(entry: Entry[Detections], folders: list[Path]) -> None:
    found = entry.found
    image = Image.fromarray(np.ascontiguousarray(found.image))
    suffix = entry.name.suffix if entry.name.suffix.lower() in FORMATS else ".jpg"
    for number, (label, box) in enumerate(zip(found.labels.tolist(), found.boxes.tolist(), strict=True)):
        corners = _whole_pixels(box, image.size)
        if corners is not None:
            path = folders[label] / entry.stem.with_name(f"{entry.stem.name}-{number}{suffix}")
            path.parent.mkdir(parents=True, exist_ok=True)
            _save(image.crop(corners), path)


def _whole_pixels(box: list[float], size: tuple[int, int]) -> tuple[int, int, int, int] | None:
    """The pixels that a box touches, inside the image; None when it lies outside."""
    low = [max(0, int(np.floor(value))) for value in box[:2]]
    high = [min(limit, int(np.ceil(value))) for value, limit in zip(box[2:], size, strict=True)]
    return (low[0], low[1], high[0], high[1]) if low[0] < high[0] and low[1] < high[1] else None


def panoptic_maps(folder: Path, background: Background) -> Sink[Panoptic]:
    """Saves the map of each image as COCO's PNG, under the name that `panoptic_map_name` gives."""

    def add(entry: Entry[Panoptic]) -> None:
        segments = entry.found.segments
        background.submit(partial(_save_map, folder / panoptic_map_name(entry), segments), size=segments.nbytes)

    return add


def panoptic_map_name(entry: Entry[Panoptic]) -> str:
    """The name of an image's map in the folder of maps."""
    return entry.stem.with_name(entry.stem.name + ".png").as_posix()


def _save_map(path: Path, segments: Tensor) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        write_map(temporary, segments.numpy())
