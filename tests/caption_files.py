"""Small datasets in MDETR's format, written by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from opendetr.data import DetectionData, open_data

SIZE = (40, 60)  # height and width of the images
DOG = [2, 5, 20, 30]  # x, y, width, height


def box(box: Sequence[float] = DOG, **further: Any) -> dict[str, Any]:
    return {"bbox": list(box), "area": box[2] * box[3], "iscrowd": 0, "category_id": 1, **further}


def caption(text: str, *boxes: Mapping[str, Any], **further: Any) -> dict[str, Any]:
    """An image with a caption and its boxes."""
    return {"caption": text, "boxes": boxes, **further}


def write(folder: Path, *captions: Mapping[str, Any], name: str = "train", file: str = "captions_{}.json") -> Path:
    """Write a split. Captions without a "file_name" have an image each."""
    images, annotations = [], []
    for index, entry in enumerate(captions):
        row = {"id": index, "file_name": f"{index}.png", "height": SIZE[0], "width": SIZE[1]}
        images.append(row | {key: value for key, value in entry.items() if key != "boxes"})
        for each in entry["boxes"]:
            annotations.append({"id": len(annotations) + 1, "image_id": index, **each})
        path = folder / name / images[-1]["file_name"]
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            shape = (images[-1]["height"], images[-1]["width"], 3)
            Image.fromarray(np.random.default_rng(index).integers(0, 255, shape, dtype=np.uint8)).save(path)
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "object"}]}
    path = folder / "annotations" / file.format(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return folder


def read(folder: Path) -> DetectionData:
    """The training split of a dataset that has a validation split as well."""
    write(folder, caption("a dog", box(tokens_positive=[[2, 5]])), name="val")
    return open_data(folder)["train"]
