"""Small dataset folders for tests, made from a few lines of description."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def make_image(height: int = 48, width: int = 64, seed: int = 0) -> np.ndarray:
    """An image with detail at all scales: smooth waves and noise, (height, width, 3) uint8."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = np.stack([np.sin(x / (3 + c) + seed) + np.cos(y / (5 - c)) for c in range(3)], -1)
    return (waves * 40 + 128 + rng.integers(-30, 30, (height, width, 3))).clip(0, 255).astype(np.uint8)


def write_image(path: Path, height: int = 48, width: int = 64, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(make_image(height, width, seed)).save(path)


def coco_content(num_images: int = 4, *, objects: int = 2, first_id: int = 1) -> dict[str, Any]:
    """A COCO file: images `0.png` ... of 64x48, each with `objects` boxes of the classes 3 (cat) and 7 (dog)."""
    images = [
        {"id": first_id + index, "file_name": f"{index}.png", "height": 48, "width": 64} for index in range(num_images)
    ]
    annotations = [
        {
            "id": image["id"] * 10 + number,
            "image_id": image["id"],
            "category_id": 7 if number % 2 else 3,
            "bbox": [4 + number, 5.5, 20, 10 + number],
            "area": 150.5,
            "iscrowd": 0,
        }
        for image in images
        for number in range(objects)
    ]
    return {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}],
    }


def write_coco_folder(folder: Path, splits: dict[str, dict[str, Any]], images: str = "images") -> Path:
    """`annotations/instances_<split>.json` for each split, and all images in one folder."""
    (folder / "annotations").mkdir(parents=True)
    for split, content in splits.items():
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
        for seed, row in enumerate(content["images"]):
            write_image(folder / images / row["file_name"], row["height"], row["width"], seed)
    return folder


def voc_xml(name: str, objects: list[tuple[str, list[Any]]], size: str = "<width>64</width><height>48</height>") -> str:
    """A VOC annotation; each object is its class and xmin, ymin, xmax, ymax."""
    corners = ("xmin", "ymin", "xmax", "ymax")
    things = "".join(
        f"<object><name>{label}</name><difficult>1</difficult><bndbox>"
        + "".join(f"<{tag}>{value}</{tag}>" for tag, value in zip(corners, box, strict=True))
        + "</bndbox><part><name>head</name></part></object>"
        for label, box in objects
    )
    return f"<annotation><filename>{name}.jpg</filename><size>{size}</size>{things}</annotation>"


def write_voc_folder(folder: Path, num_images: int = 6, lists: dict[str, list[str]] | None = None) -> Path:
    """Images `image_0.jpg` ... of 64x48, one zebra or ant each; `lists` become `ImageSets/Main/<name>.txt`."""
    (folder / "Annotations").mkdir(parents=True)
    for index in range(num_images):
        name = f"image_{index}"
        label = "ant" if index % 2 else "zebra"
        (folder / "Annotations" / f"{name}.xml").write_text(voc_xml(name, [(label, [10, 12, 30.5, 40])]))
        write_image(folder / "JPEGImages" / f"{name}.jpg", seed=index)
    for name, lines in (lists or {}).items():
        path = folder / "ImageSets" / "Main" / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n")
    return folder


def one_line(error: BaseException) -> str:
    """The error's message, checked to be a single line."""
    message = str(error)
    assert message
    assert "\n" not in message
    return message
