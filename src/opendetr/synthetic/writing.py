"""Writes scenes as a dataset in the COCO layout, with instance and panoptic annotations."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any

from PIL import Image

from opendetr.data import DataError, write_map
from opendetr.files import write_atomically
from opendetr.synthetic.config import CATEGORIES, DEFAULT_CONFIG, SceneConfig
from opendetr.synthetic.drawing import Scene, draw_scene
from opendetr.synthetic.labels import Segment
from opendetr.synthetic.polygons import mask_to_polygons, mask_to_rle

DEFAULT_COUNTS: Mapping[str, int] = MappingProxyType({"train": 2000, "val": 300})
"""Default number of scenes per split of :func:`write_scenes`."""

_GENERATOR = "OpenDETR scenes 1"
_MARKER = "scenes.json"


def write_scenes(
    folder: str | Path,
    *,
    counts: Mapping[str, int] = DEFAULT_COUNTS,
    seed: int = 0,
    config: SceneConfig = DEFAULT_CONFIG,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write a dataset of scenes in the COCO layout, with instance and panoptic annotations.

    The files of the split "train" are ``folder/train/000000.png`` ..., ``folder/annotations/instances_train.json``,
    ``folder/annotations/panoptic_train.json`` and ``folder/annotations/panoptic_train/000000.png`` ...; those of other
    splits are named likewise. The JSON files are written last, so a dataset without them is incomplete. The image ids
    are the indices of the scenes. Crowd objects are annotated with RLE, all others with polygons.

    Args:
        folder: the folder to write to; it is created if missing. Splits that an earlier call wrote there under the same
            name are replaced.
        counts: number of scenes per split.
        seed: seed of the dataset.
        config: the configuration of the scenes.
        progress: called after every scene with the number of finished scenes and the total number.

    Raises:
        DataError: the folder contains other files, or a split has an invalid name or count.
    """
    folder = Path(folder)
    _check_counts(counts)
    _claim(folder)
    info = {"description": _GENERATOR, "seed": seed, "config": asdict(config)}
    writers = {split: _SplitWriter(folder, split, info | {"split": split}, config) for split in counts}
    done, total = 0, sum(counts.values())
    for split, count in counts.items():
        for index in range(count):
            writers[split].add(index, draw_scene(index, split=split, seed=seed, config=config))
            done += 1
            if progress is not None:
                progress(done, total)
    for writer in writers.values():
        writer.finish()


def _instance_record(scene: Scene, label: Segment) -> dict[str, Any]:
    """COCO instance annotation of a thing without ids: with polygons, or with RLE if it is a crowd."""
    x0, y0, x1, y1 = label.box
    visible = scene.segments[y0:y1, x0:x1] == label.id
    return {
        "category_id": label.category_id,
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "area": label.area,
        "iscrowd": int(label.iscrowd),
        "segmentation": mask_to_rle(scene.segments == label.id)
        if label.iscrowd
        else mask_to_polygons(visible, origin=(x0, y0)),
    }


def _segment_record(label: Segment) -> dict[str, Any]:
    """Entry of ``segments_info`` in a COCO panoptic annotation."""
    x0, y0, x1, y1 = label.box
    return {
        "id": label.id,
        "category_id": label.category_id,
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "area": label.area,
        "iscrowd": int(label.iscrowd),
    }


def _check_counts(counts: Mapping[str, int]) -> None:
    """Raise DataError for an invalid split name or count."""
    for split, count in counts.items():
        if not split.isidentifier() or split == "annotations":
            raise DataError(
                f"counts: split {split!r} is not a valid name: use letters, digits and _, but not 'annotations'"
            )
        if count < 0:
            raise DataError(f"counts[{split!r}]={count}: must be 0 or more")


def _claim(folder: Path) -> None:
    """Create the folder and its marker file. Raises DataError if the folder contains other files."""
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder} is a file: choose a folder that is empty or does not exist")
    if folder.exists() and any(folder.iterdir()) and not (folder / _MARKER).is_file():
        raise DataError(f"{folder} contains files that are not scenes: choose a folder that is empty or does not exist")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _MARKER).write_text(json.dumps({"description": _GENERATOR}) + "\n")


class _SplitWriter:
    """Writes the images of a split one by one and its COCO files at the end."""

    def __init__(self, folder: Path, split: str, info: dict[str, Any], config: SceneConfig) -> None:
        self._images = folder / split
        self._annotations = folder / "annotations"
        self._split = split
        images: list[dict[str, Any]] = []
        categories = [record for record in CATEGORIES if not record["isthing"] or record["name"] in config.classes]
        of_things = [record for record in categories if record["isthing"]]
        things = [{key: record[key] for key in ("id", "name", "supercategory")} for record in of_things]
        self._instances: dict[str, Any] = {"info": info, "images": images, "annotations": [], "categories": things}
        self._panoptic: dict[str, Any] = {"info": info, "images": images, "annotations": [], "categories": categories}
        self._clear()

    def _clear(self) -> None:
        """Create and empty the folders, JSON files first. So an interrupted write never looks complete."""
        for name in self._files():
            (self._annotations / name).unlink(missing_ok=True)
        for folder in (self._images, self._annotations / f"panoptic_{self._split}"):
            folder.mkdir(parents=True, exist_ok=True)
            for image in folder.glob("*.png"):
                image.unlink()

    def _files(self) -> dict[str, dict[str, Any]]:
        """The contents of the COCO files by name."""
        return {f"instances_{self._split}.json": self._instances, f"panoptic_{self._split}.json": self._panoptic}

    def add(self, index: int, scene: Scene) -> None:
        """Write the image and the panoptic map of a scene, and add its labels."""
        name = f"{index:06d}.png"
        Image.fromarray(scene.image).save(self._images / name, compress_level=1)
        write_map(self._annotations / f"panoptic_{self._split}" / name, scene.segments)
        height, width = scene.segments.shape
        self._instances["images"].append({"id": index, "file_name": name, "width": width, "height": height})
        annotations = self._instances["annotations"]
        for label in scene.objects:
            # Ids start at 1: COCO's evaluation treats a match with annotation id 0 as no match.
            ids = {"id": len(annotations) + 1, "image_id": index}
            annotations.append(ids | _instance_record(scene, label))
        segments_info = [_segment_record(label) for label in scene.objects + scene.stuff]
        self._panoptic["annotations"].append({"image_id": index, "file_name": name, "segments_info": segments_info})

    def finish(self) -> None:
        """Write the COCO files, each completely or not at all."""
        for name, content in self._files().items():
            write_atomically(self._annotations / name, json.dumps(content, separators=(",", ":")))
