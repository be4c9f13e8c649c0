"""Detections as pictures, drawn or cut out; threads do it beside the model."""

from __future__ import annotations

import io
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from opendetr.categories import Categories
from opendetr.results.background import Background
from opendetr.results.names import FORMATS, class_folders
from opendetr.results.tables import Entry, Sink
from opendetr.results.whole import write_whole
from opendetr.structures import Detections


def drawn_pictures(folder: Path, background: Background) -> Sink:
    """Saves each picture with its detections drawn on it."""

    def add(entry: Entry) -> None:
        if entry.detections.frame is None:
            background.submit(partial(draw, folder / entry.name, entry.detections))

    return add


def draw(path: Path, found: Detections) -> None:
    """Save the picture with its detections drawn on it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _save(found.plot(), path)


def _save(picture: Image.Image, path: Path) -> None:
    try:
        content = _encoded(picture, FORMATS[path.suffix.lower()])
    except (OSError, ValueError):  # more pixels a side than the format has; viewers go by the content, not by the name
        content = _encoded(picture, "PNG")
    write_whole(path, content)


def _encoded(picture: Image.Image, form: str) -> bytes:
    content = io.BytesIO()
    picture.save(content, form)
    return content.getvalue()


def crops(folder: Path, categories: Categories, background: Background) -> Sink:
    """Saves each detection, cut out of its picture, as `crops/CLASS/NAME-NUMBER`; numbers count from 0, best first."""
    folders = [folder / "crops" / name for name in class_folders(categories)]

    def add(entry: Entry) -> None:
        background.submit(partial(_cut, entry, folders))

    return add


def _cut(entry: Entry, folders: list[Path]) -> None:
    found = entry.detections
    picture = Image.fromarray(np.ascontiguousarray(found.image))
    suffix = entry.name.suffix if entry.name.suffix.lower() in FORMATS else ".jpg"
    for number, (label, box) in enumerate(zip(found.labels.tolist(), found.boxes.tolist(), strict=True)):
        corners = _whole_pixels(box, picture.size)
        if corners is not None:
            path = folders[label] / entry.stem.with_name(f"{entry.stem.name}-{number}{suffix}")
            path.parent.mkdir(parents=True, exist_ok=True)
            _save(picture.crop(corners), path)


def _whole_pixels(box: list[float], size: tuple[int, int]) -> tuple[int, int, int, int] | None:
    """The pixels that a box touches, inside the picture; None when it lies outside."""
    low = [max(0, int(np.floor(value))) for value in box[:2]]
    high = [min(limit, int(np.ceil(value))) for value, limit in zip(box[2:], size, strict=True)]
    return (low[0], low[1], high[0], high[1]) if low[0] < high[0] and low[1] < high[1] else None
